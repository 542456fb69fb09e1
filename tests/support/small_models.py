"""Small models of every architecture, seeded, made once."""

from __future__ import annotations

from functools import cache

import torch

from overlap_tool import checkpoint
from overlap_tool.models.stages import Survey, survey


@cache
def small_model(architecture: str) -> torch.nn.Module:
    """A seeded model of small width; treat it as read-only."""
    known = checkpoint.find(architecture)
    return checkpoint.seeded_model(known, known.small)


@cache
def small_survey(architecture: str) -> Survey:
    return survey(small_model(architecture))
