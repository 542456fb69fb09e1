"""Runs a plan over a network, a stage or a segment of one: one executor for every schedule.

Tile by tile, every op computes its rows and columns of the step, from pieces of what its inputs hold. A held
map is assembled from what was just computed, what the tile to the left kept, and what the band above kept.
Each is dropped after its last reader.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overlap_tool.errors import RuleError
from overlap_tool.geometry import Patch, Span
from overlap_tool.geometry.plan import AxisPlan, Step, alike
from overlap_tool.geometry.walk import Turn, walk
from overlap_tool.graph.network import Constant, Input, Network, Op, operands, substituted
from overlap_tool.kernels import pieces
from overlap_tool.rules import Operand, Patches
from overlap_tool.rules.mode import SetAside
from overlap_tool.rules.pieces import as_kept, as_laid_out
from overlap_tool.runtime.conditions import Conditions, is_ours
from overlap_tool.runtime.repeated import Replayed, Script, is_placed, keep_for_another_pass, repeats
from overlap_tool.runtime.stores import Sink, Source


@torch.no_grad()
def execute_pass(
    network: Network,
    rows: AxisPlan,
    columns: AxisPlan,
    sources: Mapping[str, Source],
    sinks: Mapping[str, Sink],
    values: Mapping[str, Any],
    batch: int = 1,
    after_tile: Callable[[], None] = lambda: None,
) -> None:
    """Compute a network's output, and its other wanted maps, from all of its given maps.

    `sources` and `sinks` are by the ids of the maps, `values` are weights and summaries. Independent tiles
    that are alike, side by side, can be computed in batches. If rows are kept, the columns of the plan must
    not overlap.
    """
    if batch > 1 and any(rows.kept + columns.kept):
        raise ValueError("tiles that keep something for others cannot be computed in batches")
    if any(rows.kept) and columns.overlapping:
        raise ValueError("rows are kept, but columns recomputed, which would be kept twice")
    given = next(op.id for op in network.ops if isinstance(op, Input))
    top, left = (max(0, plan.extents[network.index[given]].start) for plan in (rows, columns))
    corner = sources[given].read(Span(top, top + 1), Span(left, left + 1))
    endless = _endless(network, rows, columns, sources, sinks)
    groups = (
        [[step] for step in columns.steps] if batch == 1 else alike(network.columns, columns.steps, batch)
    )
    run = Execution(network, rows, columns, groups, *endless, values, corner)
    tiles = [(row, group) for row in rows.steps for group in groups]
    for (row, group), following in zip(tiles, [*tiles[1:], None], strict=True):
        if group is groups[0]:
            run.lefts.clear()
        run.group = group
        run.upcoming = following
        run.tile(row, group[0])
        for _ in group:
            after_tile()
    if run.repeats is not None:
        keep_for_another_pass(network, run.repeats)


class EndlessSource:
    """A source whose pieces may extend beyond the image. They are NaN there, so that any use of it shows."""

    def __init__(self, source: Source, height: int, width: int) -> None:
        self.source = source
        self.height = height
        self.width = width

    def read(self, rows: Span, columns: Span) -> Tensor:
        inside = rows.clip(self.height), columns.clip(self.width)
        samples = self.source.read(*inside)
        if inside == (rows, columns):
            return samples
        piece = _empty(samples, rows.length, columns.length).fill_(float("nan"))
        piece[..., _slice(inside[0], rows.start), _slice(inside[1], columns.start)] = samples
        return piece

    def expect(self, rows: Span, columns: Span) -> None:
        self.source.expect(rows.clip(self.height), columns.clip(self.width))


class EndlessSink:
    """Keeps what lies inside the image."""

    def __init__(self, sink: Sink, height: int, width: int) -> None:
        self.sink = sink
        self.height = height
        self.width = width

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        inside = rows.clip(self.height), columns.clip(self.width)
        self.sink.write(*inside, _Held(values, rows, columns).piece(*inside))


def _endless(
    network: Network,
    rows: AxisPlan,
    columns: AxisPlan,
    sources: Mapping[str, Source],
    sinks: Mapping[str, Sink],
) -> tuple[dict[str, EndlessSource], dict[str, EndlessSink]]:
    """A network's sources and sinks, each with the size of its map."""
    sizes = {map: (rows.sizes[i], columns.sizes[i]) for map, i in network.index.items()}
    return (
        {map: EndlessSource(source, *sizes[map]) for map, source in sources.items() if map in sizes},
        {map: EndlessSink(sink, *sizes[map]) for map, sink in sinks.items() if map in sizes},
    )


