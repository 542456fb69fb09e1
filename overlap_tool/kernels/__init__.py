"""The engines that compute. The exact engine computes every output by one defined order of operations."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from overlap_tool.kernels.exactness import register_exact_op
from overlap_tool.kernels.mode import exact_kernels, is_exact, rehearsal
from overlap_tool.kernels.scores import in_blocks, settled
from overlap_tool.kernels.trial import Fallback, fallbacks
from overlap_tool.kernels.whole import ops_of_the_library, pieces

__all__ = [
    "Fallback",
    "engine",
    "exact_kernels",
    "fallbacks",
    "in_blocks",
    "is_exact",
    "ops_of_the_library",
    "pieces",
    "register_exact_op",
    "rehearsal",
    "settled",
]


def engine(name: str) -> AbstractContextManager[None]:
    """The context in which the named engine computes."""
    return exact_kernels() if name == "exact" else nullcontext()
