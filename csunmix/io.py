"""Images from files: one image, a stack, a folder; target tables; files never half-written."""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence
from tqdm import tqdm

from csunmix._validation import Array, FloatArray, as_images, as_real, refuse_colours

if TYPE_CHECKING:
    import pandas as pd

_RASTER = (".png", ".tif", ".tiff")
_PNG_END = b"IEND\xaeB`\x82"  # name and checksum of the chunk that ends a PNG file
_FITS = (".fits", ".fit", ".fts", ".fits.gz")
_HDF5 = b"\x89HDF\r\n\x1a\n"  # begins such a file, after the 512 bytes that MATLAB puts in front
_MAT_NUMBERS = (
    "double",
    "single",
    *(f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)),
)
_ZARR = ("zarr.json", ".zarray", ".zgroup")  # one of them lies in a Zarr folder
_SUFFIXES = (*_RASTER, *_FITS, ".npy", ".npz", ".mat")
_AXES = {2: "two axes (y, x)", 3: "three (n, y, x)", 4: "four (n, 1, y, x)"}


@dataclass(frozen=True, eq=False)
class ImageStack:
    """Images and the files they come from.

    Attributes
    ----------
    images : ndarray or zarr.Array, shape (n, n_y, n_x)
        The images in the number type of the file; may be mapped from disk and read-only. A
        `zarr.Array` reads what is sliced.
    names : tuple of str
        File name of each image, or the one name that all of them share.
    path : str or None
        For `read_images`: where the images stay, if they were not loaded.
    """

    images: Array
    names: tuple[str, ...]
    path: str | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def name(self, frame: int) -> str:
        """File name of image `frame`."""
        return self.names[frame if len(self.names) > 1 else 0]

    def part(self, start: int, stop: int) -> Array:
        """Images `start` to `stop` in memory; they leave nothing of the stack there when freed.

        The pages of a mapped file that were touched count as resident memory, so that a pass over
        the mapping would hold all of it; its file is read instead.
        """
        images, stop = self.images, min(stop, len(self))
        if self.path is None or not isinstance(images, np.memmap) or not images.flags.c_contiguous:
            return np.asarray(images[start:stop])
        shape = (stop - start, *images.shape[1:])
        offset = images.offset + start * math.prod(shape[1:]) * images.itemsize
        values = np.fromfile(self.path, images.dtype, math.prod(shape), offset=offset)
        return values.reshape(shape)


def read_images(path: str | os.PathLike[str], *, array: str | None = None) -> ImageStack:
    """Read one image, a stack of images or a folder of images.

    Parameters
    ----------
    path : path-like
        A PNG, TIFF (one page or many), FITS, NPY, NPZ or MAT file, a Zarr array or group, or a
        folder. Of a folder the PNG, TIFF and FITS files are read, in natural order (``image_2``
        before ``image_10``). ``"FILE:NAME"`` is ``FILE`` with ``array="NAME"``. NPY files are
        mapped and Zarr stacks opened, not loaded, unless their byte order is not the machine's.
    array : str, optional
        Which array of an NPZ or MAT file or Zarr group, or extension of a FITS file (its name, or
        its index where it has none or not its own), to take; not needed where only one of them
        has two axes ``(y, x)`` or three ``(n, y, x)``.

    Returns
    -------
    ImageStack
        Images ``(n, y, x)``, row 0 the first of the file, and the names of files. Grey levels
        are as stored: 8, 16 or 32 bit or floating; NaN and infinite values are not looked for.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If a file cannot be read or does not hold grey levels (palette, 1-bit, coloured or
        transparent images, arrays of such a shape, complex numbers or objects), if it is too large
        to be meant (Pillow's decompression bomb), if several arrays may be meant, if a folder has
        no images or they differ in shape, or if FITS is read without astropy or Zarr without zarr.
        The message names the file.
    """
    path, array = split_name(path, array)
    if path.is_dir() and not _is_zarr(path):
        return stack_files(_image_files(path), array=array)
    images = read_array(path, array, ndim=(2, 3))
    refuse_colours(images.shape, str(path))
    if images.ndim == 2:
        images = images[:][np.newaxis]
    if type(images) is np.ndarray:
        return ImageStack(images, (path.name,))
    where = os.path.abspath(path)
    return ImageStack(images, (path.name,), where if array is None else f"{where}:{array}")