@dataclass
class _Held:
    """A part of one op's output, and where it lies."""

    values: Tensor
    rows: Span
    columns: Span

    def piece(self, rows: Span, columns: Span) -> Tensor:
        if rows == self.rows and columns == self.columns:
            return self.values
        return self.values[..., _slice(rows, self.rows.start), _slice(columns, self.columns.start)]


class Execution:
    """One pass over a network, tile by tile."""

    def __init__(
        self,
        network: Network,
        rows: AxisPlan,
        columns: AxisPlan,
        groups: Sequence[Sequence[Step]],
        sources: Mapping[str, Source],
        sinks: Mapping[str, Sink],
        values: Mapping[str, Any],
        corner: Tensor,
    ) -> None:
        self.network = network
        self.rows = rows
        self.columns = columns
        self.sources = sources
        self.sinks = sinks
        self.values = values
        self.group: Sequence[Step] = ()
        """The column steps of the tiles that are computed at once: they are consecutive among the images."""
        self.upcoming: tuple[Step, Sequence[Step]] | None = None
        """The steps of the next tiles."""
        self.corner = corner
        """One sample, which shows the number of images, their type and their device."""
        self.lefts: dict[int, Tensor] = {}
        """What the tile to the left kept: all rows held, the columns still to be read."""
        self.aboves: dict[int, Tensor] = {}
        """What the bands above kept: the rows still to be read, over all computed columns. A tile reads its
        columns before it writes them for the next band, so one buffer serves both."""
        conditions = Conditions(network, rows, columns, (*sources, "", *sinks), corner, values)
        self.repeats = repeats(network, rows, groups, corner, conditions)
        self.script: Script | None = None
        """The script of the tile that is being recorded."""
        self.engine: AbstractContextManager[None] = nullcontext()
        """The engine that ops and third-party code run in; everything else here only moves numbers."""

    def tile(self, row: Step, column: Step) -> None:
        if self.repeats is None:
            self.by_turns(row, column)
            return
        form = self.repeats.form(row, column)
        if (script := self.repeats.script(form)) is not None:
            self.script = script
            try:
                with script.recorder.on():
                    self.by_turns(row, column)
            finally:
                self.script = None
            self.repeats.keep(form, script)
        elif (replayed := self.repeats.known.get(form)) is None or not self.by_tape(replayed, row, column):
            self.by_turns(row, column)

    def by_turns(self, row: Step, column: Step) -> None:
        if self.repeats is not None:
            self.repeats.rooms.release()
        held: dict[int, _Held] = {}
        self.engine = engine = SetAside(None if self.script is None else self.script.recorder)
        with engine.aside():
            for turn in walk(self.network.reads, row, column):
                op = self.network.ops[turn.op]
                if isinstance(op, Input):
                    self.read(turn, held)
                else:
                    self.take(turn, op, held)

    def by_tape(self, replayed: Replayed, row: Step, column: Step) -> bool:
        """Replay the tape of another tile for this one; if that fails, return False with nothing changed."""
        given = []
        self.engine = nullcontext()  # nothing is set aside
        for what, op in replayed.takes:
            if what == "read":
                given.append(self.piece(op, row.hold[op]))
                self.expect(op)
            elif what == "place":
                given.append(_copied(self.at_its_place(op, row.patches[op], column.patches[op])))
            elif what == "left":
                given.append(self.lefts[op])
            else:
                if op not in self.aboves:
                    size, strides, dtype, device = replayed.aboves[op]
                    self.aboves[op] = torch.empty_strided(size, strides, dtype=dtype, device=device)
                given.append(self.aboves[op][..., self.across(op, column.compute[op])])
        found = replayed.tape.replay(given)
        if found is None:
            return False
        for what, op in replayed.takes:
            if what == "left":
                del self.lefts[op]
        for (where, op), values in zip(replayed.leaves, found, strict=True):
            if where == "left":
                self.lefts[op] = values
            else:
                self.write_pieces(op, row.compute[op], values)
        return True

    def unrecorded(self) -> AbstractContextManager[None]:
        return nullcontext() if self.script is None else self.script.recorder.paused()

    def read(self, turn: Turn, held: dict[int, _Held]) -> None:
        if turn.held is not None:
            with self.engine, self.unrecorded():
                held[turn.op] = _Held(self.piece(turn.op, turn.held.rows), *turn.held)
            if self.script is not None:
                self.script.take("read", turn.op, held[turn.op].values)
        with self.engine, self.unrecorded():
            self.expect(turn.op)

    def piece(self, op: int, rows: Span) -> Tensor:
        """What the tiles read of a map."""
        source = self.sources[self.network.ops[op].id]
        pieces = [source.read(rows, step.hold[op]) for step in self.group]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def expect(self, op: int) -> None:
        if self.upcoming is not None:
            row, group = self.upcoming
            for step in group:
                self.sources[self.network.ops[op].id].expect(row.hold[op], step.hold[op])

    def take(self, turn: Turn, op: Op, held: dict[int, _Held]) -> None:
        new = None if turn.patches is None else self.new(turn.op, op, *turn.patches, held)
        for done in turn.dropped:
            held.pop(done, None)
        if new is not None and op.id in self.sinks:
            self.write(turn, new)
        if turn.held is not None:
            held[turn.op] = _Held(self.put_together(turn, new), *turn.held)
            self.set_aside(turn, held[turn.op])

    def write_pieces(self, op: int, rows: Span, values: Tensor) -> None:
        """What the tiles give of a map."""
        sink = self.sinks[self.network.ops[op].id]
        for step, part in zip(self.group, values.chunk(len(self.group)), strict=True):
            sink.write(rows, step.compute[op], part)

    def write(self, turn: Turn, new: Tensor) -> None:
        with self.engine, self.unrecorded():
            self.write_pieces(turn.op, turn.computed.rows, new)
        if self.script is not None:
            self.script.leave("write", turn.op, new)

    def new(self, at: int, op: Op, vertical: Patch, horizontal: Patch, held: dict[int, _Held]) -> Tensor:
        """What the tiles compute of a map."""
        if not is_placed(op):
            return self.run(op, vertical, horizontal, held)
        with self.unrecorded():
            found = self.at_its_place(at, vertical, horizontal)
            if self.script is None:
                return found
            found = _copied(found)  # one value may have several places, and a tape takes no tensor twice
        self.script.take("place", at, found)
        return found

    def at_its_place(self, at: int, vertical: Patch | None, horizontal: Patch | None) -> Tensor:
        """What the tiles have of a value that varies by position. Its map only says how many images."""
        op = self.network.ops[at]
        assert isinstance(op, Op)
        assert vertical is not None
        assert horizontal is not None

        def value(operand: Operand) -> Any:
            if operand.spatial:
                return self.nothing(operand, vertical, horizontal, "meta")
            return self.values[operand.id]

        return compute_piece(op, (vertical, horizontal), value, self.engine)

    def run(self, op: Op, vertical: Patch, horizontal: Patch, held: dict[int, _Held]) -> Tensor:
        def value(operand: Operand) -> Any:
            if operand.summary and len(self.group) > 1:
                return torch.cat([self.values[operand.id]] * len(self.group))
            if not operand.spatial:
                return self.values[operand.id]
            if vertical.have.empty or horizontal.have.empty:
                return self.nothing(operand, vertical, horizontal)
            return held[self.network.index[operand.id]].piece(vertical.have, horizontal.have)

        with self.watched(op):
            found = compute_piece(op, (vertical, horizontal), value, self.engine)
        if self.script is not None and not (vertical.have.empty or horizontal.have.empty):
            self.script.recorder.follows(found)
        return found

    def watched(self, op: Op) -> AbstractContextManager[Any]:
        """While a tile is recorded, watch third-party code; our own rules pass no numbers to Python."""
        return nullcontext() if self.script is None or is_ours(op.rule) else self.script.recorder.watching()

    def nothing(
        self, operand: Operand, vertical: Patch, horizontal: Patch, device: str | None = None
    ) -> Tensor:
        """A piece whose numbers do not count: it is empty, or only its size is read."""
        images = self.corner.shape[0] * len(self.group)
        size = vertical.have.length, horizontal.have.length
        return self.corner.new_empty((images, *operand.layout.channels, *size), device=device)

    def put_together(self, turn: Turn, new: Tensor | None) -> Tensor:
        """What later ops read: what was computed, joined with what the tiles to the left and above kept."""
        left = self.lefts.pop(turn.op, None)
        if left is not None and self.script is not None:
            self.script.take("left", turn.op, left)
        if not turn.joins:
            block = left if turn.computed.columns.empty else new
            assert block is not None
            return block
        assert turn.held is not None
        like = new if new is not None else left if left is not None else self.aboves[turn.op]
        block = _empty(like, turn.held.rows.length, turn.held.columns.length)
        if self.script is not None:
            self.script.recorder.has_room(block)
        top = turn.computed.rows.start - turn.held.rows.start
        if left is not None:
            self.copy(left, block[..., : turn.before])
        if top:
            self.copy(self.above(turn, top), block[..., :top, turn.before :])
        if new is not None:
            self.copy(new, block[..., top:, turn.before :])
        return block

    def copy(self, source: Tensor, to: Tensor) -> None:
        to.copy_(source)
        if self.script is not None:
            self.script.recorder.copied(source, to)

    def set_aside(self, turn: Turn, held: _Held) -> None:
        """Keep what later tiles read."""
        if not turn.kept.columns.empty:
            right = held.piece(held.rows, turn.kept.columns)
            self.lefts[turn.op] = right.clone()
            if self.script is not None:
                self.script.recorder.cloned(right, self.lefts[turn.op])
                self.script.leave("left", turn.op, self.lefts[turn.op])
        if not (turn.kept.rows.empty or turn.computed.columns.empty):
            below = held.piece(turn.kept.rows, turn.computed.columns)
            if turn.op not in self.aboves:
                size = self.rows.kept[turn.op], self.columns.extents[turn.op].length
                self.aboves[turn.op] = _empty(held.values, *size)
            self.copy(below, self.above(turn, below.shape[-2]))

    def above(self, turn: Turn, rows: int) -> Tensor:
        """The kept rows of the bands above, in the columns that a tile computes."""
        whole, columns = self.aboves[turn.op], self.across(turn.op, turn.computed.columns)
        if self.script is None:
            return whole[..., :rows, columns]
        above = whole[..., columns]
        self.script.aboves[turn.op] = whole.shape, whole.stride(), whole.dtype, whole.device
        self.script.take("above", turn.op, above)
        return above[..., :rows, :]

    def across(self, op: int, columns: Span) -> slice:
        """The position of these columns in what the bands above kept."""
        return _slice(columns, self.columns.extents[op].start)


