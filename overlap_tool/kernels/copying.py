"""Copies between pieces of maps on the CPU, channels last, on torch's own threads."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

import llvmlite.ir as ir

from overlap_tool.kernels import codegen
from overlap_tool.kernels.codegen import I64, counted, taken
from overlap_tool.kernels.threads import GeneratedCall
from overlap_tool.kernels.work import AnyTensor

FIELDS = (
    *("next", "items", "rows", "columns", "channels"),
    *("x", "x_image", "x_row", "x_pixel"),
    *("y", "y_image", "y_row", "y_pixel"),
)
"""The arguments of generated code, 64 bits each; sizes and strides in bytes. An item is a row of an image."""

TASK = struct.Struct(f"{len(FIELDS)}q")
PLACES = FIELDS.index("x"), FIELDS.index("y")

WORTH_THREADS = 1 << 18
"""Below this many bytes, waking other threads takes longer than the work."""


@dataclass(frozen=True)
class Copied:
    """A copy of `source`, or of zeros, to `to`, which has the same shape."""

    source: AnyTensor | None
    to: AnyTensor

    def launch(self) -> GeneratedCall:
        size = self.to.element_size()
        images, channels, rows, columns = self.to.shape
        strides = []
        for each in (self.to if self.source is None else self.source, self.to):
            image, _, row, pixel = (size * step for step in each.stride())
            strides += [0, image, row, pixel]
        task = TASK.pack(0, images * rows, rows, columns, channels * size, *strides)
        most = images * rows if self.to.numel() * size >= WORTH_THREADS else 1
        return GeneratedCall(_code(), task, (self.source, self.to), PLACES, most, lambda: None)


@cache
def _code() -> int:
    module = ir.Module("copying")
    module.triple = codegen.triple()
    text = ir.IntType(8).as_pointer()
    byte, flag = text.pointee, codegen.I1
    copy = ir.Function(
        module, ir.FunctionType(ir.VoidType(), [text, text, I64, flag]), "llvm.memcpy.p0.p0.i64"
    )
    fill = ir.Function(module, ir.FunctionType(ir.VoidType(), [text, byte, I64, flag]), "llvm.memset.p0.i64")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), "run")
    b = ir.IRBuilder(function.append_basic_block())
    task = {name: b.load(b.gep(function.args[0], [I64(i)])) for i, name in enumerate(FIELDS)}
    channels, columns, steps = task["channels"], task["columns"], (task["x_pixel"], task["y_pixel"])
    side_by_side = b.and_(*(b.icmp_signed("==", step, channels) for step in steps))
    with taken(b, function.args[0], task["items"]) as item:
        image, row = b.udiv(item, task["rows"]), b.urem(item, task["rows"])

        def start(map: str) -> ir.Value:
            offset = b.add(b.mul(image, task[f"{map}_image"]), b.mul(row, task[f"{map}_row"]))
            return b.inttoptr(b.add(task[map], offset), text)

        def written(y: ir.Value, x: ir.Value, size: ir.Value) -> None:
            with b.if_else(b.icmp_signed("==", task["x"], I64(0))) as (nothing, something):
                with nothing:
                    b.call(fill, [y, byte(0), size, flag(0)])
                with something:
                    b.call(copy, [y, x, size, flag(0)])

        x, y = start("x"), start("y")
        with b.if_else(side_by_side) as (whole, apart):
            with whole:
                written(y, x, b.mul(columns, channels))
            with apart, counted(b, columns) as pixel:
                read, write = (
                    b.gep(at, [b.mul(pixel, step)]) for at, step in zip((x, y), steps, strict=True)
                )
                written(write, read, channels)
    b.ret_void()
    return codegen.compiled(module)
