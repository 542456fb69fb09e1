"""Runs programs on a GPU. Each is tried once, against a processor's results for the same numbers."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from overlap_tool.errors import SlowKernelWarning
from overlap_tool.kernels import nvrtc
from overlap_tool.kernels.arithmetic.generated import INPUTS, NUMBERS
from overlap_tool.kernels.arithmetic.in_cuda import THREADS, kernel_over
from overlap_tool.kernels.arithmetic.programs import PROGRAMS
from overlap_tool.kernels.driver import Launch, LoadedKernel, Structure
from overlap_tool.kernels.work import Elementwise, noted

REST = struct.Struct(f"q{NUMBERS}d")
"""The fields of `Task` after the addresses."""

TRIED = 4096
"""How many numbers a trial computes."""

Compute = Callable[[str, Sequence[Tensor], Sequence[float], Tensor], None]
"""By name, from tensors and numbers, into a tensor: all dense, with one memory layout."""


class LoadedProgram(NamedTuple):
    kernel: LoadedKernel

    def over(self, work: Elementwise) -> Launch:
        nothing, count = (None,) * (INPUTS - len(work.xs)), work.y.numel()
        rest = REST.pack(count, *work.numbers, *[0.0] * (NUMBERS - len(work.numbers)))
        given = Structure((*work.xs, *nothing, work.y), rest)
        return Launch(self.kernel, (-(-count // THREADS), 1), (given,))


def run(name: str, xs: Sequence[Tensor], numbers: Sequence[float], y: Tensor, by_processor: Compute) -> bool:
    """Run a program into `y`; returns whether there is a kernel for it."""
    if y.numel() == 0:
        return True
    kernel = kernel_of(name, y.dtype, len(xs), len(numbers), y.device, by_processor)
    if kernel is not None:
        work = Elementwise(kernel, name, tuple(xs), tuple(numbers), y)
        noted(work)
        work.launch().run()
    return kernel is not None


def kernel_name(name: str, dtype: torch.dtype) -> str:
    return f"elementwise_{name}_{'float' if dtype == torch.float32 else 'double'}"


@cache
def kernel_of(
    name: str, dtype: torch.dtype, inputs: int, numbers: int, device: torch.device, by_processor: Compute
) -> LoadedProgram | None:
    try:
        entry = kernel_name(name, dtype)
        source = kernel_over(entry, PROGRAMS[name], dtype == torch.float32, inputs, numbers)
        target = nvrtc.target(torch.cuda.get_device_capability(device.index))
        kernel = LoadedProgram(
            LoadedKernel(nvrtc.compile_kernel(source, entry, target), device.index, THREADS)
        )
        wrong = _difference(kernel, name, dtype, inputs, numbers, device, by_processor)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # compilers may raise anything
        wrong = f"it raises {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not wrong:
        return kernel
    warnings.warn(
        f"{name} of {str(dtype).removeprefix('torch.')} on {device}: {wrong}. The processor computes it: "
        "with the same bits, and slowly",
        SlowKernelWarning,
        stacklevel=2,
    )
    return None


def _difference(
    kernel: LoadedProgram,
    name: str,
    dtype: torch.dtype,
    inputs: int,
    numbers: int,
    device: torch.device,
    by_processor: Compute,
) -> str:
    bits = torch.arange(TRIED * inputs, dtype=torch.int64) * (2**32 // (TRIED * inputs) - 1)
    values = bits.to(torch.int32).view(torch.float32).to(dtype).view(inputs, TRIED)  # of all magnitudes
    others = (1.0, 20.0, 1.0, 1.0)[:numbers]
    expected = torch.empty_like(values[0])
    by_processor(name, list(values), others, expected)
    there = list(values.to(device))
    found = torch.empty_like(there[0])
    Elementwise(kernel, name, tuple(there), others, found).launch().run()
    wrong = int((~torch.isclose(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)).sum())
    return f"{wrong} of {TRIED} numbers that were tried differ from the processor's" if wrong else ""
