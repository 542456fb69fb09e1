"""Networks with barriers: pass by pass they give the original module's output, bit for bit, and what
`analyze`, `wrap` and `verify` say of them is true."""

from __future__ import annotations

import copy
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from support.counting import counted
from support.networks import TwoBarriers, two_barriers
from support.random_networks import Case, cases
from torch import Tensor, nn

import overlap_tool
from overlap_tool import analyze, exact_kernels
from overlap_tool.errors import GlobalOpError, OverlapToolError, UnknownOpError
from overlap_tool.graph.network import Network
from overlap_tool.graph.segments import cut
from overlap_tool.graph.trace import trace
from overlap_tool.planning.choose import BarrierBands, plan_segments
from overlap_tool.report import to_json, to_markdown
from overlap_tool.rules import Call, Operand, Reduction, WholeMap, register_rule
from overlap_tool.rules.normalisation import moments
from overlap_tool.runtime import passes
from overlap_tool.runtime.stores import TensorSink, TensorSource
from overlap_tool.settings import Schedule, Size, Store

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULES: list[Schedule] = ["stream", "tiles"]


def in_passes(
    network: Network,
    x: Tensor,
    tile: tuple[int, int],
    schedule: Schedule,
    batch: int = 1,
    store: Store = "device",
    uniform: bool = False,
) -> Tensor:
    """By tiles of this width and height of the input."""
    parts = plan_segments(
        network, Fraction(1), Size(x.shape[-1], x.shape[-2]), schedule, Size(*tile), uniform
    )
    sink = TensorSink(parts[-1].rows.sizes[-1], parts[-1].columns.sizes[-1])
    keep = partial(TensorSink, store=store)
    passes.run(network, parts, TensorSource(x, x.device), {network.output: sink}, keep, batch)
    return sink.result()


# --- random networks ----------------------------------------------------------------------------------------


def tile_of_input(case: Case, network: Network) -> tuple[int, int]:
    scales = network.columns.scale, network.rows.scale
    across, down = (max(1, ceil(side / scale)) for side, scale in zip(case.tile[::-1], scales, strict=True))
    return across, down


@tries(40, derandomize=True)
@given(cases(barriers=True))
def test_passes_of_random_networks_are_the_full_image(case):
    """Integers in float64, so that the library's own kernels are the oracle."""
    x = case.image()
    with torch.no_grad():
        full = case.network(x.clone())
    network = trace(case.network, "net", case.network.channels)
    assert len(cut(network)) > 1
    tile = tile_of_input(case, network)
    assert torch.equal(in_passes(network, x, tile, "stream"), full), "stream"
    assert torch.equal(in_passes(network, x, tile, "tiles"), full), "tiles"
    assert torch.equal(in_passes(network, x, tile, "tiles", batch=3), full), "tiles, three at once"