def compute_piece(
    op: Op,
    patches: Patches,
    value: Callable[[Operand], Any],
    engine: AbstractContextManager[None] = nullcontext(),  # noqa: B008
) -> Tensor:
    """The op's outputs of one tile, by its rule, checked for the number that was asked for."""
    module = () if op.module is None else (op.module,)
    value = as_the_model_has_it(value, engine)
    args = substituted(op.args, Operand, value)
    kwargs = substituted(op.kwargs, Operand, value) if op.kwargs else {}
    with pieces(), engine:
        result = op.rule.run(patches, *module, *args, **kwargs)
    rows, columns = (patch.out.length for patch in patches)
    try:
        with nullcontext() if op.layout.is_kept else engine:
            return as_kept(result, op.layout, rows, columns)
    except ValueError:
        raise RuleError(
            f"{op.name} ({op.kind})",
            f"its rule gave {tuple(result.shape)} outputs of a piece where {rows}x{columns} were asked for",
            "Correct the rule's geometry or its run",
        ) from None


def as_the_model_has_it(
    value: Callable[[Operand], Any],
    engine: AbstractContextManager[None] = nullcontext(),  # noqa: B008
) -> Callable[[Operand], Any]:
    """The same values, with the dimensions of maps in the model's order."""

    def laid_out(operand: Operand) -> Any:
        found = value(operand)
        if not operand.spatial or operand.layout.is_kept:
            return found
        with engine:
            return as_laid_out(found, operand.layout)

    return laid_out


