"""Computes consecutive layers strip by strip of rows, so that each reads inputs that are still in a core's
cache.

Each launch gets its rows of a strip by its own arguments, with moved addresses and fewer rows. It computes
exactly what it would have computed for the whole, in the same order for every number.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from math import lcm
from typing import Any, NamedTuple

import llvmlite.ir as ir

from overlap_tool.kernels import codegen, cpu
from overlap_tool.kernels.arithmetic.tensors import has_contiguous_rows
from overlap_tool.kernels.codegen import I64, counted, taken
from overlap_tool.kernels.copying import Copied
from overlap_tool.kernels.form import NOTHING
from overlap_tool.kernels.recording import Entry, Lying, Pointwise, on_processor
from overlap_tool.kernels.threads import GeneratedCall
from overlap_tool.kernels.work import Convolution, Normalisation

FIELDS = "next", "strips", "members"
"""The arguments of generated code, 64 bits each, before the fields of each member."""

MEMBER = "function", "rows", "height", "words", "start"
"""A member: its code, its rows, its rows per strip, and the number and start of its argument's words."""

WORD = "value", "step", "each", "item"
"""A word of an argument. Either it advances by `step` per row before the strip; or it is the strip's number
of items, where a row has `each` units and an item has `item`."""


@dataclass(frozen=True)
class Strips:
    """CPU kernels, and how many rows of each form a strip."""

    works: tuple[Any, ...]
    heights: tuple[int, ...]

    def launch(self) -> GeneratedCall:
        calls = [work.launch() for work in self.works]
        start = len(FIELDS) + len(MEMBER) * len(calls)
        heads: list[int] = []
        words: list[int] = []
        places: list[int] = []
        strips = 0
        for call, height in zip(calls, self.heights, strict=True):
            rows = call.rows()
            assert rows is not None
            strips = max(strips, -(-rows.number // height))
            values = struct.unpack(f"{len(call.argument) // 8}q", call.argument)
            assert len(values) <= LONGEST
            first = start + len(words)
            heads += call.function, rows.number, height, len(values), first
            places += (first + len(WORD) * place for place in call.places)
            for at, value in enumerate(values):
                words += value, rows.steps.get(at, 0), *rows.shares.get(at, (0, 1))
        argument = struct.pack(f"{start + len(words)}q", 0, strips, len(calls), *heads, *words)
        tensors = tuple(chain.from_iterable(call.tensors for call in calls))
        return GeneratedCall(_code(), argument, tensors, places, strips, lambda: None)


LONGEST = 64
"""The most words of an argument."""


@cache
def _code() -> int:
    """Code that takes strips from a counter shared by all threads, and runs each strip's members in order."""
    module = ir.Module("strips")
    module.triple = codegen.triple()
    pointer = I64.as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer]), "run")
    b = ir.IRBuilder(function.append_basic_block())
    own = b.alloca(ir.ArrayType(I64, LONGEST))
    argument = b.gep(own, [I64(0), I64(0)])
    counter, strips, members = (b.gep(function.args[0], [I64(i)]) for i in range(len(FIELDS)))
    strips, members = b.load(strips), b.load(members)
    with taken(b, counter, strips) as strip:

        def fields(names: Sequence[str], start: ir.Value) -> list[ir.Value]:
            at = b.gep(function.args[0], [start])
            return [b.load(b.gep(at, [I64(i)])) for i in range(len(names))]

        with counted(b, members) as m:
            head = b.add(I64(len(FIELDS)), b.mul(m, I64(len(MEMBER))))
            code, rows, height, words, start = fields(MEMBER, head)
            first = b.mul(strip, height)
            left = b.sub(rows, first)
            n = b.select(b.icmp_signed("<", left, height), left, height)
            with b.if_then(b.icmp_signed(">", n, I64(0))):
                with counted(b, words) as at:
                    value, step, each, item = fields(WORD, b.add(start, b.mul(at, I64(len(WORD)))))
                    moved = b.add(value, b.mul(step, first))
                    share = b.udiv(b.add(b.mul(n, each), b.sub(item, I64(1))), item)
                    counts = b.icmp_signed(">", each, I64(0))
                    b.store(b.select(counts, share, moved), b.gep(argument, [at]))
                run = ir.FunctionType(ir.VoidType(), [pointer]).as_pointer()
                b.call(b.inttoptr(code, run), [argument])
    b.ret_void()
    return codegen.compiled(module)


CACHED_BYTES = 384 * 1024
"""The bytes that a strip reads and writes, most of which stay in a core's own cache."""

WEIGHT_BYTES = 448 * 1024
"""The most bytes of weights of all works after the first: every strip reads them again."""

WORTH_IT = 2 * 1024 * 1024
"""Bytes that all strips together read and write; below this, the caches hold them anyway."""

FEWEST = 128
"""The fewest outputs of a strip: below this, reading all weights per strip takes too long."""

ENOUGH = 8
"""The number of strips that threads can share well."""

MOST, FARTHEST = 8, 32
"""The most works in a strip, and how far behind the first they are searched for."""


class Parts(NamedTuple):
    """The parts of maps that a work reads and writes, beside its weights."""

    read: tuple[Lying, ...]
    written: Lying


def _parts(entry: Entry) -> Parts:
    work = entry.work
    if isinstance(work, Copied):
        return Parts(() if work.source is None else (work.source,), work.to)
    if isinstance(work, Normalisation):
        return Parts((work.x,), work.out)
    return Parts((work.x, *work.others) if isinstance(work, Convolution) else work.xs, work.out)


