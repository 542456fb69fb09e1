"""Maps in files, and tiles joined to bands of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from overlap_tool.files.formats.arrays import ArrayFile
from overlap_tool.geometry import Span


class MapFile:
    """A map in a file, row by row, and in each row channel by channel."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: torch.dtype) -> None:
        *channels, height, width = shape
        numbers = torch.empty(0, dtype=dtype).numpy().dtype
        self.file = ArrayFile(path, (height, *channels, width), numbers)

    def write(self, start: int, band: Tensor, durable: bool = True) -> None:
        rows = band[0].movedim(-2, 0)
        self.file.write(rows.cpu().numpy(), Span(start, start + len(rows)), durable=durable)

    def read(self, rows: Span, columns: Span) -> Tensor:
        channels = (Span(0, n) for n in self.file.shape[1:-1])
        values = self.file.read(rows, *channels, columns)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, 0, -2)))[None]


class Bands:
    """A sink that joins tiles to bands of rows over all `columns`, and passes these on.

    Tiles come in order, and may repeat what others gave, as attention windows at their ends do. No row is
    passed on twice.
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
