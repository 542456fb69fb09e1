"""Memory and arithmetic against the size of a tile, for both schedules, with the chosen tile marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log2

from overlap_tool.planning.analysis import StageReport, TileReport
from overlap_tool.report.pictures.drawing import WIDE, Drawing
from overlap_tool.report.tables import count, in_units

PANEL = 210.0
"""The height of each of the two charts."""
FACTOR = 8
"""From one memory grid line to the next."""


@dataclass(frozen=True)
class _Chart:
    """A chart's position on the sheet, and a mapping from a tile and a value to a point on it."""

    left: float
    top: float
    width: float
    height: float
    tiles: tuple[float, float]
    values: tuple[float, float]
    place: Callable[[float], float]
    """The scale of the values, such as their logarithm."""

    def x(self, tile: float) -> float:
        first, last = map(log2, self.tiles)
        return self.left + self.width * ((log2(tile) - first) / (last - first) if last > first else 0.5)

    def y(self, value: float) -> float:
        first, last = map(self.place, self.values)
        return self.top + self.height * (1 - (self.place(value) - first) / (last - first))


def costs(stage: StageReport, width: int = WIDE) -> Drawing:
    drawing = Drawing(width, f"{stage.name}: memory and arithmetic against the size of a tile")
    beside = width >= WIDE
    wide = width / 2 if beside else float(width)
    _legend(drawing, stage, beside)
    top = 48.0 if beside else 62.0
    _memory(drawing, stage, 0.0, top, wide)
    _arithmetic(drawing, stage, wide if beside else 0.0, top if beside else top + PANEL + 16, wide)
    drawing.height = top + PANEL + (0 if beside else PANEL + 16)
    return drawing


def _memory(drawing: Drawing, stage: StageReport, x: float, y: float, wide: float) -> None:
    values = [tile.peak_bytes for tile in _all(stage)] + [stage.full_peak_bytes]
    first = floor(log(min(values), FACTOR))
    ticks = [FACTOR**power for power in range(first, max(ceil(log(max(values), FACTOR)), first + 1) + 1)]
    chart = _chart(stage, x, y, wide, (ticks[0], ticks[-1]), log2)
    _axes(drawing, stage, chart, "memory for maps, one tile at a time", [(t, in_units(t)) for t in ticks])
    full = chart.y(stage.full_peak_bytes)
    drawing.line(chart.left, full, chart.left + chart.width, full, "full")
    _lines(drawing, stage, chart, lambda tile: tile.peak_bytes, lambda tile: in_units(tile.peak_bytes))


def _arithmetic(drawing: Drawing, stage: StageReport, x: float, y: float, wide: float) -> None:
    most = max(max(tile.overhead for tile in _all(stage)), 1.1)
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1e9) if (most - 1) / s <= 5)
    last = 1 + ceil(round((most - 1) / step, 6)) * step
    chart = _chart(stage, x, y, wide, (min(1.0, *(t.overhead for t in _all(stage))) - step / 4, last), float)
    ticks = [1 + step * n for n in range(round((last - 1) / step) + 1)]
    heading = f"multiply-accumulates, of the full image's {count(stage.full_macs)}"
    _axes(drawing, stage, chart, heading, [(tick, f"{tick:.4g}×") for tick in ticks])
    full = chart.y(1.0)
    drawing.line(chart.left, full, chart.left + chart.width, full, "full")
    _lines(
        drawing,
        stage,
        chart,
        lambda tile: tile.overhead,
        lambda tile: f"{tile.overhead:.3f} times the full image",
    )


def _chart(
    stage: StageReport,
    x: float,
    y: float,
    wide: float,
    values: tuple[float, float],
    place: Callable[[float], float],
) -> _Chart:
    sides = [tile.tile for tile in _all(stage)]
    return _Chart(x + 58, y + 24, wide - 82, PANEL - 70, (min(sides), max(sides)), values, place)


def _axes(
    drawing: Drawing, stage: StageReport, chart: _Chart, heading: str, ticks: Sequence[tuple[float, str]]
) -> None:
    drawing.text(chart.left - 50, chart.top - 12, heading, "strong")
    for value, text in ticks:
        y = chart.y(value)
        drawing.line(chart.left, y, chart.left + chart.width, y, "grid")
        drawing.text(chart.left - 6, y + 4, text, "small", "end")
    foot = chart.top + chart.height
    drawing.line(chart.left, foot, chart.left + chart.width, foot, "axis")
    for tile in stage.tiles:
        drawing.line(chart.x(tile.tile), foot, chart.x(tile.tile), foot + 4, "axis")
        drawing.text(chart.x(tile.tile), foot + 16, str(tile.tile), "small", "middle")
    drawing.text(chart.left + chart.width / 2, foot + 32, "tile, in pixels of the image", "small", "middle")


def _lines(
    drawing: Drawing,
    stage: StageReport,
    chart: _Chart,
    value: Callable[[TileReport], float],
    told: Callable[[TileReport], str],
) -> None:
    for kind, series in (("tiles", stage.tiles), ("stream", stage.streams)):
        drawing.polyline([(chart.x(tile.tile), chart.y(value(tile))) for tile in series], kind)
        for tile in series:
            point = chart.x(tile.tile), chart.y(value(tile))
            drawing.circle(*point, 3, f"{kind}-dot", f"{kind}, tile {tile.tile}: {told(tile)}")
    chosen = stage.chosen.cost
    drawing.circle(chart.x(chosen.tile), chart.y(value(chosen)), 7, "chosen", told(chosen))


def _legend(drawing: Drawing, stage: StageReport, beside: bool) -> None:
    entries = [("stream", "stream"), ("tiles", "tiles"), ("full", "the full image")]
    x = 8.0
    for kind, name in entries:
        drawing.line(x, 14, x + 18, 14, kind)
        drawing.text(x + 23, 18, name, "small")
        x += 40 + 6 * len(name)
    chosen = stage.chosen
    told = f"chosen: {chosen.schedule}, tile {chosen.cost.tile}: {in_units(chosen.cost.peak_bytes)}"
    x, y = (x, 14.0) if beside else (8.0, 34.0)
    drawing.circle(x + 8, y, 6, "chosen")
    drawing.text(x + 20, y + 4, told, "small")


def _all(stage: StageReport) -> tuple[TileReport, ...]:
    return (*stage.tiles, *stage.streams, stage.chosen.cost)
