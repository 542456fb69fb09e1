"""Ops between channels at one position: concatenation, splits, reductions, and reshapes that keep the map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.rules import barriers, borders, pointwise
from overlap_tool.rules.layers import ChannelLinear, ChannelNorm
from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import ROWS_AT, Call, Operand, Reduction, Rule, SizeArgument, register_rule


def dims_of(dim: Any, ndim: int) -> list[int]:
    dims = list(range(ndim)) if dim is None else list(dim) if isinstance(dim, tuple | list) else [dim]
    return [d % ndim for d in dims]


def along_the_map(dims: list[int], input: Operand) -> bool:
    return not _rows_and_columns(input).isdisjoint(dims)


def _rows_and_columns(input: Operand) -> set[int]:
    rows = len(input.shape) + input.at
    return {rows, rows + 1}


def _every_position(dims: list[int], input: Operand) -> bool:
    return _rows_and_columns(input) <= set(dims) and 0 not in dims


def _only_channels(call: Call, input: Operand, dim: Any, doing: str) -> list[int]:
    dims = dims_of(dim, len(input.shape))
    if along_the_map(dims, input):
        call.refuse_global(f"{doing} over rows or columns")
    _no_images(call, dims, doing)
    return dims


def _rows_without(call: Call, input: Operand, dims: list[int]) -> int:
    """Where the rows are in the result of a reduction, which drops dimensions or leaves them at one."""
    dropped = len(input.shape) - len(call.output_shapes[0])
    return input.at + (sum(dim > max(_rows_and_columns(input)) for dim in dims) if dropped else 0)


def _no_images(call: Call, dims: list[int], doing: str) -> None:
    if 0 in dims:
        call.refuse(f"{doing} over the batch")


@register_rule(torch.cat, torch.concat, torch.concatenate, any_layout=True)
def concatenate(call: Call, tensors: Sequence[Operand], dim: int = 0) -> Rule:
    if any(not tensor.spatial for tensor in tensors):
        call.refuse("joins a map and a value that is none")
    dims = dims_of(dim, len(tensors[0].shape))
    _no_images(call, dims, "joins maps")
    if along_the_map(dims, tensors[0]):
        call.refuse_size("joins maps side by side, at a place that depends on their size")
    return Rule(lambda patches, tensors, dim=0: torch.cat(tensors, dim))


@register_rule(torch.narrow, "narrow", any_layout=True)
def narrow(call: Call, input: Operand, dim: int, start: int, length: int) -> Rule:
    dims = dims_of(dim, len(input.shape))
    _no_images(call, dims, "cuts a map")
    if along_the_map(dims, input):
        if not call.of_one_size:
            call.refuse_size("cuts rows or columns at a place counted from one border")
        index = [slice(None)] * len(input.shape)
        index[dims[0]] = slice(start, start + length)
        return borders.crop(call, input, tuple(index))
    return Rule(lambda patches, input, dim, start, length: input.narrow(dim, start, length))


@register_rule(
    torch.sum, torch.mean, torch.amax, torch.amin, torch.softmax, F.softmax, torch.log_softmax, F.log_softmax,
    torch.prod, torch.var, torch.std, torch.logsumexp, torch.cumsum, torch.cumprod, torch.logcumsumexp,
    "sum", "mean", "amax", "amin", "softmax", "log_softmax", "prod", "var", "std", "logsumexp",
    "cumsum", "cumprod", "logcumsumexp", torch.argmax, torch.argmin, "argmax", "argmin", any_layout=True,
)  # fmt: skip
def reduce(call: Call, input: Operand, dim: Any = None, *args: Any, **kwargs: Any) -> Rule | Reduction:
    """Over channels at every position; over all rows and columns of an image, a barrier."""
    dims = dims_of(dim, len(input.shape))
    if _every_position(dims, input) and "softmax" not in call.kind:
        _rows_and_columns_last(call, input)
        return barriers.reduction(call, call.kind, dims, *args, **kwargs)
    _only_channels(call, input, dim, "reduces")
    at = _rows_without(call, input, dims)
    return Rule(lambda patches, *args, **kwargs: _computed(call, *args, **kwargs), at=at)


def _rows_and_columns_last(call: Call, input: Operand) -> None:
    if input.at != ROWS_AT:
        call.refuse("reduces a map whose rows and columns are not its last two dimensions")


@register_rule(torch.max, torch.min, "max", "min", any_layout=True)
def extreme(call: Call, input: Operand, *args: Any, **kwargs: Any) -> Rule:
    """`torch.max(x, y)` at every position; `torch.max(x, 1)` over channels, values and where they stand."""
    other = args[0] if args else kwargs.get("other", kwargs.get("dim"))
    if isinstance(other, Operand):
        return pointwise.between_positions(call, input, *args, **kwargs)
    dims = _only_channels(call, input, other, "reduces")
    at = _rows_without(call, input, dims)
    return Rule(lambda patches, *args, **kwargs: _computed(call, *args, **kwargs), at=at)


def _computed(call: Call, *args: Any, **kwargs: Any) -> Any:
    target = getattr(Tensor, call.target) if isinstance(call.target, str) else call.target
    return target(*args, **kwargs)


@register_rule("repeat", torch.tile, "tile", any_layout=True)
def repeat(call: Call, input: Operand, *repeats: Any, **named: Any) -> Rule:
    """Channels, once after the other."""
    times = named.get("repeats", named.get("dims", repeats[0] if len(repeats) == 1 else repeats))
    times = (times,) if isinstance(times, int) else tuple(times)
    ndim = len(input.shape)
    times = (*[1] * (ndim - len(times)), *times)
    rows = ndim + input.at
    if len(times) > ndim:
        call.refuse("repeats a map along new dimensions")
    if times[rows : rows + 2] != (1, 1):
        call.refuse_global("repeats rows or columns")
    _no_images(call, [0] if times[0] != 1 else [], "repeats")
    return Rule(lambda patches, input, *_, **__: input.repeat(times))


@register_rule(torch.stack, any_layout=True)
def stack(call: Call, tensors: Sequence[Operand], dim: int = 0) -> Rule:
    """Maps along a new dimension, anywhere but before the images or between rows and columns."""
    if any(not tensor.spatial for tensor in tensors):
        call.refuse("stacks a map and a value that is none")
    ndim, at = len(tensors[0].shape), tensors[0].at
    place, rows = dim % (ndim + 1), ndim + at
    if place == 0 or place == rows + 1:
        call.refuse("stacks maps along a dimension before the images, or between rows and columns")
    at = at - 1 if place > rows + 1 else at
    return Rule(lambda patches, tensors, dim=0: torch.stack(tensors, place), at=at)


@register_rule("new_zeros", "new_ones", "new_full", "new_empty", accepts_sizes=True)
def new(call: Call, input: Operand, *args: Any, **kwargs: Any) -> Rule:
    """A map of one number, as large as another: a start to which channels are added."""
    given, made = call.input_shapes, call.output_shapes
    if any(
        len(new) < 3 or new[-2:] != old[-2:] or new[0] != old[0] for old, new in zip(given, made, strict=True)
    ):
        call.refuse("makes a map that is not as large as the one that it is made beside")
    channels = made[0][1:-2]
    if call.target == "new_empty" and prod(channels):
        call.refuse("makes a map of whatever numbers stand in memory")
    filled = kwargs.get("fill_value", args[1] if len(args) > 1 else None)
    fill: Any = {"new_ones": 1, "new_full": filled}.get(call.target, 0)
    if isinstance(fill, Operand):
        call.refuse("fills a map with a number that is computed")

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return input.new_full((input.shape[0], *channels, *input.shape[-2:]), fill, dtype=kwargs.get("dtype"))

    return Rule(run)


@register_rule(torch.zeros_like, torch.ones_like, torch.full_like, any_layout=True)
def like(call: Call, input: Operand, *args: Any, **kwargs: Any) -> Rule:
    return Rule(lambda patches, *args, **kwargs: call.target(*args, **kwargs))


@register_rule(torch.repeat_interleave, "repeat_interleave")
def repeat_interleave(call: Call, input: Operand, repeats: Any, dim: Any = None, **_: Any) -> Rule:
    if isinstance(repeats, Operand):
        call.refuse("repeats by numbers in a tensor")
    _only_channels(call, input, dim, "repeats")
    return Rule(lambda patches, *args, **kwargs: torch.repeat_interleave(*args, **kwargs))


@register_rule(torch.norm, torch.linalg.vector_norm, "norm", any_layout=True)
def norm(
    call: Call, input: Operand, p: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Rule | Reduction:
    p = kwargs.get("ord", p)
    dims = dims_of(dim, len(input.shape))
    plain = kwargs.get("dtype") is None and kwargs.get("out") is None
    if _every_position(dims, input) and p in (2, "fro", None) and plain:
        _rows_and_columns_last(call, input)
        return barriers.norm(dims, keepdim)
    _only_channels(call, input, dim, "takes the norm")
    at = _rows_without(call, input, dims)
    return Rule(lambda patches, *args, **kwargs: _computed(call, *args, **kwargs), at=at)


@register_rule(nn.Softmax, nn.Softmax2d, any_layout=True)
def softmax_module(call: Call, module: nn.Softmax, input: Operand) -> Rule:
    dim = getattr(module, "dim", 1)
    _only_channels(call, input, 1 if dim is None else dim, "normalises")
    return Rule(lambda patches, module, input: module(input))


@register_rule("unsqueeze", torch.unsqueeze, any_layout=True)
def unsqueeze(call: Call, input: Operand, dim: int) -> Rule:
    """A new dimension, anywhere but before the images or between rows and columns."""
    ndim = len(input.shape)
    place, rows = dim % (ndim + 1), ndim + input.at
    if place in (0, rows + 1):
        call.refuse("adds a dimension before the images, or between rows and columns")
    return Rule(
        lambda patches, input, dim: input.unsqueeze(place), at=input.at - 1 if place > rows + 1 else input.at
    )


@register_rule("squeeze", torch.squeeze, any_layout=True)
def squeeze(call: Call, input: Operand, dim: Any = None) -> Rule:
    """Dimensions of length one, of which none may be that of the images, of rows or of columns."""
    if dim is None:
        call.refuse("drops every dimension of length one, which that of the images may be")
    ndim = len(input.shape)
    dropped = [d for d in dims_of(dim, ndim) if input.shape[d] == 1]
    if 0 in dropped or along_the_map(dropped, input):
        call.refuse("drops the dimension of images, rows or columns")
    at = input.at + sum(d > ndim + input.at for d in dropped)
    return Rule(lambda patches, input, dim=None: input.squeeze(dropped), at=at)


@register_rule("view", "reshape", torch.reshape, "flatten", torch.flatten, nn.Flatten, "unflatten",
               nn.Unflatten, accepts_sizes=True)  # fmt: skip
def reshape(call: Call, *args: Any, **kwargs: Any) -> Rule:
    """Regroups channels. Rows and columns stay the last two dimensions, so the order in memory says how."""
    if any(len(shape) < 3 for shape in call.output_shapes) or any(
        given[-2:] != made[-2:] or given[0] != made[0]
        for given, made in zip(call.input_shapes, call.output_shapes, strict=True)
    ):
        call.refuse("mixes rows or columns with other dimensions")
    channels = call.output_shapes[0][1:-2]
    takes_module = isinstance(call.target, nn.Module)

    def run(patches: Patches, *args: Any, **_: Any) -> Tensor:
        input = args[1] if takes_module else args[0]
        return input.reshape(input.shape[0], *channels, *input.shape[-2:])

    return Rule(run)


@register_rule("einops.einops.rearrange", accepts_sizes=True, any_layout=True)
def rearrange(call: Call, tensor: Operand, pattern: str, **sizes: Any) -> Rule:
    """`b (heads c) h w -> b h w heads c`: images stand first, columns behind rows, and all three alone."""
    given, made = (re.findall(r"\([^)]*\)|\S+", side) for side in pattern.split("->"))
    first, (rows, columns) = given[0], given[tensor.at :][:2]
    at = made.index(rows) - len(made) if rows in made else 0
    kept = [first, rows, columns]
    if (
        [made[0], *made[at:][:2]] != kept
        or any("(" in name for name in kept)
        or "..." in (*given[tensor.at :], *made[at:])
    ):
        call.refuse("moves or regroups images, rows or columns")
    lengths = {name: length for name, length in sizes.items() if name not in kept}
    if any(isinstance(length, SizeArgument) for length in lengths.values()):
        call.refuse_size("regroups channels by the size of the map")

    def run(patches: Patches, tensor: Tensor, *_: Any, **__: Any) -> Any:
        return call.target(tensor, pattern, **lengths)

    return Rule(run, at=at)


@register_rule(
    "permute", torch.permute, "transpose", torch.transpose, "movedim", torch.movedim, any_layout=True
)
def permute(call: Call, input: Operand, *dims: Any, **named: Any) -> Rule:
    """Images stay first, and columns behind rows, wherever those go."""
    ndim = len(input.shape)
    order = torch.arange(ndim)
    probe = torch.empty([1] * ndim).as_strided([1] * ndim, [int(i) for i in order])
    target = getattr(torch.Tensor, call.target) if isinstance(call.target, str) else call.target
    moved = target(probe, *dims, **named).stride()
    rows = ndim + input.at
    place = moved.index(rows)
    if moved[0] != 0 or moved[place:][:2] != (rows, rows + 1):
        call.refuse("moves images to another dimension, or rows and columns apart")
    return Rule(lambda patches, input, *dims, **named: target(input, *dims, **named), at=place - ndim)


@register_rule("expand_as")
def expand_as(call: Call, input: Operand, other: Operand) -> Rule:
    """A summary, with one number per channel, repeated over all of a map."""
    if input.spatial or not other.spatial or tuple(input.shape[-2:]) != (1, 1):
        call.refuse("expands a map, or by a constant")
    return Rule(lambda patches, input, other: input.expand_as(other))


@register_rule(nn.LayerNorm, any_layout=True)
def layer_norm_module(call: Call, module: nn.LayerNorm, input: Operand) -> Rule:
    _only_behind_the_map(call, input, len(module.normalized_shape))
    return Rule(lambda patches, module, input: module(input), scratch=1)


@register_rule(F.layer_norm, any_layout=True)
def layer_norm(call: Call, input: Operand, normalized_shape: Sequence[int], *_: Any, **__: Any) -> Rule:
    _only_behind_the_map(call, input, len(normalized_shape))
    return Rule(lambda patches, *args, **kwargs: F.layer_norm(*args, **kwargs), scratch=1)


@register_rule(nn.Linear, any_layout=True)
def linear_module(call: Call, module: nn.Linear, input: Operand) -> Rule:
    _only_behind_the_map(call, input, 1)
    macs = module.weight.numel() * (input.channels // module.in_features)
    return Rule(lambda patches, module, input: module(input), macs=macs)


@register_rule(F.linear, any_layout=True)
def linear(call: Call, input: Operand, weight: Operand, bias: Operand | None = None) -> Rule:
    if weight.spatial or weight.summary:
        call.refuse("multiplies by weights that are made from the input")
    _only_behind_the_map(call, input, 1)
    macs = prod(weight.shape) * (input.channels // weight.shape[-1])
    return Rule(lambda patches, *args, **kwargs: F.linear(*args, **kwargs), macs=macs)


def _only_behind_the_map(call: Call, input: Operand, dims: int) -> None:
    """The last dimensions are channels where rows and columns stand before them, and only there."""
    columns = input.at + 1
    if columns >= -dims:
        call.refuse_global("works along the last dimension, which is that of the columns here")


@register_rule(nn.ChannelShuffle, F.channel_shuffle)
def channel_shuffle(call: Call, *args: Any) -> Rule:
    return Rule(
        lambda patches, *args: (
            args[0](args[1]) if len(args) == 2 and callable(args[0]) else call.target(*args)
        )
    )


@register_rule(ChannelLinear)
def channel_linear(call: Call, module: ChannelLinear, input: Operand) -> Rule:
    return Rule(lambda patches, module, input: module(input), macs=module.weight.numel())


@register_rule(ChannelNorm)
def channel_norm(call: Call, module: ChannelNorm, input: Operand) -> Rule:
    return Rule(lambda patches, module, input: module(input), scratch=1)
