"""Machine code for the canonical chain where every channel is a group of its own.

Lanes are channels. A tile of `rows x pixels` outputs is kept in registers while the rows of the input that it
reads are processed in order, and the taps of each across. A sample is loaded once for all rows of the tile,
each of which has a tap of its own for it: so it is multiply-adds that take time, not loads. Every output gets
its taps in the order of the chain, since that is the order of the rows that it reads.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import llvmlite.ir as ir

from overlap_tool.kernels.codegen import (
    BLOCK,
    I32,
    I64,
    POINTER,
    ChainGenerator,
    Processor,
    compiled,
    counted,
    taken,
)

FIELDS = (
    *("next", "images", "rows", "columns", "channels", "at_once"),
    *("x", "x_image", "x_row", "x_pixel"),
    *("height", "height_stride", "width", "width_stride"),
    *("rows_apart", "taps_apart", "w", "bias"),
    *("y", "y_image", "y_row", "y_pixel"),
    "finish",
    *("other", "other_image", "other_row", "other_pixel"),
    *("another", "another_image", "another_row", "another_pixel"),
)
"""A convolution as the generated code reads it, 64 bits each. Strides count numbers, not bytes.

The rows of a tile are `rows_apart`, which is more than 1 if taps are dilated: they read the same rows of the
input, one by the tap that is `taps_apart` from the next one's. Work is divided into items, of which every
thread takes the next until none is left: `at_once` vectors of channels, either all or one, and of these the
rows of a tile in blocks of `BLOCK` pixels. `finish` and what follows are as in `codegen.FIELDS`.
"""


def tile_of(machine: Processor) -> tuple[int, int]:
    """Rows and pixels of a tile: they fit into the registers, beside a tap for each row and one sample."""
    rows = 3 if machine.registers >= 32 else 2
    return rows, min(8, (machine.registers - rows - 1) // rows)


@cache
def depthwise_kernel(machine: Processor, itemsize: int) -> int:
    """The address of a compiled `void run(int64_t *)`, which takes `FIELDS`, for numbers of 4 or 8 bytes."""
    return compiled(DepthwiseGenerator(machine, itemsize).module)


class DepthwiseGenerator(ChainGenerator):
    """A function per width of tile, for whole vectors of channels or not, and `run`, which divides work."""

    def __init__(self, machine: Processor, itemsize: int) -> None:
        super().__init__(machine, itemsize)
        self.rows, self.pixels = tile_of(machine)
        self.tiles = {
            (pixels, whole): self._tile(pixels, whole)
            for whole in (True, False)
            for pixels in range(1, self.pixels + 1)
        }
        self._run()

    def _tile(self, pixels: int, whole: bool) -> ir.Function:
        """A tile of outputs: up to `self.rows` rows, `pixels` neighbours in each, a vector of channels."""
        function = self._internal(f"tile_{pixels}_{'whole' if whole else 'part'}", 4, 10)
        function.attributes.add("noinline")
        x, w, y, bias, *rest = function.args
        lanes, rows, x_pixel, y_row, y_pixel, height, height_stride, width, width_stride, apart = rest
        b = ir.IRBuilder(function.append_basic_block())
        some = self._first(b, lanes)
        tile = [[b.alloca(self.vector) for _ in range(pixels)] for _ in range(self.rows)]
        for accumulator in (each for row in tile for each in row):
            b.store(self.zero, accumulator)

        def read(at: ir.Value) -> ir.Value:
            if whole:
                return self._whole(b, at)
            place = b.bitcast(at, self.vector.as_pointer())
            return b.call(self.load, [place, I32(self.align), some, self.zero])

        def fetch(at: ir.Value, written: bool) -> None:
            b.call(self.prefetch, [b.bitcast(at, POINTER), I32(int(written)), I32(3), I32(1)])

        # the rows of the tile that read a row of the input are those from `first` to `stop`
        first, stop = b.alloca(I64), b.alloca(I64)
        b.store(I64(0), first)
        b.store(I64(0), stop)
        taps_of_row = b.mul(width, I64(self.lanes))
        with counted(b, b.add(b.mul(b.sub(rows, I64(1)), apart), height)) as t:
            begin, end = b.load(first), b.load(stop)
            is_done = b.icmp_signed("<=", b.add(b.mul(begin, apart), height), t)
            begins = b.and_(b.icmp_signed("<", end, rows), b.icmp_signed("<=", b.mul(end, apart), t))
            begin, end = (b.add(n, b.zext(more, I64)) for n, more in ((begin, is_done), (end, begins)))
            b.store(begin, first)
            b.store(end, stop)
            start = b.gep(x, [b.mul(t, height_stride)])
            samples = [b.gep(start, [b.mul(I64(c), x_pixel)]) for c in range(pixels)]
            beyond = b.add(b.mul(I64(pixels), x_pixel), b.mul(b.sub(width, I64(1)), width_stride))
            for sample in samples:  # of the next tile
                fetch(b.gep(sample, [beyond]), False)
            taps = b.gep(w, [b.mul(b.sub(t, b.mul(begin, apart)), taps_of_row)])
            after = function.append_basic_block()
            choice = b.switch(b.add(b.mul(begin, I64(self.rows + 1)), end), after)
            for m, n in combinations(range(self.rows + 1), 2):
                case = function.append_basic_block()
                choice.add_case(I64(m * (self.rows + 1) + n), case)
                b.position_at_end(case)
                back = b.mul(apart, taps_of_row)
                lines = [b.gep(taps, [b.mul(I64(-r), back)]) for r in range(n - m)]
                with counted(b, width) as k:
                    factors = [self._whole(b, b.gep(line, [b.mul(k, I64(self.lanes))])) for line in lines]
                    for c, sample in enumerate(samples):
                        value = read(b.gep(sample, [b.mul(k, width_stride)]))
                        for factor, row in zip(factors, tile[m:n], strict=True):
                            b.store(b.call(self.fma, [value, factor, b.load(row[c])]), row[c])
                b.branch(after)
            b.position_at_end(after)
        addend = read(bias)
        for r, row in enumerate(tile):
            with b.if_then(b.icmp_signed("<", I64(r), rows)):
                for c, accumulator in enumerate(row):
                    at = b.gep(y, [b.add(b.mul(I64(r), y_row), b.mul(I64(c), y_pixel))])
                    fetch(b.gep(at, [b.mul(I64(pixels), y_pixel)]), True)
                    value, place = (
                        b.fadd(b.load(accumulator), addend),
                        b.bitcast(at, self.vector.as_pointer()),
                    )
                    if whole:  # masks are slow on some processors
                        b.store(value, place).align = self.align
                    else:
                        b.call(self.store, [value, place, I32(self.align), some])
        b.ret_void()
        return function

    def _run(self) -> None:
        """Takes item after item, from a counter that all threads share."""
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), "run")
        b = ir.IRBuilder(function.append_basic_block())
        counter = b.bitcast(function.args[0], I64.as_pointer())
        task = {name: b.load(b.gep(counter, [I64(i)])) for i, name in enumerate(FIELDS)}
        apart, at_once = task["rows_apart"], b.mul(task["at_once"], I64(self.lanes))

        def parts(number: ir.Value, size: ir.Value) -> ir.Value:
            return b.udiv(b.add(number, b.sub(size, I64(1))), size)

        def part(number: ir.Value, start: ir.Value, most: ir.Value) -> ir.Value:
            left = b.sub(number, start)
            return b.select(b.icmp_signed("<", left, most), left, most)

        blocks = parts(task["columns"], I64(BLOCK))
        tall = b.mul(apart, I64(self.rows))
        tiles = b.mul(parts(task["rows"], tall), apart)
        items = b.mul(b.mul(parts(task["channels"], at_once), task["images"]), b.mul(tiles, blocks))
        zeros = b.bitcast(self._zeros(), self.number.as_pointer())
        with taken(b, counter, items) as item:

            def split(number: ir.Value, size: ir.Value) -> tuple[ir.Value, ir.Value]:
                return b.udiv(number, size), b.urem(number, size)

            item, block = split(item, blocks)
            item, tile = split(item, tiles)
            turn, image = split(item, task["images"])
            row, offset = split(tile, apart)
            row = b.add(b.mul(row, tall), offset)
            column, channel = b.mul(block, I64(BLOCK)), b.mul(turn, at_once)
            rows = parts(b.sub(task["rows"], row), apart)
            rows = b.select(b.icmp_signed("<", rows, I64(self.rows)), rows, I64(self.rows))
            count, channels = (
                part(task["columns"], column, I64(BLOCK)),
                part(task["channels"], channel, at_once),
            )

            def at(name: str) -> ir.Value:
                start = b.gep(b.inttoptr(task[name], self.number.as_pointer()), [channel])
                for index, stride in ((image, "image"), (row, "row"), (column, "pixel")):
                    start = b.gep(start, [b.mul(index, task[f"{name}_{stride}"])])
                return start

            with b.if_then(b.icmp_signed("<", row, task["rows"])):
                x, y, *others = map(at, ("x", "y", "other", "another"))
                w, bias = (b.inttoptr(task[name], self.number.as_pointer()) for name in ("w", "bias"))
                taps = b.mul(task["height"], task["width"])
                fixed = [task["x_pixel"], b.mul(task["y_row"], apart), task["y_pixel"], task["height"]]
                fixed += [task[name] for name in ("height_stride", "width", "width_stride", "taps_apart")]
                with counted(b, count, step=self.pixels) as p, counted(b, channels, step=self.lanes) as c:
                    lanes, pixels = part(channels, c, I64(self.lanes)), part(count, p, I64(self.pixels))
                    here, there = (
                        b.gep(start, [b.add(b.mul(p, task[f"{name}_pixel"]), c)])
                        for name, start in (("x", x), ("y", y))
                    )
                    of_all = b.add(channel, c)
                    addends = b.gep(bias, [of_all])
                    addends = b.select(b.icmp_signed("==", task["bias"], I64(0)), zeros, addends)
                    arguments = here, b.gep(w, [b.mul(of_all, taps)]), there, addends, lanes, rows, *fixed
                    whole = b.zext(b.icmp_signed("==", lanes, I64(self.lanes)), I64)
                    after = function.append_basic_block()
                    choice = b.switch(b.add(b.mul(pixels, I64(2)), whole), after)
                    for (width, of_whole), code in self.tiles.items():
                        case = function.append_basic_block()
                        choice.add_case(I64(2 * width + of_whole), case)
                        b.position_at_end(case)
                        b.call(code, arguments)
                        b.branch(after)
                    b.position_at_end(after)
                with b.if_then(b.icmp_signed("!=", task["finish"], I64(0)), likely=False):
                    names = "y", "other", "another"
                    steps = [task[f"{name}_pixel"] for name in names]
                    with counted(b, rows) as r:
                        offset = b.mul(r, apart)
                        lines = [
                            b.gep(start, [b.mul(offset, task[f"{name}_row"])])
                            for name, start in zip(names, (y, *others), strict=True)
                        ]
                        self._finished(b, task["finish"], lines, [count, channels, *steps])
        b.ret_void()
