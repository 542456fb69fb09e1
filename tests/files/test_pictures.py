"""Image files in, image files out: every format, in bands, and what is refused."""

from __future__ import annotations

import logging
import os
import struct
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image, ImageOps
from support.confined import confined
from support.photographs import photograph, rows_of

from overlap_tool.errors import ImageFileError
from overlap_tool.files.formats import outputs
from overlap_tool.files.formats.arrays import ArrayForm
from overlap_tool.files.formats.outputs import CHUNK, open_output
from overlap_tool.files.formats.pictures import open_picture, read_window
from overlap_tool.files.formats.pixels import refuse_channels
from overlap_tool.geometry import Span

COLOUR = photograph("chelsea", 83, 131)
GREY = photograph("camera", 83, 131)
DEEP = COLOUR.astype(np.uint16) * 257 + 1
WITH_ALPHA = np.dstack([COLOUR, GREY])
DEEP_GREY = GREY.astype(np.uint16) * 255 + 3


def _zarr(path: Path, values) -> None:
    zarr.open_array(
        store=str(path), mode="w", shape=values.shape, chunks=(30, 40, *values.shape[2:]), dtype=values.dtype
    )[:] = values


def _tiff(photometric="rgb", **options):
    return lambda path, values: tifffile.imwrite(
        path, values, photometric=photometric, metadata=None, **options
    )


def _pillow(**options):
    return lambda path, values: Image.fromarray(values).save(path, **options)


WRITTEN = {
    "png": ("a.png", _pillow(), COLOUR),
    "png-grey": ("a.png", _pillow(), GREY),
    "png-grey-16": ("a.png", _pillow(), DEEP_GREY),
    "webp": ("a.webp", _pillow(lossless=True), COLOUR),
    "npy": ("a.npy", np.save, COLOUR),
    "npy-grey-16": ("a.npy", np.save, DEEP_GREY),
    "npy-fortran": ("a.npy", lambda path, values: np.save(path, np.asfortranarray(values)), DEEP),
    "npy-big-endian": ("a.npy", lambda path, values: np.save(path, values.astype(">u2")), DEEP),
    "zarr": ("a.zarr", _zarr, COLOUR),
    "zarr-grey": ("a.zarr", _zarr, DEEP_GREY),
    "tiff": ("a.tif", _tiff(), COLOUR),
    "tiff-strips": ("a.tif", _tiff(rowsperstrip=7, compression="zlib"), DEEP),
    "tiff-predicted": (
        "a.tif",
        _tiff(rowsperstrip=7, compression="zlib", predictor=True),
        COLOUR,
    ),
    "tiff-tiles": ("a.tiff", _tiff(tile=(32, 48), compression="zlib"), COLOUR),
    "tiff-tiles-grey": ("a.tif", _tiff(photometric="minisblack", tile=(16, 16)), DEEP_GREY),
    "bigtiff-big-endian": (
        "a.tif",
        _tiff(bigtiff=True, byteorder=">", tile=(32, 32)),
        DEEP,
    ),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_any_rectangle_of_any_format(tmp_path, kind) -> None:
    name, write, values = WRITTEN[kind]
    write(tmp_path / name, values)
    picture = open_picture(tmp_path / name)
    expected = values if values.ndim == 3 else values[..., None]
    assert picture.shape == expected.shape
    for start, stop in ((0, 83), (0, 1), (29, 34), (31, 65), (82, 83)):
        for left, right in ((0, 131), (0, 1), (15, 48), (130, 131)):
            found = picture.read(Span(start, stop), Span(left, right))
            assert np.array_equal(found, expected[start:stop, left:right]), (start, stop, left, right)


def test_planes_that_stand_apart(tmp_path) -> None:
    for options in ({"rowsperstrip": 9}, {"tile": (32, 16)}):
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.ascontiguousarray(COLOUR.transpose(2, 0, 1)),
            photometric="rgb",
            planarconfig="separate",
            **options,
        )
        picture = open_picture(tmp_path / "a.tif")
        assert picture.shape == COLOUR.shape
        assert np.array_equal(rows_of(picture, 5, 70), COLOUR[5:70])


