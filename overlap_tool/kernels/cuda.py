"""The canonical chain on CUDA: which kernel of `chain.cu` computes a layer, and with which arguments."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from overlap_tool.kernels import nvrtc
from overlap_tool.kernels.arithmetic.fused import named
from overlap_tool.kernels.arithmetic.in_cuda import finished_by
from overlap_tool.kernels.arithmetic.programs import PROGRAMS
from overlap_tool.kernels.driver import Launch, LoadedKernel, Structure
from overlap_tool.kernels.form import Form
from overlap_tool.kernels.work import OTHERS, AnyTensor, Convolution, noted

PIECE = (9, 11)
"""The outputs of a trial: with two images, more than a block of pixels, and not a whole number of blocks."""

REST = struct.Struct("14q2I2i3I6i3i2ii4x")
"""The fields of `Shape` in `chain.cu` after the addresses."""

MOST_TOGETHER = 16
"""The most layers of one launch, whose arguments have to fit in 4 KiB."""

DEPTHWISE_THREADS = 128

FEW = 7
"""Up to this many inputs, taps are kept in shared memory. Beyond, samples are loaded by 128 bits, or do not
fit."""

SHARED = 48 << 10
"""The shared memory that every GPU gives to a block, in bytes."""

LONGEST_ROW = 48
"""The samples of a row that a thread of the depthwise kernel holds."""

FETCHING = 4
"""How many outputs take as many instructions as fetching their samples, by `benchmarks/cuda_static.py`."""

MOST_PIXELS = 2**31 - 1
"""The most pixels of one launch: the kernels count them in 32 bits."""


class Tile(NamedTuple):
    """The outputs of a block and of a thread, pixels by channels; how many threads of a warp share pixels;
    and how many blocks a multiprocessor should hold."""

    rows: int
    columns: int
    high: int
    wide: int
    lanes: int
    blocks: int

    @property
    def threads(self) -> int:
        return self.across * (self.columns // self.wide)

    @property
    def across(self) -> int:
        """Pixels of a row, where a block has as many rows of them as a thread has outputs."""
        return self.rows // self.high


TILES = {
    4: Tile(128, 4, 2, 4, 1, 9),
    12: Tile(128, 12, 2, 12, 1, 9),
    16: Tile(128, 16, 8, 4, 4, 8),
    32: Tile(192, 32, 6, 8, 4, 5),
    64: Tile(64, 64, 8, 8, 4, 8),
}
"""For layers of at most so many outputs. For an image's three colours, or those of four phases, a thread has
all outputs of a pixel."""

LARGE = Tile(128, 64, 8, 8, 4, 4), Tile(96, 96, 6, 8, 4, 3)
"""For layers of more outputs: whichever has less padding, or else the first, which takes fewer instructions.
With 6 x 8 outputs per thread, registers are left for more warps at once."""

DOUBLES = Tile(64, 32, 4, 4, 4, 4)


def tile_for(outputs: int, dtype: torch.dtype, inputs: int = FEW + 1) -> Tile:
    """By the channels of a group alone, never by the size of a map (though no bit depends on it)."""
    if dtype == torch.float64:
        return DOUBLES
    if inputs <= FEW and 32 < outputs <= 64:
        return LARGE[0]  # more warps share the taps in shared memory
    for most, tile in TILES.items():
        if outputs <= most:
            return tile
    return min(LARGE, key=lambda tile: -(-outputs // tile.columns) * tile.columns)


def run_for(taps: int, stride: int, dilation: int, dtype: torch.dtype) -> tuple[int, tuple[int, int, int]]:
    """For the depthwise kernel: the outputs of a row per thread, and its compile-time constants."""
    run = (64 if taps >= 5 else 32) // dtype.itemsize
    span = (run - 1) * stride + (taps - 1) * dilation + 1
    return run, (taps, stride, dilation) if span <= LONGEST_ROW else (0, 1, 1)


class FewInputs(NamedTuple):
    """The kernel's compile-time constants: a window's rows, the numbers in each, and both strides."""

    rows: int
    span: int
    down: int
    step: int

    def fits(self, tile: Tile, dtype: torch.dtype) -> bool:
        lines, line = (tile.high - 1) * self.down + self.rows, (tile.across - 1) * self.step + self.span
        return (lines * line + self.rows * self.span * tile.columns) * dtype.itemsize <= SHARED


def window_for(
    inputs: int, kernel: tuple[int, int], stride: tuple[int, int], tile: Tile, dtype: torch.dtype
) -> FewInputs | None:
    """The window of a layer of few inputs, if a block's part of it fits into shared memory."""
    window = FewInputs(kernel[0], kernel[1] * inputs, stride[0], stride[1] * inputs)
    return window if inputs <= FEW and window.fits(tile, dtype) else None


