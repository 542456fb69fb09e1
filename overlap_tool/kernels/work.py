"""What kernels do, as whoever records it sees it: the same on every device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from overlap_tool.kernels.form import Form

AnyTensor = Any
"""A tensor, or what a tape knows of one: its form, and where it lies."""


class Ready(Protocol):
    """A launch but for addresses, which belong into some of its `words`."""

    words: Any

    def run(self, stream: Any) -> None: ...


class AnyLaunch(Protocol):
    """Code, and what it is given: a structure of 64-bit words, addresses of tensors among them."""

    @property
    def tensors(self) -> Sequence[AnyTensor | None]: ...

    @property
    def places(self) -> Sequence[int]:
        """The words in which their addresses stand."""

    @property
    def told(self) -> Any:
        """All else, as what can be compared."""

    def ready(self) -> Ready: ...

    def run(self) -> None: ...


class PackedWeights(Protocol):
    """Weights in the order in which a device's kernel reads them."""

    @property
    def values(self) -> AnyTensor: ...

    @property
    def adds_zeros(self) -> bool:
        """Whether the kernel adds the zeros around a map that a form asks for."""

    @property
    def squares(self) -> bool:
        """Whether the kernel can square the samples that it reads."""

    def launch(self, work: Convolution) -> AnyLaunch: ...


@dataclass(frozen=True)
class Convolution:
    """`program` makes what is written of every output and of `others`, whose channels are neighbours, too."""

    x: AnyTensor
    packed: Any
    bias: AnyTensor | None
    form: Form
    out: AnyTensor
    program: Any = 0
    others: tuple[AnyTensor, ...] = ()
    squares: bool = False
    """Whether it is one of the samples' squares, each rounded."""

    def launch(self) -> AnyLaunch:
        packed: PackedWeights = self.packed
        return packed.launch(self)


class ProgramKernel(Protocol):
    """A program of `PROGRAMS`, compiled for a device."""

    def over(self, work: Elementwise) -> AnyLaunch: ...


@dataclass(frozen=True)
class Elementwise:
    """A program over tensors, and the kernel that computes it."""

    kernel: Any
    name: str
    xs: tuple[AnyTensor, ...]
    numbers: tuple[float, ...]
    y: AnyTensor

    def launch(self) -> AnyLaunch:
        kernel: ProgramKernel = self.kernel
        return kernel.over(self)


OTHERS = 2
"""The most that a program reads which finishes the outputs of a convolution."""

_of_thread = threading.local()


def noted(work: Convolution | Elementwise) -> None:
    """Tell whoever records this thread's work what is about to be launched."""
    if (note := getattr(_of_thread, "note", None)) is not None:
        note(work)


@contextmanager
def noting(note: Callable[[Any], None] | None) -> Iterator[None]:
    before = getattr(_of_thread, "note", None)
    _of_thread.note = note
    try:
        yield
    finally:
        _of_thread.note = before


def tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    """An op's arguments and results are values and lists of such."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_among(value)
