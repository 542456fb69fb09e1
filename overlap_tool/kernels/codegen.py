"""Machine code for the canonical chain, generated with LLVM for the local processor.

A tile of `pixels x vectors` outputs is kept in registers while the taps are processed in order. Every output
is a lane of its own: a chain of fused multiply-adds independent of its neighbours, so its bits cannot depend
on the shape, the position or the number of threads. If the weights of a chain would not fit into the cache,
the accumulators are kept in the output tensor meanwhile, which changes no bit either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm
import llvmlite.ir as ir

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
POINTER = ir.IntType(8).as_pointer()

BLOCK = 48
"""Output pixels of a row computed in one go: weights are fetched from the outer caches once for each."""


LINE = 64
"""The size of a cache line on most processors, in bytes."""


@dataclass(frozen=True)
class Processor:
    """What the code generator needs to know about a processor."""

    vector_bytes: int
    registers: int

    def lanes(self, itemsize: int) -> int:
        return self.vector_bytes // itemsize

    @property
    def vectors(self) -> int:
        """The widest panel of output channels, in vectors."""
        return 4 if self.registers >= 32 else 2

    def pixels(self, vectors: int) -> int:
        """How many pixels fit into the registers, beside a panel of weights and one sample."""
        return min(8, (self.registers - vectors - 1) // vectors)


@cache
def processor() -> Processor:
    try:
        features = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM does not support this processor
        return Processor(16, 16)
    if features.get("avx512f"):
        return Processor(64, 32)
    if features.get("avx"):
        return Processor(32, 16)
    return Processor(16, 32 if features.get("neon") else 16)


FIELDS = (
    *("next", "items", "groups", "panels", "at_once", "images", "rows", "columns"),
    *("x", "x_image", "x_group", "x_row", "x_pixel"),
    *("outer", "outer_stride", "inner", "inner_stride", "run", "outer_at_once"),
    *("w", "w_group", "w_panel", "w_outer"),
    *("bias", "bias_group", "panel_channels", "last_vectors", "last_lanes"),
    *("y", "y_image", "y_group", "y_row", "y_pixel"),
    "finish",
    *("other", "other_image", "other_row", "other_pixel"),
    *("another", "another_image", "another_row", "another_pixel"),
)
"""A convolution as the generated code reads it, 64 bits each. Strides count numbers, not bytes.

The taps of an output are `outer` x `inner` runs of `run` adjacent numbers. Work is divided into items, of
which every thread takes the next until none is left: `at_once` panels of output channels, either all or one
(so that threads share weights), and of these row after row in blocks of `BLOCK` pixels. `finish` is code that
is called for every block of outputs while they are in the cache, with the same pixels and channels of `other`
and `another`, and replaces them by the final values; it may be zero, and so may `bias`.
"""


@cache
def kernel(machine: Processor, itemsize: int) -> int:
    """The address of a compiled `void run(int64_t *)`, which takes `FIELDS`, for numbers of 4 or 8 bytes."""
    return compiled(DenseGenerator(machine, itemsize).module)


def triple() -> str:
    """The target triple of the local processor and system."""
    return llvm.get_process_triple()


def compiled(module: ir.Module) -> int:
    """The address of a module's function `run`, compiled for the local processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), opt=3, jit=True
    )
    parsed = llvm.parse_assembly(str(module))
    # the loops are written by hand: unrolling them would only slow compilation
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = tuning.loop_vectorization = tuning.slp_vectorization = False
    llvm.create_pass_builder(target, tuning).getModulePassManager().run(
        parsed, llvm.create_pass_builder(target, tuning)
    )
    engine = llvm.create_mcjit_compiler(parsed, target)
    engine.finalize_object()
    _engines.append(engine)
    return engine.get_function_address("run")


_engines: list[object] = []
"""Compiled code lives as long as its engine."""


def _features() -> str:
    features = llvm.get_host_cpu_features()
    features["prefer-256-bit"] = False  # otherwise the widest vectors would be split
    return features.flatten()


