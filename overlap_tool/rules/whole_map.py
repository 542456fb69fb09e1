"""Modules that need the whole map and are not barriers: kept whole on coarse maps, refused otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from overlap_tool.geometry import Everything
from overlap_tool.rules.channels import along_the_map, dims_of
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


def kept_whole(call: Call, module: nn.Module, input: Operand, *args: Any, **kwargs: Any) -> Rule:
    """A part that the model's own code runs on the whole map. It has to return a map of the same size."""
    if any(isinstance(leaf, Operand) for leaf in tree_leaves((args, kwargs))):
        call.refuse("is kept whole, and takes more than one map")
    made = call.output_shapes[0]
    follows = [bool(input.layout.following([dim])) for dim in range(len(input.shape))]
    layout = input.layout.with_lengths(
        {dim: made[dim] for dim, axis in enumerate(follows[: len(made)]) if not axis}
    )
    sizes = zip(call.sizes, call.output_shapes, strict=True)
    if len(made) != len(input.shape) or any(layout.shape(size) != tuple(shape) for size, shape in sizes):
        call.refuse("is kept whole, and does not return a map of the size of the one that it takes")
    return Rule(
        lambda patches, module, *args, **kwargs: module(*args, **kwargs),
        Everything(),
        Everything(),
        layout=layout,
    )


@register_rule(nn.LPPool2d)
def power_pool(call: Call, *args: Any, **kwargs: Any) -> Rule:
    call.refuse("pools by a norm")


@register_rule(nn.MultiheadAttention)
def multihead_attention(call: Call, *args: Any, **kwargs: Any) -> Rule:
    call.refuse_global("compares every token with every other")


@register_rule(
    torch.fft.fft, torch.fft.fft2, torch.fft.fftn, torch.fft.rfft, torch.fft.rfft2, torch.fft.rfftn,
    torch.fft.ifft, torch.fft.ifft2, torch.fft.ifftn, torch.fft.irfft, torch.fft.irfft2, torch.fft.irfftn,
)  # fmt: skip
def frequencies(call: Call, input: Operand, size: Any = None, dim: Any = None, *_: Any, **__: Any) -> Rule:
    """By default, `dim` is at least the last dimension, which is that of the columns."""
    if dim is None or along_the_map(dims_of(dim, len(input.shape)), input):
        call.refuse_global("transforms rows or columns to frequencies or back")
    call.refuse("transforms channels to frequencies or back")
