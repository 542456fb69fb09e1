"""A network on workers, pass by pass: maps between passes are stored in pieces, and workers sum up barriers.

A barrier sums every row first, as a tree of neighbours, and then the rows. The part of a row in a piece
consists of a few whole nodes of that tree, wherever the piece begins: workers compute these, and the process
that started the run sums up the rest, a number for every row. So no bit depends on the pieces.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overlap_tool import bounds
from overlap_tool.distributed.cluster import OnWorkers, memory_of_a_worker, this_worker
from overlap_tool.distributed.models import Wanted, file_bytes, loaded
from overlap_tool.distributed.outlook import fitting_side
from overlap_tool.distributed.pieces import SIDE, cut_pass, cut_scene, edges, grid
from overlap_tool.distributed.reading import MapInPieces, PictureWindow
from overlap_tool.errors import ClusterError
from overlap_tool.files.formats.addresses import located
from overlap_tool.files.formats.outputs import WholeChunks
from overlap_tool.files.formats.pictures import library
from overlap_tool.files.formats.pixels import PictureNumbers
from overlap_tool.files.job import Job
from overlap_tool.files.plain import NetworkOnImage
from overlap_tool.files.running import plan_of
from overlap_tool.geometry import Span
from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.plan import AxisPlan, cut, places
from overlap_tool.geometry.walk import Area
from overlap_tool.graph.network import Barrier, Summary
from overlap_tool.kernels import engine, pieces
from overlap_tool.planning.choose import BarrierBands, SegmentPlan, plan_pass
from overlap_tool.rules.barriers import Tree, whole_nodes
from overlap_tool.runtime import passes
from overlap_tool.runtime.execute import evaluate_constants, execute_pass
from overlap_tool.runtime.passes import Banded, Pass
from overlap_tool.runtime.progress import TileProgress
from overlap_tool.runtime.stores import Sink, Source, Within
from overlap_tool.settings import Engine, SampleType

Nodes = list[list[tuple[int, Tensor]]]
"""For each span of columns, nodes of the trees over its rows: the columns that each sums up, and its
values."""


@dataclass(frozen=True)
class SceneInFiles:
    """What workers need to know of a run: paths that are valid for all of them, and the model's identity."""

    source: str
    target: str
    dtype: SampleType | None
    model: Wanted


@dataclass(frozen=True)
class PassWork:
    """A pass, as workers compute it: what they read beside the image, and what they store."""

    number: int
    values: Mapping[str, Any]
    """The summaries."""
    read: Mapping[str, MapInPieces]
    made: Mapping[str, MapInPieces]


class PassesOnWorkers:
    """The passes of a network on an image, each in pieces."""

    def __init__(
        self,
        client: Any,
        model: Any,
        scene: SceneInFiles,
        work: NetworkOnImage,
        job: Job,
        chunk: tuple[int, int],
        piece: int | None,
        quiet: bool,
    ) -> None:
        self.client = client
        self.model = model
        self.scene = scene
        self.work = work
        self.job = job
        self.quiet = quiet
        self.plan = plan_of(work.stage, work.shape)
        memory = memory_of_a_worker(client) - file_bytes(work.stage.module)
        *before, most = (
            fitting_side(work.stage, work.shape, each, memory, to_files=True)[0]
            for each in self.plan.segments
        )
        self.areas = [
            *(
                cut_pass(work.stage, each, piece or side)
                for each, side in zip(self.plan.segments, before, strict=False)
            ),
            cut_scene(work.size, chunk, piece, most),
        ]
        """The pieces of every pass; for the last one, whole chunks of the output."""
        self.number = -1

    def run(self) -> None:
        source = self.work.pixels(Span(0, self.work.shape.columns))
        with engine(self.work.stage.settings.engine):
            for _ in passes.in_turn(
                self.plan.network, self.plan.segments, source, self._compute, self._reduce
            ):
                self.number += 1

    def _compute(self, each: Pass) -> dict[str, Source]:
        """Compute a pass, and return the maps that it stores. In a resumed run, unread ones may be gone."""
        number, part = self.number, each.plan
        for map in self.plan.segments[number - 1].segment.dropped if number else ():
            shutil.rmtree(self._folder(map), ignore_errors=True)
        if not part.segment.computes:
            return {}
        maps = {
            map: MapInPieces(
                str(self._folder(map)),
                tuple(same_place(part, map, area) for area in self.areas[number]),
                self.plan.network.ops[self.plan.network.index[map]].layout.channels,
            )
            for map in part.segment.stored
        }
        for map in maps:
            self._folder(map).mkdir(exist_ok=True)
        summaries = {
            id: value
            for id, value in each.values.items()
            if isinstance(self.plan.network.nodes[id], Barrier | Summary)
        }
        read = {map: source for map, source in each.sources.items() if isinstance(source, MapInPieces)}
        work = PassWork(number, summaries, read, maps)
        name = "piece" if part is self.plan.segments[-1] else f"pass-{number}"
        pieces = {f"{name}-{index}": (index, area) for index, area in enumerate(self.areas[number])}
        missing = {piece: where for piece, where in pieces.items() if piece not in self.job.done}
        with TileProgress(f"{name}s", len(missing), self.quiet) as progress:

            def given(piece: str) -> tuple[Any, ...]:
                return self.model, self.scene, work, *missing[piece]

            for piece, _ in OnWorkers(self.client, write_piece, given).as_they_come(missing):
                self.job.mark(piece, 1)
                progress.advance()
        return dict(maps)

    def _reduce(
        self, barrier: Barrier, values: Mapping[str, Any], source: Source, bands: BarrierBands
    ) -> Tensor:
        """The value of a barrier, stored, since its map may be gone when the run is resumed."""
        name = f"value-{barrier.id}"
        if name not in self.job.done:
            assert isinstance(source, MapInPieces | PictureNumbers)
            window = PictureWindow.of(source) if isinstance(source, PictureNumbers) else source
            whole = SummedByWorkers(source, bands, self.client, window, self.work.stage.settings.engine)
            made = io.BytesIO()
            torch.save(passes.value_of(barrier, values, whole), made)
            self.job.keep(name, made.getvalue())
            self.job.mark(name, 1)
        value: Tensor = torch.load(io.BytesIO(self.job.kept(name)), weights_only=True)
        return value

    def _folder(self, map: str) -> Path:
        return self.job.folder / f"map-{map}"