def test_jpeg_and_the_way_up(tmp_path) -> None:
    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "a.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "a.jpg") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    picture = open_picture(tmp_path / "a.jpg")
    assert picture.shape == (131, 83, 3)
    assert np.array_equal(rows_of(picture, 0, 131), expected)


def _png_of_16_bits(path: Path) -> None:
    """RGB of 16 bits a sample, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    head = struct.pack(">IIBBBBB", DEEP.shape[1], DEEP.shape[0], 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _cut_off(path: Path) -> None:
    Image.fromarray(COLOUR).save(path)
    path.write_bytes(path.read_bytes()[:900])


REFUSED = {
    "none.png": (lambda path: None, "no such file"),
    "text.png": (lambda path: path.write_text("hello"), "cannot be read"),
    "cut.png": (_cut_off, "cannot be read"),
    "alpha.png": (_pillow(), WITH_ALPHA, "alpha channel.*Flatten"),
    "alpha.tif": (_tiff(extrasamples=["unassalpha"]), WITH_ALPHA, "alpha channel.*Flatten"),
    "deep.png": (_png_of_16_bits, "16 bits as 8.*TIFF"),
    "stack.tif": (_tiff(photometric="minisblack"), np.stack([GREY, GREY]), "several pages"),
    "float.npy": (np.save, GREY / 255, "float64.*8 or 16 bits"),
    "signed.npy": (np.save, GREY.astype(np.int16), "int16"),
    "four.npy": (np.save, GREY[None, None], "rows, columns and channels"),
    "empty.npy": (np.save, COLOUR[:0], "empty"),
    "object.npy": (np.save, np.array([{}]), "cannot be read"),
    "cmyk.jpg": (lambda path, values: Image.fromarray(values).convert("CMYK").save(path), COLOUR, "CMYK"),
    "several.webp": (
        lambda path, values: Image.fromarray(values).save(
            path, save_all=True, append_images=[Image.fromarray(values[::-1])]
        ),
        COLOUR,
        "frames",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name) -> None:
    write, *values, reason = REFUSED[name]
    write(tmp_path / name, *values)
    with pytest.raises(ImageFileError, match=reason):
        open_picture(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.zarr"])
def test_a_link_that_leads_nowhere_is_told_as_such(tmp_path, name) -> None:
    os.symlink(name, tmp_path / name)
    with pytest.raises(ImageFileError, match="it is a link that leads back to itself"):
        open_picture(tmp_path / name)
    os.symlink("gone", tmp_path / f"to-{name}")
    with pytest.raises(ImageFileError, match="it is a link to gone, and there is no such file"):
        open_picture(tmp_path / f"to-{name}")


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(
    "layout", [{}, {"tile": (32, 48)}, {"rowsperstrip": 7}, {"tile": (16, 16), "planarconfig": "separate"}]
)
def test_an_image_is_turned_as_its_file_says(tmp_path, suffix, orientation, layout) -> None:
    """As Pillow turns it, whole or in bands; numbers that EXIF does not know turn nothing."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tag = [(274, "H", 1, orientation, True)]
        values = np.moveaxis(COLOUR, 2, 0) if "planarconfig" in layout else COLOUR
        _tiff(extratags=tag, **layout)(path, values)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        _pillow(lossless=True, exif=exif)(path, COLOUR)
    tagged = Image.fromarray(COLOUR)
    tagged.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    found = open_picture(path)
    assert found.shape == expected.shape
    assert np.array_equal(rows_of(found, 0, found.shape[0]), expected)
    for start, stop in pairwise([0, 1, 20, 33, found.shape[0]]):
        for left, right in pairwise([0, 1, 20, 33, found.shape[1]]):
            window = found.read(Span(start, stop), Span(left, right))
            assert np.array_equal(window, expected[start:stop, left:right])


