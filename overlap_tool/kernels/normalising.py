"""Layer norms on the CPU, by generated code: the channels of every pixel, by their own mean and variance.

A group of pixels goes through all steps while it is in a core's own cache. Lanes are channels: a vector of
nodes of a tree of sums is made of two, by adding their even lanes to their odd ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import llvmlite.ir as ir
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from overlap_tool.kernels import codegen
from overlap_tool.kernels.arithmetic.functions import rounded
from overlap_tool.kernels.arithmetic.generated import DOUBLE, I1, I32, I64, SINGLE, Generator, Vector
from overlap_tool.kernels.codegen import counted, taken
from overlap_tool.kernels.threads import ByRows, GeneratedCall
from overlap_tool.kernels.transposing import channels_last
from overlap_tool.kernels.work import Normalisation, noted

FIELDS = (
    *("next", "items", "rows", "columns"),
    *("x", "x_image", "x_row", "x_pixel"),
    *("y", "y_image", "y_row", "y_pixel"),
    *("weight", "bias", "centre", "scale", "eps"),
)
"""The arguments of generated code, 64 bits each; strides are in elements. `centre` and `scale` may be 0."""

TASK = struct.Struct(f"{len(FIELDS) - 1}qd")
PLACES = X, Y, *_ = tuple(map(FIELDS.index, ("x", "y", "weight", "bias", "centre", "scale")))
ITEMS, ROWS = map(FIELDS.index, ("items", "rows"))

MOST_BYTES = 4096
"""The most bytes of a pixel. Code for more would take long to compile, since it has no loop over channels."""

GROUP = 16
"""The pixels whose roots are computed together."""

ITEM = 16 * GROUP
"""The pixels of a row that form one work item."""

WORTH_THREADS = 1 << 15
"""Below this many numbers, waking other threads takes longer than the work."""


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The layer norm over the last dimension, its means and the factors; None if there is no code for it."""
    channels = x.shape[-1]
    given = [each for each in (weight, bias) if each is not None]
    if (
        x.device.type != "cpu"
        or x.dtype not in (torch.float32, torch.float64)
        or any(each.dtype != x.dtype for each in given)
        or channels * x.element_size() > MOST_BYTES
        or x.numel() == 0
    ):
        return None
    code = _code(channels, x.dtype == torch.float32, weight is not None, bias is not None)
    if code is None:
        return None
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    centre, scale = (y.new_empty(*x.shape[:-1], 1) for _ in range(2))
    if not isinstance(x, FakeTensor):  # which has no numbers
        read = _as_map(x)
        if channels > 1 and read.stride(1) != 1:
            read = channels_last(read)
        weight, bias = (None if each is None else each.contiguous() for each in (weight, bias))
        work = Normalisation(Code(code), read, weight, bias, eps, _as_map(y), centre, scale)
        noted(work)
        work.launch().run()
    return y, centre, scale


def _as_map(x: Tensor) -> Tensor:
    """Images, channels, rows and columns."""
    leading = (1, 1, 1, *x.shape[:-1])[-3:] if x.ndim < 4 else (-1, *x.shape[-3:-1])
    return x.reshape(*leading, x.shape[-1]).permute(0, 3, 1, 2)


