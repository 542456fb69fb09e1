"""What a worker reads: a window that was sent, the image's file, or a map in pieces, which it may write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool import bounds
from overlap_tool.distributed.cluster import this_worker
from overlap_tool.errors import ClusterError
from overlap_tool.files.formats.addresses import located
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.pictures import open_picture
from overlap_tool.files.formats.pixels import PictureNumbers
from overlap_tool.files.formats.rows import Bands, MapFile
from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area
from overlap_tool.runtime.stores import Within

T = TypeVar("T")


def refuse_other_folder(folder: Path) -> None:
    """On a worker: raise unless it finds the folder of the output."""
    if not folder.exists():
        reason = f"the folder of the output, {folder}, is not there"
        raise ClusterError(this_worker(), reason, "Name an output that all workers find")


def part_of(values: T, lies: Area, area: Area) -> T:
    """An area of a map, from values whose place in it is `lies`."""
    down, across = area.rows.shift(-lies.rows.start), area.columns.shift(-lies.columns.start)
    part: T = values[..., slice(*down), slice(*across)]  # type: ignore[index]
    return part


def joined_parts(
    wanted: Area, found: Tensor, areas: Sequence[Area], part: Callable[[int, Area], Tensor]
) -> Tensor:
    """An area of a map that is stored in parts; `part` reads from one of them, by its number."""
    for number, area in enumerate(areas):
        if wanted.meets(area):
            both = wanted.within(area)
            part_of(found, wanted, both).copy_(part(number, both))
    return found


class SentWindow:
    """A window of an input with its position, and other windows around it that were sent."""

    def __init__(self, values: Tensor, area: Area, around: Sequence[tuple[Area, Tensor]] = ()) -> None:
        self.values = values
        self.area = area
        self.around = around

    def read(self, rows: Span, columns: Span) -> Tensor:
        wanted = Area(rows, columns)
        if wanted.within(self.area) == wanted:
            return part_of(self.values, self.area, wanted)
        assert self.around, "not what was sent"
        sent = [*self.around, (self.area, self.values)]
        found = self.values.new_empty((*self.values.shape[:-2], rows.length, columns.length))
        return joined_parts(
            wanted, found, [area for area, _ in sent], lambda number, area: part_of(*sent[number][::-1], area)
        )

    def expect(self, rows: Span, columns: Span) -> None:
        """Nothing is prefetched."""


@dataclass(frozen=True)
class SentNumbers:
    """A window in a task."""

    values: NDArray[Any]
    area: Area

    def opened(self, area: Area) -> SentWindow:
        return SentWindow(torch.from_numpy(self.values), self.area)


@dataclass(frozen=True)
class PictureWindow:
    """An image file, read by the workers themselves, as a map."""

    path: str
    frame: Frame
    channels: tuple[int, ...]

    @staticmethod
    def of(numbers: PictureNumbers) -> PictureWindow:
        return PictureWindow(str(located(numbers.where).absolute()), numbers.frame, numbers.channels)

    def opened(self, area: Area) -> PictureNumbers:
        with bounds.lifted():  # checked by the process that started the run
            picture = open_picture(located(self.path))
        here = torch.device("cpu")
        return PictureNumbers(self.path, picture, self.frame, here, area.columns, self.channels)


@dataclass(frozen=True)
class MapInPieces:
    """A map in a folder: one file per area, complete or absent, in a folder named by the type of numbers."""

    folder: str
    areas: tuple[Area, ...]
    channels: tuple[int, ...]

    def opened(self, area: Area) -> MapInPieces:
        return self

    def read(self, rows: Span, columns: Span) -> Tensor:
        dtype = getattr(torch, next(Path(self.folder).glob("torch.*")).suffix[1:])
        found = torch.empty((1, *self.channels, rows.length, columns.length), dtype=dtype)

        def part(number: int, area: Area) -> Tensor:
            lies = self.areas[number]
            return self._file(number, dtype).read(
                area.rows.shift(-lies.rows.start), area.columns.shift(-lies.columns.start)
            )

        return joined_parts(Area(rows, columns), found, self.areas, part)

    def expect(self, rows: Span, columns: Span) -> None:
        """Nothing is prefetched."""

    @contextmanager
    def writing(self, number: int, at: Area) -> Iterator[Within]:
        """A sink for one of the areas, whose file appears once all of it was written."""
        area, made = self.areas[number], list[MapFile]()
        if not area.size:
            yield Within(Bands(area.columns, lambda start, band: None), area)
            return
        refuse_other_folder(Path(self.folder).parent)

        def take(start: int, band: Tensor) -> None:
            if not made:
                made.append(self._created(number, band.dtype, f".{uuid4().hex}"))
            made[0].write(start - area.rows.start, band, durable=False)

        try:
            yield Within(Bands(area.columns, take), area)
            path = made[0].file.path
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(path, path.with_name(str(number)))
        finally:
            for each in made:
                each.file.path.unlink(missing_ok=True)

    def put(self, number: int, values: Tensor) -> None:
        """Write one of the areas, for readers in this process."""
        self._created(number, values.dtype).write(0, values, durable=False)

    def drop(self, number: int) -> None:
        """Delete one of the areas."""
        for path in Path(self.folder).glob(f"torch.*/{number}"):
            path.unlink()

    def _created(self, number: int, dtype: torch.dtype, beside: str = "") -> MapFile:
        file = self._file(number, dtype, beside)
        file.file.path.parent.mkdir(parents=True, exist_ok=True)
        file.file.create()
        return file

    def _file(self, number: int, dtype: torch.dtype, beside: str = "") -> MapFile:
        area = self.areas[number]
        size = *self.channels, area.rows.length, area.columns.length
        return MapFile(Path(self.folder) / str(dtype) / f"{number}{beside}", size, dtype)
