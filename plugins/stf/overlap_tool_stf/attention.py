"""Multi-head attention in windows, with relative positions as Swin has them, on maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLOSED = -100.0
"""What is added to the similarity of two places that only the roll made neighbours."""


class WindowAttention(nn.Module):
    """Attention in windows of `window`, cut at `shift`.

    With `fills`, a map that is not whole windows is filled up with zeros at its ends; they are keys like any
    other.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int = 0, fills: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared among {heads} heads")
        self.channels, self.heads = channels, heads
        self.window, self.shift, self.fills = window, shift, fills
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.fills:
            x = F.pad(x, (0, -width % self.window, 0, -height % self.window))
        rolled = torch.roll(x, (-self.shift, -self.shift), (2, 3))
        found = torch.roll(self._unshifted(rolled), (self.shift, self.shift), (2, 3))
        return found[..., :height, :width]

    def _unshifted(self, x: Tensor) -> Tensor:
        """Attention in windows from the first sample on; the last ones may hold both ends of a rolled map."""
        side = self.window
        images, channels, height, width = x.shape
        if height % side or width % side:
            raise ValueError(f"{height} rows and {width} columns are not whole windows of {side}")
        down, across = height // side, width // side
        tokens = x.view(images, channels, down, side, across, side).permute(0, 2, 4, 3, 5, 1)
        qkv = self.qkv(tokens.reshape(-1, side * side, channels))
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q * (self.channels // self.heads) ** -0.5 @ k.transpose(-2, -1) + self.bias()
        if self.shift:
            closed = CLOSED * made_neighbours(down, across, side, self.shift).flatten(0, 1).to(scores)
            scores = (scores.unflatten(0, (images, -1)) + closed[:, None]).flatten(0, 1)
        found = self.proj((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))
        windows = found.view(images, down, across, side, side, channels)
        return windows.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)

    def bias(self) -> Tensor:
        """(heads, places, places)"""
        index = self.relative_position_index
        return self.relative_position_bias_table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


def relative_positions(window: int) -> Tensor:
    """For every two places of a window, the row of the table of biases that belongs to their distance."""
    place = torch.arange(window)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    down = rows[:, None] - rows + window - 1
    across = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + across


def made_neighbours(down: int, across: int, window: int, shift: int) -> Tensor:
    """For every window of a rolled map, which two of its places only the roll made neighbours: (windows down,
    across, places, places)."""
    wrapped = [torch.zeros(count, window, dtype=torch.bool) for count in (down, across)]
    for axis in wrapped:
        axis[-1, window - shift :] = True
    region = 2 * wrapped[0].int()[:, None, :, None] + wrapped[1].int()[None, :, None]
    region = region.reshape(down, across, window * window)
    return region[..., None] != region[:, :, None]
