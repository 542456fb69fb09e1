"""The work of kernels in the form that is recorded, the same for every device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from overlap_tool.kernels.form import Form

AnyTensor = Any
"""A tensor, or a tape's description of one: its form and place."""


class Ready(Protocol):
    """A prepared launch: only the addresses among its `words` are missing."""

    words: Any

    def run(self, stream: Any) -> None: ...


class AnyLaunch(Protocol):
    """Code, and its argument: a structure of 64-bit words, among them addresses of tensors."""

    @property
    def tensors(self) -> Sequence[AnyTensor | None]: ...

    @property
    def places(self) -> Sequence[int]:
        """The words that hold addresses."""

    @property
    def told(self) -> Any:
        """Everything else, in a comparable form."""

    def ready(self) -> Ready: ...

    def run(self) -> None: ...


class PackedWeights(Protocol):
    """Weights in the order in which a device's kernel reads them."""

    @property
    def values(self) -> AnyTensor: ...

    @property
    def adds_zeros(self) -> bool:
        """Whether the kernel adds the zero padding of a form."""

    @property
    def squares(self) -> bool:
        """Whether the kernel can square the samples that it reads."""

    def launch(self, work: Convolution) -> AnyLaunch: ...


@dataclass(frozen=True)
class Convolution:
    """`program` computes what is written from every output and from `others`, whose channels are adjacent."""

    x: AnyTensor
    packed: Any
    bias: AnyTensor | None
    form: Form
    out: AnyTensor
    program: Any = 0
    others: tuple[AnyTensor, ...] = ()
    squares: bool = False
    """Whether it convolves the samples' squares, each rounded."""

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


class NormKernel(Protocol):
    """A layer norm, compiled for a device."""

    def over(self, work: Normalisation) -> AnyLaunch: ...


@dataclass(frozen=True)
class Normalisation:
    """A layer norm over the channels of a map, which are adjacent, and the kernel that computes it."""

    kernel: Any
    x: AnyTensor
    weight: AnyTensor | None
    bias: AnyTensor | None
    eps: float
    out: AnyTensor
    centre: AnyTensor | None
    """The means of all pixels, if they are wanted; and the factors."""
    scale: AnyTensor | None

    WRITTEN: ClassVar = ("out", "centre", "scale")

    def launch(self) -> AnyLaunch:
        kernel: NormKernel = self.kernel
        return kernel.over(self)


Work = Convolution | Elementwise | Normalisation
"""What kernels report."""

OTHERS = 2
"""The most other tensors of a program that finishes a convolution's outputs."""

_of_thread = threading.local()


def noted(work: Work) -> None:
    """Report work that is about to be launched to this thread's recorder."""
    if (note := getattr(_of_thread, "note", None)) is not None:
        note(work)


def are_noted() -> bool:
    """Whether this thread's work is being recorded."""
    return getattr(_of_thread, "note", None) is not None


@contextmanager
def noting(note: Callable[[Any], None] | None) -> Iterator[None]:
    before = getattr(_of_thread, "note", None)
    _of_thread.note = note
    try:
        yield
    finally:
        _of_thread.note = before


def tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an op's arguments or results, which are values and lists of values."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_among(value)
