"""The run behind ``csunmix unmix``: batch by batch, and a killed run can be gone on with.

Targets are appended to ``OUT.part`` (see `csunmix.cli.tables`). After every batch
``OUT.state.json`` notes how much of it is valid; whatever a killed run wrote beyond that is cut
off. Only a finished part becomes ``OUT``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from csunmix import __version__
from csunmix.cli.inputs import parts
from csunmix.cli.tables import table_for
from csunmix.cluster import tables, unmix_part
from csunmix.continuous.moments import MomentUnmixer
from csunmix.io import ImageStack, atomic_write
from csunmix.psf import SampledPSF
from csunmix.targets import Flag
from csunmix.unmixer import GridUnmixer

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

    from csunmix.continuous import ContinuousUnmixer, PosteriorUnmixer

    Unmixer = GridUnmixer | MomentUnmixer | ContinuousUnmixer | PosteriorUnmixer

MAX_BATCH = 100  # images; later batches are larger, as long as they take less than
SECONDS = 1.0  # which is about what a killed run loses
_LARGEST = 64  # first batches
_OFF_GRID_BATCH = 20
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

    def add(self, table: pd.DataFrame, attrs: Mapping[Hashable, Any], size: int) -> None:
        """Count a further batch, its table and `attrs`; the part file has `size` bytes then."""
        n = attrs["n_frames"]
        for flag, frames in _flagged_frames(table, attrs):
            entry = self.flagged.setdefault(str(flag.name), [0])
            entry[0] += frames.size
            entry += (self.frames + frames[: _LISTED + 1 - len(entry)]).tolist()
        self.frames, self.size, self.targets = self.frames + n, size, self.targets + len(table)


class Run:
    """One run of an unmixer over a stack, into a CSV or Parquet file.

    Parameters
    ----------
    unmixer : GridUnmixer, MomentUnmixer, ContinuousUnmixer or PosteriorUnmixer
        What does the work.
    stack : ImageStack
        The images; read batch by batch where they are mapped from disk.
    out : Path
        The file; its ending says which.
    resume : bool
        Go on where a run with the same settings and images was stopped, if there is one. Else a
        run that was stopped is in the way.

    Raises
    ------
    ValueError
        If what a stopped run has left is in the way, or is damaged or of other settings or images,
        or Parquet is written without pyarrow.
    """

    def __init__(self, unmixer: Unmixer, stack: ImageStack, out: Path, *, resume: bool) -> None:
        self.stack, self.out = stack, out
        self.part = out.with_name(f"{out.name}.part")
        self.state_file = out.with_name(f"{out.name}.state.json")
        self.unmixer, self.batch = unmixer, _OFF_GRID_BATCH
        if isinstance(unmixer, GridUnmixer):
            self.batch = min(MAX_BATCH, unmixer.batch_size)
        if isinstance(unmixer, MomentUnmixer):
            self.batch = min(MAX_BATCH, unmixer.images_at_a_time(stack.images.shape[1:]))
        attrs = {"n_frames": len(stack), "method": repr(unmixer)}
        self.table = table_for(out, attrs)
        self.state = State(settings=_settings(unmixer), images=_fingerprint(stack))
        if self.part.exists() and not resume:
            raise ValueError(
                f"{self.part}: is of a stopped run; --resume goes on with it, remove it to start "
                "anew"
            )
        if self.part.exists() and self.state_file.exists():
            self.state = self._read_state()

    def execute(self, *, progress: bool, client: Client | None = None) -> State:
        """Do what is left to do, on the cluster of the client where there is one.

        Raises
        ------
        KeyboardInterrupt
            If the user interrupts; the message says what is kept.
        OSError
            If a file cannot be written.
        """
        if self.state.frames == 0:
            self.state_file.unlink(missing_ok=True)  # never beside a part that is not its own
        n = len(self.stack)
        try:
            with (
                self.part.open("r+b" if self.state.frames else "wb") as file,
                tqdm(total=n, initial=self.state.frames, unit="image", disable=not progress) as bar,
            ):
                file.truncate(self.state.size)
                file.seek(self.state.size)
                for table in self._tables(client):
                    # Apart, as pandas copies them with every column that it hands out.
                    attrs, table.attrs = table.attrs, {}
                    begins = self.state.frames == 0
                    file.write(self.table.encode(self._named(table), begins=begins))
                    file.flush()
                    os.fsync(file.fileno())
                    self.state.add(table, attrs, file.tell())
                    self._write_state()
                    bar.update(attrs["n_frames"])
            self.table.finish(self.part, self.out)
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

    def _tables(self, client: Client | None) -> Iterator[pd.DataFrame]:
        """Target tables of the batches that are left."""
        start, n, size = self.state.frames, len(self.stack), self.batch
        if client is not None:
            size *= 10  # to each task
            yield from tables(client, self.unmixer, self.stack, batch_size=size, start=start)
            return
        while start < n:
            begin = perf_counter()
            yield unmix_part(self.unmixer, self.stack.part(start, start + size))
            start, took = start + size, perf_counter() - begin
            size = _next_size(size, self.batch, took)

    def _named(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with frames counted over all images, and the names of these."""
        frame = table["frame"].to_numpy() + self.state.frames
        return table.assign(frame=frame, image=[self.stack.name(i) for i in frame.tolist()])

    def _read_state(self) -> State:
        damaged = ValueError(f"{self.state_file}: is damaged; remove it to start anew")
        try:
            state = State(**json.loads(self.state_file.read_text()))
        except (ValueError, TypeError):
            raise damaged from None
        for what in ("settings", "images"):
            if getattr(state, what) != getattr(self.state, what):
                raise ValueError(
                    f"{self.part}: was begun with other {what}; remove it to start anew"
                )
        n, size = len(self.stack), self.part.stat().st_size
        if state.frames not in range(n + 1) or state.size not in range(size + 1):
            raise damaged
        return state

    def _write_state(self) -> None:
        with atomic_write(self.state_file) as temporary:
            temporary.write_text(json.dumps(asdict(self.state), indent=1))


def _next_size(size: int, first: int, took: float) -> int:
    """Images of the batch after one of `size` that `took` so many seconds."""
    if took < SECONDS / 2 and size < _LARGEST * first:
        return 2 * size
    return size // 2 if took > SECONDS and size > first else size


def _flagged_frames(
    table: pd.DataFrame, attrs: Mapping[Hashable, Any]
) -> Iterator[tuple[Flag, npt.NDArray[np.intp]]]:
    """Every flag that occurs, on a frame or on a target of it, with its frames."""
    flags = np.zeros(attrs["n_frames"], np.int64)
    for frame, value in attrs["frame_flags"].items():
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


def _fingerprint(stack: ImageStack) -> str:
    """Of names and pixels, whatever folder they lie in."""
    head = json.dumps([stack.names, stack.images.shape, stack.images.dtype.str]).encode()
    pixels = (np.ascontiguousarray(part).tobytes() for part in parts(stack))
    return _hash(chain([head], pixels))


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
