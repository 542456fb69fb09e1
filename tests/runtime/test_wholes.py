"""Parts on coarse maps that no tile can do alone are run whole by the model's code, between two passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import GlobalOpError, OverlapToolError
from overlap_tool.kernels import scores
from overlap_tool.planning.choose import BudgetError, Shape
from overlap_tool.planning.live_bytes import LiveBytes
from overlap_tool.wrapping.retrofit import tiled_stages

pytestmark = pytest.mark.usefixtures("one_thread")


class Attention(nn.Module):
    """Every position with every other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.project(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        mixed = torch.softmax(q @ k.transpose(1, 2) / c**0.5, -1) @ v
        return x + mixed.transpose(1, 2).reshape(b, c, h, w)


class AttentionInBlocks(nn.Module):
    """As autoencoders of diffusion models have it: normalised first, and by PyTorch's function."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.after = nn.GroupNorm(2, channels), nn.Linear(channels, channels)
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (each(tokens)[:, None] for each in (self.q, self.k, self.v))
        mixed = self.after(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + mixed.transpose(1, 2).view(x.shape)


class AttentionByConvolutions(nn.Module):
    """As in LDM and CodeFormer: 1x1 convolutions, and scores that are transposed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.after = nn.GroupNorm(2, channels), nn.Conv2d(channels, channels, 1)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (each(y).reshape(b, c, h * w) for each in (self.q, self.k, self.v))
        weights = F.softmax(torch.bmm(q.permute(0, 2, 1), k) * int(c) ** -0.5, dim=2).permute(0, 2, 1)
        return x + self.after(torch.bmm(v, weights).reshape(b, c, h, w))


class Autoencoder(nn.Module):
    def __init__(self, middle: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(6, 8, 5, stride=2, padding=2)
        )
        self.middle = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), middle(), nn.Conv2d(8, 8, 3, padding=1), middle()
        )
        self.up = nn.ConvTranspose2d(8, 3, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.middle(self.down(x)))


def autoencoder(middle: Callable[[], nn.Module] = lambda: Attention(8)) -> nn.Module:
    torch.manual_seed(0)
    return Autoencoder(middle).eval()


class Gated(Autoencoder):
    """With a barrier beside, and maps of before that are read afterwards."""

    def forward(self, x: Tensor) -> Any:
        y = self.down(x)
        z = self.middle(y) * y.mean((2, 3), keepdim=True) + y
        return {"image": self.up(z), "latent": z}


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize("kind", [Autoencoder, Gated])
def test_the_rest_runs_in_tiles(kind: type[Autoencoder], schedule: Any) -> None:
    torch.manual_seed(0)
    model = kind(lambda: Attention(8)).eval()
    tiled = overlap_tool.wrap(model, tile=(20, 24), schedule=schedule)
    for size in ((64, 96), (61, 83)):
        image = torch.rand(2, 3, *size)
        with torch.no_grad(), overlap_tool.exact_kernels():
            found, expected = tiled(image), model(image)
        for a, b in zip(
            *(x.values() if isinstance(x, dict) else [x] for x in (found, expected)), strict=True
        ):
            assert torch.equal(a, b)


def test_it_is_named() -> None:
    stage = overlap_tool.analyze(autoencoder(), size=(640, 480)).stages[0]
    assert stage.overlap is None
    assert stage.passes == 3
    assert [segment.kept_whole for segment in stage.segments] == [("middle.1",), ("middle.3",), ()]
    # each map is stored once, and once what was made of it
    assert stage.store_bytes == 2 * 4 * 8 * 160 * 120
    # one block of scores as a product, once more scaled, and two more of its softmax; not 1.5 GB
    assert all(
        3 * scores.BLOCK < taken < 4 * scores.BLOCK
        for segment in stage.segments
        for taken in segment.whole_bytes
    )


STYLES = {"products": Attention, "torch's": AttentionInBlocks, "transposed": AttentionByConvolutions}


