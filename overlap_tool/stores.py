"""Where the whole input and output of a stage live; the executor reads and writes pieces of them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from overlap_tool.geometry import Span


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
        piece = piece.to(self.device, non_blocking=True)
        # channels last: the layout in which oneDNN and cuDNN convolve without reordering
        return piece.contiguous(memory_format=torch.channels_last) if piece.ndim == 4 else piece


class TensorSink:
    """A tensor that is filled piece by piece; it is made when the first piece shows its type."""

    def __init__(self, height: int, width: int) -> None:
        self.size = height, width
        self.whole: Tensor | None = None

    def write(self, rows: Span, columns: Span, values: Tensor) -> None:
        if self.whole is None:
            self.whole = values.new_empty((*values.shape[:-2], *self.size))
        self.whole[..., rows.start : rows.stop, columns.start : columns.stop] = values

    def result(self) -> Tensor:
        assert self.whole is not None
        return self.whole
