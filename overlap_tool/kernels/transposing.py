"""Converts maps on the CPU from channels first to channels last and back, on PyTorch's own threads.

PyTorch's own copy takes longer than a 1x1 convolution between the two conversions.
"""

from __future__ import annotations

import struct
from functools import cache

import llvmlite.ir as ir
import torch
from torch import Tensor

from overlap_tool.kernels import codegen
from overlap_tool.kernels.codegen import I32, I64, counted, taken
from overlap_tool.kernels.threads import GeneratedCall
from overlap_tool.kernels.work import are_noted

FIELDS = (
    *("next", "items", "rows", "columns", "channels"),
    *("x", "x_image", "x_row", "x_channel", "x_pixel"),
    *("y", "y_image", "y_row", "y_channel", "y_pixel"),
)
"""The arguments of generated code, 64 bits each; strides are in elements."""

TASK = struct.Struct(f"{len(FIELDS)}q")
PLACES = FIELDS.index("x"), FIELDS.index("y")

PIXELS = 256
"""The pixels of a row that form one work item: with all channels, they fit in a core's own cache."""

WORTH = 1 << 16
"""The fewest elements for which generated code is used."""


def channels_last(x: Tensor) -> Tensor:
    """The same map, contiguous in channels-last order."""
    if not is_quick(x) or x.stride(3) != 1:
        return x.contiguous(memory_format=torch.channels_last)
    return _moved(x, torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last))


def channels_first(x: Tensor, to: Tensor | None = None) -> Tensor:
    """The same map, contiguous; or copied to `to`, in which neighbouring pixels of a row are adjacent."""
    if not is_quick(x) or x.stride(1) != 1:
        return x.contiguous() if to is None else to.copy_(x)
    return _moved(x, torch.empty(x.shape, dtype=x.dtype) if to is None else to)


def is_quick(x: Tensor) -> bool:
    """Whether generated code converts it: not while work is recorded, since recorders see PyTorch's ops."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.ndim == 4
        and x.numel() >= WORTH
        and not are_noted()
    )


def _moved(x: Tensor, y: Tensor) -> Tensor:
    images, channels, rows, columns = x.shape
    (x_image, x_channel, x_row, x_pixel), (y_image, y_channel, y_row, y_pixel) = x.stride(), y.stride()
    if (x_row, y_row) == (columns * x_pixel, columns * y_pixel):
        rows, columns = 1, rows * columns
    items = images * rows * -(-columns // PIXELS)
    task = TASK.pack(
        *(0, items, rows, columns, channels),
        *(0, x_image, x_row, x_channel, x_pixel),
        *(0, y_image, y_row, y_channel, y_pixel),
    )
    code = _code(x.element_size(), y_channel == 1)
    GeneratedCall(code, task, (x, y), PLACES, items, lambda: None).run()
    return y


@cache
def _code(itemsize: int, to_last: bool) -> int:
    """Transposes squares of as many channels and pixels as a vector has lanes; the rest one by one."""
    lanes = codegen.processor().lanes(itemsize)
    number = ir.FloatType() if itemsize == 4 else ir.DoubleType()
    vector = ir.VectorType(number, lanes)
    module = ir.Module("transposing")
    module.triple = codegen.triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), "run")
    b = ir.IRBuilder(function.append_basic_block())
    task = {name: b.load(b.gep(function.args[0], [I64(i)])) for i, name in enumerate(FIELDS)}
    blocks = b.udiv(b.add(task["columns"], I64(PIXELS - 1)), I64(PIXELS))
    with taken(b, function.args[0], task["items"]) as item:
        first = b.mul(b.urem(item, blocks), I64(PIXELS))
        line = b.udiv(item, blocks)
        image, row = b.udiv(line, task["rows"]), b.urem(line, task["rows"])
        left = b.sub(task["columns"], first)
        pixels = b.select(b.icmp_signed("<", left, I64(PIXELS)), left, I64(PIXELS))

        def at(map: str, channel: ir.Value, pixel: ir.Value) -> ir.Value:
            start = b.inttoptr(task[map], number.as_pointer())
            steps = ((image, "image"), (row, "row"), (channel, "channel"), (b.add(first, pixel), "pixel"))
            for index, name in steps:
                start = b.gep(start, [b.mul(index, task[f"{map}_{name}"])])
            return start

        def square(channel: ir.Value, pixel: ir.Value) -> None:
            x, y = at("x", channel, pixel), at("y", channel, pixel)
            names = ("x_channel", "y_pixel") if to_last else ("x_pixel", "y_channel")
            reading, writing = (
                [
                    b.bitcast(b.gep(start, [b.mul(I64(i), task[name])]), vector.as_pointer())
                    for i in range(lanes)
                ]
                for start, name in zip((x, y), names, strict=True)
            )
            lines = []
            for place in reading:
                lines.append(b.load(place))
                lines[-1].align = itemsize
            for value, place in zip(_transposed(b, lines), writing, strict=True):
                b.store(value, place).align = itemsize

        def one_by_one(channel: ir.Value, pixel: ir.Value) -> None:
            b.store(b.load(at("x", channel, pixel)), at("y", channel, pixel))

        channels = task["channels"]
        some_channels, some_pixels = (b.mul(b.udiv(n, I64(lanes)), I64(lanes)) for n in (channels, pixels))
        with counted(b, some_channels, step=lanes) as channel:
            with counted(b, some_pixels, step=lanes) as pixel:
                square(channel, pixel)
            with counted(b, I64(lanes)) as lane, counted(b, b.sub(pixels, some_pixels)) as rest:
                one_by_one(b.add(channel, lane), b.add(some_pixels, rest))
        with counted(b, b.sub(channels, some_channels)) as rest, counted(b, pixels) as pixel:
            one_by_one(b.add(some_channels, rest), pixel)
    b.ret_void()
    return codegen.compiled(module)


def _transposed(b: ir.IRBuilder, lines: list[ir.Value]) -> list[ir.Value]:
    """Transpose a square, given as its rows: exchange halves, then quarters, down to single elements."""
    lanes = len(lines)
    step = lanes // 2
    while step:
        changed = list(lines)
        for i in range(lanes):
            if not i & step:
                upper, lower = lines[i], lines[i | step]
                for at, kept in ((i, 0), (i | step, step)):
                    picks = [(k & ~step) + kept + (lanes if k & step else 0) for k in range(lanes)]
                    mask = ir.Constant(ir.VectorType(I32, lanes), [I32(pick) for pick in picks])
                    changed[at] = b.shuffle_vector(upper, lower, mask)
        lines, step = changed, step // 2
    return lines
