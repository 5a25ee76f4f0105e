"""Images from files: every format, every refusal, and files that are never half-written."""

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from PIL import Image

from csunmix.io import (
    ImageStack,
    as_uint8,
    atomic_write,
    natural_key,
    read_images,
    read_psf,
    read_targets,
    write_png,
)
from csunmix.targets import make_table, write_csv

RNG = np.random.default_rng(7)
FRAME8 = RNG.integers(0, 256, (9, 12)).astype(np.uint8)
FRAME16 = RNG.integers(0, 65536, (9, 12)).astype(np.uint16)
FRAME_FLOAT = RNG.normal(0.0, 1e4, (9, 12)).astype(np.float32)
STACK16 = RNG.integers(0, 65536, (4, 9, 12)).astype(np.uint16)


@pytest.mark.parametrize(
    ("frame", "suffix"),
    [
        (FRAME8, "png"),
        (FRAME8, "tif"),
        (FRAME16, "png"),
        (FRAME16, "tiff"),
        (FRAME16.astype(np.int32) * 1000, "tif"),
        (FRAME_FLOAT, "tif"),
        (FRAME_FLOAT, "npy"),
        (FRAME16, "npy"),
    ],
)
def test_one_image_comes_back_as_it_was_stored(
    tmp_path: Path, frame: np.ndarray, suffix: str
) -> None:
    path = tmp_path / f"frame.{suffix}"
    if suffix == "npy":
        np.save(path, frame)
    else:
        Image.fromarray(frame).save(path)
    stack = read_images(path)
    assert stack.names == (path.name,)
    np.testing.assert_array_equal(stack.images, frame[np.newaxis])
    assert stack.images.dtype.kind == frame.dtype.kind
    assert stack.images.dtype.isnative


@pytest.mark.parametrize("kind", ["<u1", "<i1", "<u2", ">u2", "<i2", "<u4", ">i2", "<i4", "<f4"])
def test_tiff_keeps_sign_and_byte_order(tmp_path: Path, kind: str) -> None:
    dtype = np.dtype(kind)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    pixels = np.array([limits.min, 0, 1, limits.max], dtype=dtype)
    # a TIFF by hand: header, pixels, one directory of 16-bit numbers
    order, start = kind[0], 8
    directory = start + pixels.nbytes
    tags = {256: pixels.size, 257: 1, 258: 8 * dtype.itemsize, 259: 1, 262: 1, 273: start}
    tags |= {278: 1, 279: pixels.nbytes, 339: {"u": 1, "i": 2, "f": 3}[dtype.kind]}
    (tmp_path / "image.tif").write_bytes(
        struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, directory)
        + pixels.tobytes()
        + struct.pack(f"{order}H", len(tags))
        + b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, v, 0) for tag, v in tags.items())
        + bytes(4)
    )
    images = read_images(tmp_path / "image.tif").images
    np.testing.assert_array_equal(images, pixels[np.newaxis, np.newaxis])
    assert images.dtype.isnative