class ChainGenerator:
    """A module that computes with vectors of numbers of one size."""

    def __init__(self, machine: Processor, itemsize: int) -> None:
        self.machine = machine
        self.lanes = machine.lanes(itemsize)
        self.number = ir.FloatType() if itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.number, self.lanes)
        self.module = ir.Module("chain")
        self.module.triple = triple()
        kind = f"v{self.lanes}f{8 * itemsize}"
        mask = ir.VectorType(I1, self.lanes)
        place = self.vector.as_pointer()
        self.fma = self._intrinsic(f"llvm.fma.{kind}", self.vector, [self.vector] * 3)
        self.load = self._intrinsic(
            f"llvm.masked.load.{kind}.p0", self.vector, [place, I32, mask, self.vector]
        )
        self.store = self._intrinsic(
            f"llvm.masked.store.{kind}.p0", ir.VoidType(), [self.vector, place, I32, mask]
        )
        self.prefetch = self._intrinsic("llvm.prefetch.p0", ir.VoidType(), [POINTER, I32, I32, I32])
        self.align = itemsize
        self.zero = ir.Constant(self.vector, [self.number(0)] * self.lanes)

    def _intrinsic(self, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
        return ir.Function(self.module, ir.FunctionType(result, arguments), name)

    def _internal(self, name: str, addresses: int, integers: int) -> ir.Function:
        kinds = [self.number.as_pointer()] * addresses + [I64] * integers
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        function.linkage = "internal"
        return function

    def _first(self, b: ir.IRBuilder, count: ir.Value) -> ir.Value:
        """The mask of so many lanes."""
        lanes = ir.Constant(ir.VectorType(I64, self.lanes), [I64(i) for i in range(self.lanes)])
        return b.icmp_signed("<", lanes, self._splat(b, count, I64))

    def _whole(self, b: ir.IRBuilder, at: ir.Value) -> ir.Value:
        """A whole vector."""
        value = b.load(b.bitcast(at, self.vector.as_pointer()))
        value.align = self.align
        return value

    def _zeros(self) -> ir.GlobalVariable:
        """The bias of a panel without one."""
        kind = ir.ArrayType(self.number, self.machine.vectors * self.lanes)
        zeros = ir.GlobalVariable(self.module, kind, "zeros")
        zeros.initializer, zeros.global_constant, zeros.linkage = ir.Constant(kind, None), True, "internal"
        return zeros

    def _splat(self, b: ir.IRBuilder, scalar: ir.Value, kind: ir.Type) -> ir.Value:
        vector = ir.Constant(ir.VectorType(kind, self.lanes), ir.Undefined)
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [I32(0)] * self.lanes)
        return b.shuffle_vector(b.insert_element(vector, scalar, I32(0)), vector, zeros)

    def _finished(
        self, b: ir.IRBuilder, finish: ir.Value, lines: Sequence[ir.Value], rest: Sequence[ir.Value]
    ) -> None:
        """Calls the code that replaces outputs by the final values."""
        kind = ir.FunctionType(ir.VoidType(), [self.number.as_pointer()] * 3 + [I64] * 5)
        b.call(b.inttoptr(finish, kind.as_pointer()), [*lines, *rest])


