"""Map versions of layers that published transformers apply to tokens.

Their parameters have the names and shapes of PyTorch's own layers, so that checkpoints fit, and their
channels the names of a convolution's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelLinear(nn.Linear):
    """A linear layer at every position of a map."""

    @property
    def in_channels(self) -> int:
        return self.in_features

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Normalises the channels at every position of a map by their own mean and variance."""

    @property
    def in_channels(self) -> int:
        return self.normalized_shape[0]

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.permute(0, 2, 3, 1)
        normal = F.layer_norm(tokens, self.normalized_shape, self.weight, self.bias, self.eps)
        return normal.permute(0, 3, 1, 2)