class Averaged(nn.Module):
    """Ends a drawn network in an average pool, whose bins may overlap, and a variance."""

    def __init__(self, drawn: nn.Module, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.drawn = drawn
        self.pool = nn.AdaptiveAvgPool2d(size)
        self.mix = nn.Conv2d(channels, channels, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drawn(x)
        x = x * torch.sigmoid(self.mix(self.pool(x)))
        return x / (x.var((2, 3), unbiased=False, keepdim=True) + 1).sqrt()


@tries(20, derandomize=True)
@given(cases(barriers=True), st.integers(1, 4), st.integers(1, 4))
def test_passes_are_the_full_image_bit_for_bit_in_single_precision(case, down, across):
    """Numbers that round at every step, with the exact engine."""
    with torch.no_grad():
        channels = case.network(case.image()).shape[1]
    module = Averaged(copy.deepcopy(case.network), channels, (down, across)).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    x = case.image().float() * 0.37
    network = trace(module, "net", case.network.channels)
    tile = tile_of_input(case, network)
    with torch.no_grad(), exact_kernels():
        full = module(x.clone())
        assert full.isfinite().all()
        for schedule in SCHEDULES:
            assert torch.equal(in_passes(network, x, tile, schedule), full), schedule
        assert torch.equal(in_passes(network, x, tile, "tiles", batch=3), full), "tiles, three at once"


# --- one network, by hand -----------------------------------------------------------------------------------


def test_a_stage_is_cut_after_every_barrier_and_stores_what_later_passes_read():
    segments = cut(trace(two_barriers(), ""))
    names = [[op.name for op in segment.network.ops] for segment in segments]
    assert names == [
        ["TwoBarriers", "head"],
        ["head", "first.expand_as", "first.mul", "down"],
        # `side` could run in the pass before, but then its output had to be stored beside `head`
        ["down", "mul", "head", "side", "add", "up"],
    ]
    assert [segment.stored for segment in segments] == [("head",), ("down",), ()]
    assert [segment.dropped for segment in segments] == [(), (), ("head", "down")]
    assert [[node.name for node in s.reduced if hasattr(node, "rule")] for s in segments] == [
        ["first.pool"],
        ["adaptive_avg_pool2d"],
        [],
    ]


def test_a_map_that_only_a_barrier_reads_is_dropped_when_it_is_reduced():
    class Branch(TwoBarriers):
        def forward(self, x: Tensor) -> Tensor:
            return self.side(self.head(x)) * self.down(self.head(x)).mean((2, 3), keepdim=True)

    first, second = cut(trace(Branch(), ""))
    assert first.stored == first.dropped == ("down",)
    assert [op.name for op in second.network.ops] == ["Branch", "head", "side", "mul"]


def test_a_barrier_on_the_stages_own_input_stores_nothing():
    class Centred(TwoBarriers):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x - x.mean((-2, -1), keepdim=True))

    module = Centred().double()
    network = trace(module, "")
    first, second = cut(network)
    assert not first.computes
    assert first.stored == second.stored == ()
    x = torch.rand(2, 3, 21, 34, dtype=torch.double)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(in_passes(network, x, (8, 5), "stream"), module(x))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("store", ["auto", "device", "host", "disk"])
def test_stores_between_passes_do_not_change_the_result(store, schedule):
    module, x = two_barriers(), torch.rand(2, 3, 53, 38)
    with torch.no_grad(), exact_kernels():
        full = module(x)
        tiled = overlap_tool.wrap(module, tile=(13, 9), schedule=schedule, store=store)
        assert torch.equal(tiled(x), full)


@pytest.mark.parametrize("tile", [(2, 2), (9, 14), (64, 64)], ids=str)
def test_tiles_of_one_shape_do_not_change_the_result(tile):
    module, x = two_barriers(), torch.rand(2, 3, 54, 38)
    with torch.no_grad(), exact_kernels():
        found = in_passes(trace(module, ""), x, tile, "tiles", uniform=True)
        assert torch.equal(found, module(x))


def test_with_the_librarys_kernels_only_the_last_bits_differ():
    module, x = two_barriers().double(), torch.rand(1, 3, 61, 47, dtype=torch.double)
    with torch.no_grad():
        full = module(x)
        for schedule in SCHEDULES:
            found = overlap_tool.wrap(module, tile=16, schedule=schedule, engine="stock")(x)
            torch.testing.assert_close(found, full, rtol=1e-12, atol=1e-12)


def test_every_image_of_a_batch_has_its_own_summary():
    module, x = two_barriers(), torch.rand(3, 3, 40, 44)
    tiled = overlap_tool.wrap(module, tile=16)
    with torch.no_grad():
        one_by_one = torch.cat([tiled(image[None]) for image in x])
        assert torch.equal(tiled(x), one_by_one)
        assert not torch.equal(tiled(x[:1]), tiled(x[1:2]))


def test_a_stream_executes_the_full_images_multiply_accumulates(monkeypatch):
    """Nothing is computed twice, however many passes there are; the layers on summaries run once."""
    module, x = two_barriers(), torch.rand(2, 3, 45, 38)
    network = trace(module, "")
    with counted(monkeypatch, gdn=True) as full:
        module(x)
    for tile in ((7, 9), (16, 16), (100, 100)):
        with counted(monkeypatch, gdn=True) as streamed:
            in_passes(network, x, tile, "stream")
        assert streamed.macs == full.macs > 0
    with counted(monkeypatch, gdn=True) as tiled:
        in_passes(network, x, (9, 9), "tiles")
    assert tiled.macs > full.macs


# --- reductions ---------------------------------------------------------------------------------------------


REDUCTIONS: dict[str, Any] = {
    "mean": lambda x: x.mean((2, 3)),
    "torch.mean": lambda x: torch.mean(x, dim=(-1, -2), keepdim=True),
    "over channels, too": lambda x: x.mean((1, 2, 3), keepdim=True),
    "sum": lambda x: x.sum((3, 2), True),
    "amax": lambda x: torch.amax(x, (2, 3)),
    "amin": lambda x: x.amin(dim=(2, 3), keepdim=True),
    "var": lambda x: x.var((2, 3)),
    "biased": lambda x: torch.var(x, (2, 3), unbiased=False, keepdim=True),
    "corrected": lambda x: torch.var(x, dim=(2, 3), correction=2),
    "std": lambda x: torch.std(x, (2, 3), True),
    "average of all": lambda x: F.adaptive_avg_pool2d(x, 1),
    "averages": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "maxima": lambda x: F.adaptive_max_pool2d(x, (4, 2)),
    "norm": lambda x: torch.norm(x, 2, (2, 3), True),
    "norm, a method": lambda x: x.norm(dim=(2, 3)),
    "norm, over channels, too": lambda x: torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True),
    "moments": lambda x: moments(x, 1),
    "moments of channels": lambda x: moments(x, 3),
}


