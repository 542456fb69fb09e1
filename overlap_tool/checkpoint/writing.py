"""Writing a file so that a reader sees the whole new one or the old one, never half of either."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch


def save_atomically(payload: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save`, whole or not at all."""
    write_atomically(path, lambda file: torch.save(payload, file))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


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
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
