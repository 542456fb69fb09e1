"""Machine code for NVIDIA's GPUs, by NVRTC, which comes with PyTorch and needs neither compiler nor GPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from overlap_tool.errors import ExactnessError

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""No operation is fused, flushed or approximated unless the code says so."""


class Compiled(NamedTuple):
    symbol: str
    """The kernel's name in the code."""

    code: bytes
    """Machine code, or PTX for the driver to compile, followed by a zero byte."""

    log: str


@cache
def compile_kernel(source: str, name: str, target: str, options: Sequence[str] = ()) -> Compiled:
    """Compile a kernel called `name`, such as `kernel<float, 8>`, for `sm_90`, or as PTX for `compute_90`."""
    library = _library()
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"chain.cu", 0, None, None))
    try:
        _check(library.nvrtcAddNameExpression(program, name.encode()))
        every = [option.encode() for option in (f"--gpu-architecture={target}", *OPTIONS, *options)]
        result = library.nvrtcCompileProgram(program, len(every), (ctypes.c_char_p * len(every))(*every))
        log = (
            _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        )
        if result:
            raise RuntimeError(f"NVRTC cannot compile {name} for {target}: {log}")
        symbol = ctypes.c_char_p()
        _check(library.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol)))
        what = "CUBIN" if target.startswith("sm_") else "PTX"
        size, get = getattr(library, f"nvrtcGet{what}Size"), getattr(library, f"nvrtcGet{what}")
        return Compiled((symbol.value or b"").decode(), _text(size, get, program), log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def target(capability: tuple[int, int]) -> str:
    """The target for a device: its own machine code, or PTX if the compiler is older than the device."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(known))
    asked = capability[0] * 10 + capability[1]
    if asked in known:
        return f"sm_{asked}"
    older = [each for each in known if each < asked]
    if not older:
        raise RuntimeError(f"NVRTC compiles for no device as old as {capability}, but for {list(known)}")
    return f"compute_{max(older)}"


@cache
def _library() -> Any:
    if torch.version.cuda is None:
        raise ExactnessError(
            "the kernels for CUDA", "this PyTorch is built without it", "Install one with CUDA"
        )
    for name in _names(int(torch.version.cuda.partition(".")[0])):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ExactnessError(
        "the kernels for CUDA",
        "NVRTC is not to be found",
        "Install the nvidia-cuda-nvrtc that PyTorch asks for",
    )


def _names(major: int) -> Iterator[str]:
    """Where NVRTC may be: in a package of its own, in PyTorch's, or with the system."""
    folders = [Path(torch.__file__).parent / "lib"]
    if (nvidia := find_spec("nvidia")) is not None:
        folders += [at for root in nvidia.submodule_search_locations or () for at in Path(root).glob("*/*")]
    pattern = f"nvrtc64_{major}*.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}*"
    for folder in folders:
        for library in sorted(folder.glob(pattern)):
            for part in folder.glob(
                "*nvrtc-builtins*"
            ):  # NVRTC opens these by name, and must find them loaded
                if ".alt." not in part.name:
                    ctypes.CDLL(str(part))
            yield str(library)
    yield f"libnvrtc.so.{major}"


def _text(size: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    length = ctypes.c_size_t()
    _check(size(program, ctypes.byref(length)))
    text = ctypes.create_string_buffer(length.value)
    _check(get(program, text))
    return text.raw


def _check(result: int) -> None:
    if result:
        _library().nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {_library().nvrtcGetErrorString(result).decode()}")
