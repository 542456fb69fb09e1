"""Stands in for the authors' module: the same qualified names, parameters and ways of computing.

Positions come before channels, layers that move them are made while a block runs, products are einsums, and a
mask for all windows is made for every map. So torch.fx cannot follow it, and it shares no code with ours.
"""

from __future__ import annotations

import overlap_tool_tcm.model
import torch
from compressai.layers import ResidualBlock
from overlap_tool_tcm.layers import MixedBlock, TwoSwinBlocks
from torch import Tensor, nn


class Rearrange(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.order)


class WMSA(nn.Module):
    def __init__(self, dim: int, head_dim: int, window_size: int, type: str) -> None:
        super().__init__()
        self.head_dim, self.window_size, self.type = head_dim, window_size, type
        self.embedding_layer = nn.Linear(dim, 3 * dim)
        places = 2 * window_size - 1
        self.relative_position_params = nn.Parameter(torch.zeros(dim // head_dim, places, places))
        self.linear = nn.Linear(dim, dim)

    def mask(self, down: int, across: int) -> Tensor:
        p, s = self.window_size, self.window_size - self.window_size // 2
        mask = torch.zeros(down, across, p, p, p, p, dtype=torch.bool)
        mask[-1, :, :s, :, s:, :] = True
        mask[-1, :, s:, :, :s, :] = True
        mask[:, -1, :, :s, :, s:] = True
        mask[:, -1, :, s:, :, :s] = True
        return mask.reshape(1, 1, down * across, p * p, p * p)

    def forward(self, x: Tensor) -> Tensor:
        p, shift = self.window_size, self.window_size // 2
        if self.type != "W":
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        b, h, w, c = x.shape
        x = x.reshape(b, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p, c)
        qkv = self.embedding_layer(x)
        q, k, v = qkv.unflatten(-1, (-1, self.head_dim)).permute(3, 0, 1, 2, 4).chunk(3, dim=0)
        sim = torch.einsum("hbwpc,hbwqc->hbwpq", q, k) * self.head_dim**-0.5
        cord = torch.tensor([[i, j] for i in range(p) for j in range(p)])
        relation = cord[:, None, :] - cord[None, :, :] + p - 1
        sim = sim + self.relative_position_params[:, relation[:, :, 0], relation[:, :, 1]][:, None, None]
        if self.type != "W":
            sim = sim.masked_fill_(self.mask(h // p, w // p), float("-inf"))
        out = torch.einsum("hbwij,hbwjc->hbwic", sim.softmax(dim=-1), v)
        out = self.linear(out.permute(1, 2, 3, 0, 4).flatten(-2))
        out = out.reshape(b, h // p, w // p, p, p, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        if self.type != "W":
            out = torch.roll(out, shifts=(shift, shift), dims=(1, 2))
        return out


class Block(nn.Module):
    def __init__(self, dim: int, head_dim: int, window_size: int, type: str = "W") -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.msa = WMSA(dim, head_dim, window_size, type)
        self.drop_path = nn.Identity()
        self.ln2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.msa(self.ln1(x)))
        return x + self.drop_path(self.mlp(self.ln2(x)))


class ConvTransBlock(nn.Module):
    def __init__(self, dim: int, head_dim: int, window_size: int, type: str = "W") -> None:
        super().__init__()
        self.dim = dim
        self.trans_block = Block(dim, head_dim, window_size, type)
        self.conv1_1 = nn.Conv2d(2 * dim, 2 * dim, 1)
        self.conv1_2 = nn.Conv2d(2 * dim, 2 * dim, 1)
        self.conv_block = ResidualBlock(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        conv_x, trans_x = torch.split(self.conv1_1(x), (self.dim, self.dim), dim=1)
        conv_x = self.conv_block(conv_x) + conv_x
        trans_x = Rearrange(0, 2, 3, 1)(trans_x)
        trans_x = self.trans_block(trans_x)
        trans_x = Rearrange(0, 3, 1, 2)(trans_x)
        return x + self.conv1_2(torch.cat((conv_x, trans_x), dim=1))


class SwinBlock(nn.Module):
    def __init__(self, dim: int, head_dim: int, window_size: int) -> None:
        super().__init__()
        self.block_1 = Block(dim, head_dim, window_size, "W")
        self.block_2 = Block(dim, head_dim, window_size, "SW")
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        if x.size(-1) <= self.window_size or x.size(-2) <= self.window_size:
            rows, columns = ((self.window_size - n) // 2 for n in x.shape[-2:])
            x = nn.functional.pad(x, (columns, columns + 1, rows, rows + 1))
        x = self.block_2(self.block_1(Rearrange(0, 2, 3, 1)(x)))
        return Rearrange(0, 3, 1, 2)(x)


class TCM(overlap_tool_tcm.model.TCM):
    """Our codec, with the blocks above in place of ours."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)
        for parent in list(self.modules()):
            for name, ours in list(parent.named_children()):
                if isinstance(ours, MixedBlock):
                    msa = ours.trans_block.msa
                    head_dim = msa.linear.in_features // msa.heads
                    type = "SW" if msa.shift else "W"
                    setattr(parent, name, ConvTransBlock(ours.channels, head_dim, msa.window, type))
                elif isinstance(ours, TwoSwinBlocks):
                    msa = ours.block_1.msa
                    channels = msa.linear.in_features
                    setattr(parent, name, SwinBlock(channels, channels // msa.heads, msa.window))
