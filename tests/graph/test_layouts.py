"""Blocks that put the channels last and work there, as ConvNeXt's do: overlaps, bits, MACs and memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.probes import COLUMNS, ROWS, perturbation_dependence
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, CNBlockConfig, ConvNeXt, LayerNorm2d
from torchvision.models.efficientnet import FusedMBConv, FusedMBConvConfig

import overlap_tool
from overlap_tool.errors import TraceError, UnknownOpError
from overlap_tool.geometry import Span
from overlap_tool.graph.trace import trace
from overlap_tool.planning.choose import Shape
from overlap_tool.planning.live_bytes import LiveBytes
from overlap_tool.verification.blame import find_fault
from overlap_tool.wrapping.retrofit import tiled_stages

pytestmark = pytest.mark.usefixtures("one_thread")


def block(width: int = 8) -> nn.Module:
    """What ConvNeXt is made of, with a scale that lets its branch be seen."""
    torch.manual_seed(0)
    made = CNBlock(width, layer_scale=0.5, stochastic_depth_prob=0.1)
    return nn.Sequential(nn.Conv2d(3, width, 1), made, LayerNorm2d(width)).eval()


def backbone() -> nn.Module:
    torch.manual_seed(0)
    stages = [CNBlockConfig(8, 12, 2), CNBlockConfig(12, None, 1)]
    model = ConvNeXt(stages, stochastic_depth_prob=0.2, layer_scale=0.5)
    return model.features.eval()


def inverted() -> nn.Module:
    """A block of EfficientNetV2, which is dropped at random in training only."""
    torch.manual_seed(0)
    config = FusedMBConvConfig(4, 3, 1, 8, 8, 1)
    made = FusedMBConv(config, stochastic_depth_prob=0.5, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), made).eval()


NETWORKS = {"block": block, "backbone": backbone, "inverted": inverted}
OVERLAPS = {"block": (3, 3), "inverted": (3, 2)}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps_are_those_of_the_convolutions(name: str) -> None:
    (stage,) = overlap_tool.analyze(NETWORKS[name]()).stages
    assert (stage.left, stage.right) == (stage.top, stage.bottom) == OVERLAPS[name]


@pytest.mark.parametrize(("dim", "size"), [(ROWS, (23, 9)), (COLUMNS, (9, 23))])
def test_a_block_reads_what_brute_force_finds(dim: int, size: tuple[int, int]) -> None:
    net = block().double()
    network = trace(net, "block")
    axis = network.rows if dim == ROWS else network.columns
    real = perturbation_dependence(net, torch.rand(1, 3, *size, dtype=torch.float64), dim)
    for output, inputs in enumerate(real):
        claimed = axis.needs({len(axis.ops) - 1: Span(output, output + 1)}, axis.sizes(23))[0]
        assert inputs.nonzero().flatten().tolist() == list(range(*claimed))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_tiles_give_the_same_bits(name: str, schedule: str) -> None:
    net = NETWORKS[name]()
    image = torch.rand(2, 3, 76, 101)
    with torch.no_grad():
        with overlap_tool.exact_kernels():
            expected = net(image)
        tiled = overlap_tool.wrap(net, tile=(24, 16), schedule=schedule)
        assert torch.equal(tiled(image), expected)
        torch.testing.assert_close(expected, net(image), rtol=1e-4, atol=1e-4)
        uniform = overlap_tool.wrap(net, tile=(24, 16), schedule="tiles", uniform=True)
        assert torch.equal(uniform(image), expected)


def test_verification_holds() -> None:
    certificate = overlap_tool.verify(block(), tiles=[16], size=(64, 48))
    assert certificate.holds
    assert {check.name for check in certificate.of("passed")} >= {"stage-equality", "minimality"}


def test_every_op_gives_in_tiles_what_the_models_own_op_gives() -> None:
    """Which is how a difference is blamed on one of them: by what the model calls, in its own layout."""
    (forward,) = tiled_stages(overlap_tool.wrap(backbone(), tile=16)).values()
    image = torch.rand(1, 3, 48, 64)
    blame = find_fault(forward.plan(Shape(1, 48, 64)), image)
    assert (blame.fault, blame.op) == ("schedule", "")


def test_the_arithmetic_of_linear_layers_is_counted() -> None:
    (stage,) = overlap_tool.analyze(block(8), size=(64, 48)).stages
    assert stage.full_macs == (3 * 8 + 49 * 8 + 2 * 8 * 32) * 64 * 48


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_predicted_memory_is_the_true_peak_within_15_percent(schedule: str) -> None:
    tiled = overlap_tool.wrap(block(48), tile=128, schedule=schedule, inplace=True)
    (forward,) = tiled_stages(tiled).values()
    image = torch.rand(1, 3, 384, 520)
    with torch.no_grad(), LiveBytes(image, *tiled.parameters()) as live:
        tiled(image)
    predicted, peak = forward.plan(Shape(1, 384, 520)).peak_bytes, live.peak + image.nbytes
    assert abs(predicted - peak) <= 0.15 * peak, predicted / peak


class Doing(nn.Module):
    def __init__(self, compute) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, self.head(x))


def every_pair(x: Tensor) -> Tensor:
    """Of positions: (images, 1, 1, rows, columns) times (images, rows, columns, 1, 1)."""
    one = x.sum(1).unsqueeze(1).unsqueeze(1)
    return one * one.permute(0, 3, 4, 1, 2)


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda m, x: every_pair(x), "not the same dimensions"),
        (lambda m, x: F.dropout(x), "at random"),
    ],
)
def test_what_is_refused_says_why(compute, reason: str) -> None:
    with pytest.raises(UnknownOpError, match=reason):
        trace(Doing(compute).eval(), "stage")


class Tokens(nn.Module):
    """More channels than columns, behind them."""

    def __init__(self, compute) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 64, 8, 8)
        self.norm = nn.LayerNorm(64)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.norm(self.head(x).permute(0, 2, 3, 1)))


@pytest.mark.parametrize("compute", [torch.tanh, lambda tokens: tokens.softmax(-1)])
def test_a_stage_that_leaves_the_channels_last_is_refused_for_that(compute) -> None:
    """And not because a change spreads over its channels, as if they were columns."""
    with pytest.raises(TraceError, match="whose dimensions are not images") as caught:
        trace(Tokens(compute).eval(), "stage")
    assert type(caught.value) in (TraceError, UnknownOpError)


def test_dropout_that_is_told_of_the_mode_drops_nothing() -> None:
    net = Doing(lambda m, x: F.dropout(x, 0.5, m.training)).eval()
    image = torch.rand(1, 3, 40, 52)
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(overlap_tool.wrap(net, tile=16)(image), net(image))
