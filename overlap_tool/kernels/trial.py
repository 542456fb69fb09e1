"""Chooses the kernel of a layer: the device's own, once it was tried, or else elementwise operations.

A kernel is tried once per process for every distinct configuration of a layer. Some outputs are compared with
the chain as numpy emulates it, and odd pieces, with another memory layout, with the same outputs of a larger
one. A layer whose trial fails runs by `elementwise`, which is tried in the same way: it has the bits of the
chain, and is slow. A warning reports it, and `fallbacks` lists such layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from overlap_tool.errors import ExactnessError, SlowKernelWarning
from overlap_tool.kernels import cpu, cuda, elementwise
from overlap_tool.kernels.emulation import chains
from overlap_tool.kernels.form import Form
from overlap_tool.settings import inside


class Kernel(Protocol):
    """A module that computes convolutions as canonical chains."""

    PIECE: tuple[int, int]
    """Rows and columns of outputs that exercise all of its code."""

    def pack(self, weight: Tensor, groups: int) -> Any:
        """Weights (out, in / groups, height, width) in the order that `convolve` reads."""

    def filled(self, outputs: int, dtype: torch.dtype) -> int:
        """The work for this many outputs of a group, in outputs of a large layer."""

    def convolve(
        self, x: Tensor, weight: Any, bias: Tensor | None, form: Form, out: Tensor | None = None
    ) -> Tensor:
        """Write into `out` if it is given: any view whose channels are adjacent."""


MATRICES = 35
"""More than any kernel takes at once, and not a round number."""

OWN: dict[str, Kernel] = {"cpu": cpu, "cuda": cuda}
"""By the type of the device."""


class Layer(NamedTuple):
    """Everything that decides how a kernel is compiled and divided, except the size of the image."""

    channels: int
    outputs: int
    kernel: tuple[int, int]
    form: Form
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor, weight: Sequence[int], form: Form) -> Layer:
        """`weight` is a shape (out, in / groups, height, width).

        If every group is a matrix product, the number of groups may follow the size of the image and is
        replaced by a fixed one; but not if a group is a single channel, since channels are lanes then.
        """
        return _layer(*weight, form.stride, form.dilation, form.groups, x.dtype, x.device)

    def read_by(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        return self.form.read_by(self.kernel, rows, columns)

    def __str__(self) -> str:
        shape = f"{self.channels} to {self.outputs} channels, {self.kernel[0]}x{self.kernel[1]}"
        steps = f"stride {self.form.stride}, dilation {self.form.dilation}, {self.form.groups} groups"
        return f"convolution of {shape}, {steps}, {self.dtype} on {self.device}"


@lru_cache(1024)
def _layer(
    outputs: int,
    depth: int,
    height: int,
    width: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Layer:
    if (height, width) == (1, 1) and groups > 1 and outputs * depth > groups:
        outputs, groups = outputs // groups * MATRICES, MATRICES
    form = Form(stride, dilation, groups)
    return Layer(depth * groups, outputs, (height, width), form, dtype, device)


@dataclass(frozen=True)
class Fallback:
    """A layer that runs by elementwise operations, and the fault of the device's own kernel."""

    layer: str
    reason: str


def kernel_for(layer: Layer) -> Kernel:
    """The kernel whose outputs for this layer are the chain."""
    kernel, fallback = choose(layer)
    if fallback is not None and (told := _told.get()) is not None:
        told[fallback] = None
    return kernel


_told: ContextVar[dict[Fallback, None] | None] = ContextVar("fallbacks", default=None)


def fallbacks() -> AbstractContextManager[dict[Fallback, None]]:
    """The layers that run by elementwise operations inside, in this thread, in order."""
    return inside(_told, dict[Fallback, None]())


