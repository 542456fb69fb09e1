"""The authors' own classes, by stand-ins under the same qualified names."""

from __future__ import annotations

import pytest
import torch
from overlap_tool_stf.attention import relative_positions
from torch import Tensor, nn

from overlap_tool import exact_kernels, wrap
from overlap_tool.errors import UnknownOpError
from overlap_tool.stages import survey
from overlap_tool.trace import trace


def named(qualified: str, cls: type) -> type:
    """The class under another module's name."""
    cls.__module__, _, cls.__name__ = qualified.rpartition(".")
    cls.__qualname__ = cls.__name__
    return cls


class InWindows(nn.Module):
    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, places, _ = x.shape
        q, k, v = self.qkv(x).reshape(windows, places, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        scores = q * self.scale @ k.mT + table.view(places, places, -1).permute(2, 0, 1)
        if mask is not None:
            scores = scores.unflatten(0, (-1, len(mask))) + mask[:, None]
            scores = scores.flatten(0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class WinBasedAttention(nn.Module):
    """Shifted windows as the paper's code has them: slices of the rolled map are numbered, and compared."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shift_size: int) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.window_size, self.shift_size = window_size, shift_size
        self.attn = InWindows(dim, window_size, num_heads)
        self.drop_path = nn.Identity()

    def windows(self, x: Tensor) -> Tensor:
        images, height, width, channels = x.shape
        side = self.window_size
        x = x.view(images, height // side, side, width // side, side, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, channels)

    def forward(self, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        side, shift = self.window_size, self.shift_size
        mask = None
        if shift:
            number = torch.zeros(1, height, width, 1)
            slices = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
            for i, rows in enumerate(slices):
                for j, columns in enumerate(slices):
                    number[:, rows, columns] = 3 * i + j
            numbers = self.windows(number).squeeze(2)
            mask = torch.where(numbers[:, None] == numbers[:, :, None], 0.0, -100.0)
        rolled = torch.roll(x.permute(0, 2, 3, 1), (-shift, -shift), (1, 2))
        found = self.attn(self.windows(rolled), mask)
        found = found.view(images, height // side, width // side, side, side, channels)
        found = found.permute(0, 1, 3, 2, 4, 5).reshape(images, height, width, channels)
        found = torch.roll(found, (shift, shift), (1, 2))
        return x + self.drop_path(found.permute(0, 3, 1, 2))


@pytest.mark.parametrize("shift", [0, 2, 3])
@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@torch.no_grad()
def test_wacnns_attention_in_tiles_has_the_bits_of_the_whole_map(shift: int, schedule) -> None:
    torch.manual_seed(0)
    kind = named("compressai.layers.win_attention.WinBasedAttention", type("W", (WinBasedAttention,), {}))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2), kind(8, 2, 4, shift), nn.Conv2d(8, 8, 3, padding=1), kind(8, 4, 4, 2)
    ).eval()
    assert [op.kind for op in trace(model, "").ops[1:]].count("WinBasedAttention") == 2
    x = torch.randn(2, 3, 64, 80)
    with exact_kernels():
        expected = model(x)
    assert torch.equal(wrap(model, tile=24, schedule=schedule)(x), expected)


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 6, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x if x.shape[-1] % 2 == 0 else nn.functional.pad(x, (0, 1)))


class Blocks(nn.Module):
    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
        return x, height, width


class Tokens(nn.Module):
    """From patches to tokens, and from layer to layer with height and width: STF's way."""

    def __init__(self, quantiser: nn.Module) -> None:
        super().__init__()
        self.patch_embed = named("compressai.models.stf.PatchEmbed", type("P", (PatchEmbed,), {}))()
        self.layer = named("compressai.models.stf.BasicLayer", type("B", (Blocks,), {}))()
        self.quantiser = quantiser

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch_embed(x)
        tokens, height, width = self.layer(y.flatten(2).transpose(1, 2), *y.shape[2:])
        return self.quantiser(tokens.transpose(1, 2).unflatten(2, (height, width)))[0]


def test_stfs_own_class_is_refused_and_ours_named() -> None:
    from compressai.entropy_models import EntropyBottleneck

    with pytest.raises(UnknownOpError, match="--arch stf") as caught:
        survey(Tokens(EntropyBottleneck(6)).eval())
    assert caught.value.where == "patch_embed (PatchEmbed)"
    assert "tokens" in caught.value.reason
