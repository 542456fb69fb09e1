"""Programs as LLVM IR: a loop over contiguous numbers, `lanes` of them at a time.

No flag permits LLVM to reorder, contract or approximate: every operation rounds as IEEE 754 defines, on every
processor that LLVM supports. Fused multiply-adds occur exactly where they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir

from overlap_tool.kernels.arithmetic.operators import Operators
from overlap_tool.kernels.codegen import counted, taken

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()

INPUTS, NUMBERS = 3, 4
"""The most inputs of a program: tensors of one size, and numbers."""

FIELDS = (
    "next",
    "items",
    "count",
    "y",
    *(f"x{i}" for i in range(INPUTS)),
    *(f"s{i}" for i in range(NUMBERS)),
)
"""The arguments of generated code, 64 bits each. A thread takes the next item until none is left."""

ITEM = 8192
"""How many numbers a thread takes at a time."""

MAPS = "y", *(f"x{i}" for i in range(INPUTS))

PIXEL_FIELDS = (
    *("next", "items", "rows", "columns", "channels"),
    *(f"{name}{part}" for name in MAPS for part in ("", "_image", "_row", "_pixel")),
)
"""The same for pieces of maps whose channels are adjacent. An item is a row; strides are in elements."""

ON_NUMBERS = {"+": "fadd", "-": "fsub", "*": "fmul", "/": "fdiv"}
ON_INTEGERS = {"+": "add", "-": "sub", "*": "mul", "&": "and_", "|": "or_", "^": "xor", "<<": "shl"}

Program = Callable[..., Any]


class Vector(Operators):
    """Numbers, integers or truth values, one per lane, with Python's operators."""

    def __init__(self, o: Generator, value: ir.Value) -> None:
        self.o, self.value = o, value

    @property
    def kind(self) -> ir.Type:
        kind = self.value.type
        return kind.element if isinstance(kind, ir.VectorType) else kind

    def _binary(self, sign: str, other: Any, swap: bool = False) -> Vector:
        a, b = self.value, self.o.lifted(other, self.kind).value
        if swap:
            a, b = b, a
        names = ON_INTEGERS if isinstance(self.kind, ir.IntType) else ON_NUMBERS
        return Vector(self.o, getattr(self.o.b, names[sign])(a, b))

    def _compared(self, how: str, other: Any) -> Vector:
        a, b = self.value, self.o.lifted(other, self.kind).value
        if isinstance(self.kind, ir.IntType):
            return Vector(self.o, self.o.b.icmp_signed(how, a, b))
        return Vector(self.o, self.o.b.fcmp_ordered(how, a, b))

    def __lshift__(self, count: int) -> Vector:
        return self._binary("<<", count)

    def __neg__(self) -> Vector:
        return Vector(self.o, self.o.b.fneg(self.value))

    def __invert__(self) -> Vector:
        return Vector(self.o, self.o.b.not_(self.value))


