"""Cuts an output into pieces that workers compute independently, and counts what their halos cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from overlap_tool.errors import OptionError
from overlap_tool.files.running import plan_of
from overlap_tool.geometry import Span
from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.plan import AxisPlan, places
from overlap_tool.geometry.walk import Area
from overlap_tool.graph.network import Input, Network
from overlap_tool.planning.choose import SegmentPlan, Shape, StagePlan, plan_axis, plan_part, plan_pass
from overlap_tool.planning.cost import macs, op_costs
from overlap_tool.rules import engine
from overlap_tool.runtime.execute import evaluate_constants, execute_pass
from overlap_tool.runtime.stores import Sink, Source, TensorSink, Within
from overlap_tool.wrapping.retrofit import TiledForward

SIDE = 4096
"""Rows and columns of a piece: recomputing a halo of 30 pixels around it adds 3 %."""

LEAST = 512
"""The smallest default side of a piece of a stage's output: below, halos would cost more than they gain."""

PIECES = 8
"""A scene of fewer pieces is cut into smaller ones, so that several workers have work."""


def refuse_whole_maps(stage: TiledForward, in_passes: bool = True) -> None:
    """Raise for a network whose pieces need whole maps. Those that need summaries of them run `in_passes`."""
    if needs := stage.network.wholes if in_passes else stage.network.need_whole_maps:
        raise OptionError(
            f"{needs[0].name} ({needs[0].kind})",
            "needs the whole map, which no worker has",
            "Run the network in one process: memory is bounded there, too",
        )


def refuse_other_networks(stage: TiledForward, shape: Shape) -> None:
    """Raise for a network whose ops follow the size of the image, which a piece does not show."""
    if stage.fitted(shape.images, shape.rows, shape.columns) is not stage.network:
        raise OptionError(
            stage.name, "its ops follow the size of the image", "Run the network in one process"
        )


def refuse_other_bits(stage: TiledForward) -> None:
    """Raise for the library's kernels, whose last bits would depend on the pieces."""
    if stage.settings.engine != "exact":
        raise OptionError(
            f"engine={stage.settings.engine!r}",
            "its last bits depend on where a piece begins",
            'Wrap the model without `engine="stock"`',
        )


class PieceSink:
    """A sink for an area of a map, which becomes a tensor."""

    def __init__(self, area: Area) -> None:
        self.area = area
        self.sink = TensorSink(area.rows.length, area.columns.length)

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        area = self.area
        inside = Within(self.sink, Area.whole(area.rows.length, area.columns.length))
        inside.write(rows.shift(-area.rows.start), columns.shift(-area.columns.start), values)


def compute_part(
    stage: TiledForward,
    network: Network,
    part: SegmentPlan,
    sources: Mapping[str, Source],
    sinks: Mapping[str, Sink],
    summaries: Mapping[str, Any],
) -> None:
    """Run a piece of a pass of a network, as a stream of its own."""
    with torch.no_grad(), engine(stage.settings.engine), torch._C.DisableTorchFunction():
        values = {**evaluate_constants(network), **summaries}
        batch = stage.settings.batch
        execute_pass(part.segment.network, part.rows, part.columns, sources, sinks, values, batch)


def compute_area(stage: TiledForward, source: Source, shape: Shape, area: Area) -> Tensor:
    """An area of the output of a stage that runs in one pass."""
    plan = plan_of(stage, shape)
    (part,) = plan_part(stage.input_scale, plan, area)
    network, sink = plan.network, PieceSink(area)
    compute_part(stage, network, part, {network.ops[0].id: source}, {network.output: sink}, {})
    return sink.sink.result()


def areas_read(part: SegmentPlan) -> dict[str, Area]:
    """The areas of maps that a piece of a pass reads."""

    def inside(plan: AxisPlan) -> list[Span]:
        return [span.clip(size) for span, size in zip(plan.extents, plan.sizes, strict=True)]

    lie = zip(part.segment.network.ops, inside(part.rows), inside(part.columns), strict=True)
    return {op.id: Area(rows, columns) for op, rows, columns in lie if isinstance(op, Input)}


