"""Image files: size, channels, sample type, and any band of rows.

TIFF, Zarr and .npy are read in bands. Other formats are decoded whole, at a byte or two per sample. Volumes
and sound are read as images, as `arrays.ArrayForm` defines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from overlap_tool import bounds
from overlap_tool.errors import ImageFileError, why_absent
from overlap_tool.files.formats.addresses import Address, located
from overlap_tool.files.formats.arrays import NAMED, ArrayFile, ArrayForm
from overlap_tool.geometry import Span
from overlap_tool.geometry.layout import Kind
from overlap_tool.legible import first_line

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageFile import ImageFile as PillowFile

Opened = TypeVar("Opened")

SAMPLES = (np.dtype(np.uint8), np.dtype(np.uint16))
NUMBERS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
"""Types that a model takes unscaled, from files that are not images."""
READ: dict[Kind, tuple[np.dtype[Any], ...]] = {
    "image": SAMPLES,
    "volume": (*SAMPLES, *NUMBERS),
    "sound": (*SAMPLES, np.dtype(np.int16), *NUMBERS),
}
SAVED_SO = "Save such an array as .npy or Zarr"
IN_BANDS = "TIFF, Zarr or .npy, which are read in bands"
ORIENTATION, ICC_PROFILE, UNCOMPRESSED = 274, 34675, 1
"""Tags of TIFF, and the value of one."""
FLATTEN = "Flatten it onto a background first; in Pillow: Image.alpha_composite, then convert('RGB')"


class Picture(Protocol):
    """An open image of rows, columns and channels: samples of 8 or 16 bits or, if it is not an image,
    numbers."""

    form: ArrayForm
    """The form of the array in the file."""
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    piece: tuple[int, int]
    """Rows and columns of the unit of decoding."""
    profile: bytes | None
    """The ICC profile of its colours."""

    @property
    def missing(self) -> str:
        """Describes parts that are absent from the file, and what is read for them; empty if none is."""
        ...

    def read(self, rows: Span, columns: Span) -> NDArray[Any]:
        """A rectangle of it: rows, columns, channels."""
        ...


def open_picture(path: Path, kind: Kind = "image") -> Picture:
    """Open a file or Zarr folder of this kind; an image has samples of 8 or 16 bits without transparency."""
    path = located(path)
    picture = _explained(path, _opener(path, kind), kind)
    _refuse_strange_samples(str(path), picture, kind)
    _refuse_huge(str(path), picture, kind)
    return picture


def glance(path: Path, kinds: Sequence[Kind] = ("image",)) -> None:
    """Raise, as `open_picture` does for any of these kinds, as far as shows without decoding."""
    path = located(path)
    if _opener(path) is _pillow:
        return _explained(path, _header, *kinds).close()
    refusals = []
    for kind in kinds:
        try:
            open_picture(path, kind)
        except ImageFileError as refusal:
            refusals.append(refusal)
        else:
            return None
    # the last error that is not a library's failure to read the file
    raise next((each for each in refusals[::-1] if each.__cause__ is None), refusals[0])


def _explained(path: Path, opener: Callable[[Path], Opened], *kinds: Kind) -> Opened:
    where = str(path)
    if not isinstance(path, Address) and (absent := why_absent(path)):
        raise ImageFileError(where, absent, "Check the path")
    try:
        return opener(path)
    except ImageFileError:
        raise
    except MemoryError as error:
        raise ImageFileError(
            where, "there is not enough memory to decode it", f"Convert it to {IN_BANDS}"
        ) from error
    except Exception as error:  # libraries may raise anything for a damaged file
        raise ImageFileError(
            where,
            f"it cannot be read ({first_line(error)})",
            _way_out(path, kinds),
        ) from error


def _way_out(path: Path, kinds: Sequence[Kind]) -> str:
    if isinstance(path, Address):
        return "Give the address of a Zarr array; other files are read from this machine"
    if "image" not in kinds:
        return SAVED_SO
    more = "" if len(kinds) == 1 else "; volumes and sound are read from Zarr and .npy"
    return f"Give a PNG, JPEG, WebP, TIFF, Zarr or .npy image{more}"


def read_window(where: str, picture: Picture, rows: Span, columns: Span) -> NDArray[Any]:
    """Read a rectangle of a picture whose file may be damaged further down."""
    try:
        return picture.read(rows, columns)
    except Exception as error:  # libraries may raise anything for a damaged file
        raise ImageFileError(
            where,
            f"its rows from {rows.start} on cannot be read ({first_line(error)})",
            "Copy the file again",
        ) from error


class Whole:
    """A picture without missing parts or colour profile."""

    profile: bytes | None = None
    missing = ""


class Decoded(Whole):
    """An array in memory."""

    def __init__(self, values: NDArray[Any], profile: bytes | None = None) -> None:
        self.profile = profile
        self.form = ArrayForm("image", values.shape)
        self.shape = self.form.as_image
        self.values = values.reshape(self.shape)
        self.piece = 1, 1
        self.dtype = values.dtype

    def read(self, rows: Span, columns: Span) -> NDArray[Any]:
        return np.ascontiguousarray(self.values[slice(*rows), slice(*columns)])


class NumpyFile(Whole):
    """A .npy file. It is read and never mapped: truncating a mapped file kills the process."""

    def __init__(self, path: Path, kind: Kind = "image") -> None:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, self.backwards, self.dtype = header(file)
            begins = file.tell()
        self.form = ArrayForm(kind, shape)
        self.shape, self.piece = self.form.as_image, (1, 1)
        if self.dtype.hasobject:
            raise ValueError("it holds objects of Python")
        if min(self.shape) < 1:
            raise ValueError("it has no samples")
        if path.stat().st_size < begins + prod(self.shape) * self.dtype.itemsize:
            raise ValueError("the file ends before its samples do")
        self.file = ArrayFile(path, shape[::-1] if self.backwards else shape, self.dtype, begins)

    def read(self, rows: Span, columns: Span) -> NDArray[Any]:
        rows, columns = rows.clip(self.shape[0]), columns.clip(self.shape[1])
        box = self.form.box(rows, columns)
        if self.backwards:
            rest = (Span(0, n) for n in self.form.shape[len(box) :])
            part = self.file.read(*(*box, *rest)[::-1]).T
        else:
            part = self.file.read(*box)
        return np.ascontiguousarray(self.form.image_of(part, rows.length, columns.length))


class ZarrArray:
    profile: bytes | None = None

    def __init__(self, path: Path, kind: Kind = "image") -> None:
        zarr = library("zarr")
        self.array = zarr.open_array(store=str(path), mode="r")
        self.elsewhere = isinstance(path, Address)
        self.form = ArrayForm(kind, self.array.shape)
        self.shape = self.form.as_image
        self.dtype = np.dtype(self.array.dtype)
        high, wide, _ = ArrayForm(kind, self.array.chunks).as_image
        self.piece = high, wide

    @property
    def missing(self) -> str:
        if self.elsewhere:  # counting remote chunks would list all of them
            return ""
        lacking = self.array.nchunks - self.array.nchunks_initialized
        filled = f"chunks are not there, and are read as its fill value, {self.array.fill_value}"
        return f"{lacking} of {self.array.nchunks} {filled}" if lacking else ""

    def read(self, rows: Span, columns: Span) -> NDArray[Any]:
        part = np.asarray(self.array[tuple(slice(*span) for span in self.form.box(rows, columns))])
        return self.form.image_of(part, rows.length, columns.length)


class TiffPage:
    """The first page of a TIFF or BigTIFF, decoded tile by tile or strip by strip, oriented as its tag says.

    If a page in strips is rotated by a quarter turn, every band of rows requires decoding all of it.
    """

    def __init__(self, path: Path) -> None:
        tifffile = library("tifffile")
        self.file = tifffile.TiffFile(path)
        page = self.page = self.file.pages[0]
        where = str(path)
        if len(self.file.series[0].pages) > 1:
            raise ImageFileError(
                where, "it is a stack of several pages", "Save one page as a file of its own"
            )
        if page.extrasamples and page.photometric.name == "RGB":
            raise ImageFileError(where, "it has an alpha channel", FLATTEN)
        if page.photometric.name not in ("MINISBLACK", "RGB", "YCBCR"):
            raise ImageFileError(
                where,
                f"its colours are given as {page.photometric.name}",
                "Save it as RGB, or as grey from black",
            )
        _refuse_undecodable(where, page, tifffile)
        profile = page.tags.valueof(ICC_PROFILE)
        self.profile = profile if isinstance(profile, bytes) else None
        self.turn = Orientation.of(page.tags.valueof(ORIENTATION))
        self.planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self.stored = page.imagelength, page.imagewidth
        self.shape = (*self.turn.size(*self.stored), page.samplesperpixel)
        self.form = ArrayForm("image", self.shape)
        self.dtype = np.dtype(page.dtype)
        high, wide = (
            (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        )
        self.high, self.wide = min(high, self.stored[0]) if not page.is_tiled else high, wide
        self.piece = self.high, self.wide
        self.across, self.down = -(-self.stored[1] // self.wide), -(-self.stored[0] // self.high)

    @property
    def missing(self) -> str:
        counts = self.page.databytecounts
        lacking = sum(not count for count in counts)
        filled = f"tiles or strips are not there, and are read as {self.page.nodata}"
        return f"{lacking} of {len(counts)} {filled}" if lacking else ""

    def read(self, rows: Span, columns: Span) -> NDArray[Any]:
        return self.turn.read(self._window, self.stored, rows, columns)

    def _window(self, rows: range, columns: range) -> NDArray[Any]:
        """A rectangle of the image as stored; each tile or strip that it meets is decoded once."""
        found = np.full((len(rows), len(columns), self.shape[2]), self.page.nodata, self.dtype)
        for plane in range(self.planes):
            channels = slice(plane, plane + 1) if self.planes > 1 else slice(None)
            for row in range(rows.start // self.high, -(-rows.stop // self.high)):
                for column in range(columns.start // self.wide, -(-columns.stop // self.wide)):
                    segment = self._segment((plane * self.down + row) * self.across + column)
                    if segment is not None:
                        to, of = _common(rows, row * self.high, segment.shape[0])
                        across, along = _common(columns, column * self.wide, segment.shape[1])
                        found[to, across, channels] = segment[of, along]
        return found

    def _segment(self, index: int) -> NDArray[Any] | None:
        """One decoded tile or strip; None if it was never written."""
        if not self.page.databytecounts[index]:
            return None
        handle = self.file.filehandle
        handle.seek(self.page.dataoffsets[index])
        data = handle.read(self.page.databytecounts[index])
        values, _, _ = self.page.decode(data, index, jpegtables=self.page.jpegtables)
        return None if values is None else values[0]


@dataclass(frozen=True)
class Orientation:
    """How an image is displayed: its rows and columns exchanged, then mirrored, then flipped upside down."""

    exchanged: bool = False
    mirrored: bool = False
    upside_down: bool = False

    @staticmethod
    def of(orientation: object) -> Orientation:
        """By EXIF's number; any other number means no change."""
        if orientation not in range(1, 9):
            return Orientation()
        return Orientation(
            orientation in (5, 6, 7, 8), orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
        )

    def size(self, height: int, width: int) -> tuple[int, int]:
        return (width, height) if self.exchanged else (height, width)

    def read(
        self,
        window: Callable[[range, range], NDArray[Any]],
        stored: tuple[int, int],
        rows: Span,
        columns: Span,
    ) -> NDArray[Any]:
        """A rectangle of the displayed image, from a window of the stored one."""
        height, width = self.size(*stored)
        down = range(height - rows.stop, height - rows.start) if self.upside_down else range(*rows)
        across = range(width - columns.stop, width - columns.start) if self.mirrored else range(*columns)
        found = window(across, down).swapaxes(0, 1) if self.exchanged else window(down, across)
        return np.ascontiguousarray(found[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1])


