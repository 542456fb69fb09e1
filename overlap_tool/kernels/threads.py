"""Runs a generated function on torch's own threads.

Torch's OpenMP threads stay awake for a while after each of its ops, and a second pool would have to fight
them for the processors. So the same runtime is asked, through an entry point that GNU's, LLVM's and Intel's
have. Without one (Windows), a pool of Python threads does it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch

from overlap_tool.kernels.work import AnyTensor

RunShares = Callable[[int, int, int], None]


def run_on_threads(function: int, argument: int, threads: int) -> None:
    """Call the C function at this address with the argument on so many threads, and wait for all."""
    if threads <= 1:
        _callable(function)(argument)
    else:
        _runner()(function, argument, threads)


class GeneratedCall(NamedTuple):
    """Generated code, and the structure that it is given. Its first word counts the items that were taken."""

    function: int
    argument: bytes
    tensors: Sequence[AnyTensor | None]
    places: Sequence[int]
    most: int
    """Threads that are worth waking."""

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
    """A call but for addresses."""

    def __init__(self, function: int, argument: bytes, most: int) -> None:
        self.words = (ctypes.c_int64 * (len(argument) // 8)).from_buffer_copy(argument)
        self._function, self._argument, self._most = function, ctypes.addressof(self.words), most

    def run(self, stream: None = None) -> None:
        self.words[0] = 0
        threads = 1 if self._most == 1 else min(torch.get_num_threads(), self._most)
        run_on_threads(self._function, self._argument, threads)


_callable = cache(ctypes.CFUNCTYPE(None, ctypes.c_void_p))


@cache
def _runner() -> RunShares:
    try:
        # looked up in what torch itself is linked against
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return _on_python_threads
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
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
