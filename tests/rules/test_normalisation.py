"""Normalisation by a map's own figures: what it is traced as, against PyTorch's own functions."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import tries
from support.random_networks import Case, cases
from torch import Tensor, nn

import overlap_tool
from overlap_tool import analyze, exact_kernels
from overlap_tool.errors import PluginError
from overlap_tool.graph.segments import cut
from overlap_tool.graph.trace import trace
from overlap_tool.rules import compose
from overlap_tool.rules.normalisation import group_norm, instance_norm

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(module: nn.Module) -> nn.Module:
    """In eval mode, no number of it 0 or 1."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point() and not name.endswith("mask"):
            tensor.data = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.3
    return module.eval()


NORMS = {
    "groups": nn.GroupNorm(3, 6),
    "one group": nn.GroupNorm(1, 6, eps=0.1),
    "no factors": nn.GroupNorm(2, 6, affine=False),
    "instances": nn.InstanceNorm2d(6),
    "instances, factors": nn.InstanceNorm2d(6, affine=True, eps=0.01),
    "instances, stored figures": nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "stored figures alone": nn.InstanceNorm2d(6, track_running_stats=True),
}


class Block(nn.Module):
    """Normalised before it is activated, and added to what it began with."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = norm
        self.body = nn.Conv2d(6, 6, 5, padding=2)
        self.tail = nn.Conv2d(6, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(x + self.body(F.silu(self.norm(x))))


@pytest.fixture(params=NORMS)
def block(request) -> nn.Module:
    return seeded(Block(copy.deepcopy(NORMS[request.param])))


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_tiles_give_the_untouched_models_bits(block, schedule):
    x = torch.randn(2, 3, 45, 38, generator=torch.Generator().manual_seed(6)) * 3 + 1
    with torch.no_grad():
        with exact_kernels():
            full = block(x)
        assert torch.equal(overlap_tool.wrap(block, tile=(11, 16), schedule=schedule)(x), full)
        assert block.double()(x.double()).allclose(full.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_with_the_librarys_kernels_only_the_last_bits_differ(block, schedule):
    x = torch.randn(2, 3, 45, 38, dtype=torch.double) * 3 + 1
    block = block.double()
    tiled = overlap_tool.wrap(block, tile=(11, 16), schedule=schedule, engine="stock")
    with torch.no_grad():
        torch.testing.assert_close(tiled(x), block(x), rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from([(2, 4, 5, 7), (1, 6, 1, 9), (3, 2, 2, 3, 4), (1, 12, 1, 2), (2, 6, 8, 1)]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_compositions_are_the_functions(shape, groups, factors):
    x = torch.randn(shape, dtype=torch.double) * 2 - 1
    weight, bias = (torch.randn(shape[1], dtype=torch.double) if factors else None for _ in "wb")
    torch.testing.assert_close(
        group_norm(x, groups, weight, bias, 0.01), F.group_norm(x, groups, weight, bias, 0.01)
    )
    torch.testing.assert_close(
        instance_norm(x, weight=weight, bias=bias, eps=0.1),
        F.instance_norm(x, weight=weight, bias=bias, eps=0.1),
    )


class Normalised(nn.Module):
    """A drawn network between two norms, the first of which sees all that it makes."""

    def __init__(self, drawn: nn.Module, channels: int, groups: int) -> None:
        super().__init__()
        self.drawn = drawn
        self.first = nn.GroupNorm(groups, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drawn(x)
        return x + self.second(self.mix(self.first(x)))


@tries(12, derandomize=True)
@given(cases(), st.data())
def test_random_networks_with_norms_give_the_full_images_bits(case: Case, data: st.DataObject):
    x = case.image().float() * 0.37
    with torch.no_grad():
        made = case.network(case.image())
    if made[0, 0].numel() == 1:
        return  # PyTorch refuses to normalise a single number
    channels = made.shape[1]
    groups = data.draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))
    module = seeded(Normalised(copy.deepcopy(case.network), channels, groups).float())
    with torch.no_grad():
        with exact_kernels():
            full = module(x)
        for schedule in ("stream", "tiles"):
            tiled = overlap_tool.wrap(module, tile=case.tile[::-1], schedule=schedule)
            assert torch.equal(tiled(x), full), schedule


def test_a_norm_is_a_pass_more_and_stores_its_map_once():
    first, second = cut(trace(seeded(Block(nn.GroupNorm(3, 6))), ""))
    assert first.stored == ("head",)
    assert [node.name for node in first.reduced if hasattr(node, "rule")] == ["norm.moments"]
    assert second.stored == ()
    assert "body" in [op.name for op in second.network.ops]


def test_stored_figures_need_no_pass_of_their_own():
    (only,) = cut(trace(seeded(Block(NORMS["instances, stored figures"])), ""))
    assert [op.name for op in only.network.ops][-1] == "tail"


def test_verify_holds():
    certificate = overlap_tool.verify(seeded(Block(nn.GroupNorm(3, 6))), tiles=[16])
    assert certificate.holds, [check.message for check in certificate.of("failed")]
    assert {plan.passes for plan in certificate.plans} == {2}


class InDoublePrecision(nn.GroupNorm):
    """As diffusion models write it, for single precision."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.double()).type(input.dtype)


def test_a_subclass_that_converts_its_input_is_looked_into():
    module = seeded(Block(InDoublePrecision(3, 6).double()))
    module.norm = module.norm.double()
    x = torch.randn(1, 3, 30, 41)
    with torch.no_grad():
        with exact_kernels():
            full = module(x)
        assert torch.equal(overlap_tool.wrap(module, tile=8)(x), full)


def test_what_a_function_is_made_of_is_said_once():
    with pytest.raises(PluginError, match="already"):
        compose(F.group_norm)(lambda input, groups: input)
    with pytest.raises(PluginError, match="already"):
        compose(nn.Conv2d)(lambda input: input)


def test_layers_of_a_norm_are_in_the_report():
    (stage,) = analyze(seeded(Block(nn.InstanceNorm2d(6, affine=True))), size=(64, 48), tiles=[16]).stages
    assert stage.passes == 2
    assert stage.segments[0].barriers == ("norm.moments",)