def evaluate_constants(network: Network) -> dict[str, Any]:
    """The stage's weights, and what is computed from them and from the size of its image, by id.

    Equal computations, such as masks of windows in every block, are done once; values that only serve to make
    others are dropped.
    """
    read = {
        operand.id
        for node in network.nodes.values()
        if not isinstance(node, Constant | Input)
        for operand in operands((node.args, node.kwargs))
    }
    last = {
        operand.id: constant.id
        for constant in network.constants
        for operand in operands((constant.args, constant.kwargs))
    }
    values: dict[str, Any] = {}
    same_as: dict[str, str] = {}
    """The first constant that is computed in the same way."""
    first: dict[Any, str] = {}
    for constant in network.constants:
        how = constant.source, constant.target, _told_apart((constant.args, constant.kwargs), same_as)
        same_as[constant.id] = first.setdefault(how, constant.id)
        if same_as[constant.id] in values:
            values[constant.id] = values[same_as[constant.id]]
        elif constant.source is not None:
            values[constant.id] = operator.attrgetter(constant.source)(network.root)
        else:
            given = (constant.args, constant.kwargs)
            args, kwargs = substituted(given, Operand, lambda operand: values[operand.id])
            values[constant.id] = constant.target(*args, **kwargs)
        for operand in operands((constant.args, constant.kwargs)):
            if last[operand.id] == constant.id and operand.id not in read:
                values.pop(operand.id, None)
    return values