def read_psf(path: str | os.PathLike[str], *, array: str | None = None) -> FloatArray:
    """Read a sampled point spread function.

    Parameters
    ----------
    path : path-like
        An NPY, NPZ, MAT, FITS, TIFF or PNG file; ``"FILE:NAME"`` is ``FILE`` with
        ``array="NAME"``.
    array : str, optional
        Which array of an NPZ or MAT or extension of a FITS file to take; not needed where only one
        of them has two axes, or only one of these has a name that begins with ``psf``.

    Returns
    -------
    ndarray, shape (m_y, m_x)
        The samples as stored, not normalised; float32 stays float32, all else becomes float64.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read, if several arrays may be meant, or if the array has not two
        axes; the message names the file.
    """
    path, array = split_name(path, array)
    return np.array(as_real(read_array(path, array, ndim=(2,), prefix="psf"), "psf"))


def stack_files(
    files: Sequence[Path], *, array: str | None = None, progress: bool = False
) -> ImageStack:
    """Read `files` in the order given as one stack.

    Parameters
    ----------
    files : sequence of Path
        At least one file, as `read_images` takes them.
    array : str, optional
        As in `read_images`, for every file.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    ImageStack

    Raises
    ------
    ValueError
        As `read_images`; images of different shapes name the first file that differs.
    """
    parts: list[Array] = []
    names: list[str] = []
    for file in tqdm(files, desc="images", unit="file", disable=not progress):
        part = read_array(file, array, ndim=(2, 3))
        part = part.reshape(-1, *part.shape[-2:])
        if parts and part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(
                f"{file}: image of shape {part.shape[1:]}, but {files[0].name} in front of it "
                f"has {parts[0].shape[1:]}; the images of a folder must share one shape"
            )
        parts.append(part)
        names += [file.name] * len(part)
    return ImageStack(np.concatenate(parts), tuple(names))


def write_png(path: str | os.PathLike[str], image: npt.ArrayLike) -> None:
    """Write an 8-bit grey PNG file, whole or not at all.

    Parameters
    ----------
    path : path-like
        The file; replaced if it is there.
    image : array_like, shape (n_y, n_x)
        Integers within 0..255, DN, of any number type.

    Raises
    ------
    TypeError
        If `image` does not hold real numbers.
    ValueError
        If `image` has not two axes, or values are not integers within 0..255.
    """
    levels = as_uint8(image, "image")
    if levels.ndim != 2:
        raise ValueError(f"image must have two axes (y, x), got shape {levels.shape}")
    with atomic_write(path) as temporary:
        Image.fromarray(levels).save(temporary, format="PNG")


