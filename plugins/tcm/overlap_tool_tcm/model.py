"""LIC-TCM: transforms of mixed blocks, around the entropy model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressai.layers import ResidualBlockUpsample, ResidualBlockWithStride, conv3x3, subpel_conv3x3
from torch import nn

from overlap_tool_tcm.entropy import TcmCodec
from overlap_tool_tcm.layers import mixed_blocks

WINDOW = 8


class TCM(TcmCodec):
    """N is half the width of its transforms: 64, 96 and 128 in the paper's three models.

    `config` has the numbers of mixed blocks, and `head_dim` their channels per head, for the three scales of
    the analysis and the three of the synthesis. The rest is as in `TcmCodec`.
    """

    def __init__(
        self,
        N: int = 128,
        M: int = 320,
        config: Sequence[int] = (2, 2, 2, 2, 2, 2),
        head_dim: Sequence[int] = (8, 16, 32, 32, 16, 8),
        **entropy_model: Any,
    ) -> None:
        scales = [mixed_blocks(depth, N, head, WINDOW) for depth, head in zip(config, head_dim, strict=True)]
        super().__init__(
            g_a=nn.Sequential(
                ResidualBlockWithStride(3, 2 * N, 2),
                *scales[0],
                ResidualBlockWithStride(2 * N, 2 * N, 2),
                *scales[1],
                ResidualBlockWithStride(2 * N, 2 * N, 2),
                *scales[2],
                conv3x3(2 * N, M, stride=2),
            ),
            g_s=nn.Sequential(
                ResidualBlockUpsample(M, 2 * N, 2),
                *scales[3],
                ResidualBlockUpsample(2 * N, 2 * N, 2),
                *scales[4],
                ResidualBlockUpsample(2 * N, 2 * N, 2),
                *scales[5],
                subpel_conv3x3(2 * N, 3, 2),
            ),
            N=N,
            M=M,
            depths=(config[0], config[3]),
            **entropy_model,
        )
