"""Windows of a map as channels, and windows summed to a map again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import POINTWISE, Padding, Transposed, Window
from overlap_tool.geometry.layout import COLUMNS, IMAGES, ROWS, Layout
from overlap_tool.kernels import compositions
from overlap_tool.rules.exactness import composed, moves
from overlap_tool.rules.options import of_layer
from overlap_tool.rules.padding import pair
from overlap_tool.rules.pieces import Patches, extend, place
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


@register_rule(F.unfold, exact=moves("im2col"))
def unfolded(
    call: Call, input: Operand, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Rule:
    """Every window is one token; its channels, for all its samples, come before the windows."""
    options = (pair(kernel_size), pair(stride), pair(padding), pair(dilation))
    rows, columns = (Window(k, s, p, p, d) for k, s, p, d in zip(*options, strict=True))

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.unfold(extend(input, patches, Padding.CONSTANT), kernel_size, dilation, 0, stride)

    layout = Layout(((IMAGES,), (call.output_shapes[0][1],), (ROWS, COLUMNS)))
    return Rule(run, rows, columns, uniform=True, layout=layout)


register_rule(nn.Unfold)(of_layer(unfolded))


@register_rule("unfold", any_layout=True, exact=moves("unfold"))
def windows_along(call: Call, input: Operand, dimension: int, size: int, step: int) -> Rule:
    """`x.unfold(2, 8, 4)`: windows of rows, with their samples in a dimension of their own at the end."""
    dim = dimension % len(input.shape)
    (axis, *others) = input.layout.dims[dim]
    if axis not in (ROWS, COLUMNS) or others:
        call.refuse("takes windows along what is neither rows nor columns")
    geometry = Window(size, step)
    rows, columns = (geometry if axis is each else POINTWISE for each in (ROWS, COLUMNS))
    layout = Layout((*input.layout.dims, (size,)))
    return Rule(lambda patches, input, *_: input.unfold(dim, size, step), rows, columns, layout=layout)


@register_rule(F.fold, accepts_sizes=True, any_layout=True, exact=composed(col2im=compositions.fold))
def folded(
    call: Call,
    input: Operand,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Rule:
    """Every token is a window; windows are summed where they overlap."""
    if input.layout.dims[-1] != (ROWS, COLUMNS) or input.layout.dims[0] != (IMAGES,):
        call.refuse("adds up what are no windows of a map")
    if not call.of_one_size:
        call.refuse_size("makes a map as large as it is told")
    kernels, strides, trims, dilations = (pair(each) for each in (kernel_size, stride, padding, dilation))
    rows, columns = (
        _added_up(k, s, p, d, n, made)
        for k, s, p, d, n, made in zip(
            kernels, strides, trims, dilations, call.sizes[0][1:], call.output_shapes[0][2:], strict=True
        )
    )

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        starts, stops = [], []
        for geometry, patch in zip((rows, columns), patches, strict=True):
            starts.append(geometry.begins(patch.have.start))
            stops.append(geometry.begins(patch.have.stop - 1) + geometry.dilation * (geometry.kernel - 1) + 1)
        sizes = stops[0] - starts[0], stops[1] - starts[1]
        full = F.fold(input, sizes, kernel_size, dilation, 0, stride)
        # what no window reaches is zero
        down, across = (max(0, patch.out.stop - stop) for patch, stop in zip(patches, stops, strict=True))
        return place(F.pad(full, (0, across, 0, down)), (starts[0], starts[1]), patches)

    return Rule(run, rows, columns, layout=Layout.of_map(call.output_shapes[0][1]))


register_rule(nn.Fold, accepts_sizes=True, any_layout=True)(of_layer(folded))


def _added_up(kernel: int, stride: int, trim: int, dilation: int, given: int, made: int) -> Transposed:
    """The sum of windows with these parameters, for so many tokens and samples."""
    plain = Transposed(kernel, stride, trim, 0, dilation)
    return replace(plain, extra=made - plain.size(given))
