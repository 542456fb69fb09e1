"""Runs the stages of a wrapped model on maps that are not in memory.

A stage whose output is as fine as the image is deferred until its rows are read. Any other output is an
ordinary tensor, unless it is larger than the memory limit: then an output that is smaller than its input is
computed and stored in a file, and a larger one is recomputed, some rows at a time, whenever it is read.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from enum import Enum
from fractions import Fraction
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from overlap_tool.files.formats.container import Head
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.rows import Bands, MapFile
from overlap_tool.files.job import PASSING, Job
from overlap_tool.geometry import Span
from overlap_tool.geometry.layout import Kind
from overlap_tool.geometry.plan import cut
from overlap_tool.geometry.walk import Area
from overlap_tool.planning.choose import Shape, StagePlan, plan_part, plan_stage
from overlap_tool.runtime import deferred, passes
from overlap_tool.runtime.deferred import InMemory, Numbers, OnDemand, sources
from overlap_tool.runtime.lazy import LazyMap, LazyZeros
from overlap_tool.runtime.progress import TileProgress
from overlap_tool.runtime.stores import Sink, Source, TensorSink, TensorSource, Within
from overlap_tool.settings import Size
from overlap_tool.wrapping.retrofit import TiledForward, stages_run_by

BLOCK_BYTES = 64 << 20
"""The most bytes computed and cached at once of a map that is computed when it is read."""

BAND: dict[Kind | None, tuple[int, int]] = {"volume": (128, 1 << 30), "sound": (1, 1 << 20)}
"""The most rows and columns of input for which a memory budget chooses the tile, since whole maps are not in
memory here. Images have 1024 rows."""


Block = tuple[Fraction, Fraction]
"""The part of a map's height and width that is coded as a separate string."""

ALL: Block = Fraction(1), Fraction(1)

T = TypeVar("T")


class Placement(Enum):
    """Where the output of a stage is kept."""

    MEMORY = "computed at once, an ordinary tensor"
    FILE = "computed at once, in a file"
    READER = "computed when it is read, each time"


def placement(
    *, images: int, deferred: bool, shrinks: bool, barriers: bool, fits: bool, by_others: bool = False
) -> Placement:
    """Where to keep a stage's output; `deferred` if it is as fine as the image or wanted in parts.

    It `shrinks` if it is no larger than an input that is not in memory, and `fits` if the memory limit allows
    it; `barriers` compute all of it at once. `by_others`, it is computed once and in full, to keep all
    workers busy.
    """
    if images > 1:
        return Placement.MEMORY
    if deferred:
        return Placement.READER
    if shrinks or by_others or (barriers and not fits):
        return Placement.FILE
    return Placement.MEMORY if fits else Placement.READER


class Crew(AbstractContextManager["Crew"], Protocol):
    """Computes stages piece by piece, and codes bands, in place of this process; used as `with crew`."""

    def compute(
        self,
        stage: TiledForward,
        shape: Shape,
        source: Source,
        folder: Path,
        note: Callable[[str], None],
        area: Area,
        sink: Sink,
        quiet: bool,
    ) -> None:
        """Compute an area of a stage's output, with intermediate results in a folder."""
        ...

    def each(self, function: Callable[..., T], given: Iterable[Sequence[Any]]) -> Iterator[T]:
        """The results of a function for each of these arguments, in order."""
        ...

    def refuse_too_large(self, size: Size, limit: int, block: Block, head: Head | None, check: bool) -> None:
        """Raise if the coding of a band would not fit its memory: of an image of this size, or of a file.
        With `check`, decoding has to fit, too, and the pieces of all stages."""
        ...