@pytest.mark.parametrize("compression", [5, 7])  # LZW and JPEG
def test_a_library_that_a_compression_needs_is_named(tmp_path, monkeypatch, compression) -> None:
    def unknown(decompressors, key):
        raise KeyError(f"{key} requires the 'imagecodecs' package")

    _tiff()(tmp_path / "a.tif", COLOUR)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags[259].overwrite(compression)
    monkeypatch.setattr(type(tifffile.TIFF.DECOMPRESSORS), "__getitem__", unknown)
    with pytest.raises(ImageFileError, match=r"imagecodecs is needed\. Run pip install imagecodecs$"):
        open_picture(tmp_path / "a.tif")


def test_an_unknown_compression_is_refused_when_it_is_opened(tmp_path) -> None:
    _tiff()(tmp_path / "a.tif", COLOUR)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags[259].overwrite(12345)
    with pytest.raises(ImageFileError, match="compressed by 12345, which is not known"):
        open_picture(tmp_path / "a.tif")


def test_a_damaged_tiff_is_one_message_without_a_log(tmp_path, monkeypatch, capsys) -> None:
    _tiff()(tmp_path / "a.tif", COLOUR)
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:60])
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process that has set up no logs
    with pytest.raises(ImageFileError, match="cannot be read"):
        open_picture(tmp_path / "a.tif")
    assert capsys.readouterr() == ("", "")


def test_chunks_that_are_missing_are_counted(tmp_path) -> None:
    _zarr(tmp_path / "a.zarr", COLOUR)
    assert open_picture(tmp_path / "a.zarr").missing == ""
    chunks = [path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file() and path.suffix != ".json"]
    chunks = [path for path in chunks if not path.name.startswith(".z")]
    assert len(chunks) == 12
    for chunk in chunks[:5]:
        chunk.unlink()
    assert open_picture(tmp_path / "a.zarr").missing == (
        "5 of 12 chunks are not there, and are read as its fill value, 0"
    )


def test_tiles_that_were_never_written_are_counted(tmp_path) -> None:
    _tiff(tile=(32, 48))(tmp_path / "a.tif", COLOUR)
    assert open_picture(tmp_path / "a.tif").missing == ""
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        tag = file.pages[0].tags[325]
        tag.overwrite([0, *tag.value[1:]])
    found = open_picture(tmp_path / "a.tif")
    assert found.missing == "1 of 9 tiles or strips are not there, and are read as 0"
    expected = COLOUR.copy()
    expected[:32, :48] = 0
    assert np.array_equal(rows_of(found, 0, 83), expected)


PROFILE = b"\x00\x00\x01\x00 a profile" + bytes(range(256))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.tif"])
def test_a_colour_profile_is_read(tmp_path, name) -> None:
    if name == "a.tif":
        _tiff(extratags=[(34675, 7, len(PROFILE), PROFILE, True)])(tmp_path / name, COLOUR)
    else:
        _pillow(icc_profile=PROFILE)(tmp_path / name, COLOUR)
    assert open_picture(tmp_path / name).profile == PROFILE


@pytest.mark.parametrize("suffix", outputs.WITH_PROFILE)
def test_a_colour_profile_is_kept(tmp_path, suffix) -> None:
    target = tmp_path / f"a{suffix}"
    output = open_output(
        target, tmp_path, ArrayForm("image", COLOUR.shape), COLOUR.dtype, begun=False, profile=PROFILE
    )
    output.write(0, COLOUR)
    found = open_picture(output.finish())
    assert found.profile == PROFILE
    assert np.array_equal(rows_of(found, 0, 83), COLOUR)
    with Image.open(output.finish()) as seen:
        assert seen.info["icc_profile"] == PROFILE


def test_a_picture_too_large_to_be_decoded_whole(tmp_path, monkeypatch) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageFileError, match=r"too large to be decoded whole.*TIFF, Zarr or \.npy"):
        open_picture(tmp_path / "a.png")


def test_channels_have_to_fit(tmp_path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    grey = open_picture(tmp_path / "a.npy")
    refuse_channels("a", grey, 3)
    refuse_channels("a", grey, 1)
    np.save(tmp_path / "b.npy", np.dstack([COLOUR, GREY]))
    with pytest.raises(ImageFileError, match=r"4 channels.*alpha"):
        refuse_channels("b", open_picture(tmp_path / "b.npy"), 3)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageFileError, match=r"tifffile.*overlap-tool\[files\]"):
        open_picture(tmp_path / "a.tif")


