"""Small models of every known architecture, each built once for all tests."""

from __future__ import annotations

from functools import cache

from torch import nn

from overlap_tool import checkpoint


@cache
def small_model(name: str) -> nn.Module:
    """Seeded and updated; tests must not change it."""
    architecture = checkpoint.find(name)
    return checkpoint.seeded_model(architecture, architecture.small)
