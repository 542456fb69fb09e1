"""Maximum and average pooling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Padding, Patch, Span, Window
from overlap_tool.geometry.listed import Listed, ratio_between
from overlap_tool.kernels.compositions import avg_pool, bins
from overlap_tool.rules.exactness import compares, composed
from overlap_tool.rules.options import of_layer
from overlap_tool.rules.padding import of_depth, pair
from overlap_tool.rules.pieces import Patches, extend
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


def _pool_windows(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> tuple[Window, Window]:
    rows, columns = (
        Window(k, s, p, p, d, Padding.CONSTANT, ceil)
        for k, s, p, d in zip(pair(kernel), pair(stride), pair(padding), pair(dilation), strict=True)
    )
    return rows, columns


@register_rule(
    F.max_pool2d, torch.max_pool2d, F.max_pool3d, torch.max_pool3d,
    exact=compares("max_pool2d_with_indices max_pool3d_with_indices"),
)  # fmt: skip
def max_pool(
    call: Call,
    input: Operand,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Rule:
    if return_indices:
        call.refuse("returns positions in the whole map")
    strides = stride or kernel_size
    rows, columns = _pool_windows(kernel_size, strides, padding, dilation, ceil_mode)

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        piece = extend(input, patches, Padding.CONSTANT, value=float("-inf"))
        if piece.ndim == 4:
            return F.max_pool2d(piece, kernel_size, strides, 0, dilation)
        return F.max_pool3d(piece, kernel_size, strides, (of_depth(padding), 0, 0), dilation, ceil_mode)

    return Rule(run, rows, columns, kernel=pair(kernel_size), stride=pair(strides), uniform=True)


register_rule(nn.MaxPool2d, nn.MaxPool3d)(of_layer(max_pool))


@register_rule(F.avg_pool2d, exact=composed(avg_pool2d=partial(avg_pool, 2)))
def avg_pool2d(
    call: Call,
    input: Operand,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Rule:
    strides = stride or kernel_size
    rows, columns = _pool_windows(kernel_size, strides, padding, 1, ceil_mode)

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        piece = extend(input, patches, Padding.CONSTANT)
        if divisor_override is not None or all(patch.complete for patch in patches):
            return F.avg_pool2d(piece, kernel_size, strides, divisor_override=divisor_override)
        counts = [
            _counts(window, patch, count_include_pad)
            for window, patch in zip((rows, columns), patches, strict=True)
        ]
        total = F.avg_pool2d(piece, kernel_size, strides, divisor_override=1)
        rows_read, columns_read = (torch.tensor(of_axis, device=total.device) for of_axis in counts)
        return total / (rows_read[:, None] * columns_read)

    return Rule(run, rows, columns, kernel=pair(kernel_size), stride=pair(strides), uniform=True)


@register_rule(F.avg_pool3d, exact=composed(avg_pool3d=partial(avg_pool, 3)))
def avg_pool3d(
    call: Call,
    input: Operand,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Rule:
    if ceil_mode or any((of_depth(padding), *pair(padding))):
        call.refuse("pools volumes with padding, or with windows that go beyond them")
    strides = stride or kernel_size
    rows, columns = _pool_windows(kernel_size, strides, 0, 1, False)

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.avg_pool3d(input, kernel_size, strides, divisor_override=divisor_override)

    return Rule(run, rows, columns, kernel=pair(kernel_size), stride=pair(strides))


register_rule(nn.AvgPool2d)(of_layer(avg_pool2d))
register_rule(nn.AvgPool3d)(of_layer(avg_pool3d))


def _counts(window: Window, patch: Patch, include_pad: bool) -> list[int]:
    """How many samples each output is divided by: its window, cut at the image or at the op's own padding."""
    low, high = (-window.before, patch.n + window.after) if include_pad else (0, patch.n)
    return [
        max(0, min(need.stop, high) - max(need.start, low))
        for need in (window.need(Span(output, output + 1)) for output in range(*patch.out))
    ]


def in_bins(call: Call, reduce: Callable[[Tensor], Tensor]) -> Rule:
    """An adaptive pool to a size that follows the image: each output reduces a bin of inputs."""
    across_axes, geometries = [], []
    for dim in (-2, -1):
        olds, news = ([shape[dim] for shape in shapes] for shapes in (call.input_shapes, call.output_shapes))
        of_axis = bins(olds[0], news[0])
        starts, lasts = (tuple(values) for values in zip(*((a, b - 1) for a, b in of_axis), strict=True))
        across_axes.append(of_axis)
        geometries.append(Listed(olds[0], starts, lasts, ratio_between(olds, news)))

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        down, across = (
            [(a - patch.have.start, b - patch.have.start) for a, b in of_axis[slice(*patch.out)]]
            for of_axis, patch in zip(across_axes, patches, strict=True)
        )
        rows = [torch.stack([reduce(input[..., a:b, c:d]) for c, d in across], -1) for a, b in down]
        return torch.stack(rows, -2)

    rows, columns = geometries
    return Rule(run, rows, columns)
