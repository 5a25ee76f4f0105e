"""The field's benchmarks by name: optics, detector, prior, image shape and scoring protocol.

Sources: DISTA-Net (ICCV 2025) for CSIST-100K, SeqCSIST (IEEE TGRS 2025) for the sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from csunmix import names
from csunmix.prior import Prior
from csunmix.psf import PSF, GaussianPSF
from csunmix.sensor import Sensor

# 0.52 Rayleigh units of 1.9 sigma each, sigma = 0.5 px
_MIN_SEPARATION = 0.494


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A benchmark's setting.

    Attributes
    ----------
    name : str
        Name on the command line.
    psf : PSF
        The optics.
    sensor : Sensor
        The detector.
    prior : Prior
        What an estimator is told.
    scene : Prior
        What the simulator draws scenes from.
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    threshold : float
        Published protocol: every cell of a network's map at or above this is a detection, DN.
    frames_per_track : int
        Frames of a track; 1 for single images.
    """

    name: str
    psf: PSF
    sensor: Sensor
    prior: Prior
    scene: Prior
    shape: tuple[int, int]
    threshold: float
    frames_per_track: int = 1


def csist_100k() -> Preset:
    """CSIST-100K: 11 x 11 images, 8 bit, clipped at 255, 1-5 targets of flux 220-250.

    Targets are at least 0.494 px apart. Scenes are drawn with all targets in one pixel cell. The
    published data are not quite so; an estimator is told that it is likely (0.8), and else that
    targets lie within a box of 1.2 px anywhere.
    """
    prior = Prior(
        count=(1, 5), flux=(220.0, 250.0), min_separation=_MIN_SEPARATION, extent=1.2, cell=0.8
    )
    return Preset(
        name="csist-100k",
        psf=GaussianPSF(sigma=0.5),
        sensor=Sensor(rounding=True, saturation=255.0),
        prior=prior,
        scene=replace(prior, extent=None, cell=True),
        shape=(11, 11),
        threshold=50.0,
    )


def seq_csist() -> Preset:
    """SeqCSIST: tracks of 20 frames of 11 x 11 pixels with 2-4 targets.

    Fluxes, speeds and noise are not published; flux range and rounding are taken from CSIST-100K.
    """
    single = csist_100k()
    return replace(
        single,
        name="seq-csist",
        prior=replace(single.prior, count=(2, 4), extent=None, cell=False),
        scene=replace(single.scene, count=(2, 4)),
        threshold=70.0,
        frames_per_track=20,
    )


PRESETS: dict[str, Callable[[], Preset]] = dict(
    zip(names.PRESETS, (csist_100k, seq_csist), strict=True)
)
"""Presets by their name on the command line."""
