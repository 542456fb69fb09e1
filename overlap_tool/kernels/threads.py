"""Runs a generated function on torch's own threads.

Torch's OpenMP threads stay awake for a while after each op, and a second pool would compete with them for the
processors. So the same runtime is used, by an entry point that GNU's, LLVM's and Intel's share. Without one
(Windows), a pool of Python threads is used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import llvmlite.ir as ir
import numpy as np
import torch

from overlap_tool.kernels import codegen
from overlap_tool.kernels.codegen import I32, I64
from overlap_tool.kernels.work import AnyTensor

RunShares = Callable[[int, int, int], None]


def run_on_threads(function: int, argument: int, threads: int) -> None:
    """Call the C function at this address with the argument on so many threads, and wait for all."""
    if threads <= 1:
        _callable(function)(argument)
    else:
        _runner()(function, argument, threads)


class ByRows(NamedTuple):
    """How a call is restricted to some of the rows that it writes."""

    number: int
    steps: Mapping[int, int]
    """The words that are addresses, and their bytes per row."""
    shares: Mapping[int, tuple[int, int]]
    """The words that are counts: units per row, and units per count."""


class GeneratedCall(NamedTuple):
    """Generated code, and its structure. The first word counts the items taken so far."""

    function: int
    argument: bytes
    tensors: Sequence[AnyTensor | None]
    places: Sequence[int]
    most: int
    """The number of threads that are worth waking."""
    rows: Callable[[], ByRows | None]
    """None if the call cannot be cut."""

    @property
    def told(self) -> Any:
        return self.function, self.argument, self.most

    def ready(self) -> ReadyCall:
        return ReadyCall(self.function, self.argument, self.most)

    def run(self) -> None:
        call = self.ready()
        for place, tensor in zip(self.places, self.tensors, strict=True):
            if tensor is not None:
                call.words[place] = tensor.data_ptr()
        call.run()


class ReadyCall:
    """A prepared call, without its addresses."""

    def __init__(self, function: int, argument: bytes, most: int) -> None:
        self.words = (ctypes.c_int64 * (len(argument) // 8)).from_buffer_copy(argument)
        self.function, self.most = function, most

    def run(self, stream: None = None) -> None:
        self.words[0] = 0
        threads = 1 if self.most == 1 else min(torch.get_num_threads(), self.most)
        run_on_threads(self.function, ctypes.addressof(self.words), threads)


class Calls:
    """Consecutive calls, without Python between them."""

    def __init__(self, calls: Sequence[ReadyCall]) -> None:
        self.words = np.concatenate([np.ctypeslib.as_array(each.words) for each in calls])
        """The words of all of them."""
        self.starts = [0, *accumulate(len(each.words) for each in calls)][:-1]
        """Where the words of each begin."""
        size, first = self.words.itemsize, self.words.ctypes.data
        self._list = np.array(
            [
                (each.function, first + size * at, each.most)
                for each, at in zip(calls, self.starts, strict=True)
            ]
        )

    def run(self) -> None:
        threads, fork = torch.get_num_threads(), _fork()
        if fork is not None:
            _one_after_another()(self._list.ctypes.data, len(self._list), threads, fork)
            return
        self.words[self.starts] = 0
        for function, argument, most in self._list.tolist():
            run_on_threads(function, argument, min(threads, most))


@cache
def _one_after_another() -> Callable[[int, int, int, int], None]:
    """Makes the calls of a list: of a function each, with an argument, on at most so many threads."""
    module = ir.Module("calls")
    module.triple = codegen.triple()
    run = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer(), I64, I64, I64]), "run")
    calls, count, threads, fork = run.args
    of_thread = ir.FunctionType(ir.VoidType(), [I64])
    forking = ir.FunctionType(ir.VoidType(), [I64, I64, I32, I32])
    b = ir.IRBuilder(run.append_basic_block())
    with codegen.counted(b, count) as n:
        function, argument, most = (
            b.load(b.gep(calls, [b.add(b.mul(n, I64(3)), I64(at))])) for at in range(3)
        )
        b.store(I64(0), b.inttoptr(argument, I64.as_pointer()))
        several = b.select(b.icmp_signed("<", threads, most), threads, most)
        with b.if_else(b.icmp_signed("<=", several, I64(1))) as (alone, together):
            with alone:
                b.call(b.inttoptr(function, of_thread.as_pointer()), [argument])
            with together:
                arguments = function, argument, b.trunc(several, I32), I32(0)
                b.call(b.inttoptr(fork, forking.as_pointer()), arguments)
    b.ret_void()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    return kind(codegen.compiled(module))


_callable = cache(ctypes.CFUNCTYPE(None, ctypes.c_void_p))


@cache
def _fork() -> int | None:
    """The runtime's entry point, looked up in what torch itself is linked against."""
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


@cache
def _runner() -> RunShares:
    if (fork := _fork()) is None:
        return _on_python_threads
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel = kind(fork)
    return lambda function, argument, threads: parallel(function, argument, threads, 0)


def _on_python_threads(function: int, argument: int, threads: int) -> None:
    call = _callable(function)
    waiting = [_pool(threads).submit(call, argument) for _ in range(threads - 1)]
    call(argument)
    for one in waiting:
        one.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="overlap-tool")