def _common(wanted: range, start: int, length: int) -> tuple[slice, slice]:
    """The overlap of a segment and a wanted span, relative to either."""
    first, last = max(wanted.start, start), min(wanted.stop, start + length)
    return slice(first - wanted.start, last - wanted.start), slice(first - start, last - start)


def _refuse_undecodable(where: str, page: Any, tifffile: Any) -> None:
    try:
        if page.compression != UNCOMPRESSED:
            tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        reason = f"its samples are compressed by {getattr(page.compression, 'name', page.compression)}"
        if "imagecodecs" in str(error):
            raise ImageFileError(
                where, f"{reason}, for which imagecodecs is needed", "Run pip install imagecodecs"
            ) from error
        raise ImageFileError(
            where, f"{reason}, which is not known here", "Save it without compression, or with deflate"
        ) from error


def _header(path: Path) -> PillowFile:
    """What Pillow reads without decoding the image."""
    from PIL import Image

    where = str(path)
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ImageFileError(
            where, f"it is too large to be decoded whole ({error})", f"Convert it to {IN_BANDS}"
        ) from error
    if getattr(image, "n_frames", 1) > 1:
        raise ImageFileError(where, "it has several frames", "Save one frame as a file of its own")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        raise ImageFileError(where, "it has an alpha channel", FLATTEN)
    if image.mode == "RGB" and any("16" in str(tile[3]) for tile in image.tile):
        raise ImageFileError(
            where,
            "Pillow reads colours of 16 bits as 8",
            "Save it as TIFF, Zarr or .npy, which keep 16 bits",
        )
    return image


