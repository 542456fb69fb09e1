"""The stages of a model on workers: windows of their inputs there, pieces of their outputs back."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.distributed.cluster import OnWorkers, connected, memory_of_a_worker
from overlap_tool.distributed.models import Wanted, file_bytes, loaded, send_model
from overlap_tool.distributed.outlook import BESIDE, BOTH, coding_outlook, outlook
from overlap_tool.distributed.passes import PassesOnWorkers, Sent, Written, cut_passes
from overlap_tool.distributed.pieces import (
    all_of,
    cut_stage,
    recomputed,
    refuse_other_bits,
    refuse_other_networks,
    refuse_whole_maps,
)
from overlap_tool.distributed.reading import MapInPieces, PictureWindow, SentNumbers
from overlap_tool.errors import OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.coding.entropy import decoding_bytes, encoding_bytes
from overlap_tool.files.formats.container import Head
from overlap_tool.files.formats.pixels import PictureNumbers
from overlap_tool.files.job import PASSING
from overlap_tool.files.running import Block
from overlap_tool.geometry.plan import cut
from overlap_tool.geometry.walk import Area
from overlap_tool.graph.network import Barrier
from overlap_tool.planning.choose import BarrierBands, Shape
from overlap_tool.runtime import passes
from overlap_tool.runtime.deferred import ROWS_AT_ONCE
from overlap_tool.runtime.lazy import LazyMap
from overlap_tool.runtime.stores import Sink, Source
from overlap_tool.settings import Size
from overlap_tool.wrapping.retrofit import TiledForward

T = TypeVar("T")


class Workers:
    """The crew of a run; used as `with Workers(...)`, which connects to them."""

    def __init__(
        self,
        codec: Codec,
        workers: int | None,
        dask: str | None,
        piece: int | None,
        trust: bool,
    ) -> None:
        self.codec = codec
        self.where = workers, dask
        self.piece = piece
        self.wanted = Wanted(codec.identity, trust)
        self.open = ExitStack()
        for stage in codec.stages:
            refuse_other_bits(stage)
            refuse_whole_maps(stage)

    def __enter__(self) -> Workers:
        self.client = self.open.enter_context(connected(*self.where))
        self.model = send_model(self.client, self.codec)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open.close()

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
        refuse_other_networks(stage, shape)
        memory = memory_of_a_worker(self.client) - file_bytes(self.codec.model) - BESIDE
        areas = cut_passes(
            stage,
            shape,
            memory,
            self.piece,
            False,
            0 if (picture := picture_of(source)) is None else picture.picture.dtype.itemsize,
            partial(cut_stage, stage, area),
        )
        if (count := sum(map(len, areas))) > 1:
            added = recomputed(stage, shape, areas)
            note(f"{stage.name}: {count} pieces, whose halos add {added:.1%} to the arithmetic")
        with tempfile.TemporaryDirectory(prefix=PASSING, dir=folder) as made:
            StagePasses(
                self.client, self.model, self.wanted, stage, shape, areas, Path(made), quiet, sink
            ).run(source)

    def refuse_too_large(self, size: Size, limit: int, block: Block, head: Head | None, check: bool) -> None:
        memory = memory_of_a_worker(self.client)
        if check:  # all stages run, the last ones after all is coded
            outlook(self.codec, size, 1, memory, piece=self.piece)
        ways = BOTH if check else [encoding_bytes if head is None else decoding_bytes]
        found = coding_outlook(self.codec, size, limit, block, head, ways)
        if found is None or found.memory <= memory:
            return
        where, way_out = "the file's bands", "leave `workers` and `dask` out"
        if head is None:
            where, room = f"in_memory={limit}", memory - file_bytes(self.codec.model) - BESIDE
            smaller = (limit >> times for times in range(1, limit.bit_length()))
            # a map of 32-bit numbers that fits is coded whole
            fits = next(
                (one for one in smaller if all(way(one // 4, one // 4, True) <= room for way in ways)), 0
            )
            less = coding_outlook(self.codec, size, fits, block, head, ways)
            if less and less.memory <= memory:
                way_out = f"write `in_memory={fits}`"
        takes = f"to code {found.symbols} symbols at once takes {found.memory} bytes of a worker"
        raise OptionError(where, f"{takes}, which has {memory}", f"Give workers more memory, or {way_out}")

    def each(self, function: Callable[..., T], given: Iterable[Sequence[Any]]) -> Iterator[T]:
        """On workers that would compute the same bits."""
        made: OnWorkers[Sequence[Any], T] = OnWorkers(
            self.client, compute_with, lambda these: (self.model, self.wanted, function, *these)
        )
        return made.in_order(given)


def compute_with(model: bytes, wanted: Wanted, function: Callable[..., T], *arguments: Any) -> T:
    """On a worker: run a function on arguments that were sent with the task."""
    loaded(model, wanted)
    return function(*arguments)


def picture_of(source: Source) -> PictureNumbers | None:
    """The picture that a map consists of, which workers read themselves."""
    numbers = source.numbers if isinstance(source, LazyMap) else source
    return numbers if isinstance(numbers, PictureNumbers) else None


@dataclass
class StagePasses(PassesOnWorkers):
    """The passes of a stage of a codec. Tasks contain what they read, and pieces come back, to lie in files
    here: rows of whole pieces are too large for memory."""

    sink: Sink

    def __post_init__(self) -> None:
        grid = self.areas[-1]
        self.rows = deque(
            [*beside] for _, beside in groupby(range(len(grid)), lambda index: grid[index].rows)
        )
        """The rows of pieces of the output that are not complete yet."""
        self.came = set[int]()

    def sent(self, source: Source, area: Area) -> Sent:
        if picture := picture_of(source):
            return PictureWindow.of(picture)
        return SentNumbers(source.read(*area).cpu().contiguous().numpy(), area)

    def written(self, maps: Mapping[str, MapInPieces]) -> Mapping[str, Written]:
        return {}

    def left(self, pieces: range) -> Sequence[int]:
        return pieces

    def take(self, maps: Mapping[str, MapInPieces], index: int, came: Mapping[str, NDArray[Any]]) -> None:
        for map, values in came.items():
            maps[map].put(index, torch.from_numpy(values))
        if output := maps.get(self.plan.network.output):
            self.came.add(index)
            while self.rows and self.came.issuperset(self.rows[0]):
                self._hand_on(output, self.rows.popleft())

    def reduce(
        self, barrier: Barrier, values: Mapping[str, Any], source: Source, bands: BarrierBands
    ) -> Tensor:
        """Here, where its map lies: to send that would take longer."""
        return passes.reduced(barrier, values, source, bands)

    def _hand_on(self, output: MapInPieces, beside: Sequence[int]) -> None:
        """Write a row of pieces, band by band."""
        down, across = all_of([output.areas[index] for index in beside])
        for rows in cut(down.length, ROWS_AT_ONCE):
            band = rows.shift(down.start)
            self.sink.write(band, across, output.read(band, across))
        for index in beside:
            output.drop(index)
