"""The run behind ``csunmix unmix``: batch by batch, and a killed run can be gone on with.

Targets are appended to ``OUT.part``. After every batch ``OUT.state.json`` notes how much of it is
valid; whatever a killed run wrote beyond that is cut off. Only a finished part becomes ``OUT``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from csunmix import __version__
from csunmix.cli.inputs import finite
from csunmix.io import ImageStack, atomic_write
from csunmix.psf import SampledPSF
from csunmix.targets import Flag, make_table
from csunmix.unmixer import GridUnmixer

if TYPE_CHECKING:
    import pandas as pd

    from csunmix.continuous import ContinuousUnmixer, PosteriorUnmixer

    Unmixer = GridUnmixer | ContinuousUnmixer | PosteriorUnmixer

MAX_BATCH = 100  # images, what a killed run loses at most
_OFF_GRID_BATCH = 20
_MAX_CELLS = 4_000_000  # of a batch's maps, bounds the memory
_LISTED = 10  # frames by number


@dataclass
class State:
    """How far a run is.

    Attributes
    ----------
    settings, images : str
        What the run was begun with: settings in words, fingerprint of the images.
    frames : int
        Images done.
    size : int
        Bytes of the part file that hold them.
    targets : int
        Targets in them.
    flagged : dict
        ``[number of images, first frames, ten at most]`` of every flag that occurred, by its name.
    """

    settings: str
    images: str
    frames: int = 0
    size: int = 0
    targets: int = 0
    flagged: dict[str, list[int]] = field(default_factory=dict)

    def add(self, table: pd.DataFrame, size: int) -> None:
        """Count a further batch, after which the part file has `size` bytes."""
        n = table.attrs["n_frames"]
        for flag, frames in _flagged_frames(table):
            entry = self.flagged.setdefault(str(flag.name), [0])
            entry[0] += frames.size
            entry += (self.frames + frames[: _LISTED + 1 - len(entry)]).tolist()
        self.frames, self.size, self.targets = self.frames + n, size, self.targets + len(table)


class Run:
    """One run of an unmixer over a stack, into a CSV file.

    Parameters
    ----------
    unmixer : GridUnmixer, ContinuousUnmixer or PosteriorUnmixer
        What does the work.
    stack : ImageStack
        The images; read batch by batch where they are mapped from disk.
    out : Path
        The CSV file.
    resume : bool
        Go on where a run with the same settings and images was stopped, if there is one.

    Raises
    ------
    ValueError
        If what is there to go on with is damaged or of other settings or images.
    """

    def __init__(self, unmixer: Unmixer, stack: ImageStack, out: Path, *, resume: bool) -> None:
        self.unmixer, self.stack, self.out = unmixer, stack, out
        self.part = out.with_name(f"{out.name}.part")
        self.state_file = out.with_name(f"{out.name}.state.json")
        self.batch = _OFF_GRID_BATCH
        if isinstance(unmixer, GridUnmixer):
            cells = unmixer.dictionary.shape[1]
            self.batch = max(1, min(MAX_BATCH, _MAX_CELLS // cells))
        self.state = State(settings=_settings(unmixer), images=_fingerprint(stack, self.batch))
        if resume and self.part.exists() and self.state_file.exists():
            self.state = self._read_state()

    @property
    def discards(self) -> bool:
        """Whether `execute` throws away what a stopped run left."""
        return self.state.frames == 0 and self.part.exists()

    def execute(self, *, progress: bool) -> State:
        """Do what is left to do.

        Raises
        ------
        KeyboardInterrupt
            If the user interrupts; the message says what is kept.
        OSError
            If a file cannot be written.
        """
        if self.state.frames == 0:
            self.state_file.unlink(missing_ok=True)  # never beside a part that is not its own
        n = len(self.stack.images)
        try:
            with (
                self.part.open("r+b" if self.state.frames else "wb") as file,
                tqdm(total=n, initial=self.state.frames, unit="image", disable=not progress) as bar,
            ):
                file.truncate(self.state.size)
                file.seek(self.state.size)
                for start in range(self.state.frames, n, self.batch):
                    table = self._unmix(start)
                    file.write(self._csv(table, start))
                    file.flush()
                    os.fsync(file.fileno())
                    self.state.add(table, file.tell())
                    self._write_state()
                    bar.update(table.attrs["n_frames"])
            os.replace(self.part, self.out)
        except BaseException as stop:
            if self.state.frames == 0:
                self.part.unlink(missing_ok=True)
            elif isinstance(stop, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    f"{self.state.frames} of {n} images are done; "
                    "the same command with --resume goes on"
                ) from None
            raise
        self.state_file.unlink(missing_ok=True)
        return self.state

    def _unmix(self, start: int) -> pd.DataFrame:
        """Target table of the batch from image `start` on."""
        images = self.stack.images[start : start + self.batch]
        if finite(images).any():
            return self.unmixer(images)
        flags = dict.fromkeys(range(len(images)), Flag.NOT_FINITE | Flag.NO_TARGET)
        return make_table([], [], [], [], n_frames=len(images), frame_flags=flags)

    def _csv(self, table: pd.DataFrame, start: int) -> bytes:
        """`table` as CSV, frames counted over all images, with their names."""
        frame = table["frame"] + start
        named = table.assign(frame=frame, image=[self.stack.names[i] for i in frame])
        return named.to_csv(index=False, header=start == 0, lineterminator="\n").encode()

    def _read_state(self) -> State:
        damaged = ValueError(f"{self.state_file}: is damaged; run without --resume to start anew")
        try:
            state = State(**json.loads(self.state_file.read_text()))
        except (ValueError, TypeError):
            raise damaged from None
        for what in ("settings", "images"):
            if getattr(state, what) != getattr(self.state, what):
                raise ValueError(
                    f"{self.part}: was begun with other {what}; run without --resume to start anew"
                )
        n, size = len(self.stack.images), self.part.stat().st_size
        if state.frames not in range(n + 1) or state.size not in range(size + 1):
            raise damaged
        return state

    def _write_state(self) -> None:
        with atomic_write(self.state_file) as temporary:
            temporary.write_text(json.dumps(asdict(self.state), indent=1))


def compiles() -> bool:
    """Whether no compiled kernel is kept from earlier runs, wherever numba keeps them."""
    from csunmix._kernels.merging import merge_closest

    folder = merge_closest.stats.cache_path
    return folder is None or not any(Path(folder).glob("*.nbi"))


def _flagged_frames(table: pd.DataFrame) -> Iterator[tuple[Flag, npt.NDArray[np.intp]]]:
    """Every flag that occurs, on a frame or on a target of it, with its frames."""
    flags = np.zeros(table.attrs["n_frames"], np.int64)
    for frame, value in table.attrs["frame_flags"].items():
        flags[frame] = value
    np.bitwise_or.at(flags, table["frame"].to_numpy(), table["flags"].to_numpy())
    for flag in Flag:
        frames = np.flatnonzero(flags & flag)
        if frames.size:
            yield flag, frames


def _settings(unmixer: Unmixer) -> str:
    psf = unmixer.psf
    values = f" of {_hash([psf.values.tobytes()])}" if isinstance(psf, SampledPSF) else ""
    return f"csunmix {__version__}: {unmixer!r}{values}"


def _fingerprint(stack: ImageStack, batch: int) -> str:
    """Of names and pixels, whatever folder they lie in."""
    head = json.dumps([stack.names, stack.images.shape, stack.images.dtype.str]).encode()
    starts = range(0, len(stack.images), batch)
    pixels = (np.ascontiguousarray(stack.images[k : k + batch]).tobytes() for k in starts)
    return _hash(chain([head], pixels))


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