def _told_apart(value: Any, same_as: Mapping[str, str]) -> Any:
    """Nested arguments in a comparable form."""
    if isinstance(value, Operand):
        return Operand, same_as[value.id]
    if isinstance(value, dict):
        return dict, tuple((key, _told_apart(item, same_as)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return type(value), tuple(_told_apart(item, same_as) for item in value)
    if isinstance(value, slice):
        return slice, _told_apart((value.start, value.stop, value.step), same_as)
    if isinstance(value, float):
        return float, value.hex()  # 0.0 and -0.0 would compare equal
    return type(value), id(value) if isinstance(value, Tensor) or value.__hash__ is None else value


def _empty(like: Tensor, height: int, width: int) -> Tensor:
    """A new map of the given size, with its dimensions in `like`'s order in memory."""
    strides = like.stride()
    order = sorted(range(like.ndim), key=lambda dim: -strides[dim])
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        order = [0, 2, 3, 1]  # which strides do not show in a map of one pixel
    shape = (*like.shape[:-2], height, width)
    return torch.empty_permuted(shape, order, dtype=like.dtype, device=like.device)


def _copied(values: Tensor) -> Tensor:
    """In new memory, whose layout follows from the shape alone."""
    return values.clone(memory_format=torch.contiguous_format)


def _slice(span: Span, start: int = 0) -> slice:
    return slice(span.start - start, span.stop - start)
