"""Limits on what an input may ask for, checked before any work is done; `lifted` removes them.

A file of a few hundred bytes can ask for hours of work and for all of a machine's memory. These limits are
far above what today's images, models and checkpoints need.
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
"""The largest checkpoint or compressed image, in bytes."""

DIRECTORY = 8 << 20
"""Bytes that a checkpoint may spend on its table of contents: the pickle, the list of records, the header."""

STEPS = 1_000_000
"""The most opcodes in a checkpoint's pickle; a tensor takes about 25."""

MODEL = 2 << 30
"""The most bytes of weights in a model that is built from constructor arguments."""

TENSORS = 5_000
"""The most tensors that a model's constructor may make."""

SMALL_MODEL, FEW_TENSORS = 128 << 20, 1_000
"""A model within these bounds is built directly, without measuring its size first."""

SMALL_TENSOR = 4096
"""Tensors of up to this many bytes are allocated even while a model is measured: constructors read them."""

SIDE, PIXELS = 1 << 20, 1 << 34
"""The longest side of an image, and the most pixels in one."""

PIECE = 1 << 30
"""The largest tile, strip or chunk of an image file, in bytes: each is decoded whole."""

FREE_PIXELS, PIXELS_OF_A_BIT = 1 << 22, 4096
"""Beyond the first number of pixels, a compressed image may have at most the second number per bit."""

_lifted: ContextVar[bool] = ContextVar("lifted", default=False)


def lifted() -> AbstractContextManager[bool]:
    """Inside, no limit applies: for files whose size is known and intended."""
    return inside(_lifted, True)


def lift(wanted: bool = True) -> None:
    """Remove the limits for the rest of this context: the command line's --large."""
    _lifted.set(wanted or _lifted.get())


def are_lifted() -> bool:
    """Whether the limits are removed."""
    return _lifted.get()


def refuse_more(kind: type[OverlapToolError], where: str, amount: float, most: int, told: str) -> None:
    """Raise if `amount` is above `most`, unless the limits are removed; `told` names what was asked for."""
    if amount > most and not are_lifted():
        raise beyond(kind, where, told)


def beyond(kind: type[OverlapToolError], where: str, told: str) -> OverlapToolError:
    """The error for an input that asks for more than a limit; `told` names what was asked for."""
    return kind(
        where,
        f"{told}, which is beyond what is taken without being meant",
        "If it is meant, and you trust where it comes from, add --large (in Python, do it inside "
        "`with overlap_tool.bounds.lifted():`)",
    )


def refuse_checkpoint(path: Path) -> None:
    """Raise if a checkpoint's size or table of contents is over a limit, as far as shows without torch."""
    size = path.stat().st_size
    _refuse_more_of(path, size, FILE, f"it has {size} bytes")
    if is_safetensors(path):
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        _refuse_more_of(path, min(header, size), DIRECTORY, f"its header has {header} bytes")
    else:
        _refuse_long_pickles(path)


def is_safetensors(path: Path) -> bool:
    """Whether a checkpoint is read as safetensors; if not, it is read as a file of `torch.save`."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


_PICKLES_OF_OLD = 5
"""A non-zip file of torch.save begins with this many pickles; the numbers follow them."""


def _refuse_long_pickles(path: Path) -> None:
    """Raise if reading a file's table of contents alone would take too long or too much memory."""
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
    except Exception:  # Too broken to list; torch.load will report that.
        return


def _refuse_steps(path: Path, pickles: bytes, size: int, number: int) -> None:
    """Count the opcodes of the first `number` pickles, as far as they were read; each is at least a byte."""
    if size <= STEPS:
        return
    stream, steps, whole = io.BytesIO(pickles), 0, True
    try:
        for _ in range(number):
            steps += sum(1 for _ in islice(pickletools.genops(stream), STEPS + 1 - steps))
    except Exception:  # The pickles ended, or the bytes at hand did.
        whole = stream.tell() < len(pickles) or len(pickles) == size
    _refuse_more_of(path, steps, STEPS, f"its pickle has more than {STEPS} steps")
    if not whole:
        _refuse_more_of(path, size, len(pickles), f"its pickle has more than {len(pickles)} bytes")


def _directory_of(path: Path) -> int:
    """The size of a zip file's central directory, as its end record states it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 128))
        end = file.read()
    length = int.from_bytes(end[end.rfind(b"PK\x05\x06") :][12:16], "little")
    if length == 0xFFFFFFFF:
        length = int.from_bytes(end[end.rfind(b"PK\x06\x06") :][40:48], "little")
    return length


def _refuse_more_of(path: Path, amount: int, most: int, told: str) -> None:
    refuse_more(CheckpointError, str(path), amount, most, told)
