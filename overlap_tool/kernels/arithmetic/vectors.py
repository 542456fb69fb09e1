"""Published digests of results for fixed inputs, with which a machine's arithmetic is compared.

All inputs are made of integers, so that neither arithmetic nor a library's random numbers influence them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overlap_tool.kernels.arithmetic import functions

PUBLISHED = Path(__file__).parents[2] / "vectors"
"""The folder of digests, which is installed with the package."""

FUNCTIONS = ("sqrt", *(name for name in functions.PROGRAMS if name != "pow"))
"""All functions of one number."""

SAMPLES, STEP = 1 << 20, 4099


def sample() -> Tensor:
    """A million float32 across the whole range: every 4099th, by their bits."""
    return (torch.arange(SAMPLES, dtype=torch.int64) * STEP).to(torch.int32).view(torch.float32)


def digest(*values: Tensor) -> str:
    """A digest of the bits, least significant byte first. Every NaN counts as 0x7fc00000, or its
    counterpart."""
    found = hashlib.sha256()
    for value in values:
        plain = torch.where(value.isnan(), torch.nan, value).contiguous()
        found.update(plain.numpy().astype(plain.numpy().dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def digest_of_maps(*values: Tensor) -> str:
    """The same, with -0 as 0: where a map may have either zero, both are right."""
    return digest(*(value + 0.0 if value.is_floating_point() else value for value in values))


def published_digests(what: str) -> dict[str, Any]:
    """The digests of `functions`, `operations` or `models`."""
    found: dict[str, Any] = json.loads((PUBLISHED / f"{what}.json").read_text())
    return found


class Hashed:
    """Numbers that look random: the i-th is a hash of i and the seed, in 32-bit integers."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed * 0x9E3779B9 & MASK
        self.next = 0

    def integers(self, shape: Sequence[int]) -> Tensor:
        """From 0 to 2**32 - 1."""
        count = math.prod(shape)
        x = torch.arange(self.next, self.next + count) + self.seed & MASK
        self.next += count
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x >> shift) ^ x) * factor & MASK
        return ((x >> 16) ^ x).view(*shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Float32 from 0 to 1 - 2**-24, each a whole number of 2**-24."""
        return (self.integers(shape) >> 8).float().mul_(2.0**-24)


MASK = 0xFFFFFFFF