class Generator:
    """Computes programs by writing the instructions that do so."""

    def __init__(self, module: ir.Module, single: bool, lanes: int) -> None:
        self.module, self.single, self.lanes = module, single, lanes
        self.b: ir.IRBuilder

    def of(self, kind: ir.Type) -> ir.Type:
        return kind if self.lanes == 1 else ir.VectorType(kind, self.lanes)

    def lifted(self, value: Any, kind: ir.Type) -> Vector:
        """A Python number in every lane."""
        if isinstance(value, Vector):
            return value
        one = ir.Constant(kind, value)
        return Vector(self, one if self.lanes == 1 else ir.Constant(self.of(kind), [one] * self.lanes))

    def splat(self, scalar: ir.Value) -> Vector:
        if self.lanes == 1:
            return Vector(self, scalar)
        vector = ir.Constant(self.of(scalar.type), ir.Undefined)
        zeros = ir.Constant(self.of(I32), [I32(0)] * self.lanes)
        return Vector(
            self, self.b.shuffle_vector(self.b.insert_element(vector, scalar, I32(0)), vector, zeros)
        )

    def _intrinsic(self, name: str, *arguments: Any) -> Vector:
        kind = next((a.kind for a in arguments if isinstance(a, Vector)), DOUBLE)
        values = [self.lifted(a, kind).value for a in arguments]
        width = "" if self.lanes == 1 else f"v{self.lanes}"
        full = f"llvm.{name}.{width}f{32 if kind == SINGLE else 64}"
        function = self.module.globals.get(full)
        if function is None:
            signature = ir.FunctionType(self.of(kind), [self.of(kind)] * len(values))
            function = ir.Function(self.module, signature, full)
        return Vector(self, self.b.call(function, values))

    def fma(self, a: Any, b: Any, c: Any) -> Vector:
        return self._intrinsic("fma", a, b, c)

    def sqrt(self, x: Vector) -> Vector:
        return self._intrinsic("sqrt", x)

    def abs(self, x: Vector) -> Vector:
        return self._intrinsic("fabs", x)

    def copysign(self, x: Vector, sign: Vector) -> Vector:
        return self._intrinsic("copysign", x, sign)

    def where(self, mask: Vector, one: Any, other: Any) -> Vector:
        plain = I64 if isinstance(one, int) and isinstance(other, int) else DOUBLE
        kind = next((x.kind for x in (one, other) if isinstance(x, Vector)), plain)
        values = (self.lifted(x, kind).value for x in (one, other))
        return Vector(self, self.b.select(mask.value, *values))

    def bits(self, x: Vector) -> Vector:
        return Vector(self, self.b.bitcast(x.value, self.of(I64)))

    def number(self, bits: Vector) -> Vector:
        return Vector(self, self.b.bitcast(bits.value, self.of(DOUBLE)))

    def upper(self, bits: Vector, count: int) -> Vector:
        return Vector(self, self.b.lshr(bits.value, self.lifted(count, I64).value))

    def widen(self, x: Vector) -> Vector:
        return Vector(self, self.b.fpext(x.value, self.of(DOUBLE))) if self.single else x

    def narrow(self, x: Vector) -> Vector:
        return Vector(self, self.b.fptrunc(x.value, self.of(SINGLE))) if self.single else x

    def table(self, values: Sequence[int], index: Vector) -> Vector:
        """Lane by lane, since it is used rarely."""
        kind = ir.ArrayType(DOUBLE, len(values))
        name = f"table_{abs(hash(tuple(values)))}"
        stored = self.module.globals.get(name)
        if stored is None:
            stored = ir.GlobalVariable(self.module, kind, name)
            stored.global_constant, stored.linkage = True, "internal"
            stored.initializer = ir.Constant(kind, [float(value) for value in values])
        last = len(values) - 1
        index = self.where(index < 0, 0, self.where(index > last, last, index))
        if self.lanes == 1:
            return Vector(self, self.b.load(self.b.gep(stored, [I64(0), index.value])))
        found: ir.Value = ir.Constant(self.of(DOUBLE), ir.Undefined)
        for lane in range(self.lanes):
            at = self.b.extract_element(index.value, I32(lane))
            found = self.b.insert_element(found, self.b.load(self.b.gep(stored, [I64(0), at])), I32(lane))
        return Vector(self, found)

    def rarely(self, mask: Vector, compute: Callable[[], Any], otherwise: Any) -> Any:
        """A branch that is taken if some lane needs it."""
        several = otherwise if isinstance(otherwise, tuple) else (otherwise,)
        any_lane = mask.value
        if self.lanes > 1:
            word = ir.IntType(self.lanes)
            any_lane = self.b.icmp_unsigned("!=", self.b.bitcast(any_lane, word), word(0))
        before = self.b.block
        with self.b.if_then(any_lane, likely=False):
            found = compute()
            found = found if isinstance(otherwise, tuple) else (found,)
            chosen = [self.where(mask, one, other) for one, other in zip(found, several, strict=True)]
            inside = self.b.block
        results = []
        for one, other in zip(chosen, several, strict=True):
            either = self.b.phi(one.value.type)
            either.add_incoming(one.value, inside)
            either.add_incoming(other.value, before)
            results.append(Vector(self, either))
        return tuple(results) if isinstance(otherwise, tuple) else results[0]


def loop_over(
    program: Program, single: bool, inputs: int, numbers: int, lanes: int, triple: str
) -> ir.Module:
    """A module with `void run(Task *)`, which computes `program(o, *inputs, *numbers)` for every number."""
    module = ir.Module("elementwise")
    module.triple = triple
    o = Generator(module, single, lanes)
    kind = SINGLE if single else DOUBLE
    place = kind.as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), "run")
    function.args[0].add_attribute("noalias")
    o.b = b = ir.IRBuilder(function.append_basic_block())
    counter = function.args[0]
    task = {name: b.load(b.gep(counter, [I64(i)])) for i, name in enumerate(FIELDS)}
    y = b.inttoptr(task["y"], place)
    xs = [b.inttoptr(task[f"x{i}"], place) for i in range(inputs)]
    scalars = []
    for i in range(numbers):
        number = b.bitcast(task[f"s{i}"], DOUBLE)
        scalars.append(o.splat(b.fptrunc(number, SINGLE) if single else number))
    # a remainder goes through a buffer of a full vector
    rests = [b.alloca(o.of(kind)) for _ in range(inputs + 1)]
    with taken(b, counter, task["items"]) as item:
        start = b.mul(item, I64(ITEM))
        left = b.sub(task["count"], start)
        count = b.select(b.icmp_signed("<", left, I64(ITEM)), left, I64(ITEM))
        whole = b.and_(count, I64(-lanes))

        def vector(pointer: ir.Value, at: ir.Value) -> ir.Value:
            return b.bitcast(b.gep(pointer, [at]), o.of(kind).as_pointer())

        def computed(read: Sequence[ir.Value]) -> ir.Value:
            values = []
            for pointer in read:
                value = b.load(pointer)
                value.align = kind_bytes
                values.append(Vector(o, value))
            return program(o, *values, *scalars).value

        kind_bytes = 4 if single else 8
        with counted(b, whole, lanes) as i:
            at = b.add(start, i)
            stored = b.store(computed([vector(x, at) for x in xs]), vector(y, at))
            stored.align = kind_bytes
        if lanes > 1:
            with b.if_then(b.icmp_signed("<", whole, count)):
                first = b.add(start, whole)
                for x, rest in zip(xs, rests, strict=False):
                    b.store(o.lifted(1.0, kind).value, rest)
                    with counted(b, b.sub(count, whole), 1) as i:
                        b.store(b.load(b.gep(x, [b.add(first, i)])), b.gep(b.bitcast(rest, place), [i]))
                b.store(computed(rests[:inputs]), rests[-1])
                with counted(b, b.sub(count, whole), 1) as i:
                    b.store(b.load(b.gep(b.bitcast(rests[-1], place), [i])), b.gep(y, [b.add(first, i)]))
    b.ret_void()
    return module