def test_multi_page_tiff_is_a_stack(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    first, *others = (Image.fromarray(frame) for frame in STACK16)
    first.save(path, save_all=True, append_images=others)
    stack = read_images(path)
    np.testing.assert_array_equal(stack.images, STACK16)
    assert [stack.name(k) for k in range(4)] == ["stack.tif"] * 4
    others[-1] = Image.fromarray(STACK16[0, :5])
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(ValueError, match=r"stack\.tif: .*pages differ in shape"):
        read_images(path)


def test_npy_is_mapped_and_big_endian_made_native(tmp_path: Path) -> None:
    np.save(tmp_path / "stack.npy", STACK16)
    assert isinstance(read_images(tmp_path / "stack.npy").images, np.memmap)
    np.save(tmp_path / "big.npy", STACK16.astype(">u2"))
    images = read_images(tmp_path / "big.npy").images
    assert images.dtype.isnative
    np.testing.assert_array_equal(images, STACK16)


@pytest.mark.parametrize("order", ["C", "F"])
def test_parts_are_read_not_mapped(tmp_path: Path, order: str) -> None:
    np.save(tmp_path / "stack.npy", np.array(STACK16, order=order))
    stack = read_images(tmp_path / "stack.npy")
    assert stack.path == str(tmp_path / "stack.npy")
    part = stack.part(1, 9)
    np.testing.assert_array_equal(part, STACK16[1:])
    assert np.shares_memory(part, stack.images) is (order == "F")
    some = ImageStack(np.load(tmp_path / "stack.npy", mmap_mode="r")[2:], ("stack.npy",))
    np.testing.assert_array_equal(some.part(0, 1), STACK16[2:3])
    np.save(tmp_path / "one.npy", FRAME16)
    np.testing.assert_array_equal(read_images(tmp_path / "one.npy").part(0, 1)[0], FRAME16)


def test_zarr_arrays_and_groups(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_array(tmp_path / "one.zarr", data=STACK16, chunks=(3, 9, 12))
    stack = read_images(tmp_path / "one.zarr")
    assert isinstance(stack.images, zarr.Array)
    assert (stack.name(3), stack.path) == ("one.zarr", str(tmp_path / "one.zarr"))
    assert type(stack.part(1, 9)) is np.ndarray
    np.testing.assert_array_equal(stack.part(1, 9), STACK16[1:])
    with pytest.raises(ValueError, match=r"one\.zarr: array='a' is given, but this is one Zarr"):
        read_images(tmp_path / "one.zarr", array="a")
    group = zarr.create_group(tmp_path / "many.zarr", zarr_format=2)
    group.create_array("stack", data=STACK16)
    group.create_array("frame", data=FRAME16)
    group.create_array("count", data=np.arange(4))
    with pytest.raises(ValueError, match=r"many\.zarr: several arrays may be meant"):
        read_images(tmp_path / "many.zarr")
    named = read_images(f"{tmp_path}/many.zarr:stack")
    np.testing.assert_array_equal(named.part(0, 4), STACK16)
    assert named.path == f"{tmp_path}/many.zarr:stack"
    frame = read_images(tmp_path / "many.zarr", array="frame")
    np.testing.assert_array_equal(frame.images, FRAME16[np.newaxis])
    assert frame.path is None
    (tmp_path / "one.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"one\.zarr: not a readable Zarr array"):
        read_images(tmp_path / "one.zarr")


def test_zarr_without_zarr_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zarr.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ValueError, match=r"csunmix\[zarr\]"):
        read_images(tmp_path)


def test_target_tables_in_both_formats(tmp_path: Path) -> None:
    attrs = {"counts": (1, 2), "count_probability": [[0.5, 0.5]] * 9}
    table = make_table([1, 4], [5.0, 5.5], 4.0, 9.0, n_frames=9, frame_flags={2: 32}, attrs=attrs)
    table["image"] = ["a", "NA"]
    write_csv(table, tmp_path / "t.csv")
    table.to_parquet(tmp_path / "t.parquet")
    read = read_targets(tmp_path / "t.parquet")
    assert_frame_equal(read, table)
    assert (read.attrs["n_frames"], read.attrs["frame_flags"]) == (9, {2: 32})
    assert_frame_equal(read_targets(tmp_path / "t.csv"), table)
    table.assign(y=np.nan).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet: column 'y' must be finite"):
        read_targets(tmp_path / "bad.parquet")
    (tmp_path / "text.parquet").write_text("frame,y,x,flux")
    with pytest.raises(ValueError, match=r"text\.parquet: not a readable Parquet file"):
        read_targets(tmp_path / "text.parquet")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_targets(tmp_path / "nowhere.parquet")


def test_npz_takes_the_only_stack_or_the_named_one(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, images=STACK16, count=np.arange(4), field=np.array([["a"]]), sigma=1.5)
    np.testing.assert_array_equal(read_images(path).images, STACK16)
    np.savez_compressed(path, images=STACK16, dark=FRAME16, count=np.arange(4))
    with pytest.raises(ValueError, match=r"images \(4, 9, 12\), dark \(9, 12\)$"):
        read_images(path)
    for stack in (read_images(path, array="dark"), read_images(f"{path}:dark")):
        np.testing.assert_array_equal(stack.images, FRAME16[np.newaxis])
        assert stack.names == ("data.npz",)
    with pytest.raises(ValueError, match=r"data\.npz: has no array 'light', it has images, dark"):
        read_images(path, array="light")
    with pytest.raises(ValueError, match=r"count: must have two axes .* got shape \(4,\)"):
        read_images(path, array="count")
    np.savez(path, count=np.arange(4))
    with pytest.raises(ValueError, match="no array of numbers with 2 or 3 axes"):
        read_images(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_objects_are_refused_not_unpickled(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    array = np.array([[{}, None]], dtype=object)
    if name == "a.npy":
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, array=array)
    with pytest.raises(ValueError, match=rf"{name}: .*(?i:object)"):
        read_images(path, array="array" if name == "a.npz" else None)


@pytest.mark.parametrize("dtype", [np.complex128, np.bool_, "U3"])
def test_other_than_real_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 3), dtype=dtype))
    with pytest.raises(ValueError, match=r"a\.npy: must hold real numbers, got dtype"):
        read_images(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(5,), (), (2, 2, 3, 3), (0, 3, 3)])
