"""An image within its padding, and its sample type: everything known about it except its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from overlap_tool.geometry import brought_up

Margins = tuple[int, int, int, int]
"""Columns on the left and right, rows at the top and at the bottom."""


def padding(height: int, width: int, multiple: int) -> Margins:
    return *brought_up(width, multiple), *brought_up(height, multiple)


@dataclass(frozen=True)
class Frame:
    """An image within its padding, and its sample type."""

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    around: Margins = (0, 0, 0, 0)

    @property
    def padded(self) -> tuple[int, int]:
        left, right, top, bottom = self.around
        return self.height + top + bottom, self.width + left + right

    @property
    def largest(self) -> int:
        """The integer that stands for 1. For signed types it is one above the largest, since the smallest
        stands for -1; floats are taken as they are."""
        return int(np.iinfo(self.dtype).max) + (self.dtype.kind == "i") if self.dtype.kind in "ui" else 1
