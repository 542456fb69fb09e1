"""How much an input may ask for: looked at before any work is done, and lifted where that is meant.

A few hundred bytes can ask for hours and for all of a machine's memory. What is bounded here is far above
what images, models and checkpoints of today take.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from contextlib import AbstractContextManager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path

from overlap_tool.errors import CheckpointError, OverlapToolError
from overlap_tool.settings import inside

FILE = 4 << 30
"""Bytes of a checkpoint, or of a compressed image."""

DIRECTORY = 8 << 20
"""Bytes that a checkpoint spends on saying what is in it: the pickle, the list of records, the header."""

STEPS = 1_000_000
"""Steps of a checkpoint's pickle; a tensor takes some 25."""

MODEL = 2 << 30
"""Bytes of a model that is built from arguments."""

TENSORS = 5_000
"""Tensors that the constructor of a model makes."""

SMALL_MODEL, FEW_TENSORS = 128 << 20, 1_000
"""A model within these is built before it is known how large it is."""

SMALL_TENSOR = 4096
"""Bytes of a tensor that is made even to see how large a model is: its constructor may look at it."""

SIDE, PIXELS = 1 << 20, 1 << 34
"""The longest side and the most pixels of an image."""

PIECE = 1 << 30
"""Bytes of a tile, a strip or a chunk of an image file: they are decoded whole."""

FREE_PIXELS, PIXELS_OF_A_BIT = 1 << 22, 4096
"""A compressed image above the first holds at most so many pixels for each bit."""

_lifted: ContextVar[bool] = ContextVar("lifted", default=False)


def lifted() -> AbstractContextManager[bool]:
    """Inside, inputs may be as large as they say: for files whose size is known and meant."""
    return inside(_lifted, True)


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


def refuse_checkpoint(path: Path) -> None:
    """A checkpoint whose outside, and list of contents, asks for more: all that is known without torch."""
    size = path.stat().st_size
    _refuse_more_of(path, size, FILE, f"it has {size} bytes")
    if is_safetensors(path):
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        _refuse_more_of(path, min(header, size), DIRECTORY, f"its header has {header} bytes")
    else:
        _refuse_long_pickles(path)


def is_safetensors(path: Path) -> bool:
    """Whether a checkpoint is to be read as that; if not, it is one of `torch.save`, or none."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


_PICKLES_OF_OLD = 5
"""How a file of torch.save begins that is no zip; behind them lie the numbers."""


def _refuse_long_pickles(path: Path) -> None:
    """Files whose tables of contents alone would take long, or much memory."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            _refuse_steps(path, file.read(DIRECTORY), path.stat().st_size, _PICKLES_OF_OLD)
        return
    length = _directory_of(path)
    _refuse_more_of(path, length, DIRECTORY, f"the list of its records has {length} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [one for one in archive.infolist() if one.filename.endswith(".pkl")]
            size = sum(one.file_size for one in pickles)
            _refuse_more_of(path, size, DIRECTORY, f"the pickles in it have {size} bytes")
            _refuse_steps(path, b"".join(map(archive.read, pickles)), size, len(pickles))
    except CheckpointError:
        raise
    except Exception:  # Too broken to list; torch.load says so.
        return


def _refuse_steps(path: Path, pickles: bytes, size: int, number: int) -> None:
    """Of what begins with so many pickles, as far as it is at hand; a step takes a byte at least."""
    if size <= STEPS:
        return
    stream, steps, whole = io.BytesIO(pickles), 0, True
    try:
        for _ in range(number):
            steps += sum(1 for _ in islice(pickletools.genops(stream), STEPS + 1 - steps))
    except Exception:  # The end of the pickles, or of what is at hand.
        whole = stream.tell() < len(pickles) or len(pickles) == size
    _refuse_more_of(path, steps, STEPS, f"its pickle has more than {STEPS} steps")
    if not whole:
        _refuse_more_of(path, size, len(pickles), f"its pickle has more than {len(pickles)} bytes")


def _directory_of(path: Path) -> int:
    """How many bytes a zip file spends on listing its records, as its end says."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 128))
        end = file.read()
    length = int.from_bytes(end[end.rfind(b"PK\x05\x06") :][12:16], "little")
    if length == 0xFFFFFFFF:
        length = int.from_bytes(end[end.rfind(b"PK\x06\x06") :][40:48], "little")
    return length


def _refuse_more_of(path: Path, amount: int, most: int, told: str) -> None:
    refuse_more(CheckpointError, str(path), amount, most, told)
