"""How far a change at a border of a map spreads in a part's own forward, told beside the reason of a refusal.

What a probe sees depends on weights and values, so it is a subset of what an output reads. Nothing is ever
analysed by it, and nothing refused. That a change goes from one border to the other says that the part reads
as far at least: a long reach, a barrier that is known, and a mixture of the whole map look alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil, inf
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from overlap_tool.graph.copying import copied

LENGTH = 256
"""Samples along the axis that is probed."""

BREADTHS = (8, 16, 32, 64)
"""Samples across it, the first that the part takes. Few: attention over n samples takes n * n numbers."""

FEWEST = 4
"""Outputs along the axis, below which its borders and its middle cannot be told apart."""

EDGE = 8
"""The part of the outputs, one of so many, that counts as the border: rolls go some way beyond it."""


class OutOfTime(BaseException):
    """The time for a probe is over. No code that is probed may take it for a failure of its own."""


class Deadline(TorchDispatchMode):
    """Looks at the time before every op."""

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
    """From one border to the other, and not to the middle."""
    EVERYWHERE = "everywhere"
    """From one border over the middle to the other."""


@dataclass(frozen=True)
class Spread:
    """What was seen: a change in an outermost `line` ("column", "row") of a map of `size` went that far."""

    reach: Extent
    line: str
    size: tuple[int, int]
    """Height and width."""


def spread(part: nn.Module, channels: int, until: float = inf) -> Spread | None:
    """How far a change spreads in a part that maps one map of so many channels to one, on the worse axis.

    None if the part cannot tell: it does not run on such maps, or gives something else every time. Raises
    `OutOfTime` at the time `until`.
    """
    with Deadline(until):
        return _spread(part, channels)


def _spread(part: nn.Module, channels: int) -> Spread | None:
    try:
        part = copied(part).double().eval()
    except Exception:  # whatever a third party's module raises when it is copied
        return None
    vars(part).pop("forward", None)  # that of its class counts: one in tiles would come back here
    seen = [found for dim in (-1, -2) if (found := _along(part, channels, dim)) is not None]
    return max(seen, key=lambda found: list(Extent).index(found.reach), default=None)


def _along(part: nn.Module, channels: int, dim: int) -> Spread | None:
    for breadth in BREADTHS:
        size = (breadth, LENGTH) if dim == -1 else (LENGTH, breadth)
        try:
            reach = _reach(part, channels, size, dim)
        except Exception:  # it does not take maps of this size, or fails in a way of its own
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
    if before.shape[dim] < max(FEWEST, before.shape[-3 - dim]):  # too few, or the map was turned
        return None
    if not _follows(part, image, before, dim):
        return None
    n = before.shape[dim]
    wrapped = False
    for line, opposite in ((0, slice(n - ceil(n / EDGE), n)), (LENGTH - 1, slice(0, ceil(n / EDGE)))):
        # little may vanish in a sum, and much in an activation
        for amount in (1.0, 1e3):
            changed = _changed(part, image, before, dim, line, amount)
            if changed[opposite].any() and changed[n // 2]:
                return Extent.EVERYWHERE
            wrapped |= bool(changed[opposite].any()) and amount == 1.0  # much gets past a mask of -100
        if _feeds(part, image, dim, line, (opposite, slice(n // 2, n // 2 + 1))):
            return Extent.EVERYWHERE
    return Extent.OPPOSITE_BORDER if wrapped else Extent.NEAR


@torch.no_grad()
def _follows(part: nn.Module, image: Tensor, before: Tensor, dim: int) -> bool:
    """Whether this dimension of the output is that of the image, and not of channels that were put last."""
    try:
        half = part(image.narrow(dim, 0, LENGTH // 2).clone())
    except Exception:  # it takes no other size
        return True
    return half.shape[dim] != before.shape[dim]


@torch.no_grad()
def _changed(part: nn.Module, image: Tensor, before: Tensor, dim: int, line: int, amount: float) -> Tensor:
    """Along `dim`: whether any output on that line is another one when `amount` is added to an input line."""
    other = image.clone()
    other.select(dim, line).add_(amount)
    return (part(other) != before).any(dim=-3 - dim).any(dim=1)[0]


def _feeds(part: nn.Module, image: Tensor, dim: int, line: int, targets: tuple[slice, slice]) -> bool:
    """Whether an input line has a gradient from both of these output lines, however small: what a scan
    forgets on its way is lost in rounding, but not in a gradient."""
    try:
        with torch.enable_grad():
            given = image.clone().requires_grad_()
            made = part(given)
            weights = torch.rand(made.shape, generator=torch.Generator().manual_seed(1), dtype=made.dtype)
            lines = (made * weights).movedim(dim, 0)
            sums = [lines[target].sum() for target in targets]
            gradients = [torch.autograd.grad(total, given, retain_graph=True)[0] for total in sums]
    except Exception:  # an op without a gradient
        return False
    return all(bool(gradient.select(dim, line).any()) for gradient in gradients)
