"""Ops without an exact kernel: PyTorch's own on whole tensors, and refused in tiles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

import overlap_tool
from overlap_tool import exact_kernels, kernels, report
from overlap_tool.errors import ExactnessError

X = torch.rand(2, 6, 33, 35, generator=torch.Generator().manual_seed(0)) + 0.1
GRID = torch.rand(2, 9, 7, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1

UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "mse_loss": lambda x: F.mse_loss(x, x * 0.7),
    "igamma": lambda x: torch.igamma(x, x + 1),
    "asinh": lambda x: torch.asinh(x),
    "grid_sampler_2d": lambda x: F.grid_sample(x, GRID, align_corners=False),
    "upsample_bicubic2d": lambda x: F.interpolate(x, scale_factor=1.7, mode="bicubic"),
    "linalg_vector_norm": lambda x: torch.linalg.vector_norm(x, 3, (2, 3)),
    "asinh_": lambda x: (x * 1).asinh_(),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_on_whole_tensors_the_librarys_kernel_computes(name: str) -> None:
    with exact_kernels(), kernels.ops_of_the_library() as told:
        found = UNKNOWN[name](X)
    torch.testing.assert_close(found, UNKNOWN[name](X))
    assert [op.removeprefix("aten::") for op in told] == [name]


@pytest.mark.parametrize("name", UNKNOWN)
def test_on_pieces_of_maps_it_is_refused(name: str) -> None:
    with pytest.raises(ExactnessError), exact_kernels(), kernels.pieces():
        UNKNOWN[name](X)


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_bits_do_not_depend_on_where_a_tensor_lies(name: str) -> None:
    room = torch.zeros(X.numel() + 3)
    shifted = room[3:].view_as(X).copy_(X)
    with exact_kernels():
        expected = UNKNOWN[name](X)
        for other in (X.contiguous(memory_format=torch.channels_last), shifted, X.mT.contiguous().mT):
            assert torch.equal(UNKNOWN[name](other), expected)


def test_an_op_in_place_changes_its_tensor_wherever_that_lies() -> None:
    x = X.contiguous(memory_format=torch.channels_last).clone()
    with exact_kernels():
        assert x.asinh_() is x
    assert torch.equal(x, torch.asinh(X))


def test_what_is_given_to_write_into_is_refused() -> None:
    with pytest.raises(ExactnessError), exact_kernels():
        torch.asinh(X, out=torch.empty_like(X))


class Scored(nn.Module):
    """A codec that computes a loss and warps its latent between its stages."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.g_a = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 5, 2, 2))
        self.entropy = EntropyBottleneck(8)
        self.g_s = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.g_a(x) * 400
        y = torch.asinh(y) * 9
        y_hat, likelihoods = self.entropy(F.interpolate(y, scale_factor=1, mode="bicubic"))
        x_hat = self.g_s(y_hat)
        return {"x_hat": x_hat, "likelihoods": likelihoods, "loss": F.mse_loss(x_hat, x)}


def test_a_tiled_codec_gives_the_untouched_ones_bits_with_such_ops_between_its_stages() -> None:
    model = Scored().eval()
    x = torch.rand(1, 3, 128, 192)
    with torch.no_grad():
        with exact_kernels():
            whole = model(x)
        for schedule in ("stream", "tiles"):
            tiled = overlap_tool.wrap(model, tile=32, schedule=schedule)(x)
            assert all(torch.equal(tiled[name], whole[name]) for name in whole)


def test_the_certificate_has_a_row_for_each() -> None:
    certificate = overlap_tool.verify(Scored().eval(), size=(128, 64), tiles=[32])
    assert certificate.holds
    assert certificate.library_ops == ("aten::asinh", "aten::upsample_bicubic2d", "aten::mse_loss")
    for form in (report.certificate_to_html, report.certificate_to_json, report.certificate_to_markdown):
        assert "aten::mse_loss" in form(certificate)


class Cubed(nn.Module):
    """A rule knows what it reads; there is no exact kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.conv(x), 3, 1, keepdim=True)


@pytest.mark.parametrize("tile", [16, 512])
def test_inside_tiles_it_stays_refused_however_many_there_are(tile: int) -> None:
    tiled = overlap_tool.wrap(Cubed().eval(), tile=tile)
    with torch.no_grad(), pytest.raises(ExactnessError, match=r"order 3.*no exact kernel"):
        tiled(torch.rand(1, 3, 40, 40))
