"""The graph of a stage, one line per map; the overlap of a tile grows from the output to the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlap_tool.legible import shortened
from overlap_tool.planning.analysis import Edges, StageReport
from overlap_tool.report.maps import Map, maps
from overlap_tool.report.pictures.drawing import LETTER, WIDE, Drawing

LANE = 13.0
OWN_COLOUR = 40.0
"""The width of a tile's own part: overlaps are to scale, tiles are not."""
NUMBER = 30.0
"""Room for a number beside a bar."""
DIVIDER = 26.0
"""The height of the line between two passes."""


@dataclass(frozen=True)
class Lanes:
    """The lane of every map, from where it is computed to where it is read for the last time."""

    of: tuple[int, ...]
    count: int


def lanes_of(rows: Sequence[Map]) -> Lanes:
    """Give every map the leftmost lane of the maps it reads for the last time, else the leftmost free one."""
    last = {source: number for number, row in enumerate(rows) for source in row.inputs}
    holders: list[int | None] = []
    of: list[int] = []
    for number, row in enumerate(rows):
        done = [lane for lane, held in enumerate(holders) if held in row.inputs and last[held] == number]
        free = [lane for lane, held in enumerate(holders) if held is None]
        lane = min(done or free, default=len(holders))
        if lane == len(holders):
            holders.append(None)
        for other in done:
            holders[other] = None
        holders[lane] = number if number in last else None
        of.append(lane)
    return Lanes(tuple(of), len(holders))


@dataclass(frozen=True)
class _Sheet:
    """The layout: overlaps beside their ops where there is room, otherwise below them."""

    rows: tuple[Map, ...]
    placed: Lanes
    two_axes: bool
    width: int

    @property
    def beside(self) -> bool:
        return self.width >= WIDE

    @property
    def labels(self) -> float:
        return 14 + self.placed.count * LANE

    @property
    def bars(self) -> float:
        return self.width * 0.56 if self.beside else self.labels

    @property
    def height(self) -> float:
        """The height of one line."""
        return (20 if self.beside else 36) + (12 if self.two_axes else 0)

    def top(self, number: int) -> float:
        passes = self.rows[min(number, len(self.rows) - 1)].segment
        return (42 if self.two_axes else 28) + number * self.height + passes * DIVIDER

    def x(self, number: int) -> float:
        return 10 + self.placed.of[number] * LANE

    def y(self, number: int) -> float:
        """The middle of a node."""
        return self.top(number) + (self.height / 2 if self.beside else 12)

    @property
    def unit(self) -> float:
        """Pixels per sample of the stage's input."""
        most = max(self.extent(before=True) + self.extent(before=False), 1)
        return (self.width - self.bars - OWN_COLOUR - 2 * NUMBER - 4) / most

    def extent(self, before: bool) -> float:
        """The largest overlap on one side, in samples of the stage's input."""
        return max(
            float(side / row.scale)
            for row in self.rows
            for side in (
                (row.overlap.left, row.overlap.top) if before else (row.overlap.right, row.overlap.bottom)
            )
        )


def graph(stage: StageReport, width: int = WIDE) -> Drawing:
    rows = maps(stage)
    two_axes = any(_across(row.overlap) != _down(row.overlap) for row in rows)
    sheet = _Sheet(rows, lanes_of(rows), two_axes, width)
    drawing = Drawing(width, f"{stage.name}: its maps, and what a tile needs of each")
    _legend(drawing, sheet)
    for number in range(0, len(rows), 2):
        drawing.rect(0, sheet.top(number), width, sheet.height, "stripe")
    for number, row in enumerate(rows):
        if number and row.segment > rows[number - 1].segment:
            before = stage.segments[row.segment - 1]
            _divider(drawing, sheet, number, before.barriers + before.kept_whole)
        for source in row.inputs:
            _edge(drawing, sheet, source, number)
    for number, row in enumerate(rows):
        _node(drawing, sheet, number, stage.name)
        first = sheet.top(number) + (5 if sheet.beside else 21)
        _bar(drawing, sheet, row, _across(row.overlap), first)
        if two_axes:
            _bar(drawing, sheet, row, _down(row.overlap), first + 13)
    drawing.height = sheet.top(len(rows)) + 2
    return drawing