def test_wrong_axes_and_empty_arrays_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=rf"a\.npy: .*got shape \({str(shape)[1:-1]}\)"):
        read_images(tmp_path / "a.npy")


def test_fits_images_and_extensions(tmp_path: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    path = tmp_path / "frame.fits"
    fits.writeto(path, STACK16)  # 16-bit unsigned: stored big-endian, with an offset
    images = read_images(path).images
    np.testing.assert_array_equal(images, STACK16)
    assert images.dtype == np.uint16
    assert images.dtype.isnative
    fits.writeto(tmp_path / "packed.fits.gz", FRAME_FLOAT)
    np.testing.assert_array_equal(read_images(tmp_path / "packed.fits.gz").images[0], FRAME_FLOAT)
    units = [fits.PrimaryHDU(), fits.ImageHDU(FRAME_FLOAT, name="SCI"), fits.ImageHDU(FRAME8)]
    table = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.arange(3.0))])
    fits.HDUList([*units, table]).writeto(tmp_path / "many.fits")
    with pytest.raises(ValueError, match=r"many\.fits: several .* SCI \(9, 12\), 2 \(9, 12\)"):
        read_images(tmp_path / "many.fits")
    named = read_images(tmp_path / "many.fits", array="SCI")
    np.testing.assert_array_equal(named.images[0], FRAME_FLOAT)
    np.testing.assert_array_equal(read_images(f"{tmp_path}/many.fits:2").images[0], FRAME8)
    content = path.read_bytes()
    for part in (100, len(content) - 2880):
        path.write_bytes(content[:part])
        with pytest.raises(ValueError, match=r"frame\.fits: not a readable FITS file: "):
            read_images(path)


def test_fits_without_astropy_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frame.fits").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    with pytest.raises(ValueError, match=r"frame\.fits: .*csunmix\[fits\]"):
        read_images(tmp_path / "frame.fits")


def test_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for k in (10, 2, 1):
        Image.fromarray(np.full((3, 4), k, dtype=np.uint8)).save(tmp_path / f"image_{k}.png")
    Image.fromarray(np.full((3, 4), 300, dtype=np.uint16)).save(tmp_path / "image_11.TIF")
    for other in ("notes.txt", "image_3.npy", "._image_1.png"):
        (tmp_path / other).write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    stack = read_images(tmp_path)
    assert stack.names == ("image_1.png", "image_2.png", "image_10.png", "image_11.TIF")
    np.testing.assert_array_equal(stack.images[:, 2, 3], [1, 2, 10, 300])