def read_targets(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a target table that the command line wrote: Parquet (``.parquet``), or else CSV.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    pandas.DataFrame
        Target table, with the columns beyond `csunmix.targets.COLUMNS` (such as ``image``).
        ``attrs["n_frames"]`` is the number of images where the file tells: Parquet does, CSV not.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If the file is no such table (see `csunmix.targets.read_csv`), or if Parquet is read
        without pyarrow; the message names the file.
    """
    from csunmix.targets import COLUMNS, check_table, make_table, read_csv

    path = Path(path)
    if not is_parquet(path):
        return read_csv(path)
    import pandas as pd

    require_pyarrow(path)
    with path.open("rb") as file, _decoding(path, "Parquet file"):
        raw = pd.read_parquet(file, engine="pyarrow")
    check_table(raw, str(path))
    columns: dict[str, Any] = {name: raw[name] for name in COLUMNS if name in raw.columns}
    about = {str(name): value for name, value in raw.attrs.items()}
    flags = about.pop("frame_flags", None)  # JSON made words of the frames
    table = make_table(**columns, frame_flags=flags, attrs=about)
    for name in raw.columns.difference(list(COLUMNS), sort=False):
        table[name] = raw[name].to_numpy(dtype=object)
    return table


def is_parquet(path: Path) -> bool:
    """Whether the name of a target table asks for Parquet."""
    return path.suffix.lower() == ".parquet"


def require_pyarrow(path: Path) -> None:
    """Refuse a Parquet file where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{path}: Parquet files need pyarrow: pip install 'csunmix[parquet]'"
        ) from None


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that it is there in full or not at all.

    Parameters
    ----------
    path : path-like
        The file; replaced if it is there. Devices and pipes are written to directly.

    Yields
    ------
    Path
        A new name in the same folder, with the same ending, for the caller to write to. It
        becomes `path` when the block ends and is removed when the block raises.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    IsADirectoryError
        If `path` is a folder.

    Examples
    --------
    >>> with atomic_write("targets.csv") as temporary:  # doctest: +SKIP
    ...     table.to_csv(temporary)
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key that orders numbers in names by value: ``image_2`` before ``image_10``.

    Parameters
    ----------
    name : str
        A file name.

    Returns
    -------
    tuple
        To be handed to ``sorted(names, key=natural_key)``; names that differ only in leading
        zeros or case have a fixed order too.
    """
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def as_uint8(images: npt.ArrayLike, name: str = "images") -> npt.NDArray[np.uint8]:
    """Return `images` as 8-bit integers after checking that this changes no value.

    Parameters
    ----------
    images : array_like, shape (..., n_y, n_x)
        Integers within 0..255, DN, of any number type.
    name : str
        The name of the argument, for the message.

    Returns
    -------
    ndarray of uint8, shape (..., n_y, n_x)

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        If a value is not an integer within 0..255; the message names the first one.
    """
    values = as_images(images, name)
    bad = (values < 0) | (values > 255) | (values != np.rint(values))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be integers within 0..255 to be stored in 8 bit, "
            f"got {values[where]:g} at index {where}"
        )
    return values.astype(np.uint8)


def split_name(path: str | os.PathLike[str], array: str | None) -> tuple[Path, str | None]:
    """Return an existing path and the array meant: ``FILE:NAME`` where no file is called so."""
    text = os.fspath(path)
    if not os.path.exists(text) and array is None:
        file, _, name = text.rpartition(":")
        if name and (os.path.isfile(file) or _is_zarr(Path(file))):
            text, array = file, name
    if not os.path.exists(text):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
    return Path(text), array


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in _ZARR)


def _image_files(folder: Path) -> list[Path]:
    """The image files of a folder, in natural order; hidden ones are not meant."""
    names = [
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith((*_RASTER, *_FITS))
        and not entry.name.startswith(".")
        and entry.is_file()
    ]
    if not names:
        raise ValueError(f"{folder}: the folder has no images ({', '.join((*_RASTER, *_FITS))})")
    return [folder / name for name in sorted(names, key=natural_key)]


def read_array(path: Path, array: str | None, *, ndim: tuple[int, ...], prefix: str = "") -> Array:
    """Read the one array of a file that can be meant, in native byte order.

    It is the one called `array`, or that has one of the numbers of axes `ndim`, or of several
    such the one whose name begins with `prefix`. Raises ValueError as `read_images`.
    """
    name = path.name.lower()
    if name.endswith(".npz"):
        values = _read_npz(path, array, ndim, prefix)
    elif name.endswith(".mat"):
        values = _read_mat(path, array, ndim, prefix)
    elif name.endswith(_FITS):
        values = _read_fits(path, array, ndim, prefix)
    elif _is_zarr(path):
        values = _open_zarr(path, array, ndim, prefix)
    elif array is not None:
        raise ValueError(
            f"{path}: array={array!r} is given, but this is no NPZ, MAT or FITS file "
            "and no Zarr group"
        )
    elif name.endswith(".npy"):
        values = _read_npy(path)
    elif name.endswith(_RASTER):
        values = _read_raster(path)
    else:
        raise ValueError(f"{path}: unknown kind of file, expected one of {', '.join(_SUFFIXES)}")
    what = f"{path}" if array is None else f"{path}: {array}"
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{what}: must hold real numbers, got dtype {values.dtype}")
    if values.ndim not in ndim:
        axes = " or ".join(_AXES[n] for n in ndim)
        raise ValueError(f"{what}: must have {axes}, got shape {values.shape}")
    if 0 in values.shape:
        raise ValueError(f"{what}: must not be empty, got shape {values.shape}")
    if values.dtype.isnative:
        return values
    return np.asarray(values).astype(values.dtype.newbyteorder("="))


def _read_npy(path: Path) -> Array:
    with _decoding(path, "NPY file"):
        return np.lib.format.open_memmap(path, mode="r")  # refuses objects


def _read_npz(path: Path, array: str | None, ndim: tuple[int, ...], prefix: str) -> Array:
    # by the headers, so that only the array that is meant is loaded
    with _decoding(path, "NPZ file"), zipfile.ZipFile(path) as archive:
        members = (name for name in archive.namelist() if name.endswith(".npy"))
        headers = {name.removesuffix(".npy"): _npy_header(archive, name) for name in members}
    numeric = {name: shape for name, (shape, dtype) in headers.items() if dtype.kind in "iuf"}
    name = _choose(path, array, list(headers), numeric, ndim, prefix)
    with (
        _decoding(path, f"NPZ file: {name}"),
        zipfile.ZipFile(path) as archive,
        archive.open(f"{name}.npy") as file,
    ):
        values: Array = np.lib.format.read_array(file, allow_pickle=False)
        return values


def _npy_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a member of an NPZ file."""
    with archive.open(name) as file:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _read_mat(path: Path, array: str | None, ndim: tuple[int, ...], prefix: str) -> Array:
    from scipy.io import loadmat, whosmat

    with path.open("rb") as file:
        head = file.read(1024)
    if _HDF5 in head:
        raise ValueError(
            f"{path}: is a MATLAB v7.3 (HDF5) file, which is not read: "
            "save it anew in MATLAB with save(..., '-v7'), or as .npy"
        )
    # by the headers, so that only the array that is meant is loaded
    with _decoding(path, "MAT file"):
        found = {name: (shape, kind) for name, shape, kind in whosmat(path, appendmat=False)}
    shapes = {name: shape for name, (shape, kind) in found.items() if kind in _MAT_NUMBERS}
    name = _choose(path, array, list(found), shapes, ndim, prefix)
    with _decoding(path, f"MAT file: {name}"):
        loaded = loadmat(path, appendmat=False, variable_names=[name])
        return np.asarray(loaded[name])


