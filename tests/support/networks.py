"""Small networks of our own for tests: good ones, and one for each thing that is refused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck
from compressai.models import MeanScaleHyperprior
from torch import Tensor, nn


class Doubles(nn.Module):
    """Its output has twice the sides of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.pixel_shuffle(self.body(x), 2) * 0.5 + 0.4


class PlainCnn(nn.Module):
    """No codec: one stage, grey input, a skip, a crop and an upsampling."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 4, stride=2, padding=1)
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1))
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(x)
        return self.up(self.body(self.down(features))) + features


class UnknownOp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.conv(x))


class NormalisedByTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class DataDependentBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if x.mean(dim=1).sum(dim=1).sum() > 0 else -x


class ListsPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.tensor(range(x.shape[-1]))


class ThirdPartyCodec(nn.Module):
    """A codec whose parts have names of their own, and whose input is grey."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, width, 5, 2, 2))
        self.latent = EntropyBottleneck(width)
        self.restore = nn.ModuleDict({"up": nn.ConvTranspose2d(width, 1, 8, 4, 2)})
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        latent, _ = self.latent(self.encode(x))
        return self.restore["up"](self.mix(latent))


class Excitation(nn.Module):
    """Squeeze and excitation as it is usually written."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.layers = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.pool(x).view(b, c)
        y = self.layers(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class TwoBarriers(nn.Module):
    """At full and at half size, with a branch around the first and an upsampling after the second."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.first = Excitation(width)
        self.down = nn.Conv2d(width, width, 5, stride=2, padding=2)
        self.mix = nn.Conv2d(width, width, 3)
        self.side = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        head = self.head(x)
        y = self.down(self.first(head))
        scale = self.mix(F.adaptive_avg_pool2d(y, 3)).sigmoid()
        return self.up(y * scale + self.side(head))


def two_barriers() -> TwoBarriers:
    torch.manual_seed(3)
    return TwoBarriers().eval()


class ExcitedBlock(nn.Module):
    """Its input is read by a convolution, and kept for the sum, which waits for the whole map."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 5, padding=2)
        self.excitation = Excitation(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.excitation(self.conv(x))


class ExcitedBlocks(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 1), ExcitedBlock(), nn.Conv2d(3, 3, 1), ExcitedBlock())


class OfOtherTypes(nn.Module):
    """Keeps a map of twice the precision, and one of answers."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.fine = nn.Conv2d(width, width, 3, padding=1).double()
        self.side = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        head = self.head(x)
        head = head * head.mean((2, 3), keepdim=True)
        fine, above = self.fine(head.double()), self.side(head) > 0
        middle = fine.mean((2, 3), keepdim=True) + above.double().mean((2, 3), keepdim=True)
        return (1000 * torch.where(above, fine, fine * middle)).float()


class CoarseFirst(nn.Module):
    """Keeps a coarse map and a finer one of the same pass."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 3, 4, stride=4)
        self.up = nn.ConvTranspose2d(3, 3, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        coarse = self.down(x)
        fine = self.up(coarse)
        middle = coarse.mean((2, 3), keepdim=True) + fine.mean((2, 3), keepdim=True)
        return F.interpolate(coarse * middle, scale_factor=4.0) + F.interpolate(fine, scale_factor=2.0)


class ExcitedCodec(MeanScaleHyperprior):
    """Each of its transforms but one needs summaries of whole maps: in the middle, first, and at the end."""

    def __init__(self, N: int = 6, M: int = 8) -> None:
        super().__init__(N, M)
        self.g_a.insert(3, ExcitedBlock(N))
        self.g_s.insert(0, Excitation(M))
        self.h_s.append(Excitation(2 * M))


def excited_codec() -> ExcitedCodec:
    torch.manual_seed(2)
    model = ExcitedCodec().eval()
    model.update()
    return model


class Rated(nn.Module):
    """With a rate index, and a second map, as encoders of video have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.Conv2d(6, 3, 3, padding=1)
        self.weighted = nn.Conv2d(4, 3, 3, padding=1)
        self.gains = nn.Parameter(torch.rand(3, 6, 1, 1) + 0.5)

    def forward(self, x: Tensor, qp: int) -> Tensor:
        return F.interpolate(self.last(self.encode(x, qp)), scale_factor=2.0)

    @torch.no_grad()
    def encode(self, x: Tensor, qp: int, *, deep: bool = False) -> Tensor:
        y = self.first(x) * self.gains[qp]
        return self.last(y.relu()) if deep else y

    def weigh(self, x: Tensor, weight: Tensor, steps: tuple[int, Tensor]) -> dict[str, Tensor]:
        return {"x": self.weighted(torch.cat([x, weight], 1)) * steps[0] / steps[1]}

    @staticmethod
    def halved(x: Tensor) -> Tensor:
        return x / 2


class Stepped(nn.Module):
    """With a quantisation step for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.last(self.first(x) * step)


class Normed(nn.Module):
    """GroupNorm, a standard deviation, and a pool of the largest numbers to 2x3, one after another."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.head, self.norm = nn.Conv2d(3, width, 5, padding=2), nn.GroupNorm(3, width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean((2, 3), keepdim=True)
        y = F.silu(self.norm(self.head(x)))
        largest = F.adaptive_max_pool2d(y, (2, 3)).mean((2, 3), keepdim=True)
        return self.last(y * largest / y.std((2, 3), keepdim=True))
