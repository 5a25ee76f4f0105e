"""Scenes with truth: draw targets from a prior, blur them, record them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from csunmix._validation import FloatArray, as_instance, as_integer, as_rng, as_shape
from csunmix.prior import Prior
from csunmix.psf import PSF
from csunmix.sensor import Sensor
from csunmix.targets import check_table, make_table, n_frames

if TYPE_CHECKING:
    import pandas as pd

CountModel = Literal["uniform", "normal"]

# Drawing gives up when fewer than one in a million sets of targets keep their separation.
_MIN_TRIES, _MIN_ACCEPTANCE = 5_000_000, 1e-6
_MAX_BLOCK = 2**16  # sets drawn at once


@dataclass(frozen=True, eq=False)
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
    is a pixel cell at least `margin` pixels from the border (with probability ``scene.cell``), or a
    box of size ``scene.extent`` placed uniformly in the area of these cells, or that whole area.

    Parameters
    ----------
    psf, sensor, scene : PSF, Sensor, Prior
        Optics, detector, and what the scenes are drawn from; ``count`` and ``flux`` must be given.
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    n : int
        Number of images.
    rng : numpy.random.Generator or int
        Source of randomness, or a seed; another `n` makes other scenes of the same seed.
    count_model : {"uniform", "normal"}
        Distribution of the number of targets.
    margin : int
        Pixels between the window and the border of the image.

    Returns
    -------
    Simulation

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If `scene` lacks a count or flux range, the image is too small for `margin` or the extent,
        or targets do not fit into the window at their separation (fewer than one in a million
        sets drawn would keep it).

    Examples
    --------
    >>> import csunmix as cu
    >>> setup = cu.presets.csist_100k()
    >>> made = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=100, rng=0)
    >>> made.images.shape, float(made.images.max())
    ((100, 11, 11), 255.0)
    >>> bool(made.truth["flux"].between(220, 250).all())
    True
    """
    as_instance(psf, PSF, "psf")
    as_instance(sensor, Sensor, "sensor")
    as_instance(scene, Prior, "scene")
    if scene.count is None or scene.flux is None:
        raise ValueError(f"scene must have a count range and a flux range, got {scene!r}")
    if count_model not in ("uniform", "normal"):
        raise ValueError(f"count_model must be 'uniform' or 'normal', got {count_model!r}")
    n, shape = as_integer(n, "n", minimum=1), as_shape(shape)
    margin = as_integer(margin, "margin", minimum=0)
    if min(shape) <= 2 * margin:
        raise ValueError(f"shape {shape} leaves no pixel {margin} px from the border")
    rng = as_rng(rng)
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

    Raises
    ------
    TypeError
        If `psf` is not a PSF or `targets` not a DataFrame.
    ValueError
        If `targets` is no target table or has targets in frames beyond `n`.

    Examples
    --------
    >>> import csunmix as cu
    >>> pair = cu.targets.make_table(frame=0, y=[2.0, 2.0], x=[1.75, 2.25], flux=[240, 230])
    >>> image = cu.render(cu.GaussianPSF(sigma=0.5), pair, shape=(5, 5))[0]
    >>> round(float(image.sum()), 1)
    470.0
    """
    as_instance(psf, PSF, "psf")
    shape = as_shape(shape)
    known = n_frames(check_table(targets))
    n = known if n is None else as_integer(n, "n", minimum=0)
    frame = targets["frame"].to_numpy(dtype=np.int64)
    if frame.size and frame.max() >= n:
        raise ValueError(f"n must be above the last frame of the targets, {frame.max()}, got {n}")
    y, x, flux = (targets[name].to_numpy(dtype=np.float64) for name in ("y", "x", "flux"))
    images = np.zeros((n, *shape))
    block = max(1, 2**21 // (shape[0] * shape[1]))  # bounds the memory of the single responses
    for start in range(0, frame.size, block):
        part = slice(start, start + block)
        single = psf.response(y[part], x[part], shape)
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
    in_cell = np.full(counts.size, scene.cell == 1.0)
    if 0.0 < scene.cell < 1.0:
        in_cell = rng.random(counts.size) < scene.cell
    frame = np.repeat(np.arange(counts.size), counts)
    position = np.empty((frame.size, 2))
    for kind in np.unique(in_cell):
        some = in_cell == kind
        centre, size = _draw_windows(scene, bool(kind), shape, int(some.sum()), margin, rng)
        offset = np.empty((counts[some].sum(), 2))
        each = np.repeat(counts[some], counts[some])
        for count in np.unique(each):
            n = int((counts[some] == count).sum())
            sets = _draw_separated(n, int(count), size, scene.min_separation, rng)
            offset[each == count] = sets.reshape(-1, 2)
        position[some[frame]] = np.repeat(centre, counts[some], axis=0) + offset
    return position[:, 0], position[:, 1]


def _draw_windows(
    scene: Prior,
    in_cell: bool,
    shape: tuple[int, int],
    n: int,
    margin: int,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Centres (n, 2) and common size (2,) of the windows that hold the targets, px."""
    area = np.array(shape) - 2.0 * margin  # a border of `margin` pixels stays free
    middle = (np.array(shape) - 1) / 2
    if in_cell:
        return rng.integers(margin, np.array(shape) - margin, (n, 2)).astype(np.float64), np.ones(2)
    size = area if scene.extent is None else np.full(2, scene.extent)
    if (size > area).any():
        raise ValueError(
            f"scene.extent {scene.extent:g} px does not fit into the image shape {shape} "
            f"{margin} px from the border"
        )
    return middle + (area - size) * rng.uniform(-0.5, 0.5, (n, 2)), size


def _draw_separated(
    n: int, count: int, size: FloatArray, min_separation: float, rng: np.random.Generator
) -> FloatArray:
    """Sets of points uniform in a centred box given their distances, shape (n, count, 2).

    Plain rejection, one point at a time: a set is dropped at the first pair that is too close.
    """
    found: list[FloatArray] = []
    accepted, tries, block = 0, 0, min(max(4 * n, 1024), _MAX_BLOCK)
    while accepted < n:
        if tries >= _MIN_TRIES and accepted < tries * _MIN_ACCEPTANCE:
            raise ValueError(
                f"{count} targets {min_separation:g} px apart do not fit into a window of "
                f"{size[0]:g} x {size[1]:g} px: {accepted} of {tries} sets drawn keep the distance"
            )
        sets = rng.uniform(-0.5, 0.5, (2, 1, block)) * size[:, None, None]
        for _ in range(count - 1):
            point = rng.uniform(-0.5, 0.5, (2, 1, sets.shape[-1])) * size[:, None, None]
            apart = (((sets - point) ** 2).sum(axis=0) >= min_separation**2).all(axis=0)
            sets = np.concatenate([sets, point], axis=1).compress(apart, axis=-1)
        found.append(sets)
        accepted, tries = accepted + sets.shape[-1], tries + block
        block = min(2 * block, _MAX_BLOCK)
    return np.concatenate(found, axis=-1)[..., :n].transpose(2, 1, 0)
