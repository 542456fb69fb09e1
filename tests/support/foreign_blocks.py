"""Stand-ins for the blocks of published codecs that no finite overlap serves, at small widths.

Each does what its model does, the way such models are written, in code of our own: FTIC (Li et al., ICLR
2024), MambaVC (Qin et al., 2024) and MLIC++ (Jiang et al., 2023).
"""

from __future__ import annotations

import torch
from compressai.entropy_models import EntropyBottleneck
from einops import rearrange
from torch import Tensor, nn


def in_windows(x: Tensor, window: int) -> Tensor:
    """[B, C, H, W] as [B * windows, samples of a window, C]."""
    b, c, h, w = x.shape
    parts = x.view(b, c, h // window, window, w // window, window)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(-1, window * window, c)


def from_windows(x: Tensor, window: int, like: Tensor) -> Tensor:
    b, c, h, w = like.shape
    parts = x.view(b, h // window, w // window, window, window, c)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


class WindowAttention(nn.Module):
    """FTIC's: the map is rolled, and what comes from across the border is attended to like any neighbour."""

    def __init__(self, channels: int, window: int = 4, shift: int = 0) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.window, self.shift = window, shift

    def forward(self, x: Tensor) -> Tensor:
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(2, 3))
        q, k, v = self.qkv(in_windows(x, self.window)).chunk(3, dim=-1)
        mixed = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        y = from_windows(mixed, self.window, x)
        return torch.roll(y, shifts=(self.shift, self.shift), dims=(2, 3)) if self.shift else y


class FrequencyModulation(nn.Module):
    """FTIC's feed-forward part: every window is filtered by frequency."""

    def __init__(self, channels: int, window: int = 4) -> None:
        super().__init__()
        self.window = window
        self.filter = nn.Parameter(torch.rand(channels, 1, 1, window, window // 2 + 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        windows = rearrange(x, "b c (h p) (w q) -> b c h w p q", p=self.window, q=self.window)
        spectrum = torch.fft.rfft2(windows, norm="ortho") * torch.view_as_complex(self.filter)
        windows = torch.fft.irfft2(spectrum, s=(self.window, self.window), norm="ortho")
        return rearrange(windows, "b c h w p q -> b c (h p) (w q)")


class FrequencyAwareBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = WindowAttention(channels, shift=2)
        self.modulation = FrequencyModulation(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.modulation(x)


class SelectiveScan(torch.autograd.Function):
    """A state that is carried from sample to sample: torch.fx cannot look inside, and neither need we."""

    @staticmethod
    def forward(ctx: object, x: Tensor, keep: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[..., 0]), []
        for i in range(x.shape[-1]):
            state = keep[..., i] * state + x[..., i]
            states.append(state)
        return torch.stack(states, dim=-1)


class FourDirections(torch.autograd.Function):
    """The map as four sequences: along rows, along columns, and both backwards."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        sequences = x.new_empty((b, 4, c, h * w))
        sequences[:, 0] = x.flatten(2, 3)
        sequences[:, 1] = x.transpose(2, 3).flatten(2, 3)
        sequences[:, 2:4] = torch.flip(sequences[:, 0:2], dims=[-1])
        return sequences


class SelectiveScan2D(nn.Module):
    """MambaVC's: four scans over the whole map. `keep` is what is left of a state after one sample."""

    def __init__(self, channels: int, keep: float = 0.95) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 1)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        sequences = FourDirections.apply(self.inner(x))
        states = SelectiveScan.apply(sequences, torch.full_like(sequences, self.keep))
        both = states[:, 0:2] + states[:, 2:4].flip(dims=[-1])
        upright = both[:, 1].view(b, c, w, h).transpose(2, 3).flatten(2, 3)
        return (both[:, 0] + upright).view(b, c, h, w)


class LinearAttention(nn.Module):
    """MLIC++'s global context: keys are normalised over all positions, and summed with values over them."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.keys, self.queries, self.values = (
            nn.Sequential(
                nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            )
            for _ in range(3)
        )
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x)

    def attend(self, x: Tensor, y: Tensor) -> Tensor:
        b, c, h, w = x.shape
        keys = self.keys(x).reshape(b, self.heads, c // self.heads, h * w).softmax(dim=3)
        queries = self.queries(y).reshape(b, self.heads, c // self.heads, h * w).softmax(dim=2)
        values = self.values(x).reshape(b, self.heads, c // self.heads, h * w)
        context = keys @ values.transpose(2, 3)
        return (context.transpose(2, 3) @ queries).reshape(b, c, h, w)


class GlobalAttention(LinearAttention):
    """Every position attends to every other."""

    def attend(self, x: Tensor, y: Tensor) -> Tensor:
        queries, keys, values = (part(x).flatten(2) for part in (self.queries, self.keys, self.values))
        weights = (queries.transpose(1, 2) @ keys).softmax(-1)
        return (values @ weights.transpose(1, 2)).view(x.shape)


class LinearAttentionBetween(LinearAttention):
    """The same between two maps: a part that takes several."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attend(x, y)


class AfterConv(nn.Module):
    """A stage with the block at a name of its own, `stage.block`, behind a convolution."""

    def __init__(self, block: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.first(x))


class PositionsOfTheWholeMap(nn.Module):
    """Attends to five by five neighbours, with a mask that is made for the size of the map, and kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.height = self.width = -1
        self.unfold = nn.Unfold(5, padding=2)
        self.mix = nn.Linear(25 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if (self.height, self.width) != (h, w):
            self.height, self.width = h, w
            anchors = torch.zeros(1, 1, h, w, device=x.device)
            anchors[..., ::2, 1::2] = anchors[..., 1::2, ::2] = 1
            self.mask = self.unfold(anchors).transpose(1, 2)
        seen = self.unfold(x).transpose(1, 2).reshape(b, h * w, c, 25) * self.mask.unsqueeze(2)
        return self.mix(seen.reshape(b, h * w, c * 25)).transpose(1, 2).reshape(b, c, h, w)


class SortedChannels(nn.Conv2d):
    """Ahead of a convolution stands an op that has no rule."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sort(1)[0])


class GlobalContextCodec(nn.Module):
    """A codec with convolutional transforms, whose context model attends to the whole latent."""

    def __init__(self, context: nn.Module | None = None, width: int = 4) -> None:
        super().__init__()
        self.g_a = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, width, 5, 2, 2))
        self.context = GlobalAttention(width) if context is None else context
        self.bottleneck = EntropyBottleneck(width)
        self.g_s = nn.Sequential(nn.ConvTranspose2d(width, 3, 8, 4, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.g_a(x)
        several = isinstance(self.context, LinearAttentionBetween)
        context = self.context(y, y.roll(1, 1)) if several else self.context(y)
        y_hat, likelihoods = self.bottleneck(y - context)
        return {"x_hat": self.g_s(y_hat + context), "likelihoods": likelihoods}