def _read_fits(path: Path, array: str | None, ndim: tuple[int, ...], prefix: str) -> Array:
    try:
        from astropy.io import fits
    except ImportError:
        raise ValueError(f"{path}: FITS files need astropy: pip install 'csunmix[fits]'") from None
    values: dict[str, Array] = {}
    with (
        _decoding(path, "FITS file"),
        path.open("rb") as file,  # astropy leaves it open where it fails
        fits.open(file, memmap=False) as units,
    ):
        for i, unit in enumerate(units):
            if unit.is_image and unit.shape:
                name = unit.name if unit.name and unit.name not in values else str(i)
                values[name] = np.asarray(unit.data)
    shapes = {name: data.shape for name, data in values.items()}
    return values[_choose(path, array, list(values), shapes, ndim, prefix)]


def _open_zarr(path: Path, array: str | None, ndim: tuple[int, ...], prefix: str) -> Array:
    try:
        import zarr
    except ImportError:
        raise ValueError(f"{path}: Zarr arrays need zarr: pip install 'csunmix[zarr]'") from None
    with _decoding(path, "Zarr array"):
        opened = zarr.open(path, mode="r")
        found = dict(opened.arrays()) if isinstance(opened, zarr.Group) else {}
    if isinstance(opened, zarr.Group):
        shapes = {name: each.shape for name, each in found.items() if each.dtype.kind in "iuf"}
        opened = found[_choose(path, array, list(found), shapes, ndim, prefix)]
    elif array is not None:
        raise ValueError(f"{path}: array={array!r} is given, but this is one Zarr array, no group")
    return cast(Array, opened)  # has shape, dtype and slices


