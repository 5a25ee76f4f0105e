"""Speed of the grid-free methods, against fits that are told the truth, and networks.

    python -m benchmarks.speed.off_grid --n 10000 --out benchmarks/speed/off_grid.md

CSIST-100K as simulated by the main protocol, 8 bit, clipped at 255. Ours find the number of
targets, positions, fluxes and their errors from the image and the prior. `MomentUnmixer` is the
quickest, and the one that ratios are wanted of; all others are more accurate, and slower.
"GridUnmixer, refined" is `grid_unmixer(refine=True)`; with ``n_effective=0``, `ContinuousUnmixer`
answers by normal approximations around the optima of its fit alone. The errors of these three are
too small where several targets stand close together. `PosteriorUnmixer(n_effective=30)` has few
draws. What is lost of each one's accuracy, and how right its errors are, on other images and with
more noise: `benchmarks/accuracy/off_grid.md`.

photutils' PSFPhotometry and SciPy's least_squares are told the true number, start 0.2 px (normal,
along each axis) off the truth at a flux of 235 DN, know the PSF and leave out clipped pixels: no
estimator has such a start. photutils fits all images in one call, as groups of one mosaic, in the
7 x 7 pixels around each start: hardly slower than 5 x 5, better than that and as good as the
whole image. SciPy (trf, separable model, analytic Jacobian, which also scales it, fluxes bounded to
220-250) stops at 1e-5, which on 400 other scenes costs 0.1 of CSO-mAP against 1e-8; it is not asked
for errors.

The networks have random weights, which their time does not depend on, and run in PyTorch in
`inference_mode` with the threads of the row (`n_jobs` of ours). That of DISTA-Net's size runs in
batches of 64, in `channels_last`, its fastest layout; in bfloat16 too, which the paper does not
speak of and whose accuracy is not looked at here. Making targets of its maps is not counted. The
perceptron, 25-384-384-384-225, runs in batches of 1024, its 5 x 5 crop included. Both yield maps on
the grid at c = 3, without errors; DISTA-Net's published CSO-mAP is 46.7.

"Times slower" is the ratio of times per image to that of "ours", below 1 where the rival is faster;
the median of interleaved rounds. CSO-mAP, percent, ranked by flux, is that of the images that a
method saw: all, or the first so many where it is slow. To be run on a machine that is idle
otherwise: with two threads, a network waits for the slower one at every layer, ours do not.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from astropy.table import Table
from photutils.psf import GaussianPRF, PSFPhotometry, SourceGrouper
from scipy.optimize import OptimizeResult, least_squares
from scipy.special import erf
from torch import nn

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED, simulate
from benchmarks.deep import dista_net, perceptron
from benchmarks.report import to_markdown, write_report
from benchmarks.speed.pairs import compare
from csunmix.metrics import cso_map
from csunmix.targets import make_table

SETUP = cu.presets.csist_100k()
SIGMA, SIDE, CLIPPED = SETUP.psf.sigma_x, SETUP.shape[0], SETUP.sensor.saturation
EDGES = np.arange(SIDE + 1)[:, None] - 0.5  # of pixels
FLUX = 220.0, 235.0, 250.0  # least, first, most
MARGIN = 4  # px between the images of a mosaic, beyond the reach of a fit

PHOTUTILS, SCIPY = "photutils PSFPhotometry, told the count", "SciPy least_squares, told the count"
DEEP, DEEP_HALF = "network of DISTA-Net's size", "network of DISTA-Net's size, bfloat16"
PERCEPTRON = "perceptron"
CONTINUOUS, POSTERIOR = "ContinuousUnmixer", "PosteriorUnmixer"
MOMENTS, REFINED = "MomentUnmixer", "GridUnmixer, refined"
MODES, FEW = "ContinuousUnmixer, n_effective=0", "PosteriorUnmixer, n_effective=30"
OURS = {REFINED: 2048, MODES: 512, CONTINUOUS: 256, POSTERIOR: 128, FEW: 512}
SUBSET = {**OURS, PHOTUTILS: 128, SCIPY: 256, DEEP: 256, DEEP_HALF: 32}
SINGLE = 1024  # images that are given one by one
WANTED = {PHOTUTILS: 1000.0, SCIPY: 100.0, DEEP: 100.0, PERCEPTRON: 0.25}
WANTED_OF = {MOMENTS: WANTED, POSTERIOR: {DEEP: 5.0}, FEW: {DEEP: 5.0}}

Run = Callable[[np.ndarray], pd.DataFrame | None]  # is given the indices 0, 1, ... of images


class Scenes(NamedTuple):
    """Images (n, side, side), the truth, and where the fits start: ``y, x`` of each row of it."""

    images: np.ndarray
    truth: pd.DataFrame
    start: np.ndarray


def draw(n: int) -> Scenes:
    scenes, (clipped, _) = simulate(n, REPORT_SEED)
    off = np.random.default_rng(REPORT_SEED).normal(0.0, 0.2, (len(scenes.truth), 2))
    return Scenes(clipped.images, scenes.truth, scenes.truth[["y", "x"]].to_numpy() + off)


def photutils_fit(scenes: Scenes, index: np.ndarray) -> pd.DataFrame:
    """Fit the images as groups of a mosaic, a column of images with a margin around each."""
    images = scenes.images[index]
    around = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))
    side = SIDE + 2 * MARGIN
    mosaic = np.pad(images, around).reshape(-1, side)
    left_out = np.pad(images >= CLIPPED, around, constant_values=True).reshape(-1, side)
    frame = scenes.truth["frame"].to_numpy()
    frame = frame[frame < len(index)]
    y, x = scenes.start[: len(frame)].T + MARGIN
    start = Table({"x": x, "y": y + side * frame, "group_id": frame + 1})
    start["flux"] = FLUX[1]
    width = 2.0 * np.sqrt(2.0 * np.log(2.0)) * SIGMA
    model = GaussianPRF(x_fwhm=width, y_fwhm=width)  # these and its angle are fixed by default
    fit = PSFPhotometry(model, (7, 7), grouper=SourceGrouper(SIDE))
    found = fit(mosaic, mask=left_out, init_params=start)
    y, x, flux = (np.asarray(found[name]) for name in ("y_fit", "x_fit", "flux_fit"))
    y, x = y - MARGIN - side * frame, x - MARGIN
    good = np.isfinite(y + x + flux)
    return make_table(frame[good], y[good], x[good], flux[good], n_frames=len(index))


def scipy_fits(images: np.ndarray, starts: list[np.ndarray], index: np.ndarray) -> pd.DataFrame:
    """Fit one image after the other."""
    found = [scipy_fit(images[i], starts[i]).x.reshape(3, -1) for i in index]
    frame = np.repeat(index, [each.shape[1] for each in found])
    return make_table(frame, *np.concatenate(found, axis=1), n_frames=len(index))


def scipy_fit(image: np.ndarray, start: np.ndarray) -> OptimizeResult:
    """Fit all targets of an image: ``y`` of each, ``x`` of each, fluxes."""
    k, seen = len(start), (image < CLIPPED).ravel()
    data = image.ravel()[seen]

    def residual(theta: np.ndarray) -> np.ndarray:
        r_y, r_x = np.split(response(theta[: 2 * k]), 2, axis=1)
        return ((r_y * theta[2 * k :]) @ r_x.T).ravel()[seen] - data

    def jacobian(theta: np.ndarray) -> np.ndarray:
        flux = theta[2 * k :]
        (r_y, r_x), (g_y, g_x) = (
            np.split(each(theta[: 2 * k]), 2, axis=1) for each in (response, gradient)
        )
        by = (g_y * flux, r_x), (r_y * flux, g_x), (r_y, r_x)
        columns = np.concatenate([a[:, None] * b for a, b in by], axis=2)
        return columns.reshape(SIDE**2, -1)[seen]

    free = np.full(2 * k, np.inf)
    bounds = np.append(-free, np.full(k, FLUX[0])), np.append(free, np.full(k, FLUX[2]))
    first = np.append(start.T, np.full(k, FLUX[1]))
    return least_squares(
        residual, first, jacobian, bounds, ftol=1e-5, xtol=1e-5, gtol=None, x_scale="jac"
    )


def response(position: np.ndarray) -> np.ndarray:
    """Pixels (side, n) along an axis, of targets at so many positions."""
    return 0.5 * np.diff(erf((EDGES - position) / (np.sqrt(2.0) * SIGMA)), axis=0)


def gradient(position: np.ndarray) -> np.ndarray:
    """Derivative of `response` by the position."""
    density = np.exp(-0.5 * ((EDGES - position) / SIGMA) ** 2) / (np.sqrt(2.0 * np.pi) * SIGMA)
    return -np.diff(density, axis=0)


def networks(images: np.ndarray, threads: int) -> dict[str, Run]:
    """Networks that run in batches; what they yield is dropped."""
    matrix = cu.Dictionary(SETUP.psf, SETUP.shape, 3).to_dense()
    deep = dista_net.DISTANet(matrix).eval().to(memory_format=torch.channels_last)
    plain = perceptron.perceptron().eval()

    def run_deep(index: np.ndarray, bfloat16: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            run(deep, images[index].reshape(len(index), -1), dista_net.BATCH)

    def run_plain(index: np.ndarray) -> None:
        run(plain, perceptron.crop(images[index]), perceptron.BATCH)

    def run(net: nn.Module, pixels: np.ndarray, batch: int) -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            for part in torch.from_numpy(pixels).float().split(batch):
                net(part)

    return {DEEP: run_deep, DEEP_HALF: partial(run_deep, bfloat16=True), PERCEPTRON: run_plain}


def told(scenes: Scenes) -> dict[str, Run]:
    """Fits that are told the truth; they use one thread."""
    starts = np.split(scenes.start, np.flatnonzero(np.diff(scenes.truth["frame"])) + 1)
    return {
        PHOTUTILS: partial(photutils_fit, scenes),
        SCIPY: partial(scipy_fits, scenes.images, starts),
    }


def ours(images: np.ndarray, threads: int) -> dict[str, Run]:
    parts = SETUP.psf, SETUP.sensor, SETUP.prior
    on_grid = cu.grid_unmixer(
        psf=SETUP.psf, shape=SETUP.shape, sensor=SETUP.sensor, prior=SETUP.prior, refine=True
    )
    unmixers: dict[str, Callable[[np.ndarray], pd.DataFrame]] = {
        MOMENTS: cu.MomentUnmixer(*parts, n_jobs=threads),
        REFINED: replace(on_grid, n_jobs=threads),
        MODES: cu.ContinuousUnmixer(*parts, n_jobs=threads, n_effective=0),
        CONTINUOUS: cu.ContinuousUnmixer(*parts, n_jobs=threads),
        POSTERIOR: cu.PosteriorUnmixer(*parts, n_jobs=threads),
        FEW: cu.PosteriorUnmixer(*parts, n_jobs=threads, n_effective=30),
    }
    return {
        name: lambda index, unmix=unmix: unmix(images[index]) for name, unmix in unmixers.items()
    }


def longest(images: np.ndarray) -> str:
    """Say how long ours take for the image that takes longest, one by one on one thread."""
    lines = []
    for name, run in ours(images, 1).items():
        seconds = np.empty(len(images))
        run(np.arange(5))  # compiled
        for i in range(len(images)):
            start = time.perf_counter()
            run(np.array([i]))
            seconds[i] = time.perf_counter() - start
        typical, most = 1e3 * np.median(seconds), 1e3 * seconds.max()
        lines.append(f"- `{name}`: at most {most:.3g} ms, half of them below {typical:.2g} ms")
    return "\n".join([f"{len(images)} images, each in a call of its own:", "", *lines, ""])


def score(scenes: Scenes, run: Run, n: int) -> float:
    """CSO-mAP of the first images, percent."""
    truth = scenes.truth[scenes.truth["frame"] < n]
    return 100.0 * float(cso_map(run(np.arange(n)), truth).mean)


def rows(scenes: Scenes, threads: int, repeats: int) -> pd.DataFrame:
    """Compare each of ours with its rivals."""
    fits = told(scenes) if threads == 1 else {}
    rivals = {**fits, **networks(scenes.images, threads)}
    index, tables = np.arange(len(scenes.images)), []
    for name, run in ours(scenes.images, threads).items():
        runs = {name: run, **rivals}
        wanted = WANTED_OF.get(name, {})
        table = compare(runs, index, repeats=repeats, subset=SUBSET, wanted=wanted, threads=threads)
        table.insert(0, "ours", name)
        table.insert(2, "threads", threads)
        found = table["method"].isin([name, *fits])
        table["CSO-mAP"] = [
            score(scenes, runs[row.method], row.images) if has else np.nan
            for row, has in zip(table.itertuples(), found, strict=True)
        ]
        tables.append(table)
    return pd.concat(tables)


def missed(table: pd.DataFrame) -> str:
    """Say which of the ratios that are wanted are not reached."""
    short = table[table["times slower"] < table["wanted"]]
    columns = (short[name] for name in ("ours", "threads", "method", "times slower", "wanted"))
    lines = [
        f"- `{name}`, {threads} thread(s), against {method}: {ratio:.3g}, wanted {wanted:g}"
        for name, threads, method, ratio, wanted in zip(*columns, strict=True)
    ]
    return "\n".join(["Wanted and not reached:" if lines else "All is reached.", "", *lines, ""])


def main() -> None:
    """Run the comparison and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # photutils warns of fits that did not converge
    scenes = draw(options.n)
    table = pd.concat([rows(scenes, threads, options.repeats) for threads in options.threads])
    threads = " ".join(map(str, options.threads))
    command = (
        f"python -m benchmarks.speed.off_grid --n {options.n} --repeats {options.repeats} "
        f"--threads {threads}"
    )
    size = f"The network of DISTA-Net's size has {dista_net.n_parameters():,} parameters.\n"
    more = [size, longest(scenes.images[:SINGLE]), missed(table)]
    table["times slower"] = table["times slower"].map("{:.3g}".format)
    title = "Speed of the grid-free methods"
    write_report(options.out, title, command, __doc__, table, more)
    print(to_markdown(table), *more, sep="\n\n")


if __name__ == "__main__":
    main()
