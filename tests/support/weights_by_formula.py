"""Weights by formula, so that reference outputs of published models need no weights beside them; and how far
outputs are from those.

The same key and shape give the same tensor anywhere. The reference outputs in plugins' tests were computed
with these weights in float64.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

KEPT = {"beta", "gamma", "quantiles", "target", "pedestal", "bound", "mask", "scale_table", "attn_mask"}
KEPT_BEGINNINGS = ("_matrix", "_factor", "_quantized", "_cdf", "_offset")


def weights_by_formula(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """New values for every tensor, but for integers and what a constructor computes."""
    return {key: _weight(key, value) for key, value in state.items()}


def _weight(key: str, value: Tensor) -> Tensor:
    name = key.rpartition(".")[2]
    if not value.is_floating_point() or name in KEPT or name.startswith(KEPT_BEGINNINGS):
        return value.clone()
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    if value.ndim >= 2:
        noise *= 0.9 / (value.numel() / value.shape[0]) ** 0.5
    elif name == "weight":
        noise = 1 + 0.1 * noise
    else:
        noise *= 0.05
    return noise.to(value.dtype)


def relative_error(found: Tensor, expected: Tensor | dict[str, Tensor]) -> float:
    """To a whole map, or to some of its values and where they are."""
    if isinstance(expected, dict):
        found, expected = found.flatten()[expected["at"].long()], expected["values"]
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())
