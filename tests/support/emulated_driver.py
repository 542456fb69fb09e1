"""CUDA's driver where there is none: kernels are launched by the project's own code, and run on the CPU.

A launch is read from the bytes that a GPU would be given. The kernel's own PTX computes it, in the
interpreter, or, where models are run and that would take too long, the kernel for the CPU does.
"""

from __future__ import annotations

import ctypes
import inspect
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from overlap_tool.kernels import boxes, cpu, cuda, driver, nvrtc
from overlap_tool.kernels.arithmetic import on_gpu, tensors
from overlap_tool.kernels.arithmetic.generated import INPUTS
from overlap_tool.kernels.arithmetic.programs import PROGRAMS
from overlap_tool.kernels.form import Form
from overlap_tool.kernels.work import OTHERS, noting
from support.ptx import Buffer, Memory, Program, program_of


class Stream:
    """A stream of launches or copies, and the event at its end. All is done at once."""

    cuda_stream = 0

    def __init__(self, device: torch.device | int | None = None) -> None: ...

    def wait_stream(self, other: object) -> None: ...

    def record_event(self) -> Stream:
        return self

    def synchronize(self) -> None: ...


COMPILE = nvrtc.compile_kernel

NAMES = """
    x weight bias y other another x_image x_row x_column y_image y_row y_column
    other_image another_image other_row another_row other_column another_column next_column next_row
    x_height x_width top left
    pixels height width stride_rows stride_columns dilation_rows dilation_columns kernel_rows kernel_columns
    groups outputs depth end_rows end_columns whole_vectors
"""


def span(size: tuple[int, ...], stride: tuple[int, ...]) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))


