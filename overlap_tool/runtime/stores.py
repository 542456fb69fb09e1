"""Stores for the whole input and output of a stage; the executor reads and writes pieces of them.

They are on the computing device, in host memory, or in a file: the device then holds one tile and the caches.
"""

from __future__ import annotations

import math
import tempfile
from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor

from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area
from overlap_tool.settings import Size, Store

UNDER_WAY = 64 << 20
"""Bytes that a sink has on their way from a device before it waits for the first of them."""


class Source(Protocol):
    """A stage's input."""

    def read(self, rows: Span, columns: Span) -> Tensor:
        """A piece, on the device that computes."""
        ...

    def expect(self, rows: Span, columns: Span) -> None:
        """Announces the piece that is read next, which may be transferred while the device computes."""
        ...


class Sink(Protocol):
    """A stage's output."""

    def write(self, rows: Span, columns: Span, values: Tensor) -> None: ...


class Within:
    """A sink for an area of a map; what is written outside of it is dropped."""

    def __init__(self, sink: Sink, area: Area) -> None:
        self.sink = sink
        self.area = area

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        down, across = rows.within(self.area.rows), columns.within(self.area.columns)
        if down.empty or across.empty:
            return
        inside = values[
            ...,
            down.start - rows.start : down.stop - rows.start,
            across.start - columns.start : across.stop - columns.start,
        ]
        self.sink.write(down, across, inside)


class Kept(Sink, Protocol):
    """A map that is written, and read once it is complete."""

    def source(self, device: torch.device) -> Source: ...


class Turned:
    """A source or a sink with rows and columns exchanged: files store sound sample by sample."""

    def __init__(self, other: Any) -> None:
        self.other = other

    def read(self, rows: Span, columns: Span) -> Tensor:
        turned: Tensor = self.other.read(columns, rows).mT
        return turned

    def expect(self, rows: Span, columns: Span) -> None:
        self.other.expect(columns, rows)

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        self.other.write(columns, rows, values.mT)

    def source(self, device: torch.device) -> Source:
        return Turned(self.other.source(device))


class TensorSource:
    """A tensor, on the computing device or elsewhere.

    From host memory to a CUDA device, the next piece is copied on a stream of its own, from pinned memory,
    while the current one is computed.
    """

    def __init__(self, whole: Tensor, device: torch.device) -> None:
        self.whole = whole
        self.device = device
        self.copies = _copy_stream(device) if whole.device.type == "cpu" else None
        self.ahead: dict[tuple[Span, Span], Tensor] = {}

    def read(self, rows: Span, columns: Span) -> Tensor:
        piece = self.ahead.pop((rows, columns), None)
        if self.copies is not None and piece is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.copies)
            piece.record_stream(current)
        else:
            piece = self._piece(rows, columns).to(self.device)
        # channels last, which oneDNN and cuDNN convolve without reordering
        return piece.contiguous(memory_format=torch.channels_last) if piece.ndim == 4 else piece

    def expect(self, rows: Span, columns: Span) -> None:
        if self.copies is None or rows.empty or columns.empty:
            return
        piece = self._piece(rows, columns)
        pinned = _pinned(piece).copy_(piece)
        with torch.cuda.stream(self.copies):
            self.ahead[rows, columns] = pinned.to(self.device, non_blocking=True)

    def _piece(self, rows: Span, columns: Span) -> Tensor:
        return self.whole[..., rows.start : rows.stop, columns.start : columns.stop]


class TensorSink:
    """A tensor that is filled piece by piece, in the given kind of memory.

    It is allocated when the first piece shows its type. `auto` means the device, unless the tensor would take
    more than half of what is free there; then host memory, and where that is short, too, a file.

    From a CUDA device, a piece is copied to pinned memory on a separate stream, and moved to its place once
    enough others have been requested from the device. Copied directly, PyTorch would wait, and noncontiguous
    places would go through memory that is not pinned.
    """

    def __init__(self, height: int, width: int, store: Store = "device") -> None:
        self.size = height, width
        self.store = store
        self.whole: Tensor | None = None
        self.copies: torch.cuda.Stream | None = None
        self.coming: deque[tuple[Tensor, Tensor, torch.cuda.Event]] = deque()
        """Places, the pieces for them, and the events of their copies."""

    @staticmethod
    def of(size: Size, store: Store = "device") -> TensorSink:
        return TensorSink(size.height, size.width, store)

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        if self.whole is None:
            self.whole = self._made((*values.shape[:-2], *self.size), values)
            self.copies = _copy_stream(values.device) if self.whole.device.type == "cpu" else None
        place = self.whole[..., rows.start : rows.stop, columns.start : columns.stop]
        if self.copies is None:
            place.copy_(values)
            return
        self._land(UNDER_WAY - values.nbytes)
        values, piece = values.contiguous(), _pinned(values)
        self.copies.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(self.copies):
            piece.copy_(values, non_blocking=True)
            self.coming.append((place, piece, self.copies.record_event()))
        values.record_stream(self.copies)

    def _made(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return _allocate(shape, like, self.store)

    def result(self) -> Tensor:
        assert self.whole is not None
        self._land()
        return self.whole

    def _land(self, left: int = 0) -> None:
        """Until no more bytes than these are under way."""
        while self.coming and sum(piece.nbytes for _, piece, _ in self.coming) > left:
            place, piece, copied = self.coming.popleft()
            copied.synchronize()
            place.copy_(piece)

    def source(self, device: torch.device) -> Source:
        return TensorSource(self.result(), device)


class MapBetween(TensorSink):
    """A tensor that only the next pass reads. On the device it is channels last, as its pieces are."""

    def _made(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        whole = super()._made(shape, like)
        if whole.device != like.device or len(shape) != 4:
            return whole
        images, channels, *sides = shape
        return whole.view(images, *sides, channels).permute(0, 3, 1, 2)


def _pinned(like: Tensor) -> Tensor:
    """Contiguous pinned memory for such a piece, which a device can copy while it computes."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def _copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def _allocate(shape: tuple[int, ...], like: Tensor, store: Store) -> Tensor:
    needed = math.prod(shape) * like.element_size()
    if store == "auto":
        store = _roomiest(needed, like.device)
    if store == "device":
        return like.new_empty(shape)
    if store == "host":
        return torch.empty(shape, dtype=like.dtype)
    # a file without a name, which is deleted with the tensor
    file = tempfile.NamedTemporaryFile(prefix="overlap-tool-")  # noqa: SIM115
    file.truncate(needed)
    whole = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=like.dtype)
    file.close()
    return whole.reshape(shape)


def _roomiest(needed: int, device: torch.device) -> Store:
    if device.type == "cuda" and needed * 2 <= torch.cuda.mem_get_info(device)[0]:
        return "device"
    if needed * 2 <= _free_host_bytes():
        return "device" if device.type == "cpu" else "host"
    return "disk"


def _free_host_bytes() -> int:
    try:
        with open("/proc/meminfo") as meminfo:
            figures = dict(line.split(":", 1) for line in meminfo)
        return int(figures["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 1 << 62  # unknown here: leave it to the allocator
