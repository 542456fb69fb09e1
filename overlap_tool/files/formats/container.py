"""The file format `.lic`: a head, the model's own strings, and a checksum. See docs/container.md.

A file is checked from the outside in: its sizes against the file's length, then the checksum, then the head's
claims. Nothing is allocated for an unchecked size. None of this needs torch.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from itertools import accumulate, count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from overlap_tool import bounds
from overlap_tool.errors import ContainerError, why_absent
from overlap_tool.files.formats.frame import Frame

MAGIC = b"\x89LIC\r\n\x1a\n"
VERSION, IN_PARTS = 1, 2
"""Version 2 has a checksum after its head, too, so that its bands can be read separately."""
OUTSIDE = struct.Struct("<8sIIQ")
"""Magic, version, length of the head, length of the strings."""
CHECKSUM = hashlib.sha256().digest_size
LONGEST_HEAD = 16 << 20
LARGEST_SIDE = (1 << 31) - 1
AGAIN = "Copy it again, or compress the image again"
SAMPLES: dict[str, np.dtype[Any]] = {"uint8": np.dtype(np.uint8), "uint16": np.dtype(np.uint16)}


@dataclass(frozen=True)
class Band:
    """A rectangle of a map: its rows, the length of its string, a hash of its symbols, and its columns.

    Bands are ordered from left to right and top to bottom; `columns` is 0 for all columns, as most have.
    """

    rows: int
    length: int
    symbols: str
    columns: int = 0


class CodedString(bytes):
    """The strings of a map's bands, one after another."""

    bands: tuple[Band, ...]

    @staticmethod
    def of(strings: Sequence[bytes], bands: Sequence[Band]) -> CodedString:
        made = CodedString(b"".join(strings))
        made.bands = tuple(bands)
        return made

    def part(self, start: int, stop: int) -> bytes:
        return self[start:stop]


class StringInFile(CodedString):
    """A string that stays in its file, of which parts are read on demand; as `bytes` it is empty."""

    path: Path
    offset: int

    @staticmethod
    def at(path: Path, offset: int, bands: Sequence[Band]) -> StringInFile:
        made = StringInFile()
        made.path, made.offset, made.bands = path, offset, tuple(bands)
        return made

    def part(self, start: int, stop: int) -> bytes:
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start)
                return file.read(stop - start)
        except OSError as error:
            where, reason = str(self.path), f"it cannot be read ({error.strerror})"
            raise ContainerError(where, reason, "Check the path") from error


@dataclass(frozen=True)
class Head:
    """The metadata that a reader needs beside the strings."""

    architecture: str
    weights_sha256: str
    width: int
    height: int
    channels: int
    padding: tuple[int, int, int, int]
    dtype: str
    engine: dict[str, str]
    shape: Any
    """What the model's `compress` returned under that name: nested whole numbers."""
    strings: Any
    """Nested as the model's, with the index of its entry in `bands` in place of each string."""
    bands: tuple[tuple[Band, ...], ...]
    given: Any = None
    """The whole result of a model that returns no shape and strings: nested, with numbers for its strings."""
    order: tuple[int, ...] = ()
    """The order in which the strings were coded; empty if the model codes by itself."""

    @property
    def banded(self) -> bool:
        return self.most_bands > 1

    @property
    def most_bands(self) -> int:
        """The most bands of any one map."""
        return max((len(bands) for bands in self.bands), default=1)

    @property
    def payload(self) -> int:
        """The length of all strings."""
        return sum(band.length for bands in self.bands for band in bands)

    @property
    def frame(self) -> Frame:
        return Frame(self.height, self.width, self.channels, SAMPLES[self.dtype], self.padding)


