"""How much an input may ask for: looked at before any work is done, and lifted where that is meant.

A few hundred bytes can ask for hours and for all of a machine's memory. What is bounded here is far above
what images, models and checkpoints of today take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from overlap_tool.errors import OverlapToolError

FILE = 4 << 30
"""Bytes of a checkpoint, or of a compressed image."""

DIRECTORY = 8 << 20
"""Bytes that a checkpoint spends on saying what is in it: the pickle, the list of records, the header."""

STEPS = 1_000_000
"""Of that pickle; a tensor takes some 25."""

MODEL = 2 << 30
"""Bytes of a model that is built from arguments."""

TENSORS = 200_000
"""That its constructor makes on the way."""

SIDE, PIXELS = 1 << 20, 1 << 34
"""Of an image."""

PIECE = 1 << 30
"""Bytes of a tile, a strip or a chunk of an image file: they are decoded whole."""

FREE_PIXELS, PIXELS_OF_A_BIT = 1 << 22, 4096
"""A compressed image above the first holds at most so many pixels for each bit."""

_lifted: ContextVar[bool] = ContextVar("lifted", default=False)


@contextmanager
def lifted() -> Iterator[None]:
    """Inside, inputs may be as large as they say: for files whose size is known and meant."""
    token = _lifted.set(True)
    try:
        yield
    finally:
        _lifted.reset(token)


def lift(wanted: bool = True) -> None:
    """The same for all that is left of the context: the command line's --large."""
    _lifted.set(wanted or _lifted.get())


def are_lifted() -> bool:
    """Whether large inputs are meant."""
    return _lifted.get()


def refuse_more(kind: type[OverlapToolError], where: str, amount: float, most: int, told: str) -> None:
    """What asks for more than `most`, unless that is meant; `told` says what it asks for."""
    if amount > most and not are_lifted():
        raise beyond(kind, where, told)


def beyond(kind: type[OverlapToolError], where: str, told: str) -> OverlapToolError:
    """The refusal of what asks for too much."""
    return kind(
        where,
        f"{told}, which is beyond what is taken without being meant",
        "If it is meant, and you trust where it comes from, add --large (in Python, do it inside "
        "`with overlap_tool.bounds.lifted():`)",
    )
