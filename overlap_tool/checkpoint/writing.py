"""Writing a checkpoint so that a reader sees the whole new file or the old one, never half of either."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import torch


def save_atomically(payload: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save` beside the destination, then a rename; on failure nothing is left behind."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with beside.open("xb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
