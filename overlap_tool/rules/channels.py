"""Ops between channels at one position: concatenation, splits, reductions, linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry.layout import COLUMNS, IMAGES, ROWS, Layout, broadcast
from overlap_tool.kernels import compositions
from overlap_tool.rules import barriers, borders, pointwise
from overlap_tool.rules.exactness import compares, composed, moves, register_exact_op
from overlap_tool.rules.layers import ChannelLinear, ChannelNorm
from overlap_tool.rules.options import of_layer
from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import Call, Operand, Reduction, Rule, compose, register_rule


def dims_of(dim: Any, ndim: int) -> list[int]:
    dims = list(range(ndim)) if dim is None else list(dim) if isinstance(dim, tuple | list) else [dim]
    return [d % ndim for d in dims]


def along_the_map(dims: list[int], input: Operand) -> bool:
    return not {ROWS, COLUMNS}.isdisjoint(input.layout.following(dims))


def _every_position(dims: list[int], input: Operand) -> bool:
    return input.layout.following(dims) == {ROWS, COLUMNS} - {*input.layout.missing}


def _only_channels(call: Call, input: Operand, dim: Any, doing: str) -> list[int]:
    dims = dims_of(dim, len(input.shape))
    if along_the_map(dims, input):
        call.refuse_global(f"{doing} over rows or columns")
    _no_images(call, input, dims, doing)
    return dims


def _of_other_lengths(call: Call, input: Operand, dims: Sequence[int]) -> Layout:
    """The layout of a result in which some dimensions of channels have other lengths, or are dropped."""
    made = call.output_shapes[0]
    if len(made) < len(input.shape):
        return input.layout.with_lengths({}, dims)
    return input.layout.with_lengths({dim: made[dim] for dim in dims})


def _no_images(call: Call, input: Operand, dims: Sequence[int], doing: str) -> None:
    if IMAGES in input.layout.following(dims):
        call.refuse(f"{doing} over the batch")


@register_rule(torch.cat, torch.concat, torch.concatenate, any_layout=True, exact=moves("cat"))
def concatenate(call: Call, tensors: Sequence[Operand], dim: int = 0) -> Rule:
    if any(not tensor.spatial for tensor in tensors):
        call.refuse("joins a map and a value that is none")
    first = tensors[0]
    dims = dims_of(dim, len(first.shape))
    for tensor in tensors:
        _no_images(call, tensor, dims, "joins maps")
        if along_the_map(dims, tensor):
            call.refuse_size("joins maps side by side, at a place that depends on their size")
    layout = broadcast([tensor.layout.with_lengths({dims[0]: 1}) for tensor in tensors], first.shape)
    if layout is None:
        call.refuse("joins maps whose rows and columns are not the same dimensions")
    layout = layout.with_lengths({dims[0]: call.output_shapes[0][dims[0]]})
    return Rule(lambda patches, tensors, dim=0: torch.cat(tensors, dim), layout=layout)


@register_rule(torch.narrow, "narrow", any_layout=True)
def narrow(call: Call, input: Operand, dim: int, start: int, length: int) -> Rule:
    dims = dims_of(dim, len(input.shape))
    _no_images(call, input, dims, "cuts a map")
    if along_the_map(dims, input):
        if not call.of_one_size:
            call.refuse_size("cuts rows or columns at a place counted from one border")
        index = [slice(None)] * len(input.shape)
        index[dims[0]] = slice(start, start + length)
        return borders.crop(call, input, tuple(index))
    return Rule(
        lambda patches, input, dim, start, length: input.narrow(dim, start, length),
        layout=_of_other_lengths(call, input, dims),
    )


@register_rule(torch.select, "select", any_layout=True, exact=moves("unbind"))
def select(call: Call, input: Operand, dim: int, index: int) -> Rule:
    """One channel: `x.unbind(1)[2]` is `x.select(1, 2)`."""
    dims = _only_channels(call, input, dim, "picks one")
    return Rule(
        lambda patches, input, dim, index: input.select(dim, index),
        layout=_of_other_lengths(call, input, dims),
    )


@register_rule(
    torch.sum, torch.mean, torch.amax, torch.amin, torch.softmax, F.softmax, torch.log_softmax, F.log_softmax,
    torch.prod, torch.var, torch.std, torch.logsumexp, torch.cumsum, torch.cumprod, torch.logcumsumexp,
    "sum", "mean", "amax", "amin", "softmax", "log_softmax", "prod", "var", "std", "logsumexp",
    "cumsum", "cumprod", "logcumsumexp", torch.argmax, torch.argmin, "argmax", "argmin", any_layout=True,
    exact=compares("amax amin argmax argmin")
    | composed(
        sum=compositions.sum, mean=compositions.mean, prod=compositions.prod, var=compositions.var,
        std=compositions.std, logsumexp=compositions.logsumexp, _softmax=compositions.softmax,
        _log_softmax=compositions.log_softmax, cumsum=partial(compositions.cumulative, torch.add),
        cumprod=partial(compositions.cumulative, torch.mul),
        logcumsumexp=partial(compositions.cumulative, compositions.log_add_exp),
    ),
)  # fmt: skip
def reduce(call: Call, input: Operand, dim: Any = None, *args: Any, **kwargs: Any) -> Rule | Reduction:
    """A reduction over channels at every position; over all rows and columns of an image, a barrier."""
    dims = dims_of(dim, len(input.shape))
    if _every_position(dims, input) and "softmax" not in call.kind:
        return barriers.reduction(call, call.kind, input.layout, dims, *args, **kwargs)
    _only_channels(call, input, dim, "reduces")
    return _between_channels(call, input, dims)


def _between_channels(call: Call, input: Operand, dims: Sequence[int], scratch: int = 0) -> Rule:
    """The rule of an op that computes every position alone, along dimensions of channels."""
    return Rule(
        lambda patches, *args, **kwargs: _computed(call, *args, **kwargs),
        scratch=scratch,
        layout=_of_other_lengths(call, input, dims),
    )


@register_rule(torch.max, torch.min, "max", "min", any_layout=True, exact=compares("max min"))
def extreme(call: Call, input: Operand, *args: Any, **kwargs: Any) -> Rule:
    """`torch.max(x, y)` at every position; `torch.max(x, 1)` over channels: values and their indexes."""
    other = args[0] if args else kwargs.get("other", kwargs.get("dim"))
    if isinstance(other, Operand):
        return pointwise.between_positions(call, input, *args, **kwargs)
    return _between_channels(call, input, _only_channels(call, input, other, "reduces"))


def _computed(call: Call, *args: Any, **kwargs: Any) -> Any:
    target = getattr(Tensor, call.target) if isinstance(call.target, str) else call.target
    return target(*args, **kwargs)


@register_rule("repeat", torch.tile, "tile", any_layout=True, exact=moves("repeat"))
def repeat(call: Call, input: Operand, *repeats: Any, **named: Any) -> Rule:
    """Channels, repeated one after the other."""
    times = named.get("repeats", named.get("dims", repeats[0] if len(repeats) == 1 else repeats))
    times = (times,) if isinstance(times, int) else tuple(times)
    ndim = len(input.shape)
    times = (*[1] * (ndim - len(times)), *times)
    if len(times) > ndim:
        call.refuse("repeats a map along new dimensions")
    dims = _only_channels(call, input, [dim for dim, n in enumerate(times) if n != 1], "repeats")
    layout = _of_other_lengths(call, input, dims)
    return Rule(lambda patches, input, *_, **__: input.repeat(times), layout=layout)


@register_rule(torch.stack, any_layout=True, exact=moves("stack"))
def stack(call: Call, tensors: Sequence[Operand], dim: int = 0) -> Rule:
    """Maps along a new dimension."""
    if any(not tensor.spatial for tensor in tensors):
        call.refuse("stacks a map and a value that is none")
    place = dim % (len(tensors[0].shape) + 1)
    layout = broadcast([tensor.layout for tensor in tensors], tensors[0].shape)
    if layout is None:
        call.refuse("stacks maps whose rows and columns are not the same dimensions")
    layout = layout.with_ones([place]).with_lengths({place: len(tensors)})
    return Rule(lambda patches, tensors, dim=0: torch.stack(tensors, place), layout=layout)


NEW = "new_zeros", "new_ones", "new_full", "new_empty"


@register_rule(*NEW, accepts_sizes=True, exact=moves(*NEW))
def new(call: Call, input: Operand, *args: Any, **kwargs: Any) -> Rule:
    """A map of one number, as large as another, for example to add channels to."""
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


@register_rule(
    torch.zeros_like, torch.ones_like, torch.full_like, any_layout=True,
    exact=moves("zeros_like ones_like full_like"),
)  # fmt: skip
def like(call: Call, input: Operand, *args: Any, **kwargs: Any) -> Rule:
    return Rule(lambda patches, *args, **kwargs: call.target(*args, **kwargs))


@register_rule(
    torch.repeat_interleave, "repeat_interleave", any_layout=True, exact=moves("repeat_interleave")
)
def repeat_interleave(call: Call, input: Operand, repeats: Any, dim: Any = None, **_: Any) -> Rule:
    if isinstance(repeats, Operand):
        call.refuse("repeats by numbers in a tensor")
    dims = _only_channels(call, input, dim, "repeats")
    layout = _of_other_lengths(call, input, dims)
    return Rule(lambda patches, *args, **kwargs: torch.repeat_interleave(*args, **kwargs), layout=layout)


@register_rule(
    torch.norm, torch.linalg.vector_norm, "norm", any_layout=True,
    exact=composed(linalg_vector_norm=compositions.vector_norm),
)  # fmt: skip
def norm(
    call: Call, input: Operand, p: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Rule | Reduction:
    p = kwargs.get("ord", p)
    dims = dims_of(dim, len(input.shape))
    plain = kwargs.get("dtype") is None and kwargs.get("out") is None
    if _every_position(dims, input) and p in (2, "fro", None) and plain:
        return barriers.norm(call, input.layout, dims, keepdim)
    return _between_channels(call, input, _only_channels(call, input, dim, "takes the norm"))


@register_exact_op("aten::glu")
@compose(F.glu, nn.GLU)
def glu(input: Tensor, dim: int = -1) -> Tensor:
    kept, gate = input.chunk(2, dim)
    return kept * gate.sigmoid()


@register_rule(torch.flip, "flip", any_layout=True, exact=moves("flip"))
def flip(call: Call, input: Operand, *each: Any, dims: Sequence[int] = ()) -> Rule:
    """Channels in reverse order."""
    along = dims_of(dims or (each if isinstance(each[0], int) else each[0]), len(input.shape))
    if along_the_map(along, input):  # two flips may cancel, so this does not claim that no overlap is enough
        call.refuse("mirrors over rows or columns")
    _no_images(call, input, along, "mirrors")
    return Rule(lambda patches, input, *_, **__: torch.flip(input, along))


@register_rule(nn.Softmax, nn.Softmax2d, any_layout=True)
def softmax_module(call: Call, module: nn.Softmax, input: Operand) -> Rule:
    dim = getattr(module, "dim", 1)
    _only_channels(call, input, 1 if dim is None else dim, "normalises")
    return Rule(lambda patches, module, input: module(input))


@register_rule(nn.LayerNorm, any_layout=True)
def layer_norm_module(call: Call, module: nn.LayerNorm, input: Operand) -> Rule:
    _only_channels(call, input, _last(len(module.normalized_shape)), "normalises")
    return Rule(lambda patches, module, input: module(input), scratch=1)


@register_rule(F.layer_norm, any_layout=True, exact=composed(native_layer_norm=compositions.layer_norm))
def layer_norm(call: Call, input: Operand, normalized_shape: Sequence[int], *_: Any, **__: Any) -> Rule:
    _only_channels(call, input, _last(len(normalized_shape)), "normalises")
    return Rule(lambda patches, *args, **kwargs: F.layer_norm(*args, **kwargs), scratch=1)


@register_rule(F.linear, any_layout=True)
def linear(call: Call, input: Operand, weight: Operand, bias: Operand | None = None) -> Rule:
    if weight.spatial or weight.summary:
        call.refuse("multiplies by weights that are made from the input")
    dims = _only_channels(call, input, -1, "multiplies")
    macs = prod(weight.shape) * (input.channels // weight.shape[-1])
    layout = _of_other_lengths(call, input, dims)
    return Rule(lambda patches, *args, **kwargs: F.linear(*args, **kwargs), macs=macs, layout=layout)


register_rule(nn.Linear, any_layout=True)(of_layer(linear))


def _last(dims: int) -> list[int]:
    return list(range(-dims, 0))


@register_rule(nn.ChannelShuffle, F.channel_shuffle, exact=moves("channel_shuffle native_channel_shuffle"))
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