def _choose(
    path: Path,
    array: str | None,
    names: Sequence[str],
    numeric: Mapping[str, tuple[int, ...]],
    ndim: tuple[int, ...],
    prefix: str,
) -> str:
    """The array that is named, or the only one that can be meant."""
    if array is not None:
        if array not in names:
            raise ValueError(f"{path}: has no array {array!r}, it has {', '.join(names)}")
        return array
    fitting = [name for name, shape in numeric.items() if len(shape) in ndim]
    if len(fitting) == 1:
        return fitting[0]
    if prefix:
        preferred = [name for name in fitting if name.lower().startswith(prefix)]
        if len(preferred) == 1:
            return preferred[0]
    axes = " or ".join(str(n) for n in ndim)
    if not fitting:
        raise ValueError(f"{path}: has no array of numbers with {axes} axes, it has {list(names)}")
    listing = ", ".join(f"{name} {numeric[name]}" for name in fitting)
    raise ValueError(f"{path}: several arrays may be meant, name one with array: {listing}")


def _read_raster(path: Path) -> Array:
    """Page ``(y, x)`` or pages ``(n, y, x)`` of a PNG or TIFF file."""
    with _decoding(path, "PNG or TIFF image"):
        with Image.open(path, formats=("PNG", "TIFF")) as image:
            if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
                raise ValueError("animated images are not read")
            if image.format == "PNG" and _PNG_END not in path.read_bytes():
                raise ValueError("it is cut off: it has no IEND chunk")  # Pillow does not mind
            pages = [_grey(page) for page in ImageSequence.Iterator(image)]
        if len({page.shape for page in pages}) > 1:
            raise ValueError(f"its pages differ in shape: {[page.shape for page in pages]}")
    return pages[0] if len(pages) == 1 else np.stack(pages)


def _grey(page: Image.Image) -> Array:
    """Grey levels of a page as they are stored, shape (y, x)."""
    coloured = page.mode in ("RGB", "RGBA", "LA")
    if coloured and ";16" in str(getattr(page, "tile", "")):
        raise ValueError("16-bit colour or alpha would lose its low bits; save it as 16-bit grey")
    if not coloured and page.mode not in ("L", "I", "F") and not page.mode.startswith("I;16"):
        kind = {"P": "a palette", "1": "1 bit per pixel"}.get(page.mode, f"mode {page.mode}")
        raise ValueError(f"it has {kind} instead of grey levels; save it in 8- or 16-bit grey")
    values = np.array(page)
    if not coloured:
        return _as_stored(values, page)
    if page.mode in ("LA", "RGBA"):
        if (values[..., -1] != 255).any():
            raise ValueError("it has transparent pixels; save it without an alpha channel")
        values = values[..., :-1]
    if (values != values[..., :1]).any():
        raise ValueError("it is coloured: its channels differ; save one channel in grey")
    return values[..., 0]


def _as_stored(values: Array, page: Image.Image) -> Array:
    """`values` with the sign that a TIFF file declares: Pillow has no int8 and no uint32."""
    tags: Mapping[int, Any] = getattr(page, "tag_v2", {})
    bits, sign = tags.get(258, (1,))[0], tags.get(339, (1,))[0]  # BitsPerSample, SampleFormat
    stored = {("L", 8, 2): np.int8, ("I", 32, 1): np.uint32}.get((page.mode, bits, sign))
    return values if stored is None else values.view(stored)


@contextmanager
def _decoding(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder does on a bad file into one error; hold back its other remarks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("error", message=".*truncated")
        try:
            yield
        except Exception as error:
            raise ValueError(f"{path}: not a readable {kind}: {error}") from None
