"""The stages of a model on workers: pieces of their outputs, from windows of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.distributed.cluster import OnWorkers, connected, memory_of_a_worker
from overlap_tool.distributed.models import Wanted, file_bytes, loaded, send_model
from overlap_tool.distributed.outlook import fitting_side
from overlap_tool.distributed.pieces import (
    compute_area,
    cut_stage,
    recomputed,
    refuse_other_bits,
    refuse_other_networks,
    refuse_whole_maps,
)
from overlap_tool.distributed.reading import PictureWindow, SentWindow
from overlap_tool.files.codec import Codec
from overlap_tool.files.formats.pixels import PictureNumbers
from overlap_tool.files.running import area_read, plan_of
from overlap_tool.geometry.walk import Area
from overlap_tool.planning.choose import Shape
from overlap_tool.runtime.lazy import LazyMap
from overlap_tool.runtime.progress import TileProgress
from overlap_tool.runtime.stores import Source
from overlap_tool.wrapping.retrofit import TiledForward, tiled_stages

T = TypeVar("T")


@dataclass(frozen=True)
class PieceWork:
    """The piece of a stage that a worker computes."""

    model: Wanted
    stage: str
    shape: Shape
    read: Area
    area: Area


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

    def pieces(
        self,
        stage: TiledForward,
        shape: Shape,
        source: Source,
        area: Area,
        quiet: bool,
        note: Callable[[str], None],
    ) -> Iterator[tuple[Area, Tensor]]:
        refuse_other_networks(stage, shape)
        last = plan_of(stage, shape).segments[-1]
        memory = memory_of_a_worker(self.client) - file_bytes(self.codec.model)
        most, _ = fitting_side(stage, shape, last, memory, to_files=False)
        areas = cut_stage(stage, area, self.piece, most)
        if len(areas) > 1:
            added = recomputed(stage, shape, [areas])
            note(f"{stage.name}: {len(areas)} pieces, whose halos add {added:.1%} to the arithmetic")
        given = partial(self._given, stage, shape, source)
        with TileProgress(stage.name, len(areas), quiet) as progress:
            for piece, values in OnWorkers(self.client, compute_window, given).as_they_come(areas):
                progress.advance()
                yield piece, torch.from_numpy(values)

    def each(self, function: Callable[..., T], given: Iterable[Sequence[Any]]) -> Iterator[T]:
        """On workers that would compute the same bits."""
        made: OnWorkers[Sequence[Any], T] = OnWorkers(
            self.client, compute_with, lambda these: (self.model, self.wanted, function, *these)
        )
        return made.in_order(given)

    def _given(self, stage: TiledForward, shape: Shape, source: Source, area: Area) -> tuple[Any, ...]:
        """What a worker needs to compute a piece."""
        read = area_read(stage, shape, area)
        work = PieceWork(self.wanted, stage.name, shape, read, area)
        numbers = source.numbers if isinstance(source, LazyMap) else None
        if isinstance(numbers, PictureNumbers):
            return self.model, work, PictureWindow.of(numbers)
        return self.model, work, source.read(*read).cpu().contiguous().numpy()


def compute_with(model: bytes, wanted: Wanted, function: Callable[..., T], *arguments: Any) -> T:
    """On a worker: run a function on arguments that were sent with the task."""
    loaded(model, wanted)
    return function(*arguments)


def compute_window(model: bytes, work: PieceWork, window: PictureWindow | NDArray[Any]) -> NDArray[Any]:
    """On a worker: a piece of a stage's output, from what it reads of the input."""
    stage = tiled_stages(loaded(model, work.model).model)[work.stage]
    source: Source = (
        window.opened(work.read)
        if isinstance(window, PictureWindow)
        else SentWindow(torch.from_numpy(window), work.read)
    )
    return compute_area(stage, source, work.shape, work.area).numpy()
