"""Scenes with truth: draw targets from a prior, blur them, record them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from csunmix._validation import FloatArray, as_integer, as_shape
from csunmix.prior import Prior
from csunmix.psf import PSF
from csunmix.sensor import Sensor
from csunmix.targets import make_table

if TYPE_CHECKING:
    import pandas as pd

CountModel = Literal["uniform", "normal"]

_MAX_TRIES = 10_000_000


@dataclass(frozen=True)
class Simulation:
    """Simulated images and what is in them.

    Attributes
    ----------
    images : ndarray, shape (n, n_y, n_x)
        Recorded images, DN.
    truth : pandas.DataFrame
        Target table of the true targets.
    light : ndarray, shape (n, n_y, n_x)
        The noise-free images, DN.
    """

    images: FloatArray
    truth: pd.DataFrame
    light: FloatArray


def simulate(
    psf: PSF,
    sensor: Sensor,
    scene: Prior,
    *,
    shape: tuple[int, int],
    n: int,
    rng: np.random.Generator | int,
    count_model: CountModel = "uniform",
    margin: int = 1,
) -> Simulation:
    """Draw `n` images of clusters of targets.

    The number of targets is uniform in ``scene.count`` (or ``round(N(3, 1))`` clipped to that
    range: ``count_model="normal"``), fluxes are uniform in ``scene.flux``, and positions uniform
    in the window, given that all targets are at least ``scene.min_separation`` apart. The window
    is a pixel cell at least `margin` pixels from the border (``scene.cell``), a box of size
    ``scene.extent`` around a point uniform in such a cell, or the whole area of these cells.

    Parameters
    ----------
    psf, sensor, scene : PSF, Sensor, Prior
        Optics, detector, and what the scenes are drawn from; ``count`` and ``flux`` must be given.
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    n : int
        Number of images.
    rng : numpy.random.Generator or int
        Source of randomness, or a seed.
    count_model : {"uniform", "normal"}
        Distribution of the number of targets.
    margin : int
        Pixels between the window's pixel and the border of the image.

    Returns
    -------
    Simulation

    Raises
    ------
    ValueError
        If `scene` lacks a count or flux range, the image is too small for `margin`, or targets
        do not fit into the window at their separation.
    """
    if scene.count is None or scene.flux is None:
        raise ValueError(f"scene must have a count range and a flux range, got {scene!r}")
    if count_model not in ("uniform", "normal"):
        raise ValueError(f"count_model must be 'uniform' or 'normal', got {count_model!r}")
    n, shape = as_integer(n, "n", minimum=1), as_shape(shape)
    margin = as_integer(margin, "margin", minimum=0)
    if min(shape) <= 2 * margin:
        raise ValueError(f"shape {shape} leaves no pixel {margin} px from the border")
    rng = np.random.default_rng(rng)
    low, high = scene.count
    if count_model == "uniform":
        counts = rng.integers(low, high + 1, n)
    else:
        counts = np.clip(np.rint(rng.normal(3.0, 1.0, n)), low, high).astype(np.int64)
    frame = np.repeat(np.arange(n), counts)
    y, x = _draw_positions(scene, shape, counts, margin, rng)
    flux = rng.uniform(*scene.flux, frame.size)
    truth = make_table(frame, y, x, flux, n_frames=n)
    light = render(psf, truth, shape=shape, n=n)
    return Simulation(sensor.expose(light, rng), truth, light)


def render(
    psf: PSF, targets: pd.DataFrame, *, shape: tuple[int, int], n: int | None = None
) -> FloatArray:
    """Noise-free images of a target table.

    Parameters
    ----------
    psf : PSF
        The optics.
    targets : pandas.DataFrame
        Target table.
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    n : int, optional
        Number of images; by default those the table knows of.

    Returns
    -------
    ndarray, shape (n, n_y, n_x)
        ``sum_k flux_k response(y_k, x_k)`` for each frame, DN.
    """
    from csunmix.targets import n_frames

    frame = targets["frame"].to_numpy()
    images = np.zeros((n_frames(targets) if n is None else n, *as_shape(shape)))
    flux = targets["flux"].to_numpy()
    block = 10_000  # bounds the memory of the single responses
    for start in range(0, frame.size, block):
        part = slice(start, start + block)
        single = psf.response(targets["y"].to_numpy()[part], targets["x"].to_numpy()[part], shape)
        np.add.at(images, frame[part], flux[part, None, None] * single)
    return images


def _draw_positions(
    scene: Prior,
    shape: tuple[int, int],
    counts: npt.NDArray[np.int64],
    margin: int,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Positions of all targets, frames in order, shape (sum(counts),)."""
    centre, size = _draw_windows(scene, shape, counts.size, margin, rng)
    frame = np.repeat(np.arange(counts.size), counts)
    offset = np.empty((frame.size, 2))
    for count in np.unique(counts[counts > 0]):
        sets = _draw_separated(
            int((counts == count).sum()), int(count), size, scene.min_separation, rng
        )
        offset[counts[frame] == count] = sets.reshape(-1, 2)
    position = centre[frame] + offset
    return position[:, 0], position[:, 1]


def _draw_windows(
    scene: Prior, shape: tuple[int, int], n: int, margin: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Centres (n, 2) and common size (2,) of the windows that hold the targets, px."""
    low = np.full(2, margin)
    high = np.array(shape) - 1 - margin
    if not scene.cell and scene.extent is None:
        return np.broadcast_to((low + high) / 2, (n, 2)), high - low + 1.0
    pixel = rng.integers(low, high + 1, (n, 2)).astype(np.float64)
    if scene.extent is None:
        return pixel, np.ones(2)
    return pixel + rng.uniform(-0.5, 0.5, (n, 2)), np.full(2, scene.extent)


def _draw_separated(
    n: int, count: int, size: FloatArray, min_separation: float, rng: np.random.Generator
) -> FloatArray:
    """Sets of points uniform in a centred box given their distances, shape (n, count, 2).

    Plain rejection, one point at a time: a set is dropped at the first pair that is too close.
    """
    found: list[FloatArray] = []
    missing, tries, block = n, 0, max(4 * n, 1024)
    while missing > 0:
        if tries > _MAX_TRIES and missing == n:
            raise ValueError(
                f"{count} targets {min_separation:g} px apart do not fit into a window of "
                f"{size[0]:g} x {size[1]:g} px ({tries} tries)"
            )
        sets = rng.uniform(-0.5, 0.5, (block, 1, 2)) * size
        for _ in range(count - 1):
            point = rng.uniform(-0.5, 0.5, (len(sets), 1, 2)) * size
            apart = ((sets - point) ** 2).sum(-1).min(-1) >= min_separation**2
            sets = np.concatenate([sets[apart], point[apart]], axis=1)
        found.append(sets[:missing])
        missing -= len(found[-1])
        tries, block = tries + block, min(2 * block, 2**18)
    return np.concatenate(found)