def in_strips(entries: list[Entry]) -> list[Entry]:
    """The same work, with the entries that can run strip by strip merged into one."""
    left, found = list(entries), []
    while left:
        members, heights = _together(left)
        if heights:
            works = Strips(tuple(each.work for each in members), heights)
            reads, writes = (
                [root for each in members for root in getattr(each, of)] for of in ("reads", "writes")
            )
            found.append(Entry(works, reads, writes))
        else:
            found += members
        left = [each for each in left if each not in members]
    return found


def _together(entries: list[Entry]) -> tuple[list[Entry], tuple[int, ...]]:
    """The first entry and those that can join it, with each one's rows per strip. Copies between them come
    after them."""
    first, *others = entries
    members, paces, passed, taken = [first], [0], [], 0
    if isinstance(first.work, Convolution | Normalisation) and on_processor(first.work.out.device):
        for entry in others[:FARTHEST]:
            if isinstance(entry.work, Copied):
                passed.append(entry)
                continue
            found, taken = _paces(entry, members, paces), taken + _bytes_of_weights(entry)
            if found is None or len(members) == MOST or taken > WEIGHT_BYTES:
                break
            if not all(_apart(entry, each) for each in passed):
                break
            members.append(entry)
            paces = found
    heights = _heights(members, paces) if all(paces) else ()
    return (members, heights) if heights else ([first], ())


def _bytes_of_weights(entry: Entry) -> int:
    if not isinstance(entry.work, Convolution):
        return 0
    values = entry.work.packed.values
    return int(values.numel() * values.element_size())


def _paces(entry: Entry, members: Sequence[Entry], paces: Sequence[int]) -> list[int] | None:
    """For each member, how many rows its readers advance per row of its own, once this entry is a member.

    None for a member that nothing reads yet; no result if the entry cannot join.
    """
    work, found = entry.work, list(paces)
    if not isinstance(work, Convolution | Pointwise | Normalisation):
        return None
    own, parts = _parts(entry), list(map(_parts, members))
    if any(_meet(own.written, read) for each in parts for read in each.read):
        return None
    if isinstance(work, Convolution) and not any(_meet(x, each.written) for x in own.read for each in parts):
        # or it reads only maps from before the strip, as the phases of a transposed convolution do
        alike = not any(paces) and all(own.written.strides == each.written.strides for each in parts)
        return [*found, 0] if alike and not any(_meet(own.written, each.written) for each in parts) else None
    if not _is_row_for_row(work) or any(_meet(own.written, each.written) for each in parts):
        return None
    for at, each in enumerate(parts):
        for read in own.read:
            if _meet(read, each.written):
                pace = _pace(each.written, read)
                if pace == 0 or found[at] not in (0, pace):
                    return None
                found[at] = pace
    return [*found, 1]


def _is_row_for_row(work: Convolution | Pointwise | Normalisation) -> bool:
    """Whether every row depends on the same row of all inputs."""
    if isinstance(work, Normalisation):
        return work.centre is None and work.scale is None
    if isinstance(work, Pointwise):  # of pieces of maps, or of a single map
        return has_contiguous_rows(work.out) or not work.is_flat
    return work.packed.shape[2] == 1 and work.form.stride[0] == 1 and work.form.padding == NOTHING


def _pace(written: Lying, read: Lying) -> int:
    """How many rows are read per row written of the same map, from the first on; 0 if that varies."""
    if read.strides[2] == 0 or not _same_images(written, read):  # one row is broadcast, or of other images
        return 0
    line = read.strides[2] * read.dtype.itemsize
    times, rest = divmod(written.strides[2], read.strides[2])
    whole = all(_within_lines(each, line) for each in (written, read))
    ahead = written.offset // line - read.offset // line
    return times if whole and not rest and 0 <= ahead < times else 0


def _same_images(written: Lying, read: Lying) -> bool:
    """Whether both have the same number of images, at the same distance."""
    number = written.shape[0]
    return number == read.shape[0] and (number == 1 or written.strides[0] == read.strides[0])


def _within_lines(part: Lying, line: int) -> bool:
    _, channels, _, columns = part.shape
    _, channel, _, pixel = part.strides
    longest = ((channels - 1) * channel + (columns - 1) * pixel + 1) * part.dtype.itemsize
    return part.offset % line + longest <= line


def _meet(one: Lying, other: Lying) -> bool:
    return one.root == other.root and not one.apart_from(other)


def _apart(one: Entry, other: Entry) -> bool:
    """Whether their order does not matter."""
    a, b = _parts(one), _parts(other)
    return not any(_meet(a.written, each) for each in (*b.read, b.written)) and not any(
        _meet(each, b.written) for each in a.read
    )


def _heights(members: Sequence[Entry], paces: Sequence[int]) -> tuple[int, ...]:
    """The rows of each in a strip; empty if strips gain nothing."""
    parts = list(map(_parts, members))
    touched = dict.fromkeys(each for part in parts for each in (*part.read, part.written))
    size = sum(each.numel() * each.dtype.itemsize for each in touched)
    rows = max(part.written.shape[2] * pace for part, pace in zip(parts, paces, strict=True))
    height = max(CACHED_BYTES * rows // size, -(-FEWEST // parts[-1].written.shape[3]))
    step = lcm(*paces, *(cpu.rows_at_once(each.work) for each in members))
    height = -(-height // step) * step
    if len(members) == 1 or size < WORTH_IT or height * ENOUGH > rows:
        return ()
    return tuple(height // pace for pace in paces)
