"""Launches compiled kernels through CUDA's driver, which every machine with a GPU has."""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

from overlap_tool.kernels.nvrtc import Compiled


class LoadedKernel:
    """Machine code that was loaded for one device. Its only argument is a structure."""

    def __init__(self, compiled: Compiled, device: int, threads: int) -> None:
        self.device, self.threads = device, threads
        self._function = ctypes.c_void_p()
        module = ctypes.c_void_p()
        with self._on_its_device():
            _check(libcuda().cuModuleLoadData(ctypes.byref(module), compiled.code))
        name = compiled.symbol.encode()
        _check(libcuda().cuModuleGetFunction(ctypes.byref(self._function), module, name))

    def launch(self, grid: tuple[int, int], argument: bytes) -> None:
        """On PyTorch's current stream of the device; nothing waits for it."""
        with self._on_its_device():
            stream = ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
            arguments = ctypes.byref(ctypes.c_char_p(argument))  # an array of one pointer
            _check(
                libcuda().cuLaunchKernel(
                    self._function, *grid, 1, self.threads, 1, 1, 0, stream, arguments, None
                )
            )

    def _on_its_device(self) -> AbstractContextManager[Any]:
        current = torch.cuda.current_device()
        if not getattr(_of_thread, "has_context", False):
            _enter(current)
            _of_thread.has_context = True
        return nullcontext() if current == self.device else torch.cuda.device(self.device)


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
