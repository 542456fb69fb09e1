"""Pieces of tensors: adds an op's own padding where a piece touches the border, and cuts to size."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from overlap_tool.geometry import Padding, Patch
from overlap_tool.geometry.layout import IMAGES, Layout

Patches = tuple[Patch, Patch]
"""Rows and columns."""


def extend(piece: Tensor, patches: Patches, padding: Padding, value: float = 0.0) -> Tensor:
    """The piece with what stands outside the image added, so that it covers all of `need`.

    >>> from overlap_tool.geometry import Span, Window, patch
    >>> window = Window(kernel=3, before=1, after=1)
    >>> corner = patch(window, Span(0, 2), 9), patch(window, Span(4, 6), 9)  # the first two rows of nine
    >>> extend(torch.ones(1, 1, 3, 4), corner, Padding.CONSTANT)[0, 0]
    tensor([[0., 0., 0., 0.],
            [1., 1., 1., 1.],
            [1., 1., 1., 1.],
            [1., 1., 1., 1.]])
    """
    if all(patch.complete for patch in patches):
        return piece
    if padding in (Padding.CONSTANT, Padding.CLAMP):
        return _with_constant(cleared(piece, patches, value), patches, value)
    for dim, patch in zip((-2, -1), patches, strict=True):
        if not patch.complete:
            sources = [padding.source(index, patch.n) for index in range(*patch.need)]
            # what lies between the taps at a border is not read, so `have` may lack it
            last = patch.have.length - 1
            index = [min(max(i - patch.have.start, 0), last) for i in sources if i is not None]
            piece = piece.index_select(dim, torch.tensor(index, device=piece.device))
    return piece


def cleared(piece: Tensor, patches: Patches, value: float = 0.0) -> Tensor:
    """The piece with `value` wherever it extends beyond the image, where it may hold anything."""
    if all(patch.inside for patch in patches):
        return piece
    rows, columns = (_beyond(patch, piece.device) for patch in patches)
    return piece.masked_fill(rows[:, None] | columns, value)


def place(piece: Tensor, begins: tuple[int, int], patches: Patches) -> Tensor:
    """The outputs `out` of a piece of outputs that begins at `begins`."""
    vertical, horizontal = (patch.out.shift(-begin) for patch, begin in zip(patches, begins, strict=True))
    return piece[..., vertical.start : vertical.stop, horizontal.start : horizontal.stop]


def as_laid_out(kept: Tensor, layout: Layout) -> Tensor:
    """A piece, kept as (images, channels, rows, columns), as a tensor of this layout.

    >>> from overlap_tool.geometry.layout import COLUMNS, IMAGES, ROWS
    >>> windows = Layout(((IMAGES, ROWS, COLUMNS), (64,), (32,)))
    >>> as_laid_out(torch.zeros(1, 64, 32, 5, 7), windows).shape
    torch.Size([35, 64, 32])
    """
    if layout.is_kept:
        return kept
    size = kept.shape[0], kept.shape[-2], kept.shape[-1]
    return kept.permute(*layout.order).reshape(layout.shape(size))


def as_kept(piece: Tensor, layout: Layout, rows: int, columns: int) -> Tensor:
    """The inverse: a tensor of this layout, with so many rows and columns, as a piece is kept.

    Raises `ValueError` if its shape does not match.
    """
    if layout.is_kept:
        if piece.ndim != len(layout.dims) or piece.shape[-2:] != (rows, columns):
            raise ValueError("another number of rows or columns")
        return piece
    place, others = layout.place_of(IMAGES), prod(layout.sizes((1, rows, columns)))
    images = piece.shape[place] if place is not None else piece.numel() // max(1, others)
    size = images, rows, columns
    if piece.shape != layout.shape(size):
        raise ValueError("another number of rows or columns")
    apart = piece.reshape(*layout.sizes(size), *[1] * len(layout.missing))
    return apart.permute(*sorted(range(apart.ndim), key=layout.order.__getitem__))


def _with_constant(piece: Tensor, patches: Patches, value: float) -> Tensor:
    rows, columns = patches
    if rows.have.empty or columns.have.empty:
        return piece.new_full((*piece.shape[:-2], rows.need.length, columns.need.length), value)
    return F.pad(piece, (*_missing(columns), *_missing(rows)), value=value)


def _beyond(patch: Patch, device: torch.device) -> Tensor:
    at = torch.arange(patch.have.start, patch.have.stop, device=device)
    return (at < 0) | (at >= patch.n)


def _missing(patch: Patch) -> tuple[int, int]:
    return patch.have.start - patch.need.start, patch.need.stop - patch.have.stop
