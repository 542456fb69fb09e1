"""The anatomy of one tile: what it reads beyond its own part, and what every join crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlap_tool.legible import shortened
from overlap_tool.planning.analysis import Edges, StageReport
from overlap_tool.report.maps import NOTHING, maps
from overlap_tool.report.pictures.drawing import LETTER, WIDE, Drawing

LEAST = 3.0
"""The least thickness of a band, so that one sample is visible."""
TILE = 150.0
"""The size at which a tile is drawn, with all that it reads."""


@dataclass(frozen=True)
class _Box:
    """A square with bands around it, in pixels."""

    x: float
    y: float
    side: float
    left: float = 0.0
    right: float = 0.0
    top: float = 0.0
    bottom: float = 0.0

    @staticmethod
    def around(x: float, y: float, side: float, edges: Edges, unit: float) -> _Box:
        def band(samples: int) -> float:
            return max(samples * unit, LEAST) if samples else 0.0

        return _Box(x, y, side, *map(band, (edges.left, edges.right, edges.top, edges.bottom)))


def anatomy(stage: StageReport, width: int = WIDE) -> Drawing | None:
    """One tile of the chosen size in the middle of an image; a stage with barriers has no such tile."""
    edges = stage.overlap
    if edges is None:
        return None
    drawing = Drawing(width, f"{stage.name}: what one tile reads, and what it gives")
    own = max(1, int(stage.chosen.cost.tile * stage.input_scale))
    given = max(1, int(own * stage.scale))
    across, down = own + edges.left + edges.right, own + edges.top + edges.bottom
    beside = width >= WIDE
    unit = TILE / max(across, down)
    side = max(own * unit, 40.0)
    x, y = 62 + edges.left * unit, 62 + edges.top * unit
    read = _Box.around(x, y, side, edges, unit)
    drawing.text(8, 16, f"One tile reads {across}×{down} samples of the input", "strong")
    drawing.text(8, 30, f"its own {own}×{own}, and the overlap", "small")
    _grid(drawing, read)
    _bands(drawing, read, "before", "after")
    drawing.rect(x, y, side, side, "own", f"the tile's own part of the input: {own}×{own}")
    drawing.text(x + side / 2, y + side / 2 + 4, f"{own}×{own}", "", "middle")
    _numbers(drawing, read, edges)
    bottom = y + side + read.bottom + 34
    left, over = (width / 2, 0.0) if beside else (0.0, bottom)
    drawing.text(left + 8, over + 16, f"and gives {given}×{given} samples of the output", "strong")
    drawing.text(left + 8, over + 30, f"the same part of the image, at scale {stage.scale}", "small")
    top = y if beside else over + 56
    gives = _Box(left + x, top, side)
    _grid(drawing, gives)
    drawing.rect(gives.x, gives.y, side, side, "own", f"the tile's part of the output: {given}×{given}")
    drawing.text(gives.x + side / 2, gives.y + side / 2 + 4, f"{given}×{given}", "", "middle")
    drawing.height = bottom if beside else gives.y + side + 34
    return drawing


def passes(stage: StageReport, width: int = WIDE) -> Drawing | None:
    """For a stage with barriers: how far each pass's tiles read beyond their own part of each map."""
    if stage.passes == 1:
        return None
    cells = []
    for number, segment in enumerate(stage.segments):
        for read in segment.reads:
            edges = Edges(read.left, read.right, read.top, read.bottom)
            name = read.name.removeprefix(f"{stage.name}.")
            told = f"pass {number} reads {_told(edges)} beyond a tile of {read.name}"
            cells.append(_Cell((f"pass {number} reads", name), edges, ("before", "after"), "its own", told))
    return _cells(f"{stage.name}: what the tiles of each pass read", cells, width)


def joins(stage: StageReport, width: int = WIDE) -> Drawing | None:
    """For every branch that a join crops: what a tile holds of it, and what the join takes."""
    rows = maps(stage)
    cells = []
    for row in rows:
        for source, crop in zip(row.inputs, row.crops, strict=True):
            if row.is_join and crop != NOTHING:
                branch = rows[source]
                names = [name.removeprefix(f"{stage.name}.") for name in (branch.name, row.name)]
                told = (
                    f"{row.name} crops {branch.name}, which holds {_told(branch.overlap)}, by {_told(crop)}"
                )
                cells.append(_Cell((names[0], f"into {names[1]}"), crop, ("crop", "crop"), "taken", told))
    return _cells(f"{stage.name}: what its joins crop", cells, width) if cells else None


@dataclass(frozen=True)
class _Cell:
    """A small picture in a grid: two lines of text, and bands around a box."""

    lines: tuple[str, str]
    edges: Edges
    kinds: tuple[str, str]
    inside: str
    title: str


def _cells(title: str, cells: Sequence[_Cell], width: int) -> Drawing:
    drawing = Drawing(width, title)
    across = 4 if width >= WIDE else 2
    wide, high = width / across, 148.0
    for number, cell in enumerate(cells):
        down, along = divmod(number, across)
        x, y = along * wide, down * high
        for line, text in enumerate(cell.lines):
            short = shortened(text, int((wide - 12) / LETTER))
            drawing.text(x + 6, y + 13 + 13 * line, short, "code", title=cell.title)
        edges = cell.edges
        most = max(edges.left + edges.right, edges.top + edges.bottom, 1)
        box = _Box.around(x + wide / 2 - 22, y + 68, 44, edges, min(24.0 / most, 6.0))
        _bands(drawing, box, *cell.kinds, cell.title)
        drawing.rect(box.x, box.y, box.side, box.side, "own", cell.title)
        drawing.text(box.x + box.side / 2, box.y + box.side / 2 + 4, cell.inside, "small", "middle")
        _numbers(drawing, box, edges)
    drawing.height = -(-len(cells) // across) * high
    return drawing


def _grid(drawing: Drawing, box: _Box) -> None:
    """The borders of tiles: the halo is part of the neighbours."""
    for place in (box.x, box.x + box.side):
        drawing.line(place, box.y - box.top - 18, place, box.y + box.side + box.bottom + 18, "outline")
    for place in (box.y, box.y + box.side):
        drawing.line(box.x - box.left - 18, place, box.x + box.side + box.right + 18, place, "outline")


def _bands(drawing: Drawing, box: _Box, before: str, after: str, title: str = "") -> None:
    """Four bands around a box, mitred at the corners."""
    x1, y1, x2, y2 = box.x, box.y, box.x + box.side, box.y + box.side
    inner = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    left, right, top, bottom = x1 - box.left, x2 + box.right, y1 - box.top, y2 + box.bottom
    outer = ((left, top), (right, top), (right, bottom), (left, bottom))
    for first, kind in enumerate((before, after, after, before)):  # top, right, bottom, left
        second = (first + 1) % 4
        drawing.polygon((inner[first], outer[first], outer[second], inner[second]), kind, title)


def _numbers(drawing: Drawing, box: _Box, edges: Edges) -> None:
    """The width of each band in samples, outside of it."""
    middle = box.side / 2
    drawing.text(box.x - box.left - 5, box.y + middle + 4, str(edges.left), "strong", "end")
    drawing.text(box.x + box.side + box.right + 5, box.y + middle + 4, str(edges.right), "strong")
    drawing.text(box.x + middle, box.y - box.top - 4, str(edges.top), "strong", "middle")
    drawing.text(box.x + middle, box.y + box.side + box.bottom + 12, str(edges.bottom), "strong", "middle")


def _told(edges: Edges) -> str:
    return f"left {edges.left}, right {edges.right}, top {edges.top}, bottom {edges.bottom}"
