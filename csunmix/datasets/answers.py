"""What networks save: sub-pixel maps, text files and COCO-like JSON, read as target tables.

Two things differ between such files, and both are told rather than guessed:

- which coordinate comes first (`first`). The data sets' ``xc`` is the ROW, so what follows them
  has the row first: the first axis of a map, the first column of a text file. COCO's x is the
  column.
- where coordinates begin (`origin`): the coordinate of the centre of the first pixel. It is 0 in
  the data sets, 1 in what MATLAB made, 0.5 where boxes count from the image's corner.

Frames are those of the images, in their order; where a file names its images, `names` says which
frame each is.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from csunmix._validation import as_number
from csunmix.io import natural_key, read_array, read_targets, split_name
from csunmix.peaks import EveryCell, PeakRule
from csunmix.targets import from_grid, make_table

if TYPE_CHECKING:
    import pandas as pd

First = Literal["row", "column"]

_MAPS = (".npy", ".npz", ".mat")
_TEXT = (".txt", ".dat")
_TABLES = (".csv", ".parquet")
_KINDS = ", ".join((*_MAPS, *_TEXT, ".json", *_TABLES))
_FACTOR = 3  # of the published maps
_FLUX = ("brightness", "flux")  # keys of a detection in JSON


class _Point(NamedTuple):
    """A detection as it stands in a file."""

    image: str | int
    first: float
    second: float
    flux: float
    score: float


def read_answer(
    path: str | os.PathLike[str],
    *,
    factor: int | None = None,
    shape: tuple[int, int] | None = None,
    array: str | None = None,
    peaks: PeakRule | None = None,
    first: First | None = None,
    origin: float = 0.0,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Read the answer of any method, by the kind of the file.

    =========================  ============================================  ==================
    file                       read by                                       `first` by default
    =========================  ============================================  ==================
    ``.npy``, ``.npz, .mat``   `read_maps`                                   ``"row"``
    ``.txt``, ``.dat``,        `read_points`                                 ``"row"``
    or a folder of them
    ``.json``                  `read_coco`                                   ``"column"``
    ``.csv``, ``.parquet``     `csunmix.io.read_targets`                     is of no account
    =========================  ============================================  ==================

    Parameters
    ----------
    path : path-like
        The file or folder; ``"FILE:NAME"`` is ``FILE`` with ``array="NAME"``.
    factor, shape, array, peaks
        As in `read_maps`.
    first, origin, names
        As in `read_points`; the order of maps is that of the images, whatever their `names`.

    Returns
    -------
    pandas.DataFrame
        Target table. ``attrs["n_frames"]`` is the number of images, and absent where the file
        does not tell it.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    TypeError, ValueError
        As the readers above, or if the kind is unknown.
    """
    path, array = split_name(path, array)
    suffix = path.suffix.lower()
    if suffix in _MAPS:
        about: dict[str, Any] = {"factor": factor, "shape": shape, "array": array, "peaks": peaks}
        return read_maps(path, first=first or "row", **about)
    if suffix in _TEXT or path.is_dir():
        return read_points(path, first=first or "row", origin=origin, names=names)
    if suffix == ".json":
        return read_coco(path, first=first or "column", origin=origin, names=names)
    if suffix not in _TABLES:
        raise ValueError(
            f"{path}: unknown kind of answer, expected a folder of text files or one of {_KINDS}"
        )
    table = read_targets(path)
    if suffix == ".csv":
        del table.attrs["n_frames"]
    return table


