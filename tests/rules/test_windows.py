"""Attention in windows as Swin has it, on pieces, against roll and mask on the whole map."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import ways
from support.cases import tries
from support.probes import perturbation_dependence
from support.swin import SwinAttention
from support.ways import Planner, stream, tiles
from torch import Tensor, nn

from overlap_tool import exact_kernels, verify
from overlap_tool.errors import GlobalOpError
from overlap_tool.geometry import Span
from overlap_tool.geometry.plan import whole
from overlap_tool.graph.network import Input
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.graph.tracer import TrialError
from overlap_tool.planning.choose import Shape, plan_stage
from overlap_tool.rules.layers import ChannelLinear, ChannelNorm
from overlap_tool.settings import Settings
from overlap_tool.verification.blame import find_fault

MASKS = (-100.0, -torch.inf)


class Case(NamedTuple):
    module: nn.Module
    input: Tensor
    tile: tuple[int, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One or two attentions, with a convolution between them that asks for parts of windows."""
    torch.manual_seed(draw(st.integers(0, 99)))
    window, fills = draw(st.integers(1, 5)), draw(st.booleans())
    heads, closed = draw(st.integers(1, 3)), draw(st.sampled_from(MASKS))
    channels = heads * draw(st.integers(1, 3))

    def attention() -> nn.Module:
        return SwinAttention(channels, heads, window, draw(st.integers(0, window - 1)), fills, closed)

    layers: list[nn.Module] = [attention()]
    if draw(st.booleans()):
        kernel, ahead = draw(st.sampled_from([(1, 0), (2, 0), (3, 0), (3, 2)]))
        between = nn.Sequential(nn.ConstantPad2d((0, kernel - 1, ahead, kernel - 1 - ahead), 0.0))
        layers += [between.append(nn.Conv2d(channels, channels, kernel)), attention()]
    sides = (draw(st.integers(1, 4)) * (1 if fills else window) for _ in "hw")
    height, width = (side + draw(st.integers(0, 8)) if fills else side for side in sides)
    x = torch.randn(draw(st.integers(1, 2)), channels, height, width, dtype=torch.float64)
    tile = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return Case(nn.Sequential(*layers).double().eval(), x, tile)


def in_tiles(case: Case, planner: Planner) -> Tensor:
    network = trace(case.module, "stage", case.input.shape[1])
    return ways.in_tiles(network, case.input, case.tile, planner)


@pytest.mark.parametrize("planner", [stream, tiles])
@given(case=cases())
@tries(8)
def test_pieces_give_what_roll_and_mask_give_on_the_whole_map(planner, case):
    with torch.no_grad():
        torch.testing.assert_close(in_tiles(case, planner), case.module(case.input), rtol=0, atol=1e-12)


@pytest.mark.parametrize("planner", [stream, tiles])
@given(case=cases(), dtype=st.sampled_from([torch.float32, torch.float64]))
@tries(5)
def test_pieces_give_the_bits_of_the_whole_map_under_the_exact_engine(planner, case, dtype):
    case = case._replace(module=case.module.to(dtype), input=case.input.to(dtype))
    with torch.no_grad(), exact_kernels():
        assert torch.equal(in_tiles(case, planner), case.module(case.input))


@given(case=cases(), far=st.floats(0, 40))
@tries(5)
def test_keys_that_a_mask_of_minus_100_takes_away_leave_no_trace(case, far):
    """Similarities that differ by up to 40 between keys that are seen and keys that are masked."""
    module = case.module[0].float()
    module.bias.data.uniform_(0, 1)
    module.bias.data[:, :, 0] += far
    case = case._replace(module=module, input=case.input.float() / 4)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(in_tiles(case, tiles), module(case.input))


