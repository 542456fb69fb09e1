"""Explicit pads, crops and strides by slicing, and rolls."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import POINTWISE, Geometry, Pad, Padding, Window, roll
from overlap_tool.rules.padding import PADDING_MODES
from overlap_tool.rules.pieces import Patches, extend
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule

WHOLE = slice(None)


@register_rule(F.pad, torch._C._nn.pad)
def pad(
    call: Call, input: Operand, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Rule:
    spatial, deeper = tuple(pad[:4]), tuple(pad[4:])
    if any(deeper):
        call.refuse("pads other dimensions than rows and columns")
    left, right, top, bottom = (*spatial, 0, 0)[:4]
    outside = PADDING_MODES[mode]
    if outside is Padding.CIRCULAR and min(left, right, top, bottom) < 0:
        call.refuse("pads circularly and crops at once")
    fill = 0.0 if value is None else value

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return extend(input, patches, outside, fill)

    return Rule(run, Pad(top, bottom, outside), Pad(left, right, outside), uniform=True)


@register_rule(nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
def pad_module(call: Call, module: Any, input: Operand) -> Rule:
    modes = {
        nn.ReflectionPad2d: "reflect",
        nn.ReplicationPad2d: "replicate",
        nn.CircularPad2d: "circular",
    }
    mode = next((name for kind, name in modes.items() if isinstance(module, kind)), "constant")
    return pad(call, input, module.padding, mode, getattr(module, "value", None)).of_module


@register_rule(torch.roll, "roll")
def rolled(call: Call, input: Operand, shifts: Any, dims: Any = None) -> Rule:
    if dims is None:
        call.refuse("rolls the flattened map")
    amounts = dict.fromkeys(range(-len(input.shape), 0), 0)
    for dim, shift in zip(_sequence(dims), _sequence(shifts), strict=True):
        amounts[dim if dim < 0 else dim - len(input.shape)] += shift
    axes = [amounts.pop(dim) for dim in (-2, -1)]
    if any(amounts.values()):
        call.refuse("rolls other dimensions than rows and columns")

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return extend(input, patches, Padding.CIRCULAR)

    return Rule(run, roll(axes[0]), roll(axes[1]))


def crop(call: Call, input: Operand, index: Any) -> Rule:
    """`x[:, a:b, top:-bottom, left:-right]`, and every s-th sample; channels by numbers that are constant."""
    items = index if isinstance(index, tuple) else (index,)
    if any(item is None for item in items):
        return _with_new_dimensions(call, input, items)
    full = full_index(call, index, len(input.shape))
    at = len(full) + input.at
    channels, spatial = (*full[:at], *full[at + 2 :]), full[at : at + 2]
    if full[0] != WHOLE:
        call.refuse("picks images by its index")
    if not all(isinstance(item, slice | int) for item in channels) and not _one_list_of_numbers(channels):
        call.refuse("picks channels by what is no number, slice or single list of numbers")
    sizes = call.input_shapes[0][at : at + 2]
    rows, columns = (_slice_geometry(call, item, n) for item, n in zip(spatial, sizes, strict=True))
    strides = rows.period.input, columns.period.input

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        every = slice(None, None, strides[0]), slice(None, None, strides[1])
        index = (*full[:at], *every, *full[at + 2 :])
        return input[index]

    behind = sum(isinstance(item, int) for item in full[at + 2 :])
    return Rule(run, rows, columns, uniform=True, at=input.at + behind)


@register_rule(getitem, any_layout=True)
def indexed(call: Call, input: Operand, index: Any) -> Rule:
    return crop(call, input, index)


def _with_new_dimensions(call: Call, input: Operand, items: tuple[Any, ...]) -> Rule:
    """`x[:, None]`, `x[..., None]`: all of a map, with dimensions of length one beside those that it has."""
    if any(item is not None and item is not Ellipsis and item != WHOLE for item in items):
        call.refuse("adds a dimension and cuts at once, by its index")
    behind = items[items.index(Ellipsis) + 1 :] if Ellipsis in items else ()
    before = items[: len(items) - len(behind) - (Ellipsis in items)]
    rows = len(input.shape) + input.at
    spans = [item for item in before if item is not None]
    # where the new dimensions stand among the old ones
    places = [sum(each is not None for each in before[:i]) for i, item in enumerate(before) if item is None]
    left = len(input.shape) - len(behind) + behind.count(None)
    places += [
        left + sum(each is not None for each in behind[:i]) for i, item in enumerate(behind) if item is None
    ]
    if 0 in places or rows + 1 in places or len(spans) > len(input.shape):
        call.refuse("adds a dimension before the images, or between rows and columns, by its index")
    at = input.at - sum(place > rows + 1 for place in places)
    return Rule(lambda patches, input, index: input[index], at=at)


def _one_list_of_numbers(channels: tuple[Any, ...]) -> bool:
    others = [item for item in channels if not isinstance(item, slice)]
    return len(others) == 1 and isinstance(others[0], list) and all(isinstance(n, int) for n in others[0])


def full_index(call: Call, index: Any, ndim: int) -> tuple[Any, ...]:
    items = index if isinstance(index, tuple) else (index,)
    if any(item is None for item in items) or items.count(Ellipsis) > 1:
        call.refuse("adds a dimension by its index")
    before, after = items, ()
    if Ellipsis in items:
        at = items.index(Ellipsis)
        before, after = items[:at], items[at + 1 :]
    return (*before, *[WHOLE] * (ndim - len(before) - len(after)), *after)


def _slice_geometry(call: Call, item: Any, n: int) -> Geometry:
    if call.of_one_size and isinstance(item, slice) and (item.step or 1) > 0:
        start, stop, step = item.indices(n)
        return cut_out(call, start, stop, n, step)
    if not isinstance(item, slice) or not all(
        bound is None or isinstance(bound, int) for bound in (item.start, item.stop, item.step)
    ):
        call.refuse_size("is cut at a position that depends on the size of the image")
    start, stop, step = item.start or 0, item.stop, item.step or 1
    if start < 0 or (stop is not None and stop >= 0) or step < 1:
        call.refuse_size("is cut at a fixed distance from one border, counted from the other")
    if start == 0 and stop is None and step == 1:
        return POINTWISE
    return _cropped(start, stop or 0, step)


def cut_out(call: Call, start: int, stop: int, n: int, step: int = 1) -> Geometry:
    """What lies from `start` on, and before `stop`, on an axis of `n` samples."""
    if stop <= start:
        call.refuse("takes nothing of a map")
    return _cropped(start, stop - n, step)


def _cropped(start: int, after: int, step: int) -> Geometry:
    """All but the first `start` samples and the last `-after`; of those, every `step`-th."""
    return Pad(-start, after) if step == 1 else Window(1, step, -start, after)


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
