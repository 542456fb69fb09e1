"""Running a stage by a plan, on its real input or on one where a tile sees less than its overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import torch
from torch import Tensor

from overlap_tool.axis import Axis
from overlap_tool.execute import execute
from overlap_tool.geometry import Span
from overlap_tool.network import Network
from overlap_tool.schedule.choose import StagePlan
from overlap_tool.schedule.plan import AxisPlan, Step
from overlap_tool.stores import Source, TensorSink, TensorSource


def run_stage(network: Network, plan: StagePlan, whole: Tensor, batch: int = 1) -> Tensor:
    """The stage's output by the executor."""
    return run_from(network, plan.rows, plan.columns, TensorSource(whole, whole.device), batch)


def run_from(network: Network, rows: AxisPlan, columns: AxisPlan, source: Source, batch: int = 1) -> Tensor:
    sink = TensorSink(rows.sizes[-1], columns.sizes[-1])
    execute(network, rows, columns, source, sink, batch=batch)
    return sink.result()


@dataclass(frozen=True)
class Halo:
    """What one tile reads of the stage's input on one axis, and which part of that is its own.

    `whole_before` and `whole_after` say whether all of the overlap on that side lies in the image.
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


def halo(axis: Axis, step: Step, n: int) -> Halo:
    """The halo of one tile of the `tiles` schedule on an input of length `n`."""
    outputs, reads = step.compute[-1], step.hold[0]
    unclipped = axis.needs({len(axis.ops) - 1: outputs})[0]
    scale: Fraction = axis.scale
    own = Span(floor(outputs.start / scale), ceil(outputs.stop / scale)).clip(n)
    return Halo(
        reads,
        own,
        whole_before=outputs.start > 0 and reads.start == unclipped.start,
        whole_after=reads.stop == unclipped.stop and outputs.stop < axis.sizes(n)[-1],
    )


class ShortSource:
    """The stage's input as tiles see it whose overlap is too small.

    `rows` and `columns` say, for each span that a tile reads, which part of it the tile still gets. What is
    missing stands as `fill`: 0 is what a too small patch would see there, its own zero padding.
    """

    def __init__(
        self, whole: Tensor, rows: Mapping[Span, Span], columns: Mapping[Span, Span], fill: float = 0.0
    ) -> None:
        self.source = TensorSource(whole, whole.device)
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