@cache
def choose(layer: Layer) -> tuple[Kernel, Fallback | None]:
    """Tried once per process."""
    own = OWN[layer.device.type]
    wrong = fault(own, layer)
    if not wrong:
        return own, None
    if again := fault(elementwise, layer):
        raise ExactnessError(
            str(layer),
            f"{wrong}; and by elementwise operations, {again}",
            f"Use {ExactnessError.STOCK}, and report the layer, the device and the version of PyTorch",
        )
    warnings.warn(
        f"{layer}: {wrong}. It runs by elementwise operations: with the same bits, and slowly",
        SlowKernelWarning,
        stacklevel=2,
    )
    return elementwise, Fallback(str(layer), wrong)


def fault(kernel: Kernel, layer: Layer) -> str:
    """What is wrong with a kernel's outputs for such a layer; empty if it can be used."""
    try:
        return _difference(kernel, layer)
    except (MemoryError, torch.OutOfMemoryError):  # lack of memory is not the kernel's fault
        raise
    except Exception as error:  # compilers may raise anything
        return f"it raises {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@torch.no_grad()
def _difference(kernel: Kernel, layer: Layer) -> str:
    random = torch.Generator(layer.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=layer.dtype, device=layer.device)

    rows, columns = kernel.PIECE
    height, width = (span.stop for span in layer.read_by(slice(0, rows), slice(0, columns)))
    # between the pixels lies a channel that the layer does not read
    around = normal(2, layer.channels + 1, height, width).contiguous(memory_format=torch.channels_last)
    x = around[:, 1:]
    weight, bias = (
        normal(layer.outputs, layer.channels // layer.form.groups, *layer.kernel),
        normal(layer.outputs),
    )
    packed = kernel.pack(weight, layer.form.groups)

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        return kernel.convolve(x, packed, bias, layer.form)

    whole = run(x.contiguous(), bias)
    wrong, tried = _not_chains(layer, x, weight, bias, whole)
    if wrong:
        return f"{wrong} of {tried} outputs that were tried differ from the exact chain of multiply-adds"
    for out in (
        (slice(0, 1), slice(0, 1)),
        (slice(0, rows), slice(0, columns // 2)),
        (slice(rows - 1, rows), slice(columns // 3, columns)),
    ):
        here, there = ((slice(1, None), slice(None), *spans) for spans in (layer.read_by(*out), out))
        if not torch.equal(run(x[here], None) + bias[:, None, None], whole[there]):
            return "a piece of a map has other bits than the same outputs of a larger piece"
    form = layer.form._replace(padding=((1, 0), (0, 2)))
    by_kernel = kernel.convolve(x[:1], packed, bias, form)
    if not torch.equal(by_kernel, kernel.convolve(F.pad(x[:1], (0, 2, 1, 0)), packed, bias, layer.form)):
        return "zeros that the kernel adds give other bits than zeros in the input"
    return ""


def _not_chains(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> tuple[int, int]:
    """How many outputs, from the first to the last, are not the chain, and how many were tried."""
    probes = 16 if layer.dtype == torch.float32 else 4  # the emulation of float64 is slow
    depth, (dh, dw) = layer.channels // layer.form.groups, layer.form.dilation
    inputs, taps, addends, found = (t.cpu().numpy() for t in (x, weight, bias, y))
    at = [np.unravel_index(i, found.shape) for i in np.linspace(0, found.size - 1, probes).astype(int)]
    samples = []
    for image, output, row, column in at:
        first = output // (layer.outputs // layer.form.groups) * depth
        rows, columns = layer.read_by(slice(row, row + 1), slice(column, column + 1))
        read = inputs[image, first : first + depth, rows, columns][:, ::dh, ::dw]
        samples.append(read.transpose(1, 2, 0).ravel())
    outputs = [output for _, output, _, _ in at]
    weights = taps[outputs].transpose(0, 2, 3, 1).reshape(probes, -1)
    expected = chains(np.stack(samples), weights) + addends[outputs]
    return int((np.stack([found[i] for i in at]) != expected).sum()), probes
