"""Compile what an unmixer needs in processes side by side, before it begins.

What is compiled is kept on disk, where the run finds it. That no signature differs from the run's
is up to the tests; where one did, the run would compile that kernel once more.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from multiprocessing import current_process, parent_process
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from threading import RLock, Thread
from typing import Any, NamedTuple, Protocol

NOTICE = "compiling kernels (once per installation, 5 to 20 s) ..."

logger = logging.getLogger("csunmix")

_ONE_AT_A_TIME = RLock()  # threads: the next finds it done
_PATIENCE = 600.0  # seconds for what takes 20
_PYTHON = re.compile(r"python(\d+(\.\d+)?t?|w)?")
_HELPER = "import sys; sys.path[:] = {path!r}; from csunmix._ahead import helper; helper()"


class Step(NamedTuple):
    """Something to compile. Steps that go side by side share no kernel."""

    kernel: Any  # the last one; once it is there, all is
    call: tuple[str, ...] = ()  # what compiles it: a module, its function, and what that is given


class Compiles(Protocol):
    """What needs kernels."""

    def _to_compile(self) -> Iterable[Step]:
        """All that it needs, as far as that goes side by side; what takes longest first."""


def prepare(*unmixers: Compiles, progress: bool) -> None:
    """Compile what unmixers need and is not there, and say so.

    The log says so, and standard error where progress is shown.
    """
    if not missing(*unmixers):  # nor does it wait for others that compile
        return
    with _ONE_AT_A_TIME:
        if steps := missing(*unmixers):
            logger.info(NOTICE)
            if progress:
                print(f"csunmix: {NOTICE}", file=sys.stderr)
            compile_ahead(steps)


def missing(*unmixers: Compiles) -> list[Step]:
    """What unmixers need and is not compiled yet; nothing where compilation is turned off."""
    steps = (step for unmixer in unmixers for step in unmixer._to_compile())
    return [step for step in steps if not getattr(step.kernel, "is_there", True)]


def compile_ahead(steps: Sequence[Step]) -> None:
    """Compile the first step here, and the others meanwhile in other processes.

    There is one for each other processor, and they share them out; a step that fails is left to the
    run. No fork and no spawn: either would have a part of the caller's program run once more.
    """
    calls = [step.call for step in steps if step.call]
    n_others = min(processors(), len(calls)) - 1
    if n_others < 1 or not _can_start_python():
        return
    with ExitStack() as stack:
        processes = []
        for first in range(1, n_others + 1):
            with suppress(OSError, RuntimeError):  # none can be started, or not any more
                processes.append(stack.enter_context(_start(calls[first::n_others])))
        with no_collection():
            _do(calls[0])
        for process in processes:
            try:
                process.wait(_PATIENCE)
            except TimeoutExpired:
                process.kill()


@contextmanager
def no_collection() -> Iterator[None]:
    """Look for no garbage while something is compiled: nearly all that this makes lasts.

    Nor right after it, which would take most of a second: it counts as old, which is seldom looked
    through.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if gc.get_freeze_count() == 0:  # else it is the caller's to undo
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _do(call: Sequence[str]) -> None:
    """Call what a step names, if it can be."""
    module, function, *given = call
    with suppress(Exception):
        getattr(import_module(module), function)(*given)


def _start(calls: Sequence[Sequence[str]]) -> Popen[bytes]:
    """Start a process that makes calls; it ends with its standard input, at the latest."""
    argv = sys.executable, "-c", _HELPER.format(path=sys.path), json.dumps(calls)
    return Popen(argv, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL)


def _can_start_python() -> bool:
    """Whether there is a Python to start, and no pool of processes that this is one of."""
    name = Path(sys.executable or "").name.lower().removesuffix(".exe")
    python = _PYTHON.fullmatch(name) is not None
    # A program that a new process runs once more, as its own, has no parent to tell of yet.
    alone = parent_process() is None and not getattr(current_process(), "_inheriting", False)
    return python and alone and not getattr(sys, "frozen", False)


def helper() -> None:
    """Make the calls that the command line names; end with standard input, as with the parent."""
    import scipy.linalg.cython_blas  # noqa: F401  (numba's; Windows loads none beside a reader)

    Thread(target=_end_with_input, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    gc.disable()
    for call in json.loads(sys.argv[1]):
        _do(call)
    gc.freeze()  # or the end would look through all that compiling made, for a second


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def processors() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