def test_a_mask_that_leaks_is_none():
    """A key behind the mask that is 200 above what is seen: the model attends to the image's other end."""
    module = SwinAttention(4, 2, 4, 2)
    module.bias.data[:, :, 0] += 200
    with pytest.raises(GlobalOpError, match="opposite border"):
        trace(module, "stage", 4)
    module.bias.data[:, :, 0] -= 200
    network, x = fitted(trace(module, "stage", 4), 1, 16, 16), torch.randn(1, 4, 16, 16)
    plan = plan_stage("stage", network, Fraction(1), Shape(1, 16, 16), Settings(tile=(8, 8)))
    assert find_fault(plan, x).fault == "schedule", "no op differs"


@pytest.mark.parametrize(("window", "shift"), [(4, 0), (4, 1), (4, 2), (4, 3), (3, 1), (2, 1)])
def test_what_a_tile_reads_is_what_brute_force_finds(window: int, shift: int) -> None:
    """Of every row and column, at sizes of all residues: no sample less, at either end, and none more."""
    torch.manual_seed(window + shift)
    module = SwinAttention(2, 1, window, shift, fills=True, closed=-torch.inf).double().eval()
    traced = trace(module, "stage", 2)
    for more in range(window):
        height, width = 2 * window + 1 + more, 3 * window + (more + 2) % window
        image = torch.randn(1, 2, height, width, dtype=torch.float64)
        network = fitted(traced, 1, height, width)
        last = len(network.ops) - 1
        for dim, axis, n in ((2, network.rows, height), (3, network.columns, width)):
            depends = perturbation_dependence(module, image, dim - 4)
            sizes = axis.sizes(n)
            for start in range(n):
                for stop in (start + 1, min(n, start + 3)):
                    inputs = depends[start:stop].any(0).nonzero().flatten().tolist()
                    said = axis.needs({last: Span(start, stop)}, sizes)[0]
                    assert said == Span(inputs[0], inputs[-1] + 1), (height, width, dim, start, stop)


def test_no_overlap_of_masked_windows_is_larger_than_it_has_to_be() -> None:
    """By the executor: a tile with one line less on any side comes out wrong."""
    torch.manual_seed(0)
    windows = (SwinAttention(4, 2, 4, shift, fills=True) for shift in (2, 0))
    module = nn.Sequential(nn.Conv2d(3, 4, 1), *windows)
    certificate = verify(module.eval(), tiles=[8], size=(26, 23))
    assert certificate.holds
    assert "minimality" in {check.name for check in certificate.of("passed")}


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_windows_are_computed_once(shift):
    network = fitted(trace(SwinAttention(4, 2, 4, shift), "stage", 4), 1, 24, 24)
    axis = network.rows
    attention = [i for i, op in enumerate(network.ops) if not isinstance(op, Input) and op.kind == "softmax"]
    plan = stream(axis, 24, 5)
    assert [plan.computed[i] for i in attention] == [6 + (shift > 0)]
    assert [step.compute[i] for step in whole(axis, 24).steps for i in attention] == [(0, 6 + (shift > 0))]


def test_an_input_that_is_not_whole_windows_is_left_to_the_model():
    network = trace(SwinAttention(4, 2, 4, 2), "stage", 4)
    assert fitted(network, 1, 8, 12).accepts(8, 12)
    with pytest.raises(TrialError) as refused:
        fitted(network, 1, 8, 13)
    assert isinstance(refused.value.own, RuntimeError)
    fills = trace(SwinAttention(4, 2, 4, 2, fills=True), "stage", 4)
    assert fitted(fills, 1, 8, 13).accepts(8, 13)


def test_layers_of_tokens_on_maps_are_pytorchs_own():
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    linear, norm = nn.Linear(6, 4).double(), nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight)
    ours = ChannelLinear(6, 4).double(), ChannelNorm(6).double()
    for mine, theirs in zip(ours, (linear, norm), strict=True):
        mine.load_state_dict(theirs.state_dict())
        expected = theirs(tokens).transpose(1, 2).unflatten(2, (5, 7))
        torch.testing.assert_close(mine(x), expected, rtol=0, atol=1e-14)
    network = trace(nn.Sequential(ChannelNorm(6), ChannelLinear(6, 4)), "stage", 6)
    assert [op.rule.macs for op in network.ops[1:]] == [0, 24]
    assert not network.has_spatial_context
