"""Runs programs over tensors, by generated code on torch's own threads."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import codegen
from overlap_tool.kernels.arithmetic import on_gpu
from overlap_tool.kernels.arithmetic.generated import (
    FIELDS,
    INPUTS,
    ITEM,
    MAPS,
    NUMBERS,
    PIXEL_FIELDS,
    finish_by,
    loop_over,
    over_pixels,
)
from overlap_tool.kernels.arithmetic.oracle import Oracle
from overlap_tool.kernels.arithmetic.programs import PROGRAMS
from overlap_tool.kernels.threads import ByRows, GeneratedCall
from overlap_tool.kernels.work import AnyTensor, Elementwise, ProgramKernel, noted

AT_ONCE = 4
"""Vectors of float32 that go through a program together: enough to hide the latency of an operation."""

LONG = frozenset(("pow", "power", "power_of", "sin", "cos", "tan"))
"""Programs so long that one vector is enough, while more would take seconds to compile."""

WORTH_THREADS = 4 * ITEM
"""Below this many numbers, waking other threads takes longer than the work."""


def compute(
    name: str, x: Tensor, *others: Tensor, numbers: Sequence[float] = (), out: Tensor | None = None
) -> Tensor:
    """Run a program of `PROGRAMS` on every number. `out` may be an input; all have the shape of x."""
    if x.dtype not in (torch.float32, torch.float64):
        raise ExactnessError(
            f"torch.{name} of {str(x.dtype).removeprefix('torch.')}",
            "the exact engine computes in float32 and float64 only",
            "Convert the model with .float()",
        )
    dense = torch.empty_like(x) if out is None or not _alike(out, x) else out
    xs = [_laid_out(one, dense) for one in (x, *others)]
    if isinstance(x, FakeTensor):  # a fake tensor has no numbers
        pass
    elif x.device.type == "cpu":
        by_processor(name, xs, numbers, dense, noted)
    elif not on_gpu.run(
        name, xs, numbers, dense, by_processor
    ):  # the values are defined, so any device may compute them
        there = [one.cpu() for one in xs]
        dense.copy_(compute(name, *there, numbers=numbers))
    return dense if out is None or out is dense else out.copy_(dense)


def _alike(x: Tensor, like: Tensor) -> bool:
    """Whether two tensors are contiguous in memory, in the same order."""
    return x.stride() == like.stride() == torch.empty_like(like, device="meta").stride()


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def by_processor(
    name: str,
    xs: Sequence[Tensor],
    numbers: Sequence[float],
    y: Tensor,
    note: Callable[[Elementwise], None] = lambda work: None,
) -> None:
    if y.numel() == 0:
        return
    single = y.dtype == torch.float32
    code = _machine_code(name, single, len(xs), len(numbers))
    if code is None:
        with np.errstate(all="ignore"):
            o = Oracle(single)
            kind = np.float32 if single else np.float64
            found = PROGRAMS[name](o, *(x.numpy() for x in xs), *(kind(number) for number in numbers))
        y.copy_(torch.from_numpy(np.asarray(found)))
        return
    work = Elementwise(Loop(code), name, tuple(xs), tuple(numbers), y)
    note(work)
    work.launch().run()


class Loop(NamedTuple):
    """The machine code of a program."""

    code: int

    def over(self, work: Elementwise) -> GeneratedCall:
        count = work.y.numel()
        items = -(-count // ITEM)
        task = TASK.pack(0, items, count, *NO_ADDRESSES, *work.numbers, *NO_NUMBERS[len(work.numbers) :])
        places = PLACES[: 1 + len(work.xs)]
        most = items if count >= WORTH_THREADS else 1
        return GeneratedCall(
            self.code, task, (work.y, *work.xs), places, most, partial(_rows, work.y, places)
        )


def has_contiguous_rows(y: AnyTensor) -> bool:
    """Whether it is a single map, each row of which lies in one part of memory."""
    return len(y.shape) == 4 and y.shape[0] == 1 and y.stride(2) == y.shape[1] * y.shape[3]


def _rows(y: AnyTensor, places: Sequence[int]) -> ByRows | None:
    """How to cut a call into the rows of one map, if these are contiguous."""
    if not has_contiguous_rows(y):
        return None
    numbers = y.stride(2)
    steps = dict.fromkeys(places, numbers * y.element_size())
    return ByRows(y.shape[2], steps, {COUNT: (numbers, 1), ITEMS: (numbers, ITEM)})


class OverPixels(NamedTuple):
    """The machine code of a program over pieces of maps whose channels are adjacent."""

    code: int

    def over(self, work: Elementwise) -> GeneratedCall:
        tensors = work.y, *work.xs
        images, channels, rows, columns = work.y.shape
        strides = ((0, each.stride(0), each.stride(2), each.stride(3)) for each in tensors)
        task = PIXEL_TASK.pack(
            *(0, images * rows, rows, columns, channels, *chain.from_iterable(strides)),
            *(0,) * (4 * (len(MAPS) - len(tensors))),
        )
        places = PIXEL_PLACES[: len(tensors)]
        most = images * rows if work.y.numel() >= WORTH_THREADS else 1

        def by_rows() -> ByRows:
            lines = (each.stride(2) * each.element_size() for each in tensors)
            return ByRows(rows, dict(zip(places, lines, strict=True)), {1: (images, 1), 2: (1, 1)})

        return GeneratedCall(self.code, task, tensors, places, most, by_rows)


PIXEL_TASK = struct.Struct(f"{len(PIXEL_FIELDS)}q")
PIXEL_PLACES = tuple(map(PIXEL_FIELDS.index, MAPS))
TASK = struct.Struct(f"{len(FIELDS) - NUMBERS}q{NUMBERS}d")
ITEMS, COUNT = map(FIELDS.index, ("items", "count"))
NO_ADDRESSES, NO_NUMBERS = (0,) * (1 + INPUTS), (0.0,) * NUMBERS
PLACES = tuple(range(FIELDS.index("y"), FIELDS.index("y") + 1 + INPUTS))


def program_kernel(name: str, dtype: torch.dtype, inputs: int, device: torch.device) -> ProgramKernel | None:
    """The compiled kernel of a program of tensors alone."""
    if device.type == "cuda":
        return on_gpu.kernel_of(name, dtype, inputs, 0, device, by_processor)
    code = _machine_code(name, dtype == torch.float32, inputs, 0)
    return None if code is None else Loop(code)


def pixel_kernel(name: str, dtype: torch.dtype, inputs: int) -> ProgramKernel | None:
    """The same on the CPU, for pieces of maps whose channels are adjacent."""
    code = _machine_code(name, dtype == torch.float32, inputs, None)
    return None if code is None else OverPixels(code)


@cache
def finisher(name: str, dtype: torch.dtype, others: int) -> int:
    """Code that finishes a convolution's outputs by a program of them and of other tensors."""
    lanes, single = codegen.processor().lanes(dtype.itemsize), dtype == torch.float32
    return codegen.compiled(finish_by(PROGRAMS[name], single, others, lanes, codegen.triple()))


@cache
def _machine_code(name: str, single: bool, inputs: int, numbers: int | None) -> int | None:
    """For contiguous numbers, or for pieces of maps if no numbers are given; None if LLVM does not support
    the processor."""
    lanes, form = codegen.processor().lanes(4), (PROGRAMS[name], single, inputs)
    try:
        if numbers is None:
            return codegen.compiled(over_pixels(*form, lanes, codegen.triple()))
        at_once = lanes if name in LONG else AT_ONCE * lanes
        return codegen.compiled(loop_over(*form, numbers, at_once, codegen.triple()))
    except RuntimeError:
        return None
