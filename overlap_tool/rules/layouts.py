"""Views: ops that cut, join and move dimensions, and change no number.

The layout of the dimensions determines what a view does to the map: see `geometry/layout.py`. Pieces are laid
out as the model has them, and a view of a piece is the same view.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool.geometry import POINTWISE, Expand, Geometry, Shrink
from overlap_tool.geometry.layout import COLUMNS, ROWS, Following, Layout, LayoutError, Resized
from overlap_tool.rules.exactness import moves
from overlap_tool.rules.pieces import Patches, as_kept, as_laid_out, place
from overlap_tool.rules.registry import Call, Operand, Reduction, Rule, compose, register_rule


def joined(map: Tensor) -> Tensor:
    """The same tensor; its blocks of rows and columns count as rows and columns again."""
    return map


@register_rule(joined, any_layout=True)
def blocks_joined(call: Call, map: Operand) -> Rule:
    made = map.layout.joined()
    return Rule(_joining(made, lambda map: map), *_grown(made), layout=made.layout)


def _grown(joined: Resized) -> tuple[Geometry, Geometry]:
    rows, columns = (Expand(n) if n > 1 else POINTWISE for n in joined[1:])
    return rows, columns


def _joining(made: Resized, given: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A rule's `run` that joins blocks. At a piece's border, parts of blocks may not be asked for."""

    def run(patches: Patches, *args: Any, **kwargs: Any) -> Tensor:
        blocks = made.rows, made.columns
        rows, columns = (patch.have.length * n for patch, n in zip(patches, blocks, strict=True))
        piece = _reshaped(given(*args, **kwargs), made.layout, rows, columns)
        if (rows, columns) == tuple(patch.out.length for patch in patches):
            return piece
        begins = patches[0].have.start * made.rows, patches[1].have.start * made.columns
        return as_laid_out(place(as_kept(piece, made.layout, rows, columns), begins, patches), made.layout)

    return run


def _reshaped(piece: Tensor, layout: Layout, rows: int, columns: int) -> Tensor:
    return piece.reshape([max(n, -1) for n in layout.shape((-1, rows, columns))])


