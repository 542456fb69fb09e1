"""How the stages of a wrapped model run on maps that are not in memory.

A stage whose output is as fine as the image is put off until somebody takes its rows. Any other output is an
ordinary tensor, unless it is larger than what may be in memory: then one that is smaller than its input is
computed and put in a file, and one that is larger is computed again, rows by rows, when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from overlap_tool import passes
from overlap_tool.files.job import Job
from overlap_tool.files.rows import Bands, RowsFile
from overlap_tool.geometry import Span
from overlap_tool.lazy import InMemory, LazyMap, Numbers
from overlap_tool.progress import TileProgress
from overlap_tool.retrofit import TiledForward, stages_run_by
from overlap_tool.schedule.choose import Shape, StagePlan, Store, plan_stage
from overlap_tool.schedule.plan import AxisPlan, stream
from overlap_tool.stores import Sink, Source, TensorSink, TensorSource

BLOCK_BYTES = 64 << 20
"""What is computed, and kept, at once of a map that is computed when it is read."""

BAND = 1024
"""Rows of the image for which a budget of memory chooses the tile: whole maps are not in memory here."""


class Workspace:
    """What a run of a model may hold in memory, and where the rest goes."""

    def __init__(
        self,
        job: Job,
        limit: int,
        quiet: bool = True,
        tell: Callable[[str], None] = lambda note: None,
        purpose: str = "map",
    ) -> None:
        self.job = job
        self.limit = limit
        self.purpose = purpose
        self.quiet = quiet
        self.tell = tell
        self.stores = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, stages run as this module says."""
        with stages_run_by(self.run):
            yield

    def run(self, stage: TiledForward, whole: Tensor) -> Tensor:
        lazy = isinstance(whole, LazyMap)
        source: Source = whole if isinstance(whole, LazyMap) else TensorSource(whole, _device(stage, whole))
        shape = Shape(whole.shape[0], whole.shape[2], whole.shape[3], whole.element_size())
        numbers = StageNumbers(stage, source, shape, "disk" if lazy else stage.settings.store, self.quiet)
        size = numbers.channels * numbers.height * numbers.width
        as_fine_as_the_image = stage.input_scale * stage.network.rows.scale >= 1
        small = size * whole.element_size() <= self.limit and not (as_fine_as_the_image and lazy)
        stored_at_once = (lazy and size <= whole.numel()) or (numbers.barriers and not small)
        if shape.images == 1 and stored_at_once and not as_fine_as_the_image:
            stored = self.store(stage.name, (numbers.channels, numbers.height, numbers.width), whole.dtype)
            numbers.pour(Bands(numbers.width, stored.take), stored.done)
            return self.map(stored, numbers.channels, numbers, whole)
        if shape.images > 1 or (small and not as_fine_as_the_image):
            sink = TensorSink(numbers.height, numbers.width, stage.settings.store)
            numbers.pour(sink, 0)
            return sink.result()
        return self._lazy(numbers, (1, numbers.channels, numbers.height, numbers.width), whole)

    def store(self, name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Stored:
        """A file for a map of these channels, rows and columns; the same one when the run is gone on with."""
        self.stores += 1
        return Stored(self.job, f"{self.purpose}-{self.stores}-{name}", shape, dtype)

    def map(self, numbers: Numbers, channels: int, size: Sized, like: Tensor) -> Tensor:
        """What lies elsewhere as a tensor if it may be in memory, else as a map."""
        shape = (1, channels, size.height, size.width)
        if channels * size.height * size.width * like.element_size() > self.limit:
            return self._lazy(numbers, shape, like)
        return numbers.read(Span(0, size.height), Span(0, size.width)).to(like.device)

    def _lazy(self, numbers: Numbers, shape: tuple[int, ...], like: Tensor) -> LazyMap:
        return LazyMap(numbers, shape, like.dtype, like.device, self.taken_whole)

    def taken_whole(self, one: LazyMap) -> None:
        if one.bytes > self.limit:
            self.tell(
                f"the model's own code needs a whole map of {one.bytes / 2**20:.0f} MiB: "
                "memory is not bounded"
            )


class StageNumbers:
    """What a stage makes of its input. One with barriers makes all of it at once, its maps between them lying
    in stores."""

    def __init__(
        self, stage: TiledForward, source: Source, shape: Shape, between: Store, quiet: bool
    ) -> None:
        self.stage = stage
        self.source = source
        self.shape = shape
        self.between: Store = between
        self.quiet = quiet
        self.plan = _plan(stage, shape)
        self.barriers = len(self.plan.segments) > 1
        self.height, self.width = self.plan.output_size
        self.channels = stage.network.ops[-1].channels
        steps = self.plan.segments[-1].rows.steps
        self.cuts = [step.compute[-1] for step in steps if not step.compute[-1].empty]
        band_bytes = self.channels * self.width * shape.itemsize * self.cuts[0].length
        self.at_once = len(self.cuts) if self.barriers else max(1, BLOCK_BYTES // band_bytes)
        self.block: tuple[int, Tensor] | None = None

    def pour(self, sink: Sink, start: int) -> None:
        self._compute([cut for cut in self.cuts if cut.stop > start], sink, quiet=self.quiet)

    def read(self, rows: Span, columns: Span) -> Tensor:
        parts = []
        start = rows.start
        for number in range(0, len(self.cuts), self.at_once):
            cuts = self.cuts[number : number + self.at_once]
            inside = Span(max(start, cuts[0].start), min(rows.stop, cuts[-1].stop))
            if not inside.empty:
                block = self._block(number, cuts)
                first, start = cuts[0].start, inside.stop
                parts.append(
                    block[..., inside.start - first : inside.stop - first, columns.start : columns.stop]
                )
        return torch.cat(parts, -2)

    def _block(self, number: int, cuts: list[Span]) -> Tensor:
        if self.block is None or self.block[0] != number:
            self.block = None  # let go of it before the next one is made
            made: list[Tensor] = []
            self._compute(cuts, Bands(self.width, lambda _, band: made.append(band)), quiet=True)
            self.block = number, torch.cat(made, -2)
        return self.block[1]

    def _compute(self, cuts: list[Span], sink: Sink, quiet: bool) -> None:
        if not cuts:
            return
        segments = self.plan.segments
        if not self.barriers:
            segments = (replace(segments[0], rows=self._rows(segments[0].rows, cuts)),)
        settings = self.stage.settings
        with TileProgress(self.stage.name, sum(part.tiles for part in segments), quiet) as progress:
            passes.run(
                self.stage.network,
                segments,
                self.source,
                sink,
                self.between,
                settings.batch,
                progress.advance,
            )

    def _rows(self, whole: AxisPlan, cuts: list[Span]) -> AxisPlan:
        """What of the plan for all rows computes these cuts, which follow one another."""
        if self.plan.schedule == "stream":
            return stream(self.stage.network.rows, self.shape.rows, cuts)
        return AxisPlan(whole.sizes, tuple(step for step in whole.steps if step.compute[-1] in cuts))


class Stored:
    """A map in a file, row by row, and in each row channel by channel; `done` rows of it are there."""

    def __init__(self, job: Job, name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        channels, self.height, self.width = shape
        self.job = job
        self.name = name
        self.done = job.done.get(name, 0)
        numbers = torch.empty(0, dtype=dtype).numpy().dtype
        self.file = RowsFile(job.folder / name, (self.height, channels, self.width), numbers)
        if not self.done:
            self.file.path.unlink(missing_ok=True)
            self.file.create()

    def take(self, start: int, band: Tensor) -> None:
        self.file.write(start, band[0].transpose(0, 1).cpu().numpy())
        self.done = start + band.shape[-2]
        self.job.mark(self.name, self.done)

    def read(self, rows: Span, columns: Span) -> Tensor:
        values = self.file.read(rows.start, rows.stop)[..., columns.start : columns.stop]
        return torch.from_numpy(np.ascontiguousarray(values.swapaxes(0, 1)))[None]

    def pour(self, sink: Sink, start: int) -> None:
        for row in range(start, self.height, BAND):
            rows, columns = Span(row, min(row + BAND, self.height)), Span(0, self.width)
            sink.write(rows, columns, self.read(rows, columns))


Sized = StageNumbers | Stored


def pour(values: Tensor, take: Callable[[int, Tensor], None], start: int = 0) -> None:
    """Hand on all rows of a map from `start` on, in bands."""
    numbers = values.numbers if isinstance(values, LazyMap) else InMemory(values)
    numbers.pour(Bands(values.shape[-1], take), start)


def _plan(stage: TiledForward, shape: Shape) -> StagePlan:
    settings = stage.settings
    if settings.memory is None:
        return stage.plan(shape)
    rows = min(shape.rows, max(1, int(BAND * stage.input_scale)))
    part = replace(shape, rows=rows) if stage.network.accepts(rows, shape.columns) else shape
    chosen = stage.plan(part)
    settings = replace(settings, tile=chosen.tile, memory=None, schedule=chosen.schedule)
    return plan_stage(stage.name, stage.network, stage.input_scale, shape, settings)


def _device(stage: TiledForward, whole: Tensor) -> torch.device:
    return next((parameter.device for parameter in stage.module.parameters()), whole.device)