class DenseGenerator(ChainGenerator):
    """Layers that mix channels: a function per shape of tile, and `run`, which divides work."""

    def __init__(self, machine: Processor, itemsize: int) -> None:
        super().__init__(machine, itemsize)
        self.blocks = {vectors: self._block(vectors) for vectors in range(1, machine.vectors + 1)}
        self._run()

    def _tile(self, pixels: int, vectors: int) -> ir.Function:
        """A tile of outputs: `pixels` neighbours in a row, `vectors` of channels each.

        acc = 0; for every run of taps, for every tap: acc = fma(x, w, acc); y = acc + bias
        """
        function = self._internal(f"tile_{pixels}_{vectors}", 4, 10)
        function.attributes.add("noinline")
        x, w, y, bias, *rest = function.args
        outer, outer_stride, inner, inner_stride, run, x_pixel, y_pixel, last_lanes, first, last = rest
        b = ir.IRBuilder(function.append_basic_block())
        every = ir.Constant(ir.VectorType(I1, self.lanes), [1] * self.lanes)
        some = self._first(b, last_lanes)
        tile = [(m, v) for m in range(pixels) for v in range(vectors)]
        accumulators = {mv: b.alloca(self.vector) for mv in tile}

        def channels(at: ir.Value, v: int) -> ir.Value:
            return b.bitcast(b.gep(at, [I64(v * self.lanes)]), self.vector.as_pointer())

        def lanes_of(v: int) -> ir.Value:
            return some if v == vectors - 1 else every

        def read(at: ir.Value, v: int) -> ir.Value:
            return b.call(self.load, [channels(at, v), I32(self.align), lanes_of(v), self.zero])

        outputs = [b.gep(y, [b.mul(I64(m), y_pixel)]) for m in range(pixels)]
        with b.if_else(b.trunc(first, I1)) as (begin, resume):
            with begin:
                for mv in tile:
                    b.store(self.zero, accumulators[mv])
            with resume:
                for m, v in tile:
                    b.store(read(outputs[m], v), accumulators[m, v])
        weights = b.alloca(w.type)
        b.store(w, weights)
        with counted(b, outer) as o, counted(b, inner) as n:
            start = b.gep(x, [b.add(b.mul(o, outer_stride), b.mul(n, inner_stride))])
            samples = [b.gep(start, [b.mul(I64(m), x_pixel)]) for m in range(pixels)]
            taps = b.load(weights)
            with counted(b, run) as k:
                tap = b.gep(taps, [b.mul(k, I64(vectors * self.lanes))])
                # weights are padded to whole vectors
                panel = [self._whole(b, b.gep(tap, [I64(v * self.lanes)])) for v in range(vectors)]
                for m in range(pixels):
                    sample = self._splat(b, b.load(b.gep(samples[m], [k])), self.number)
                    for v in range(vectors):
                        chain = b.call(self.fma, [sample, panel[v], b.load(accumulators[m, v])])
                        b.store(chain, accumulators[m, v])
            b.store(b.gep(taps, [b.mul(run, I64(vectors * self.lanes))]), weights)
        with b.if_then(b.trunc(last, I1)):
            for v in range(vectors):
                addend = read(bias, v)
                for m in range(pixels):
                    b.store(b.fadd(b.load(accumulators[m, v]), addend), accumulators[m, v])
        written = {mv: (b.load(accumulators[mv]), channels(outputs[mv[0]], mv[1])) for mv in tile}
        last_ones = [written.pop((m, vectors - 1)) for m in range(pixels)]
        for value, place in written.values():
            b.store(value, place).align = self.align
        with b.if_else(b.icmp_signed("==", last_lanes, I64(self.lanes))) as (all_lanes, some_lanes):
            with all_lanes:  # masks are slow on some processors
                for value, place in last_ones:
                    b.store(value, place).align = self.align
            with some_lanes:
                for value, place in last_ones:
                    b.call(self.store, [value, place, I32(self.align), some])
        b.ret_void()
        return function

    def _block(self, vectors: int) -> ir.Function:
        """Up to `BLOCK` adjacent pixels of one panel: tiles of the full size, then one for the rest."""
        most = self.machine.pixels(vectors)
        tiles = {pixels: self._tile(pixels, vectors) for pixels in range(1, most + 1)}
        function = self._internal(f"block_{vectors}", 4, 11)
        x, w, y, bias, count, *taps = function.args
        x_pixel, y_pixel = taps[5], taps[6]
        b = ir.IRBuilder(function.append_basic_block())

        def tile(pixels: int, at: ir.Value) -> None:
            place = b.gep(x, [b.mul(at, x_pixel)]), w, b.gep(y, [b.mul(at, y_pixel)]), bias
            b.call(tiles[pixels], [*place, *taps])

        whole = b.mul(b.udiv(count, I64(most)), I64(most))
        with counted(b, whole, step=most) as at:
            tile(most, at)
        done = function.append_basic_block()
        rest = b.switch(b.sub(count, whole), done)
        for pixels in range(1, most):
            case = function.append_basic_block()
            rest.add_case(I64(pixels), case)
            b.position_at_end(case)
            tile(pixels, whole)
            b.branch(done)
        b.position_at_end(done)
        b.ret_void()
        return function

    def _run(self) -> None:
        """Takes item after item, from a counter that all threads share."""
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), "run")
        b = ir.IRBuilder(function.append_basic_block())
        counter = b.bitcast(function.args[0], I64.as_pointer())
        task = {name: b.load(b.gep(counter, [I64(i)])) for i, name in enumerate(FIELDS)}
        blocks = b.udiv(b.add(task["columns"], I64(BLOCK - 1)), I64(BLOCK))
        with taken(b, counter, task["items"]) as item:

            def split(number: ir.Value, name: ir.Value) -> tuple[ir.Value, ir.Value]:
                return b.udiv(number, name), b.urem(number, name)

            item, block = split(item, blocks)
            item, row = split(item, task["rows"])
            item, image = split(item, task["images"])
            group, turn = split(item, b.udiv(task["panels"], task["at_once"]))

            def at(name: str, offsets: Sequence[tuple[ir.Value, ir.Value]]) -> ir.Value:
                start = b.inttoptr(task[name], self.number.as_pointer())
                for index, stride in offsets:
                    start = b.gep(start, [b.mul(index, stride)])
                return start

            column = b.mul(block, I64(BLOCK))
            zeros = b.bitcast(self._zeros(), self.number.as_pointer())
            with counted(b, task["at_once"]) as n:
                panel = b.add(b.mul(turn, task["at_once"]), n)
                channel = b.mul(panel, task["panel_channels"])
                place = ((image, "image"), (group, "group"), (row, "row"), (column, "pixel"))
                x = at("x", [(index, task[f"x_{name}"]) for index, name in place])
                y = b.gep(at("y", [(index, task[f"y_{name}"]) for index, name in place]), [channel])
                w = at("w", [(group, task["w_group"]), (panel, task["w_panel"])])
                bias = b.gep(at("bias", [(group, task["bias_group"])]), [channel])
                bias = b.select(b.icmp_signed("==", task["bias"], I64(0)), zeros, bias)
                left = b.sub(task["columns"], column)
                count = b.select(b.icmp_signed("<", left, I64(BLOCK)), left, I64(BLOCK))
                is_last = b.icmp_signed("==", panel, b.sub(task["panels"], I64(1)))
                vectors = b.select(is_last, task["last_vectors"], I64(self.machine.vectors))
                lanes = b.select(is_last, task["last_lanes"], I64(self.lanes))
                channels = b.add(b.mul(b.sub(vectors, I64(1)), I64(self.lanes)), lanes)
                others = []
                for name in ("other", "another"):
                    strides = {key: task[f"{name}_{key}"] for key in ("image", "row", "pixel")}
                    strides["group"] = task["y_group"]
                    others.append(b.gep(at(name, [(index, strides[key]) for index, key in place]), [channel]))
                    with b.if_then(b.icmp_signed("!=", task[name], I64(0))):
                        self._fetch(b, others[-1], count, task[f"{name}_pixel"], channels, False)
                self._fetch(b, y, count, task["y_pixel"], channels, True)
                w_outer = b.mul(task["w_outer"], vectors)
                # weights in portions that fit the cache, with accumulators kept in the output meanwhile
                with counted(b, task["outer"], step=task["outer_at_once"]) as o:
                    left = b.sub(task["outer"], o)
                    last = b.icmp_signed("<=", left, task["outer_at_once"])
                    outer = b.select(last, left, task["outer_at_once"])
                    x_here = b.gep(x, [b.mul(o, task["outer_stride"])])
                    w_here = b.gep(w, [b.mul(o, w_outer)])
                    first = b.zext(b.icmp_signed("==", o, I64(0)), I64)
                    taps = [outer, *(task[name] for name in ("outer_stride", "inner", "inner_stride", "run"))]
                    taps += [task["x_pixel"], task["y_pixel"], lanes, first, b.zext(last, I64)]
                    after = function.append_basic_block()
                    choice = b.switch(vectors, after)
                    for width, tiles in self.blocks.items():
                        case = function.append_basic_block()
                        choice.add_case(I64(width), case)
                        b.position_at_end(case)
                        b.call(tiles, [x_here, w_here, y, bias, count, *taps])
                        b.branch(after)
                    b.position_at_end(after)
                with b.if_then(b.icmp_signed("!=", task["finish"], I64(0)), likely=False):
                    steps = (task[f"{name}_pixel"] for name in ("y", "other", "another"))
                    self._finished(b, task["finish"], [y, *others], [count, channels, *steps])
        b.ret_void()

    def _fetch(
        self,
        b: ir.IRBuilder,
        start: ir.Value,
        pixels: ir.Value,
        step: ir.Value,
        channels: ir.Value,
        written: bool,
    ) -> None:
        """Prefetch what is needed after the chain."""
        with counted(b, pixels) as pixel, counted(b, channels, step=LINE // self.align) as channel:
            place = b.gep(start, [b.add(b.mul(pixel, step), channel)])
            b.call(self.prefetch, [b.bitcast(place, POINTER), I32(int(written)), I32(2), I32(1)])


@contextmanager
def taken(b: ir.IRBuilder, counter: ir.Value, items: ir.Value) -> Iterator[ir.Value]:
    """Go through the items that no other thread has taken: all threads count them together."""
    take, work, done = (b.append_basic_block() for _ in range(3))
    b.branch(take)
    b.position_at_end(take)
    item = b.atomic_rmw("add", counter, I64(1), "monotonic")
    b.cbranch(b.icmp_signed("<", item, items), work, done)
    b.position_at_end(work)
    yield item
    b.branch(take)
    b.position_at_end(done)


@contextmanager
def counted(b: ir.IRBuilder, stop: ir.Value, step: int | ir.Value = 1) -> Iterator[ir.Value]:
    """for i in range(0, stop, step)"""
    head, body, end = (b.append_basic_block() for _ in range(3))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(I64)
    i.add_incoming(I64(0), before)
    b.cbranch(b.icmp_signed("<", i, stop), body, end)
    b.position_at_end(body)
    yield i
    i.add_incoming(b.add(i, I64(step) if isinstance(step, int) else step), b.block)
    b.branch(head)
    b.position_at_end(end)
