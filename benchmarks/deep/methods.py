"""Everything that is compared: trained networks and our estimators, as calls from images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.deep.data import Setting
from benchmarks.deep.networks import NETWORKS
from benchmarks.deep.weights import load

LABELS = {
    "off-grid": "off-grid network",
    "posterior": "amortised posterior",
    "perceptron": "perceptron, c = 3",
    "lista": "LISTA, c = 3",
    "ista-net": "ISTA-Net+ (16 channels, 6 stages), c = 3",
    "focus": "FOCUS, c = 3",
    "dista-net": "DISTA-Net (16 channels), c = 3",
}
FIRST_STAGE = "off-grid network, first stage"
OURS = ("MomentUnmixer", "GridUnmixer, refined", "ContinuousUnmixer", "PosteriorUnmixer")
TOLD = ("preset", "cell")
BATCHES = (1, 64, 1024)
TRAINING = "scenes"  # what networks are told


@dataclass(frozen=True)
class Method:
    """One that is compared.

    Parameters
    ----------
    name, told : str
        What it is, and what it knows of the scenes.
    run : callable
        From images (n, n_y, n_x) to a target table.
    parameters : int, optional
        That were trained.
    seconds : float, optional
        CPU time of the training.
    batches : tuple of int
        Images in a call that are timed.
    """

    name: str
    told: str
    run: Callable[[np.ndarray], pd.DataFrame]
    parameters: int | None = None
    seconds: float | None = None
    batches: tuple[int, ...] = BATCHES


def networks(setting: Setting, runs: Path | None) -> Iterator[Method]:
    """Networks that were trained for a setting."""
    for name in NETWORKS:
        trained = load(name, setting.name, runs)
        if trained is None:
            continue
        network, parameters, seconds = trained
        yield Method(LABELS[name], TRAINING, network.unmix, parameters, seconds)
        if name == "off-grid":
            size = sum(each.numel() for each in network.start.parameters())
            yield Method(FIRST_STAGE, TRAINING, partial(network.unmix, n_refine=0), size, seconds)


def ours(setting: Setting) -> Iterator[Method]:
    """Our estimators, told the preset's prior or the pixel cell."""
    psf, sensor, shape = setting.psf, setting.sensor, setting.shape
    for told, prior in zip(TOLD, (cu.presets.csist_100k().prior, setting.scene), strict=True):
        on_grid = cu.grid_unmixer(psf=psf, shape=shape, sensor=sensor, prior=prior, refine=True)
        yield Method(OURS[0], told, cu.MomentUnmixer(psf, sensor, prior))
        yield Method(OURS[1], told, on_grid)
        for name, make in zip(OURS[2:], (cu.ContinuousUnmixer, cu.PosteriorUnmixer), strict=True):
            yield Method(name, told, make(psf, sensor, prior, n_jobs=1), batches=BATCHES[:2])
