"""Compile what an unmixer needs in processes side by side, before it begins.

What is compiled is kept on disk, where the run finds it. That no signature differs from the run's
is up to the tests; where one did, the run would compile that kernel once more.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import RLock, Thread
from typing import IO, NamedTuple, Protocol, cast

from csunmix._kernels.merging import merge_closest
from csunmix._validation import FloatArray

NOTICE = "compiling kernels (once per machine, 10 to 30 s) ..."

logger = logging.getLogger("csunmix")

_ONE_AT_A_TIME = RLock()  # threads: the next finds it done
_CHILD = "import sys; sys.path.insert(0, {folder!r}); from csunmix._ahead import do; do()"


class Step(NamedTuple):
    """Something to compile. Steps that go side by side share no `kernel`."""

    do: Callable[[], object]
    kept: str  # files that tell that it was done


class Compiled(Protocol):
    """What needs kernels."""

    def _to_compile(self, image: FloatArray) -> Iterable[Step]:
        """All that it needs for an image (n_y, n_x), as far as it can be compiled side by side."""


def prepare(unmixer: Compiled, image: FloatArray, *, progress: bool) -> None:
    """Compile what an unmixer needs for an image (n_y, n_x) and is not there, and say so.

    The log says so, and standard error where progress is shown.
    """
    if not missing(unmixer, image):  # nor does it wait for others that compile
        return
    with _ONE_AT_A_TIME:
        if steps := missing(unmixer, image):
            logger.info(NOTICE)
            if progress:
                print(f"csunmix: {NOTICE}", file=sys.stderr)
            compile_ahead(steps)


def missing(unmixer: Compiled, image: FloatArray) -> list[Step]:
    """What is not compiled yet of all that an unmixer needs for an image (n_y, n_x)."""
    stats = getattr(merge_closest, "stats", None)
    if stats is None:  # compilation is turned off
        return []
    folder = Path(stats.cache_path)
    return [step for step in unmixer._to_compile(image) if not any(folder.glob(step.kept))]


def kept_of(module: str) -> str:
    """Files that tell that kernels of a module were compiled; any, where none is named so."""
    named = (Path(__file__).parent / "_kernels" / module).with_suffix(".py").exists()
    return f"{module}.*.nbi" if named else "*.nbi"


def compile_ahead(steps: Sequence[Step]) -> None:
    """Compile the last step here, and each other one in a process of its own meanwhile.

    If there are several, and processors for them; the last should be one that takes longest. Where
    a step fails, the run compiles by itself. No fork and no spawn: either would have a part of the
    caller's program run once more.
    """
    if len(steps) < 2 or processors() < 2 or not _may_start_others():
        return
    argv = [sys.executable, "-P", "-c", _CHILD.format(folder=str(Path(__file__).parents[1]))]
    start = partial(Popen, argv, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL)
    *others, mine = steps
    with suppress(OSError), ExitStack() as stack:
        processes = []
        for task in filter(None, map(_told, others)):
            processes.append(process := stack.enter_context(start()))
            pipe = cast("IO[bytes]", process.stdin)
            pipe.write(task)
            pipe.flush()  # and it stays open: its end is that of the child
        with suppress(Exception):
            mine.do()
        for process in processes:
            process.wait()


def _told(step: Step) -> bytes:
    """What a process is told to do; nothing where that is a caller's own and cannot be told."""
    with suppress(Exception):
        return pickle.dumps(step.do)
    return b""


def _may_start_others() -> bool:
    """Whether there is a Python to start, and no pool of processes that this is one of."""
    python = Path(sys.executable or "").stem.lower().startswith("python")
    return python and not getattr(sys, "frozen", False) and parent_process() is None


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
