"""How far a change at a border of a map spreads in a part's own forward, reported beside a refusal's reason.

What a probe sees depends on weights and values, so it is a subset of what an output reads. Nothing is ever
analysed or refused by it. If a change reaches the opposite border, the part reads at least as far: a long
reach, a known barrier and a mixture of the whole map look alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil, inf
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool.graph.copying import copied
from overlap_tool.kernels.dispatching import DispatchMode

LENGTH = 256
"""Samples along the probed axis."""

BREADTHS = (8, 16, 32, 64)
"""Samples across it; the first that the part takes is used. Few: attention over n samples takes n * n
numbers."""

FEWEST = 4
"""The fewest outputs along the axis for which borders and middle can be distinguished."""

EDGE = 8
"""One part in so many of the outputs counts as the border: rolls reach some way beyond it."""


class OutOfTime(BaseException):
    """The time for a probe is over. Probed code must not take this for its own failure."""


class Deadline(DispatchMode):
    """Checks the time before every op."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if monotonic() > self.until:
            raise OutOfTime
        return func(*args, **(kwargs or {}))


class Extent(Enum):
    NEAR = "near"
    """Not from one border to the other."""
    OPPOSITE_BORDER = "opposite border"
    """From one border to the other, but not to the middle."""
    EVERYWHERE = "everywhere"
    """From one border across the middle to the other."""


@dataclass(frozen=True)
class Spread:
    """The result of a probe: how far a change in an outermost `line` ("column", "row") spread, at this
    `size`."""

    reach: Extent
    line: str
    size: tuple[int, int]
    """Height and width."""


def spread(part: nn.Module, channels: int, until: float = inf) -> Spread | None:
    """How far a change spreads in a part that maps one map to one, on the worse axis.

    None if the part cannot show it: it does not run on such maps, or is not deterministic. Raises `OutOfTime`
    at the time `until`.
    """
    with Deadline(until):
        return _spread(part, channels)


def _spread(part: nn.Module, channels: int) -> Spread | None:
    try:
        part = copied(part).double().eval()
    except Exception:  # third-party modules may raise anything when copied
        return None
    vars(part).pop("forward", None)  # the class's own forward: a tiled one would call back here
    seen = [found for dim in (-1, -2) if (found := _along(part, channels, dim)) is not None]
    return max(seen, key=lambda found: list(Extent).index(found.reach), default=None)


def _along(part: nn.Module, channels: int, dim: int) -> Spread | None:
    for breadth in BREADTHS:
        size = (breadth, LENGTH) if dim == -1 else (LENGTH, breadth)
        try:
            reach = _reach(part, channels, size, dim)
        except Exception:  # it refuses this size, or fails otherwise
            continue
        return None if reach is None else Spread(reach, "column" if dim == -1 else "row", size)
    return None


def _reach(part: nn.Module, channels: int, size: tuple[int, int], dim: int) -> Extent | None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, *size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before = part(image.clone())
        again = part(image.clone())
    if before.ndim != 4 or not torch.equal(before, again):
        return None
    if before.shape[dim] < max(FEWEST, before.shape[-3 - dim]):  # too few outputs, or the map was transposed
        return None
    if not _follows(part, image, before, dim):
        return None
    n = before.shape[dim]
    wrapped = False
    for line, opposite in ((0, slice(n - ceil(n / EDGE), n)), (LENGTH - 1, slice(0, ceil(n / EDGE)))):
        # a small change may vanish in a sum, and a large one in an activation
        for amount in (1.0, 1e3):
            changed = _changed(part, image, before, dim, line, amount)
            if changed[opposite].any() and changed[n // 2]:
                return Extent.EVERYWHERE
            wrapped |= (
                bool(changed[opposite].any()) and amount == 1.0
            )  # a large change gets past a mask of -100
        if _feeds(part, image, dim, line, (opposite, slice(n // 2, n // 2 + 1))):
            return Extent.EVERYWHERE
    return Extent.OPPOSITE_BORDER if wrapped else Extent.NEAR


@torch.no_grad()
def _follows(part: nn.Module, image: Tensor, before: Tensor, dim: int) -> bool:
    """Whether this dimension of the output follows the image, and is not channels that were moved last."""
    try:
        half = part(image.narrow(dim, 0, LENGTH // 2).clone())
    except Exception:  # it refuses another size
        return True
    return half.shape[dim] != before.shape[dim]


@torch.no_grad()
def _changed(part: nn.Module, image: Tensor, before: Tensor, dim: int, line: int, amount: float) -> Tensor:
    """Along `dim`, whether any output on each line changes when `amount` is added to an input line."""
    other = image.clone()
    other.select(dim, line).add_(amount)
    return (part(other) != before).any(dim=-3 - dim).any(dim=1)[0]


def _feeds(part: nn.Module, image: Tensor, dim: int, line: int, targets: tuple[slice, slice]) -> bool:
    """Whether an input line has a gradient, however small, from both of these output lines.

    What a scan forgets on its way is lost in rounding, but not in a gradient.
    """
    try:
        with torch.enable_grad():
            given = image.clone().requires_grad_()
            made = part(given)
            weights = torch.rand(made.shape, generator=torch.Generator().manual_seed(1), dtype=made.dtype)
            lines = (made * weights).movedim(dim, 0)
            sums = [lines[target].sum() for target in targets]
            gradients = [torch.autograd.grad(total, given, retain_graph=True)[0] for total in sums]
    except Exception:  # an op may have no gradient
        return False
    return all(bool(gradient.select(dim, line).any()) for gradient in gradients)