def finish_by(program: Program, single: bool, others: int, lanes: int, triple: str) -> ir.Module:
    """A module with `void run(y, other, another, pixels, channels, y_pixel, other_pixel, another_pixel)`.

    It replaces y by `program(o, y, *others)`, for `channels` adjacent channels of each pixel, `lanes` of them
    at a time.
    """
    module = ir.Module("finish")
    module.triple = triple
    o = Generator(module, single, lanes)
    signature = ir.FunctionType(ir.VoidType(), [(SINGLE if single else DOUBLE).as_pointer()] * 3 + [I64] * 5)
    function = ir.Function(module, signature, "run")
    (*starts, pixels, channels), steps = function.args[:5], function.args[5:]
    o.b = ir.IRBuilder(function.append_basic_block())
    y, *beside = zip(starts, steps, strict=True)
    _of_pixels(o, program, [y, *beside[:others]], y, pixels, channels)
    o.b.ret_void()
    return module


def over_pixels(program: Program, single: bool, inputs: int, lanes: int, triple: str) -> ir.Module:
    """A module with `void run(Task *)`, which takes `PIXEL_FIELDS`, and computes `program(o, *inputs)` for
    adjacent channels of every pixel."""
    module = ir.Module("pixels")
    module.triple = triple
    o = Generator(module, single, lanes)
    place = (SINGLE if single else DOUBLE).as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), "run")
    o.b = b = ir.IRBuilder(function.append_basic_block())
    task = {name: b.load(b.gep(function.args[0], [I64(i)])) for i, name in enumerate(PIXEL_FIELDS)}
    with taken(b, function.args[0], task["items"]) as item:
        image, row = b.udiv(item, task["rows"]), b.urem(item, task["rows"])

        def start(name: str) -> ir.Value:
            steps = b.mul(image, task[f"{name}_image"]), b.mul(row, task[f"{name}_row"])
            return b.gep(b.inttoptr(task[name], place), [b.add(*steps)])

        y, *xs = ((start(name), task[f"{name}_pixel"]) for name in MAPS[: 1 + inputs])
        _of_pixels(o, program, xs, y, task["columns"], task["channels"])
    b.ret_void()
    return module


Line = tuple[ir.Value, ir.Value]
"""Pixels of a row: the first one's address, and the step to the next."""


def _of_pixels(
    o: Generator, program: Program, read: Sequence[Line], written: Line, pixels: ir.Value, channels: ir.Value
) -> None:
    b, lanes = o.b, o.lanes
    kind, size = (SINGLE, 4) if o.single else (DOUBLE, 8)
    vector, mask = ir.VectorType(kind, lanes), ir.VectorType(I1, lanes)
    width = f"v{lanes}f{8 * size}.p0"
    load = ir.Function(
        o.module,
        ir.FunctionType(vector, [vector.as_pointer(), I32, mask, vector]),
        f"llvm.masked.load.{width}",
    )
    store = ir.Function(
        o.module,
        ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), I32, mask]),
        f"llvm.masked.store.{width}",
    )
    numbered = ir.Constant(ir.VectorType(I64, lanes), [I64(i) for i in range(lanes)])
    whole = b.and_(channels, I64(-lanes))
    rest = b.sub(channels, whole)
    some = b.icmp_signed("<", numbered, o.splat(rest).value)
    nothing = o.lifted(1.0, kind).value

    def vectors(pixel: ir.Value, channel: ir.Value) -> list[ir.Value]:
        lines = (*read, written)
        pointers = (b.gep(start, [b.add(b.mul(pixel, step), channel)]) for start, step in lines)
        return [b.bitcast(pointer, vector.as_pointer()) for pointer in pointers]

    with counted(b, pixels, 1) as pixel:
        with counted(b, whole, lanes) as channel:
            *xs, y = vectors(pixel, channel)
            values = []
            for pointer in xs:
                value = b.load(pointer)
                value.align = size
                values.append(Vector(o, value))
            b.store(program(o, *values).value, y).align = size
        with b.if_then(b.icmp_signed("!=", rest, I64(0)), likely=False):  # masks are slow on some processors
            *xs, y = vectors(pixel, whole)
            values = [Vector(o, b.call(load, [pointer, I32(size), some, nothing])) for pointer in xs]
            b.call(store, [program(o, *values).value, y, I32(size), some])