class Code(NamedTuple):
    """The machine code of a layer norm."""

    address: int

    def over(self, work: Normalisation) -> GeneratedCall:
        x, y = work.x, work.out
        images, _, rows, columns = y.shape
        items = images * rows * -(-columns // ITEM)
        strides = ((0, each.stride(0), each.stride(2), each.stride(3)) for each in (x, y))
        task = TASK.pack(0, items, rows, columns, *next(strides), *next(strides), 0, 0, 0, 0, work.eps)
        tensors = x, y, work.weight, work.bias, work.centre, work.scale
        most = items if y.numel() >= WORTH_THREADS else 1
        return GeneratedCall(self.address, task, tensors, PLACES, most, partial(_rows, work, items))


def _rows(work: Normalisation, items: int) -> ByRows:
    rows, size = work.out.shape[2], work.out.element_size()
    steps = {place: each.stride(2) * size for place, each in ((X, work.x), (Y, work.out))}
    return ByRows(rows, steps, {ITEMS: (items // rows, 1), ROWS: (1, 1)})


@cache
def _code(channels: int, single: bool, weighted: bool, biased: bool) -> int | None:
    """None if LLVM does not support the processor."""
    try:
        return codegen.compiled(_module(channels, single, weighted, biased))
    except RuntimeError:
        return None


def _module(channels: int, single: bool, weighted: bool, biased: bool) -> ir.Module:
    module = ir.Module("normalising")
    module.triple = codegen.triple()
    o = Generator(module, single, GROUP)
    number = SINGLE if single else DOUBLE
    c = _Channels(module, number, channels)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), "run")
    o.b = c.b = b = ir.IRBuilder(function.append_basic_block())
    task = {name: b.load(b.gep(function.args[0], [I64(i)])) for i, name in enumerate(FIELDS)}
    eps = b.bitcast(task["eps"], DOUBLE)
    eps = o.splat(b.fptrunc(eps, SINGLE) if single else eps)
    centres, others = (b.alloca(o.of(number)) for _ in range(2))
    for each in (centres, others):  # lanes without a pixel
        b.store(o.lifted(1.0, number).value, each)
    blocks = b.udiv(b.add(task["columns"], I64(ITEM - 1)), I64(ITEM))
    with taken(b, function.args[0], task["items"]) as item:
        line, first = b.udiv(item, blocks), b.mul(b.urem(item, blocks), I64(ITEM))
        image, row = b.udiv(line, task["rows"]), b.urem(line, task["rows"])

        def least(one: ir.Value, other: ir.Value) -> ir.Value:
            return b.select(b.icmp_signed("<", one, other), one, other)

        def of_pixel(map: str, pixel: ir.Value) -> ir.Value:
            at = b.inttoptr(task[map], number.as_pointer())
            for index, name in ((image, "image"), (row, "row"), (pixel, "pixel")):
                at = b.gep(at, [b.mul(index, task[f"{map}_{name}"])])
            return at

        def lane(vector: ir.Value, at: ir.Value) -> ir.Value:
            return b.gep(b.bitcast(vector, number.as_pointer()), [at])

        def mean_of(place: ir.Value) -> Vector:
            return Vector(o, b.load(place)) / float(channels)

        with counted(b, least(b.sub(task["columns"], first), I64(ITEM)), GROUP) as before:
            start = b.add(first, before)
            pixels = least(b.sub(task["columns"], start), I64(GROUP))
            with counted(b, pixels) as pixel:
                read = partial(c.read, of_pixel("x", b.add(start, pixel)))
                b.store(c.sum(read), lane(centres, pixel))
            b.store(mean_of(centres).value, centres)
            with counted(b, pixels) as pixel:
                centred = c.minus(of_pixel("x", b.add(start, pixel)), b.load(lane(centres, pixel)))
                b.store(c.sum(c.squared(centred)), lane(others, pixel))
            b.store(rounded(o, "rsqrt", mean_of(others) + eps).value, others)
            with counted(b, pixels) as pixel:
                centred = c.minus(of_pixel("x", b.add(start, pixel)), b.load(lane(centres, pixel)))
                scale, y = c.splat(b.load(lane(others, pixel))), of_pixel("y", b.add(start, pixel))
                for v in range(c.vectors):
                    value = b.fmul(centred(v), scale)
                    if weighted:
                        value = b.fmul(value, c.read(b.inttoptr(task["weight"], number.as_pointer()), v))
                    if biased:
                        value = b.fadd(value, c.read(b.inttoptr(task["bias"], number.as_pointer()), v))
                    c.write(value, y, v)
            for name, values in (("centre", centres), ("scale", others)):
                with b.if_then(b.icmp_signed("!=", task[name], I64(0))), counted(b, pixels) as pixel:
                    at = b.add(b.mul(line, task["columns"]), b.add(start, pixel))
                    written = b.gep(b.inttoptr(task[name], number.as_pointer()), [at])
                    b.store(b.load(lane(values, pixel)), written)
    b.ret_void()
    return module


class _Channels:
    """The channels of a pixel, as vectors of adjacent ones. The last may be filled up with -0, which changes
    no sum."""

    b: ir.IRBuilder

    def __init__(self, module: ir.Module, number: ir.Type, channels: int) -> None:
        self.size = 4 if number == SINGLE else 8
        self.lanes = codegen.processor().lanes(self.size)
        self.vectors = -(-channels // self.lanes)
        self.vector = ir.VectorType(number, self.lanes)
        self.nothing = ir.Constant(self.vector, [number(-0.0)] * self.lanes)
        left = channels - (self.vectors - 1) * self.lanes
        mask = ir.VectorType(I1, self.lanes)
        self.some = ir.Constant(mask, [I1(i < left) for i in range(self.lanes)])
        self.is_full = left == self.lanes
        name, place = f"v{self.lanes}f{8 * self.size}.p0", self.vector.as_pointer()
        reading = ir.FunctionType(self.vector, [place, I32, mask, self.vector])
        writing = ir.FunctionType(ir.VoidType(), [self.vector, place, I32, mask])
        self._load = ir.Function(module, reading, f"llvm.masked.load.{name}")
        self._store = ir.Function(module, writing, f"llvm.masked.store.{name}")

    def _is_whole(self, v: int) -> bool:
        return self.is_full or v < self.vectors - 1

    def _at(self, start: ir.Value, v: int) -> ir.Value:
        return self.b.bitcast(self.b.gep(start, [I64(v * self.lanes)]), self.vector.as_pointer())

    def read(self, start: ir.Value, v: int) -> ir.Value:
        if not self._is_whole(v):
            return self.b.call(self._load, [self._at(start, v), I32(self.size), self.some, self.nothing])
        value = self.b.load(self._at(start, v))
        value.align = self.size
        return value

    def write(self, value: ir.Value, start: ir.Value, v: int) -> None:
        if self._is_whole(v):
            self.b.store(value, self._at(start, v)).align = self.size
        else:
            self.b.call(self._store, [value, self._at(start, v), I32(self.size), self.some])

    def splat(self, scalar: ir.Value) -> ir.Value:
        alone = self.b.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [I32(0)] * self.lanes)
        return self.b.shuffle_vector(alone, alone, zeros)

    def minus(self, start: ir.Value, centre: ir.Value) -> Callable[[int], ir.Value]:
        centres = self.splat(centre)
        return lambda v: self.b.fsub(self.read(start, v), centres)

    def squared(self, value: Callable[[int], ir.Value]) -> Callable[[int], ir.Value]:
        def square(v: int) -> ir.Value:
            one = value(v)
            found = self.b.fmul(one, one)
            return found if self._is_whole(v) else self.b.select(self.some, found, self.nothing)

        return square

    def sum(self, value: Callable[[int], ir.Value]) -> ir.Value:
        """The tree of neighbours."""
        nodes = self._nodes(value, 0, 1 << (self.vectors - 1).bit_length())
        assert nodes is not None
        for _ in range(self.lanes.bit_length() - 1):
            nodes = self._added(nodes, nodes, nodes.type.count // 2)
        return self.b.extract_element(nodes, I32(0))

    def _nodes(self, value: Callable[[int], ir.Value], first: int, vectors: int) -> ir.Value | None:
        """A vector of nodes, each of so many channels."""
        if vectors == 1 or first >= self.vectors:
            return value(first) if first < self.vectors else None
        one, other = (self._nodes(value, at, vectors // 2) for at in (first, first + vectors // 2))
        return one and self._added(one, other or self.nothing, self.lanes)

    def _added(self, one: ir.Value, other: ir.Value, pairs: int) -> ir.Value:
        """The sums of neighbours among the lanes of one vector and then of another."""
        picked = ([I32(2 * i + odd) for i in range(pairs)] for odd in (0, 1))
        masks = (ir.Constant(ir.VectorType(I32, pairs), lanes) for lanes in picked)
        return self.b.fadd(*(self.b.shuffle_vector(one, other, mask) for mask in masks))