def _pillow(path: Path) -> Picture:
    from PIL import ImageOps

    with _header(path) as opened:
        image: PillowImage = opened
        if image.mode in ("1", "P"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        profile = image.info.get("icc_profile")
        image = ImageOps.exif_transpose(image)
        values = np.asarray(image)
    if image.mode == "I" and values.min() >= 0 and values.max() < 1 << 16:
        values = values.astype(np.uint16)  # older versions of Pillow read 16-bit grey this way
    elif image.mode not in ("L", "RGB") and not image.mode.startswith("I;16"):
        raise ImageFileError(str(path), f"its mode is {image.mode}", "Save it as grey or RGB")
    return Decoded(values.astype(values.dtype.newbyteorder("=")), profile or None)


def library(name: str) -> Any:
    """Import a library that only some formats need."""
    from importlib import import_module

    # without a configured log, a library's messages about a damaged file would precede our error
    logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        return import_module(name)
    except ImportError as error:
        raise ImageFileError(
            name,
            f"it is needed for this format, and cannot be imported ({error})",
            'Run pip install "overlap-tool[files]"',
        ) from error


def _opener(path: Path, kind: Kind = "image") -> Callable[[Path], Picture]:
    of_arrays = (
        ZarrArray
        if isinstance(path, Address) or path.is_dir()
        else NumpyFile
        if path.suffix.lower() == ".npy"
        else None
    )
    if of_arrays is not None:
        return partial(of_arrays, kind=kind)
    if kind != "image" and path.exists():
        told = f"the model takes {NAMED[kind]}, and this is a file of images"
        raise ImageFileError(str(path), told, SAVED_SO)
    return TiffPage if path.suffix.lower() in (".tif", ".tiff", ".btf") else _pillow


def _refuse_strange_samples(where: str, picture: Picture, kind: Kind) -> None:
    if picture.dtype.newbyteorder("=") not in READ[kind]:
        known = "8 or 16 bits a sample, unsigned" + (" or, of 16, signed" if kind == "sound" else "")
        known += "" if kind == "image" else ", or as float32 in the numbers that the model takes"
        told = "the model takes images, and " if kind == "image" else ""
        raise ImageFileError(where, f"{told}its samples are {picture.dtype}", f"Save it with {known}")
    if min(picture.shape) < 1:
        raise ImageFileError(where, f"it is empty: {picture.shape}", "Give an image with pixels")


def _refuse_huge(where: str, picture: Picture, kind: Kind) -> None:
    height, width, channels = picture.shape
    told = f"it is {picture.form}"
    if kind != "sound":
        bounds.refuse_more(ImageFileError, where, max(height, width), bounds.SIDE, told)
    bounds.refuse_more(ImageFileError, where, height * width, bounds.PIXELS, told)
    high, wide = picture.piece
    size = high * wide * channels * picture.dtype.itemsize
    bounds.refuse_more(ImageFileError, where, size, bounds.PIECE, f"its tiles are {wide}x{high}")
