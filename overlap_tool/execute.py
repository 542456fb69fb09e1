"""Runs a plan over a network: one executor for every schedule.

Tile by tile, every op computes its rows and columns of the step, from pieces of what its inputs hold. A held
map is put together from what was just computed, what the tile to the left kept, and what the band above kept.
Each is dropped when its last reader has run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overlap_tool.errors import RuleError
from overlap_tool.geometry import Patch, Span
from overlap_tool.network import Input, Network, Op
from overlap_tool.rules import Operand, Patches
from overlap_tool.schedule.plan import AxisPlan, Step, alike
from overlap_tool.stores import Sink, Source


@torch.no_grad()
def execute(
    network: Network,
    rows: AxisPlan,
    columns: AxisPlan,
    source: Source,
    sink: Sink,
    batch: int = 1,
    after_tile: Callable[[], None] = lambda: None,
) -> None:
    """Compute the stage on all of `source` into `sink`.

    Tiles that stand alone and are alike, side by side, can be computed in batches. Rows that are kept serve a
    plan whose columns do not overlap.
    """
    if batch > 1 and any(rows.kept + columns.kept):
        raise ValueError("tiles that keep something for others cannot be computed in batches")
    if any(rows.kept) and columns.overlapping:
        raise ValueError("rows are kept, but columns recomputed, which would be kept twice")
    ends = [(rows.sizes[op], columns.sizes[op]) for op in (0, -1)]
    source, sink = EndlessSource(source, *ends[0]), EndlessSink(sink, *ends[1])
    run = _Run(network, rows, columns, source, sink)
    groups = (
        [[step] for step in columns.steps] if batch == 1 else alike(network.columns, columns.steps, batch)
    )
    tiles = [(row, group) for row in rows.steps for group in groups]
    for (row, group), following in zip(tiles, [*tiles[1:], None], strict=True):
        if group is groups[0]:
            run.lefts.clear()
        run.source = source if len(group) == 1 else _BatchedSource(source, group)
        run.sink = sink if len(group) == 1 else _BatchedSink(sink, group)
        run.at_once = len(group)
        run.upcoming = None if following is None else (following[0].hold[0], following[1][0].hold[0])
        run.tile(row, group[0])
        for _ in group:
            after_tile()


class EndlessSource:
    """Pieces that may go beyond the image. NaN stands there, which shows where it is taken for a sample."""

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
    """Takes what lies inside the image."""

    def __init__(self, sink: Sink, height: int, width: int) -> None:
        self.sink = sink
        self.height = height
        self.width = width

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        inside = rows.clip(self.height), columns.clip(self.width)
        self.sink.write(*inside, _Held(values, rows, columns).piece(*inside))


class _BatchedSource:
    """Pieces of several tiles, read as if they were more images."""

    def __init__(self, source: Source, group: Sequence[Step]) -> None:
        self.source = source
        self.group = group

    def read(self, rows: Span, columns: Span) -> Tensor:
        return torch.cat([self.source.read(rows, step.hold[0]) for step in self.group])

    def expect(self, rows: Span, columns: Span) -> None:
        pass


class _BatchedSink:
    def __init__(self, sink: Sink, group: Sequence[Step]) -> None:
        self.sink = sink
        self.group = group

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        for step, part in zip(self.group, values.chunk(len(self.group)), strict=True):
            self.sink.write(rows, step.compute[-1], part)


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


class _Run:
    def __init__(
        self, network: Network, rows: AxisPlan, columns: AxisPlan, source: Source, sink: Sink
    ) -> None:
        self.network = network
        self.rows = rows
        self.columns = columns
        self.source = source
        self.sink = sink
        self.at_once = 1
        """How many tiles lie one after the other among the images."""
        self.upcoming: tuple[Span, Span] | None = None
        """What the next tile will read of the stage's input."""
        self.corner = source.read(Span(0, 1), Span(0, 1))
        """One sample, which shows how many images there are, their type and their device."""
        self.constants = evaluate_constants(network)
        self.index = {op.id: i for i, op in enumerate(network.ops)}
        self.freed_after = freed_after(network)
        self.lefts: dict[int, Tensor] = {}
        """What the tile to the left kept: all rows held, the columns still to be read."""
        self.aboves: dict[int, Tensor] = {}
        """What the bands above kept: the rows still to be read, over the whole width. A tile reads its
        columns of it before it writes them for the next band, so one buffer serves both."""

    def tile(self, row: Step, column: Step) -> None:
        held: dict[int, _Held] = {}
        last = len(self.network.ops) - 1
        for i, op in enumerate(self.network.ops):
            if isinstance(op, Input):
                self.read(i, row, column, held)
            elif i < last:
                self.hold(i, self.compute(i, op, row, column, held), row, column, held)
            elif (result := self.compute(i, op, row, column, held)) is not None:
                self.sink.write(row.compute[i], column.compute[i], result)

    def read(self, i: int, row: Step, column: Step, held: dict[int, _Held]) -> None:
        rows, columns = row.hold[i], column.hold[i]
        if not (rows.empty or columns.empty):
            held[i] = _Held(self.source.read(rows, columns), rows, columns)
        if self.upcoming is not None:
            self.source.expect(*self.upcoming)

    def compute(self, i: int, op: Op, row: Step, column: Step, held: dict[int, _Held]) -> Tensor | None:
        """The op's outputs of this tile, if it has any; what was read for the last time is dropped."""
        vertical, horizontal = row.patches[i], column.patches[i]
        result = None
        if vertical is not None and horizontal is not None:
            result = self.run(op, vertical, horizontal, held)
        for done in self.freed_after[i]:
            held.pop(done, None)
        return result

    def run(self, op: Op, vertical: Patch, horizontal: Patch, held: dict[int, _Held]) -> Tensor:
        def value(operand: Operand) -> Any:
            if not operand.spatial:
                return self.constants[operand.id]
            if vertical.have.empty or horizontal.have.empty:
                return self.nothing(operand, vertical, horizontal)
            return held[self.index[operand.id]].piece(vertical.have, horizontal.have)

        return compute_piece(op, (vertical, horizontal), value)

    def nothing(self, operand: Operand, vertical: Patch, horizontal: Patch) -> Tensor:
        """A piece without samples, for outputs that padding alone feeds."""
        images = self.corner.shape[0] * self.at_once
        size = vertical.have.length, horizontal.have.length
        return self.corner.new_empty((images, *operand.shape[1:-2], *size))

    def hold(self, i: int, new: Tensor | None, row: Step, column: Step, held: dict[int, _Held]) -> None:
        """Put together what later ops of this tile read, and set aside what later tiles read."""
        rows, columns = row.hold[i], column.hold[i]
        if rows.empty or columns.empty:
            return
        left = self.lefts.pop(i, None)
        if rows == row.compute[i] and columns == column.compute[i]:
            assert new is not None
            block = new
        elif column.compute[i].empty:
            assert left is not None
            block = left
        else:
            block = self.joined(i, new, left, row, column)
        held[i] = _Held(block, rows, columns)
        if not column.keep[i].empty:
            self.lefts[i] = block[..., _slice(column.keep[i], columns.start)].clone()
        if not (row.keep[i].empty or column.compute[i].empty):
            self.above(i, block)[..., : row.keep[i].length, _slice(column.compute[i])] = block[
                ..., _slice(row.keep[i], rows.start), _slice(column.compute[i], columns.start)
            ]

    def joined(self, i: int, new: Tensor | None, left: Tensor | None, row: Step, column: Step) -> Tensor:
        rows, columns = row.hold[i], column.hold[i]
        like = new if new is not None else left if left is not None else self.aboves[i]
        block = _empty(like, rows.length, columns.length)
        top = row.compute[i].start - rows.start
        before = column.compute[i].start - columns.start
        if left is not None:
            block[..., :before] = left
        if top:
            block[..., :top, before:] = self.aboves[i][..., :top, _slice(column.compute[i])]
        if new is not None:
            block[..., top:, before:] = new
        return block

    def above(self, i: int, like: Tensor) -> Tensor:
        if i not in self.aboves:
            self.aboves[i] = _empty(like, self.rows.kept[i], self.columns.sizes[i])
        return self.aboves[i]