def filled(outputs: int, dtype: torch.dtype) -> int:
    """The work for this many outputs: whole blocks, and samples, whose fetching counts as several outputs."""
    columns = tile_for(outputs, dtype).columns
    return -(-outputs // columns) * (columns + FETCHING)


@dataclass(frozen=True)
class Packed:
    """Weights in the order in which a kernel reads them."""

    values: AnyTensor
    shape: tuple[int, int, int, int]
    groups: int
    tile: Tile | None
    """None where every group is a single channel: then another kernel computes the layer."""

    adds_zeros = True

    @property
    def squares(self) -> bool:
        return self.tile is not None

    def launch(self, work: Convolution) -> Launch:
        return _launch([work])


def pack(weight: Tensor, groups: int) -> Packed:
    """`weight` is (out, in / groups, height, width), as convolutions have it."""
    out, depth, height, width = weight.shape
    taps = weight.unflatten(0, (groups, -1)).permute(0, 3, 4, 2, 1).flatten(1, 3)  # (groups, taps, outputs)
    if groups > 1 and depth == 1:
        return Packed(taps.transpose(0, 1).contiguous(), (out, depth, height, width), groups, None)
    tile = tile_for(out // groups, weight.dtype, depth)
    at_once = 64 // weight.element_size()
    missing = (-taps.shape[2] % tile.columns, -taps.shape[1] % at_once)
    if any(missing):
        taps = F.pad(taps, (0, missing[0], 0, missing[1]))
    panels = taps.unflatten(2, (-1, tile.columns)).transpose(1, 2).contiguous()
    return Packed(panels, (out, depth, height, width), groups, tile)


def convolve(
    x: Tensor, weight: Tensor | Packed, bias: Tensor | None, form: Form, out: Tensor | None = None
) -> Tensor:
    """A convolution whose every output is the chain: no bit depends on anything else.

    `x` may be any view, and so may `out` if its channels are adjacent. Gradients are not recorded.
    """
    packed = weight if isinstance(weight, Packed) else pack(weight, form.groups)
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.contiguous()
    out = form.result(x, packed.shape, out)
    assert out.shape[1] == 1 or out.stride(1) == 1, out.stride()
    pixels = out.numel() // out.shape[1]
    if pixels > MOST_PIXELS:
        return _in_halves(x, packed, bias, form, out)
    if pixels:
        work = Convolution(x, packed, bias, form, out)
        noted(work)
        work.launch().run()
    return out


@dataclass(frozen=True)
class Together:
    """Convolutions in one launch, none of which reads what another writes."""

    works: tuple[Convolution, ...]

    def launch(self) -> Launch:
        return _launch(self.works)


def go_together(works: Sequence[Convolution]) -> bool:
    """Whether one kernel computes all of them."""
    tiled = all(isinstance(work.packed, Packed) and work.packed.tile is not None for work in works)
    return tiled and len(works) <= MOST_TOGETHER and len({_code(work, len(works)) for work in works}) == 1


def _launch(works: Sequence[Convolution]) -> Launch:
    """Launch several layers: a block's y index selects its layer."""
    if len(works) == 1:
        grid = _grid(works[0], _window(works[0]))
    else:
        across, _ = zip(*(_grid(work, None) for work in works), strict=True)
        grid = max(across), len(works)
    loaded = _loaded(*_code(works[0], len(works)))
    return Launch(loaded, grid, tuple(map(_structure, works)))


def _window(work: Convolution) -> FewInputs | None:
    """The window of a layer that is computed alone, if its rows' pixels are contiguous."""
    (_, depth, *kernel), form, x = work.packed.shape, work.form, work.x
    if (
        work.packed.tile is None
        or work.squares
        or form.groups > 1
        or form.dilation != (1, 1)
        or x.stride(3) != depth
        or x.shape[3] * depth > MOST_PIXELS  # numbers of a row are counted in 32 bits as well
    ):
        return None
    return window_for(depth, (kernel[0], kernel[1]), form.stride, work.packed.tile, work.x.dtype)


def _code(work: Convolution, count: int) -> tuple[str, str, int, int, int]:
    """The code that is compiled for this many layers of a kind."""
    packed, x, form = work.packed, work.x, work.form
    if count == 1 and (window := _window(work)) is not None:
        name, threads = few_inputs_name(packed.tile, window, x.dtype), packed.tile.threads
    elif packed.tile is not None:
        by_vectors = _by_vectors(x, packed.shape[1])
        point = count == 1 and packed.shape[2:] == (1, 1) and max(map(max, form.padding)) <= 0
        name = tiled_name(packed.tile, x.dtype, by_vectors, count, work.squares, point)
        threads = packed.tile.threads
    else:
        name = depthwise_name(*run_for(packed.shape[3], form.stride[1], form.dilation[1], x.dtype), x.dtype)
        threads = DEPTHWISE_THREADS
    program = "" if work.program == 0 else named(work.program)
    return name, program, len(work.others), x.device.index, threads


def _grid(work: Convolution, window: FewInputs | None) -> tuple[int, int]:
    images, channels, height, width = work.out.shape
    packed, form = work.packed, work.form
    if (tile := packed.tile) is not None:
        panels = packed.groups * -(-(channels // packed.groups) // tile.columns)
        if window is not None:
            return images * -(-height // tile.high) * -(-width // tile.across) * panels, 1
        return -(-images * height * width // tile.rows) * panels, 1
    run, _ = run_for(packed.shape[3], form.stride[1], form.dilation[1], work.x.dtype)
    return -(-(-(-width // run) * height * images) // 4), -(-channels // 32)


def _structure(work: Convolution) -> Structure:
    x, out = work.x, work.out
    images, channels, height, width = out.shape
    reading, writing = x.stride(), out.stride()
    _, depth, *kernel = work.packed.shape
    stride, dilation, groups, ((top, _), (left, _)) = work.form
    end = kernel[0] * dilation[0], kernel[1] * dilation[1]
    outputs = channels // groups
    others = *work.others, *(None,) * (OTHERS - len(work.others))
    rest = REST.pack(
        *(reading[0], reading[2], reading[3]),
        *(writing[0], writing[2], writing[3]),
        *(each.stride(dim) if each is not None else 0 for dim in (0, 2, 3) for each in others),
        *(dilation[1] * reading[3] - depth, dilation[0] * reading[2] - end[1] * reading[3]),
        *x.shape[2:],
        *(top, left),
        *(images * height * width, height, width),
        *stride,
        *dilation,
        *kernel,
        *(groups, outputs, depth),
        *end,
        _by_vectors(out, outputs),
    )
    return Structure((x, work.packed.values, work.bias, out, *others), rest)


def _by_vectors(x: AnyTensor, channels: int) -> bool:
    """Whether this many channels of a group can be read or written by 128 bits at every pixel."""
    stride, whole = x.stride(), 16 // x.element_size()
    return x.data_ptr() % 16 == 0 and (channels | stride[0] | stride[2] | stride[3]) % whole == 0


def _in_halves(x: Tensor, packed: Packed, bias: Tensor | None, form: Form, out: Tensor) -> Tensor:
    """Split images, or else rows, or else columns."""
    dim = next(dim for dim in (0, 2, 3) if out.shape[dim] > 1)
    start = 0
    for part in out.chunk(2, dim):
        stop = start + part.shape[dim]
        if dim == 0:
            convolve(x[start:stop], packed, bias, form, part)
        else:
            axis = dim - 2
            spans = [slice(0, n) for n in out.shape[2:]]
            spans[axis] = slice(start, stop)
            read, (before, _) = form.read_by(packed.shape[2:], *spans)[axis], form.padding[axis]
            padding = list(form.padding)
            padding[axis] = before - read.start, read.stop - before - x.shape[dim]
            convolve(x, packed, bias, form._replace(padding=(padding[0], padding[1])), part)
        start = stop
    return out


@cache
def source(program: str = "", single: bool = True, others: int = 0) -> str:
    """The source, with the program that finishes outputs."""
    finish = finished_by(program, PROGRAMS[program], single, others) if program else ""
    return finish + (files("overlap_tool.kernels") / "chain.cu").read_text()


def tiled_name(
    tile: Tile,
    dtype: torch.dtype,
    by_vectors: bool,
    count: int = 1,
    squares: bool = False,
    point: bool = False,
) -> str:
    numbers = ", ".join(map(str, tile))
    flags = ", ".join("true" if flag else "false" for flag in (by_vectors, squares, point))
    return f"tiled<{_name(dtype)}, {numbers}, {flags}, {count}>"


def few_inputs_name(tile: Tile, window: FewInputs, dtype: torch.dtype) -> str:
    return f"few_inputs<{_name(dtype)}, {', '.join(map(str, (*tile, *window)))}>"


def depthwise_name(run: int, across: tuple[int, int, int], dtype: torch.dtype) -> str:
    return f"depthwise<{_name(dtype)}, {run}, {', '.join(map(str, across))}>"


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "float", torch.float64: "double"}[dtype]


@cache
def _loaded(name: str, program: str, others: int, device: int, threads: int) -> LoadedKernel:
    target = nvrtc.target(torch.cuda.get_device_capability(device))
    code = source(program, "<float" in name, others)
    return LoadedKernel(nvrtc.compile_kernel(code, name, target), device, threads)
