"""Unmix over the workers of a Dask cluster; what they are sent, when and again is Dask's matter.

`unmix` gives one table; `tables` gives those of the parts in their order, as they come.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csunmix._validation import Array, as_bool, as_images, as_integer
from csunmix.io import ImageStack, read_images
from csunmix.targets import COLUMNS, Flag, make_table

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client, Future

    Unmix = Callable[[Array], pd.DataFrame]

_AHEAD = 4  # parts under way or waiting per thread of a worker: what bounds the memory


def unmix(
    client: Client,
    unmixer: Unmix,
    images: npt.ArrayLike | str | os.PathLike[str],
    *,
    batch_size: int = 1000,
    progress: bool = False,
) -> pd.DataFrame:
    """Unmix images over a cluster: the table of ``unmixer(images)``, whatever the workers.

    A part whose worker is lost is done again by another, as often as the cluster's
    ``distributed.scheduler.allowed-failures`` says. Nothing is asked of `distributed` but a client.

    Parameters
    ----------
    client : distributed.Client
        The cluster. Its workers need csunmix, of the same version.
    unmixer : callable
        A `csunmix.GridUnmixer`, `csunmix.ContinuousUnmixer`, ...: from images to a target table.
        It is pickled, and sent once to each worker.
    images : array_like, shape (..., n_y, n_x), or path-like
        Images, DN, of which each part is sent to its worker; or the path of an NPY file or Zarr
        array (``"PATH:NAME"`` in a Zarr group) that every worker sees and reads its parts of.
    batch_size : int
        Images of a part. Where it is a multiple of a `GridUnmixer`'s own, 1000, the table is equal
        to its bit for bit.
    progress : bool
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        Target table, frames counted over all parts, ``attrs`` as the unmixer gives them.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If no image is finite, or the path is of another kind of file; and what the unmixer raises.

    Examples
    --------
    >>> from distributed import Client  # doctest: +SKIP
    >>> with Client("tcp://scheduler:8786") as client:  # doctest: +SKIP
    ...     targets = cu.cluster.unmix(client, cu.ContinuousUnmixer(psf, sensor, prior), "a.npy")
    """
    from tqdm import tqdm

    as_bool(progress, "progress")
    batch_size = as_integer(batch_size, "batch_size", minimum=1)
    if isinstance(images, str | os.PathLike):
        stack = read_images(images)
        if stack.path is None:
            raise ValueError(
                f"images must be an array, or the path of a Zarr array or of an NPY file in the "
                f"machine's byte order, got {images}; csunmix.io.read_images reads others"
            )
    else:
        stack = ImageStack(_one_axis(images), ())
    found = []
    with tqdm(unit="image", disable=not progress) as bar:
        for table in tables(client, unmixer, stack, batch_size=batch_size):
            found.append(table)
            bar.update(table.attrs["n_frames"])
    return _joined(found)


def tables(
    client: Client,
    unmixer: Unmix,
    stack: ImageStack,
    *,
    batch_size: int,
    start: int = 0,
) -> Iterator[pd.DataFrame]:
    """Tables of the parts of a stack in their order, frames of each counted from 0.

    Parameters
    ----------
    client, unmixer, batch_size
        As in `unmix`.
    stack : ImageStack
        Images; the workers read their parts of it where it has a path, and are sent them else.
        Only some parts are on their way at a time.
    start : int
        Image to begin with.

    Yields
    ------
    pandas.DataFrame
        Target table; of a part without a finite image an empty one that flags them.
    """
    # The result of a task, unlike data that is scattered, is made again if its worker is lost.
    there = client.submit(_same, unmixer, pure=False)
    under_way: deque[Future[pd.DataFrame]] = deque()
    n = len(stack)
    for begin in range(start, n, batch_size):
        threads = sum(client.nthreads().values())  # type: ignore[no-untyped-call]
        while len(under_way) >= _AHEAD * max(1, threads):
            yield under_way.popleft().result()
        end = min(begin + batch_size, n)
        part = (stack.path, begin, end) if stack.path else stack.part(begin, end)
        under_way.append(client.submit(_unmix, there, part, pure=False))
    while under_way:
        yield under_way.popleft().result()


def unmix_part(unmixer: Unmix, images: Array) -> pd.DataFrame:
    """Table of a part of a stack, in which no image needs to be finite."""
    try:
        return unmixer(images)
    except ValueError:
        if np.isfinite(images).all(axis=(1, 2)).any():
            raise
    flags = dict.fromkeys(range(len(images)), Flag.NOT_FINITE | Flag.NO_TARGET)
    return make_table([], [], [], [], n_frames=len(images), frame_flags=flags)


def _unmix(unmixer: Unmix, part: tuple[str, int, int] | Array) -> pd.DataFrame:
    """What a worker does."""
    if isinstance(part, tuple):
        path, begin, end = part
        part = read_images(path).part(begin, end)
    return unmix_part(unmixer, part)


def _same(unmixer: Unmix) -> Unmix:
    return unmixer


def _one_axis(images: npt.ArrayLike) -> Array:
    """One axis of images, as they are: each worker makes real numbers of its part."""
    array = np.asanyarray(images)
    if array.ndim < 2 or 0 in array.shape:
        as_images(array)  # says so
    return array.reshape(-1, *array.shape[-2:])


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of the tables of consecutive parts."""
    attrs: dict[Any, Any] | None = next(
        (dict(part.attrs) for part in parts if "method" in part.attrs), None
    )
    if attrs is None:
        raise ValueError("images must be finite, but none of them is")
    sizes = [part.attrs["n_frames"] for part in parts]
    starts = np.cumsum([0, *sizes]).tolist()
    flags = {
        start + frame: flag
        for start, part in zip(starts, parts, strict=False)
        for frame, flag in part.attrs["frame_flags"].items()
    }
    if "count_probability" in attrs:
        nothing = [0.0] * len(attrs["counts"])
        attrs["count_probability"] = [
            row
            for part, n in zip(parts, sizes, strict=True)
            for row in part.attrs.get("count_probability", [nothing] * n)
        ]
    rows = np.concatenate([part.to_numpy(np.float64) for part in parts])
    columns: dict[str, Any] = dict(zip(COLUMNS, rows.T, strict=True))
    columns["frame"] += np.repeat(starts[:-1], [len(part) for part in parts])
    return make_table(**columns, n_frames=starts[-1], frame_flags=flags, attrs=attrs)