def same_place(part: SegmentPlan, map: str, area: Area) -> Area:
    """The part of a pass's map at the place of an area of its last map."""
    network = part.segment.network

    def on_axis(axis: Axis, plan: AxisPlan, span: Span) -> Span:
        at, index = places(axis, plan.sizes), network.index[map]
        return Span(at(span.start)[index], at(span.stop)[index])

    rows, columns = area
    return Area(on_axis(network.rows, part.rows, rows), on_axis(network.columns, part.columns, columns))


def grid(rows: Sequence[int], columns: Sequence[int]) -> list[Area]:
    """The rectangles between these edges, left to right and top to bottom."""
    return [Area(Span(*down), Span(*across)) for down in pairwise(rows) for across in pairwise(columns)]


def edges(span: Span, side: int) -> list[int]:
    return [*range(*span, side), span.stop]


def cut_scene(
    size: tuple[int, int], chunk: tuple[int, int], side: int | None, most: int = SIDE
) -> list[Area]:
    """The pieces of an output: whole chunks of its file, so that no two workers write the same one."""

    def pieces(side: int) -> list[Area]:
        steps = (max(1, round(side / of)) * of for of in chunk)
        return grid(*(edges(Span(0, n), step) for n, step in zip(size, steps, strict=True)))

    return pieces(side if side is not None else enough(pieces, max(chunk), most))


def cut_stage(stage: TiledForward, area: Area, side: int | None, most: int = SIDE) -> list[Area]:
    """The pieces of an area of a stage's output, `side` pixels of the image high and wide."""
    return _cut(stage, stage.network, area, side, most)


def cut_pass(stage: TiledForward, each: SegmentPlan, side: int | None, most: int = SIDE) -> list[Area]:
    """The pieces of the last map of a pass."""
    area = Area.whole(each.rows.sizes[-1], each.columns.sizes[-1])
    return _cut(stage, each.segment.network, area, side, most)


def _cut(stage: TiledForward, network: Network, area: Area, side: int | None, most: int) -> list[Area]:
    scales = [stage.input_scale * axis.scale for axis in (network.rows, network.columns)]

    def pieces(side: int) -> list[Area]:
        steps = (max(1, int(side * scale)) for scale in scales)
        return grid(*(edges(span, step) for span, step in zip(area, steps, strict=True)))

    return pieces(side if side is not None else enough(pieces, LEAST, most))


def enough(pieces: Callable[[int], list[Area]], least: int, side: int) -> int:
    """The largest side, of halves of `side` down to `least`, that gives enough pieces."""
    while len(pieces(side)) < PIECES and side > least:
        side //= 2
    return side


def plans_of(
    stage: TiledForward, plan: StagePlan, each: SegmentPlan, areas: Iterable[Area]
) -> dict[Area, SegmentPlan]:
    """The plans of a pass's pieces: these form a grid, so each row and column is planned once."""
    asked, network = list(areas), each.segment.network
    alike = (network.rows, each.rows.sizes) == (network.columns, each.columns.sizes)

    def planned(axis: int, span: Span) -> AxisPlan:
        return plan_axis(stage.input_scale, plan, each, axis, span)

    rows = {span: planned(0, span) for span in {area.rows for area in asked}}
    known = rows if alike and plan.tile.width == plan.tile.height else {}
    columns = {span: known.get(span) or planned(1, span) for span in {area.columns for area in asked}}
    return {area: replace(each, rows=rows[area.rows], columns=columns[area.columns]) for area in asked}


def arithmetic(each: SegmentPlan, plans: Iterable[SegmentPlan]) -> list[int]:
    """Multiply-accumulates of each of these pieces of a pass."""
    costs = op_costs(each.segment.network)
    return [macs(costs, plan.rows, plan.columns) for plan in plans]


def all_of(areas: Sequence[Area]) -> Area:
    """The area that consecutive pieces cover together."""
    ends = zip(areas[0], areas[-1], strict=True)
    return Area(*(Span(first.start, last.stop) for first, last in ends))


def recomputed(stage: TiledForward, shape: Shape, pieces: Sequence[Sequence[Area]]) -> float:
    """The share of arithmetic that halos add to each pass, relative to a single process."""
    plan = plan_of(stage, shape)
    apart = together = 0
    for each, areas in zip(plan.segments, pieces, strict=True):
        if each.segment.computes:
            apart += sum(arithmetic(each, plans_of(stage, plan, each, areas).values()))
            together += sum(arithmetic(each, [plan_pass(stage.input_scale, plan, each, all_of(areas))]))
    return apart / max(1, together) - 1
