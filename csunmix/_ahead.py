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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from csunmix._kernels.modes import Modes, approximate, judge
from csunmix._kernels.search import THOROUGH, search
from csunmix._validation import FloatArray

if TYPE_CHECKING:
    from csunmix._kernels.model import Model
    from csunmix.continuous.window import Setting, Window

_KERNELS = Path(__file__).parent / "_kernels"
_LARGEST = 64**2  # pixels of an image that is unmixed once more
_CHILD = "import sys; sys.path.insert(0, {folder!r}); from csunmix._ahead import do; do()"


class Step(NamedTuple):
    """Something to compile. Steps that go side by side share no `kernel`."""

    do: Callable[[], object]
    kept: str  # files that tell that it was done


def missing(unmixer: Any, image: FloatArray) -> list[Step]:
    """What is not compiled yet of all that an unmixer needs.

    `image` (n_y, n_x) is one that it is to unmix.
    """
    stats = getattr(search, "stats", None)
    if stats is None:  # compilation is turned off
        return []
    folder = Path(stats.cache_path)
    return [step for step in _steps(unmixer, image) if not any(folder.glob(step.kept))]


def compile_ahead(steps: Sequence[Step]) -> None:
    """Compile the last step here, and each other one in a process of its own meanwhile.

    If there are several, and processors for them; the last should be one that takes longest. Where
    a step fails, the run compiles by itself. No fork and no spawn: either would have a part of the
    caller's program run once more.
    """
    if len(steps) < 2 or processors() < 2 or not sys.executable:
        return
    argv = [sys.executable, "-P", "-c", _CHILD.format(folder=str(_KERNELS.parents[1]))]
    start = partial(Popen, argv, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL)
    with suppress(OSError), ExitStack() as stack:
        *others, mine = steps
        processes = [stack.enter_context(start()) for _ in others]
        for process, step in zip(processes, others, strict=True):
            pipe = cast("IO[bytes]", process.stdin)
            pickle.dump(step.do, pipe)
            pipe.flush()  # and it stays open: its end is that of the child
        with suppress(Exception):
            mine.do()
        for process in processes:
            process.wait()


def do() -> None:
    """Do what comes on standard input; end with it, as when the parent is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    gc.disable()  # compiling makes much that lasts
    task = pickle.load(sys.stdin.buffer)
    Thread(target=_end_with_input, daemon=True).start()
    task()


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def processors() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _steps(unmixer: Any, image: FloatArray) -> Iterator[Step]:
    """All that an unmixer needs, as far as it can be compiled side by side."""
    from csunmix.continuous import ContinuousUnmixer, PosteriorUnmixer
    from csunmix.unmixer import GridUnmixer

    if isinstance(unmixer, GridUnmixer) and image.size <= _LARGEST:
        alone = replace(unmixer, refine=None)
        kernels = type(unmixer.solver).__module__.rpartition(".")[2]  # lie in a file of that name
        named = (_KERNELS / kernels).with_suffix(".py").exists()
        yield Step(partial(alone, np.asarray(image)), f"{kernels}.*.nbi" if named else "*.nbi")
        if unmixer.refine is not None:
            yield Step(compile_refinement, "refine.refine-*.nbi")
    elif isinstance(unmixer, ContinuousUnmixer | PosteriorUnmixer):
        yield Step(compile_draws, "importance.scatter-*.nbi")
        yield Step(compile_search, "hops.wander-*.nbi")


class _Example(NamedTuple):
    """An image of two targets."""

    setting: Setting
    image: FloatArray
    targets: FloatArray  # (2, 3), rows y, x, flux


def _example() -> _Example:
    from csunmix.continuous.window import Setting
    from csunmix.presets import csist_100k

    setup = csist_100k()
    setting = Setting(setup.psf, setup.sensor, setup.prior, setup.shape, 0.0)
    targets = np.array([[4.7, 5.2, 230.0], [5.3, 4.8, 240.0]])
    y, x = np.mgrid[: setup.shape[0], : setup.shape[1]]
    light = [flux * setup.psf.kernel(y - at_y, x - at_x) for at_y, at_x, flux in targets]
    return _Example(setting, np.rint(sum(light)), targets)


def _posterior(example: _Example) -> tuple[Model, Modes]:
    """That of the example, and what approximates it."""
    window = cast("Window", example.setting.window(example.image))
    model = window.model(example.setting.optics, len(example.targets))
    theta = (example.targets - np.array([*window.origin, 0.0])).reshape(1, -1)
    factor = 0.01 * np.eye(theta.size)[None]
    modes = Modes(theta, theta, factor, np.linalg.inv(factor))
    return model._replace(pixels=window.smooth), modes


def compile_refinement() -> None:
    """Compile what refines the targets of a grid."""
    from csunmix.continuous.refine import refine
    from csunmix.peaks import Candidates

    setting, image, targets = _example()
    refine(setting, image[None], Candidates(np.zeros(1, np.int64), *targets[:1].T))


def compile_search() -> None:
    """Compile how the grid-free methods look for scenes: the joint fit, and chains from optima."""
    from csunmix._kernels.hops import wander
    from csunmix._kernels.labels import describe

    example = _example()
    model, modes = _posterior(example)
    search(model, 1, 1, np.inf, THOROUGH, 0)
    describe(example.targets[None], np.ones(1), 0.1)
    wander(model, modes, np.zeros(1, np.int64), 1, 1, 0.0, 0)


def compile_draws() -> None:
    """Compile how they approximate a posterior, draw from that, and sum up the draws."""
    from csunmix._kernels.importance import add_density, log_level, scatter
    from csunmix._kernels.labels import settle
    from csunmix._kernels.scene import least_share

    example = _example()
    (model, modes), one = _posterior(example), np.ones(1)
    count, theta = model.n_targets, modes.theta
    approximate(model, theta, np.zeros(1), np.empty(0))
    judge(model, theta[0], 0.0, np.ones(2), 0.0)
    unit = log_level(modes.inverse[0], 1.0)
    add_density(theta, modes.inverse, one, unit, count, theta, np.zeros(1))
    settle(example.targets[None], one, example.targets[:, :2].copy())
    least_share(model.optics, model.box.area, *model.pixels.low.shape)
    scatter(model, modes, np.zeros(1, np.int64), theta.copy())