def write(file: BinaryIO, head: Head, strings: list[bytes]) -> None:
    """Write a container, its strings in the order of `head.bands`."""
    told = {**asdict(head), "banded": head.banded}
    if head.given is None:
        del told["given"]
    if not head.order:
        del told["order"]
    told["bands"] = [[_plain_band(band) for band in bands] for bands in head.bands]
    inside = json.dumps(told, separators=(",", ":")).encode()
    version = IN_PARTS if head.banded else VERSION
    outside = OUTSIDE.pack(MAGIC, version, len(inside), sum(map(len, strings)))
    sealed = hashlib.sha256(outside + inside).digest() if version == IN_PARTS else b""
    digest = hashlib.sha256()
    for part in (outside, inside, sealed, *strings):
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def read(path: Path, in_parts: bool = False) -> tuple[Head, list[CodedString]]:
    """Read a container, or raise if it is not whole, valid and within limits.

    `in_parts` leaves the strings in the file if their bands can be read separately: then lengths and head are
    checked now, and the symbols of a band against their hash when it is decoded.
    """
    where = str(path)
    if absent := why_absent(path):
        raise ContainerError(where, absent, "Check the path")
    try:
        with path.open("rb", buffering=0) as file:
            outside, inside, sealed = _opened(file, path.stat().st_size, where)
            alone = in_parts and bool(sealed)
            payload = b"" if alone else _payload(file, outside + inside + sealed, where)
    except OSError as error:
        raise ContainerError(where, f"it cannot be read ({error.strerror})", "Check the path") from error
    try:
        head = _head(json.loads(inside))
        if alone and all(band.rows for bands in head.bands for band in bands):
            strings = _left_in(path, head, len(outside + inside + sealed))
        elif alone:
            return read(path)
        else:
            strings = list(_strings(head, payload))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ContainerError(where, f"its head makes no sense ({error})", AGAIN) from error
    pixels, told = head.width * head.height, f"an image of {head.width}x{head.height}"
    if pixels > bounds.FREE_PIXELS:
        most = 8 * head.payload * bounds.PIXELS_OF_A_BIT
        bounds.refuse_more(
            ContainerError, where, pixels, most, f"its {head.payload} bytes claim to be {told}"
        )
    return head, strings


def told_of(coded: Any, packed: Any, strings: list[bytes]) -> dict[str, Any]:
    """The head's entries for what a model's `compress` returned: `shape` and `strings`, or all as `given`."""
    from overlap_tool.models.coded import has_strings_and_shape

    if has_strings_and_shape(coded):
        with suppress(TypeError, ValueError):
            return {"shape": plain(coded["shape"]), "strings": _numbered(coded["strings"], count())}
    return {"shape": [], "strings": list(range(len(strings))), "given": packed}


def coded_of(head: Head, strings: list[CodedString]) -> Any:
    """The inverse: the result of `compress`."""
    from overlap_tool.models.coded import unpacked

    if head.given is not None:
        return unpacked(head.given, strings)
    return {"strings": nested(head.strings, strings), "shape": as_the_model_had(head.shape)}


def _numbered(strings: Any, numbers: Iterator[int]) -> Any:
    """Nested numbers, taken from an iterator, in place of nested strings."""
    if isinstance(strings, bytes):
        return next(numbers)
    if not isinstance(strings, list | tuple):
        raise TypeError(f"a {type(strings).__name__} among strings")
    return [_numbered(part, numbers) for part in strings]


def nested(numbers: Any, strings: list[CodedString]) -> Any:
    """Nested strings in place of nested numbers."""
    return strings[numbers] if isinstance(numbers, int) else [nested(part, strings) for part in numbers]


def bands_of(string: bytes) -> tuple[Band, ...]:
    """The bands of a string; a single one if it is a plain string."""
    return string.bands if isinstance(string, CodedString) else (Band(0, len(string), ""),)


def plain(shape: Any) -> Any:
    """A model's `shape` as JSON can hold it."""
    if isinstance(shape, dict):
        return {str(key): plain(value) for key, value in shape.items()}
    return [plain(value) for value in shape] if isinstance(shape, list | tuple) else int(shape)


def as_the_model_had(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: as_the_model_had(value) for key, value in shape.items()}
    if isinstance(shape, list):
        parts = [as_the_model_had(value) for value in shape]
        return tuple(parts) if all(isinstance(part, int) for part in parts) else parts
    return shape


def _opened(file: FileIO, size: int, where: str) -> tuple[bytes, bytes, bytes]:
    """The outside, the head and its checksum, if any; raises if a length or that checksum is wrong."""
    outside = file.read(OUTSIDE.size)
    if len(outside) < OUTSIDE.size or outside[: len(MAGIC)] != MAGIC:
        raise ContainerError(where, "it is no .lic file", "Give a file that overlap-tool compress wrote")
    _, version, head, payload = OUTSIDE.unpack(outside)
    if version not in (VERSION, IN_PARTS):
        reason = f"its format has version {version}, and this tool knows {VERSION} and {IN_PARTS}"
        raise ContainerError(where, reason, "Update overlap-tool")
    seal = CHECKSUM if version == IN_PARTS else 0
    expected = OUTSIDE.size + head + seal + payload + CHECKSUM
    if size != expected:
        raise ContainerError(where, f"it has {size} bytes, and says that it has {expected}", AGAIN)
    bounds.refuse_more(ContainerError, where, size, bounds.FILE, f"it has {size} bytes")
    if head > LONGEST_HEAD:
        raise ContainerError(where, f"its head has {head} bytes, which is too long", AGAIN)
    inside, sealed = file.read(head), file.read(seal)
    if sealed and sealed != hashlib.sha256(outside + inside).digest():
        raise _altered(where)
    return outside, inside, sealed


