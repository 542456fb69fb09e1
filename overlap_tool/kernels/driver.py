"""Launches compiled kernels through CUDA's driver, which every machine with a GPU has."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from struct import pack
from typing import Any, NamedTuple

import torch

from overlap_tool.kernels.nvrtc import Compiled
from overlap_tool.kernels.work import AnyTensor


class LoadedKernel:
    """Machine code that was loaded for one device. Its only argument is a structure."""

    def __init__(self, compiled: Compiled, device: int, threads: int) -> None:
        self.device, self.threads = device, threads
        self.function = ctypes.c_void_p()
        module = ctypes.c_void_p()
        with in_order(device):
            _check(libcuda().cuModuleLoadData(ctypes.byref(module), compiled.code))
        name = compiled.symbol.encode()
        _check(libcuda().cuModuleGetFunction(ctypes.byref(self.function), module, name))


@contextmanager
def in_order(device: int) -> Iterator[ctypes.c_void_p]:
    """PyTorch's current stream of the device, which is the current one inside. Nothing waits for what is
    launched on it."""
    current = torch.cuda.current_device()
    if not getattr(_of_thread, "has_context", False):
        _enter(current)
        _of_thread.has_context = True
    with nullcontext() if current == device else torch.cuda.device(device):
        yield ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)


class Readied:
    """A launch but for addresses, which are the first of its `words`."""

    def __init__(self, kernel: LoadedKernel, grid: tuple[int, int], argument: bytes) -> None:
        self.words = (ctypes.c_int64 * (len(argument) // 8)).from_buffer_copy(argument)
        arguments = ctypes.byref(ctypes.c_void_p(ctypes.addressof(self.words)))  # an array of one pointer
        self._where = kernel.function, *grid, 1, kernel.threads, 1, 1, 0
        self._arguments, self._launch = arguments, libcuda().cuLaunchKernel

    def run(self, stream: ctypes.c_void_p) -> None:
        if result := self._launch(*self._where, stream, self._arguments, None):
            _check(result)


class Launch(NamedTuple):
    """A kernel, and what it is given: a structure that begins with addresses."""

    kernel: LoadedKernel
    grid: tuple[int, int]
    tensors: tuple[AnyTensor | None, ...]
    rest: bytes

    @property
    def places(self) -> range:
        return range(len(self.tensors))

    @property
    def told(self) -> Any:
        return self.kernel, self.grid, self.rest

    def ready(self) -> Readied:
        return Readied(self.kernel, self.grid, bytes(8 * len(self.tensors)) + self.rest)

    def run(self) -> None:
        addresses = (0 if each is None else each.data_ptr() for each in self.tensors)
        argument = pack(f"{len(self.tensors)}q", *addresses) + self.rest
        with in_order(self.kernel.device) as stream:
            Readied(self.kernel, self.grid, argument).run(stream)


_of_thread = threading.local()


def _enter(device: int) -> None:
    """Make PyTorch's context current. A thread that has not used the GPU yet has none."""
    context = ctypes.c_void_p()
    _check(libcuda().cuCtxGetCurrent(ctypes.byref(context)))
    if not context.value:
        _check(libcuda().cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        _check(libcuda().cuCtxSetCurrent(context))


@cache
def libcuda() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _check(result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        libcuda().cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"CUDA's driver: {(text.value or b'an unknown error').decode()}")
