"""LLIC-STF: the transforms around STF's entropy model."""

from __future__ import annotations

from overlap_tool_stf.entropy import StfCodec, evenly

from overlap_tool_llic.blocks import transforms


class LlicStf(StfCodec):
    """z is as wide as the transforms, N."""

    def __init__(self, N: int = 192, M: int = 320, slices: int = 10) -> None:
        g_a, g_s = transforms(N, M)
        between = evenly(M, N)
        super().__init__(g_a, g_s, slices, analysis=[M, *between], synthesis=[N, *between[::-1]])
