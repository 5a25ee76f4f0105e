"""Unlimited simulated data for training: the scenes of `csunmix.simulate`, drawn much faster.

A network is trained for one setting: optics, detector, and what scenes are drawn from. It learns
from its training data what an estimator of ours is told as its prior, here that the targets share
one pixel cell (``presets.csist_100k().scene``), the flux range, the separation and the count.

Drawing five targets 0.494 px apart in a pixel by rejection takes 0.5 ms. Here sets are taken from a
pool that was drawn so, and moved by Metropolis steps that keep the distribution: a set so moved is
distributed as a fresh one, whatever the number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numba
import numpy as np
import pandas as pd
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

import csunmix as cu

SIDE = 5  # px of a crop; 1.5 px beyond the cell a target of 250 DN leaves 0.01 DN
HALF = SIDE // 2
MOST = 5  # targets of an image
FLUX, FLUX_UNIT = 235.0, 15.0  # networks see fluxes as (flux - 235)/15
MARGIN = 1  # px, that of `csunmix.simulate`
_MOVES, _STEP = 64, 0.05  # Metropolis moves of a set; px of a small one


@dataclass(frozen=True)
class Setting:
    """What images are made of: optics, detector, scenes."""

    name: str
    psf: cu.GaussianPSF
    sensor: cu.Sensor
    scene: cu.Prior
    shape: tuple[int, int]

    @property
    def noise(self) -> float:
        """Standard deviation of a pixel's noise, rounding included, DN."""
        return self.sensor.noise


def settings() -> dict[str, Setting]:
    """The kinds of data that networks are trained for, by name.

    Five rows of the leaderboard, and the first with a PSF that is 1.2 times as wide.
    """
    setup = cu.presets.csist_100k()
    sensors = {
        "clipped": setup.sensor,
        "rounded": replace(setup.sensor, saturation=None),
        "sigma-1": cu.Sensor(read_noise=1.0),
        "sigma-2": cu.Sensor(read_noise=2.0),
        "sigma-5": cu.Sensor(read_noise=5.0),
    }
    out = {
        name: Setting(name, setup.psf, sensor, setup.scene, setup.shape)
        for name, sensor in sensors.items()
    }
    wide = cu.GaussianPSF(sigma=1.2 * setup.psf.sigma_x)
    return out | {"psf-1.2": replace(out["clipped"], name="psf-1.2", psf=wide)}


class Scenes(NamedTuple):
    """Images and their targets; `targets` is padded with targets of flux zero."""

    images: np.ndarray  # (n, n_y, n_x), DN
    count: np.ndarray  # (n,)
    targets: np.ndarray  # (n, MOST, 3): y, x (px), flux (DN)


class Windows(NamedTuple):
    """Crops around the brightest pixels, and what is in them."""

    pixels: Tensor  # (n, SIDE, SIDE), DN; zero beyond the image
    seen: Tensor  # (n, SIDE, SIDE): 1 inside of the image, else 0
    count: Tensor  # (n,)
    targets: Tensor  # (n, MOST, 3): y, x from the centre of the crop (px), flux (DN)


@dataclass(frozen=True)
class Stream:
    """Batches of scenes; each is determined by the seed and its number.

    Parameters
    ----------
    setting : Setting
        What is drawn.
    seed : int
        Of everything.
    shares : tuple of float, optional
        How often each number of targets is drawn, from the least to the largest; evenly by default.
    pool_size : int
        Sets of each count that are drawn by rejection.
    """

    setting: Setting
    seed: int
    shares: tuple[float, ...] | None = None
    pool_size: int = 2**13

    @cached_property
    def pool(self) -> dict[int, np.ndarray]:
        """Sets (n, k, 2) of positions from the middle of a cell, px, for each count k."""
        scene, rng = self.setting.scene, np.random.default_rng([self.seed, 1])
        return {
            k: _draw(self.pool_size, k, scene.min_separation, int(rng.integers(2**31)))
            for k in self.counts
        }

    @property
    def counts(self) -> range:
        """Numbers of targets, from the least to the largest."""
        low, high = self.setting.scene.count
        return range(low, high + 1)

    def batch(self, number: int, n: int) -> Scenes:
        """Draw `n` scenes."""
        rng = np.random.default_rng([self.seed, 2, number])
        count = np.sort(rng.choice(self.counts, n, p=self.shares))  # sorted: cheap to split later
        scene, shape = self.setting.scene, self.setting.shape
        targets = np.zeros((n, MOST, 3))
        for k in np.unique(count):
            pool, of = self.pool[k], np.flatnonzero(count == k)
            sets = pool[rng.integers(len(pool), size=len(of))]
            sets = _turn(sets, rng)
            _move(sets, scene.min_separation, int(rng.integers(2**31)))
            cell = rng.integers(MARGIN, np.array(shape) - MARGIN, (len(of), 1, 2))
            targets[of, :k, :2] = cell + sets
            targets[of, :k, 2] = rng.uniform(*scene.flux, (len(of), k))
        light = render(self.setting.psf, targets, shape)
        return Scenes(self.setting.sensor.expose(light, rng), count, targets)


