"""What this machine's arithmetic is held to: digests of functions on fixed inputs."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from overlap_tool.kernels.arithmetic import functions

FUNCTIONS = ("sqrt", *(name for name in functions.PROGRAMS if name != "pow"))
"""All of one number."""

SAMPLES, STEP = 1 << 20, 4099


def sample() -> Tensor:
    """A million float32 from all over: every 4099th, by their bits."""
    return (torch.arange(SAMPLES, dtype=torch.int64) * STEP).to(torch.int32).view(torch.float32)


def digest(*values: Tensor) -> str:
    """Of the bits, least significant byte first. What is not a number counts as 0x7fc00000, or likewise."""
    found = hashlib.sha256()
    for value in values:
        plain = torch.where(value.isnan(), torch.nan, value).contiguous()
        found.update(plain.numpy().astype(plain.numpy().dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()