@pytest.mark.parametrize("block", [1 << 40, 1 << 20, 1 << 12])
@pytest.mark.parametrize("style", STYLES)
def test_predicted_memory_is_the_true_peak_within_15_percent(
    style: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "BLOCK", block)
    model = autoencoder(lambda: STYLES[style](8))
    tiled = overlap_tool.wrap(model, tile=32)
    (stage,) = tiled_stages(tiled).values()
    image = torch.rand(1, 3, 124, 160)
    with torch.no_grad():
        tiled(image)  # the kernels are tried
        with LiveBytes(image, *tiled.parameters()) as live:
            found = tiled(image)
        monkeypatch.setattr(scores, "BLOCK", 1 << 40)
        with overlap_tool.exact_kernels():
            assert torch.equal(found, model(image))
    predicted, peak = stage.plan(Shape(1, 124, 160)).peak_bytes, live.peak + image.nbytes
    assert abs(predicted - peak) <= 0.15 * peak, predicted / peak
    assert (peak > 2 * 4 * (31 * 40) ** 2) == (block == 1 << 40)


def test_a_part_whose_steps_take_numbers_is_counted_by_pytorchs_own() -> None:
    class Remainders(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.fmod(x, 3))

    models = autoencoder(lambda: Attention(8)), autoencoder(lambda: Remainders(8))
    stages = [overlap_tool.analyze(model, size=(640, 480)).stages[0] for model in models]
    blocks, whole = (stage.segments[0].whole_bytes[0] for stage in stages)
    assert whole > 4 * 19200**2 > blocks, "scores are counted whole"


def test_what_a_part_takes_bounds_the_memory_that_is_asked_for() -> None:
    """The scores of one part come to 9.4 GB: in blocks, all of it runs in 100 MiB."""
    analysis = overlap_tool.analyze(autoencoder(), size=(896, 864), memory="100MiB")
    chosen = analysis.stages[0].chosen
    assert 3 * scores.BLOCK < chosen.bounded_bytes <= 100 << 20
    with pytest.raises(BudgetError, match="needs at least"):
        overlap_tool.analyze(autoencoder(), size=(896, 864), memory="40MiB")


def test_every_report_shows_it() -> None:
    analysis = overlap_tool.analyze(autoencoder(), size=(640, 480))
    for name, written in overlap_tool.report.FORMATS.items():
        assert "middle.1" in written(analysis), name
    assert "middle.1, whole" in overlap_tool.report.to_html(analysis)
    assert overlap_tool.report.svg_files(analysis)


def test_tiles_of_one_shape_around_it() -> None:
    model = autoencoder()
    tiled, image = overlap_tool.wrap(model, tile=32, uniform=True), torch.rand(1, 3, 61, 83)
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(tiled(image), model(image))


def test_a_part_that_is_called_with_several_maps_is_refused() -> None:
    class Twice(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            y = self.down(x)
            return self.up(self.middle[1](self.middle[1](y), y))

    class Pair(Attention):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return super().forward(x if y is None else x + y)

    torch.manual_seed(0)
    with pytest.raises(OverlapToolError):
        overlap_tool.analyze(Twice(lambda: Pair(8)).eval())


def test_verify_holds() -> None:
    certificate = overlap_tool.verify(autoencoder(), tiles=[32], size=(96, 80), ablate=True)
    assert certificate.holds


def test_a_part_at_the_images_size_is_refused() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention = nn.Conv2d(3, 8, 3, padding=1), Attention(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.first(x))

    with pytest.raises(OverlapToolError, match="attention"):
        overlap_tool.analyze(Plain().eval())


def test_a_part_that_returns_another_size_is_refused() -> None:
    class Shrinking(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :, ::2, ::2]

    with pytest.raises(OverlapToolError, match=r"middle\.1"):
        overlap_tool.analyze(autoencoder(lambda: Shrinking(8)))


class Mixing(nn.Module):
    """Every position with every other, channels last."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        return ((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).view(x.shape)


class MixingInside(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, stride, 1)
        self.mix = Mixing()
        self.tail = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.mix(self.head(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_a_part_with_its_channels_last_stays_whole_on_coarse_maps_alone() -> None:
    torch.manual_seed(0)
    with pytest.raises(GlobalOpError, match="every position with every other"):
        overlap_tool.wrap(MixingInside(1).eval(), tile=16)
    model = MixingInside(2).eval()
    image = torch.rand(2, 3, 40, 57)
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(overlap_tool.wrap(model, tile=16)(image), model(image))
