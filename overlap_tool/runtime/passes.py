"""Runs a stage pass by pass: its segments, the stores between them, and the barriers at their ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overlap_tool.geometry import Span
from overlap_tool.graph.network import Barrier, Network, Op, Summary, substituted
from overlap_tool.graph.returned import put_together
from overlap_tool.kernels import pieces
from overlap_tool.planning.choose import BarrierBands, SegmentPlan, StagePlan
from overlap_tool.planning.wholes import run_whole
from overlap_tool.rules import Operand, WholeMap
from overlap_tool.rules.pieces import as_laid_out
from overlap_tool.runtime.execute import evaluate_constants, execute_pass
from overlap_tool.runtime.stores import Kept, MapBetween, Sink, Source, TensorSink, TensorSource
from overlap_tool.settings import Store

Keep = Callable[[int, int], Kept]
"""From the height and width of a map between passes to a store for it."""


@dataclass(frozen=True)
class Pass:
    """A segment that is about to run, with the sources of its maps, and the values of weights and summaries.

    An observer may replace the sources.
    """

    plan: SegmentPlan
    sources: dict[str, Source]
    values: Mapping[str, Any]


RunPass = Callable[[Pass], dict[str, Source]]
"""Runs a pass, and returns the maps that it stores."""

ReduceMap = Callable[[Barrier, Mapping[str, Any], Source, BarrierBands], Tensor]
"""From a barrier, the values so far, its map and its bands, to its value."""


def reduced(barrier: Barrier, values: Mapping[str, Any], source: Source, bands: BarrierBands) -> Tensor:
    """The barrier's value, by its rule, from bands of its map."""
    return value_of(barrier, values, Banded(source, bands))


def value_of(barrier: Barrier, values: Mapping[str, Any], whole: WholeMap) -> Tensor:
    """The same, from any form of the map."""

    def value(operand: Operand) -> Any:
        return whole if operand.spatial else values[operand.id]

    module = () if barrier.module is None else (barrier.module,)
    args, kwargs = substituted((barrier.args, barrier.kwargs), Operand, value)
    with pieces():
        result: Tensor = barrier.rule.run(*module, *args, **kwargs)
    return result


@dataclass(frozen=True)
class Banded(WholeMap):
    """A stored map as a barrier reads it: band by band."""

    source: Source
    cut: BarrierBands

    @property
    def shape(self) -> tuple[int, ...]:
        corner = self.source.read(Span(0, 1), Span(0, 1))
        return (*corner.shape[:-2], self.cut.height, self.cut.width)

    def bands(self) -> Iterator[Tensor]:
        return (self.source.read(*area) for area in self.cut.areas)


class Results:
    """The maps that a stage is computed for, assembled in tensors, and what the stage returns."""

    def __init__(self, plan: StagePlan, store: Store = "device") -> None:
        self.network = plan.network
        self.sinks = {map: TensorSink.of(plan.size_of(map), store) for map in plan.network.wanted}

    def maps(self) -> tuple[Tensor, ...]:
        return tuple(sink.result() for sink in self.sinks.values())

    def returned(self, whole: Tensor, values: Mapping[str, Any]) -> Any:
        """The return value of the stage's own forward, for this input and these summaries."""
        ops = [self.network.nodes[map] for map in self.sinks]
        kept = zip(self.sinks, self.maps(), ops, strict=True)
        maps = {id: as_laid_out(map, op.layout) if isinstance(op, Op) else map for id, map, op in kept}
        made = {**values, self.network.ops[0].id: whole, **maps}
        return put_together(self.network.returns, [made[map] for map in self.network.results])


def run(
    network: Network,
    parts: Sequence[SegmentPlan],
    source: Source,
    sinks: Mapping[str, Sink],
    keep: Keep = MapBetween,
    batch: int = 1,
    after_tile: Callable[[], None] = lambda: None,
) -> Mapping[str, Any]:
    """Compute the stage on all of `source` into `sinks`, by the ids of its wanted maps; `keep` makes the
    stores between passes.

    Every map is computed in one pass only. Returns the values of weights and summaries.
    """
    values: Mapping[str, Any] = {}
    for each in one_by_one(network, parts, source, sinks, keep, batch, after_tile):
        values = each.values
    return values


