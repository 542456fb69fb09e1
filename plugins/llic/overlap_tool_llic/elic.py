"""LLIC-ELIC: the transforms around ELIC's entropy model, as CompressAI has it."""

from __future__ import annotations

from collections.abc import Sequence

from compressai.models import SimpleVAECompressionModel
from compressai.models.sensetime import Elic2022Official

from overlap_tool_llic.blocks import transforms


class LlicElic(SimpleVAECompressionModel):
    def __init__(self, N: int = 192, M: int = 320, groups: Sequence[int] | None = None) -> None:
        super().__init__()
        self.g_a, self.g_s = transforms(N, M)
        self.latent_codec = Elic2022Official(N, M, groups).latent_codec