def at(address: int, dtype: torch.dtype, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Of exactly the memory from the first number to the last."""
    count = span(size, stride)
    raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=dtype).as_strided(size, stride)


class Named:
    name: str

    @property
    def told(self) -> str:
        """The name, of what is made of several by the last of them."""
        return re.sub(r"_[0-9a-f]{16}$", "", self.name)


@dataclass(frozen=True)
class Elementwise(Named):
    """A program of `PROGRAMS` over numbers side by side."""

    name: str
    dtype: torch.dtype
    grid: tuple[int, int]
    argument: bytes
    xs: list[Tensor]
    y: Tensor
    numbers: tuple[float, ...]

    TASK = struct.Struct(f"{INPUTS + 1}q{on_gpu.REST.format}")
    SIZE = TASK.size

    @classmethod
    def of(cls, name: str, grid: tuple[int, int], argument: bytes) -> Elementwise:
        found = re.fullmatch(r"elementwise_(\w+)_(float|double)", name)
        assert found, name
        dtype = {"float": torch.float32, "double": torch.float64}[found[2]]
        (*addresses, y, count), numbers = (part := cls.TASK.unpack(argument))[:-4], part[-4:]
        xs = [at(address, dtype, (count,), (1,)) for address in addresses if address]
        taken = len(inspect.signature(PROGRAMS[found[1]]).parameters) - 1 if found[1] in NAMED else len(xs)
        return cls(
            found[1], dtype, grid, argument, xs, at(y, dtype, (count,), (1,)), numbers[: taken - len(xs)]
        )

    def by_the_cpu(self) -> None:
        tensors.by_processor(self.name, self.xs, self.numbers, self.y)

    def interpreted(self, program: Program) -> None:
        y = Buffer.of(self.y, writable=True)
        others = [Buffer.of(x) for x in self.xs if x.data_ptr() != self.y.data_ptr()]
        program.run(Memory([y, *others]), self.argument, self.grid)
        assert (y.counts(self.y) == 1).all(), "a number was not written once"


NAMED = frozenset(("softplus", "elu", "power", "power_of"))
"""Programs that say how many numbers they take beside tensors."""


@dataclass(frozen=True)
class Launch(Named):
    """What a GPU is given, and the tensors that this means."""

    name: str
    numbers: tuple[int, ...]
    dtype: torch.dtype
    grid: tuple[int, int]
    argument: bytes
    shape: Any
    program: str | None
    """What makes of the outputs what is written."""
    squares: bool

    SHAPE = struct.Struct(f"{4 + OTHERS}q{cuda.REST.format}")
    SIZE = SHAPE.size

    @classmethod
    def of(cls, name: str, grid: tuple[int, int], argument: bytes) -> Launch:
        found = re.fullmatch(r"(\w+)<(float|double), (.*)>(?: (\w+))?", name)
        assert found, name
        numbers = tuple(map(int, re.findall(r"\d+", found[3])))
        squares = re.findall("true|false", found[3])[1:2] == ["true"]
        shape = SimpleNamespace(**dict(zip(NAMES.split(), cls.SHAPE.unpack(argument), strict=True)))
        dtype = {"float": torch.float32, "double": torch.float64}[found[2]]
        return cls(found[1], numbers, dtype, grid, argument, shape, found[4], squares)

    def _tensor(self, address: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return at(address, self.dtype, size, stride)

    @property
    def block(self) -> tuple[int, int]:
        """The most outputs of a block: pixels and channels."""
        return (4 * self.numbers[0], 32) if self.name == "depthwise" else self.numbers[:2]

    @property
    def images(self) -> int:
        return self.shape.pixels // (self.shape.height * self.shape.width)

    @property
    def x(self) -> Tensor:
        s = self.shape
        size = self.images, s.groups * s.depth, s.x_height, s.x_width
        return self._tensor(s.x, size, (s.x_image, 1, s.x_row, s.x_column))

    @property
    def y(self) -> Tensor:
        return self._as_large_as_y("y")

    @property
    def others(self) -> list[Tensor]:
        return [self._as_large_as_y(name) for name in ("other", "another") if getattr(self.shape, name)]

    def _as_large_as_y(self, name: str) -> Tensor:
        s = self.shape
        address, image, row, column = (
            getattr(s, each) for each in (name, f"{name}_image", f"{name}_row", f"{name}_column")
        )
        size = self.images, s.groups * s.outputs, s.height, s.width
        return self._tensor(address, size, (image, 1, row, column))

    @property
    def bias(self) -> Tensor | None:
        return (
            self._tensor(self.shape.bias, (self.shape.groups * self.shape.outputs,), (1,))
            if self.shape.bias
            else None
        )

    @property
    def packed(self) -> Tensor:
        """Weights as they lie there."""
        s = self.shape
        taps = s.kernel_rows * s.kernel_columns * s.depth
        if self.name == "depthwise":
            size = taps, 1, 1, s.groups * s.outputs
        else:
            columns, at_once = self.numbers[1], 64 // self.dtype.itemsize
            size = s.groups, -(-s.outputs // columns), -(-taps // at_once) * at_once, columns
        return self._tensor(s.weight, size, (size[1] * size[2] * size[3], size[2] * size[3], size[3], 1))

    @property
    def weight(self) -> Tensor:
        """(out, in / groups, height, width)"""
        s = self.shape
        kernel = s.kernel_rows, s.kernel_columns, s.depth
        if self.name == "depthwise":
            taps = self.packed.reshape(-1, s.groups, s.outputs).transpose(0, 1)
        else:
            taps = self.packed.transpose(1, 2).flatten(2)[:, : kernel[0] * kernel[1] * kernel[2], : s.outputs]
        return taps.unflatten(1, kernel).permute(0, 4, 3, 1, 2).flatten(0, 1)

    @property
    def form(self) -> Form:
        s = self.shape
        stride, dilation = (s.stride_rows, s.stride_columns), (s.dilation_rows, s.dilation_columns)
        rows, columns = (
            # no more can be cut than there is, so there may be more outputs than asked for
            (before, max((count - 1) * step + between * (kernel - 1) + 1 - n - before, -n - min(before, 0)))
            for before, count, step, between, kernel, n in (
                (s.top, s.height, s.stride_rows, s.dilation_rows, s.kernel_rows, s.x_height),
                (s.left, s.width, s.stride_columns, s.dilation_columns, s.kernel_columns, s.x_width),
            )
        )
        return Form(stride, dilation, s.groups, (rows, columns))

    def by_the_cpu(self) -> None:
        x = self.x * self.x if self.squares else self.x
        found = cpu.convolve(x, self.weight.contiguous(), self.bias, self.form)
        found = found[:, :, : self.shape.height, : self.shape.width]
        if self.program is not None:
            found = tensors.compute(self.program, found, *self.others)
        self.y.copy_(found)

    def interpreted(self, program: Program) -> None:
        y = Buffer.of(self.y, writable=True)
        read = [t for t in (self.x, self.packed, self.bias, *self.others) if t is not None]
        program.run(Memory([y, *map(Buffer.of, read)]), self.argument, self.grid)
        counts = y.counts(self.y)
        assert (counts == 1).all(), "an output was not written once"
        assert counts.sum() * self.dtype.itemsize // 4 == y.writes.sum(), "more than the outputs was written"


@dataclass(frozen=True)
class Together(Named):
    """Several of them, whose outputs lie in one map or apart."""

    name: str
    grid: tuple[int, int]
    argument: bytes
    parts: list[Launch]

    @classmethod
    def of(cls, name: str, count: int, grid: tuple[int, int], argument: bytes) -> Together:
        assert grid[1] == count
        size = Launch.SIZE
        parts = [Launch.of(name, grid, argument[n * size :][:size]) for n in range(count)]
        return cls(parts[0].name, grid, argument, parts)

    def by_the_cpu(self) -> None:
        for part in reversed(self.parts):  # no order is promised
            part.by_the_cpu()

    def interpreted(self, program: Program) -> None:
        first = min(part.y.data_ptr() for part in self.parts)
        words = (
            max(part.y.data_ptr() + 4 * span(part.y.shape, part.y.stride()) for part in self.parts) - first
            >> 2
        )
        y = Buffer.of(at(first, torch.float32, (words,), (1,)), writable=True)
        read = [t for part in self.parts for t in (part.x, part.packed, part.bias) if t is not None]
        program.run(Memory([y, *map(Buffer.of, read)]), self.argument, self.grid)
        for part in self.parts:
            counts = torch.from_numpy(y.writes).as_strided(
                part.y.shape, part.y.stride(), part.y.data_ptr() - first >> 2
            )
            assert (counts == 1).all(), "an output was not written once"
        assert y.writes.sum() == sum(part.y.numel() for part in self.parts), (
            "more than the outputs was written"
        )


@dataclass(frozen=True)
class Copies(Named):
    """Boxes of words, as maps of so many images, channels, rows and columns."""

    name: str
    grid: tuple[int, int]
    argument: bytes
    boxes: list[tuple[Tensor, Tensor]]

    BOX = struct.Struct(f"2q{boxes.REST.format}")

    @classmethod
    def of(cls, name: str, word: str, grid: tuple[int, int], argument: bytes) -> Copies:
        size, found = {"uint4": 4, "unsigned": 1}[word], []
        for x, y, *strides, rows, columns, words, count in cls.BOX.iter_unpack(argument):
            shape = count // (words * rows * columns), words * size, rows, columns
            found.append(
                tuple(
                    at(address, torch.int32, shape, (size * image, 1, size * row, size * column))
                    for address, (image, row, column) in ((x, strides[:3]), (y, strides[3:]))
                )
            )
        return cls("copied", grid, argument, found)

    def by_the_cpu(self) -> None:
        for x, y in reversed(self.boxes):  # no order is promised
            y.copy_(x)

    def interpreted(self, program: Program) -> None:
        written = [Buffer.of(y, writable=True) for _, y in self.boxes]
        read = [Buffer.of(x) for x, _ in self.boxes]
        program.run(Memory([*written, *read]), self.argument, self.grid)
        for (_, y), buffer in zip(self.boxes, written, strict=True):
            assert (buffer.counts(y) == 1).all(), "a word was not written once"
            assert buffer.writes.sum() == y.numel(), "more than a box was written"


@dataclass
class EmulatedDriver:
    """Stands in for the library. `launches` has what was launched, in order."""

    interpret: bool = True
    edit: Callable[[str], str] = str
    """Done to every program, so that one can be broken."""
    launches: list[Launch | Together | Copies | Elementwise] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    """Those that have a context."""
    _modules: list[str] = field(default_factory=list)
    _functions: list[tuple[str, Program | None]] = field(default_factory=list)

    def compile_kernel(self, source: str, name: str, target: str) -> nvrtc.Compiled:
        """Symbols say by themselves which kernel they are."""
        finished = re.match(r"#define FINISHED (\w+)", source)
        symbol = f"{name} {finished[1]}" if finished else name
        if not self.interpret:
            return nvrtc.Compiled(symbol, b"", "")
        return COMPILE(source, name, target)._replace(symbol=symbol)

    def cuCtxGetCurrent(self, context: Any) -> int:
        context._obj.value = int(threading.get_ident() in self.threads)
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int | None) -> int:
        context._obj.value = 1
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        self.threads.add(threading.get_ident())
        return 0

    def cuModuleLoadData(self, module: Any, code: bytes) -> int:
        self._modules.append(code.rstrip(b"\0").decode())
        module._obj.value = len(self._modules)
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        ptx = self.edit(self._modules[module.value - 1])
        self._functions.append((name.decode(), program_of(ptx) if self.interpret else None))
        function._obj.value = len(self._functions)
        return 0

    def cuLaunchKernel(self, function: Any, *given: Any) -> int:
        assert threading.get_ident() in self.threads, "this thread has no context"
        (x, y, z, *threads, shared, _, arguments, _) = given
        name, program = self._functions[function.value - 1]
        assert (z, shared, threads[1:]) == (1, 0, [1, 1])
        where = ctypes.cast(arguments._obj, ctypes.c_void_p).value
        launch: Launch | Together | Copies | Elementwise
        if name.startswith("elementwise_"):
            launch = Elementwise.of(name, (x, y), ctypes.string_at(where, Elementwise.SIZE))
        elif copying := re.match(r"copied<(\w+), (\d+)>", name):
            size = int(copying[2]) * Copies.BOX.size
            launch = Copies.of(name, copying[1], (x, y), ctypes.string_at(where, size))
        elif several := re.search(r"tiled<.*, (?!1>)(\d+)>", name):
            count = int(several[1])
            launch = Together.of(name, count, (x, y), ctypes.string_at(where, count * Launch.SIZE))
        else:
            launch = Launch.of(name, (x, y), ctypes.string_at(where, Launch.SIZE))
        self.launches.append(launch)
        with _disable_current_modes(), noting(None):  # a driver works unseen
            if program is None:
                launch.by_the_cpu()
            else:
                assert threads[0] == program.threads
                launch.interpreted(program)
        return 0


@contextmanager
def emulated_driver(target: str = "compute_90", **how: Any) -> Iterator[EmulatedDriver]:
    """Inside, `cuda.convolve` computes on tensors of the CPU."""
    found = EmulatedDriver(**how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "libcuda", lambda: found)
        patch.setattr(driver, "_of_thread", threading.local())
        patch.setattr(nvrtc, "compile_kernel", found.compile_kernel)
        patch.setattr(nvrtc, "target", lambda capability: target)
        for name, stand_in in {
            "device": lambda device: nullcontext(),
            "synchronize": lambda: None,
            "current_device": lambda: None,
            "current_stream": Stream,
            "get_device_capability": lambda device: (9, 0),
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        forget()
        try:
            yield found
        finally:
            forget()


def forget() -> None:
    """Kernels are loaded anew by the next driver."""
    for loaded in (cuda._loaded, boxes._loaded, on_gpu.kernel_of):
        loaded.cache_clear()