def test_folder_needs_images_of_one_shape(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="has no images"):
        read_images(tmp_path)
    for k, shape in {1: (3, 4), 2: (3, 4), 3: (4, 3), 4: (5, 5)}.items():
        write_png(tmp_path / f"image_{k}.png", np.zeros(shape))
    with pytest.raises(ValueError, match=r"image_3\.png: .*\(4, 3\).*image_1\.png.*\(3, 4\)"):
        read_images(tmp_path)


def test_equal_channels_are_grey_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "colour.png"
    grey = np.stack([FRAME8] * 3, axis=-1)
    opaque = np.dstack([grey, np.full(FRAME8.shape, 255, dtype=np.uint8)])
    for image in (grey, opaque, opaque[..., 2:]):
        Image.fromarray(image).save(path)
        np.testing.assert_array_equal(read_images(path).images, FRAME8[np.newaxis])
    coloured = grey.copy()
    coloured[8, 11, 2] ^= 1
    transparent = opaque.copy()
    transparent[0, 0, 3] = 254
    for image, reason in ((coloured, "channels differ"), (transparent, "transparent pixels")):
        Image.fromarray(image).save(path)
        with pytest.raises(ValueError, match=rf"colour\.png: .*{reason}"):
            read_images(path)


@pytest.mark.parametrize(("mode", "reason"), [("P", "palette"), ("1", "1 bit"), ("CMYK", "CMYK")])
def test_modes_without_grey_levels_are_refused(tmp_path: Path, mode: str, reason: str) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(FRAME8).convert(mode).save(path)
    with pytest.raises(ValueError, match=rf"image\.tif: .*{reason}"):
        read_images(path)


def test_16_bit_colour_is_refused_not_cut_to_8(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)  # 2 x 1 px, 16 bit, RGB
    pixels = b"\x00" + struct.pack(">6H", 300, 300, 300, 301, 301, 301)
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=r"deep\.png: .*16-bit colour"):
        read_images(tmp_path / "deep.png")


def test_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in (FRAME8, 255 - FRAME8)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"a\.png: .*animated"):
        read_images(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "tif", "npy", "npz"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"bad.{suffix}"
    if suffix in ("png", "tif"):
        Image.fromarray(FRAME8).save(path)
    else:
        (np.save if suffix == "npy" else np.savez)(path, FRAME8)
    content = path.read_bytes()
    damaged = {"cut": content[: len(content) * 2 // 3], "text": b"not an image", "empty": b""}
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=rf"bad\.{suffix}: not a readable "):
        read_images(path)


@pytest.mark.parametrize("missing", [1, 4, 8, 12, 16, 20])
def test_png_without_its_end_is_refused(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "cut.png"
    write_png(path, FRAME8)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ValueError, match=r"cut\.png: not a readable PNG"):
        read_images(path)


@pytest.mark.parametrize("limit", [40, 80])
def test_decompression_bomb_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    write_png(tmp_path / "huge.png", FRAME8)  # 108 pixels: above twice 40, above 80
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"huge\.png: .*exceeds limit"):
        read_images(tmp_path / "huge.png")


def test_paths_that_cannot_be_meant(tmp_path: Path) -> None:
    for missing in ("missing.png", "missing.npz:images"):
        with pytest.raises(FileNotFoundError, match=missing):
            read_images(tmp_path / missing)
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"table\.csv: unknown kind of file, .*\.png"):
        read_images(tmp_path / "table.csv")
    write_png(tmp_path / "image.png", FRAME8)
    with pytest.raises(ValueError, match=r"image\.png: array='images' is given"):
        read_images(tmp_path / "image.png", array="images")