def same_place(part: SegmentPlan, map: str, area: Area) -> Area:
    """The part of a pass's map at the place of an area of its last map."""
    network = part.segment.network

    def on_axis(axis: Axis, plan: AxisPlan, span: Span) -> Span:
        at, index = places(axis, plan.sizes), network.index[map]
        return Span(at(span.start)[index], at(span.stop)[index])

    rows, columns = area
    return Area(on_axis(network.rows, part.rows, rows), on_axis(network.columns, part.columns, columns))


def write_piece(model: bytes, scene: SceneInFiles, work: PassWork, index: int, area: Area) -> None:
    """On a worker: compute a piece of a pass, and write it. A repetition writes the same."""
    codec = loaded(model, scene.model)
    if not located(scene.target).exists():
        reason = f"the folder of the output, {scene.target}, is not there"
        raise ClusterError(this_worker(), reason, "Name an output that all workers find")
    with bounds.lifted():  # checked by the process that started the run
        image = NetworkOnImage.opened(codec, located(scene.source), scene.dtype)
    plan, network = plan_of(image.stage, image.shape), image.network
    part = plan_pass(image.stage.input_scale, plan, plan.segments[work.number], area)
    given = network.ops[0].id
    sources: dict[str, Source] = dict(work.read)
    if given in part.segment.network.index:
        across = part.columns.extents[part.segment.network.index[given]].clip(image.shape.columns)
        sources[given] = image.pixels(across)
    with ExitStack() as stack:
        sinks: dict[str, Sink] = {
            map: stack.enter_context(made.writing(index)) for map, made in work.made.items()
        }
        if network.output in part.segment.network.index:
            array = library("zarr").open_array(store=scene.target, mode="r+")
            sinks[network.output] = Within(image.samples_to(area, WholeChunks(array, area).write), area)
        stack.enter_context(torch.no_grad())
        stack.enter_context(engine(image.stage.settings.engine))
        stack.enter_context(torch._C.DisableTorchFunction())
        values = {**evaluate_constants(network), **work.values}
        batch = image.stage.settings.batch
        execute_pass(part.segment.network, part.rows, part.columns, sources, sinks, values, batch)


@dataclass(frozen=True)
class SummedByWorkers(Banded):
    """A map as a barrier reads it, with rows summed up where its pieces are."""

    client: Any
    window: MapInPieces | PictureWindow
    engine: Engine

    def within_rows(
        self, step: str, columns: Sequence[Span], transform: Callable[[Tensor], Tensor] = lambda band: band
    ) -> Iterator[Tensor]:
        height, width = self.cut.height, self.cut.width
        areas = (
            self.window.areas
            if isinstance(self.window, MapInPieces)
            else grid(edges(Span(0, height), SIDE), edges(Span(0, width), SIDE))
        )
        sums = RowSums(self.window, step, tuple(columns), transform, self.cut.at_once, self.engine)
        adding: OnWorkers[Area, Nodes] = OnWorkers(self.client, sums.of, lambda area: (area,))
        summed = zip(areas, adding.in_order(areas), strict=True)
        for _, beside in groupby(summed, lambda piece: piece[0].rows):
            trees = [Tree(step, -1) for _ in columns]
            for _, found in beside:
                for tree, nodes in zip(trees, found, strict=True):
                    for size, node in nodes:
                        tree.add_node(size, node)
            yield torch.cat([tree.total() for tree in trees], -1)


@dataclass(frozen=True)
class RowSums:
    """The sums that workers compute of a map's rows."""

    window: MapInPieces | PictureWindow
    step: str
    columns: tuple[Span, ...]
    transform: Callable[[Tensor], Tensor]
    at_once: int
    engine: Engine

    def of(self, area: Area) -> Nodes:
        """On a worker: for each span of columns, the nodes of every row that lie in an area."""
        source: Source = self.window.opened(area) if isinstance(self.window, PictureWindow) else self.window
        bands = [
            span.shift(area.rows.start)
            for span in cut(area.rows.length, max(1, self.at_once // max(1, area.columns.length)))
        ]
        with torch.no_grad(), engine(self.engine), pieces():
            found = [self._summed(source, Area(band, area.columns)) for band in bands]
        return [
            [
                (node.length, torch.cat([nodes[i][j] for nodes in found], -2))
                for j, node in enumerate(self._nodes(area, span))
            ]
            for i, span in enumerate(self.columns)
        ]

    def _nodes(self, area: Area, span: Span) -> list[Span]:
        """The nodes of the tree over a span of columns that lie in an area, by their places in the span."""
        inside = area.columns.within(span)
        return [] if inside.empty else whole_nodes(inside.shift(-span.start))

    def _summed(self, source: Source, band: Area) -> list[list[Tensor]]:
        values = self.transform(source.read(*band))

        def total(node: Span, span: Span) -> Tensor:
            part = values[..., slice(*node.shift(span.start - band.columns.start))]
            made: Tensor = getattr(part, self.step)(-1, keepdim=True)
            return made

        return [[total(node, span) for node in self._nodes(band, span)] for span in self.columns]