def image_by_image(
    call: Call,
    build: Callable[..., Rule | Reduction],
    maps: Sequence[Operand],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Rule:
    """The rule of an op on windows that the model treats as images, such as a convolution inside each of
    them.

    The op treats images one by one, so it is a pointwise op on the map of windows.
    """
    first = maps[0].layout.dims[:1]
    given, made = call.input_shapes, call.output_shapes
    if len(maps) > 1 or not first or set(first[0]) != set(Following):
        call.refuse("takes a map whose dimensions are not images, channels, rows and columns")
    if len({shape[1:] for shape in made}) > 1 or any(
        new[0] != old[0] for old, new in zip(given, made, strict=True)
    ):
        call.refuse("mixes windows of a map")
    inside = build(call, *args, **kwargs)
    layout = Layout((*first, *((n,) for n in made[0][1:])))
    macs = inside.macs * prod(made[0][-2:]) if isinstance(inside, Rule) else 0
    takes_module = isinstance(call.target, nn.Module)
    compute = getattr(Tensor, call.target) if isinstance(call.target, str) else call.target

    def run(patches: Patches, *args: Any, **kwargs: Any) -> Any:
        return compute(*args[takes_module:], **kwargs)

    return Rule(run, macs=macs, scratch=1, layout=layout)


@register_rule("view", "reshape", torch.reshape, "flatten", torch.flatten, nn.Flatten, "unflatten",
               torch.unflatten, nn.Unflatten, accepts_sizes=True, any_layout=True,
               exact=moves("view _unsafe_view"))  # fmt: skip
def reshape(call: Call, *args: Any, **kwargs: Any) -> Rule:
    """Cuts and joins dimensions; numbers keep their order."""
    takes_module = isinstance(call.target, nn.Module)
    input: Operand = args[1] if takes_module else args[0] if args else kwargs["input"]
    try:
        layout, rows, columns = input.layout.reshaped(call.sizes, call.output_shapes)
    except LayoutError as error:
        call.refuse(f"{error}")

    def given(*args: Any, **kwargs: Any) -> Tensor:
        tensor: Tensor = args[1] if takes_module else args[0] if args else kwargs["input"]
        return tensor

    def run(patches: Patches, *args: Any, **kwargs: Any) -> Tensor:
        return _reshaped(given(*args, **kwargs), layout, *(patch.out.length for patch in patches))

    made = layout.joined()
    alone = all(len(dimension) == 1 or not {ROWS, COLUMNS} & {*dimension} for dimension in made.layout.dims)
    if (rows, columns) == (1, 1) and alone:  # blocks and the positions inside them are rows or columns again
        return Rule(_joining(made, given), *_grown(made), layout=made.layout)
    return Rule(run, _blocks(rows), _blocks(columns), layout=layout)


def _blocks(size: int) -> Geometry:
    return Shrink(size) if size > 1 else POINTWISE


@register_rule(
    "permute", torch.permute, "transpose", torch.transpose, "movedim", torch.movedim, "swapaxes",
    torch.swapaxes, "swapdims", torch.swapdims, "t", any_layout=True,
    exact=moves("permute transpose"),
)  # fmt: skip
def permute(call: Call, input: Operand, *dims: Any, **named: Any) -> Rule:
    ndim = len(input.shape)
    target = getattr(Tensor, call.target) if isinstance(call.target, str) else call.target
    # strides that number the dimensions show where each of them goes
    order = target(
        torch.empty([1] * ndim).as_strided([1] * ndim, tuple(range(ndim))), *dims, **named
    ).stride()
    return Rule(
        lambda patches, input, *dims, **named: target(input, *dims, **named),
        layout=input.layout.permuted(order),
    )


@register_rule("unsqueeze", torch.unsqueeze, any_layout=True)
def unsqueeze(call: Call, input: Operand, dim: int) -> Rule:
    """Adds a dimension of length one. In front of the columns of a map without rows, it is the rows."""
    place = dim % (len(input.shape) + 1)
    layout = input.layout.with_ones([place])
    if ROWS in layout.missing and layout.dims[place + 1 :] == ((COLUMNS,),):
        layout = Layout((*layout.dims[:place], (ROWS,), (COLUMNS,)))
    return Rule(lambda patches, input, dim: input.unsqueeze(place), layout=layout)


@register_rule("squeeze", torch.squeeze, any_layout=True)
def squeeze(call: Call, input: Operand, dim: Any = None) -> Rule:
    """Drops dimensions of length one. With a single image or row, that of images or rows is one, too."""
    ndim = len(input.shape)
    if dim is None:
        call.refuse("drops every dimension of length one, which that of the images may be")
    dims = [d % ndim for d in (dim if isinstance(dim, tuple | list) else (dim,))]
    in_one_row = all(rows == 1 for _, rows, _ in call.sizes)
    dropped = [
        d for d in dims if input.layout.dims[d] == (1,) or (in_one_row and input.layout.dims[d] == (ROWS,))
    ]
    if any(input.shape[d] == 1 for d in set(dims) - set(dropped)):
        call.refuse("drops the dimension of images, rows or columns")
    layout = input.layout.with_lengths({}, dropped)
    return Rule(lambda patches, input, dim=None: input.squeeze(dropped), layout=layout)


@register_rule(
    "expand", "broadcast_to", torch.broadcast_to, accepts_sizes=True, any_layout=True, exact=moves("expand")
)
def expand(call: Call, input: Operand, *_: Any, **__: Any) -> Rule:
    """Repeats dimensions of length one, and adds new ones in front."""
    made = call.output_shapes
    layout = input.layout.with_ones(range(len(made[0]) - len(input.shape)))
    lengths = {}
    for dim, dimension in enumerate(layout.dims):
        if dimension == (1,):
            if len({shape[dim] for shape in made}) > 1:
                call.refuse_size("repeats a dimension as often as the size of the map says")
            lengths[dim] = made[0][dim]
    shape = [lengths.get(dim, -1) for dim in range(len(layout.dims))]
    return Rule(lambda patches, input, *_, **__: input.expand(shape), layout=layout.with_lengths(lengths))


@register_rule("expand_as")
def expand_as(call: Call, input: Operand, other: Operand) -> Rule:
    """A summary, with one number per channel, repeated over a whole map."""
    if input.spatial or not other.spatial or tuple(input.shape[-2:]) != (1, 1):
        call.refuse("expands a map, or by a constant")
    return Rule(lambda patches, input, other: input.expand_as(other))


@compose("einops.einops.rearrange")
def rearrange(tensor: Any, pattern: str, **lengths: Any) -> Any:
    """`b (heads c) h w -> b h w heads c`: cuts, moves and joins dimensions."""
    given, made = (re.findall(r"\([^)]*\)|\S+", side) for side in pattern.split("->"))
    dots = len(tensor.shape) - len(given) + 1
    given, made = (_with_dots_named(names, dots) for names in (given, made))
    apart: list[str] = []
    for name, n in zip(given, tensor.shape, strict=True):
        inside = name.strip("()").split()
        for each in inside:
            if each == "1":
                continue
            if each not in lengths:
                others = [lengths[other] for other in inside if other != each and other in lengths]
                lengths[each] = n // prod(others) if others else n
            apart.append(each)
    order = [name for each in made for name in each.strip("()").split() if name != "1"]
    tensor = tensor.reshape([lengths[name] for name in apart])
    tensor = tensor.permute([apart.index(name) for name in order])
    return tensor.reshape(
        [prod([lengths[name] for name in each.strip("()").split() if name != "1"]) for each in made]
    )


def _with_dots_named(names: list[str], count: int) -> list[str]:
    return [each for name in names for each in ([f"_{i}" for i in range(count)] if name == "..." else [name])]