def test_psf_from_every_kind_of_file(tmp_path: Path) -> None:
    psf = FRAME_FLOAT
    np.save(tmp_path / "psf.npy", psf.astype(np.float64))
    Image.fromarray(psf).save(tmp_path / "psf.tif")
    np.savez(tmp_path / "one.npz", kernel=psf, images=STACK16)
    np.savez(tmp_path / "prefix.npz", xy=FRAME8, psf_os=psf, psf_sigma=1.0)
    np.savez(tmp_path / "named.npz", psf_a=FRAME8, psf_b=psf)
    files = ["psf.npy", "psf.tif", "one.npz", "prefix.npz", "named.npz:psf_b"]
    for file in files:
        found = read_psf(tmp_path / file)
        np.testing.assert_array_equal(found, psf)
        assert found.dtype == (np.float64 if file == "psf.npy" else np.float32)
        assert not isinstance(found, np.memmap)
    np.testing.assert_array_equal(read_psf(tmp_path / "named.npz", array="psf_b"), psf)
    np.save(tmp_path / "counts.npy", FRAME8)
    assert read_psf(tmp_path / "counts.npy").dtype == np.float64


def test_psf_refusals(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", psf_a=FRAME8, psf_b=FRAME8, xy=FRAME8)
    with pytest.raises(ValueError, match=r"two\.npz: several .*psf_a \(9, 12\), psf_b"):
        read_psf(tmp_path / "two.npz")
    np.savez(tmp_path / "none.npz", images=STACK16)
    with pytest.raises(ValueError, match=r"none\.npz: has no array of numbers with 2 axes"):
        read_psf(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"images: must have two axes .* \(4, 9, 12\)"):
        read_psf(tmp_path / "none.npz", array="images")
    with pytest.raises(FileNotFoundError):
        read_psf(tmp_path / "missing.npy")


def test_write_png_keeps_levels_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    write_png(path, FRAME8.astype(np.float64))
    np.testing.assert_array_equal(read_images(path).images[0], FRAME8)
    for bad in (255.5, 256, -1, np.nan):
        with pytest.raises(ValueError, match="image must be"):
            write_png(path, np.array([[0.0, bad]]))
    with pytest.raises(ValueError, match=r"got 1.5 at index \(1, 0, 2\)"):
        as_uint8([[[0, 1, 2]], [[3, 4, 1.5]]])
    with pytest.raises(ValueError, match="two axes"):
        write_png(path, STACK16 % 256)
    np.testing.assert_array_equal(read_images(path).images[0], FRAME8)
    assert os.listdir(tmp_path) == ["image.png"]


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"

    def fail() -> None:
        with atomic_write(path) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".csv"
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == ["table.csv"]
    assert path.read_text() == "whole"


def test_atomic_write_refuses_what_is_no_file_name(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path):
        pytest.fail("must not get here")
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_write(tmp_path / "nowhere/a"):
        pytest.fail("must not get here")
    with atomic_write(os.devnull) as temporary:
        temporary.write_text("gone")
    assert not Path(os.devnull).is_file()


def test_natural_key_orders_numbers_by_value() -> None:
    names = ["a10", "a9b2", "b1", "a", "a9b10", "A2", "7", "a02", "10"]
    ordered = ["7", "10", "a", "A2", "a02", "a9b2", "a9b10", "a10", "b1"]
    assert sorted(names, key=natural_key) == ordered
    assert sorted(ordered, key=natural_key) == ordered


@pytest.mark.skipif("CSUNMIX_DATA" not in os.environ, reason="CSUNMIX_DATA is not set")
def test_measured_data() -> None:
    path = Path(os.environ["CSUNMIX_DATA"]) / "wise_2mass_blends" / "blends.npz"
    stack = read_images(path, array="images")
    assert stack.images.shape == (86, 21, 21)
    with pytest.raises(ValueError, match=r"images \(86, 21, 21\)"):
        read_images(path)
    psf = read_psf(path)
    assert psf.shape == (97, 97)
    assert psf.sum() / 16 == pytest.approx(1.0, abs=1e-3)  # 4 samples a pixel along each axis
    assert np.unravel_index(psf.argmax(), psf.shape) == (48, 48)