class Reduced(nn.Module):
    def __init__(self, reduce: Any) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(x).flatten(1).sum(1).view(-1, 1, 1, 1)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (24, 16)], ids=str)
def test_a_barrier_gives_the_ops_own_bits_whatever_the_bands(name, size):
    if size == (1, 1) and name in ("var", "std", "corrected"):
        pytest.skip("of one sample there is no variance")
    reduce = REDUCTIONS[name]
    network = trace(Reduced(reduce), "", 3)
    (barrier,) = network.barriers
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with exact_kernels():
        full = reduce(x)
        for rows in range(1, size[0] + 1):
            found = passes.reduced(barrier, {}, TensorSource(x, x.device), BarrierBands(*size, rows))
            assert torch.equal(found, full), rows
    torch.testing.assert_close(full.double(), reduce(x.double()), rtol=1e-5, atol=1e-6)


# --- what is refused ----------------------------------------------------------------------------------------


class Applied(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "kind", "where"),
    [
        (lambda x: F.conv2d(x, x.mean((2, 3))[:, :, None, None]), UnknownOpError, "conv2d (conv2d)"),
        (lambda x: x * F.adaptive_avg_pool2d(x, (None, 1)), GlobalOpError, "adaptive_avg_pool2d"),
        (lambda x: F.batch_norm(x, None, None, training=True), GlobalOpError, "batch_norm"),
        (lambda x: F.group_norm(x.permute(0, 2, 3, 1), 3), OverlapToolError, ""),
        (lambda x: x + x.flatten(2).sort(2)[0].mean((1, 2))[:, None, None, None], UnknownOpError, "sort"),
        (lambda x: x * x.mean((0, 2, 3), keepdim=True), GlobalOpError, "mean"),
        (lambda x: x * x.mean(3, keepdim=True), GlobalOpError, "mean"),
        (lambda x: x * x.logsumexp((2, 3), keepdim=True), GlobalOpError, "logsumexp"),
        (lambda x: x.sum(1, True) + x.amax((1, 2, 3)).view(-1, 1, 1), UnknownOpError, "add"),
        (lambda x: x + x.mean((2, 3), keepdim=True).mean(0, keepdim=True), UnknownOpError, "add"),
        (lambda x: (x * x.mean((2, 3), keepdim=True).expand_as(x)).flip(2), UnknownOpError, "flip"),
        (lambda x: x * F.adaptive_max_pool2d(x, 1, True)[0], UnknownOpError, "getitem"),
    ],
)  # fmt: skip
def test_what_is_no_barrier_is_refused_by_name(function, kind, where):
    with pytest.raises(kind) as refused:
        trace(Applied(function), "", 4)
    assert where in refused.value.where


