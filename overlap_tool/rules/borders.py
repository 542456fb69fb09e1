"""Explicit pads, crops and strides by slicing, and rolls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import POINTWISE, Geometry, Pad, Padding, Window, roll
from overlap_tool.geometry.layout import COLUMNS, IMAGES, ROWS, Dimension, Following, Layout
from overlap_tool.rules.exactness import moves
from overlap_tool.rules.padding import PADDING_MODES
from overlap_tool.rules.pieces import Patches, as_kept, as_laid_out, extend
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule

WHOLE = slice(None)


PADS = [f"{mode}_pad{axes}d" for mode in ("reflection", "replication") for axes in (1, 2, 3)]


@register_rule(F.pad, torch._C._nn.pad, any_layout=True, exact=moves("constant_pad_nd", *PADS))
def pad(
    call: Call, input: Operand, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Rule:
    """Pads rows and columns, wherever the map has them."""
    ndim = len(input.shape)
    amounts = {ndim - 1 - i: (pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)}
    rows, columns = (amounts.pop(place, (0, 0)) for place in _places_of_axes(input))
    outside = PADDING_MODES[mode]
    if outside is Padding.CIRCULAR and min(*rows, *columns) < 0:
        call.refuse("pads circularly and crops at once")
    others = {dim: amount for dim, amount in amounts.items() if any(amount)}
    if input.layout.following(others):
        call.refuse("pads the images, or several of rows, columns and images at once")
    down, across = (Pad(before, after, outside) for before, after in (rows, columns))
    if not others:
        return filled(input.layout, down, across, 0.0 if value is None else value)
    layout = input.layout.with_lengths({dim: call.output_shapes[0][dim] for dim in others})
    around = filled(layout, down, across, 0.0 if value is None else value)
    own = [n for dim in range(ndim - 1, min(others) - 1, -1) for n in others.get(dim, (0, 0))]

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return around.run(patches, F.pad(input, own, mode, value))

    return replace(around, run=run, layout=layout)


def filled(layout: Layout, rows: Pad, columns: Pad, fill: float = 0.0) -> Rule:
    """The rule of an op that pads or crops a map of this layout."""

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        kept = as_kept(input, layout, *(patch.have.length for patch in patches))
        return as_laid_out(extend(kept, patches, rows.outside, fill), layout)

    return Rule(run, rows, columns, uniform=True)


def _places_of_axes(input: Operand) -> tuple[int, int]:
    """The dimensions of rows and of columns; -1 for a missing one, which matches no argument."""
    places = [input.layout.place_of(axis) for axis in (ROWS, COLUMNS)]
    return tuple(-1 if place is None else place for place in places)  # type: ignore[return-value]


@register_rule(
    nn.ZeroPad1d, nn.ConstantPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d,
    nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
    nn.ZeroPad3d, nn.ConstantPad3d, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d,
    any_layout=True,
)  # fmt: skip
def pad_module(call: Call, module: Any, input: Operand) -> Rule:
    modes = {
        nn.modules.padding._ReflectionPadNd: "reflect",
        nn.modules.padding._ReplicationPadNd: "replicate",
        nn.modules.padding._CircularPadNd: "circular",
    }
    mode = next((name for kind, name in modes.items() if isinstance(module, kind)), "constant")
    rule = pad(call, input, module.padding, mode, getattr(module, "value", None))
    return replace(rule, run=lambda patches, module, input: rule.run(patches, input))


@register_rule(torch.roll, "roll", any_layout=True, exact=moves("roll"))
def rolled(call: Call, input: Operand, shifts: Any, dims: Any = None) -> Rule:
    if dims is None:
        call.refuse("rolls the flattened map")
    ndim = len(input.shape)
    amounts = dict.fromkeys(range(ndim), 0)
    for dim, shift in zip(_sequence(dims), _sequence(shifts), strict=True):
        amounts[dim % ndim] += shift
    rows, columns = (amounts.pop(place, 0) for place in _places_of_axes(input))
    moved = [dim for dim, amount in amounts.items() if amount]
    if not moved:
        return replace(filled(input.layout, roll(rows), roll(columns)), uniform=False)
    if rows or columns or input.layout.following(moved):
        call.refuse("rolls other dimensions than rows and columns")
    return Rule(lambda patches, *args, **kwargs: torch.roll(*args, **kwargs))


@register_rule(getitem, any_layout=True, exact=moves("index"))
def crop(call: Call, input: Operand, index: Any) -> Rule:
    """`x[:, a:b, top:-bottom, left:-right]`, every s-th sample, constant channel numbers, and new dimensions
    as in `x[:, None]`."""
    full = full_index(call, index, len(input.shape))
    plain = [item for item in full if item is not None]
    axes = {axis: input.layout.place_of(axis) for axis in Following}
    geometries = {}
    for axis, place in axes.items():
        item = WHOLE if place is None else plain[place]
        if axis is IMAGES and item != WHOLE:
            call.refuse("picks images by its index")
        n = 0 if place is None else call.input_shapes[0][place]
        geometries[axis] = POINTWISE if place is None else _slice_geometry(call, item, n)
    channels = {dim: item for dim, item in enumerate(plain) if dim not in axes.values()}
    picked = [dim for dim, item in channels.items() if item != WHOLE]
    if input.layout.following(picked):
        call.refuse_size("picks positions of a map by numbers")
    if not all(isinstance(item, slice | int) for item in channels.values()) and not _one_list_of_numbers(
        tuple(channels.values())
    ):
        call.refuse("picks channels by what is no number, slice or single list of numbers")
    every = [
        slice(None, None, geometries[along].period.input) if (along := _axis_at(axes, dim)) else item
        for dim, item in enumerate(plain)
    ]
    rest = iter(every)
    key = tuple(None if item is None else next(rest) for item in full)

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return input[key]

    layout = _layout_of(call, input.layout, full)
    return Rule(run, geometries[ROWS], geometries[COLUMNS], uniform=True, layout=layout)


def _axis_at(axes: dict[Following, int | None], dim: int) -> Following | None:
    return next((axis for axis in (ROWS, COLUMNS) if axes[axis] == dim), None)


def _layout_of(call: Call, layout: Layout, full: tuple[Any, ...]) -> Layout:
    """The dimensions that an index leaves, including new ones."""
    dims: list[Dimension] = []
    rest = iter(layout.dims)
    made = iter(call.output_shapes[0])
    for item in full:
        dimension = (1,) if item is None else next(rest)
        if isinstance(item, int):
            continue
        length = next(made)
        follows = any(isinstance(factor, Following) for factor in dimension)
        dims.append(dimension if follows else (length,))
    return Layout(tuple(dims))


def _one_list_of_numbers(channels: tuple[Any, ...]) -> bool:
    others = [item for item in channels if not isinstance(item, slice)]
    return len(others) == 1 and isinstance(others[0], list) and all(isinstance(n, int) for n in others[0])


def full_index(call: Call, index: Any, ndim: int) -> tuple[Any, ...]:
    """An index with an item for every dimension, and `None` for every new one."""
    items = index if isinstance(index, tuple) else (index,)
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        call.refuse("has several dots in its index")
    return expanded_index(index, ndim)


def expanded_index(index: Any, ndim: int) -> tuple[Any, ...]:
    items = index if isinstance(index, tuple) else (index,)
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    before, after = (items[: dots[0]], items[dots[0] + 1 :]) if dots else (items, ())
    left = ndim - sum(item is not None for item in (*before, *after))
    return (*before, *[WHOLE] * left, *after)


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
    """Without the first `start` and the last `-after` samples; of the rest, every `step`-th."""
    return Pad(-start, after) if step == 1 else Window(1, step, -start, after)


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
