"""Pixel shuffles and interpolation by a fixed factor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Expand, Geometry, Linear, Padding, Shrink, Window
from overlap_tool.rules.pieces import Patches, extend, place
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule


@register_rule(F.pixel_shuffle, torch.pixel_shuffle)
def pixel_shuffle(call: Call, input: Operand, upscale_factor: int) -> Rule:
    geometry = Expand(upscale_factor)

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return place(F.pixel_shuffle(input, upscale_factor), _begins(patches, geometry), patches)

    return Rule(run, geometry, geometry, uniform=True)


@register_rule(nn.PixelShuffle)
def pixel_shuffle_module(call: Call, module: nn.PixelShuffle, input: Operand) -> Rule:
    return pixel_shuffle(call, input, module.upscale_factor).of_module


@register_rule(F.pixel_unshuffle, torch.pixel_unshuffle)
def pixel_unshuffle(call: Call, input: Operand, downscale_factor: int) -> Rule:
    factor = downscale_factor

    def run(patches: Patches, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.pixel_unshuffle(input, factor)

    geometry = Shrink(factor)
    return Rule(run, geometry, geometry, kernel=(factor, factor), stride=(factor, factor), uniform=True)


@register_rule(nn.PixelUnshuffle)
def pixel_unshuffle_module(call: Call, module: nn.PixelUnshuffle, input: Operand) -> Rule:
    return pixel_unshuffle(call, input, module.downscale_factor).of_module


@register_rule(F.interpolate)
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
    if size is not None:
        call.refuse_size("interpolates to a given size, not by a given factor")
    if align_corners or recompute_scale_factor:
        call.refuse_size("derives its sampling positions from the size of its input")
    if antialias or mode not in ("nearest", "bilinear"):
        call.refuse(f"interpolates in the mode {mode!r}{' with antialias' if antialias else ''}")
    factors = scale_factor if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
    ratios = [_ratio(call, float(factor), mode) for factor in factors]
    return (_nearest if mode == "nearest" else _bilinear)(ratios)


@register_rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsample_module(call: Call, module: nn.Upsample, input: Operand) -> Rule:
    return interpolate(
        call,
        input,
        module.size,
        module.scale_factor,
        module.mode,
        module.align_corners,
        module.recompute_scale_factor,
    ).of_module


def _ratio(call: Call, factor: float, mode: str) -> tuple[int, int]:
    """The factor as `up/down`, one of them 1; refused where torch's float arithmetic is not that ratio."""
    up, down = (round(factor), 1) if factor >= 1 else (1, round(1 / factor))
    exact = abs(up / down - factor) < 1e-9
    if mode == "bilinear":
        # other factors put samples that fall on a pixel a rounding error beside it, on some sides only
        exact = exact and (up * down) & (up * down - 1) == 0
    elif exact:
        positions = np.arange(1 << 16, dtype=np.float32)
        exact = bool(np.all(positions * np.float32(1 / factor) // 1 == np.arange(1 << 16) * down // up))
    if not exact:
        call.refuse(
            f"interpolates in the mode {mode!r} by {factor:g}, which float arithmetic does not place exactly"
        )
    return up, down


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
        # a piece has to start where the sampling grid does; what is added in front is not read
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


def _begins(patches: Patches, rows: Geometry, columns: Geometry | None = None) -> tuple[int, int]:
    vertical, horizontal = patches
    return rows.begins(vertical.have.start), (columns or rows).begins(horizontal.have.start)
