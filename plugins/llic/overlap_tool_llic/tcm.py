"""LLIC-TCM: the transforms around TCM's entropy model."""

from __future__ import annotations

from overlap_tool_tcm.entropy import TcmCodec

from overlap_tool_llic.blocks import transforms


class LlicTcm(TcmCodec):
    """`width` is that of the hyperprior: 2N, in TCM's terms."""

    def __init__(self, N: int = 192, M: int = 320, width: int = 256, slices: int = 5) -> None:
        g_a, g_s = transforms(N, M)
        super().__init__(g_a, g_s, width // 2, M, slices=slices)
