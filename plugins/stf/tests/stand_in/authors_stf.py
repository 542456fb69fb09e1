"""Stands in for the authors' classes: the same qualified names, parameters and ways of computing.

Tokens are handed from layer to layer with a height and a width, every block is told both, and a mask for all
windows is made by numbering slices of the map. It shares no code with ours but the entropy model's networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from compressai.ans import BufferedRansEncoder, RansDecoder
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.models import CompressionModel
from overlap_tool_stf import stf
from torch import Tensor, nn
from torch.nn import functional as F


def windows(x: Tensor, side: int) -> Tensor:
    """Of positions before channels: (windows of all images, side, side, channels)."""
    images, height, width, channels = x.shape
    x = x.view(images, height // side, side, width // side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, channels)


def joined(x: Tensor, height: int, width: int) -> Tensor:
    side, channels = x.shape[1], x.shape[3]
    x = x.view(-1, height // side, width // side, side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def mask_of(height: int, width: int, side: int, shift: int) -> Tensor:
    number = torch.zeros(1, height, width, 1)
    slices = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for i, rows in enumerate(slices):
        for j, columns in enumerate(slices):
            number[:, rows, columns] = 3 * i + j
    numbers = windows(number, side).reshape(-1, side * side)
    return torch.where(numbers[:, None] == numbers[:, :, None], 0.0, -100.0)


class InWindows(nn.Module):
    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        apart = place.flatten(1)[:, :, None] - place.flatten(1)[:, None] + window - 1
        self.register_buffer("relative_position_index", apart[0] * (2 * window - 1) + apart[1])
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        count, places, _ = x.shape
        q, k, v = self.qkv(x).reshape(count, places, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        scores = q * self.scale @ k.mT + table.view(places, places, -1).permute(2, 0, 1)
        if mask is not None:
            scores = scores.unflatten(0, (-1, len(mask))) + mask[:, None]
            scores = scores.flatten(0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


def attention(attn: InWindows, x: Tensor, side: int, shift: int, mask: Tensor | None) -> Tensor:
    height, width = x.shape[1:3]
    rolled = torch.roll(x, (-shift, -shift), (1, 2))
    found = attn(windows(rolled, side).flatten(1, 2), mask if shift else None)
    return torch.roll(joined(found.unflatten(1, (side, side)), height, width), (shift, shift), (1, 2))


class WinBasedAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, window_size: int, shift_size: int) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.window_size, self.shift_size = window_size, shift_size
        self.attn = InWindows(dim, window_size, num_heads)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        side, shift = self.window_size, self.shift_size
        mask = mask_of(*x.shape[2:], side, shift) if shift else None
        found = attention(self.attn, x.permute(0, 2, 3, 1), side, shift, mask)
        return x + self.drop_path(found.permute(0, 3, 1, 2).contiguous())


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwinTransformerBlock(nn.Module):
    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = InWindows(dim, 4, heads), Mlp(dim)
        self.shift_size = shift
        self.drop_path = nn.Dropout(0.1)
        self.H = self.W = None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        images, _, channels = x.shape
        map = self.norm1(x).view(images, self.H, self.W, channels)
        map = F.pad(map, (0, 0, 0, -self.W % 4, 0, -self.H % 4))
        found = attention(self.attn, map, 4, self.shift_size, mask)[:, : self.H, : self.W]
        x = x + self.drop_path(found.reshape(x.shape))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = F.pad(x.unflatten(1, (height, width)), (0, 0, 0, width % 2, 0, height % 2))
        parts = [x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(parts, -1).flatten(1, 2)))


class PatchSplit(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim, bias=False)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.reduction(self.norm(x)).permute(0, 2, 1).unflatten(2, (height, width))
        return self.shuffle(x).flatten(2).permute(0, 2, 1)


class BasicLayer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, downsample: type[nn.Module] | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinTransformerBlock(dim, heads, 2 * (i % 2)) for i in range(depth))
        self.downsample = downsample(dim) if downsample else None

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
        mask = mask_of(height + -height % 4, width + -width % 4, 4, 2)
        for block in self.blocks:
            block.H, block.W = height, width
            x = block(x, mask)
        if self.downsample is None:
            return x, height, width
        x = self.downsample(x, height, width)
        if isinstance(self.downsample, PatchMerging):
            return x, (height + 1) // 2, (width + 1) // 2
        return x, 2 * height, 2 * width


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, dim, 2, 2), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        if x.shape[-2] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape)


class SymmetricalTransFormer(CompressionModel):
    """Both transforms stand inline in every method."""

    def __init__(
        self, embed_dim: int, depths: Sequence[int], heads: Sequence[int], slices: int, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_slices, self.gain = embed_dim, slices, gain
        self.patch_embed = PatchEmbed(embed_dim)
        self.pos_drop = nn.Dropout(0.0)
        last = len(depths) - 1
        self.layers = nn.ModuleList(
            BasicLayer(embed_dim << i, depths[i], heads[i], PatchMerging if i < last else None)
            for i in range(len(depths))
        )
        self.syn_layers = nn.ModuleList(
            BasicLayer(embed_dim << i, depths[i], heads[i], PatchSplit if i else None)
            for i in reversed(range(len(depths)))
        )
        self.end_conv = nn.Sequential(
            nn.Conv2d(embed_dim, 4 * embed_dim, 5, padding=2),
            nn.PixelShuffle(2),
            nn.Conv2d(embed_dim, 3, 3, padding=1),
        )
        self.g_a = self.g_s = None
        ours = stf.SymmetricalTransFormer(embed_dim, depths, heads, slices)
        for name in ("h_a", "h_mean_s", "h_scale_s"):
            setattr(self, name, getattr(ours, name))
        for name in ("cc_mean_transforms", "cc_scale_transforms", "lrp_transforms"):
            setattr(self, name, getattr(ours, name))
        self.entropy_bottleneck = EntropyBottleneck(4 * embed_dim)
        self.gaussian_conditional = GaussianConditional(None)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.patch_embed(x)
        height, width = x.size(2), x.size(3)
        x = self.gain * self.pos_drop(x.flatten(2).transpose(1, 2))
        for layer in self.layers:
            x, height, width = layer(x, height, width)
        y = x.view(-1, height, width, self.embed_dim * 8).permute(0, 3, 1, 2).contiguous()
        z = self.h_a(y)
        _, z_likelihoods = self.entropy_bottleneck(z)
        medians = self.entropy_bottleneck._get_medians()
        parts, likelihoods = y.chunk(self.num_slices, 1), []

        def code(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            likelihoods.append(self.gaussian_conditional(parts[k], scale, mean)[1])
            return torch.round(parts[k] - mean) + mean

        y_hat = self.by_slices(torch.round(z - medians) + medians, height, width, code)
        tokens = y_hat.permute(0, 2, 3, 1).contiguous().view(-1, height * width, self.embed_dim * 8)
        for layer in self.syn_layers:
            tokens, height, width = layer(tokens, height, width)
        map = tokens.view(-1, height, width, self.embed_dim).permute(0, 3, 1, 2).contiguous()
        likelihoods = {"y": torch.cat(likelihoods, 1), "z": z_likelihoods}
        return {"x_hat": self.end_conv(map), "likelihoods": likelihoods}

    def compress(self, x: Tensor) -> dict[str, Any]:
        x = self.patch_embed(x)
        height, width = x.size(2), x.size(3)
        x = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x, height, width = layer(x, height, width)
        y = x.view(-1, height, width, self.embed_dim * 8).permute(0, 3, 1, 2).contiguous()
        z = self.h_a(y)
        z_strings = self.entropy_bottleneck.compress(z)
        parts, symbols, indexes = y.chunk(self.num_slices, 1), [], []

        def code(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            found = self.gaussian_conditional.quantize(parts[k], "symbols", mean)
            symbols.extend(found.reshape(-1).tolist())
            indexes.extend(self.gaussian_conditional.build_indexes(scale).reshape(-1).tolist())
            return found + mean

        z_hat = self.entropy_bottleneck.decompress(z_strings, z.shape[-2:])
        self.by_slices(z_hat, height, width, code)
        encoder = BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, *self.tables())
        return {"strings": [[encoder.flush()], z_strings], "shape": z.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, Tensor]:
        height, width = 4 * shape[0], 4 * shape[1]
        decoder = RansDecoder()
        decoder.set_stream(strings[0][0])

        def code(k: int, mean: Tensor, scale: Tensor) -> Tensor:
            indexes = self.gaussian_conditional.build_indexes(scale).reshape(-1).tolist()
            found = torch.Tensor(decoder.decode_stream(indexes, *self.tables()))
            return self.gaussian_conditional.dequantize(found.reshape(mean.shape), mean)

        z_hat = self.entropy_bottleneck.decompress(strings[1], shape)
        y_hat = self.by_slices(z_hat, height, width, code)
        tokens = y_hat.permute(0, 2, 3, 1).contiguous().view(-1, height * width, self.embed_dim * 8)
        for layer in self.syn_layers:
            tokens, height, width = layer(tokens, height, width)
        map = tokens.view(-1, height, width, self.embed_dim).permute(0, 3, 1, 2).contiguous()
        return {"x_hat": self.end_conv(map).clamp_(0, 1)}

    def by_slices(self, z_hat: Tensor, height: int, width: int, code: Any) -> Tensor:
        means, scales = self.h_mean_s(z_hat), self.h_scale_s(z_hat)
        done: list[Tensor] = []
        for k in range(self.num_slices):
            support = torch.cat([means, *done[: self.num_slices // 2]], 1)
            mean = self.cc_mean_transforms[k](support)[:, :, :height, :width]
            support_of_scale = torch.cat([scales, *done[: self.num_slices // 2]], 1)
            scale = self.cc_scale_transforms[k](support_of_scale)[:, :, :height, :width]
            part = code(k, mean, scale)
            part = part + 0.5 * torch.tanh(self.lrp_transforms[k](torch.cat([support, part], 1)))
            done.append(part)
        return torch.cat(done, 1)

    def tables(self) -> tuple[Any, ...]:
        coder = self.gaussian_conditional
        return coder.quantized_cdf.tolist(), coder.cdf_length.tolist(), coder.offset.tolist()


WinBasedAttention.__module__ = "compressai.layers.win_attention"
PatchEmbed.__module__ = SymmetricalTransFormer.__module__ = "compressai.models.stf"