def one_by_one(
    network: Network,
    parts: Sequence[SegmentPlan],
    source: Source,
    sinks: Mapping[str, Sink],
    keep: Keep = MapBetween,
    batch: int = 1,
    after_tile: Callable[[], None] = lambda: None,
) -> Iterator[Pass]:
    """The same as `run`, yielding each pass before it runs."""

    def compute(each: Pass) -> dict[str, Source]:
        return _run_segment(each, sinks, keep, batch, after_tile)

    return in_turn(network, parts, source, compute)


@torch.no_grad()
def in_turn(
    network: Network,
    parts: Sequence[SegmentPlan],
    source: Source,
    compute: RunPass,
    reduce: ReduceMap = reduced,
) -> Iterator[Pass]:
    """The passes of a stage, each yielded before it runs; `compute` computes it, and `reduce` the values of
    barriers at its end."""
    first = network.ops[0].id
    values = evaluate_constants(network)
    if any(isinstance(node, Summary) for node in network.nodes.values()):
        # a summary may read the number of images of the input itself, and nothing else
        values[first] = source.read(Span(0, 1), Span(0, 1)).to("meta")
    for summary in network.beforehand:
        values[summary.id] = _of_values(summary, values)
    stored: dict[str, Source] = {}
    for part in parts:
        at_hand = {first: source, **stored}
        given = {map: at_hand[map] for map in at_hand if map in part.segment.network.index}
        each = Pass(part, given, values)
        yield each
        stored |= compute(each)
        stored |= _reduce(part, {first: source, **stored}, values, reduce)
        for map in part.segment.dropped:
            stored.pop(map, None)
        del at_hand, given, each  # otherwise dropped maps would stay alive during the next pass


def _run_segment(
    each: Pass,
    sinks: Mapping[str, Sink],
    keep: Keep,
    batch: int,
    after_tile: Callable[[], None],
) -> dict[str, Source]:
    """Compute a segment; return the maps that it stores."""
    part, given = each.plan, each.sources
    network = part.segment.network
    if not part.segment.computes:
        return {}
    # a map that is returned and also read later is read from the output
    made: dict[str, Any] = {
        map: sinks.get(map)
        or keep(part.rows.sizes[network.index[map]], part.columns.sizes[network.index[map]])
        for map in part.segment.stored
    }
    execute_pass(network, part.rows, part.columns, given, {**made, **sinks}, each.values, batch, after_tile)
    if not made:
        return {}
    device = next(iter(given.values())).read(Span(0, 1), Span(0, 1)).device
    return {map: each.source(device) for map, each in made.items()}


def _reduce(
    part: SegmentPlan, sources: dict[str, Source], values: dict[str, Any], reduce: ReduceMap
) -> dict[str, Source]:
    """Add the values that can be computed after a segment. Returns the maps of parts that are kept whole."""
    made: dict[str, Source] = {}
    for node in part.segment.reduced:
        if isinstance(node, Summary):
            values[node.id] = _of_values(node, values)
        elif isinstance(node, Op):
            size = part.wholes[node.id]
            whole = {**sources, **made}[node.inputs[0]].read(Span(0, size.height), Span(0, size.width))
            found = run_whole(node, whole, values, size)
            made[node.id] = TensorSource(found, found.device)
        else:
            source = {**sources, **made}[node.source]
            values[node.id] = reduce(node, values, source, part.bands[node.id])
    return made


def _of_values(summary: Summary, values: Mapping[str, Any]) -> Any:
    args, kwargs = substituted((summary.args, summary.kwargs), Operand, lambda operand: values[operand.id])
    return summary.target(*args, **kwargs)
