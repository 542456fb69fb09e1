"""The engines that compute. The exact engine computes every output by one defined order of operations."""

from __future__ import annotations

from overlap_tool.kernels.scores import in_blocks, settled
from overlap_tool.kernels.trial import Fallback, fallbacks
from overlap_tool.kernels.whole import ops_of_the_library, pieces

__all__ = ["Fallback", "fallbacks", "in_blocks", "ops_of_the_library", "pieces", "settled"]
