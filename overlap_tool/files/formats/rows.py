"""Rows in a file, read and written a band at a time, without mapping it: what was touched takes no memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.files.formats.pictures import read_into
from overlap_tool.geometry import Span


class RowsFile:
    """An array in a file, one row after another from `offset` on."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.offset = offset
        self.row_bytes = math.prod(shape[1:]) * self.dtype.itemsize

    def create(self) -> RowsFile:
        """Make room for all rows, after what stands there already."""
        with self.path.open("ab") as file:
            file.truncate(self.offset + self.shape[0] * self.row_bytes)
        return self

    def read(self, start: int, stop: int) -> NDArray[Any]:
        values = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.row_bytes)
            read_into(file, values)
        return values

    def write(self, start: int, rows: NDArray[Any], durable: bool = True) -> None:
        """On the disk when this returns, if `durable`."""
        with self.path.open("r+b", buffering=0) as file:
            file.seek(self.offset + start * self.row_bytes)
            left = memoryview(np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8).data)
            while left:
                left = left[file.write(left) :]
            if durable:
                os.fsync(file.fileno())


class MapFile:
    """A map in a file, row by row, and in each row channel by channel."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        channels, height, width = shape
        numbers = torch.empty(0, dtype=dtype).numpy().dtype
        self.file = RowsFile(path, (height, channels, width), numbers)

    def write(self, start: int, band: Tensor, durable: bool = True) -> None:
        self.file.write(start, band[0].transpose(0, 1).cpu().numpy(), durable)

    def read(self, rows: Span, columns: Span) -> Tensor:
        channels, width = self.file.shape[1:]
        if columns == (0, width):
            values = self.file.read(rows.start, rows.stop)
        else:  # never more than a row of what is not asked for
            values = np.empty((rows.length, channels, columns.length), self.file.dtype)
            for place, row in enumerate(range(rows.start, rows.stop)):
                values[place] = self.file.read(row, row + 1)[0, :, columns.start : columns.stop]
        return torch.from_numpy(np.ascontiguousarray(values.swapaxes(0, 1)))[None]


class Bands:
    """A sink that joins tiles to bands of rows, over all of the `columns`, and hands these on.

    Tiles come in order, and may give again what others gave, as attention windows at their ends make them do.
    No row is handed on twice.
    """

    def __init__(self, columns: Span, take: Callable[[int, Tensor], None]) -> None:
        self.take = take
        self.left = columns.start
        self.band: Tensor | None = None
        self.missing = np.ones(columns.length, bool)
        self.stop = 0

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        if self.band is None:
            self.band = values.new_empty((*values.shape[:-1], len(self.missing)))
        across = slice(columns.start - self.left, columns.stop - self.left)
        self.band[..., across] = values
        self.missing[across] = False
        if not self.missing.any():
            band, self.band = self.band, None
            self.missing[:] = True
            start = max(rows.start, self.stop)
            if start < rows.stop:
                self.stop = rows.stop
                self.take(start, band[..., start - rows.start :, :])
