"""Convolutions and transposed convolutions, as modules and as functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Padding, Transposed, Window
from overlap_tool.rules.pieces import extend, place
from overlap_tool.rules.registry import Call, Operand, Patches, Rule, register

PADDING_MODES = {
    "zeros": Padding.CONSTANT,
    "constant": Padding.CONSTANT,
    "reflect": Padding.REFLECT,
    "replicate": Padding.REPLICATE,
    "circular": Padding.CIRCULAR,
}


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One number for both axes, or one each."""
    if isinstance(value, int):
        return value, value
    first, second = (*value, *value)[:2]
    return first, second


def same_padding(kernel: int, dilation: int) -> tuple[int, int]:
    """torch's "same": the odd sample of an even kernel goes to the end."""
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def windows(
    kernel: Any, stride: Any, padding: Any, dilation: Any, outside: Padding = Padding.CONSTANT
) -> tuple[Window, Window]:
    kernels, strides, dilations = pair(kernel), pair(stride), pair(dilation)
    if padding == "valid":
        pads = [(0, 0), (0, 0)]
    elif padding == "same":
        pads = [same_padding(k, d) for k, d in zip(kernels, dilations, strict=True)]
    else:
        pads = [(p, p) for p in pair(padding)]
    rows, columns = (
        Window(k, s, before, after, d, outside)
        for k, s, (before, after), d in zip(kernels, strides, pads, dilations, strict=True)
    )
    return rows, columns


@register(F.conv2d, torch.conv2d)
def conv2d(
    call: Call,
    input: Operand,
    weight: Operand,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Rule:
    if weight.spatial:
        call.refuse("convolves with weights that are made from the input")

    def run(
        patches: Patches, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        piece = extend(input, patches, Padding.CONSTANT)
        return F.conv2d(piece, weight, bias, stride, 0, dilation, groups)

    kernel = weight.shape[-2:]
    rows, columns = windows(kernel, stride, padding, dilation)
    return Rule(run, rows, columns, _macs(weight.shape), kernel=pair(kernel), stride=pair(stride))


@register(nn.Conv2d)
def conv2d_module(call: Call, module: nn.Conv2d, input: Operand) -> Rule:
    outside = PADDING_MODES[module.padding_mode]

    def run(patches: Patches, module: nn.Conv2d, input: Tensor) -> Tensor:
        piece = extend(input, patches, outside)
        return F.conv2d(piece, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)

    rows, columns = windows(module.kernel_size, module.stride, module.padding, module.dilation, outside)
    macs = _macs(module.weight.shape)
    return Rule(run, rows, columns, macs, kernel=pair(module.kernel_size), stride=pair(module.stride))


@register("compressai.layers.layers.MaskedConv2d")
def masked_conv2d(call: Call, module: Any, input: Operand) -> Rule:
    """A causal or checkerboard convolution: only the taps that its mask leaves are read."""
    if module.padding_mode != "zeros":
        call.refuse("masks the taps of a convolution whose padding is not zeros")
    open_taps = module.mask.ne(0).flatten(0, 1).any(0)
    if not open_taps.any():
        call.refuse("masks every tap of its kernel")
    (top, bottom), (left, right) = (
        (int(axis.min()), int(axis.max())) for axis in open_taps.nonzero(as_tuple=True)
    )

    def run(patches: Patches, module: Any, input: Tensor) -> Tensor:
        weight = (module.weight * module.mask)[..., top : bottom + 1, left : right + 1]
        piece = extend(input, patches, Padding.CONSTANT)
        return F.conv2d(piece, weight, module.bias, module.stride, 0, module.dilation, module.groups)

    rows, columns = windows(module.kernel_size, module.stride, module.padding, module.dilation)
    return Rule(
        run,
        rows.trimmed(top, bottom),
        columns.trimmed(left, right),
        _macs(module.weight.shape),
        kernel=pair(module.kernel_size),
        stride=pair(module.stride),
    )


@register(F.conv_transpose2d, torch.conv_transpose2d)
def conv_transpose2d(
    call: Call,
    input: Operand,
    weight: Operand,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Rule:
    if weight.spatial:
        call.refuse("convolves with weights that are made from the input")
    rows, columns = (
        Transposed(*axis)
        for axis in zip(
            weight.shape[-2:], pair(stride), pair(padding), pair(output_padding), pair(dilation), strict=True
        )
    )

    def run(
        patches: Patches, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        vertical, horizontal = patches
        if vertical.have.empty or horizontal.have.empty:
            # no input feeds these outputs: the bias alone stands there
            channels = weight.shape[1] * groups
            piece, begins = input.new_zeros((input.shape[0], channels, 0, 0)), (0, 0)
        else:
            piece = F.conv_transpose2d(input, weight, bias, stride, 0, 0, groups, dilation)
            begins = rows.begins(vertical.have.start), columns.begins(horizontal.have.start)
        return place(piece, begins, patches, fill=bias)

    # (in, out/groups, kh, kw): as many multiply-accumulates per output position as a convolution of that
    # kernel has, which is how they are counted by convention, zeros between the inputs included
    macs = weight.shape[0] * weight.shape[1] * weight.shape[2] * weight.shape[3]
    return Rule(run, rows, columns, macs, kernel=pair(weight.shape[-2:]), stride=pair(stride))


@register(nn.ConvTranspose2d)
def conv_transpose2d_module(call: Call, module: nn.ConvTranspose2d, input: Operand) -> Rule:
    weight = Operand("weight", tuple(module.weight.shape), spatial=False)
    rule = conv_transpose2d(
        call,
        input,
        weight,
        None,
        module.stride,
        module.padding,
        module.output_padding,
        module.groups,
        module.dilation,
    )

    def run(patches: Patches, module: nn.ConvTranspose2d, input: Tensor) -> Any:
        return rule.run(patches, input, module.weight, module.bias)

    return replace(rule, run=run)


def _macs(weight_shape: Sequence[int]) -> int:
    out_channels, in_channels_per_group, height, width = weight_shape
    return out_channels * in_channels_per_group * height * width
