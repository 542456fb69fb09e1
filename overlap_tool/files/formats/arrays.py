"""Arrays in files, without torch: the meaning of their dimensions, and access to any box of one.

Files are never mapped: pages that were touched take no memory, and truncating a file does not kill the
process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overlap_tool.geometry import Span
from overlap_tool.geometry.layout import Kind
from overlap_tool.settings import Samples, Size, told

Box = tuple[Span, ...]
"""A part of an array, by spans of its first dimensions; it has all of the others."""

NAMED: dict[Kind, str] = {"image": "an image", "volume": "a volume", "sound": "sound"}

DIMENSIONS: dict[Kind, tuple[str, int, int]] = {
    "image": ("rows, columns and channels", 0, 2),
    "volume": ("channels, depth, rows and columns", 1, 2),
    "sound": ("channels and samples", 0, 1),
}
"""For each kind of array: its dimensions, the least number of them before the rows, and how many of them
tiles cut. An array without channels has one dimension less."""


@dataclass(frozen=True)
class ArrayForm:
    """How an array stores rows, columns and channels. A volume's channels and depth count as channels
    together; a sound's samples count as rows, with a single column."""

    kind: Kind
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        dimensions, before, cut = DIMENSIONS[self.kind]
        if len(self.shape) - before - cut not in (0, 1):
            reason = f"{NAMED[self.kind]} has {dimensions}, and this has the shape {tuple(self.shape)}"
            raise ValueError(reason)

    @property
    def parts(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The dimensions before those that tiles cut, those that they cut, and those behind."""
        cut = DIMENSIONS[self.kind][2]
        before = 0 if self.kind == "image" else len(self.shape) - cut
        return self.shape[:before], self.shape[before : before + cut], self.shape[before + cut :]

    @property
    def has_channels(self) -> bool:
        """Whether one of the dimensions holds channels."""
        return len(self.shape) > sum(DIMENSIONS[self.kind][1:])

    @property
    def channels(self) -> int:
        """The model's channels, without the depth."""
        return self.shape[-1 if self.kind == "image" else 0] if self.has_channels else 1

    @property
    def depth(self) -> int | None:
        """The depth of a volume."""
        return self.parts[0][-1] if self.kind == "volume" else None

    @property
    def size(self) -> Size:
        rows, columns, _ = self.as_image
        return Samples(rows, 1) if self.kind == "sound" else Size(columns, rows)

    def __str__(self) -> str:
        return told(self.size, self.depth)

    @property
    def as_image(self) -> tuple[int, int, int]:
        """Rows, columns and channels."""
        before, cut, behind = self.parts
        return cut[0], cut[-1] if len(cut) > 1 else 1, prod(before) * prod(behind)

    def box(self, rows: Span, columns: Span) -> Box:
        """The part of the array with these rows and columns."""
        before, cut, _ = self.parts
        return (*(Span(0, n) for n in before), *(rows, columns)[: len(cut)])

    def image_of(self, part: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
        """A part of the array, transposed to rows, columns and channels."""
        before, _, behind = self.parts
        apart = part.reshape(prod(before), rows, columns, prod(behind))
        return np.moveaxis(apart, 0, 2).reshape(rows, columns, self.as_image[2])

    def array_of(self, image: NDArray[Any]) -> NDArray[Any]:
        """Rows, columns and channels, transposed to a part of the array."""
        before, cut, behind = self.parts
        apart = image.reshape(*image.shape[:2], prod(before), prod(behind))
        return np.moveaxis(apart, 2, 0).reshape(*before, *image.shape[: len(cut)], *behind)


class ArrayFile:
    """An array in a file, starting at `offset`, its last dimension contiguous."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any, offset: int = 0) -> None:
        self.path = path
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.offset = offset

    def create(self) -> ArrayFile:
        """Allocate room for the array, after what the file holds already."""
        with self.path.open("ab") as file:
            file.truncate(self.offset + prod(self.shape) * self.dtype.itemsize)
        return self

    def read(self, *box: Span) -> NDArray[Any]:
        """Read a box, and no byte beyond it."""
        values = np.empty([*(span.length for span in box), *self.shape[len(box) :]], self.dtype)
        with self.path.open("rb", buffering=0) as file:
            for run, place in self._runs(box):
                file.seek(place)
                _read_into(file, values[run])
        return values

    def write(self, values: NDArray[Any], *box: Span, durable: bool = True) -> None:
        """Write a box; if `durable`, it is on disk when this returns."""
        values = np.ascontiguousarray(values, self.dtype)
        with self.path.open("r+b", buffering=0) as file:
            for run, place in self._runs(box):
                file.seek(place)
                left = _bytes_of(values[run])
                while left:
                    left = left[file.write(left) :]
            if durable:
                os.fsync(file.fileno())

    def _runs(self, box: Box) -> Iterator[tuple[tuple[int, ...], int]]:
        """The contiguous parts of a box: their indexes, and their offsets in the file."""
        spans = [*box, *(Span(0, n) for n in self.shape[len(box) :])]
        apart = len(spans) - 1
        while apart > 0 and spans[apart] == (0, self.shape[apart]):
            apart -= 1
        steps = [prod(self.shape[i + 1 :]) * self.dtype.itemsize for i in range(len(spans))]
        first = sum(span.start * step for span, step in zip(spans, steps, strict=True))
        for run in np.ndindex(*(span.length for span in spans[:apart])):
            yield run, self.offset + first + sum(i * step for i, step in zip(run, steps, strict=False))


def _read_into(file: FileIO, values: NDArray[Any]) -> None:
    left = _bytes_of(values)
    while left:
        count = file.readinto(left)
        if not count:
            raise EOFError("the file ends before its last row")
        left = left[count:]


def _bytes_of(values: NDArray[Any]) -> memoryview:
    return memoryview(values.reshape(-1).view(np.uint8).data)
