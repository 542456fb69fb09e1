"""Multi-head attention within windows, on the window grid or shifted against it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from overlap_tool_stf.attention import made_neighbours
from torch import Tensor, nn


class WindowAttention(nn.Module):
    """Every position attends to those of its window, with a learned bias for each relative position.

    A shifted grid is had by rolling the map. The windows at the end then hold samples of both borders, and
    what is not neighbours is masked.
    """

    rows: Tensor
    columns: Tensor

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
        # row and column of every position of a window
        self.register_buffer("rows", torch.arange(window**2) // window, persistent=False)
        self.register_buffer("columns", torch.arange(window**2) % window, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rolled = x.roll((-self.shift, -self.shift), (2, 3)) if self.shift else x
        y = self._attend(rolled)
        return y.roll((self.shift, self.shift), (2, 3)) if self.shift else y

    def _attend(self, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        side = self.window
        if height % side or width % side:
            raise ValueError(f"{height} rows and {width} columns are not whole windows of {side}")
        windows = x.reshape(images, channels, height // side, side, width // side, side)
        # images, rows and columns of windows, positions of a window, channels
        windows = windows.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
        queries, keys, values = (part.transpose(-2, -3) for part in self.project(windows))
        scores = self.similarity(queries, keys) + self.bias()
        if self.shift:
            apart = made_neighbours(height // side, width // side, side, self.shift).to(scores.device)
            scores = scores.masked_fill(apart[:, :, None], float("-inf"))
        found = F.softmax(scores, dim=-1) @ values
        found = self.linear(found.transpose(-2, -3).flatten(-2))
        return found.unflatten(3, (side, side)).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each by heads."""
        queries, keys, values = self.embedding_layer(tokens).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return queries, keys, values

    def similarity(self, queries: Tensor, keys: Tensor) -> Tensor:
        return queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5

    def bias(self) -> Tensor:
        """What each head adds to the similarity of a query and a key, by how far apart they are."""
        reach = self.window - 1
        rows, columns = (place[:, None] - place[None, :] + reach for place in (self.rows, self.columns))
        return self.relative_position_params[:, rows, columns]
