"""Barriers: ops that need the whole map, and reduce it to a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Span
from overlap_tool.geometry.layout import COLUMNS, ROWS, Following, Layout
from overlap_tool.kernels import compositions
from overlap_tool.rules import pooling
from overlap_tool.rules.exactness import compares, composed
from overlap_tool.rules.options import of_layer
from overlap_tool.rules.pieces import as_laid_out
from overlap_tool.rules.registry import Call, Operand, Reduction, Rule, WholeMap, register_rule


def reduction(
    call: Call, kind: str, layout: Layout, dims: Sequence[int], *args: Any, **kwargs: Any
) -> Reduction:
    """`x.mean((2, 3))` and similar ops over all positions, dimension by dimension from the last to the first,
    as in the exact engine."""
    _require_rows_in_order(call, layout, dims)
    if kind in ("var", "std"):
        return _variance(kind == "std", layout, dims, *args, **kwargs)
    if kind not in ("sum", "mean", "amax", "amin"):
        call.refuse_global(f"takes the {kind} over rows and columns")
    return _plain_reduction(kind, layout, dims, *args, **kwargs)


def _require_rows_in_order(call: Call, layout: Layout, dims: Sequence[int]) -> None:
    if any(_in_bands(layout) in layout.dims[dim][1:] for dim in dims):
        call.refuse("reduces a dimension in which the rows of a map do not follow each other")


def _in_bands(layout: Layout, one_row_by: Sequence[int] = ()) -> Following:
    """The axis along which a barrier reads a map: rows, or the columns of a single row that it reduces."""
    by_columns = _by_columns(layout, one_row_by)
    return COLUMNS if by_columns or ROWS in layout.missing else ROWS


def _by_columns(layout: Layout, dims: Sequence[int]) -> bool:
    """Whether it reduces the columns of a single row, and these are contiguous."""
    return any([f for f in layout.dims[dim] if f is not ROWS][:1] == [COLUMNS] for dim in dims)


def _plain_reduction(kind: str, layout: Layout, dims: Sequence[int], keepdim: bool = False) -> Reduction:
    step = "sum" if kind == "mean" else kind

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        total = _accumulated(whole, layout, dims, step)
        return _shaped(total / _count(whole, layout, dims) if kind == "mean" else total, dims, keepdim)

    return Reduction(run, profile=0, by_columns=_by_columns(layout, dims))


def _variance(
    root: bool,
    layout: Layout,
    dims: Sequence[int],
    unbiased: bool = True,
    keepdim: bool = False,
    **kwargs: Any,
) -> Reduction:
    """Reads the map twice: for the mean, and then for the squared differences from it."""
    less = kwargs.get("correction", int(unbiased))
    average = _plain_reduction("mean", layout, dims, keepdim=True)

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        centre = average.run(whole)
        total = _accumulated(whole, layout, dims, "sum", lambda band: _square(band - centre))
        variance = _shaped(total / max(0, _count(whole, layout, dims) - less), dims, keepdim)
        return variance.sqrt() if root else variance

    return Reduction(run, profile=0, scratch=3, by_columns=_by_columns(layout, dims))


def norm(call: Call, layout: Layout, dims: Sequence[int], keepdim: bool = False) -> Reduction:
    """The root of the sum of squares."""
    _require_rows_in_order(call, layout, dims)

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        return _shaped(_accumulated(whole, layout, dims, "sum", _square), dims, keepdim).sqrt()

    return Reduction(run, profile=0, scratch=2, by_columns=_by_columns(layout, dims))


def _square(band: Tensor) -> Tensor:
    return band * band


def _shaped(total: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    return total if keepdim else total.squeeze(tuple(dims))


def _count(whole: WholeMap, layout: Layout, dims: Sequence[int]) -> int:
    """How many numbers are reduced to one."""
    images, *_, rows, columns = whole.shape
    shape = layout.shape((images, rows, columns))
    return prod(shape[dim] for dim in dims)


def _accumulated(
    whole: WholeMap,
    layout: Layout,
    dims: Sequence[int],
    step: str,
    transform: Callable[[Tensor], Tensor] = lambda band: band,
) -> Tensor:
    """The reduction of some dimensions, which keep length one, from bands of the map."""
    axis = _in_bands(layout, dims if whole.shape[-2] == 1 else ())
    in_bands = next(dim for dim in dims if axis in layout.dims[dim])
    tree = Tree(step, in_bands)
    if layout.is_kept and axis is ROWS and in_bands + 1 in dims:
        for rows in whole.within_rows(step, [Span(0, whole.shape[-1])], transform):
            tree.add(rows)
        return _over_the_rest(tree.total(), dims, in_bands, step)
    for band in whole.bands():
        values = transform(as_laid_out(band, layout))
        for dim in sorted(dims, reverse=True):
            if dim > in_bands:
                values = getattr(values, step)(dim, keepdim=True)
        tree.add(values)
    return _over_the_rest(tree.total(), dims, in_bands, step)


def _over_the_rest(total: Tensor, dims: Sequence[int], in_bands: int, step: str) -> Tensor:
    for dim in sorted(dims, reverse=True):
        if dim < in_bands:
            total = getattr(total, step)(dim, keepdim=True)
    return total


class Tree:
    """The sum, maximum or minimum along a dimension that arrives in parts.

    Pairs of neighbours are combined, then pairs of pairs, so that the result does not depend on where the
    parts end.

    >>> tree = Tree("sum", 0)
    >>> for part in torch.arange(10.0).split(3):
    ...     tree.add(part)
    >>> tree.total()
    tensor([45.])
    """

    def __init__(self, step: str, dim: int) -> None:
        combine: dict[str, Callable[[Tensor, Tensor], Tensor]]
        combine = {"sum": torch.add, "amax": torch.maximum, "amin": torch.minimum}
        self.combine = combine[step]
        self.dim = dim
        self.waiting: list[Tensor | None] = []
        """At each level the last node, if it has no neighbour yet."""

    def add(self, part: Tensor) -> None:
        for level in count():
            if level == len(self.waiting):
                self.waiting.append(None)
            before = self.waiting[level]
            part = part if before is None else torch.cat([before, part], self.dim)
            length = part.shape[self.dim]
            self.waiting[level] = part.narrow(self.dim, length - 1, 1).clone() if length % 2 else None
            if length < 2:
                return
            pairs = part.narrow(self.dim, 0, length // 2 * 2).unflatten(self.dim, (length // 2, 2))
            part = self.combine(pairs.select(self.dim + 1, 0), pairs.select(self.dim + 1, 1))

    def total(self) -> Tensor:
        last: Tensor | None = None
        for node in self.waiting:
            if node is not None:
                last = node if last is None else self.combine(node, last)
        assert last is not None
        return last

    def add_node(self, size: int, node: Tensor) -> None:
        """Add the combined value of `size` numbers, a power of two, in the order in which `whole_nodes` lists
        them."""
        for level in count():
            if level == len(self.waiting):
                self.waiting.append(None)
            if 1 << level < size:
                continue
            before, self.waiting[level] = self.waiting[level], None
            if before is None:
                self.waiting[level] = node
                return
            node = self.combine(before, node)


def whole_nodes(span: Span) -> list[Span]:
    """A span of a tree's numbers as the largest parts that are nodes of the tree, however it continues.

    >>> whole_nodes(Span(3, 14))
    [Span(start=3, stop=4), Span(start=4, stop=8), Span(start=8, stop=12), Span(start=12, stop=14)]
    """
    found = []
    start, stop = span
    while start < stop:
        most = 1 << (stop - start).bit_length() - 1
        size = min(most, start & -start) if start else most
        found.append(Span(start, start + size))
        start += size
    return found


@register_rule(F.adaptive_avg_pool2d, exact=composed(_adaptive_avg_pool2d=compositions.adaptive_avg_pool2d))
def adaptive_avg_pool2d(call: Call, input: Operand, output_size: Any) -> Rule | Reduction:
    if _follows_the_map(call):
        return pooling.in_bins(call, lambda window: window.mean((-2, -1)))
    rows, columns = _fixed_size(call, output_size)

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        height, width = whole.shape[-2:]
        across = compositions.bins(width, columns)

        profile = torch.cat([*whole.within_rows("sum", [Span(*bin) for bin in across])], -2)
        means = [
            torch.stack(
                [
                    profile[..., top:bottom, i].sum(-1) / ((bottom - top) * (right - left))
                    for i, (left, right) in enumerate(across)
                ],
                -1,
            )
            for top, bottom in compositions.bins(height, rows)
        ]
        return torch.stack(means, -2)

    return Reduction(run, profile=columns)


@register_rule(F.adaptive_avg_pool3d, exact=composed(_adaptive_avg_pool3d=compositions.adaptive_avg_pool3d))
def adaptive_avg_pool3d(call: Call, input: Operand, output_size: Any) -> Reduction:
    if output_size not in (1, (1, 1, 1), [1, 1, 1]):
        call.refuse("pools volumes to several parts")
    return reduction(call, "mean", input.layout, (2, 3, 4), keepdim=True)


@register_rule(F.adaptive_max_pool2d, exact=compares("adaptive_max_pool2d"))
def adaptive_max_pool2d(
    call: Call, input: Operand, output_size: Any, return_indices: bool = False
) -> Rule | Reduction:
    if return_indices:
        call.refuse_global("returns positions in the whole map")
    if _follows_the_map(call):
        return pooling.in_bins(call, lambda window: window.amax((-2, -1)))
    rows, columns = _fixed_size(call, output_size)

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        across = compositions.bins(whole.shape[-1], columns)
        profile = torch.cat([*whole.within_rows("amax", [Span(*bin) for bin in across])], -2)
        down = compositions.bins(whole.shape[-2], rows)
        return torch.stack([profile[..., top:bottom, :].amax(-2) for top, bottom in down], -2)

    return Reduction(run, profile=columns)


register_rule(nn.AdaptiveAvgPool2d)(of_layer(adaptive_avg_pool2d))
register_rule(nn.AdaptiveAvgPool3d)(of_layer(adaptive_avg_pool3d))
register_rule(nn.AdaptiveMaxPool2d)(of_layer(adaptive_max_pool2d))


def _follows_the_map(call: Call) -> bool:
    """Whether the result is itself a map, of this size of the image."""
    first, second = call.output_shapes
    return call.of_one_size and first[-2] != second[-2] and first[-1] != second[-1]


def _fixed_size(call: Call, size: Any) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    if not (isinstance(rows, int) and isinstance(columns, int)):
        call.refuse_global("pools one axis as a whole, and keeps the other as it is")
    return rows, columns
