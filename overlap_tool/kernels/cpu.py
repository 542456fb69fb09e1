"""The canonical chain on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from overlap_tool.kernels.codegen import BLOCK, Share, kernel, processor
from overlap_tool.kernels.form import Form
from overlap_tool.kernels.threads import run_on_threads

CACHED_BYTES = 256 * 1024
"""Weights are taken in portions of about this size, so that they stay in a core's own cache."""

PIECE = (2, BLOCK + 5)
"""Outputs that a trial computes: more than one block of pixels, and tiles of several sizes."""

WORTH_THREADS = 200_000
"""Multiply-accumulates below which waking other threads takes longer than the work."""


@dataclass(frozen=True)
class Packed:
    """Weights in the order in which the kernel reads them: by panels of output channels, tap by tap.

    Every panel but a group's last has the full width, and that one is filled up to whole vectors.
    """

    values: Tensor
    shape: tuple[int, int, int, int]
    groups: int
    depthwise: bool


def pack(weight: Tensor, groups: int) -> Packed:
    """`weight` is (out, in / groups, height, width), as convolutions have it."""
    out, per_group, height, width = weight.shape
    lanes = processor().lanes(weight.element_size())
    depthwise = groups > 1 and per_group == 1 and out == groups
    if depthwise:  # channels are lanes: one group of so many outputs, each of which reads its own channel
        groups = 1
    # (groups, height, width, in, out), with the outputs filled up to whole vectors
    taps = weight.reshape(groups, out // groups, per_group, height, width).permute(0, 3, 4, 2, 1)
    filled = -(-(out // groups) // lanes) * lanes
    values = weight.new_zeros(groups, height * width * per_group * filled)
    start = 0
    for part in taps.split(lanes * processor().vectors, dim=-1):
        wide = -(-part.shape[-1] // lanes) * lanes
        stop = start + height * width * per_group * wide
        panel = values[:, start:stop].view(groups, height, width, per_group, wide)
        panel[..., : part.shape[-1]] = part
        start = stop
    return Packed(values, (out, per_group, height, width), groups, depthwise)


def convolve(
    x: Tensor, weight: Tensor | Packed, bias: Tensor | None, form: Form, out: Tensor | None = None
) -> Tensor:
    """`x` may be any view, and so may `out`, if channels are neighbours in it."""
    x, form = form.padded(x)
    packed = weight if isinstance(weight, Packed) else pack(weight, form.groups)
    channels, per_group, height, width = packed.shape
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous(memory_format=torch.channels_last)
    (down, across), dilation = form.stride, form.dilation
    out = form.result(x, packed.shape, out)
    images, _, rows, columns = out.shape
    assert channels == 1 or out.stride(1) == 1, out.stride()
    if out.numel() == 0:
        return out
    lanes = processor().lanes(x.element_size())
    wide = lanes * processor().vectors
    in_group = channels // packed.groups
    panels = -(-in_group // wide)
    last = in_group - (panels - 1) * wide
    addend = x.new_zeros(packed.groups, panels * wide)
    if bias is not None:
        addend[:, :in_group] = bias.reshape(packed.groups, in_group)
    # neighbouring taps of a row are one run, where nothing lies between their channels
    one_run = dilation[1] == 1 and not packed.depthwise and (width == 1 or x.stride(3) == per_group)
    inner, run = (1, width * per_group) if one_run else (width, per_group)
    tap_bytes = inner * run * min(wide, in_group) * x.element_size()
    task = Share(
        next=0,
        items=packed.groups * panels * images * rows * -(-columns // BLOCK),
        groups=packed.groups,
        panels=panels,
        images=images,
        rows=rows,
        columns=columns,
        x=x.data_ptr(),
        x_image=x.stride(0),
        x_group=per_group * x.stride(1),
        x_row=down * x.stride(2),
        x_pixel=across * x.stride(3),
        outer=height,
        outer_stride=dilation[0] * x.stride(2),
        inner=inner,
        inner_stride=dilation[1] * x.stride(3),
        run=run,
        outer_at_once=max(1, CACHED_BYTES // tap_bytes),
        w=packed.values.data_ptr(),
        w_group=packed.values.shape[1],
        w_panel=height * width * per_group * wide,
        w_outer=inner * run * lanes,
        bias=addend.data_ptr(),
        bias_group=addend.shape[1],
        panel_channels=wide,
        last_vectors=-(-last // lanes),
        last_lanes=(last - 1) % lanes + 1,
        y=out.data_ptr(),
        y_image=out.stride(0),
        y_group=in_group * out.stride(1),
        y_row=out.stride(2),
        y_pixel=out.stride(3),
    )
    work = out.numel() * per_group * height * width
    threads = 1 if work < WORTH_THREADS else min(torch.get_num_threads(), task.items)
    run_on_threads(kernel(x.element_size(), packed.depthwise), ctypes.addressof(task), threads)
    return out


def filled(outputs: int, dtype: torch.dtype) -> int:
    """Outputs that are computed, so many being asked for: whole vectors."""
    lanes = processor().lanes(dtype.itemsize)
    return -(-outputs // lanes) * lanes
