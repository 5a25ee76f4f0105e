"""A network of your own as an unmixer: any callable from images to sub-pixel maps."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csunmix._validation import Array, FloatArray, as_bool, as_images, as_integer, as_real
from csunmix.grid import SubpixelGrid
from csunmix.peaks import Candidates, EveryCell, PeakRule
from csunmix.targets import Flag, make_table
from csunmix.unmixer import at_border

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("csunmix")


def add_channel(images: FloatArray) -> FloatArray:
    """Images (n, n_y, n_x) with an axis of one channel, (n, 1, n_y, n_x)."""
    return images[:, np.newaxis]


@dataclass(frozen=True)
class NetworkUnmixer:
    """Unmix images with a network that answers with sub-pixel flux maps.

    Parameters
    ----------
    network : callable
        A `torch.nn.Module`, or any function, from a batch of images to their maps. The maps are
        of shape ``(n, m_y * m_x)``, ``(n, m_y, m_x)`` or ``(n, 1, m_y, m_x)`` with
        ``m = factor * pixels``, row-major; of a tuple or list the first entry counts, as unfolding
        networks return losses beside it. A module is given tensors of the type of its parameters,
        where these lie; it runs in evaluation mode without gradients, and has its modes back
        afterwards. Any other callable is given arrays of float32. Torch is not needed for those.
    factor : int
        Cells per pixel along each axis.
    peaks : PeakRule
        What turns maps into targets. The default is the published protocol of CSIST-100K: every
        cell at or above 50 (of SeqCSIST: 70).
    preprocess : callable
        From images (n, n_y, n_x), DN, to what the network takes. By default `add_channel`; for
        one that takes flat images from 0 to 1, ``lambda a: a.reshape(len(a), -1) / 255``.

    Raises
    ------
    TypeError
        If `network` or `preprocess` cannot be called, `peaks` has no method ``find``, or `factor`
        is not an integer.
    ValueError
        If `factor` is not positive.

    Examples
    --------
    >>> import csunmix as cu
    >>> import numpy as np
    >>> def nearest(images):  # all light at the middle of its pixel
    ...     return np.kron(images, [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    >>> images = np.zeros((2, 11, 11))
    >>> images[1, 5, 6] = 231.0
    >>> unmix = cu.NetworkUnmixer(nearest, factor=3, preprocess=np.asarray)
    >>> unmix(images)[["frame", "y", "x", "flux"]]
       frame    y    x   flux
    0      1  5.0  6.0  231.0
    """

    network: Callable[[Any], Any] = field(repr=False)
    _: KW_ONLY
    factor: int = 3
    peaks: PeakRule = field(default_factory=EveryCell)
    preprocess: Callable[[FloatArray], Any] = field(default=add_channel, repr=False)

    def __post_init__(self) -> None:
        as_integer(self.factor, "factor", minimum=1)
        for name in ("network", "preprocess"):
            if not callable(getattr(self, name)) or isinstance(getattr(self, name), type):
                raise TypeError(f"{name} must be a callable, got {getattr(self, name)!r}")
        if not isinstance(self.peaks, PeakRule) or isinstance(self.peaks, type):
            raise TypeError(f"peaks must have a method find(), got {self.peaks!r}")

    def __call__(
        self, images: npt.ArrayLike, *, progress: bool = False, batch_size: int = 64
    ) -> pd.DataFrame:
        """Unmix images.

        Parameters
        ----------
        images : array_like, shape (..., n_y, n_x)
            One image or any number of them, DN; ``frame`` counts them in row-major order.
        progress : bool
            Show a progress bar.
        batch_size : int
            Images that the network is given at a time.

        Returns
        -------
        pandas.DataFrame
            Target table, without errors and scores. Images with NaN or infinite pixels are not
            shown to the network and have the flag ``NOT_FINITE`` in ``attrs["frame_flags"]``;
            those for which it answers with such have ``NOT_CONVERGED``. Neither has targets, and
            the log names the first. ``attrs["seconds"]`` is the time taken, and
            ``attrs["parameters"]`` the number of parameters of a module.

        Raises
        ------
        TypeError
            If the images, or the maps, are not real numbers.
        ValueError
            If the images are empty, none is finite, or the maps are not of the shape above.
        """
        from tqdm import tqdm

        as_bool(progress, "progress")
        batch_size = as_integer(batch_size, "batch_size", minimum=1)
        stack = _stack(images)
        grid = SubpixelGrid((stack.shape[1], stack.shape[2]), self.factor)
        flags = np.zeros(len(stack), np.int64)
        found: list[Candidates] = []
        module: Any = self.network if _is_module(self.network) else None
        begin = perf_counter()
        with (
            nullcontext() if module is None else _evaluating(module),
            tqdm(total=len(stack), unit="image", disable=not progress) as bar,
        ):
            for start in range(0, len(stack), batch_size):
                part = as_images(stack[start : start + batch_size], finite=False)
                candidates, flags[start : start + len(part)] = self._answer(part, grid)
                found.append(candidates._replace(frame=candidates.frame + start))
                bar.update(len(part))
        seconds = perf_counter() - begin
        _report(stack, flags)
        every = Candidates(*(np.concatenate(column) for column in zip(*found, strict=True)))
        flags[np.bincount(every.frame, minlength=len(stack)) == 0] |= Flag.NO_TARGET
        border = at_border(every.y, every.x, grid.shape)
        np.bitwise_or.at(flags, every.frame, border)
        about = {"method": repr(self), "image_shape": grid.shape, "seconds": seconds}
        if module is not None:
            about["parameters"] = sum(p.numel() for p in module.parameters())
        return make_table(
            *every,
            flags=border,
            n_frames=len(stack),
            frame_flags={int(i): int(flags[i]) for i in np.flatnonzero(flags)},
            attrs=about,
        )

    def _answer(self, images: FloatArray, grid: SubpixelGrid) -> tuple[Candidates, Array]:
        """Targets of a batch of images (n, n_y, n_x), finite or not, and the flags of each."""
        flags = np.zeros(len(images), np.int64)
        finite = np.isfinite(images).all(axis=(1, 2))
        flags[~finite] = int(Flag.NOT_FINITE)
        shown = np.flatnonzero(finite)
        maps: FloatArray = np.empty((0, *grid.map_shape))
        if shown.size:
            given = self.preprocess(images[shown].astype(np.float32))
            maps = _maps(_run(self.network, given), shown.size, grid)
        answered = np.isfinite(maps).all(axis=(1, 2))
        flags[shown[~answered]] = int(Flag.NOT_CONVERGED)
        if not answered.any():
            return Candidates(np.empty(0, np.int64), *np.empty((3, 0))), flags
        candidates = self.peaks.find(maps[answered], grid)
        return candidates._replace(frame=shown[answered][candidates.frame]), flags


def _stack(images: npt.ArrayLike) -> Array:
    """One axis of images, as they are: they are made real numbers batch by batch."""
    if not isinstance(images, np.ndarray):
        images = as_images(images, finite=False)
    one = images if images.ndim < 3 or 0 in images.shape else images[(0,) * (images.ndim - 2)]
    as_images(one, finite=False)
    return images.reshape(-1, *images.shape[-2:])


def _maps(answer: Any, n: int, grid: SubpixelGrid) -> FloatArray:
    """The maps (n, m_y, m_x) in what the network returned for `n` images."""
    if isinstance(answer, tuple | list) and answer:
        answer = answer[0]
    if hasattr(answer, "detach"):  # a tensor, of whatever precision
        answer = answer.detach().cpu().double().numpy()
    maps = as_real(answer, "maps of the network")
    m_y, m_x = grid.map_shape
    if maps.shape not in ((n, m_y * m_x), (n, m_y, m_x), (n, 1, m_y, m_x)):
        raise ValueError(
            f"maps of the network must be of shape ({n}, {m_y * m_x}), ({n}, {m_y}, {m_x}) or "
            f"({n}, 1, {m_y}, {m_x}) for {n} image(s) of {grid.shape[0]} x {grid.shape[1]} px at "
            f"factor {grid.factor}, got {maps.shape}"
        )
    return maps.reshape(n, m_y, m_x)


def _report(stack: Array, flags: Array) -> None:
    """Log the images without an answer; refuse a stack of which there is none."""
    if (flags & Flag.NOT_FINITE).all():
        as_images(stack)  # says where
    if (flags & Flag.NOT_CONVERGED).all():
        raise ValueError("maps of the network must be finite, all have NaN or infinite values")
    for flag, what in (
        (Flag.NOT_FINITE, "image(s)"),
        (Flag.NOT_CONVERGED, "map(s) of the network"),
    ):
        bad = np.flatnonzero(flags & flag)
        if bad.size:
            logger.warning("%d %s not finite, first frame %d: skipped", bad.size, what, bad[0])


# Torch, which is there if a module is


def _is_module(network: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(network, torch.nn.Module)


def _run(network: Any, given: Any) -> Any:
    """What the network returns; a module is given a tensor like its parameters."""
    if not _is_module(network):
        return network(given)
    import torch

    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    return network(torch.as_tensor(given).to(like))


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """Evaluation mode without gradients, and afterwards each part in the mode it had."""
    import torch

    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, training in modes:
            part.training = training
