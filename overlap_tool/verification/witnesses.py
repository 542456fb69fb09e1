"""Models and an image made of integers, and digests of all that these models return for it.

The weights depend on no library's random numbers, so any difference between two machines is one of
arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool.checkpoint.hashing import hash_weights
from overlap_tool.checkpoint.registry import Architecture
from overlap_tool.checkpoint.zoo import seeded_model
from overlap_tool.kernels.arithmetic.vectors import Hashed, digest_of_maps
from overlap_tool.models import coded
from overlap_tool.rules import exact_kernels
from overlap_tool.verification.observing import tensors_in

ROWS, COLUMNS = 128, 128


def narrow_model(architecture: Architecture) -> nn.Module:
    """The architecture at its smallest width, with tables computed here by `update`."""
    return seeded_model(architecture, architecture.small, draw=Hashed(2).uniform)


def image(channels: int = 3) -> Tensor:
    """An image of 8-bit samples, with slopes, edges and grain."""
    c, row, column = torch.meshgrid(*map(torch.arange, (channels, ROWS, COLUMNS)), indexing="ij")
    slope = 3 * row + 2 * column + 40 * c
    edges = 70 * ((row // 24 + column // 40) % 2)
    grain = Hashed(3).integers((channels, ROWS, COLUMNS)) % 24
    return ((slope + edges + grain) % 256).float()[None] / 255


@torch.no_grad()
def model_digests(model: Any, picture: Tensor) -> dict[str, str]:
    """Digests of the weights and tables, the outputs, and the results of `compress` and `decompress`."""
    with exact_kernels():
        outputs = tensors_in(model(picture))
        stream = model.compress(picture)
        decoded = tensors_in(coded.decompressed(model, stream))
    return {
        "weights": hash_weights(model.state_dict()),
        **map_digests(outputs),
        "strings": stream_digest(stream),
        **{f"decoded {name}": one for name, one in map_digests(decoded).items()},
    }


def map_digests(maps: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: digest_of_maps(values.cpu()) for name, values in maps.items()}


def stream_digest(stream: Any) -> str:
    """A digest of all strings in order, each preceded by its length in 8 bytes."""
    strings: list[bytes] = []
    coded.packed(coded.needed(stream), strings)
    found = hashlib.sha256()
    for string in strings:
        found.update(len(string).to_bytes(8, "little") + string)
    return found.hexdigest()
