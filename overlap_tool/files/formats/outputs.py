"""Image files that are written in bands, and can be resumed after the process was killed.

Everything is written beside the requested file, and moved there when it is complete. Formats that only take
whole images are encoded from rows collected in a file.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from overlap_tool.errors import ImageFileError
from overlap_tool.files.formats.addresses import Address, staging
from overlap_tool.files.formats.arrays import NAMED, ArrayFile, ArrayForm
from overlap_tool.files.formats.pictures import ICC_PROFILE, library
from overlap_tool.geometry import Span
from overlap_tool.geometry.layout import Kind
from overlap_tool.geometry.walk import Area

CHUNK = (256, 1024)
"""Rows and columns of a chunk of a Zarr array, with all channels; a chunk of sound has as many samples."""
CUBE = 64
"""The side of a chunk of a volume, of one channel."""

WITH_PROFILE = (".png", ".webp", ".tif", ".tiff")
"""Formats that keep an image's colour profile."""
OF_ARRAYS = (".zarr", ".npy")
IN_BANDS = (*OF_ARRAYS, ".tif", ".tiff")
WHOLE = {
    ".png": {(1, "uint8"), (3, "uint8"), (1, "uint16")},
    ".webp": {(3, "uint8")},
    ".bmp": {(1, "uint8"), (3, "uint8")},
}
"""Formats that Pillow writes without loss, with their channels and sample types."""

INSTEAD = "Use .png, .tif, .zarr or .npy"


class Output(Protocol):
    """An image that is being written."""

    def write(self, start: int, rows: NDArray[Any]) -> int:
        """Append rows; returns how many rows from the first one on are on disk."""
        ...

    def finish(self) -> Path:
        """The file, or folder, once all rows are written."""
        ...


def open_output(
    target: Path,
    folder: Path,
    form: ArrayForm,
    dtype: np.dtype[Any],
    begun: bool,
    profile: bytes | None = None,
) -> Output:
    """What becomes `target`, in `folder`; `begun` continues what an earlier process left there."""
    suffix = target.suffix.lower()
    refuse_unwritable(target, form, dtype, begun)
    if suffix == ".zarr":
        place = staging(target) if isinstance(target, Address) else folder / "image.zarr"
        return _Zarr(place, form, dtype, begun)
    if suffix == ".npy":
        return _Rows(_npy(folder / "image.npy", form.shape, dtype, begun), form)
    if suffix in (".tif", ".tiff"):
        return _Rows(_tiff(folder / f"image{suffix}", form.as_image, dtype, begun, profile), form)
    rows = ArrayFile(folder / "rows", form.as_image, dtype)
    return _Pillow(rows if begun else rows.create(), form, folder / f"image{suffix}", profile)


def refuse_unwritable(target: Path, form: ArrayForm, dtype: np.dtype[Any], resume: bool = False) -> None:
    """Raise for an impossible output before any work is done. A resumed one already has part of its space."""
    where, suffix, shape = str(target), target.suffix.lower(), form.as_image
    if isinstance(target, Address):
        if suffix != ".zarr":
            raise ImageFileError(where, "only Zarr is written to an address", "Name a .zarr, or a file")
        if target.exists():
            raise ImageFileError(where, "something is there already", "Remove it, or name another place")
        return
    if not target.parent.is_dir():
        raise ImageFileError(where, "its folder does not exist", "Make it, or name another file")
    if target.is_dir():
        raise ImageFileError(where, "there is a folder of that name", "Remove it, or name another file")
    needed, free = math.prod(shape) * dtype.itemsize, shutil.disk_usage(target.parent).free
    if needed > free and not resume:
        raise ImageFileError(
            where,
            f"its rows take {needed} bytes, and {free} are free",
            "Make room, or name a file on another disk",
        )
    if form.kind != "image" and suffix not in OF_ARRAYS:
        told = f"a file of images does not hold {NAMED[form.kind]}"
        raise ImageFileError(where, told, "Use .npy or .zarr")
    if suffix in IN_BANDS:
        return
    if suffix in (".jpg", ".jpeg"):
        raise ImageFileError(where, "JPEG is lossy, and would change the result", INSTEAD)
    if suffix not in WHOLE:
        raise ImageFileError(where, f"no format is known by the ending {suffix or 'of this name'}", INSTEAD)
    if (shape[2], dtype.name) not in WHOLE[suffix]:
        raise ImageFileError(where, f"{suffix} does not hold {shape[2]} channels of {dtype}", INSTEAD)
    if suffix == ".webp" and max(shape[:2]) > 16383:
        raise ImageFileError(where, "WebP holds at most 16383 pixels a side", INSTEAD)


