"""Where commands write: paths are checked before the work starts, folders appear whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WRITTEN = (".csv", ".parquet", ".json")  # by commands, and read from no folder of images


def output_file(text: str, option: str, *, inputs: Iterable[str] = ()) -> Path:
    """Return `text` as the path of a file that can be written.

    It may be none of the `inputs`, nor one of the files that these read.
    """
    path = Path(text)
    if path.is_dir():
        raise ValueError(f"{option} {text}: is a folder, must be a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {text}: is a device or pipe, must be a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {text}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} {text}: the folder {path.parent} cannot be written to")
    for given in inputs:
        # FILE:NAME is a file, too
        for file in filter(None, (given, given.rpartition(":")[0])):
            if path.exists() and os.path.exists(file) and path.samefile(file):
                raise ValueError(f"{option} {text}: is the input {file}, which it would replace")
            if path.exists() and _reads(Path(file), path):
                raise ValueError(f"{option} {text}: is a file of the input {file}, name another")
    return path


def _reads(folder: Path, path: Path) -> bool:
    """Whether a file is in a folder, of images or a Zarr array, and no table that was put there."""
    if not folder.is_dir() or folder.resolve() not in path.resolve().parents:
        return False
    return path.suffix.lower() not in _WRITTEN or path.name == "zarr.json"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a new or empty folder in full or not at all: what is written to the yielded path."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file, must be a new or empty folder")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path}: the folder is not empty, give a new one")
    is_new = not path.exists()
    temporary = path / f".{secrets.token_hex(4)}.part"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for child in sorted(temporary.iterdir()):
            os.replace(child, path / child.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # not empty: all went well
                path.rmdir()
