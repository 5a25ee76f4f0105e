"""Times of several methods on the same images, side by side, as ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits


def compare(
    runs: Mapping[str, Callable[[Any], object]],
    images: Any,
    *,
    repeats: int = 5,
    subset: Mapping[str, int] | None = None,
    wanted: Mapping[str, float] | None = None,
    threads: int = 1,
    warm: float = 0.0,
) -> pd.DataFrame:
    """Time each run on the images, interleaved: one round of all, then the next.

    Each run is called once before for its warm-up, which is not timed. The ratio is taken in each
    round, of times per image, and its median over the rounds is quoted: what else the machine does
    hits the runs of a round alike.

    Parameters
    ----------
    runs : mapping of str to callable
        What is timed; it is given the images. The first is what the others are compared with.
    images : sequence
        A stack, or anything else with a length and slices.
    repeats : int
        Rounds.
    subset : mapping of str to int, optional
        How many images a slow run is given; all where nothing is said.
    wanted : mapping of str to float, optional
        The smallest ratio asked for.
    threads : int
        Threads of BLAS, OpenMP and numba while the runs go. What has threads of its own (PyTorch,
        `numThreads` of SPAMS) must be given the same number by its run.
    warm : float
        Seconds of calls of the same run, not timed, that come before each timed one.

    Returns
    -------
    pandas.DataFrame
        One row a run: ``method, images, ms/image`` (median), ``images/s, times slower, wanted``.
    """
    given = {name: images[: (subset or {}).get(name, len(images))] for name in runs}
    seconds = np.empty((repeats, len(runs)))
    with threadpool_limits(threads), _numba_threads(threads):
        for name, run in runs.items():
            run(given[name])
        for repeat in range(repeats):
            for column, (name, run) in enumerate(runs.items()):
                start = time.perf_counter()
                while time.perf_counter() - start < warm:
                    run(given[name])
                start = time.perf_counter()
                run(given[name])
                seconds[repeat, column] = (time.perf_counter() - start) / len(given[name])
    each = np.median(seconds, axis=0)
    return pd.DataFrame(
        {
            "method": list(runs),
            "images": [len(part) for part in given.values()],
            "ms/image": [f"{1e3 * s:.3g}" for s in each],
            "images/s": [f"{1 / s:.3g}" for s in each],
            "times slower": np.median(seconds / seconds[:, :1], axis=0),
            "wanted": [(wanted or {}).get(name, np.nan) for name in runs],
        }
    )


@contextmanager
def _numba_threads(threads: int) -> Iterator[None]:
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)