def _payload(file: FileIO, before: bytes, where: str) -> bytes:
    """The strings; raises if the checksum of the file is wrong."""
    rest = file.readall()
    payload, checksum = rest[:-CHECKSUM], rest[-CHECKSUM:]
    digest = hashlib.sha256(before)
    digest.update(payload)
    if checksum != digest.digest():
        raise _altered(where)
    return payload


def _altered(where: str) -> ContainerError:
    return ContainerError(where, "its checksum is wrong: it was altered, or is damaged", AGAIN)


def _left_in(path: Path, head: Head, start: int) -> list[CodedString]:
    """The strings, as objects that stay in the file."""
    lengths = [sum(band.length for band in bands) for bands in head.bands]
    starts = accumulate(lengths, initial=start)
    return [StringInFile.at(path, offset, bands) for offset, bands in zip(starts, head.bands, strict=False)]


def _head(told: Any) -> Head:
    head = Head(
        architecture=_text(told["architecture"]),
        weights_sha256=_text(told["weights_sha256"]),
        width=_count(told["width"], 1, LARGEST_SIDE),
        height=_count(told["height"], 1, LARGEST_SIDE),
        channels=_count(told["channels"], 1, 4096),
        padding=_padding(told["padding"]),
        dtype=_text(told["dtype"]),
        engine=_texts(told["engine"]),
        shape=_shape(told["shape"]),
        strings=told["strings"],
        bands=tuple(tuple(_band(band) for band in bands) for bands in told["bands"]),
        given=told.get("given"),
        order=tuple(_count(turn, 0, LARGEST_SIDE) for turn in told.get("order", ())),
    )
    if head.dtype not in SAMPLES:
        raise ValueError(f"samples of {head.dtype}")
    if sorted(_numbers(head.strings)) != list(range(len(head.bands))) or not all(head.bands):
        raise ValueError("strings and bands that do not belong together")
    if head.order and sorted(head.order) != list(range(len(head.bands))):
        raise ValueError("an order that is none of its strings")
    if told["banded"] is not head.banded:
        raise ValueError("bands that are not flagged")
    return head


def _strings(head: Head, payload: bytes) -> Iterator[CodedString]:
    start = 0
    for bands in head.bands:
        length = sum(band.length for band in bands)
        yield CodedString.of([payload[start : start + length]], bands)
        start += length
    if start != len(payload):
        raise ValueError("strings of another length")


def _numbers(strings: Any) -> Iterator[int]:
    if isinstance(strings, list):
        for part in strings:
            yield from _numbers(part)
    else:
        yield _count(strings, 0, LARGEST_SIDE)


def _band(told: Any) -> Band:
    rows, length, symbols, *columns = told
    (columns,) = columns or [0]
    sides = _count(rows, 0, LARGEST_SIDE), _count(columns, 0, LARGEST_SIDE)
    return Band(sides[0], _count(length, 0, 1 << 62), _text(symbols), sides[1])


def _plain_band(band: Band) -> list[Any]:
    return [band.rows, band.length, band.symbols, *([band.columns] if band.columns else [])]


def _padding(told: Any) -> tuple[int, int, int, int]:
    left, right, top, bottom = (_count(side, 0, 1 << 16) for side in told)
    return left, right, top, bottom


def _shape(told: Any) -> Any:
    if isinstance(told, dict):
        return {_text(key): _shape(value) for key, value in told.items()}
    return [_shape(value) for value in told] if isinstance(told, list) else _count(told, 0, LARGEST_SIDE)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} in the place of text")
    return value


def _texts(told: Any) -> dict[str, str]:
    if not isinstance(told, dict):
        raise TypeError(f"{told!r} in the place of texts by name")
    return {_text(key): _text(value) for key, value in told.items()}


def _count(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{value!r} in the place of a number from {least} to {most}")
    return value
