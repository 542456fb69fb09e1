"""Runs a stage by a plan, on its real input or on one in which tiles see less than their overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor

from overlap_tool.geometry import Span
from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.plan import AxisPlan, Step
from overlap_tool.planning.choose import StagePlan
from overlap_tool.rules.pieces import as_laid_out
from overlap_tool.runtime import passes
from overlap_tool.runtime.execute import execute_pass
from overlap_tool.runtime.passes import Pass
from overlap_tool.runtime.stores import Source, TensorSource


def run_stage(plan: StagePlan, whole: Tensor, batch: int = 1) -> Any:
    """What the stage returns for a map, computed by the executor."""
    results = passes.Results(plan)
    source = TensorSource(whole, whole.device)
    values = passes.run(plan.network, plan.segments, source, results.sinks, batch=batch)
    return results.returned(as_laid_out(whole, plan.network.ops[0].layout), values)


def run_tile(each: Pass, row: Step, column: Step, sources: Mapping[str, Source]) -> tuple[Tensor, ...]:
    """What one tile of a pass returns: its part of every map that the segment outputs."""
    network = each.plan.segment.network
    rows, columns = AxisPlan.of(each.plan.rows.sizes, [row]), AxisPlan.of(each.plan.columns.sizes, [column])
    caught = {map: _Caught() for map in (*network.kept, network.output)}
    execute_pass(network, rows, columns, sources, caught, each.values)
    return tuple(part for sink in caught.values() for part in sink.parts)


class _Caught:
    """A sink that keeps the pieces as they come."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        self.parts.append(values)


@dataclass(frozen=True)
class Halo:
    """What one tile reads of a given map on one axis, and which part of it is the tile's own.

    `whole_before` and `whole_after` say whether the whole overlap on that side lies in the image.
    """

    reads: Span
    own: Span
    whole_before: bool
    whole_after: bool

    @property
    def before(self) -> int:
        return max(0, self.own.start - self.reads.start)

    @property
    def after(self) -> int:
        return max(0, self.reads.stop - self.own.stop)


def halo(axis: Axis, step: Step, sizes: Sequence[int], given: int = 0) -> Halo:
    """The halo of one tile of the `tiles` schedule in the map that op `given` stands for."""
    outputs, reads = step.compute[-1], step.hold[given]
    unclipped = axis.needs({end: step.compute[end] for end in axis.ends})[given]
    scale: Fraction = axis.scale / axis.ops[given].scale
    own = Span(floor(outputs.start / scale), ceil(outputs.stop / scale)).clip(sizes[given])
    return Halo(
        reads,
        own,
        whole_before=outputs.start > 0 and reads.start == unclipped.start,
        whole_after=reads.stop == unclipped.stop and outputs.stop < sizes[-1],
    )


class ShortSource:
    """A map as seen by tiles whose overlap is too small.

    For each span that a tile reads, `rows` and `columns` hold the part that it still gets. Missing samples
    are `fill`: 0 is what a patch that is too small would see, its own zero padding.
    """

    def __init__(
        self, source: Source, rows: Mapping[Span, Span], columns: Mapping[Span, Span], fill: float = 0.0
    ) -> None:
        self.source = source
        self.rows = rows
        self.columns = columns
        self.fill = fill

    def read(self, rows: Span, columns: Span) -> Tensor:
        piece = self.source.read(rows, columns)
        kept_rows, kept_columns = self.rows.get(rows, rows), self.columns.get(columns, columns)
        if (kept_rows, kept_columns) == (rows, columns):
            return piece
        kept = (
            ...,
            slice(kept_rows.start - rows.start, kept_rows.stop - rows.start),
            slice(kept_columns.start - columns.start, kept_columns.stop - columns.start),
        )
        short = torch.full_like(piece, self.fill)
        short[kept] = piece[kept]
        return short

    def expect(self, rows: Span, columns: Span) -> None:
        pass
