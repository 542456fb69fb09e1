"""A rectangle of a stage's output alone: the crop of the whole to the bit, made of what it depends on."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.cases import tries
from support.networks import PlainCnn
from support.random_networks import cases
from support.windows import Windows
from test_barriers import tile_of_input
from torch import Tensor

from overlap_tool.errors import OptionError
from overlap_tool.geometry import Span, Window
from overlap_tool.geometry.axis import Axis, AxisOp
from overlap_tool.geometry.plan import stream, stream_cuts, together
from overlap_tool.geometry.walk import Area
from overlap_tool.graph.network import Network
from overlap_tool.graph.trace import trace
from overlap_tool.planning.choose import Shape, plan_part, plan_stage
from overlap_tool.runtime import passes
from overlap_tool.runtime.stores import TensorSink, TensorSource, Within
from overlap_tool.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


class Watched(TensorSource):
    """Remembers how far it was read."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__(whole, whole.device)
        self.seen: list[Area] = []

    def read(self, rows: Span, columns: Span) -> Tensor:
        self.seen.append(Area(rows, columns))
        return super().read(rows, columns)


def part_of(network: Network, x: Tensor, settings: Settings, area: Area) -> tuple[Tensor, Watched]:
    shape = Shape(x.shape[0], x.shape[2], x.shape[3], x.element_size())
    plan = plan_stage("net", network, Fraction(1), shape, settings)
    sink, source = TensorSink.of(plan.output_size), Watched(x)
    parts = plan_part(Fraction(1), plan, area)
    sinks = {network.output: Within(sink, area)}
    passes.run(network, parts, source, sinks, partial(TensorSink), settings.batch)
    result = sink.result()
    return result[..., area.rows.start : area.rows.stop, area.columns.start : area.columns.stop], source


@st.composite
def spans(draw, size: int) -> Span:
    start = draw(st.integers(0, size - 1))
    return Span(start, draw(st.integers(start + 1, size)))


WAYS = {
    "stream": {"schedule": "stream"},
    "tiles": {"schedule": "tiles"},
    "three at once": {"schedule": "tiles", "batch": 3},
    "uniform": {"schedule": "tiles", "uniform": True},
}


@pytest.mark.parametrize("barriers", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_part_of_a_random_network_is_the_crop_of_the_whole(way, barriers) -> None:
    """Without barriers, nothing is read but what the integers say that it is made of."""

    @tries(8, derandomize=True)
    @given(cases(barriers=barriers), st.data())
    def holds(case, data) -> None:
        x = case.image()
        with torch.no_grad():
            full = case.network(x.clone())
        network = trace(case.network, "net", case.network.channels)
        area = Area(*(data.draw(spans(side)) for side in full.shape[-2:]))
        settings = Settings(tile_of_input(case, network), **WAYS[way])
        try:
            found, source = part_of(network, x, settings, area)
        except OptionError:  # of some ops, no uniform tiles can be made
            assume(False)
        assert torch.equal(found, full[..., slice(*area.rows), slice(*area.columns)])
        if not network.barriers and way != "uniform":
            for axis, part, n, read in (
                (network.rows, area.rows, x.shape[2], [one.rows for one in source.seen]),
                (network.columns, area.columns, x.shape[3], [one.columns for one in source.seen]),
            ):
                needed = axis.needs({len(axis.ops) - 1: part}, axis.sizes(n))[0]
                assert all(span.within(needed) == span for span in read if not (span.empty or needed.empty))

    holds()


def test_a_part_that_begins_within_what_comes_together() -> None:
    """A stream takes what lies before its first cut for computed: attention is cut at its windows."""
    axis = Axis((AxisOp(None), AxisOp(Window(3, 1, 1, 1), (0,)), AxisOp(Windows(8), (1,))))
    part = together(axis, axis.sizes(40), Span(5, 20))
    assert part == (0, 24)
    steps = stream(axis, 40, stream_cuts(axis, part.stop, 10, part.start)).steps
    assert [i for step in steps for i in range(*step.compute[2])] == list(range(24))
    assert [i for step in steps for i in range(*step.compute[1])] == list(range(24))


def test_the_first_tile_of_a_part_in_the_middle_computes_no_more_than_a_tile() -> None:
    network = trace(PlainCnn().eval(), "net", 1)
    tile = 16
    for start in (0, 64):
        cuts = stream_cuts(network.rows, 128, tile, start)
        assert (cuts[0].start, cuts[-1].stop) == (start, 128)
        needed = network.rows.needs({len(network.ops) - 1: cuts[0]}, network.rows.sizes(128))
        assert max(span.length for span in needed[1:]) <= tile


def test_rows_that_are_kept_take_the_columns_of_the_part_alone() -> None:
    network = trace(PlainCnn().eval(), "net", 1)
    settings = Settings((16, 16), schedule="stream")
    plan = plan_stage("net", network, Fraction(1), Shape(1, 64, 4096), settings)
    (part,) = plan_part(Fraction(1), plan, Area(Span(8, 64), Span(1000, 1032)))
    assert all(extent.length <= 32 + 2 * 8 for extent in part.columns.extents)
