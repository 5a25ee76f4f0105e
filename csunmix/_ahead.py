"""Compile what a run needs in processes side by side, before it begins.

What is compiled is kept on disk, where the run finds it. That no signature differs from the run's
is up to the tests; where one did, the run would compile that kernel once more.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from csunmix._validation import FloatArray

if TYPE_CHECKING:
    from csunmix._kernels.model import Model
    from csunmix.continuous.window import Setting, Window

Task = Callable[[], object]

_LARGEST = 64**2  # pixels of an image that is unmixed once more


def compiles() -> bool:
    """Whether no compiled kernel is kept from earlier runs, wherever numba keeps them."""
    from csunmix._kernels.merging import merge_closest

    folder = merge_closest.stats.cache_path
    return folder is None or not any(Path(folder).glob("*.nbi"))


def compile_ahead(unmixers: Iterable[Any], image: FloatArray) -> None:
    """Compile the kernels that `unmixers` call, if that can be split.

    `image` (n_y, n_x) is one that they are to unmix. Where there is one processor, or a part fails,
    the run compiles by itself.
    """
    tasks = [task for unmixer in unmixers for task in _tasks(unmixer, image)]
    if len(tasks) < 2 or os.cpu_count() == 1:
        return
    argv = [sys.executable, "-P", "-c", "from csunmix._ahead import do; do()"]
    told = [pickle.dumps(task) for task in tasks]
    # No fork and no spawn: either would have a part of the caller's program run once more.
    started: list[Popen[bytes]] = []
    try:
        with suppress(OSError):
            for _ in tasks:
                started.append(Popen(argv, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL))
        for process, task in zip(started, told, strict=False):
            with suppress(OSError), cast("IO[bytes]", process.stdin) as pipe:
                pipe.write(task)
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.kill()


def do() -> None:
    """Do the task that comes on standard input. An interrupt is for the parent to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # compiling makes much that lasts
    pickle.load(sys.stdin.buffer)()


def _tasks(unmixer: Any, image: FloatArray) -> Iterator[Task]:
    """What may be compiled side by side."""
    from csunmix.continuous import ContinuousUnmixer, PosteriorUnmixer
    from csunmix.unmixer import GridUnmixer

    if isinstance(unmixer, GridUnmixer) and image.size <= _LARGEST:
        yield partial(replace(unmixer, refine=None), np.asarray(image))
        if unmixer.refine is not None:
            yield compile_refinement
    elif isinstance(unmixer, ContinuousUnmixer | PosteriorUnmixer):
        yield compile_fit
        if getattr(unmixer, "sampler", "importance") == "importance":
            yield compile_draws


class _Example(NamedTuple):
    """An image of two targets, and its posterior."""

    setting: Setting
    image: FloatArray
    targets: FloatArray  # (2, 3), rows y, x, flux
    model: Model
    theta: FloatArray  # (1, 6), them in the window


def _example() -> _Example:
    from csunmix.continuous.window import Setting
    from csunmix.presets import csist_100k

    setup = csist_100k()
    setting = Setting(setup.psf, setup.sensor, setup.prior, setup.shape, 0.0)
    targets = np.array([[4.7, 5.2, 230.0], [5.3, 4.8, 240.0]])
    y, x = np.mgrid[: setup.shape[0], : setup.shape[1]]
    light = [flux * setup.psf.kernel(y - at_y, x - at_x) for at_y, at_x, flux in targets]
    image = np.rint(sum(light))
    window = cast("Window", setting.window(image))
    model = window.model(setting.optics, len(targets))._replace(pixels=window.smooth)
    theta = (targets - np.array([*window.origin, 0.0])).reshape(1, -1)
    return _Example(setting, image, targets, model, theta)


def compile_refinement() -> None:
    """Compile what refines the targets of a grid."""
    from csunmix.continuous.refine import refine
    from csunmix.peaks import Candidates

    setting, image, targets, *_ = _example()
    refine(setting, image[None], Candidates(np.zeros(1, np.int64), *targets[:1].T))


def compile_fit() -> None:
    """Compile the joint fit of the grid-free methods, and what is made of its optima."""
    from csunmix._kernels.modes import approximate
    from csunmix._kernels.search import search

    model = _example().model
    approximate(model, *search(model, 1, 1, 1, 1, 0))


def compile_draws() -> None:
    """Compile how the grid-free methods draw from a posterior, sum up the draws, and the rest."""
    from csunmix._kernels.hops import wander
    from csunmix._kernels.importance import add_density, log_level, log_posterior
    from csunmix._kernels.labels import describe, settle
    from csunmix._kernels.modes import Modes, log_volume
    from csunmix._kernels.scene import least_share, log_scales

    _, _, targets, model, theta = _example()
    factor = 0.01 * np.eye(theta.size)[None]
    modes, one = Modes(theta, theta, factor, np.linalg.inv(factor)), np.ones(1)
    wander(model, modes, np.zeros(1, np.int64), 1, 1, 0.0, 0)
    log_posterior(model, theta, theta, np.zeros(1, np.int64))
    unit = log_level(modes.inverse[0], 1.0)
    add_density(theta, modes.inverse, one, unit, len(targets), theta, np.zeros(1))
    settle(targets[None], one, targets[:, :2].copy())
    describe(targets[None], one, 0.1)
    log_volume(model, theta[0])
    least_share(model.optics, model.box.area, *model.pixels.low.shape)
    log_scales(model.pixels, 0.0)