def render(psf: cu.GaussianPSF, targets: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Noise-free images (n, n_y, n_x) of padded targets (n, MOST, 3)."""
    along_y = psf.axis_response(targets[..., 0], shape[0], "y") * targets[..., 2:]
    along_x = psf.axis_response(targets[..., 1], shape[1], "x")
    return along_y.swapaxes(1, 2) @ along_x


def crop(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops (n, SIDE, SIDE), which of their pixels lie in the image, and their centres (n, 2)."""
    n, n_y, n_x = images.shape
    y, x = np.unravel_index(images.reshape(n, -1).argmax(axis=1), (n_y, n_x))
    padded = np.pad(images, ((0, 0), (HALF, HALF), (HALF, HALF)))
    pixels = sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))[np.arange(n), y, x]
    inside = sliding_window_view(np.pad(np.ones((n_y, n_x)), HALF), (SIDE, SIDE))[y, x]
    return pixels, inside, np.stack([y, x], axis=1)


def windows(scenes: Scenes) -> Windows:
    """Crop scenes, as tensors."""
    pixels, seen, centre = crop(scenes.images)
    targets = scenes.targets - np.pad(centre, ((0, 0), (0, 1)))[:, None, :]
    targets[scenes.targets[..., 2] == 0.0] = 0.0
    count = torch.from_numpy(scenes.count)
    return Windows(_float(pixels), _float(seen), count, _float(targets))


def images_only(images: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
    """Crops of images whose targets are not known: pixels, seen, centres."""
    pixels, seen, centre = crop(images)
    return _float(pixels), _float(seen), centre


def table(
    centre: np.ndarray, count: np.ndarray, targets: np.ndarray, **columns: np.ndarray
) -> pd.DataFrame:
    """Target table of padded answers (n, MOST, 3) relative to the crops' centres."""
    frame, k = np.nonzero(np.arange(MOST) < count[:, None])
    y, x, flux = (targets[frame, k] + np.pad(centre[frame], ((0, 0), (0, 1)))).T.astype(float)
    more = {name: values[frame, k].astype(float) for name, values in columns.items()}
    return cu.targets.make_table(frame, y, x, flux, n_frames=len(count), **more)


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _turn(sets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply one of the eight symmetries of the cell to each set."""
    sets = sets * rng.choice([-1.0, 1.0], (len(sets), 1, 2))
    swap = rng.random(len(sets)) < 0.5
    sets[swap] = sets[swap, :, ::-1]
    return sets


@numba.njit(cache=True)
def _draw(n, k, apart, seed):
    """Sets (n, k, 2) uniform in the cell given their distances: plain rejection."""
    np.random.seed(seed)  # noqa: NPY002
    sets = np.empty((n, k, 2))
    for i in range(n):
        found = 0
        while found < k:
            y, x = np.random.random() - 0.5, np.random.random() - 0.5  # noqa: NPY002
            sets[i, found, 0], sets[i, found, 1] = y, x
            found = found + 1 if _fits(sets[i], found, found, y, x, apart) else 0
    return sets


@numba.njit(cache=True)
def _move(sets, apart, seed):
    """Move single targets, far and near by turns; what leaves the cell or comes close stays."""
    np.random.seed(seed)  # noqa: NPY002
    n, k, _ = sets.shape
    for i in range(n):
        for move in range(_MOVES):
            which = move // 2 % k
            if move % 2:
                y = sets[i, which, 0] + np.random.normal(0.0, _STEP)  # noqa: NPY002
                x = sets[i, which, 1] + np.random.normal(0.0, _STEP)  # noqa: NPY002
            else:
                y, x = np.random.random() - 0.5, np.random.random() - 0.5  # noqa: NPY002
            if abs(y) < 0.5 and abs(x) < 0.5 and _fits(sets[i], k, which, y, x, apart):
                sets[i, which, 0], sets[i, which, 1] = y, x


@numba.njit(cache=True)
def _fits(points, k, but, y, x, apart):
    """Whether a point keeps its distance to the first k points, but one."""
    for j in range(k):
        if j != but and (points[j, 0] - y) ** 2 + (points[j, 1] - x) ** 2 < apart**2:
            return False
    return True
