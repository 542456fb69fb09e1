"""The canonical chain on the CPU."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain
from math import gcd, prod

import torch
from torch import Tensor

from overlap_tool.kernels import depthwise
from overlap_tool.kernels.arithmetic.fused import named
from overlap_tool.kernels.arithmetic.tensors import finisher
from overlap_tool.kernels.codegen import BLOCK, FIELDS, kernel, processor
from overlap_tool.kernels.form import Form
from overlap_tool.kernels.threads import ByRows, GeneratedCall
from overlap_tool.kernels.transposing import channels_last
from overlap_tool.kernels.work import OTHERS, AnyTensor, Convolution, Work, noted

CACHED_BYTES = 256 * 1024
"""Weights are taken in portions of about this size, so that they stay in a core's own cache."""

ALL_AT_ONCE = 300 * 1024
"""Up to this many bytes, all weights stay in a core's own cache beside the map that they are applied to."""

WORTH_SHARING = 64
"""From this many blocks of pixels on, threads have enough work even if each takes all panels of its block."""

PIECE = (4, BLOCK + 5)
"""The outputs of a trial: more than one block of pixels, and tiles of several widths.

Those of a depthwise layer have several heights, too.
"""

WORTH_THREADS = 200_000
"""Below this many multiply-accumulates, waking other threads takes longer than the work."""


ADDRESSES = "x", "w", "bias", "y", "other", "another"
SHARE, PLACES = struct.Struct(f"{len(FIELDS)}q"), tuple(map(FIELDS.index, ADDRESSES))
ITEMS, ROWS = map(FIELDS.index, ("items", "rows"))
DEPTHWISE_SHARE = struct.Struct(f"{len(depthwise.FIELDS)}q")
DEPTHWISE_PLACES = tuple(map(depthwise.FIELDS.index, ADDRESSES))
DEPTHWISE_ROWS = depthwise.FIELDS.index("rows")


@dataclass(frozen=True)
class Packed:
    """Weights in the order in which the kernel reads them: by panels of output channels, tap by tap.

    Every panel but a group's last has the full width, and the last one is padded to whole vectors. Where
    channels are groups of their own, panels are single vectors.
    """

    values: AnyTensor
    shape: tuple[int, int, int, int]
    groups: int
    is_depthwise: bool

    adds_zeros = False
    squares = False

    @property
    def wide(self) -> int:
        """The channels of a panel, of a layer that is not depthwise."""
        return processor().lanes(self.values.element_size()) * processor().vectors

    def launch(self, work: Convolution) -> GeneratedCall:
        return (_depthwise if self.is_depthwise else _dense)(work, self)


