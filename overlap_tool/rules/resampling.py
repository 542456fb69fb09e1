"""Pixel shuffles and interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Expand, Geometry, Linear, Listed, Padding, Shrink, Window, ratio_between
from overlap_tool.geometry.layout import Layout
from overlap_tool.kernels import compositions
from overlap_tool.rules.exactness import composed, moves
from overlap_tool.rules.options import of_layer
from overlap_tool.rules.pieces import Patches, extend, place
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


@register_rule(F.pixel_shuffle, torch.pixel_shuffle, exact=moves("pixel_shuffle"))
def pixel_shuffle(call: Call, input: Operand, upscale_factor: int) -> Rule:
    geometry = Expand(upscale_factor)

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return place(F.pixel_shuffle(input, upscale_factor), _begins(patches, geometry), patches)

    return Rule(run, geometry, geometry, uniform=True)


@register_rule(F.pixel_unshuffle, torch.pixel_unshuffle, exact=moves("pixel_unshuffle"))
def pixel_unshuffle(call: Call, input: Operand, downscale_factor: int) -> Rule:
    factor = downscale_factor

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.pixel_unshuffle(input, factor)

    geometry = Shrink(factor)
    return Rule(run, geometry, geometry, kernel=(factor, factor), stride=(factor, factor), uniform=True)


register_rule(nn.PixelShuffle)(of_layer(pixel_shuffle))
register_rule(nn.PixelUnshuffle)(of_layer(pixel_unshuffle))

MOST_LISTED = 1 << 26
"""The most positions that are listed, output by output."""

OF_IMAGES = {"linear": "bilinear", "trilinear": "bilinear"}
"""Modes by the corresponding mode on rows and columns."""


EXACT: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), compositions.upsample_linear
    ),
    **{
        name: partial(compositions.upsample_nearest, getattr(torch._C._nn, name), "exact" in name)
        for axes in (1, 2, 3)
        for name in (f"upsample_nearest{axes}d", f"_upsample_nearest_exact{axes}d")
    },
}


@register_rule(F.interpolate, any_layout=True, exact=composed(**EXACT))
def interpolate(
    call: Call,
    input: Operand,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Rule:
    axes = len(input.shape) - 2
    name, mode = mode, OF_IMAGES.get(mode, mode)
    if antialias or mode not in ("nearest", "nearest-exact", "bilinear"):
        call.refuse(f"interpolates in the mode {name!r}{' with antialias' if antialias else ''}")
    by_size = size is not None or bool(recompute_scale_factor)
    factors = list(scale_factor) if isinstance(scale_factor, tuple | list) else [scale_factor] * axes
    if input.layout == Layout.of_sequence(input.channels):
        rule = _of_images(call, mode, bool(align_corners), by_size, [1.0, *factors])
        return replace(
            rule,
            run=lambda patches, input, *_, **__: rule.run(patches, input.unsqueeze(2)).squeeze(2),
            layout=input.layout,
        )
    if not (input.layout.is_kept and axes in (2, 3)):
        call.refuse("interpolates a map whose dimensions are not images, channels, rows and columns")
    rule = _of_images(call, mode, bool(align_corners), by_size, factors[-2:])
    if axes == 2:
        return rule
    old, new = input.shape[2], call.output_shapes[0][2]
    scale = None if by_size else factors[0]
    if mode == "bilinear":
        low, high, part = compositions.linear_positions(old, new, bool(align_corners), scale)
    else:
        places = compositions.nearest_positions(old, new, scale, centred=mode == "nearest-exact")

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """First along the depth, all of which is at hand, and then plane by plane."""
        if mode == "bilinear":
            deep = compositions.between(input, -3, low, high, part)
        else:
            deep = input.index_select(2, places.to(input.device))
        made: Tensor = rule.run(patches, deep.flatten(1, 2))
        return made.unflatten(1, (-1, new))

    return replace(rule, run=run, scratch=1)


def _of_images(call: Call, mode: str, align_corners: bool, by_size: bool, factors: Sequence[Any]) -> Rule:
    """On rows and columns."""
    if mode != "nearest-exact" and not align_corners:
        wanted = [_factor(call, dim) for dim in (-2, -1)] if by_size else map(float, factors)
        ratios = [ratio for factor in wanted if (ratio := _ratio(factor, mode)) is not None]
        if len(ratios) == 2:
            return (_nearest if mode == "nearest" else _bilinear)(ratios)
    if not call.of_one_size:
        call.refuse_size("has sampling positions that follow the size of its input")
    return _listed(call, mode, align_corners, (None, None) if by_size else factors)


register_rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, any_layout=True)(
    of_layer(interpolate)
)


def _factor(call: Call, dim: int) -> float:
    """Outputs per input, if that is the same whatever the size; otherwise 0."""
    shapes = zip(call.input_shapes, call.output_shapes, strict=True)
    found = {new[dim] / old[dim] for old, new in shapes}
    return found.pop() if call.of_one_size and len(found) == 1 else 0.0


def _ratio(factor: float, mode: str) -> tuple[int, int] | None:
    """The factor as `up/down`, one of them 1, unless torch's float arithmetic rounds it to another ratio."""
    if not factor:
        return None
    up, down = (round(factor), 1) if factor >= 1 else (1, round(1 / factor))
    exact = abs(up / down - factor) < 1e-9
    if mode == "bilinear":
        # with other factors, samples that fall on a pixel miss it by a rounding error, on some sides only
        exact = exact and (up * down) & (up * down - 1) == 0
    elif exact:
        outputs = torch.arange(1 << 16)
        exact = torch.equal(compositions.nearest_positions(down << 16, 1 << 16, factor), outputs * down // up)
    return (up, down) if exact else None


def _nearest(ratios: list[tuple[int, int]]) -> Rule:
    # shrinking by r keeps every r-th sample, and floors the size where a convolution would round it up
    rows, columns = (Expand(up) if down == 1 else Window(1, down, 0, 1 - down) for up, down in ratios)

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        for dim, (up, down) in zip((-2, -1), ratios, strict=True):
            if up > 1:
                input = input.repeat_interleave(up, dim)
            elif down > 1:
                input = input[..., ::down] if dim == -1 else input[..., ::down, :]
        return place(input, _begins(patches, rows, columns), patches)

    return Rule(run, rows, columns, uniform=True)


def _bilinear(ratios: list[tuple[int, int]]) -> Rule:
    rows, columns = (Linear(up, down) for up, down in ratios)
    factors = [up / down for up, down in ratios]

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        piece = extend(input, patches, Padding.REPLICATE)
        # a piece has to start on the sampling grid; the samples added in front are not read
        starts = [patch.need.start for patch in patches]
        skips = [start % down for start, (_, down) in zip(starts, ratios, strict=True)]
        ends = [
            -(skip + length) % down
            for skip, length, (_, down) in zip(skips, piece.shape[-2:], ratios, strict=True)
        ]
        piece = F.pad(piece, (skips[1], ends[1], skips[0], ends[0]))
        piece = F.interpolate(piece, scale_factor=factors, mode="bilinear", align_corners=False)
        begins = (
            rows.begins(starts[0] - skips[0]),
            columns.begins(starts[1] - skips[1]),
        )
        return place(piece, begins, patches)

    return Rule(run, rows, columns, uniform=True)


def _listed(call: Call, mode: str, align_corners: bool, scales: Sequence[float | None]) -> Rule:
    """By the positions of every output at this size."""
    tables, geometries = [], []
    for dim, scale in zip((-2, -1), scales, strict=True):
        olds, news = ([shape[dim] for shape in shapes] for shapes in (call.input_shapes, call.output_shapes))
        if news[0] > MOST_LISTED:
            call.refuse_size(
                f"has more than {MOST_LISTED} sampling positions, which follow the size of its input"
            )
        if mode == "bilinear":
            low, high, part = compositions.linear_positions(olds[0], news[0], align_corners, scale)
            high = torch.where(part == 0, low, high)
        else:
            low = high = compositions.nearest_positions(
                olds[0], news[0], scale, centred=mode == "nearest-exact"
            )
            part = torch.zeros(len(low))
        tables.append((low, high, part))
        ratio = ratio_between(olds, news)
        geometries.append(Listed(olds[0], tuple(low.tolist()), tuple(high.tolist()), ratio))

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        for dim, patch, (low, high, part) in zip((-2, -1), patches, tables, strict=True):
            wanted = slice(*patch.out)
            below, above = low[wanted] - patch.have.start, high[wanted] - patch.have.start
            if mode == "bilinear":
                input = compositions.between(input, dim, below, above, part[wanted])
            else:
                input = input.index_select(dim, below.to(input.device))
        return input

    rows, columns = geometries
    return Rule(run, rows, columns)


def _begins(patches: Patches, rows: Geometry, columns: Geometry | None = None) -> tuple[int, int]:
    vertical, horizontal = patches
    return rows.begins(vertical.have.start), (columns or rows).begins(horizontal.have.start)