def read_maps(
    path: str | os.PathLike[str],
    *,
    factor: int | None = None,
    shape: tuple[int, int] | None = None,
    array: str | None = None,
    peaks: PeakRule | None = None,
    first: First = "row",
) -> pd.DataFrame:
    """Read the sub-pixel maps of a network from an NPY, NPZ or MAT file.

    Parameters
    ----------
    path : path-like
        The file: an array of shape ``(n, m*m)``, ``(n, m, m)``, ``(n, 1, m, m)`` or ``(m, m)``
        with ``m = factor * pixels``, see `csunmix.targets.from_grid`. MATLAB's v7.3 is not read.
    factor : int, optional
        Cells per pixel along each axis. By default what fits `shape`, and 3 without one.
    shape : tuple of int, optional
        Shape ``(n_y, n_x)`` of the images; needed for flat maps of images that are not square.
    array : str, optional
        Which array of an NPZ or MAT file to take, where several may be meant.
    peaks : PeakRule, optional
        What turns maps into targets. The default is the published protocol of CSIST-100K: every
        cell at or above 50 (of SeqCSIST: 70).
    first : {"row", "column"}
        What the first axis of a map is, which changes slowest in a flat one. ``"column"`` is for
        maps that MATLAB made flat with ``map(:)``.

    Returns
    -------
    pandas.DataFrame
        Target table; map ``k`` is frame ``k``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read, or holds objects, complex or non-finite values, or maps that
        do not fit `factor` and `shape`; the message names the file.

    Examples
    --------
    >>> import csunmix as cu
    >>> import numpy as np
    >>> maps = np.zeros((1, 33 * 33), np.float32)
    >>> maps[0, 33 * 16 + 18] = 231.0  # xc, the row, is (16 - 1)/3; yc, the column, (18 - 1)/3
    >>> np.save("maps.npy", maps)
    >>> cu.datasets.read_maps("maps.npy")[["frame", "y", "x", "flux"]].round(3)
       frame    y      x   flux
    0      0  5.0  5.667  231.0
    """
    path, array = split_name(path, array)
    _check_first(first)
    values = read_array(path, array, ndim=(2, 3, 4))
    swapped = None if shape is None or first == "row" else (shape[1], shape[0])
    try:
        table = from_grid(
            values,
            factor=_factor(values.shape, shape) if factor is None else factor,
            peaks=EveryCell() if peaks is None else peaks,
            shape=swapped or shape,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if first == "column":
        table[["y", "x"]] = table[["x", "y"]].to_numpy()
    table.attrs["source"] = str(path)
    return table


def read_points(
    path: str | os.PathLike[str],
    *,
    first: First = "row",
    origin: float = 0.0,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""Read targets from text: lines ``x y brightness``, of a file or of a folder of files.

    Fields are parted by white space or commas; ``#`` begins a comment; blank lines are skipped.

    - A folder has one file (``.txt`` or ``.dat``) an image, in natural order; its lines are
      ``x y brightness`` or ``x y brightness score``. A file without lines is an image without
      targets.
    - A single file has the image in front: ``image x y brightness [score]``, where ``image`` is
      its index from 0 or its file name, with or without the ending.

    Parameters
    ----------
    path : path-like
        The file or folder.
    first : {"row", "column"}
        What the ``x`` of the file is. The default is that of the data sets, whose ``xc`` is the
        row.
    origin : float
        Coordinate of the centre of the first pixel, px: 0 in the data sets, 1 in MATLAB.
    names : sequence of str, optional
        File name of each image, in the order of the frames. Where all files of a folder are
        called like images (``image_7.txt`` for ``image_7.png``), each belongs to its image and
        images without a file have no targets; otherwise there must be one file an image, in
        natural order.

    Returns
    -------
    pandas.DataFrame
        Target table. ``attrs["n_frames"]`` is absent for a single file without `names`.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    TypeError
        If `origin` is not a number.
    ValueError
        If a line has not the fields above, a number is not finite, a brightness is negative, a
        score is not in 0..1, or an image is not one of `names`; the message names file and line.

    Examples
    --------
    >>> import csunmix as cu
    >>> from pathlib import Path
    >>> _ = Path("found.txt").write_text("0 5.0 5.667 231.0\n0 4.8 5.1 244.0\n2 6 6 228\n")
    >>> cu.datasets.read_points("found.txt")[["frame", "y", "x", "flux"]]
       frame    y      x   flux
    0      0  5.0  5.667  231.0
    1      0  4.8  5.100  244.0
    2      2  6.0  6.000  228.0
    """
    path = Path(path)
    if not path.is_dir():
        points = [
            _point(fields[0], fields[1:], where)
            for where, fields in _lines(path, (4, 5), "image x y brightness [score]")
        ]
        return _table(path, points, first, origin, names)
    files = {file.name: file for file in path.iterdir() if file.suffix.lower() in _TEXT}
    files = {name: file for name, file in files.items() if not name.startswith(".")}
    if not files:
        raise ValueError(f"{path}: the folder has no text files ({', '.join(_TEXT)})")
    points = [
        _point(name, fields, where)
        for name in sorted(files, key=natural_key)
        for where, fields in _lines(files[name], (3, 4), "x y brightness [score]")
    ]
    return _table(path, points, first, origin, names, images=list(files))


def read_coco(
    path: str | os.PathLike[str],
    *,
    first: First = "column",
    origin: float = 0.0,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Read targets from COCO-like JSON.

    The file is a list of detections, or an object with ``annotations`` (such a list) and perhaps
    ``images`` (``{"id": ..., "file_name": ...}`` each). A detection has

    - ``image_id``: an ``id`` of ``images``; without these the index of an image from 0, or its
      file name;
    - ``point``: ``[x, y]``; or ``bbox``: ``[x, y, width, height]``, whose middle counts; or
      ``keypoints``: ``[x, y, v, ...]``, one target each, those with ``v = 0`` left out;
    - ``brightness`` (or ``flux``), and ``score``. Where no detection has a brightness, the score
      is taken for it, as the published protocol does; if all scores are in 0..1 they are no
      fluxes, and ``attrs["flux_known"]`` is False.

    Parameters
    ----------
    path : path-like
        The file.
    first : {"row", "column"}
        What the ``x`` of the file is. The default is that of COCO.
    origin : float
        Coordinate of the centre of the first pixel, px; 0.5 where boxes count from the image's
        corner, as COCO's do.
    names : sequence of str, optional
        File name of each image, in the order of the frames. Where not all of ``images`` have one
        of them, there must be as many, in natural order of their ``file_name``.

    Returns
    -------
    pandas.DataFrame
        Target table. ``attrs["n_frames"]`` is absent without ``images`` and `names`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If `origin` is not a number.
    ValueError
        If the file is not such JSON, a number is not finite, a brightness or score is negative,
        or an image is unknown; the message names the file and the detection, counted from 0.

    Examples
    --------
    >>> import csunmix as cu
    >>> import json
    >>> from pathlib import Path
    >>> found = [{"image_id": 0, "bbox": [5.2, 4.5, 1, 1], "brightness": 231.0, "score": 0.9}]
    >>> _ = Path("found.json").write_text(json.dumps(found))
    >>> cu.datasets.read_coco("found.json")[["frame", "y", "x", "flux", "score"]]
       frame    y    x   flux  score
    0      0  5.0  5.7  231.0    0.9
    """
    path = Path(path)
    content = _json(path)
    images, found = None, content
    if isinstance(content, dict):
        found, images = content.get("annotations"), content.get("images")
    if not isinstance(found, list) or not (images is None or isinstance(images, list)):
        raise ValueError(
            f"{path}: must hold a list of detections, or an object with the lists "
            "'annotations' and 'images'"
        )
    image_of = None if images is None else _images_by_id(path, images)
    has_flux = any(isinstance(one, dict) and _key(one, _FLUX) for one in found)
    points: list[_Point] = []
    for k, one in enumerate(found):
        points.extend(_detection(one, image_of, has_flux, f"{path}: detection {k}"))
    are_scores = all(point.score <= 1 for point in points if not math.isnan(point.score))
    if not are_scores:
        points = [point._replace(score=math.nan) for point in points]
    listed = None if image_of is None else list(image_of.values())
    table = _table(path, points, first, origin, names, images=listed)
    table.attrs["flux_known"] = has_flux or not are_scores
    return table


# From points to tables


def _table(
    path: Path,
    points: Sequence[_Point],
    first: First,
    origin: float,
    names: Sequence[str] | None,
    images: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The target table of `points`, whose images are all of `images` where these are known."""
    _check_first(first)
    origin = as_number(origin, "origin")
    frame_of, n = _frames(path, points, names, images)
    frame = np.array([frame_of[point.image] for point in points], np.int64)
    one, two, flux, score = np.array([point[1:] for point in points], float).reshape(-1, 4).T
    order = np.argsort(frame, kind="stable")
    y, x = (one, two) if first == "row" else (two, one)
    table = make_table(
        frame[order],
        y[order] - origin,
        x[order] - origin,
        flux[order],
        score=score[order],
        n_frames=n,
        attrs={"source": str(path)},
    )
    if n is None:
        del table.attrs["n_frames"]
    return table


def _frames(
    path: Path,
    points: Sequence[_Point],
    names: Sequence[str] | None,
    images: Sequence[str] | None,
) -> tuple[Mapping[str | int, int], int | None]:
    """Frame by image, and the number of images where it is known."""
    known = None if names is None else _by_name(names)
    if images is None:
        mentioned = dict.fromkeys(point.image for point in points)
        if known is not None and all(image in known for image in mentioned):
            return known, len(names or ())
        return _by_index(path, mentioned, names), None if names is None else len(names)
    if known is not None:
        called = {image: image if image in known else Path(image).stem for image in images}
        if all(name in known for name in called.values()):
            frames: dict[str | int, int] = {image: known[name] for image, name in called.items()}
            if len(set(frames.values())) < len(frames):
                raise ValueError(f"{path}: speaks twice of one image, under two names")
            return frames, len(names or ())
        if len(images) != len(names or ()):
            odd = next(image for image, name in called.items() if name not in known)
            raise ValueError(
                f"{path}: speaks of {len(images)} images, but there are {len(names or ())}, "
                f"and none is called {Path(odd).stem!r}"
            )
    ordered = sorted(images, key=natural_key)
    return dict(zip(ordered, range(len(ordered)), strict=True)), len(images)


def _by_index(
    path: Path, mentioned: Iterable[str | int], names: Sequence[str] | None
) -> dict[str | int, int]:
    """Frame of each image that a file mentions by its index."""
    frames: dict[str | int, int] = {}
    for image in mentioned:
        is_index = isinstance(image, int) or (image.isascii() and image.isdigit())
        if not is_index and names is None:
            raise ValueError(
                f"{path}: calls an image {_short(image)}: the order of the images must be given "
                "with names"
            )
        frame = int(image) if is_index and len(str(image).lstrip("0")) < 8 else -1
        if frame < 0 or (names is not None and frame >= len(names)):
            there = "an index below 10^7" if names is None else f"one of the {len(names)} images"
            raise ValueError(f"{path}: image {_short(image)} is not {there}")
        frames[image] = frame
    return frames


def _by_name(names: Sequence[str]) -> dict[str | int, int]:
    """Frame by file name and, where these differ, by file name without its ending."""
    frames: dict[str | int, int] = {name: frame for frame, name in enumerate(names)}
    if len(frames) < len(names):
        raise ValueError("names must differ, got the same one twice")
    stems: dict[str | int, int] = {Path(name).stem: frame for frame, name in enumerate(names)}
    return stems | frames if len(stems) == len(names) else frames


def _factor(layout: tuple[int, ...], shape: tuple[int, int] | None) -> int:
    """Cells per pixel of maps of that layout: what fits the images, where these are known."""
    for cells in (layout[-1], layout[-2] * layout[-1]):  # of a flat map, of any other
        factor = 0 if shape is None else math.isqrt(cells // math.prod(shape))
        if shape is not None and factor**2 * math.prod(shape) == cells:
            return factor
    return _FACTOR


def _check_first(first: str) -> None:
    if first not in ("row", "column"):
        raise ValueError(f"first must be 'row' or 'column', got {first!r}")


# Text


def _lines(path: Path, sizes: tuple[int, ...], form: str) -> Iterable[tuple[str, list[str]]]:
    """Where each line that holds something stands, and its fields."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text: {error.reason}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.partition("#")[0].replace(",", " ").split()
        if not fields:
            continue
        where = f"{path}: line {number}"
        if len(fields) not in sizes:
            raise ValueError(f"{where}: must be '{form}', has {len(fields)} field(s)")
        yield where, fields


def _point(image: str, fields: Sequence[str], where: str) -> _Point:
    """The detection of a line ``x y brightness [score]``."""
    values = [_number(field, where) for field in fields]
    if values[2] < 0:
        raise ValueError(f"{where}: brightness must not be negative, got {fields[2]}")
    if len(values) == 3:
        values.append(math.nan)
    elif not 0 <= values[3] <= 1:
        raise ValueError(f"{where}: score must be in 0..1, got {fields[3]}")
    return _Point(image, *values)


def _number(text: Any, where: str) -> float:
    try:
        value = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: must be finite numbers, got {_short(text)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# JSON


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON file: {error}") from None


def _images_by_id(path: Path, images: Sequence[Any]) -> dict[str | int, str]:
    """Name of each image, by its id: its file name, or what puts it in the order of the list."""
    found: dict[str | int, str] = {}
    for k, image in enumerate(images):
        where = f"{path}: image {k}"
        if not isinstance(image, dict) or not _is_id(image.get("id")):
            raise ValueError(f"{where}: must be an object with an 'id', got {_short(image)}")
        name = image.get("file_name", str(k))
        if not isinstance(name, str):
            raise ValueError(f"{where}: 'file_name' must be text, got {_short(name)}")
        if image["id"] in found:
            raise ValueError(f"{where}: its 'id' {_short(image['id'])} is that of another image")
        found[image["id"]] = name
    if len(set(found.values())) < len(found):
        raise ValueError(f"{path}: two of its images have the same 'file_name'")
    return found


def _detection(
    one: Any, image_of: Mapping[str | int, str] | None, has_flux: bool, where: str
) -> Iterable[_Point]:
    """The targets of a detection."""
    if not isinstance(one, dict):
        raise ValueError(f"{where}: must be an object, got {_short(one)}")
    image: Any = one.get("image_id")
    if not _is_id(image) or (image_of is not None and image not in image_of):
        known = "an index from 0 or a name" if image_of is None else "one of 'images'"
        raise ValueError(f"{where}: 'image_id' must be {known}, got {_short(image)}")
    score = math.nan if one.get("score") is None else _value(one, "score", where)
    flux = _value(one, (_key(one, _FLUX) or _FLUX[0]) if has_flux else "score", where)
    named = image if image_of is None else image_of[image]
    return [_Point(named, *place, flux, score) for place in _places(one, where)]


def _places(one: Mapping[str, Any], where: str) -> list[tuple[float, float]]:
    """Positions of a detection, as they stand in the file."""
    key = _key(one, ("point", "keypoints", "bbox"))
    if key is None:
        raise ValueError(f"{where}: must have 'point', 'keypoints' or 'bbox'")
    values, where = one[key], f"{where}: {key!r}"
    size = {"point": 2, "keypoints": 3, "bbox": 4}[key]
    n = len(values) if isinstance(values, list) else 0
    if n == 0 or (n % size if key == "keypoints" else n != size):
        form = "triples x, y, v" if key == "keypoints" else f"{size} numbers"
        raise ValueError(f"{where} must be a list of {form}, got {_short(values)}")
    rows = np.array([_number(value, where) for value in values]).reshape(-1, size).tolist()
    if key == "point":
        return [(x, y) for x, y in rows]
    if key == "keypoints":
        return [(x, y) for x, y, visible in rows if visible != 0]
    ((x, y, width, height),) = rows
    if width < 0 or height < 0:
        raise ValueError(f"{where} must not be of negative size, got {_short(values)}")
    return [(x + width / 2, y + height / 2)]


def _value(one: Mapping[str, Any], key: str, where: str) -> float:
    """A number from 0."""
    if key not in one:
        raise ValueError(f"{where}: has no {key!r}")
    value = _number(one[key], f"{where}: {key!r}")
    if value < 0:
        raise ValueError(f"{where}: {key!r} must not be negative, got {value:g}")
    return value


def _key(one: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if key in one), None)


def _is_id(value: Any) -> bool:
    is_index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return is_index or isinstance(value, str)