def _legend(drawing: Drawing, sheet: _Sheet) -> None:
    before, after = ("left", "right") if not sheet.two_axes else ("left, top", "right, bottom")
    if sheet.beside:
        drawing.text(sheet.bars - 4, 17, "scale", "small", "end")
    x = sheet.bars + 4
    for kind, name in (("before", before), ("own", "the tile itself"), ("after", after)):
        drawing.rect(x, 9, 9, 9, kind)
        drawing.text(x + 13, 17, name, "small")
        x += 28 + 6 * len(name)
    if sheet.two_axes:
        drawing.text(sheet.bars + 4, 34, "columns above, rows below", "small")


def _divider(drawing: Drawing, sheet: _Sheet, number: int, barriers: Sequence[str]) -> None:
    """Between two passes: the barriers that have to read their whole map first."""
    y = sheet.top(number) - 9
    drawing.line(0, sheet.top(number) - 2, sheet.width, sheet.top(number) - 2, "axis")
    told = f"once {', '.join(barriers) or 'all of this'} has read the whole map"
    room = int((sheet.width - sheet.labels) / LETTER)
    drawing.text(sheet.labels, y, shortened(told, room), "small", title=told)


def _edge(drawing: Drawing, sheet: _Sheet, source: int, reader: int) -> None:
    """From a map down its lane, and across to its reader."""
    x1, x2, y1, y2 = sheet.x(source), sheet.x(reader), sheet.y(source), sheet.y(reader)
    bend, half = y2 - sheet.height, sheet.height / 2
    steps = f"M{x1:g} {y1:g}V{bend:g}"
    if x1 == x2:
        steps = f"M{x1:g} {y1:g}V{y2:g}"
    else:
        steps += f"C{x1:g} {bend + half:g} {x2:g} {y2 - half:g} {x2:g} {y2:g}"
    drawing.path(steps, "edge")


def _node(drawing: Drawing, sheet: _Sheet, number: int, stage: str) -> None:
    row = sheet.rows[number]
    whole = ", ".join(row.layers) or row.name
    drawing.circle(sheet.x(number), sheet.y(number), 4, "join" if row.is_join else "node", whole)
    end = sheet.bars if sheet.beside else sheet.width
    scale = str(row.scale)
    drawing.text(
        end - 4, sheet.y(number) + 4, scale, "small", "end", "samples per sample of the stage's input"
    )
    room = int((end - sheet.labels - 10) / LETTER) - len(scale)
    name = row.name.removeprefix(f"{stage}.")
    what = shortened(row.what, max(room - len(name) - 1, room * 3 // 5))
    name = shortened(name, max(room - len(what) - 1, 1))
    x, y = sheet.labels, sheet.y(number) + 4
    drawing.text(x, y, name, "code strong", title=whole)
    drawing.text(x + (len(name) + 1) * LETTER, y, what, "code", title=whole)


def _bar(drawing: Drawing, sheet: _Sheet, row: Map, sides: tuple[int, int], y: float) -> None:
    """Lengths are in samples of the stage's input, numbers in the map's own."""
    before, after = (float(side / row.scale) * sheet.unit for side in sides)
    own = sheet.bars + NUMBER + sheet.extent(before=True) * sheet.unit
    drawing.rect(own, y, OWN_COLOUR, 10, "own")
    if sides[0]:
        drawing.rect(own - before, y, before, 10, "before")
    if sides[1]:
        drawing.rect(own + OWN_COLOUR, y, after, 10, "after")
    drawing.text(own - before - 4, y + 9, str(sides[0]), "small", "end")
    drawing.text(own + OWN_COLOUR + after + 4, y + 9, str(sides[1]), "small")


def _across(edges: Edges) -> tuple[int, int]:
    return edges.left, edges.right


def _down(edges: Edges) -> tuple[int, int]:
    return edges.top, edges.bottom
