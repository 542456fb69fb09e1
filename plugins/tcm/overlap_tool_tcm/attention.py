"""Multi-head attention within windows, on the window grid or shifted against it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowAttention(nn.Module):
    """Every position attends to those of its window, with a learned bias for each relative position.

    A shifted grid is had by rolling the map. The windows at the end then hold samples of both borders, and
    what is not neighbours is masked.
    """

    def __init__(self, channels: int, head_dim: int, window: int, shift: int) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"{channels} channels are not a multiple of heads of {head_dim}")
        self.heads = channels // head_dim
        self.window = window
        self.shift = shift
        self.embedding_layer = nn.Linear(channels, 3 * channels)
        reach = 2 * window - 1
        self.relative_position_params = nn.Parameter(torch.zeros(self.heads, reach, reach))
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        rolled = x.roll((-self.shift, -self.shift), (2, 3)) if self.shift else x
        y = self._attend(rolled)
        return y.roll((self.shift, self.shift), (2, 3)) if self.shift else y

    def _attend(self, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        side, area = self.window, self.window**2
        if height % side or width % side:
            raise ValueError(f"{height} rows and {width} columns are not whole windows of {side}")
        grid = height // side, width // side
        # images, rows and columns of windows, positions of a window, channels
        windows = x.reshape(images, channels, grid[0], side, grid[1], side).permute(0, 2, 4, 3, 5, 1)
        windows = windows.reshape(images, *grid, area, channels)
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for part in self.embedding_layer(windows).chunk(3, dim=-1)
        )
        scores = queries @ keys.transpose(-1, -2) * (channels // self.heads) ** -0.5 + self._bias()
        if self.shift:
            rows, columns = self._apart(x.device)
            scores[:, -1].masked_fill_(rows, float("-inf"))
            scores[:, :, -1].masked_fill_(columns, float("-inf"))
        found = F.softmax(scores, dim=-1) @ values
        found = self.linear(found.transpose(-2, -3).flatten(-2))
        return found.unflatten(3, (side, side)).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)

    def _bias(self) -> Tensor:
        """What each head adds to the score of a query and a key, by how far apart they are."""
        i, j = self._places(self.relative_position_params.device)
        apart = self.window - 1
        bias: Tensor = self.relative_position_params[
            :, i[:, None] - i[None, :] + apart, j[:, None] - j[None, :] + apart
        ]
        return bias

    def _apart(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which queries and keys of the last rows and columns of windows lie at opposite borders."""
        i, j = (place < self.window - self.shift for place in self._places(device))
        return i[:, None] != i[None, :], j[:, None] != j[None, :]

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column of every position of a window."""
        place = torch.arange(self.window**2, device=device)
        return place // self.window, place % self.window
