"""Image files that are written in bands, and can be resumed after the process was killed.

Everything is written beside the file that was asked for, and moved there when it is whole. Formats that only
take whole images get theirs from rows that were collected in a file.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from overlap_tool.errors import ImageFileError
from overlap_tool.files.formats.pictures import ICC_PROFILE, library
from overlap_tool.files.formats.rows import RowsFile
from overlap_tool.geometry.walk import Area

CHUNK = (256, 1024)
"""Rows and columns of a chunk of a Zarr array."""

WITH_PROFILE = (".png", ".webp", ".tif", ".tiff")
"""What keeps the colour profile of an image."""
IN_BANDS = (".zarr", ".npy", ".tif", ".tiff")
WHOLE = {
    ".png": {(1, "uint8"), (3, "uint8"), (1, "uint16")},
    ".webp": {(3, "uint8")},
    ".bmp": {(1, "uint8"), (3, "uint8")},
}
"""What Pillow writes without a loss: channels and their type."""

INSTEAD = "Use .png, .tif, .zarr or .npy"


class Output(Protocol):
    """An image that is being written."""

    def write(self, start: int, rows: NDArray[Any]) -> int:
        """Add rows that follow those before; and how many rows from the first one on are on the disk."""
        ...

    def finish(self) -> Path:
        """The file, or folder, when all rows are there."""
        ...


def open_output(
    target: Path,
    folder: Path,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    begun: bool,
    profile: bytes | None = None,
) -> Output:
    """What becomes `target`, in `folder`; with `begun`, what an earlier process has left of it there."""
    kind = target.suffix.lower()
    refuse_unwritable(target, shape, dtype, begun)
    if kind == ".zarr":
        return _Zarr(folder / "image.zarr", shape, dtype, begun)
    if kind == ".npy":
        return _Rows(_npy(folder / "image.npy", shape, dtype, begun))
    if kind in (".tif", ".tiff"):
        return _Rows(_tiff(folder / f"image{kind}", shape, dtype, begun, profile))
    rows = RowsFile(folder / "rows", shape, dtype)
    return _Pillow(rows if begun else rows.create(), folder / f"image{kind}", profile)


def refuse_unwritable(
    target: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], resume: bool = False
) -> None:
    """Refuse an output before any work is done. What is resumed has taken a part of its room already."""
    where, kind = str(target), target.suffix.lower()
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
    if kind in IN_BANDS:
        return
    if kind in (".jpg", ".jpeg"):
        raise ImageFileError(where, "JPEG would lose what was decoded", INSTEAD)
    if kind not in WHOLE:
        raise ImageFileError(where, f"no format is known by the ending {kind or 'of this name'}", INSTEAD)
    if (shape[2], dtype.name) not in WHOLE[kind]:
        raise ImageFileError(where, f"{kind} does not hold {shape[2]} channels of {dtype}", INSTEAD)
    if kind == ".webp" and max(shape[:2]) > 16383:
        raise ImageFileError(where, "WebP holds at most 16383 pixels a side", INSTEAD)


class _Rows:
    """A format that is nothing but a head and rows."""

    def __init__(self, file: RowsFile) -> None:
        self.file = file

    def write(self, start: int, rows: NDArray[Any]) -> int:
        self.file.write(start, rows)
        return start + len(rows)

    def finish(self) -> Path:
        return self.file.path


class _Pillow(_Rows):
    def __init__(self, file: RowsFile, path: Path, profile: bytes | None) -> None:
        super().__init__(file)
        self.path = path
        self.profile = profile

    def finish(self) -> Path:
        from PIL import Image

        values = self.file.read(0, self.file.shape[0])
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        options: dict[str, Any] = {"lossless": True} if self.path.suffix == ".webp" else {}
        image.save(self.path, **options, icc_profile=self.profile)
        return self.path


class WholeChunks:
    """An area of a Zarr array, filled in bands. Only whole chunks are written, so that none is ever read back
    and changed: the area begins at a chunk, and ends at one or with the array."""

    def __init__(self, array: Any, area: Area) -> None:
        self.array = array
        self.area = area
        self.high = array.chunks[0]
        self.waiting: list[NDArray[Any]] = []
        self.written: int | None = None

    def write(self, start: int, rows: NDArray[Any]) -> int:
        """Add a band, by its first row in the array; and how far the area is written."""
        if self.written is None:
            self.written = -(-start // self.high) * self.high
        rows = rows[max(0, self.written - start) :] if not self.waiting else rows
        self.waiting.append(rows)
        together = np.concatenate(self.waiting)
        ready = len(together) // self.high * self.high
        if self.written + len(together) == self.area.rows.stop:
            ready = len(together)
        if ready:
            self.array[self.written : self.written + ready, slice(*self.area.columns)] = together[:ready]
        self.written += ready
        self.waiting = [together[ready:]] if len(together) > ready else []
        return self.written


class _Zarr:
    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], begun: bool) -> None:
        zarr = library("zarr")
        self.path = path
        if begun:
            array = zarr.open_array(store=str(path), mode="r+")
        else:
            chunks = (min(CHUNK[0], shape[0]), min(CHUNK[1], shape[1]), shape[2])
            array = zarr.open_array(store=str(path), mode="w", shape=shape, chunks=chunks, dtype=dtype)
        self.chunks = WholeChunks(array, Area.whole(*shape[:2]))

    def write(self, start: int, rows: NDArray[Any]) -> int:
        return self.chunks.write(start, rows)

    def finish(self) -> Path:
        return self.path


def _npy(path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], begun: bool) -> RowsFile:
    if not begun:
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
        return RowsFile(path, shape, dtype, offset).create()
    return RowsFile(path, shape, dtype, np.load(path, mmap_mode="r").offset)


def _tiff(
    path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], begun: bool, profile: bytes | None
) -> RowsFile:
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
        return RowsFile(path, shape, file.pages[0].dtype, file.pages[0].dataoffsets[0])
