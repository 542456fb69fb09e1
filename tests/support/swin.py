"""Swin's attention as its authors describe it: roll, cut in windows, mask, attend, and roll back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwinAttention(nn.Module):
    """From a map to attention in its windows. `fills` brings the map to whole windows with zeros."""

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, fills: bool = False, closed: float = -100.0
    ) -> None:
        super().__init__()
        self.heads, self.window, self.shift, self.fills, self.closed = heads, window, shift, fills, closed
        self.qkv = nn.Linear(channels, 3 * channels)
        self.bias = nn.Parameter(torch.randn(heads, window**2, window**2))
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        w, s = self.window, self.shift
        if self.fills:
            x = F.pad(x, (0, -width % w, 0, -height % w))
        images, channels, down, across = x.shape
        x = torch.roll(x, (-s, -s), (2, 3))
        tokens = x.reshape(images, channels, down // w, w, across // w, w).permute(0, 2, 4, 3, 5, 1)
        qkv = self.qkv(tokens.reshape(-1, w * w, channels))
        q, k, v = qkv.reshape(-1, w * w, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1) + self.bias
        if s:
            scores = (scores.unflatten(0, (images, -1)) + self.mask(down, across)[:, None]).flatten(0, 1)
        found = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, channels))
        found = found.reshape(images, down // w, across // w, w, w, channels).permute(0, 5, 1, 3, 2, 4)
        found = torch.roll(found.reshape(x.shape), (s, s), (2, 3))
        return found[..., :height, :width]

    def mask(self, height: int, width: int) -> Tensor:
        """For two places of each window of the rolled map: closed, if only the roll made them neighbours."""
        rolled = [
            torch.roll(torch.arange(n), -self.shift) < self.shift for n in (height, width)
        ]  # what came from the other end
        region = 2 * rolled[0][:, None] + 1 * rolled[1]
        w = self.window
        region = region.reshape(height // w, w, width // w, w).transpose(1, 2).reshape(-1, w * w)
        apart = region[:, :, None] != region[:, None]
        return torch.zeros(apart.shape, dtype=self.bias.dtype).masked_fill(apart, self.closed)
