"""A value that varies by position, such as coordinates, as a map: a tile takes its own part of it."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from overlap_tool.geometry import AT_ITS_PLACE, Patch
from overlap_tool.geometry.layout import IMAGES, Layout
from overlap_tool.rules.pieces import Patches, as_kept, as_laid_out
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


def placed(value: Tensor, like: Tensor, own: Layout, spread: Layout, size: tuple[int, int]) -> Tensor:
    """A value of the layout `own` and `size` rows and columns, broadcast along those axes that it lacks."""
    lacks = [mine != full for mine, full in zip(own.dims, spread.dims, strict=True)]
    value = _of_as_many_dimensions(value, own)
    return value.expand([like.shape[dim - len(lacks)] if lacks[dim] else -1 for dim in range(len(lacks))])


@register_rule(placed, any_layout=True)
def at_its_place(
    call: Call, value: Operand, like: Operand, own: Layout, spread: Layout, size: tuple[int, int]
) -> Rule:
    return placing(like.layout, own, spread, size)


def placing(
    like_layout: Layout, own: Layout, spread: Layout, size: tuple[int, int], begins: tuple[int, int] = (0, 0)
) -> Rule:
    """The rule of `placed`.

    The value's first row and column are preceded by `begins` others: there, and after its end, it is
    repeated.
    """

    def run(patches: Patches, value: Tensor, like: Tensor, *_: object) -> Tensor:
        kept = as_kept(_of_as_many_dimensions(value, own), own, *size)
        for dim, patch, begin in zip((-2, -1), patches, begins, strict=True):
            kept = _taken(kept, dim, patch, begin)
        rows, columns = (patch.out.length for patch in patches)
        images = like.numel() // prod(like_layout.sizes((1, rows, columns))) if IMAGES in spread.flat else 1
        piece = kept.expand(images, *kept.shape[1:-2], rows, columns)
        return as_laid_out(piece.reshape(images, *spread.channels, rows, columns), spread)

    return Rule(run, AT_ITS_PLACE, AT_ITS_PLACE, layout=spread)


def _taken(kept: Tensor, dim: int, patch: Patch, begin: int) -> Tensor:
    length, (start, stop) = kept.shape[dim], patch.out.shift(-begin)
    if length == 1:
        return kept
    if start >= 0 and stop <= length:
        return kept.narrow(dim, start, stop - start)
    return kept.index_select(dim, torch.arange(start, stop, device=kept.device) % length)


def _of_as_many_dimensions(value: Tensor, layout: Layout) -> Tensor:
    return value[(None,) * (len(layout.dims) - value.ndim)]
