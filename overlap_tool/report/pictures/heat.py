"""Where two maps differ that should be equal: a coarse map, with tile borders drawn over it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from overlap_tool.report.pictures.drawing import NARROW, Drawing
from overlap_tool.verification import DifferenceMap

CLOSEST = 4.0
"""Tile borders closer than this are not drawn."""


@dataclass(frozen=True)
class _Cell:
    """One cell; those at the right and at the bottom may be smaller."""

    where: DifferenceMap
    down: int
    along: int

    @property
    def rows(self) -> tuple[int, int]:
        return self._extent(self.down, self.where.rows)

    @property
    def columns(self) -> tuple[int, int]:
        return self._extent(self.along, self.where.columns)

    @property
    def count(self) -> int:
        return self.where.counts[self.down][self.along]

    @property
    def density(self) -> float:
        (top, bottom), (left, right) = self.rows, self.columns
        return self.count / ((bottom - top) * (right - left))

    def _extent(self, number: int, size: int) -> tuple[int, int]:
        return number * self.where.cell, min((number + 1) * self.where.cell, size)


def heat(where: DifferenceMap, tile: tuple[Fraction, Fraction] | None, title: str) -> Drawing:
    """A cell's colour is stronger the more of its numbers differ.

    `tile` is width and height in the map's samples.
    """
    drawing = Drawing(NARROW, title)
    unit = NARROW / max(where.rows, where.columns)
    width, height = where.columns * unit, where.rows * unit
    drawing.rect(0, 0, width, height, "none")
    cells = [_Cell(where, down, along) for down, row in enumerate(where.counts) for along in range(len(row))]
    most = max(cell.density for cell in cells)
    for cell in cells:
        if cell.count:
            _draw(drawing, cell, cell.density / most, unit)
    if tile is not None:
        for x in _borders(float(tile[0]) * unit, width):
            drawing.line(x, 0, x, height, "border")
        for y in _borders(float(tile[1]) * unit, height):
            drawing.line(0, y, width, y, "border")
    drawing.height = height
    return drawing


def _borders(step: float, length: float) -> list[float]:
    if step < CLOSEST:
        return []
    return [n * step for n in range(1, ceil(length / step)) if n * step < length - 0.5]


def _draw(drawing: Drawing, cell: _Cell, share: float, unit: float) -> None:
    (top, bottom), (left, right) = cell.rows, cell.columns
    # rounded as coordinates are written, so that each cell ends where the next begins
    x1, x2, y1, y2 = (round(end * unit, 1) for end in (left, right, top, bottom))
    drawing.rect(
        x1,
        y1,
        x2 - x1,
        y2 - y1,
        "differs",
        f"rows {top} to {bottom - 1}, columns {left} to {right - 1}: {cell.count} differ",
        **{"opacity": f"{0.25 + 0.75 * share:.2f}", "shape-rendering": "crispEdges"},
    )
