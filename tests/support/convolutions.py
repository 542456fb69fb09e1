"""Convolutions that a kernel may be asked for: geometries, groups, types and layouts in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from overlap_tool.kernels import emulation
from overlap_tool.kernels.form import Form


class Case(NamedTuple):
    """`x` and `out` name a layout; without `out` none is given."""

    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    images: int = 1
    bias: bool = True
    dtype: torch.dtype = torch.float32
    x: str = "rows"
    out: str | None = None

    @property
    def form(self) -> Form:
        return Form(self.stride, self.dilation, self.groups)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second sample": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, ::2],
    "some channels": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "columns": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "one image for all": lambda x: x[:1].expand_as(x),
}
"""The same samples with other strides (but for the last), also for outputs."""

CASES = {
    "1x1": Case(5, 7, (1, 1)),
    "1x1, channels last": Case(12, 20, (1, 1), x="channels last"),
    "2x2": Case(3, 4, (2, 2), x="channels last"),
    "3x3": Case(6, 17, (3, 3)),
    "5x5, stride 2": Case(2, 3, (5, 5), (2, 2), x="channels last"),
    "3x1, stride 1x2": Case(4, 5, (3, 1), (1, 2)),
    "dilation 2": Case(3, 4, (3, 3), (1, 1), (2, 2), x="channels last"),
    "dilation 2x3, stride 2x1": Case(3, 4, (3, 2), (2, 1), (2, 3)),
    "two groups of 17": Case(4, 34, (2, 2), groups=2, x="channels last"),
    "three groups of 5": Case(6, 15, (3, 3), groups=3),
    "depthwise": Case(35, 35, (3, 3), groups=35, x="channels last"),
    "depthwise, taps apart": Case(18, 18, (5, 3), (3, 2), (2, 3), groups=18, x="channels last"),
    "depthwise, three each": Case(13, 39, (2, 2), (2, 2), groups=13),
    "more than a block of channels": Case(2, 130, (1, 2), x="channels last"),
    "one channel": Case(1, 1, (3, 3)),
    "batch 3": Case(3, 4, (3, 3), images=3, x="channels last"),
    "no bias": Case(3, 4, (3, 3), bias=False),
    "float64": Case(5, 6, (3, 3), (2, 2), dtype=torch.float64, x="channels last"),
    "float64, depthwise": Case(5, 5, (3, 3), groups=5, dtype=torch.float64),
    "x of every second sample": Case(3, 4, (2, 2), images=2, x="every second sample"),
    "x of some channels": Case(3, 4, (2, 2), images=2, x="some channels"),
    "x by columns": Case(3, 4, (3, 2), images=2, x="columns"),
    "x of one image": Case(3, 4, (2, 2), images=2, x="one image for all"),
    "out of rows": Case(3, 18, (2, 2), images=2, out="rows"),
    "out of every second sample": Case(3, 18, (2, 2), images=2, out="every second sample"),
    "out of some channels": Case(3, 4, (2, 2), images=2, out="some channels"),
    "out by columns, depthwise": Case(3, 3, (2, 2), images=2, groups=3, out="columns"),
}


def operands(case: Case) -> tuple[Tensor, Tensor, Tensor | None, Form]:
    """Samples for 3 x 3 outputs or more, weights and bias, on the CPU."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=case.dtype)

    size = (d * (k - 1) + 3 * s for k, s, d in zip(case.kernel, case.stride, case.dilation, strict=True))
    x = LAYOUTS[case.x](normal(case.images, case.channels, *size))
    weight = normal(case.outputs, case.channels // case.groups, *case.kernel)
    return x, weight, normal(case.outputs) if case.bias else None, case.form


def chain(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """Every output by the emulation."""
    x, form = form.padded(x)
    arrays = (None if t is None else t.cpu().numpy() for t in (x, weight, bias))
    return torch.from_numpy(emulated(*arrays, form.stride, form.dilation, form.groups))


def transposed(x: Tensor, weight: Tensor, bias, stride, padding, output_padding, dilation, groups) -> Tensor:
    """`F.conv_transpose2d` by the emulation: the convolution of the input with zeros between its samples and
    the kernel turned round. Zeros do not change a chain, so this is the same chain."""
    kernel = weight.shape[-2:]
    spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[-2:], stride, strict=True)))
    spread[..., :: stride[0], :: stride[1]] = x
    around = []
    for k, d, p, o in reversed(list(zip(kernel, dilation, padding, output_padding, strict=True))):
        around += [d * (k - 1) - p, d * (k - 1) - p + o]
    turned = weight.flip(-2, -1).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return chain(F.pad(spread, around), turned, bias, Form((1, 1), dilation, groups))


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def layers(draw) -> tuple[Tensor, Tensor, Tensor | None, dict]:
    """Samples, weights, bias and the options of `F.conv2d`."""
    depthwise = draw(st.integers(0, 5)) == 0
    groups = draw(st.sampled_from([3, 17, 70]) if depthwise else st.sampled_from([1, 1, 1, 2, 5]))
    channels = groups * (1 if depthwise else draw(st.sampled_from([1, 2, 5, 16, 33])))
    outputs = groups * (1 if depthwise else draw(st.sampled_from([1, 3, 12, 16, 31, 65, 130])))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(pairs)
    size = [d * (k - 1) + draw(st.integers(1, 9)) for d, k in zip(dilation, kernel, strict=True)]
    size[1] += draw(st.sampled_from([0, 0, 48, 53]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(draw(st.sampled_from([1, 3])), channels, *size, generator=generator)
    x = LAYOUTS[draw(st.sampled_from(["rows", "channels last", "some channels", "columns"]))](x)
    weight = torch.randn(outputs, channels // groups, *kernel, generator=generator)
    bias = torch.randn(outputs, generator=generator) if draw(st.booleans()) else None
    options = {"stride": draw(pairs), "dilation": dilation, "groups": groups}
    return x, weight, bias, options | {"padding": draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))}


def emulated(
    x: emulation.Array,
    weight: emulation.Array,
    bias: emulation.Array | None,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> emulation.Array:
    """Every output of a convolution without padding, (N, O, Ho, Wo)."""
    windows = x
    for axis in (2, 3):
        reach = dilation[axis - 2] * (weight.shape[axis] - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(windows, reach, axis)
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    images, _, height, width, *_ = windows.shape
    depth = weight.shape[1]
    parts = []
    for group, taps in enumerate(np.split(weight, groups)):
        read = windows[:, group * depth : (group + 1) * depth]
        samples = read.transpose(0, 2, 3, 4, 5, 1).reshape(images, height, width, 1, -1)
        parts.append(emulation.chains(samples, taps.transpose(0, 2, 3, 1).reshape(len(taps), -1)))
    y = np.concatenate(parts, -1)
    return np.moveaxis(y + (0 if bias is None else bias), -1, 1)
