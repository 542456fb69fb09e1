"""Random networks, tiles and images: each way gives the full image of the original module, bit for bit.

`CASES=5000 pytest tests/graph/test_random_networks.py` tries as many others, and `make test-slow` 12,000.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from support.cases import tries
from support.random_networks import Case, Layer, RandomNetwork, cases
from support.ways import WAYS, in_tiles
from torch import nn

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.graph.trace import trace
from overlap_tool.runtime import repeated
from overlap_tool.verification.observing import tensors_in

pytestmark = pytest.mark.usefixtures("one_thread")


def check(case: Case) -> None:
    x = case.image()
    with torch.no_grad():
        full = case.network(x.clone())
    assert full.isfinite().all()
    assert full.abs().max() < 2.0**53, "no longer exact"
    network = trace(case.network, "net", case.network.channels)
    for way, how in WAYS.items():
        assert torch.equal(in_tiles(network, x, case.tile, *how), full), way
    assert torch.equal(x, case.image()), "the input was changed"


def check_wrapped(case: Case) -> None:
    """The same of networks whose code asks for the size, or that return several maps."""
    x = case.image()
    with torch.no_grad():
        whole = tensors_in(case.network.eval()(x.clone()))
    for schedule, batch in (("stream", 1), ("tiles", 2)):
        tiled = overlap_tool.wrap(
            case.network, tile=case.tile, schedule=schedule, batch=batch, engine="stock"
        )
        found = tensors_in(tiled(x.clone()))
        assert list(found) == list(whole)
        for name, map in whole.items():
            assert torch.equal(found[name], map), (schedule, name)


REAL = {nn.ReLU6: nn.GELU, nn.PReLU: nn.Softplus, nn.Identity: nn.SiLU}
"""What takes the place of activations that keep integers."""


def check_exactly(case: Case) -> None:
    """The same in float32, on numbers that round at every step, with the exact engine."""
    network = copy.deepcopy(case.network).float()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    for i, module in enumerate(network.ops):
        if type(module) in REAL:
            network.ops[i] = REAL[type(module)]()
    x = case.image().float() * 0.37
    with torch.no_grad(), exact_kernels():
        full = network(x.clone())
        traced = trace(network, "net", network.channels)
        found = {way: in_tiles(traced, x, case.tile, *how) for way, how in WAYS.items()}
    assert full.isfinite().all()
    for way, result in found.items():
        assert torch.equal(result, full), way


@tries(80, derandomize=True)
@given(cases())
def test_tiles_of_random_networks_are_the_full_image(case):
    check(case)


@tries(80, derandomize=True)
@given(cases())
def test_tiles_are_the_full_image_bit_for_bit_in_single_precision(case):
    check_exactly(case)


@tries(25, derandomize=True)
@given(cases())
def test_tiles_that_are_replayed_are_the_full_image_bit_for_bit(case):
    """However little work they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(repeated.WORTH, "cpu", 1)
        check_exactly(case)


@tries(25, derandomize=True)
@given(cases(sizes=True))
def test_networks_that_ask_for_sizes_give_the_full_image(case):
    check_wrapped(case)


# --- what random networks have found ----------------------------------------------------------------------


def test_a_tile_that_padding_alone_feeds():
    """Nothing was at hand for it, and the executor looked for it."""
    layers = [Layer("nn.Conv2d", (0,), (1, 1, 1, 1, 2)), Layer("nn.Conv2d", (1,), (1, 2, 3, 1, 1))]
    check(Case(RandomNetwork(1, layers), (2, 1, 1, 3), (1, 1)))


def test_one_roll_after_another():
    """The first outputs of the second read the end of the first, which reads what lies before its own end:
    the first roll was said to be computed up to its end when its input was not yet."""
    layers = [
        Layer("torch.roll", (0,), ((-7, -9), (-1, -2))),
        Layer("torch.roll", (1,), ((0, 3), (2, 3))),
    ]
    check(Case(RandomNetwork(1, layers), (1, 1, 17, 17), (3, 3)))


def test_a_sum_over_one_channel_that_is_changed_in_place():
    """Under `exact_kernels()` it was the map itself, so the untouched model gave what no tile gave."""
    layers = [
        Layer("nn.Conv2d", (0,), (1, 1, 1)),
        Layer("torch.sum", (1,), (), {"dim": 1, "keepdim": True}),
        Layer("nn.ReLU", (2,), (), {"inplace": True}),
        Layer("operator.add", (1, 3)),
    ]
    check_exactly(Case(RandomNetwork(1, layers), (1, 1, 4, 5), (2, 2)))


def test_a_portrait_whose_code_asks_which_side_is_longer():
    """It was compared with landscapes alone, which take the other way; then with an image of a few rows more,
    whose 5 more of a multiple of 5 were taken for the scale of the map."""
    layers = [
        Layer("nn.Conv2d", (0,), (1, 1, 3, 1, 1)),
        Layer("own.filled_up_around", (1,), (5,)),
        Layer("own.by_the_longer_side", (2, 0)),
        Layer("own.sized_as", (3, 1), ("nearest",)),
        Layer("torch.maximum", (4, 1)),
    ]
    check_wrapped(Case(RandomNetwork(1, layers), (1, 1, 12, 1), (3, 5)))


def test_a_ninth_brought_to_the_size_of_the_image():
    """Trial sizes were no multiples of 9, so that the scale of a strided third of a third was not known."""
    layers = [
        Layer("nn.Conv2d", (0,), (1, 1, 3, 1, 1)),
        Layer("nn.PixelUnshuffle", (1,), (3,)),
        Layer("nn.Conv2d", (2,), (9, 1, 1, 3)),
        Layer("own.filled_up", (3,), (4, "constant")),
        Layer("own.sized_as", (4, 1), ("nearest",)),
        Layer("torch.maximum", (5, 1)),
    ]
    check_wrapped(Case(RandomNetwork(1, layers), (1, 1, 6, 18), (6, 5)))


def test_every_other_row_of_one_row():
    """It was taken for all rows, of which a map of every other one has half: branches of different scale."""
    layers = [
        Layer("nn.Conv2d", (0,), (1, 1, 3, 1, 1)),
        Layer("nn.Conv2d", (1,), (1, 1, 3, 1, 1)),
        Layer("own.overwritten", (1, 2), (2,)),
    ]
    check_wrapped(Case(RandomNetwork(1, layers), (1, 1, 1, 1), (1, 1)))
