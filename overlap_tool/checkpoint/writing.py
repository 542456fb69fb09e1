"""Atomic writing: a reader sees the whole new file or the old one, never half of either.

`refuse_overwriting` keeps outputs from replacing inputs; it compares files, not their names.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from overlap_tool.errors import OptionError


def save_atomically(payload: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save`, whole or not at all."""
    write_atomically(path, lambda file: torch.save(payload, file))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a report, whole or not at all."""
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise OptionError(
            os.fspath(path), f"it cannot be written ({error.strerror})", "Name a file in another folder"
        ) from error


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write beside the destination, then rename; on failure nothing is left behind."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with beside.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error.__context__, OSError):  # on a full disk, torch.save raises a consequence of it
            raise error.__context__ from error
        raise


def refuse_overwriting(where: str, target: Path, read: Iterable[str | os.PathLike[str]]) -> None:
    """Raise if any file in `read` is `target`, or lies below it; `where` names the target."""
    around = [target, *Path(os.path.realpath(target)).parents]
    for path in read:
        if any(_same(path, place) for place in around):
            raise OptionError(
                where,
                f"it would be written over {os.fspath(path)}, which is read",
                "Name another file",
            )


def _same(one: str | os.PathLike[str], other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them does not exist
        return False
