"""Launches compiled kernels by CUDA's driver, which every machine with a GPU has."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
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
    """The device's current PyTorch stream; inside, it is also the current device's. Launches on it are
    asynchronous."""
    current = torch.cuda.current_device()
    if not getattr(_of_thread, "has_context", False):
        _enter(current)
        _of_thread.has_context = True
    with nullcontext() if current == device else torch.cuda.device(device):
        yield ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)


class Readied:
    """A prepared launch: only the addresses among its `words` are missing."""

    def __init__(self, kernel: LoadedKernel, grid: tuple[int, int], argument: bytes) -> None:
        self.words = (ctypes.c_int64 * (len(argument) // 8)).from_buffer_copy(argument)
        arguments = ctypes.byref(ctypes.c_void_p(ctypes.addressof(self.words)))  # an array of one pointer
        self._where = kernel.function, *grid, 1, kernel.threads, 1, 1, 0
        self._arguments, self._launch = arguments, libcuda().cuLaunchKernel

    def run(self, stream: ctypes.c_void_p) -> None:
        if result := self._launch(*self._where, stream, self._arguments, None):
            _check(result)


class Structure(NamedTuple):
    """The argument of a kernel: addresses of tensors, followed by other numbers."""

    tensors: tuple[AnyTensor | None, ...]
    rest: bytes


class Launch(NamedTuple):
    """A kernel, and its structures of one kind, one after another."""

    kernel: LoadedKernel
    grid: tuple[int, int]
    structures: tuple[Structure, ...]

    @property
    def tensors(self) -> list[AnyTensor | None]:
        return [tensor for each in self.structures for tensor in each.tensors]

    @property
    def places(self) -> list[int]:
        (tensors, rest), *others = self.structures
        words = len(tensors) + len(rest) // 8
        return [n * words + at for n in range(len(others) + 1) for at in range(len(tensors))]

    @property
    def told(self) -> Any:
        return self.kernel, self.grid, tuple(rest for _, rest in self.structures)

    def ready(self) -> Readied:
        argument = b"".join(bytes(8 * len(tensors)) + rest for tensors, rest in self.structures)
        return Readied(self.kernel, self.grid, argument)

    def run(self) -> None:
        ready = self.ready()
        for at, tensor in zip(self.places, self.tensors, strict=True):
            ready.words[at] = 0 if tensor is None else tensor.data_ptr()
        with in_order(self.kernel.device) as stream:
            ready.run(stream)


_of_thread = threading.local()


def _enter(device: int) -> None:
    """Make PyTorch's context current: a thread that has not used the GPU yet has none."""
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
