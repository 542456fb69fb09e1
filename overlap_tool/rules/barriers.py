"""Barriers: ops that need the whole map, and reduce it to a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.kernels.compositions import bins
from overlap_tool.rules import pooling
from overlap_tool.rules.registry import Call, Operand, Reduction, Rule, WholeMap, register_rule


def reduction(call: Call, kind: str, dims: Sequence[int], *args: Any, **kwargs: Any) -> Reduction:
    """`x.mean((2, 3))` and its kin: the columns of each row, then the rows, then channels."""
    if kind in ("var", "std"):
        return _variance(call, kind == "std", dims, *args, **kwargs)
    if kind not in ("sum", "mean", "amax", "amin"):
        call.refuse_global(f"takes the {kind} over rows and columns")
    return _plain_reduction(kind, dims, *args, **kwargs)


def _plain_reduction(kind: str, dims: Sequence[int], keepdim: bool = False) -> Reduction:
    step = "sum" if kind == "mean" else kind

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        profile = whole.by_rows(lambda band: getattr(band, step)(-1, keepdim=True))
        result: Tensor = getattr(profile, step)(tuple(dims), keepdim=keepdim)
        return result / prod(whole.shape[dim] for dim in dims) if kind == "mean" else result

    return Reduction(run)


def _variance(
    call: Call, root: bool, dims: Sequence[int], unbiased: bool = True, keepdim: bool = False, **kwargs: Any
) -> Reduction:
    """Reads the map twice: for the mean, then for the squares of what differs from it."""
    less = kwargs.get("correction", int(unbiased))
    average = _plain_reduction("mean", dims, keepdim=True)

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        centre = average.run(whole)

        def squares(band: Tensor) -> Tensor:
            centred = band - centre
            return (centred * centred).sum(-1, keepdim=True)

        total = whole.by_rows(squares).sum(tuple(dims), keepdim=keepdim)
        variance = total / max(0, prod(whole.shape[dim] for dim in dims) - less)
        return variance.sqrt() if root else variance

    return Reduction(run, scratch=3)


def norm(dims: Sequence[int], keepdim: bool = False) -> Reduction:
    """The root of the sum of squares."""

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        squares = whole.by_rows(lambda band: (band * band).sum(-1, keepdim=True))
        return squares.sum(tuple(dims), keepdim=keepdim).sqrt()

    return Reduction(run, scratch=2)


@register_rule(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(call: Call, input: Operand, output_size: Any) -> Rule | Reduction:
    if _follows_the_map(call):
        return pooling.in_bins(call, lambda window: window.mean((-2, -1)))
    rows, columns = _fixed_size(call, output_size)

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        height, width = whole.shape[-2:]
        across = bins(width, columns)

        def within_rows(band: Tensor) -> Tensor:
            return torch.cat([band[..., left:right].sum(-1, keepdim=True) for left, right in across], -1)

        profile = whole.by_rows(within_rows)
        means = [
            torch.stack(
                [
                    profile[..., top:bottom, i].sum(-1) / ((bottom - top) * (right - left))
                    for i, (left, right) in enumerate(across)
                ],
                -1,
            )
            for top, bottom in bins(height, rows)
        ]
        return torch.stack(means, -2)

    return Reduction(run, profile=columns)


@register_rule(F.adaptive_max_pool2d)
def adaptive_max_pool2d(
    call: Call, input: Operand, output_size: Any, return_indices: bool = False
) -> Rule | Reduction:
    if return_indices:
        call.refuse_global("returns positions in the whole map")
    if _follows_the_map(call):
        return pooling.in_bins(call, lambda window: window.amax((-2, -1)))
    rows, columns = _fixed_size(call, output_size)

    def run(whole: WholeMap, *_: Any, **__: Any) -> Tensor:
        across = bins(whole.shape[-1], columns)
        profile = whole.by_rows(
            lambda band: torch.stack([band[..., left:right].amax(-1) for left, right in across], -1)
        )
        down = bins(whole.shape[-2], rows)
        return torch.stack([profile[..., top:bottom, :].amax(-2) for top, bottom in down], -2)

    return Reduction(run, profile=columns)


@register_rule(nn.AdaptiveAvgPool2d)
def adaptive_avg_pool2d_module(call: Call, module: nn.AdaptiveAvgPool2d, input: Operand) -> Rule | Reduction:
    return adaptive_avg_pool2d(call, input, module.output_size).of_module


@register_rule(nn.AdaptiveMaxPool2d)
def adaptive_max_pool2d_module(call: Call, module: nn.AdaptiveMaxPool2d, input: Operand) -> Rule | Reduction:
    return adaptive_max_pool2d(call, input, module.output_size, module.return_indices).of_module


def _follows_the_map(call: Call) -> bool:
    """Whether the result is a map itself, at this size of the image."""
    first, second = call.output_shapes
    return call.of_one_size and first[-2] != second[-2] and first[-1] != second[-1]


def _fixed_size(call: Call, size: Any) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    if not (isinstance(rows, int) and isinstance(columns, int)):
        call.refuse_global("pools one axis as a whole, and keeps the other as it is")
    return rows, columns
