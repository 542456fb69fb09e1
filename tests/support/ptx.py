"""Runs a kernel's PTX on the CPU, to the bit, where there is no GPU.

All threads of some blocks go through the program together, as arrays of numpy. It knows the instructions that
kernels of ours are made of, and refuses any other by name: so what it runs holds no approximate operation, no
flushing of small numbers (`.ftz`) and no local memory. It is stricter than a GPU, and raises where a thread

- reads a register that was not written, or a predicate's other side of one;
- reads or writes outside of the buffers that it was given, or where the number or the vector of numbers that
  it takes may not begin;
- reads a word of shared memory that was never written, or that another thread has written since the last
  barrier, or that a copy is still on its way to; or writes one that another has read or written since then;
- waits at a barrier that not all threads of its block reach.

It counts how often each number of the output was written, so that a test can demand once. Threads that branch
apart are run the lowest address first, which brings them together again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overlap_tool.kernels.arithmetic.oracle import Oracle
from overlap_tool.kernels.emulation import fma_of_singles

Lanes = npt.NDArray[Any]
"""A value for every thread. Registers hold bits: unsigned integers of 32 or 64, or bool for predicates."""

LONGEST = 1_000_000
"""Instructions that a program may take: what goes on for longer has no end."""

FLOATS = {"f32": np.float32, "f64": np.float64}
FMA: dict[str, Callable[..., Lanes]] = {"f32": fma_of_singles, "f64": Oracle.fma}
COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
"""Comparisons that hold where an operand is no number."""


class PtxError(Exception):
    """The program did what no correct one does, or has an instruction that is not known here."""


@dataclass
class Buffer:
    """Memory that a program may touch: words of 32 bits."""

    start: int
    words: Lanes
    writable: bool
    writes: Lanes

    @classmethod
    def of(cls, tensor: Tensor, writable: bool = False) -> Buffer:
        """All of a tensor's storage."""
        storage = tensor.untyped_storage()
        words = torch.empty(0, dtype=torch.int32).set_(storage).numpy().view(np.uint32)  # type: ignore[call-overload]
        return cls(storage.data_ptr(), words, writable, np.zeros(len(words), np.int64))

    def counts(self, tensor: Tensor) -> Tensor:
        """How often each number of the tensor was written."""
        counts = torch.from_numpy(self.writes)[:: tensor.element_size() // 4]
        return counts.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@dataclass
class Memory:
    buffers: list[Buffer] = field(default_factory=list)

    def places(self, addresses: Lanes, size: int) -> list[tuple[Buffer, Lanes, Lanes]]:
        """The buffers that are meant, the lanes that mean each, and at which word."""
        if (addresses % np.uint64(size)).any():
            raise PtxError("an address that is not aligned")
        found, left = [], np.ones(len(addresses), bool)
        for buffer in self.buffers:
            end = np.uint64(buffer.start + 4 * len(buffer.words))
            inside = left & (addresses >= np.uint64(buffer.start)) & (addresses + np.uint64(size) <= end)
            if inside.any():
                at = (addresses[inside] - np.uint64(buffer.start)) // np.uint64(4)
                found.append((buffer, np.flatnonzero(inside), at.astype(np.int64)))
                left &= ~inside
        if left.any():
            raise PtxError(f"{left.sum()} threads at addresses in no buffer, as {addresses[left][0]:#x}")
        return found

    def load(self, addresses: Lanes, size: int) -> Lanes:
        """(lanes, words)"""
        values = np.empty((len(addresses), size // 4), np.uint32)
        for buffer, lanes, at in self.places(addresses, size):
            values[lanes] = buffer.words[at[:, None] + np.arange(size // 4)]
        return values

    def store(self, addresses: Lanes, values: Lanes) -> None:
        words = np.arange(values.shape[1])
        for buffer, lanes, at in self.places(addresses, values.shape[1] * 4):
            if not buffer.writable:
                raise PtxError("a store into memory that is only to be read")
            buffer.words[at[:, None] + words] = values[lanes]
            np.add.at(buffer.writes, at[:, None] + words, 1)


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[str, ...]
    predicate: str = ""
    negated: bool = False

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.predicate} " if self.predicate else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}"


class Program:
    """The only kernel of a module, whose only parameter is a structure."""

    def __init__(self, ptx: str) -> None:
        code = re.sub(r"//[^\n]*", "", ptx)
        entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\n\{(.*?)\n\}", code, re.S)
        threads = entry and re.search(r"\.maxntid\s+(\d+)", entry[3])
        if entry is None or threads is None:
            raise PtxError("no kernel of a known number of threads")
        self.threads = int(threads[1])
        self.parameter = entry[1] + "_param_0"
        self.parameter_bytes = int(re.search(r"_param_0\[(\d+)\]", entry[2])[1])  # type: ignore[index]
        self.tables = {
            name: np.array(list(map(int, values.split(","))), np.uint8)
            for name, values in re.findall(r"\.global \.align 8 \.b8 (\w+)\[\d+\] = \{(.*?)\};", code)
        }
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.shared: dict[str, int] = {}
        self.shared_bytes = 0
        for statement in re.split(r"[;\n]", re.sub(r"(\$\w+):", r"\1:\n", entry[4])):
            self._add(statement.replace("\t", " ").strip())

    def _add(self, statement: str) -> None:
        if shared := re.match(r"\.shared \.align 16 \.b8 (\w+)\[(\d+)\]", statement):
            self.shared[shared[1]] = self.shared_bytes
            self.shared_bytes += -(-int(shared[2]) // 16) * 16
        elif statement.endswith(":"):
            self.labels[statement[:-1]] = len(self.instructions)
        elif statement.startswith(".") and not statement.startswith((".reg ", ".pragma ")):
            raise PtxError(f"{statement}: neither registers nor shared memory")
        elif statement and not statement.startswith((".", "{", "}")):
            guard = re.match(r"@(!?)(%\w+)\s+", statement)
            opcode, _, rest = statement[guard.end() if guard else 0 :].partition(" ")
            operands = tuple(o.strip() for o in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest))
            predicate, negated = (guard[2], guard[1] == "!") if guard else ("", False)
            self.instructions.append(Instruction(opcode, operands, predicate, negated))

    def run(self, memory: Memory, parameters: bytes, grid: tuple[int, int], at_once: int = 4096) -> None:
        """All blocks of a grid, `at_once` threads at a time."""
        for table in self.tables.values():
            memory.buffers.append(
                Buffer(table.ctypes.data, table.view(np.uint32), False, np.zeros(len(table) // 4, np.int64))
            )
        if len(parameters) != self.parameter_bytes:
            raise PtxError(f"{len(parameters)} bytes of parameters, not {self.parameter_bytes}")
        blocks = [(x, y) for y in range(grid[1]) for x in range(grid[0])]
        together = max(1, at_once // self.threads)
        for start in range(0, len(blocks), together):
            _Run(self, memory, parameters, blocks[start : start + together]).run()


program_of = cache(Program)
"""Read once: running it changes nothing of it."""


class _Shared:
    """The shared memory of some blocks, word by word, and who has been there since when."""

    def __init__(self, blocks: int, size: int) -> None:
        shape = blocks, -(-size // 4)
        self.words = np.zeros(shape, np.uint32)
        self.known = np.zeros(shape, bool)
        self.coming = np.zeros(shape, bool)
        self.written, self.writer = np.full(shape, -1), np.full(shape, -1)
        self.read, self.reader = np.full(shape, -1), np.full(shape, -1)
        self.barriers = 0

    def load(self, at: tuple[Lanes, Lanes], lanes: Lanes) -> Lanes:
        if self.coming[at].any():
            raise PtxError("a race: shared memory is read while a copy to it is on its way")
        lately = self.written[at] == self.barriers
        if lately.any() and (lately & (self.writer[at] != lanes)).any():
            raise PtxError("a race: shared memory is read that another thread has written since the barrier")
        others = (self.read[at] == self.barriers) & (self.reader[at] != lanes)
        self.reader[at] = lanes
        others |= self.reader[at] != lanes  # which read it at this very moment
        self.reader[at[0][others], at[1][others]] = -2  # no one thread may write what several have read
        self.read[at] = self.barriers
        return self.words[at]

    def _may_write(self, at: tuple[Lanes, Lanes], lanes: Lanes) -> None:
        if ((self.read[at] == self.barriers) & (self.reader[at] != lanes)).any():
            raise PtxError("a race: shared memory is written that another thread has read since the barrier")
        if (((self.written[at] == self.barriers) | self.coming[at]) & (self.writer[at] != lanes)).any():
            raise PtxError("a race: shared memory is written by two threads")
        self.writer[at] = lanes
        if (self.writer[at] != lanes).any():
            raise PtxError("a race: shared memory is written by two threads at once")

    def store(self, at: tuple[Lanes, Lanes], lanes: Lanes, values: Lanes) -> None:
        self._may_write(at, lanes)
        if self.coming[at].any():
            raise PtxError("a race: shared memory is written while a copy to it is on its way")
        self.words[at] = values
        self.written[at] = self.barriers
        self.known[at] = True

    def copy(self, at: tuple[Lanes, Lanes], lanes: Lanes, values: Lanes) -> None:
        """It is there when the thread that asked for it has waited."""
        self._may_write(at, lanes)
        self.words[at] = values
        self.known[at] = self.coming[at] = True

    def arrived(self, lanes: Lanes) -> None:
        there = self.coming & np.isin(self.writer, lanes)
        self.coming &= ~there
        self.written[there] = self.barriers


class _Run:
    """Some blocks on their way through a program."""

    def __init__(
        self, program: Program, memory: Memory, parameters: bytes, blocks: Sequence[tuple[int, int]]
    ) -> None:
        self.program, self.memory, self.parameters = program, memory, parameters
        self.size, self.blocks = len(blocks) * program.threads, len(blocks)
        self.registers: dict[str, Lanes] = {}
        self.unknown: dict[str, Lanes] = {}
        """Of registers that some threads have not written, which ones."""
        columns, rows = (
            np.repeat(np.array(along, np.uint32), program.threads) for along in zip(*blocks, strict=True)
        )
        self.registers["%ctaid.x"], self.registers["%ctaid.y"] = columns, rows
        self.registers["%tid.x"] = np.tile(np.arange(program.threads, dtype=np.uint32), self.blocks)
        self.lanes = np.arange(self.size)
        self.block = self.lanes // program.threads
        self.shared = _Shared(self.blocks, program.shared_bytes)

    def run(self) -> None:
        waiting = {0: np.ones(self.size, bool)}
        at_barrier: dict[int, Lanes] = {}
        done = 0
        with np.errstate(all="ignore"):
            while waiting or at_barrier:
                if not waiting:
                    waiting, at_barrier = self._together(at_barrier), {}
                    continue
                at = min(waiting)
                active = waiting.pop(at)
                done += 1
                if done > LONGEST:
                    raise PtxError("it does not end")
                if at >= len(self.program.instructions):
                    raise PtxError("a thread ran over the end")
                where = at_barrier if self.program.instructions[at].opcode == "bar.sync" else waiting
                for next_at, lanes in [(at, active)] if where is at_barrier else self._step(at, active):
                    where[next_at] = where[next_at] | lanes if next_at in where else lanes

    def _together(self, at_barrier: dict[int, Lanes]) -> dict[int, Lanes]:
        for lanes in at_barrier.values():  # of several blocks, each may be at another
            by_block = lanes.reshape(self.blocks, -1)
            if (by_block.any(1) != by_block.all(1)).any():
                raise PtxError("not all threads of a block are at the barrier")
        self.shared.barriers += 1
        return {at + 1: lanes for at, lanes in at_barrier.items()}

    def _step(self, at: int, active: Lanes) -> list[tuple[int, Lanes]]:
        """Run an instruction. Returns where its threads go on."""
        instruction = self.program.instructions[at]
        opcode, *kinds = instruction.opcode.split(".")
        holds = active
        if instruction.predicate:
            guard = self._read(instruction.predicate, 1, active)
            holds = active & (~guard if instruction.negated else guard)
        if opcode in ("bra", "ret"):
            ways = [(at + 1, active & ~holds)]
            if opcode == "bra":
                ways.append((self.program.labels[instruction.operands[0]], holds))
            return [(where, lanes) for where, lanes in ways if lanes.any()]
        if holds.any():
            execute = getattr(self, f"_{opcode}", None)
            if execute is None:
                raise PtxError(f"unknown instruction: {instruction}")
            try:
                execute(kinds, instruction.operands, holds)
            except (PtxError, ValueError, KeyError) as error:  # the latter two: a variant that is not known
                raise PtxError(f"{error!r}; at {instruction}") from None
        return [(at + 1, active)]

    # registers

    def _read(self, operand: str, bits: int, active: Lanes) -> Lanes:
        """Bits of a register or a constant, for all threads."""
        if operand.startswith("%"):
            if operand not in self.registers:
                raise PtxError(f"{operand} was not written before it is read")
            if operand in self.unknown and (self.unknown[operand] & active).any():
                raise PtxError(f"{operand} was not written by all threads that read it")
            found = self.registers[operand]
            if (found.dtype == bool) != (bits == 1) or (bits > 1 and found.itemsize * 8 != bits):
                raise PtxError(f"{operand} has {found.itemsize * 8} bits, not {bits}")
            return found
        if operand in self.program.tables:
            number = self.program.tables[operand].ctypes.data
        elif operand in self.program.shared or operand == self.program.parameter:
            number = self.program.shared.get(operand, 0)  # addresses of their own spaces
        else:
            of_float = operand[:2] in ("0f", "0F", "0d", "0D")  # its bits follow, in hexadecimal
            number = int(operand[2:], 16) if of_float else int(operand, 0)
        if bits == 1:
            return np.full(self.size, number != 0)
        return np.full(self.size, number % 2**bits, f"u{bits // 8}")

    def _write(self, register: str, values: Lanes, active: Lanes) -> None:
        if values.dtype != bool:
            values = values.view(f"u{values.itemsize}")
        if active.all():
            self.registers[register] = values
            self.unknown.pop(register, None)
            return
        old = self.registers.get(register)
        if old is None:
            self.registers[register], self.unknown[register] = values.copy(), ~active
            return
        self.registers[register] = np.where(active, values, old)
        if register in self.unknown:
            self.unknown[register] = self.unknown[register] & ~active

    def _integers(self, kind: str, operands: Sequence[str], active: Lanes) -> list[Lanes]:
        """Operands as signed or unsigned numbers."""
        bits = int(kind[1:])
        sign = {"s": "i", "u": "u", "b": "u"}[kind[0]]
        return [self._read(o, bits, active).view(f"{sign}{bits // 8}") for o in operands]

    def _floats(self, kind: str, operands: Sequence[str], active: Lanes) -> list[Lanes]:
        return [self._read(o, int(kind[1:]), active).view(FLOATS[kind]) for o in operands]

    # arithmetic

    def _binary(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes, of: Any) -> None:
        """Of integers, or of floating-point numbers rounded to nearest, once, and without `.ftz`."""
        *how, kind = kinds
        if kind in FLOATS:
            if how != ["rn"]:
                raise PtxError(f"rounding is {how}, not to nearest")
            values = self._floats(kind, operands[1:], active)
        else:
            if how not in ([], ["lo"]):
                raise PtxError(f"{how} of integers")
            values = self._integers("u" + kind[1:], operands[1:], active)
        self._write(operands[0], of(*values), active)

    def _add(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._binary(kinds, operands, active, np.add)

    def _sub(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._binary(kinds, operands, active, np.subtract)

    def _mul(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        if kinds[0] in ("wide", "hi"):
            self._mad(kinds, (*operands, "0"), active)
        else:
            self._binary(kinds, operands, active, np.multiply)

    def _mad(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        how, kind = kinds
        sign, bits = kind[0], int(kind[1:])
        a, b = self._integers(kind, operands[1:3], active)
        if how == "lo":
            (c,) = self._integers(kind, operands[3:], active)
            self._write(operands[0], a * b + c, active)
            return
        if bits != 32 or how not in ("wide", "hi"):
            raise PtxError(f"mad.{how}.{kind}")
        whole = a.astype(f"{'i' if sign == 's' else 'u'}8") * b
        (c,) = self._integers(f"{sign}{64 if how == 'wide' else 32}", operands[3:], active)
        self._write(operands[0], whole + c if how == "wide" else (whole >> 32).astype(a.dtype) + c, active)

    def _fma(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        how, kind = kinds  # also refuses .ftz and .sat
        if how != "rn":
            raise PtxError(f"rounding is {how}, not to nearest")
        values = self._floats(kind, operands[1:], active)
        if active.all():
            self._write(operands[0], FMA[kind](*values), active)
        else:
            found = np.zeros(self.size, FLOATS[kind])
            found[active] = FMA[kind](*(v[active] for v in values))
            self._write(operands[0], found, active)

    def _exact(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes, of: Any) -> None:
        """Of floating-point numbers, where nothing is rounded; `.ftz` is refused."""
        (kind,) = kinds
        self._write(operands[0], of(*self._floats(kind, operands[1:], active)), active)

    def _abs(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._exact(kinds, operands, active, np.abs)

    def _copysign(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._exact(kinds, operands, active, lambda sign, x: np.copysign(x, sign))

    def _rounded(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes, of: Any) -> None:
        """Of floating-point numbers, to nearest; numpy's are IEEE 754's."""
        how, kind = kinds
        if how != "rn":
            raise PtxError(f"rounding is {how}, not to nearest")
        self._write(operands[0], of(*self._floats(kind, operands[1:], active)), active)

    def _sqrt(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._rounded(kinds, operands, active, np.sqrt)

    def _rcp(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._rounded(kinds, operands, active, lambda x: np.ones_like(x) / x)

    def _quotient(self, kind: str, operands: Sequence[str], active: Lanes) -> tuple[Lanes, Lanes]:
        """Rounded towards zero, and what is left."""
        a, b = self._integers(kind, operands, active)
        if (b[active] == 0).any():
            raise PtxError("a division by zero")
        b = np.where(active, b, 1).astype(b.dtype)
        rest = np.fmod(a, b)
        return (a - rest) // b, rest

    def _div(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        if kinds[-1] in FLOATS:
            self._rounded(kinds, operands, active, np.divide)
            return
        (kind,) = kinds
        self._write(operands[0], self._quotient(kind, operands[1:], active)[0], active)

    def _rem(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        (kind,) = kinds
        self._write(operands[0], self._quotient(kind, operands[1:], active)[1], active)

    def _min(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        if kinds[-1] in FLOATS:
            self._exact(kinds, operands, active, np.fmin)
            return
        self._write(operands[0], np.minimum(*self._integers(kinds[0], operands[1:], active)), active)

    def _max(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        if kinds[-1] in FLOATS:
            self._exact(kinds, operands, active, np.fmax)
            return
        self._write(operands[0], np.maximum(*self._integers(kinds[0], operands[1:], active)), active)

    # bits, moves and comparisons

    def _bitwise(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes, of: Any) -> None:
        bits = 1 if kinds == ["pred"] else int(kinds[0][1:])
        self._write(operands[0], of(*(self._read(o, bits, active) for o in operands[1:])), active)

    def _and(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._bitwise(kinds, operands, active, np.bitwise_and)

    def _or(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._bitwise(kinds, operands, active, np.bitwise_or)

    def _xor(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._bitwise(kinds, operands, active, np.bitwise_xor)

    def _not(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._bitwise(kinds, operands, active, np.bitwise_not)

    def _neg(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        if kinds[-1] in FLOATS:
            self._exact(kinds, operands, active, np.negative)
            return
        self._write(operands[0], np.negative(*self._integers(kinds[0], operands[1:], active)), active)

    def _shift(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes, of: Any) -> None:
        (value,) = self._integers(kinds[0], operands[1:2], active)
        by = self._read(operands[2], 32, active)
        if (by[active] >= int(kinds[0][1:])).any():
            raise PtxError("a shift by the whole width")
        self._write(operands[0], of(value, by.astype(value.dtype)), active)

    def _shl(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._shift(kinds, operands, active, np.left_shift)

    def _shr(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._shift(kinds, operands, active, np.right_shift)

    def _bfi(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        bits = int(kinds[0][1:])
        part, whole = (self._read(o, bits, active) for o in operands[1:3])
        start, length = (int(o, 0) for o in operands[3:])
        mask = np.array((2**length - 1) << start, whole.dtype)
        self._write(operands[0], whole & ~mask | part << np.array(start, part.dtype) & mask, active)

    def _mov(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        """Of a register, or of two that are the halves of another."""
        target, source = operands
        bits = 1 if kinds == ["pred"] else int(kinds[0][1:])
        if source.startswith("{"):
            low, high = (
                self._read(name, bits // 2, active).astype(f"u{bits // 8}") for name in _names(source)
            )
            self._write(target, low | high << np.array(bits // 2, low.dtype), active)
        elif target.startswith("{"):
            both = self._read(source, bits, active)
            halves = both, both >> np.array(bits // 2, both.dtype)
            for name, half in zip(_names(target), halves, strict=True):
                self._write(name, half.astype(f"u{bits // 16}"), active)
        else:
            self._write(target, self._read(source, bits, active).copy(), active)

    def _cvta(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        self._write(operands[0], self._read(operands[1], 64, active).copy(), active)

    def _cvt(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        *how, to, source = kinds
        if to in FLOATS or source in FLOATS:
            if how != ["rn"] and (how, to, source) != ([], "f64", "f32"):
                raise PtxError("a conversion that does not round to nearest")
            (value,) = self._floats(source, operands[1:], active)
            self._write(operands[0], value.astype(FLOATS[to]), active)
            return
        # between integers: the sign of the source is what counts
        (value,) = self._integers(source, operands[1:], active)
        bits = int(to[1:]) if to[0] in "su" else 0
        self._write(operands[0], value.astype(f"{'i' if to[0] == 's' else 'u'}{bits // 8}"), active)

    def _setp(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        comparison, kind = kinds
        if kind in FLOATS:
            a, b = self._floats(kind, operands[1:], active)
            nothing = np.isnan(a) | np.isnan(b)
            if comparison in ("num", "nan"):
                holds = nothing == (comparison == "nan")
            elif comparison in UNORDERED:
                holds = COMPARISONS[UNORDERED[comparison]](a, b) | nothing
            else:
                holds = COMPARISONS[comparison](a, b) & ~nothing
            self._write(operands[0], holds, active)
            return
        self._write(operands[0], COMPARISONS[comparison](*self._integers(kind, operands[1:], active)), active)

    def _selp(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        one, other = (self._read(o, int(kinds[0][1:]), active) for o in operands[1:3])
        self._write(operands[0], np.where(self._read(operands[3], 1, active), one, other), active)

    # memory

    def _address(self, place: str, bits: int, active: Lanes) -> Lanes:
        base, _, offset = place.strip("[] ").partition("+")
        mask = 2**bits
        return self._read(base.strip(), bits, active) + np.array(
            int(offset or "0", 0) % mask, f"u{bits // 8}"
        )

    def _in_shared(self, place: str, active: Lanes, size: int) -> tuple[Lanes, Lanes]:
        """(lanes, words): the block and the word."""
        base = place.strip("[] ").partition("+")[0].strip()
        bits = 64 if base.startswith("%rd") or base in self.program.shared else 32
        address = self._address(place, bits, active)[active].astype(np.int64)
        if (
            (address % size).any()
            or (address < 0).any()
            or (address + size > self.program.shared_bytes).any()
        ):
            raise PtxError("an address outside of shared memory, or not aligned")
        words = address[:, None] // 4 + np.arange(size // 4)
        return np.broadcast_to(self.block[active][:, None], words.shape), words

    def _ld(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        space, *how, kind = kinds
        names, size = _names(operands[0], how), int(kind[1:]) // 8
        if space == "param":
            start, whole = self._address(operands[1], 64, active)[active].astype(np.int64), len(names) * size
            if (start % whole).any() or (start < 0).any() or (start + whole > len(self.parameters)).any():
                raise PtxError("an address outside of the parameters, or not aligned")
            words = np.frombuffer(self.parameters, np.uint32)
            values = words[start[:, None] // 4 + np.arange(whole // 4)]
        elif space == "shared":
            at = self._in_shared(operands[1], active, len(names) * size)
            values = self.shared.load(at, np.broadcast_to(self.lanes[active][:, None], at[0].shape))
            known = self.shared.known[at]
        elif space == "global":
            values = self.memory.load(self._address(operands[1], 64, active)[active], len(names) * size)
        else:
            raise PtxError(f"memory of the kind {space}")
        for name, part in zip(names, np.split(values, len(names), 1), strict=True):
            found = np.zeros(self.size, f"u{size}")
            found[active] = np.ascontiguousarray(part).view(f"u{size}")[:, 0]
            if name.startswith("%rd") and size == 4:  # a register may be wider, and gets the sign
                found = (found.view(np.int32) if kind[0] == "s" else found).astype(np.int64)
            self._write(name, found, active)
        if space == "shared" and not known.all():
            # a vector may bring along what nobody has written, as long as nobody reads it of the register
            for name, part in zip(names, np.split(known, len(names), 1), strict=True):
                unwritten = self.unknown.setdefault(name, np.zeros(self.size, bool))
                unwritten[active] |= ~part.all(1)

    def _st(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        space, *how, kind = kinds
        names, bits = _names(operands[1], how), int(kind[1:])
        parts = [self._read(name, bits, active)[active][:, None].view(np.uint32) for name in names]
        values = np.concatenate(parts, 1)
        if space == "shared":
            at = self._in_shared(operands[0], active, values.shape[1] * 4)
            self.shared.store(at, np.broadcast_to(self.lanes[active][:, None], values.shape), values)
        elif space == "global":
            self.memory.store(self._address(operands[0], 64, active)[active], values)
        else:
            raise PtxError(f"memory of the kind {space}")

    def _cp(self, kinds: Sequence[str], operands: Sequence[str], active: Lanes) -> None:
        if kinds == ["async", "wait_all"]:
            self.shared.arrived(self.lanes[active])
            return
        if kinds[0] != "async" or kinds[2:] != ["shared", "global"]:
            raise PtxError(f"cp.{kinds}")
        to, source, bytes_, *given = operands
        size = int(bytes_)
        if kinds[1] == "cg" and size != 16:
            raise PtxError("cp.async.cg of less than 16 bytes")
        at = self._in_shared(to, active, size)
        # zeros where a predicate says so, and nothing is read
        there = ~self._read(given[0], 1, active)[active] if given else np.ones(len(at[0]), bool)
        addresses = self._address(source, 64, active)[active]
        values = np.zeros(at[0].shape, np.uint32)
        values[there] = self.memory.load(addresses[there], size)
        self.shared.copy(at, np.broadcast_to(self.lanes[active][:, None], at[0].shape), values)


def _names(registers: str, how: Sequence[str]) -> list[str]:
    """Of a vector of registers, as many as the instruction says."""
    names = [name.strip() for name in registers.strip("{} ").split(",")]
    if [each for each in how if each != "nc"] != ([f"v{len(names)}"] if len(names) > 1 else []):
        raise PtxError(f"{len(names)} registers for {how}")
    return names