def _back(path: Path) -> np.ndarray:
    return rows_of(open_picture(path), 0, open_picture(path).shape[0])


SAMPLES = {"rgb": COLOUR, "l": GREY[..., None], "rgb16": DEEP, "l16": DEEP_GREY[..., None]}
HELD = {".png": {"rgb", "l", "l16"}, ".webp": {"rgb"}}
"""By formats that do not hold all of them."""


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.npy", "a.zarr"])
@pytest.mark.parametrize("kind", SAMPLES)
def test_written_in_bands_and_gone_on_with(tmp_path, monkeypatch, name, kind) -> None:
    """Stopped after any band, and gone on with from what was said to be on the disk."""
    monkeypatch.setattr("overlap_tool.files.formats.outputs.CHUNK", (20, 50))
    values = SAMPLES[kind]

    def begin(folder: Path, begun: bool):
        return open_output(tmp_path / name, folder, ArrayForm("image", values.shape), values.dtype, begun)

    if kind not in HELD.get(Path(name).suffix, SAMPLES):
        with pytest.raises(ImageFileError, match="does not hold"):
            begin(tmp_path, begun=False)
        return
    bands = list(pairwise([0, 13, 27, 45, 60, 83]))
    for stop in range(len(bands)):
        folder = tmp_path / str(stop)
        folder.mkdir()
        durable = 0
        output = begin(folder, begun=False)
        for start, end in bands[:stop]:
            durable = output.write(start, values[start:end])
        output = begin(folder, begun=durable > 0)
        for start, end in bands:
            if end > durable:
                output.write(start, values[start:end])
        assert np.array_equal(_back(output.finish()), values)


def test_chunks_are_tiles_of_the_array(tmp_path) -> None:
    form = ArrayForm("image", (2000, 3000, 3))
    output = open_output(tmp_path / "a.zarr", tmp_path, form, np.dtype(np.uint8), begun=False)
    assert zarr.open_array(store=str(output.finish()), mode="r").chunks == (*CHUNK, 3)


def test_a_full_disk_is_seen_before(tmp_path) -> None:
    form = ArrayForm("image", (1 << 20, 1 << 20, 3))
    with pytest.raises(ImageFileError, match="are free"):
        open_output(tmp_path / "a.npy", tmp_path, form, np.dtype(np.uint16), begun=False)


def _npy(path: Path, values) -> Path:
    np.save(path, values)
    return path


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("values", [COLOUR, DEEP, GREY], ids=["colour", "deep", "grey"])
def test_numpys_files_are_read_in_bands_whatever_lies_together_in_them(tmp_path, values, order) -> None:
    picture = open_picture(_npy(tmp_path / "in.npy", np.asarray(values, order=order)))
    expected = values if values.ndim == 3 else values[..., None]
    assert picture.shape == expected.shape
    for start, stop in ((0, len(values)), (7, 30), (60, 200)):
        assert np.array_equal(rows_of(picture, start, stop), expected[start:stop])


def test_a_file_of_numpys_that_is_cut_off_while_it_is_read(tmp_path) -> None:
    """What is mapped then ends the process by SIGBUS."""
    path = _npy(tmp_path / "in.npy", np.zeros((2000, 500, 3), np.uint8))

    def work() -> None:
        picture = open_picture(path)
        os.truncate(path, 4096)
        with pytest.raises(ImageFileError, match="its rows from 1000 on cannot be read"):
            read_window(str(path), picture, Span(1000, 1100), Span(0, picture.shape[1]))

    ended = confined(work)
    assert ended.code == 0, ended.told


def test_a_file_of_numpys_that_is_shorter_than_it_says(tmp_path) -> None:
    path = _npy(tmp_path / "in.npy", COLOUR)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ImageFileError, match="ends before its samples do"):
        open_picture(path)