def compute_piece(op: Op, patches: Patches, value: Callable[[Operand], Any]) -> Tensor:
    """The op's outputs of one tile, by its rule, and as many as were asked for."""
    module = () if op.module is None else (op.module,)
    args, kwargs = substituted(op.args, value), substituted(op.kwargs, value)
    result = op.rule.run(patches, *module, *args, **kwargs)
    lengths = tuple(patch.out.length for patch in patches)
    if result.shape[-2:] != lengths:
        raise RuleError(
            f"{op.name} ({op.kind})",
            f"its rule gave {tuple(result.shape[-2:])} outputs of a piece where {lengths} were asked for",
            "Correct the rule's geometry or its run",
        )
    return result


def evaluate_constants(network: Network) -> dict[str, Any]:
    """The stage's weights, and what it makes of them, by id."""
    values: dict[str, Any] = {}

    def value(operand: Operand) -> Any:
        return values[operand.id]

    for constant in network.constants:
        if constant.source is not None:
            values[constant.id] = operator.attrgetter(constant.source)(network.root)
        else:
            args, kwargs = substituted(constant.args, value), substituted(constant.kwargs, value)
            values[constant.id] = constant.target(*args, **kwargs)
    return values


def substituted(argument: Any, value: Callable[[Operand], Any]) -> Any:
    """Nested arguments with every operand replaced by its value."""
    if isinstance(argument, Operand):
        return value(argument)
    if isinstance(argument, tuple | list):
        return [substituted(item, value) for item in argument]
    if isinstance(argument, dict):
        return {key: substituted(item, value) for key, item in argument.items()}
    return argument


def freed_after(network: Network) -> list[list[int]]:
    """For every op, the ops whose values nobody reads after it."""
    index = {op.id: i for i, op in enumerate(network.ops)}
    last_read: dict[int, int] = {}
    for i, op in enumerate(network.ops):
        if isinstance(op, Op):
            last_read.update({index[source]: i for source in op.inputs})
    freed: list[list[int]] = [[] for _ in network.ops]
    for read, reader in last_read.items():
        freed[reader].append(read)
    return freed


def _empty(like: Tensor, height: int, width: int) -> Tensor:
    """A new map of the given size, laid out in memory as `like` is."""
    shape = (*like.shape[:-2], height, width)
    channels_last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        shape,
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _slice(span: Span, start: int = 0) -> slice:
    return slice(span.start - start, span.stop - start)
