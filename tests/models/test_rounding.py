"""A quantiser is known by what it does: codecs that round in code of their own have parts that are tiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.networks import PlainCnn
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import TraceError
from overlap_tool.models.stages import survey


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Quantiser(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Straight.apply(x)


ROUND = {
    "round": torch.round,
    "in place": lambda x: x.clone().round_(),
    "a half and floor": lambda x: torch.floor(x + 0.5),
    "a detached sum": lambda x: x + (x.round() - x).detach(),
    "an autograd function": Straight.apply,
    "a module": Quantiser(),
}


class RoundingCodec(nn.Module):
    """Transforms by name, and all that lies between them in methods of its own: masks, and the quantiser."""

    def __init__(self, quantise: Any = torch.round) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.LeakyReLU(), nn.Conv2d(8, 8, 5, 2, 2))
        self.dec = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)
        )
        self.prior = nn.Conv2d(8, 8, 3, padding=1)
        self.quantise = quantise

    def code(self, y: Tensor) -> Tensor:
        y = 20 * y
        mask = torch.zeros_like(y, dtype=torch.bool)
        mask[..., ::2, ::2] = True
        anchors = torch.zeros_like(y)
        anchors[mask] = self.quantise(y).masked_select(mask)
        means = self.prior(anchors)
        return anchors + (self.quantise(y - means) + means) * ~mask

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y_hat = self.code(self.enc(x))
        return {"x_hat": self.dec(y_hat / 20), "y_hat": y_hat}


class WithCompress(RoundingCodec):
    def compress(self, x: Tensor) -> dict[str, Any]:
        return {"strings": [[self.code(self.enc(x)).numpy().tobytes()]], "shape": x.shape[2:]}


@pytest.mark.parametrize("quantise", ROUND.values(), ids=ROUND)
def test_code_that_rounds_is_no_stage_and_the_transforms_around_it_are(quantise) -> None:
    found = survey(WithCompress(quantise))
    assert [stage.name for stage in found.stages] == ["enc", "dec", "prior"]
    assert (found.multiple, found.untiled) == (4, ())


def test_tiles_give_the_bits_of_code_that_rounds() -> None:
    torch.manual_seed(0)
    model = RoundingCodec().eval()
    image = torch.rand(1, 3, 88, 120)
    with torch.no_grad():
        with overlap_tool.exact_kernels():
            whole = model(image)
        assert whole["y_hat"].unique().numel() > 100
        tiled = overlap_tool.wrap(model, tile=32)(image)
    assert all(torch.equal(tiled[key], whole[key]) for key in whole)


def test_a_codec_whose_ops_all_have_rules_is_still_taken_apart() -> None:
    class Pointwise(WithCompress):
        def code(self, y: Tensor) -> Tensor:
            return torch.round(y)

    assert [stage.name for stage in survey(Pointwise()).stages] == ["enc", "dec", "prior"][:2]


def test_a_network_that_rounds_and_codes_nothing_is_one_stage() -> None:
    class InSteps(PlainCnn):
        def forward(self, x: Tensor) -> Tensor:
            return torch.round(super().forward(x) * 255) / 255

    (stage,) = survey(InSteps()).stages
    assert stage.name == ""


def test_what_rounds_only_its_result_as_fine_as_the_image_keeps_its_refusal() -> None:
    class Sorted(PlainCnn):
        def forward(self, x: Tensor) -> Tensor:
            return torch.round(super().forward(x.sort(-1)[0]) * 255) / 255

    with pytest.raises(TraceError, match="sort"):
        survey(Sorted())


def test_a_codec_in_which_nothing_is_seen_to_round_is_told_to_name_its_quantiser() -> None:
    with pytest.raises(TraceError, match=r"reads the values of its input.*register_quantiser"):
        survey(WithCompress(lambda y: y.to(torch.int32).float()))


def test_a_codec_that_does_not_run_on_an_image_alone_is_refused_for_that() -> None:
    class OfARate(WithCompress):
        def forward(self, x: Tensor, index: int | None = None) -> dict[str, Tensor]:
            assert index is not None
            return super().forward(x)

    with pytest.raises(TraceError, match=r"cannot be run.*a call that works"):
        survey(OfARate())