# --- analyze, wrap, verify ----------------------------------------------------------------------------------


def test_a_report_says_how_many_passes_there_are_and_what_lies_in_stores():
    report = analyze(two_barriers(), size=(64, 48), tiles=[16])
    (stage,) = report.stages
    assert (stage.left, stage.right, stage.top, stage.bottom) == (None,) * 4
    assert stage.receptive_field is None
    assert stage.passes == len(stage.segments) == 3
    full, half = 4 * 6 * 64 * 48, 4 * 6 * 32 * 24
    assert [{store.name: store.bytes for store in part.stores} for part in stage.segments] == [
        {"head": full},
        {"down": half},
        {},
    ]
    assert [part.store_bytes for part in stage.segments] == [full, full + half, full + half]
    assert stage.store_bytes == full + half
    assert [part.barriers for part in stage.segments] == [("first.pool",), ("adaptive_avg_pool2d",), ()]
    reads = [{read.name: (read.left, read.right, read.scale) for read in p.reads} for p in stage.segments]
    # by hand: 3x3; 5x5 with stride 2; a 4x4 transposed one, with and without a 3x3 with stride 2 before it
    assert reads == [
        {"TwoBarriers": (1, 1, 1)},
        {"head": (2, 1, 1)},
        {"down": (1, 1, Fraction(1, 2)), "head": (3, 2, 1)},
    ]
    macs = 64 * 48 * 3 * 6 * 9 + 32 * 24 * 6 * 6 * (25 + 9) + 64 * 48 * 6 * 3 * 16
    assert stage.full_macs == sum(layer.macs for layer in stage.layers) == macs
    assert '"passes": 3' in to_json(report)
    assert "3 passes, one after every barrier" in to_markdown(report)


def test_a_network_without_barriers_is_one_pass_and_stores_nothing(architecture):
    from support.small_models import small_survey

    for stage in small_survey(architecture).stages:
        (only,) = cut(stage.network)
        assert only.network is stage.network
        assert only.stored == only.reduced == only.dropped == ()


def test_verify_holds_and_shows_minimality_segment_by_segment():
    certificate = overlap_tool.verify(two_barriers(), tiles=[16])
    assert certificate.holds, [check.message for check in certificate.of("failed")]
    shown = {
        (check.figures["segment"], check.figures["map"])
        for check in certificate.of("passed")
        if check.name == "minimality"
    }
    assert shown == {(0, "TwoBarriers"), (1, "head"), (2, "head"), (2, "down")}
    assert {plan.passes for plan in certificate.plans} == {3}


class Careless(nn.AdaptiveAvgPool2d):
    """Its rule, below, averages band by band."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


@register_rule(Careless)
def careless(call: Call, module: Careless, input: Operand) -> Reduction:
    def run(module: Careless, whole: WholeMap) -> Tensor:
        return whole.by_rows(lambda band: band.mean((-2, -1), keepdim=True)).mean(-2, keepdim=True)

    return Reduction(run)


def test_a_barrier_whose_bits_depend_on_the_bands_is_blamed():
    module = two_barriers()
    module.first.pool = Careless(1)
    certificate = overlap_tool.verify(module, tiles=[24], size=(130, 78))
    failed = [check for check in certificate.of("failed") if check.name == "stage-equality"]
    assert failed
    assert {check.figures["op"] for check in failed} == {"first.pool"}
    assert {check.figures["fault"] for check in failed} == {"kernel"}


def test_a_wrapped_file_names_no_overlap_of_a_stage_with_barriers(tmp_path):
    wrapped = overlap_tool.wrap(two_barriers(), tile=16)
    overlap_tool.save(wrapped, tmp_path / "two.pt", "support.networks:TwoBarriers", {})
    assert torch.load(tmp_path / "two.pt", weights_only=True)["overlaps"] == {}
