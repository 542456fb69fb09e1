"""Convolutions and transposed convolutions, as modules and as functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Padding, Patch, Transposed, Window
from overlap_tool.kernels import chain
from overlap_tool.rules.exactness import chained
from overlap_tool.rules.mode import conv2d, conv_transpose2d
from overlap_tool.rules.options import of_layer
from overlap_tool.rules.padding import PADDING_MODES, of_depth, of_each_axis, pair, same_padding
from overlap_tool.rules.pieces import Patches, cleared, extend
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


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


CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {4: conv2d, 5: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {4: conv_transpose2d, 5: F.conv_transpose3d}
"""By the number of a map's dimensions."""


@register_rule(F.conv2d, torch.conv2d, F.conv3d, torch.conv3d, exact=chained(convolution=chain.convolution))
def conv(
    call: Call,
    input: Operand,
    weight: Operand,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Rule:
    if weight.spatial or weight.summary:
        call.refuse("convolves with weights that are made from the input")
    kernel, outside = weight.shape[2:], PADDING_MODES[padding_mode]
    convolve = CONVOLUTIONS[len(weight.shape)]
    rows, columns = windows(kernel, stride, padding, dilation, outside)
    around = _around_depth(kernel, padding, dilation)
    alike = around[0] == around[1] and (padding_mode == "zeros" or not around[0])
    strides, dilations = (of_each_axis(each, len(kernel)) for each in (stride, dilation))
    own = (0, 0) if len(kernel) == 2 else (around[0] if alike else 0, 0, 0)

    def run(
        patches: Patches, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        piece = extend(input, patches, outside)
        if not alike:  # the whole depth is at hand
            mode = "constant" if padding_mode == "zeros" else padding_mode
            piece = F.pad(piece, (0, 0, 0, 0, *around), mode)
        return convolve(piece, weight, bias, strides, own, dilations, groups)

    return Rule(
        run,
        rows,
        columns,
        prod(weight.shape) * _planes(call),
        scratch=int(not alike),
        kernel=pair(kernel),
        stride=pair(stride),
        uniform=True,
    )


register_rule(nn.Conv2d, nn.Conv3d)(of_layer(conv))


def _planes(call: Call) -> int:
    """The depth of the result; an image is one plane."""
    return prod(call.output_shapes[0][2:-2])


def _around_depth(kernel: Sequence[int], padding: Any, dilation: Any) -> tuple[int, int]:
    """How many planes a convolution of volumes adds before and after."""
    if len(kernel) < 3 or padding == "valid":
        return 0, 0
    if padding == "same":
        return same_padding(kernel[0], of_depth(dilation))
    return of_depth(padding), of_depth(padding)


@register_rule("compressai.layers.layers.MaskedConv2d")
def masked_conv2d(call: Call, module: Any, input: Operand) -> Rule:
    """A causal or checkerboard convolution: only the taps that its mask leaves are read."""
    if module.padding_mode != "zeros":
        call.refuse("masks the taps of a convolution whose padding is not zeros")
    open_taps = module.mask.ne(0).flatten(0, 1).any(0)
    if not open_taps.any():
        call.refuse("masks every tap of its kernel")
    vertical, horizontal = (sorted({int(tap) for tap in taps}) for taps in open_taps.nonzero(as_tuple=True))
    (top, bottom), (left, right) = (vertical[0], vertical[-1]), (horizontal[0], horizontal[-1])

    def run(patches: Patches, module: Any, input: Tensor) -> Tensor:
        weight = (module.weight * module.mask)[..., top : bottom + 1, left : right + 1]
        piece = extend(input, patches, Padding.CONSTANT)
        return F.conv2d(piece, weight, module.bias, module.stride, 0, module.dilation, module.groups)

    rows, columns = windows(module.kernel_size, module.stride, module.padding, module.dilation)
    return Rule(
        run,
        rows.masked(vertical),
        columns.masked(horizontal),
        prod(module.weight.shape),
        kernel=pair(module.kernel_size),
        stride=pair(module.stride),
        uniform=True,
    )


class Trim(NamedTuple):
    """How to make a transposed convolution of a piece compute just the outputs that are asked for.

    It holds how many zeros to put around the piece, and the padding and output padding to pass.
    """

    before: int
    after: int
    padding: int
    output_padding: int


def trim_to(op: Transposed, patch: Patch) -> Trim:
    # Without padding, the piece's outputs begin and end `lead` and `tail` beyond those asked for. Padding
    # cuts as much from both ends, output padding gives back less than a stride at the far end, and every
    # zero around the piece adds a stride to one of them.
    begin = op.begins(patch.have.start)
    end = begin + (max(1, patch.have.length) - 1) * op.stride + op.dilation * (op.kernel - 1) + 1
    lead, tail = patch.out.start - begin, end - patch.out.stop
    after = max(0, -(tail // op.stride))
    tail += after * op.stride
    before = max(0, -((lead - max(tail, 0)) // op.stride))
    lead += before * op.stride
    more = (lead - tail) // op.stride
    return Trim(before, after + more, lead, lead - tail - more * op.stride)


@register_rule(F.conv_transpose2d, torch.conv_transpose2d, F.conv_transpose3d, torch.conv_transpose3d)
def conv_transpose(
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
    if weight.spatial or weight.summary:
        call.refuse("convolves with weights that are made from the input")
    rows, columns = (
        Transposed(*axis)
        for axis in zip(
            weight.shape[-2:], pair(stride), pair(padding), pair(output_padding), pair(dilation), strict=True
        )
    )

    convolve = TRANSPOSED[len(weight.shape)]
    strides, dilations = (of_each_axis(each, len(weight.shape) - 2) for each in (stride, dilation))
    deep = [of_depth(each) for each in (padding, output_padding)] if len(weight.shape) == 5 else []

    def run(
        patches: Patches, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        trims = [trim_to(axis, patch) for axis, patch in zip((rows, columns), patches, strict=True)]
        if any(patch.have.empty for patch in patches):
            # no input feeds these outputs: a zero input gives the bias alone
            lengths = [max(1, patch.have.length) for patch in patches]
            input = input.new_zeros((*input.shape[:-2], *lengths))
        else:
            input = cleared(input, patches)
        zeros = [amount for trim in reversed(trims) for amount in (trim.before, trim.after)]
        if any(zeros):
            input = F.pad(input, zeros)
        padding = [*deep[:1], *(trim.padding for trim in trims)]
        output_padding = [*deep[1:], *(trim.output_padding for trim in trims)]
        return convolve(input, weight, bias, strides, padding, output_padding, groups, dilations)

    # (in, out/groups, kh, kw): as many multiply-accumulates per output position as a convolution of that
    # kernel has, which is how they are counted by convention, zeros between the inputs included
    macs = prod(weight.shape) * _planes(call)
    return Rule(run, rows, columns, macs, kernel=pair(weight.shape[-2:]), stride=pair(stride), uniform=True)


register_rule(nn.ConvTranspose2d, nn.ConvTranspose3d)(of_layer(conv_transpose))
