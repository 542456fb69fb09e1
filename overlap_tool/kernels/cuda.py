"""Convolutions on CUDA as canonical chains, each layer tried before it is relied on."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels.emulation import Array, chains

DTYPES = (torch.float32, torch.float64)


class Layer(NamedTuple):
    """All that decides how the kernel is compiled and cut into blocks, beside the size of the image."""

    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        shape = f"{self.channels} to {self.outputs} channels, {self.kernel[0]}x{self.kernel[1]}"
        steps = f"stride {self.stride}, dilation {self.dilation}, {self.groups} groups"
        return f"convolution of {shape}, {steps}, {self.dtype} on {self.device}"


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    out: Tensor | None = None,
) -> Tensor:
    """A convolution without padding, of which every output is the chain: no bit depends on anything else.

    `x` (N, C, H, W), `weight` (O, C // groups, kh, kw) and `out` may have any strides. `out` is made channels
    last when it is not given. Gradients are not recorded.
    """
    channels, outputs, kernel = x.shape[1], weight.shape[0], (weight.shape[2], weight.shape[3])
    layer = Layer(channels, outputs, kernel, stride, dilation, groups, x.dtype, x.device)
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        raise ExactnessError(
            str(layer),
            f"exact chains are of float32 or float64, not {x.dtype} with weights of {weight.dtype}",
            "Convert the model and its input with .float() or .double()",
        )
    require(layer)
    return run(x, weight, bias, stride, dilation, groups, out)


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    out: Tensor | None = None,
) -> Tensor:
    """`convolve` without the trial."""
    size = (
        (length - d * (k - 1) - 1) // s + 1
        for length, k, s, d in zip(x.shape[2:], weight.shape[2:], stride, dilation, strict=True)
    )
    shape = (x.shape[0], weight.shape[0], *size)
    if out is None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    assert tuple(out.shape) == shape, f"out is {tuple(out.shape)}, the result {shape}"
    _triton_chain().run(x, weight, bias, stride, dilation, groups, out)
    return out


@cache
def _triton_chain() -> Any:
    try:
        return importlib.import_module("overlap_tool.kernels.triton_chain")
    except ImportError as error:
        raise ExactnessError(
            "exact convolutions on CUDA", f"Triton cannot be imported ({error})", "Install triton >= 3.2"
        ) from error


@cache
def require(layer: Layer) -> None:
    """Refuse a layer of which some outputs, computed now, are not the chain: tried once per process."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel, layer.stride, layer.dilation
    depth = layer.channels // layer.groups
    random = torch.Generator(layer.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=layer.dtype, device=layer.device)

    # 3 x 5 outputs of each of two images: more than a block of pixels.
    x = normal(2, layer.channels, 2 * sh + dh * (kh - 1) + 1, 4 * sw + dw * (kw - 1) + 1)
    weight, bias = normal(layer.outputs, depth, kh, kw), normal(layer.outputs)
    y = run(x, weight, bias, layer.stride, layer.dilation, layer.groups)

    # From the first output to the last one. The emulation of float64 is slow.
    probes = 16 if layer.dtype == torch.float32 else 4
    samples, taps, addends, found = [], [], [], []
    for index in np.linspace(0, y.numel() - 1, probes).astype(int):
        image, output, row, column = (int(i) for i in np.unravel_index(index, y.shape))
        first = output // (layer.outputs // layer.groups) * depth
        rows = slice(row * sh, row * sh + dh * (kh - 1) + 1, dh)
        columns = slice(column * sw, column * sw + dw * (kw - 1) + 1, dw)
        samples.append(x[image, first : first + depth, rows, columns].permute(1, 2, 0).flatten())
        taps.append(weight[output].permute(1, 2, 0).flatten())
        addends.append(bias[output])
        found.append(y[image, output, row, column])
    expected = chains(_numpy(samples), _numpy(taps)) + _numpy(addends)
    wrong = int((_numpy(found) != expected).sum())
    if wrong:
        raise ExactnessError(
            str(layer),
            f"{wrong} of {len(found)} outputs that were tried differ from the exact chain of multiply-adds",
            "Run this model without exact kernels, and report the layer, the GPU and the version of Triton",
        )


def _numpy(tensors: list[Tensor]) -> Array:
    return torch.stack(tensors).cpu().numpy()