class Workspace:
    """What a run of a model may hold in memory, and where the rest is kept."""

    def __init__(
        self,
        job: Job,
        limit: int,
        quiet: bool = True,
        notify: Callable[[str], None] = lambda note: None,
        purpose: str = "map",
        on_demand: bool = False,
        block: Block = ALL,
        crew: Crew | None = None,
    ) -> None:
        self.job = job
        self.limit = limit
        self.purpose = purpose
        self.quiet = quiet
        self.notify = notify
        self.on_demand = on_demand
        """Whether maps are computed where they are read, rather than whole: parts are never read."""
        self.crew = crew
        self.block = block
        self.coded: list[bytes] = []
        """The strings that entropy models have made, in order."""
        self.took_whole = False
        """Whether the model's own code read all of a map."""
        self.stores = 0

    def refuse_too_large(self, frame: Frame, head: Head | None = None, check: bool = False) -> None:
        """Raise if the crew cannot code an image and `check` it, or decode a file."""
        if self.crew is not None:
            height, width = frame.padded
            self.crew.refuse_too_large(Size(width, height), self.limit, self.block, head, check)

    def each(self, function: Callable[..., T], given: Iterable[Sequence[Any]]) -> Iterator[T]:
        """The results of a function for each of these arguments, in order: computed here, or by the crew."""
        if self.crew is not None:
            return self.crew.each(function, given)
        return (function(*arguments) for arguments in given)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, stages run by this workspace, and large `torch.zeros` are maps without memory."""
        with stages_run_by(self.run), LazyZeros(self.limit, self.taken_whole):
            yield

    def run(self, stage: TiledForward, whole: Tensor) -> Tensor:
        lazy = isinstance(whole, LazyMap)
        source: Source = (
            self._at_rest(stage.name, whole)
            if isinstance(whole, LazyMap)
            else TensorSource(whole, _device(stage, whole))
        )
        shape = Shape(whole.shape[0], whole.shape[2], whole.shape[3], whole.element_size())
        as_fine_as_the_image = stage.input_scale * stage.network.rows.scale >= 1
        keep: passes.Keep = (
            partial(BetweenPasses, self.job.folder)
            if shape.images == 1 and (lazy or as_fine_as_the_image)
            else partial(TensorSink, store=stage.settings.store)
        )
        others = (
            partial(self.crew.compute, stage, shape, source, self.job.folder, self.notify)
            if self.crew and shape.images == 1
            else None
        )
        numbers = StageNumbers(
            stage, source, shape, keep, min(BLOCK_BYTES, self.limit), self.quiet, self.on_demand, others
        )
        shape_of_map = numbers.channels, numbers.height, numbers.width
        size = prod(shape_of_map)
        place = placement(
            images=shape.images,
            deferred=as_fine_as_the_image or self.on_demand,
            shrinks=lazy and size <= whole.numel(),
            barriers=numbers.barriers,
            fits=size * whole.element_size() <= self.limit,
            by_others=others is not None,
        )
        if place is Placement.FILE:
            stored = self.store(stage.name, shape_of_map, whole.dtype)
            numbers.pour(Bands(numbers.area.columns, stored.take), stored.missing)
            return self.map(stored, numbers.channels, numbers, whole)
        if place is Placement.MEMORY:
            self.took_whole |= lazy
            sink = TensorSink(numbers.height, numbers.width, stage.settings.store)
            numbers.pour(sink, numbers.area)
            return sink.result()
        return self.lazy(numbers, (1, *shape_of_map), whole)

    def store(self, name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Stored:
        """A file for a map of these channels, rows and columns; the same one when the run is resumed."""
        self.stores += 1
        return Stored(self.job, f"{self.purpose}-{self.stores}-{name}", shape, dtype)

    def map(self, numbers: Numbers, channels: int, size: Sized, like: Tensor) -> Tensor:
        """Stored numbers as a tensor if the memory limit allows it, otherwise as a map."""
        shape = (1, channels, size.height, size.width)
        if channels * size.height * size.width * like.element_size() > self.limit:
            return self.lazy(numbers, shape, like)
        return numbers.read(*Area.whole(size.height, size.width)).to(like.device)

    def _at_rest(self, reader: str, whole: LazyMap) -> LazyMap:
        """A snapshot of the map; put in a file first if reading it would compute a stage for every tile
        again."""
        _, channels, height, width = whole.shape
        behind = sources(whole.numbers, Area.whole(height, width))
        if not any(isinstance(source, StageNumbers) for source, _ in behind):
            return whole.snapshot()
        if self.on_demand:
            numbers = in_chunks(whole.numbers, height, width, self.limit)
            return self.lazy(numbers, tuple(whole.shape), whole)
        stored = self.store(f"{reader}-input", (channels, height, width), whole.dtype)
        pour(whole, stored.take, stored.missing)
        return self.lazy(stored, whole.shape, whole)

    def lazy(self, numbers: Numbers, shape: tuple[int, ...], like: Tensor) -> LazyMap:
        """A map whose numbers are stored elsewhere, or computed when they are read."""
        return LazyMap(numbers, shape, like.dtype, like.device, self.taken_whole)

    def taken_whole(self, one: LazyMap, function: str) -> None:
        self.took_whole = True
        if one.bytes > self.limit:
            self.notify(
                f"the model's own code needs a whole map of {one.bytes / 2**20:.0f} MiB ({function}): "
                "memory is not bounded"
            )


class StageNumbers:
    """The output of a stage. A stage with barriers computes all of it at once, with its intermediate maps in
    stores."""

    def __init__(
        self,
        stage: TiledForward,
        source: Source,
        shape: Shape,
        keep: passes.Keep,
        block_bytes: int,
        quiet: bool,
        on_demand: bool,
        others: Callable[[Area, Sink, bool], None] | None = None,
    ) -> None:
        self.others = others
        """Computes an area in place of this process."""
        self.stage = stage
        self.source = source
        self.shape = shape
        self.keep = keep
        self.quiet = quiet
        self.on_demand = on_demand
        self.plan = plan_of(stage, shape)
        self.barriers = len(self.plan.segments) > 1
        self.width, self.height = self.plan.output_size
        self.channels = self.plan.network.ops[-1].channels
        steps = self.plan.segments[-1].rows.steps
        self.cuts = [step.compute[-1] for step in steps if not step.compute[-1].empty]
        band_bytes = self.channels * self.width * shape.itemsize * max(cut.length for cut in self.cuts)
        self.at_once = len(self.cuts) if self.barriers else max(1, block_bytes // band_bytes)
        self.block: tuple[Area, Tensor] | None = None

    @property
    def area(self) -> Area:
        return Area.whole(self.height, self.width)

    def pour(self, sink: Sink, area: Area) -> None:
        self._compute(area, sink, self.quiet)

    def read(self, rows: Span, columns: Span) -> Tensor:
        if self.on_demand:
            return self._area(Area(rows, columns))
        if 2 * columns.length <= self.width and not self.barriers:  # those beside it would ask for all again
            return self._block(Area(rows, columns))
        parts = []
        start = rows.start
        for number in range(0, len(self.cuts), self.at_once):
            cuts = self.cuts[number : number + self.at_once]
            down = Span(cuts[0].start, cuts[-1].stop)
            inside = Span(max(start, down.start), min(rows.stop, down.stop))
            if not inside.empty:
                block = self._block(Area(down, self.area.columns))
                first, start = down.start, inside.stop
                parts.append(
                    block[..., inside.start - first : inside.stop - first, columns.start : columns.stop]
                )
        return torch.cat(parts, -2)

    def _block(self, area: Area) -> Tensor:
        if self.block is None or self.block[0] != area:
            self.block = None  # freed before the next block is computed
            self.block = area, self._area(area)
        return self.block[1]

    def _area(self, area: Area) -> Tensor:
        made: list[Tensor] = []
        self._compute(area, Bands(area.columns, lambda _, band: made.append(band)), quiet=True)
        return torch.cat(made, -2)

    def _compute(self, area: Area, sink: Sink, quiet: bool) -> None:
        if not area.size:
            return
        if self.others is not None:
            return self.others(area, sink, quiet)
        segments = plan_part(self.stage.input_scale, self.plan, area)
        tiles = sum(part.tiles for part in segments)
        with TileProgress(self.stage.name, tiles, quiet) as progress, torch._C.DisableTorchFunction():
            # rules compute with real tensors, however many zeros these hold
            passes.run(
                self.plan.network,
                segments,
                self.source,
                {self.plan.network.output: Within(sink, area)},
                self.keep,
                self.stage.settings.batch,
                progress.advance,
            )


class Stored:
    """A map in a file of a job; `done` of its rows are written."""

    def __init__(self, job: Job, name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        _, self.height, self.width = shape
        self.job = job
        self.name = name
        self.done = job.done.get(name, 0)
        self.map = MapFile(job.folder / name, shape, dtype)
        if not self.done:
            self.map.file.path.unlink(missing_ok=True)
            self.map.file.create()

    @property
    def missing(self) -> Area:
        return Area(Span(self.done, self.height), Span(0, self.width))

    def take(self, start: int, band: Tensor) -> None:
        self.map.write(start, band)
        self.done = start + band.shape[-2]
        self.job.mark(self.name, self.done)

    def read(self, rows: Span, columns: Span) -> Tensor:
        return self.map.read(rows, columns)


class BetweenPasses:
    """A map that a stage with barriers stores, in a file that is deleted once nobody can read it."""

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.folder = folder
        self.size = height, width
        self.bands = Bands(Span(0, width), self._take)
        self.map: MapFile | None = None
        self.device = torch.device("cpu")

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        self.bands.write(rows, columns, values)

    def source(self, device: torch.device) -> BetweenPasses:
        self.device = device
        return self

    def read(self, rows: Span, columns: Span) -> Tensor:
        assert self.map is not None
        return self.map.read(rows, columns).to(self.device)

    def expect(self, rows: Span, columns: Span) -> None:
        """Nothing is prefetched."""

    def _take(self, start: int, band: Tensor) -> None:
        if self.map is None:
            handle, name = tempfile.mkstemp(prefix=PASSING, dir=self.folder)
            os.close(handle)
            self.map = MapFile(Path(name), (*band.shape[1:-2], *self.size), band.dtype)
            self.map.file.create()
            weakref.finalize(self, Path(name).unlink, missing_ok=True)
        self.map.write(start, band, durable=False)


Sized = StageNumbers | Stored

CHUNK = 64
"""Rows and columns of the chunks that are cached of a map computed on demand."""


def in_chunks(numbers: Numbers, height: int, width: int, limit: int) -> OnDemand:
    """The same numbers, computed in squares that are cached for later readers."""
    areas = [Area(down, across) for down in cut(height, CHUNK) for across in cut(width, CHUNK)]
    return OnDemand(areas, lambda number: numbers.read(*areas[number]), limit, numbers)


def pour(values: Tensor, take: Callable[[int, Tensor], None], area: Area) -> None:
    """Pass an area of a map to `take` in bands of rows, each with the number of its first row in the map."""
    numbers = values.numbers if isinstance(values, LazyMap) else InMemory(values)
    deferred.pour(numbers, area, Bands(area.columns, take))


def area_read(stage: TiledForward, shape: Shape, area: Area) -> Area:
    """The area of its input that a stage reads to compute an area of its output."""
    first, *more = plan_part(stage.input_scale, plan_of(stage, shape), area)
    if more:
        return Area.whole(shape.rows, shape.columns)
    return Area(first.rows.extents[0].clip(shape.rows), first.columns.extents[0].clip(shape.columns))


def plan_of(stage: TiledForward, shape: Shape) -> StagePlan:
    """The plan of a stage for a map of this size that is not in memory."""
    settings = stage.settings
    if settings.memory is None:
        return stage.plan(shape)
    down, across = BAND.get(stage.network.takes, (1024, 1 << 30))
    rows, columns = min(shape.rows, max(1, int(down * stage.input_scale))), min(shape.columns, across)
    banded = not stage.network.asks and stage.network.accepts(rows, columns)
    part = replace(shape, rows=rows, columns=columns) if banded else shape
    chosen = stage.plan(part)
    tile = Size(chosen.tile.width, min(chosen.tile.height, down))  # no higher than the band
    settings = replace(settings, tile=tile, memory=None, schedule=chosen.schedule)
    return plan_stage(stage.name, stage.network, stage.input_scale, shape, settings)


def _device(stage: TiledForward, whole: Tensor) -> torch.device:
    return next((parameter.device for parameter in stage.module.parameters()), whole.device)
