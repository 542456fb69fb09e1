"""Where the whole input and output of a stage live; the executor reads and writes pieces of them.

On the device that computes, in host memory, or in a file: the device then holds one tile and the caches.
"""

from __future__ import annotations

import math
import tempfile
from typing import Protocol

import torch
from torch import Tensor

from overlap_tool.geometry import Span
from overlap_tool.schedule.choose import Store


class Source(Protocol):
    """A stage's input."""

    def read(self, rows: Span, columns: Span) -> Tensor:
        """A piece, on the device that computes."""
        ...


class Sink(Protocol):
    """A stage's output."""

    def write(self, rows: Span, columns: Span, values: Tensor) -> None: ...


class TensorSource:
    """A tensor, on the computing device or elsewhere."""

    def __init__(self, whole: Tensor, device: torch.device) -> None:
        self.whole = whole
        self.device = device

    def read(self, rows: Span, columns: Span) -> Tensor:
        piece = self.whole[..., rows.start : rows.stop, columns.start : columns.stop]
        if piece.device != self.device:
            # from pinned memory the copy need not wait for the device, nor the device for the copy
            pinned = piece.pin_memory() if self.device.type == "cuda" else piece
            piece = pinned.to(self.device, non_blocking=True)
        # channels last: the layout in which oneDNN and cuDNN convolve without reordering
        return piece.contiguous(memory_format=torch.channels_last) if piece.ndim == 4 else piece


class TensorSink:
    """A tensor that is filled piece by piece, in the given kind of memory.

    It is made when the first piece shows its type. `auto` means the device, unless the tensor would take more
    than half of what is free there; then host memory, and where that is short, too, a file.
    """

    def __init__(self, height: int, width: int, store: Store = "device") -> None:
        self.size = height, width
        self.store = store
        self.whole: Tensor | None = None

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        if self.whole is None:
            self.whole = _allocate((*values.shape[:-2], *self.size), values, self.store)
        self.whole[..., rows.start : rows.stop, columns.start : columns.stop] = values

    def result(self) -> Tensor:
        assert self.whole is not None
        return self.whole


def _allocate(shape: tuple[int, ...], like: Tensor, store: Store) -> Tensor:
    needed = math.prod(shape) * like.element_size()
    if store == "auto":
        store = _roomiest(needed, like.device)
    if store == "device":
        return like.new_empty(shape)
    if store == "host":
        return torch.empty(shape, dtype=like.dtype)
    # A file without a name: it is gone as soon as the tensor is.
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
        return 1 << 62  # not told here: leave it to the allocator