def pack(weight: Tensor, groups: int) -> Packed:
    """`weight` is (out, in / groups, height, width), as convolutions have it."""
    out, per_group, height, width = weight.shape
    lanes = processor().lanes(weight.element_size())
    is_depthwise = groups > 1 and per_group == 1 and out == groups
    if is_depthwise:  # channels are lanes: one group, in which each output reads its own channel
        groups = 1
    # (groups, height, width, in, out), with the outputs padded to whole vectors
    taps = weight.reshape(groups, out // groups, per_group, height, width).permute(0, 3, 4, 2, 1)
    filled = -(-(out // groups) // lanes) * lanes
    values = weight.new_zeros(groups, height * width * per_group * filled)
    start = 0
    for part in taps.split(lanes * (1 if is_depthwise else processor().vectors), dim=-1):
        wide = -(-part.shape[-1] // lanes) * lanes
        stop = start + height * width * per_group * wide
        panel = values[:, start:stop].view(groups, height, width, per_group, wide)
        panel[..., : part.shape[-1]] = part
        start = stop
    return Packed(values, (out, per_group, height, width), groups, is_depthwise)


def convolve(
    x: Tensor, weight: Tensor | Packed, bias: Tensor | None, form: Form, out: Tensor | None = None
) -> Tensor:
    """`x` may be any view, and so may `out` if its channels are adjacent."""
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = channels_last(x)
    x, form = form.padded(x)
    if x.shape[1] > 1 and x.stride(1) != 1:  # PyTorch's own padding may lay it out anew
        x = channels_last(x)
    packed = weight if isinstance(weight, Packed) else pack(weight, form.groups)
    channels = packed.shape[0]
    out = form.result(x, packed.shape, out)
    assert channels == 1 or out.stride(1) == 1, out.stride()
    if out.numel():
        work = Convolution(x, packed, None if bias is None else bias.contiguous(), form, out)
        noted(work)
        work.launch().run()
    return out


def _dense(work: Convolution, packed: Packed) -> GeneratedCall:
    x, out = work.x, work.out
    channels, per_group, height, width = packed.shape
    (down, across), dilation = work.form.stride, work.form.dilation
    images, _, rows, columns = out.shape
    wide, in_group = packed.wide, channels // packed.groups
    panels = -(-in_group // wide)
    last = in_group - (panels - 1) * wide
    lanes = wide // processor().vectors
    reading, writing = x.stride(), out.stride()
    # adjacent taps of a row form one run if their channels are contiguous
    one_run = dilation[1] == 1 and (width == 1 or reading[3] == per_group)
    inner, run = (1, width * per_group) if one_run else (width, per_group)
    tap_bytes = inner * run * min(wide, in_group) * x.element_size()
    blocks = images * rows * -(-columns // BLOCK)
    few_weights = height * width * per_group * in_group * x.element_size() <= ALL_AT_ONCE
    at_once = panels if few_weights and blocks >= WORTH_SHARING else 1
    items = packed.groups * (panels // at_once) * blocks
    task = SHARE.pack(
        *(0, items, packed.groups, panels, at_once, images, rows, columns),
        *(0, reading[0], per_group * reading[1], down * reading[2], across * reading[3]),
        *(height, dilation[0] * reading[2], inner, dilation[1] * reading[3], run),
        max(1, CACHED_BYTES // tap_bytes),
        *(0, packed.values.shape[1], height * width * per_group * wide, inner * run * lanes),
        *(0, in_group, wide, -(-last // lanes), (last - 1) % lanes + 1),
        *(0, writing[0], in_group * writing[1], writing[2], writing[3]),
        *_finish(work),
    )
    code = kernel(processor(), x.element_size())
    steps = down * reading[2], writing[2]
    shares = {ITEMS: (items // rows, 1), ROWS: (1, 1)}
    return _generated(work, code, task, PLACES, items, steps, shares)


def _depthwise(work: Convolution, packed: Packed) -> GeneratedCall:
    x, out = work.x, work.out
    channels, _, height, width = packed.shape
    (down, across), dilation = work.form.stride, work.form.dilation
    images, _, rows, columns = out.shape
    lanes, (rows_at_once, _) = processor().lanes(x.element_size()), depthwise.tile_of(processor())
    # the nearest rows that read the same rows of the input
    apart = dilation[0] // gcd(down, dilation[0])
    blocks = images * -(-rows // (rows_at_once * apart)) * apart * -(-columns // BLOCK)
    vectors = -(-channels // lanes)
    at_once = vectors if blocks >= WORTH_SHARING else 1
    reading, writing = x.stride(), out.stride()
    task = DEPTHWISE_SHARE.pack(
        *(0, images, rows, columns, channels, at_once),
        *(0, reading[0], down * reading[2], across * reading[3]),
        *(height, dilation[0] * reading[2], width, dilation[1] * reading[3]),
        *(apart, apart * down // dilation[0], 0, 0),
        *(0, writing[0], writing[2], writing[3]),
        *_finish(work),
    )
    code = depthwise.depthwise_kernel(processor(), x.element_size())
    steps = down * reading[2], writing[2]
    items = vectors // at_once * blocks
    return _generated(work, code, task, DEPTHWISE_PLACES, items, steps, {DEPTHWISE_ROWS: (1, 1)})


def rows_at_once(work: Work) -> int:
    """How many rows are computed together, if there are that many."""
    packed = work.packed if isinstance(work, Convolution) else None
    is_depthwise = isinstance(packed, Packed) and packed.is_depthwise
    return depthwise.tile_of(processor())[0] if is_depthwise else 1


def _finish(work: Convolution) -> tuple[int, ...]:
    """The words about the program that finishes the outputs."""
    return (
        0 if work.program == 0 else finisher(named(work.program), work.out.dtype, len(work.others)),
        *chain.from_iterable((0, *_map_strides(other)) for other in work.others),
        *(0,) * (4 * (OTHERS - len(work.others))),
    )


def _generated(
    work: Convolution,
    code: int,
    task: bytes,
    places: tuple[int, ...],
    items: int,
    steps: tuple[int, int],
    shares: dict[int, tuple[int, int]],
) -> GeneratedCall:
    """`steps` are those of inputs and outputs from row to row."""
    x, out, packed = work.x, work.out, work.packed
    few = out.numel() * prod(packed.shape[1:]) < WORTH_THREADS
    tensors = x, packed.values, work.bias, out, *work.others

    def by_rows() -> ByRows:
        by_name = {"x": steps[0], "y": steps[1]}
        by_name |= {name: other.stride(2) for name, other in zip(ADDRESSES[4:], work.others, strict=False)}
        moved = {places[ADDRESSES.index(name)]: step * x.element_size() for name, step in by_name.items()}
        return ByRows(out.shape[2], moved, shares)

    return GeneratedCall(code, task, tensors, places[: len(tensors)], 1 if few else items, by_rows)


def _map_strides(x: AnyTensor) -> tuple[int, int, int]:
    image, _, row, pixel = x.stride()
    return image, row, pixel


def filled(outputs: int, dtype: torch.dtype) -> int:
    """How many outputs are computed when this many are asked for: whole vectors."""
    lanes = processor().lanes(dtype.itemsize)
    return -(-outputs // lanes) * lanes
