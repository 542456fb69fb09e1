"""A stage on workers, pass by pass, and each pass in pieces.

Where workers find the folder of the job, they read and write the maps between passes there. Otherwise tasks
contain what they read of them, and the pieces come back.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.distributed.cluster import OnWorkers, one_result_at_a_time
from overlap_tool.distributed.models import Wanted, loaded
from overlap_tool.distributed.outlook import Cut, fitting_side
from overlap_tool.distributed.pieces import (
    PieceSink,
    areas_read,
    compute_part,
    cut_pass,
    plans_of,
    same_place,
)
from overlap_tool.distributed.reading import MapInPieces, PictureWindow, SentNumbers
from overlap_tool.files.running import plan_of
from overlap_tool.geometry.walk import Area
from overlap_tool.graph.network import Barrier, Summary
from overlap_tool.planning.choose import BarrierBands, SegmentPlan, Shape, StagePlan, plan_pass
from overlap_tool.rules import engine
from overlap_tool.runtime import passes
from overlap_tool.runtime.passes import Pass
from overlap_tool.runtime.progress import TileProgress
from overlap_tool.runtime.stores import Sink, Source
from overlap_tool.wrapping.retrofit import TiledForward

Sent = SentNumbers | PictureWindow | MapInPieces
"""A map that a task reads, of which it contains an area, or the place."""


class Written(Protocol):
    """A map that workers write, in pieces."""

    def writing(self, number: int, at: Area) -> AbstractContextManager[Sink]:
        """A sink for one of the pieces of a pass, which lies there in the last map of the pass."""
        ...


@dataclass(frozen=True)
class PieceWork:
    """The piece of a pass that a worker computes."""

    model: Wanted
    stage: str
    shape: Shape
    number: int
    """Of the pass."""
    values: Mapping[str, Any]
    """The summaries."""
    index: int
    """Of the piece."""
    area: Area
    """Its place in the last map of the pass."""


@dataclass
class PassesOnWorkers(ABC):
    """The passes of a stage, each in pieces."""

    client: Any
    model: Any
    """The model's file, as a task."""
    wanted: Wanted
    stage: TiledForward
    shape: Shape
    areas: Sequence[Sequence[Area]]
    """The pieces of every pass."""
    folder: Path
    """The place of the maps between passes."""
    quiet: bool
    number: int = field(default=-1, init=False)
    """Of the pass that runs."""

    @cached_property
    def plan(self) -> StagePlan:
        return plan_of(self.stage, self.shape)

    @abstractmethod
    def sent(self, source: Source, area: Area) -> Sent:
        """An area of a map, in the form in which a task has it."""

    @abstractmethod
    def written(self, maps: Mapping[str, MapInPieces]) -> Mapping[str, Written]:
        """Those of the maps that workers write themselves. Of the others, pieces come back."""

    @abstractmethod
    def left(self, pieces: range) -> Sequence[int]:
        """The pieces that have yet to be computed."""

    @abstractmethod
    def take(self, maps: Mapping[str, MapInPieces], index: int, came: Mapping[str, NDArray[Any]]) -> None:
        """Store what came back of a piece, which is done."""

    @abstractmethod
    def reduce(
        self, barrier: Barrier, values: Mapping[str, Any], source: Source, bands: BarrierBands
    ) -> Tensor:
        """The value of a barrier."""

    def run(self, source: Source) -> None:
        plan = self.plan
        with engine(self.stage.settings.engine), torch._C.DisableTorchFunction():
            for _ in passes.in_turn(plan.network, plan.segments, source, self._compute, self.reduce):
                self.number += 1

    def _compute(self, each: Pass) -> dict[str, Source]:
        """Compute a pass, and return the maps that it stores. In a resumed run, unread ones may be gone."""
        network, part, areas = self.plan.network, each.plan, self.areas[self.number]
        for map in self.plan.segments[self.number - 1].segment.dropped if self.number else ():
            shutil.rmtree(self.folder / f"map-{map}", ignore_errors=True)
        if not part.segment.computes:
            return {}
        nodes = ((id, network.nodes[id]) for id in each.values)
        summaries = {id: each.values[id] for id, node in nodes if isinstance(node, Barrier | Summary)}
        maps = {
            map: MapInPieces(
                str(self.folder / f"map-{map}"),
                tuple(same_place(part, map, area) for area in areas),
                network.ops[network.index[map]].layout.channels,
            )
            for map in part.segment.network.wanted
        }
        plans = plans_of(self.stage, self.plan, part, areas)

        def given(index: int) -> tuple[Any, ...]:
            area = areas[index]
            read = areas_read(plans[area])
            sent = {map: self.sent(source, read[map]) for map, source in each.sources.items()}
            work = PieceWork(self.wanted, self.stage.name, self.shape, self.number, summaries, index, area)
            return self.model, work, sent, self.written(maps)

        left = self.left(range(len(areas)))
        with TileProgress(self.stage.name, len(left), self.quiet) as progress:
            for index, came in OnWorkers(self.client, run_piece, given).as_they_come(left):
                self.take(maps, index, came)
                progress.advance()
        return {map: maps[map] for map in part.segment.stored}


def run_piece(
    model: bytes, work: PieceWork, sent: Mapping[str, Sent], written: Mapping[str, Written]
) -> dict[str, NDArray[Any]]:
    """On a worker: compute a piece of a pass. A repetition writes, or returns, the same."""
    one_result_at_a_time()
    codec = loaded(model, work.model)
    stage = next(stage for stage in codec.stages if stage.name == work.stage)
    plan = plan_of(stage, work.shape)
    part = plan_pass(stage.input_scale, plan, plan.segments[work.number], work.area)
    read = areas_read(part)
    returned = {
        map: PieceSink(same_place(part, map, work.area))
        for map in part.segment.network.wanted
        if map not in written
    }
    with ExitStack() as stack:
        sinks: dict[str, Sink] = {
            map: stack.enter_context(there.writing(work.index, work.area)) for map, there in written.items()
        }
        sources = {map: window.opened(read[map]) for map, window in sent.items()}
        compute_part(stage, plan.network, part, sources, {**sinks, **returned}, work.values)
    return {map: sink.sink.result().numpy() for map, sink in returned.items() if sink.area.size}


def cut_passes(
    stage: TiledForward,
    shape: Shape,
    memory: int,
    piece: int | None,
    to_files: bool,
    sample: int,
    last: Cut,
) -> list[list[Area]]:
    """The pieces of every pass, which fit a worker's memory; `last` cuts the output."""
    *before, output = plan_of(stage, shape).segments

    def pieces(each: SegmentPlan, cut: Cut) -> list[Area]:
        return cut(piece, fitting_side(stage, shape, each, cut, memory, to_files, sample, piece))

    return [*(pieces(each, partial(cut_pass, stage, each)) for each in before), pieces(output, last)]
