"""Pieces of tensors: adding an op's own padding where a piece touches the border, and cutting to size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from overlap_tool.geometry import Padding, Span
from overlap_tool.rules.registry import Patch, Patches


def extend(piece: Tensor, patches: Patches, padding: Padding, value: float = 0.0) -> Tensor:
    """The piece with what stands outside the image added, so that it covers all of `need`."""
    if all(patch.need == patch.have for patch in patches):
        return piece
    if padding in (Padding.CONSTANT, Padding.CLAMP):
        return _with_constant(piece, patches, value)
    for dim, patch in zip((-2, -1), patches, strict=True):
        if patch.need != patch.have:
            sources = [padding.source(index, patch.n) for index in range(*patch.need)]
            # what lies between the taps at a border is not read, so that `have` may lack it
            last = patch.have.length - 1
            index = torch.tensor([min(max(i - patch.have.start, 0), last) for i in sources if i is not None])
            piece = piece.index_select(dim, index.to(piece.device))
    return piece


def place(piece: Tensor, begins: tuple[int, int], patches: Patches, fill: Tensor | None = None) -> Tensor:
    """The outputs `out` of a piece whose first output lies at `begins`.

    Where `out` reaches beyond the piece, no input feeds it, and `fill`, a value per channel, stands there.
    """
    rows, columns = (
        Span(start, start + length) for start, length in zip(begins, piece.shape[-2:], strict=True)
    )
    wanted_rows, wanted_columns = (patch.out for patch in patches)
    inner_rows, inner_columns = _common(rows, wanted_rows), _common(columns, wanted_columns)
    inner = piece[
        ...,
        inner_rows.start - rows.start : inner_rows.stop - rows.start,
        inner_columns.start - columns.start : inner_columns.stop - columns.start,
    ]
    if inner_rows == wanted_rows and inner_columns == wanted_columns:
        return inner
    whole = piece.new_zeros((*piece.shape[:-2], wanted_rows.length, wanted_columns.length))
    if fill is not None:
        whole += fill[:, None, None]
    whole[
        ...,
        inner_rows.start - wanted_rows.start : inner_rows.stop - wanted_rows.start,
        inner_columns.start - wanted_columns.start : inner_columns.stop - wanted_columns.start,
    ] = inner
    return whole


def _common(first: Span, second: Span) -> Span:
    start = max(first.start, second.start)
    return Span(start, max(start, min(first.stop, second.stop)))


def _with_constant(piece: Tensor, patches: Patches, value: float) -> Tensor:
    rows, columns = patches
    if rows.have.empty or columns.have.empty:
        return piece.new_full((*piece.shape[:-2], rows.need.length, columns.need.length), value)
    return F.pad(piece, (*_missing(columns), *_missing(rows)), value=value)


def _missing(patch: Patch) -> tuple[int, int]:
    return patch.have.start - patch.need.start, patch.need.stop - patch.have.stop
