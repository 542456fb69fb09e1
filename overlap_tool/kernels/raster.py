"""One row of a map, coded position by position in generated code: some layers for each, then its symbols.

The layers are canonical chains, as everywhere. A chain that was begun elsewhere is continued, so
contributions that do not depend on the row's own symbols can be computed for a whole row at once. Symbols are
rounded, or read from a string as CompressAI's range coder reads it: rANS of 64 bits with words of 32, tables
of 16 bits, and parts of 4 bits for symbols beyond a table. After its last word a string continues with zeros.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache

import llvmlite.ir as ir

from overlap_tool.kernels.codegen import I32, I64, compiled, counted, processor, triple

VECTORS = 8
"""Vectors of outputs that go through their chains together: enough to hide the latency of a step."""

MOST_HIDDEN = 64
"""The most hidden numbers of the network that shrinks symbols."""

MOST_NIBBLES = 7
"""The most 4-bit parts of a symbol beyond its table; CompressAI's encoder never writes more."""

PRECISION, NIBBLE, WORD = 16, 4, 32
"""Bits of a probability, of a part of a symbol beyond its table, and of what the decoder reads at once."""


class PositionLayer(ctypes.Structure):
    """One layer of a position: y = w x + bias + shift, then multiplied by the slope where it is not above 0.

    Its outputs are whole panels. Their chains begin with `start`, which advances by `start_step` numbers per
    position. The first layer reads what lies to the left, the others what the previous one gives.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("inputs", "panels", "w", "start", "start_step", "bias", "shift", "y", "slope")
    )


class CodedRow(ctypes.Structure):
    """One row as the generated code reads it, and the state of its decoder.

    `map` has the channels of a position side by side, and its decoded numbers afterwards; `symbols`, and the
    numbers of their tables in `indexes`, have the same order. The last layer gives scales and then means.
    Reading a symbol beyond `most` in magnitude sets `wild`.

    Tables are looked up by a scale times `gain`. A symbol is the difference of a number to its mean, times
    `stretch`; it is decoded to the mean plus `step` times itself. If there is a `net`, of layers with 2,
    `hidden`, `hidden` and 1 numbers, its output for scale and gain first moves nonzero symbols towards 0.
    """

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("columns", "channels", "layers", "layer", "map")),
        *((name, ctypes.c_int64) for name in ("scales", "thresholds", "last", "bound")),
        *((name, ctypes.c_int64) for name in ("gain", "stretch", "step", "net", "hidden")),
        *((name, ctypes.c_int64) for name in ("symbols", "indexes", "decodes", "most", "wild")),
        *((name, ctypes.c_int64) for name in ("tables", "table_step", "lengths", "offsets")),
        *((name, ctypes.c_int64) for name in ("words", "count", "at")),
        ("state", ctypes.c_uint64),
    )


def panel() -> int:
    """How many outputs go through their chains together."""
    return VECTORS * processor().lanes(4)


@cache
def coder() -> int:
    """The address of a compiled `void run(CodedRow *)`."""
    return compiled(_Generator(processor().lanes(4)).module)


class _Generator:
    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.single = ir.FloatType()
        self.vector = ir.VectorType(self.single, lanes)
        self.module = ir.Module("raster")
        self.module.triple = triple()
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = ir.Function(self.module, signature, f"llvm.fma.v{lanes}f32")
        one = ir.FunctionType(self.vector, [self.vector])
        self.magnitude = ir.Function(self.module, one, f"llvm.fabs.v{lanes}f32")
        self.layer = self._layer()
        self.index = self._index()
        self.symbol = self._symbol()
        self.rounded = self._rounded()
        self.decoded = self._decoded()
        self._run()

    def _function(self, name: str, arguments: list[ir.Type]) -> tuple[ir.Function, ir.IRBuilder]:
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), name)
        function.linkage = "internal"
        return function, ir.IRBuilder(function.append_basic_block())

    def _fields(
        self, b: ir.IRBuilder, structure: ir.Value, kind: type[ctypes.Structure]
    ) -> dict[str, ir.Value]:
        return {name: b.load(b.gep(structure, [I64(i)])) for i, (name, *_) in enumerate(kind._fields_)}

    def _numbers(self, b: ir.IRBuilder, address: ir.Value) -> ir.Value:
        return b.inttoptr(address, self.single.as_pointer())

    def _read(self, b: ir.IRBuilder, numbers: ir.Value, at: ir.Value) -> ir.Value:
        value = b.load(b.bitcast(b.gep(numbers, [at]), self.vector.as_pointer()))
        value.align = 4
        return value

    def _write(self, b: ir.IRBuilder, value: ir.Value, numbers: ir.Value, at: ir.Value) -> None:
        place = b.gep(numbers, [at])
        b.store(value, b.bitcast(place, value.type.as_pointer())).align = 4

    def _single(self, b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
        return b.bitcast(b.trunc(bits, I32), self.single)

    def _splat(self, b: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
        vector = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [I32(0)] * self.lanes)
        return b.shuffle_vector(b.insert_element(vector, scalar, I32(0)), vector, zeros)

    def _layer(self) -> ir.Function:
        """One layer, of the inputs at x and at one column."""
        function, b = self._function("layer", [I64.as_pointer(), self.single.as_pointer(), I64])
        function.attributes.add("noinline")
        layer, x, column = function.args
        of = self._fields(b, layer, PositionLayer)
        w, start, y = (self._numbers(b, of[name]) for name in ("w", "start", "y"))
        addends = [self._numbers(b, of[name]) for name in ("bias", "shift")]
        start = b.gep(start, [b.mul(column, of["start_step"])])
        slope = self._splat(b, self._single(b, of["slope"]))
        zero = ir.Constant(self.vector, [self.single(0)] * self.lanes)
        width = VECTORS * self.lanes
        accumulators = [b.alloca(self.vector) for _ in range(VECTORS)]
        with counted(b, of["panels"]) as panel:
            first = b.mul(panel, I64(width))
            places = [b.add(first, I64(v * self.lanes)) for v in range(VECTORS)]
            for accumulator, at in zip(accumulators, places, strict=True):
                b.store(self._read(b, start, at), accumulator)
            taps = b.gep(w, [b.mul(first, of["inputs"])])
            with counted(b, of["inputs"]) as k:
                sample = self._splat(b, b.load(b.gep(x, [k])))
                tap = b.mul(k, I64(width))
                for v, accumulator in enumerate(accumulators):
                    weights = self._read(b, taps, b.add(tap, I64(v * self.lanes)))
                    b.store(b.call(self.fma, [sample, weights, b.load(accumulator)]), accumulator)
            for accumulator, at in zip(accumulators, places, strict=True):
                found = b.load(accumulator)
                for addend in addends:
                    found = b.fadd(found, self._read(b, addend, at))
                found = b.select(b.fcmp_ordered(">", found, zero), found, b.fmul(found, slope))
                self._write(b, found, y, at)
        b.ret_void()
        return function

    def _index(self) -> ir.Function:
        """For every channel of a position, the number of its table: the last, less the number of thresholds
        that its scale does not exceed."""
        function, b = self._function("index", [I64.as_pointer(), I32.as_pointer()])
        row, indexes = function.args
        of = self._fields(b, row, CodedRow)
        scales, thresholds = (self._numbers(b, of[name]) for name in ("scales", "thresholds"))
        last = self._splat(b, b.trunc(of["last"], I32))
        found = b.alloca(last.type)
        with counted(b, of["channels"], self.lanes) as channel:
            scale = self._scale(b, of, self._read(b, scales, channel))
            b.store(last, found)
            with counted(b, of["last"]) as i:
                under = b.fcmp_ordered("<=", scale, self._splat(b, b.load(b.gep(thresholds, [i]))))
                b.store(b.add(b.load(found), b.sext(under, last.type)), found)
            self._write(b, b.load(found), indexes, channel)
        b.ret_void()
        return function

    def _scale(self, b: ir.IRBuilder, of: Mapping[str, ir.Value], scale: ir.Value) -> ir.Value:
        gain, bound = (self._splat(b, self._single(b, of[name])) for name in ("gain", "bound"))
        scale = b.fmul(scale, gain)
        return b.select(b.fcmp_ordered("<", scale, bound), bound, scale)

    def _symbol(self) -> ir.Function:
        """The next symbol, by the table of this number: as CompressAI's `RansDecoder` reads it."""
        signature = ir.FunctionType(I32, [I64.as_pointer(), I32])
        function = ir.Function(self.module, signature, "symbol")
        function.linkage = "internal"
        row, index = function.args
        b = ir.IRBuilder(function.append_basic_block())
        low, size, result, raw = (b.alloca(I32) for _ in range(4))
        now = b.alloca(I64)
        names = [name for name, *_ in CodedRow._fields_]
        places = {name: b.gep(row, [I64(names.index(name))]) for name in ("state", "at", "wild")}
        of = self._fields(b, row, CodedRow)
        index = b.zext(index, I64)

        def looked_up(name: str) -> ir.Value:
            return b.load(b.gep(b.inttoptr(of[name], I32.as_pointer()), [index]))

        tables = b.inttoptr(of["tables"], I32.as_pointer())
        table = b.gep(tables, [b.mul(index, of["table_step"])])
        most = b.sub(looked_up("lengths"), I32(2))

        def renewed(state: ir.Value) -> ir.Value:
            """The state with another word, if it needs one."""
            before = b.block
            with b.if_then(b.icmp_unsigned("<", state, I64(1 << 31)), likely=False):
                at = b.load(places["at"])
                outer = b.block
                with b.if_then(b.icmp_signed("<", at, of["count"]), likely=True):
                    word = b.load(b.gep(b.inttoptr(of["words"], I32.as_pointer()), [at]))
                    inner = b.block
                read = b.phi(I32)
                read.add_incoming(I32(0), outer)
                read.add_incoming(word, inner)
                b.store(b.add(at, I64(1)), places["at"])
                longer = b.or_(b.shl(state, I64(WORD)), b.zext(read, I64))
                after = b.block
            either = b.phi(I64)
            either.add_incoming(state, before)
            either.add_incoming(longer, after)
            return either

        state = b.load(places["state"])
        share = b.and_(state, I64((1 << PRECISION) - 1))
        # the last entry that is at most the share: entries increase from 0
        b.store(I32(0), low)
        b.store(b.add(most, I32(1)), size)
        search, halve, found = (function.append_basic_block() for _ in range(3))
        b.branch(search)
        b.position_at_end(search)
        left = b.load(size)
        b.cbranch(b.icmp_signed(">", left, I32(1)), halve, found)
        b.position_at_end(halve)
        half = b.lshr(left, I32(1))
        middle = b.add(b.load(low), half)
        begins = b.load(b.gep(table, [b.zext(middle, I64)]))
        below = b.icmp_signed("<=", begins, b.trunc(share, I32))
        b.store(b.select(below, middle, b.load(low)), low)
        b.store(b.sub(left, half), size)
        b.branch(search)
        b.position_at_end(found)
        value = b.load(low)
        begins = b.zext(b.load(b.gep(table, [b.zext(value, I64)])), I64)
        ends = b.zext(b.load(b.gep(table, [b.zext(b.add(value, I32(1)), I64)])), I64)
        kept = b.mul(b.sub(ends, begins), b.lshr(state, I64(PRECISION)))
        state = renewed(b.sub(b.add(kept, share), begins))
        b.store(value, result)
        b.store(state, now)

        def nibble() -> ir.Value:
            state = b.load(now)
            b.store(renewed(b.lshr(state, I64(NIBBLE))), now)
            return b.trunc(b.and_(state, I64((1 << NIBBLE) - 1)), I32)

        with b.if_then(b.icmp_signed("==", value, most), likely=False):
            nibbles = nibble()
            with b.if_else(b.icmp_signed(">", nibbles, I32(MOST_NIBBLES)), likely=False) as (wild, told):
                with wild:
                    b.store(I64(1), places["wild"])
                with told:
                    b.store(I32(0), raw)
                    with counted(b, b.zext(nibbles, I64)) as i:
                        shift = b.mul(b.trunc(i, I32), I32(NIBBLE))
                        b.store(b.or_(b.load(raw), b.shl(nibble(), shift)), raw)
                    whole = b.ashr(b.load(raw), I32(1))
                    negative = b.trunc(b.load(raw), ir.IntType(1))
                    b.store(b.select(negative, b.not_(whole), b.add(whole, most)), result)
        b.store(b.load(now), places["state"])
        value = b.add(b.load(result), looked_up("offsets"))
        limit = b.trunc(of["most"], I32)
        outside = b.or_(b.icmp_signed(">", value, limit), b.icmp_signed("<", value, b.neg(limit)))
        with b.if_then(outside, likely=False):
            b.store(I64(1), places["wild"])
        b.ret(value)
        return function

    def _rounded(self) -> ir.Function:
        """The symbol of a number and its mean, or the least integer if the coder has none."""
        signature = ir.FunctionType(I32, [self.single, self.single, self.single, I64])
        function = ir.Function(self.module, signature, "rounded")
        function.linkage = "internal"
        value, mean, stretch, most = function.args
        b = ir.IRBuilder(function.append_basic_block())
        one = ir.FunctionType(self.single, [self.single])
        to_integer, magnitude = (
            ir.Function(self.module, one, f"llvm.{name}.f32") for name in ("rint", "fabs")
        )
        rounded = b.call(to_integer, [b.fmul(b.fsub(value, mean), stretch)])
        inside = b.fcmp_ordered("<=", b.call(magnitude, [rounded]), b.sitofp(most, self.single))
        b.ret(b.fptosi(b.select(inside, rounded, self.single(-(2.0**31))), I32))
        return function

    def _decoded(self) -> ir.Function:
        """The decoded numbers of a position, replacing its scales."""
        function, b = self._function("decoded", [I64.as_pointer(), I32.as_pointer()])
        row, symbols = function.args
        of = self._fields(b, row, CodedRow)
        zero = ir.Constant(self.vector, [self.single(0)] * self.lanes)
        one = ir.Constant(self.vector, [self.single(1)] * self.lanes)
        integers = ir.VectorType(I32, self.lanes).as_pointer()
        scales, net = (self._numbers(b, of[name]) for name in ("scales", "net"))
        means = b.gep(scales, [of["channels"]])
        step, gain = (self._splat(b, self._single(b, of[name])) for name in ("step", "gain"))
        two, hidden = I64(2), of["hidden"]
        read, made = (b.alloca(self.vector, MOST_HIDDEN) for _ in range(2))
        weights, found = b.alloca(net.type), b.alloca(self.vector)

        def layer(inputs: ir.Value, outputs: ir.Value, x: ir.Value, y: ir.Value, rectified: bool) -> None:
            """By the next weights, (outputs, inputs), followed by biases."""
            taps = b.load(weights)
            biases = b.gep(taps, [b.mul(inputs, outputs)])
            with counted(b, outputs) as o:
                b.store(zero, found)
                with counted(b, inputs) as i:
                    weight = self._splat(b, b.load(b.gep(taps, [b.add(b.mul(o, inputs), i)])))
                    b.store(b.call(self.fma, [b.load(b.gep(x, [i])), weight, b.load(found)]), found)
                value = b.fadd(b.load(found), self._splat(b, b.load(b.gep(biases, [o]))))
                if rectified:
                    value = b.select(b.fcmp_ordered("<", value, zero), zero, value)
                b.store(value, b.gep(y, [o]))
            b.store(b.gep(biases, [outputs]), weights)

        with counted(b, of["channels"], self.lanes) as channel:
            stored = b.load(b.bitcast(b.gep(symbols, [channel]), integers))
            stored.align = 4
            symbol = b.sitofp(stored, self.vector)
            b.store(zero, made)
            with b.if_then(b.icmp_signed(">", hidden, I64(0))):
                b.store(net, weights)
                b.store(self._scale(b, of, self._read(b, scales, channel)), read)
                b.store(gain, b.gep(read, [I64(1)]))
                layer(two, hidden, read, made, True)
                layer(hidden, hidden, made, read, True)
                layer(hidden, I64(1), read, made, False)
            sign = b.select(b.fcmp_ordered(">", symbol, zero), one, zero)
            sign = b.select(b.fcmp_ordered("<", symbol, zero), b.fneg(one), sign)
            nearer = b.select(b.fcmp_ordered("==", symbol, zero), zero, b.load(made))
            above = b.fmul(sign, b.fsub(b.call(self.magnitude, [symbol]), nearer))
            self._write(b, b.fadd(b.fmul(above, step), self._read(b, means, channel)), scales, channel)
        b.ret_void()
        return function

    def _run(self) -> None:
        """For every position its layers in order, its symbols, and their decoded numbers."""
        function, b = self._function("run", [I64.as_pointer()])
        function.linkage = "external"
        row = function.args[0]
        of = self._fields(b, row, CodedRow)
        map, scales = (self._numbers(b, of[name]) for name in ("map", "scales"))
        means = b.gep(scales, [of["channels"]])
        symbols, indexes = (b.inttoptr(of[name], I32.as_pointer()) for name in ("symbols", "indexes"))
        first = b.inttoptr(of["layer"], I64.as_pointer())
        inputs = b.alloca(self.single.as_pointer())
        found = b.alloca(I32)
        left = b.neg(b.load(first))
        decodes = b.icmp_signed("!=", of["decodes"], I64(0))
        stretch = self._single(b, of["stretch"])
        with counted(b, of["columns"]) as column:
            before = b.mul(column, of["channels"])
            here, tables, coded = (b.gep(each, [before]) for each in (map, indexes, symbols))
            b.store(b.gep(here, [left]), inputs)
            with counted(b, of["layers"]) as i:
                layer = b.gep(first, [b.mul(i, I64(len(PositionLayer._fields_)))])
                b.call(self.layer, [layer, b.load(inputs), column])
                b.store(self._numbers(b, self._fields(b, layer, PositionLayer)["y"]), inputs)
            b.call(self.index, [row, tables])
            with counted(b, of["channels"]) as channel:
                with b.if_else(decodes) as (read, round):
                    with read:
                        b.store(b.call(self.symbol, [row, b.load(b.gep(tables, [channel]))]), found)
                    with round:
                        value, mean = (b.load(b.gep(each, [channel])) for each in (here, means))
                        b.store(b.call(self.rounded, [value, mean, stretch, of["most"]]), found)
                b.store(b.load(found), b.gep(coded, [channel]))
            b.call(self.decoded, [row, coded])
            with counted(b, of["channels"]) as channel:
                b.store(b.load(b.gep(scales, [channel])), b.gep(here, [channel]))
        b.ret_void()
