"""Brute force: which inputs of a stage really feed which outputs, found by running the original module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS, COLUMNS = -2, -1


def dependence(module: nn.Module, image: Tensor, dim: int, chunk: int = 64) -> Tensor:
    """A boolean matrix [output, input] along `dim`: whether anything on that output line changes when
    everything on that input line becomes NaN, which no weight or activation can hide."""
    changed = []
    for lines in torch.arange(image.shape[dim]).split(chunk):
        batch = image.repeat(len(lines), 1, 1, 1)
        for image_of_line, line in zip(batch, lines, strict=True):
            image_of_line.select(dim, int(line)).fill_(float("nan"))
        with torch.no_grad():
            output = module(batch)
        other = COLUMNS if dim == ROWS else ROWS
        changed.append(output.isnan().any(dim=other).any(dim=1))
    return torch.cat(changed).T


def perturbation_dependence(module: nn.Module, image: Tensor, dim: int) -> Tensor:
    """The same by large changes instead of NaN, for weights that are masked to zero."""
    with torch.no_grad():
        original = module(image)
        changed = []
        for line in range(image.shape[dim]):
            other = image.clone()
            other.select(dim, line).add_(1e3)
            across = COLUMNS if dim == ROWS else ROWS
            changed.append((module(other) != original).any(dim=across).any(dim=1)[0])
    return torch.stack(changed).T