class _Rows:
    """A format that consists of a header and rows."""

    def __init__(self, file: ArrayFile, form: ArrayForm) -> None:
        self.file = file
        self.form = form

    def write(self, start: int, rows: NDArray[Any]) -> int:
        stop = start + len(rows)
        self.file.write(self.form.array_of(rows), *self.form.box(Span(start, stop), Span(0, rows.shape[1])))
        return stop

    def finish(self) -> Path:
        return self.file.path


class _Pillow(_Rows):
    def __init__(self, file: ArrayFile, form: ArrayForm, path: Path, profile: bytes | None) -> None:
        super().__init__(file, form)
        self.path = path
        self.profile = profile

    def finish(self) -> Path:
        from PIL import Image

        values = self.file.read()
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        options: dict[str, Any] = {"lossless": True} if self.path.suffix == ".webp" else {}
        image.save(self.path, **options, icc_profile=self.profile)
        return self.path


class WholeChunks:
    """An area of a Zarr array, filled in bands. Only whole chunks are written, so that none is read back and
    changed: the area begins at a chunk, and ends at one or with the array."""

    def __init__(self, array: Any, area: Area, kind: Kind = "image") -> None:
        self.array = array
        self.area = area
        self.form = ArrayForm(kind, array.shape)
        self.high, *_ = ArrayForm(kind, array.chunks).as_image
        self.waiting: list[NDArray[Any]] = []
        self.written: int | None = None

    def write(self, start: int, rows: NDArray[Any]) -> int:
        """Add a band, by its first row in the array; returns up to which row the area is written."""
        if self.written is None:
            self.written = -(-start // self.high) * self.high
        rows = rows[max(0, self.written - start) :] if not self.waiting else rows
        self.waiting.append(rows)
        together = np.concatenate(self.waiting)
        ready = len(together) // self.high * self.high
        if self.written + len(together) == self.area.rows.stop:
            ready = len(together)
        if ready:
            box = self.form.box(Span(self.written, self.written + ready), self.area.columns)
            self.array[tuple(slice(*span) for span in box)] = self.form.array_of(together[:ready])
        self.written += ready
        self.waiting = [together[ready:]] if len(together) > ready else []
        return self.written


class _Zarr:
    def __init__(self, path: Path, form: ArrayForm, dtype: np.dtype[Any], begun: bool) -> None:
        zarr = library("zarr")
        self.path = path
        if begun:
            array = zarr.open_array(store=str(path), mode="r+")
        else:
            shape, chunks = form.shape, tuple(map(min, form.shape, _chunks(form)))
            array = zarr.open_array(store=str(path), mode="w", shape=shape, chunks=chunks, dtype=dtype)
        self.chunks = WholeChunks(array, Area.whole(*form.as_image[:2]), form.kind)

    def write(self, start: int, rows: NDArray[Any]) -> int:
        return self.chunks.write(start, rows)

    def finish(self) -> Path:
        return self.path


def _chunks(form: ArrayForm) -> tuple[int, ...]:
    before, _, behind = form.parts
    if form.kind == "volume":
        return (*[1] * (len(before) - 1), CUBE, CUBE, CUBE)
    return (*before, *(CHUNK if form.kind == "image" else [math.prod(CHUNK)]), *behind)


def _npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], begun: bool) -> ArrayFile:
    if not begun:
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
        return ArrayFile(path, shape, dtype, offset).create()
    return ArrayFile(path, shape, dtype, np.load(path, mmap_mode="r").offset)


def _tiff(
    path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], begun: bool, profile: bytes | None
) -> ArrayFile:
    tifffile = library("tifffile")
    if not begun:
        squeezed = shape if shape[2] > 1 else shape[:2]
        colours = "rgb" if shape[2] == 3 else "minisblack"
        extra = {"planarconfig": "contig"} if shape[2] > 1 else {}
        tags = [] if profile is None else [(ICC_PROFILE, 7, len(profile), profile, True)]
        tifffile.memmap(
            path, shape=squeezed, dtype=dtype, photometric=colours, metadata=None, extratags=tags, **extra
        )
    with tifffile.TiffFile(path) as file:
        return ArrayFile(path, shape, file.pages[0].dtype, file.pages[0].dataoffsets[0])
