"""Composed maps against brute force on random small graphs, and against the published figures."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.cases import tries

from overlap_tool.geometry import (
    POINTWISE,
    Everything,
    Expand,
    Geometry,
    Overlap,
    Pad,
    Span,
    Transposed,
    Window,
    published_overlap,
)
from overlap_tool.geometry.axis import Axis, AxisOp, MisalignedJoin, exact_overlap

many = tries(400)

SOURCE = AxisOp(None)


def chain(*geometries: Geometry) -> Axis:
    return Axis((SOURCE, *(AxisOp(geometry, (i,)) for i, geometry in enumerate(geometries))))


def feeds(op: Geometry, output: int) -> set[int]:
    """Which inputs an output reads, from the definition of each op."""
    if isinstance(op, Window):
        return {output * op.stride - op.before + op.dilation * j for j in range(op.kernel)}
    if isinstance(op, Transposed):
        taps = (output + op.trim - op.dilation * j for j in range(op.kernel))
        return {tap // op.stride for tap in taps if tap % op.stride == 0}
    if isinstance(op, Expand):
        return {output // op.factor}
    assert isinstance(op, Pad)
    return {output - op.before}


@dataclass
class Brute:
    """The sets that every op must compute, for some outputs of the last one."""

    axis: Axis

    def unclipped(self, outputs: Span) -> list[set[int]]:
        return self._walk(outputs, None)

    def clipped(self, outputs: Span, n: int) -> list[set[int]]:
        return self._walk(outputs, self.axis.sizes(n))

    def _walk(self, outputs: Span, sizes: tuple[int, ...] | None) -> list[set[int]]:
        ops = self.axis.ops
        sets: list[set[int]] = [set() for _ in ops]
        sets[-1] = set(range(*outputs))
        for index in reversed(range(len(ops))):
            op = ops[index]
            if op.geometry is None:
                continue
            read = {i for output in sets[index] for i in feeds(op.geometry, output)}
            for source in op.inputs:
                sets[source] |= read if sizes is None else {i for i in read if 0 <= i < sizes[source]}
        return sets


def covers(span: Span, indices: set[int]) -> bool:
    return all(span.start <= i < span.stop for i in indices)


def hull_of(indices: set[int]) -> Span:
    return Span(min(indices), max(indices) + 1) if indices else Span(0, 0)


def windows(gaps: bool) -> st.SearchStrategy[Window]:
    """Convolutions; without `gaps`, those that read every sample between their first and last."""
    return st.builds(
        lambda kernel, stride, before, after, dilation: Window(
            kernel, stride if gaps else min(stride, kernel), before, after, dilation if gaps else 1
        ),
        st.integers(1, 5),
        st.integers(1, 3),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(1, 2),
    )


def deconvs(gaps: bool) -> st.SearchStrategy[Transposed]:
    return st.builds(
        lambda kernel, stride, trim, dilation: Transposed(
            kernel, stride if gaps else min(stride, kernel), trim, 0, dilation if gaps else 1
        ),
        st.integers(1, 5),
        st.integers(1, 3),
        st.integers(0, 2),
        st.integers(1, 2),
    )


def steps(gaps: bool) -> st.SearchStrategy[Geometry]:
    pads = st.builds(Pad, st.integers(-2, 3), st.integers(-2, 3))
    return st.one_of(windows(gaps), deconvs(gaps), st.builds(Expand, st.integers(1, 3)), pads)


def chains(gaps: bool) -> st.SearchStrategy[Axis]:
    return st.lists(steps(gaps), min_size=1, max_size=5).map(lambda ops: chain(*ops))


@st.composite
def graphs(draw) -> Axis:
    """Chains between forks and joins; the branches of a fork have the same scale and length."""
    ops: list[AxisOp] = [SOURCE]

    def append(geometry: Geometry, *sources: int) -> int:
        ops.append(AxisOp(geometry, sources))
        return len(ops) - 1

    def residual(start: int) -> int:
        stride = draw(st.sampled_from([1, 2]))
        ends = []
        for _ in range(draw(st.integers(1, 3))):
            half, dilation = draw(st.integers(0, 2)), draw(st.integers(1, 2))
            reach = half * dilation
            end = append(Window(2 * half + 1, stride, reach, reach, dilation), start)
            if draw(st.booleans()):
                end = append(Window(3, 1, 1, 1), end)
            ends.append(end)
        shortcut = append(Window(1, stride), start) if stride > 1 else start
        return append(POINTWISE, shortcut, *ends)

    last = 0
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["residual", "residual", "step"]))
        last = (
            residual(last)
            if kind == "residual"
            else append(draw(st.one_of(windows(True), deconvs(True))), last)
        )
    return Axis(tuple(ops))


def drawn_outputs(data: st.DataObject, axis: Axis) -> tuple[int, Span]:
    """An input length at which no op is empty, and some of the last op's outputs."""
    n = data.draw(st.integers(4, 24))
    for length in range(n, n + 1000):
        sizes = axis.sizes(length)
        if min(sizes) > 0:
            start = data.draw(st.integers(0, sizes[-1] - 1))
            return length, Span(start, data.draw(st.integers(start + 1, min(sizes[-1], start + 12))))
    raise AssertionError("1000 samples more are enough for any of these")


@given(axis=st.one_of(chains(True), graphs()), data=st.data())
@many
def test_needs_with_sizes_covers_everything_that_is_read(axis, data):
    n, outputs = drawn_outputs(data, axis)
    sizes = axis.sizes(n)
    spans = axis.needs({len(axis.ops) - 1: outputs}, sizes)
    for span, read, size in zip(spans, Brute(axis).clipped(outputs, n), sizes, strict=True):
        assert covers(span, read)
        assert 0 <= span.start <= span.stop <= size


@given(axis=chains(False), data=st.data())
@many
def test_needs_is_the_hull_on_chains_without_gaps(axis, data):
    n, outputs = drawn_outputs(data, axis)
    spans = axis.needs({len(axis.ops) - 1: outputs}, axis.sizes(n))
    for span, read in zip(spans, Brute(axis).clipped(outputs, n), strict=True):
        assert span == hull_of(read) or (span.empty and not read)


@given(axis=chains(False), data=st.data())
@many
def test_needs_without_sizes_is_the_hull_of_an_endless_image(axis, data):
    start = data.draw(st.integers(-9, 9))
    outputs = Span(start, start + data.draw(st.integers(1, 9)))
    spans = axis.needs({len(axis.ops) - 1: outputs})
    for span, read in zip(spans, Brute(axis).unclipped(outputs), strict=True):
        assert span == hull_of(read)


@given(axis=chains(False), output=st.integers(-40, 40))
@many
def test_reaches_of_chains_are_the_brute_force(axis, output):
    assert axis.reaches()[-1].of(output) == hull_of(Brute(axis).unclipped(Span(output, output + 1))[0])


@given(axis=st.one_of(chains(True), graphs()), output=st.integers(-40, 40))
@many
def test_reaches_of_graphs_cover_the_brute_force(axis, output):
    assert covers(axis.reaches()[-1].of(output), Brute(axis).unclipped(Span(output, output + 1))[0])


@given(axis=graphs(), repeats=st.integers(-3, 3), output=st.integers(0, 40))
@many
def test_a_reach_moves_by_whole_periods(axis, repeats, output):
    reach = axis.reaches()[-1]
    moved = reach.of(output + repeats * reach.period.output)
    assert moved == reach.of(output).shift(repeats * reach.period.input)


@given(axis=st.one_of(chains(False), graphs()))
@many
def test_overlaps_are_what_a_tile_of_one_period_reads(axis):
    """The tile starts at output 0, so that it reads `before` samples below 0 and `after` above its period."""
    reaches, overlaps = axis.reaches(), axis.overlaps()
    period = max(reach.period.input for reach in reaches)
    assume(all(period % reach.period.input == 0 for reach in reaches))
    tile = int(period * reaches[-1].scale)
    read = Brute(axis).unclipped(Span(0, tile))
    assert overlaps[-1] == (0, 0)
    for reach, overlap, indices in zip(reaches, overlaps, read, strict=True):
        if indices:
            assert -overlap.before <= min(indices)
            assert max(indices) < int(period * reach.scale) + overlap.after
    spans = axis.needs({len(axis.ops) - 1: Span(0, tile)})
    if spans[0].empty:  # every output is made of zeros between samples
        assert overlaps[0] == (0, 0)
    else:
        assert spans[0] == (-overlaps[0].before, period + overlaps[0].after)


def test_a_tile_that_reads_nothing_has_no_overlap():
    """Found by the test above, once in some thousands of graphs: all outputs fall between the samples."""
    spread = AxisOp(Transposed(kernel=1, stride=2, trim=1), (0,))
    axis = Axis((SOURCE, spread, AxisOp(Window(kernel=1, stride=2), (1,))))
    assert Brute(axis).unclipped(Span(0, 1))[0] == set()
    assert axis.needs({2: Span(0, 1)})[0].empty
    assert axis.overlaps()[0] == (0, 0)


@given(axis=chains(False))
@many
def test_overlaps_of_the_input_are_those_of_the_outputs_reach(axis):
    """Beside the clamped `Reach.overlap`: crops may make the one negative, and never the other."""
    reaches, overlap = axis.reaches(), axis.overlaps()[0]
    period = reaches[-1].period.input
    assume(all(period % reach.period.input == 0 for reach in reaches))
    assert reaches[-1].overlap == (max(0, overlap.before), max(0, overlap.after))


def test_the_receptive_field_is_the_most_that_one_output_reads():
    axis = chain(Window(5, 2, 2, 2), Window(3, 2, 1, 1), Transposed(5, 2, 2, 1))
    most = max(hull_of(Brute(axis).unclipped(Span(output, output + 1))[0]).length for output in range(8))
    assert axis.reaches()[-1].receptive_field == most


def test_a_join_of_different_scales_is_misaligned():
    ops = (SOURCE, AxisOp(Window(3, 2, 1, 1), (0,)), AxisOp(POINTWISE, (0, 1)))
    with pytest.raises(MisalignedJoin) as caught:
        Axis(ops).reaches()
    assert caught.value.index == 2
    assert [float(scale) for scale in caught.value.scales] == [1, 0.5]


def test_an_op_that_nobody_needs_computes_nothing():
    ops = (SOURCE, AxisOp(Window(3, 1, 1, 1), (0,)), AxisOp(POINTWISE, (0,)))
    assert Axis(ops).needs({2: Span(3, 5)})[1].empty
    assert Axis(ops).overlaps()[1] == (0, 0)


def test_several_wanted_spans_are_united():
    axis = chain(Window(3, 1, 1, 1), Window(3, 1, 1, 1))
    assert axis.needs({1: Span(9, 12), 2: Span(3, 4)}, (20, 20, 20)) == ((1, 13), (2, 12), (3, 4))


def test_behind_a_global_op_everything_is_needed():
    axis = chain(Window(3, 2, 1, 1), Everything(), Window(3, 1, 1, 1))
    assert axis.reaches()[-1].of(5).unbounded
    assert axis.needs({3: Span(4, 5)}, axis.sizes(20))[0] == (0, 20)


# --- published figures: the hand-written layers of CompressAI's models ------------------------------------


def conv(kernel: int, stride: int) -> Window:
    return Window(kernel, stride, kernel // 2, kernel // 2)


def deconv(kernel: int, stride: int) -> Transposed:
    return Transposed(kernel, stride, kernel // 2, stride - 1)


class Layers:
    """Builds cheng2020's blocks op by op; `last` is the op that the next layer reads."""

    def __init__(self) -> None:
        self.ops: list[AxisOp] = [SOURCE]
        self.last = 0

    def add(self, geometry: Geometry, *sources: int) -> int:
        self.ops.append(AxisOp(geometry, sources or (self.last,)))
        self.last = len(self.ops) - 1
        return self.last

    def residual(self) -> None:
        start = self.last
        self.add(conv(3, 1))
        self.add(POINTWISE, self.add(conv(3, 1)), start)

    def residual_with_stride(self) -> None:
        start = self.last
        self.add(conv(3, 2))
        body = self.add(conv(3, 1))
        self.add(POINTWISE, body, self.add(conv(1, 2), start))

    def residual_upsample(self) -> None:
        start = self.last
        self.subpel(start)
        body = self.add(conv(3, 1))
        self.add(POINTWISE, body, self.subpel(start))

    def subpel(self, start: int) -> int:
        self.add(conv(3, 1), start)
        return self.add(Expand(2))

    def axis(self) -> Axis:
        return Axis(tuple(self.ops))


def cheng_g_a() -> Axis:
    layers = Layers()
    for _ in range(3):
        layers.residual_with_stride()
        layers.residual()
    layers.add(conv(3, 2))
    return layers.axis()


def cheng_g_s() -> Axis:
    layers = Layers()
    for _ in range(3):
        layers.residual()
        layers.residual_upsample()
    layers.residual()
    layers.subpel(layers.last)
    return layers.axis()


def cheng_h_s() -> Axis:
    layers = Layers()
    layers.add(conv(3, 1))
    layers.subpel(layers.last)
    layers.add(conv(3, 1))
    layers.subpel(layers.last)
    layers.add(conv(3, 1))
    return layers.axis()


KNOWN = {
    "mbt2018 g_a": (chain(*[conv(5, 2)] * 4), (30, 15)),
    "mbt2018 g_s": (chain(*[deconv(5, 2)] * 4), (1, 2)),
    "mbt2018 h_a": (chain(conv(3, 1), conv(5, 2), conv(5, 2)), (7, 4)),
    "mbt2018 h_s": (chain(deconv(5, 2), deconv(5, 2), conv(3, 1)), (1, 2)),
    "cheng2020-anchor g_a": (cheng_g_a(), (57, 42)),
    "cheng2020-anchor g_s": (cheng_g_s(), (7, 7)),
    "cheng2020-anchor h_a": (chain(conv(3, 1), conv(3, 1), conv(3, 2), conv(3, 1), conv(3, 2)), (7, 4)),
    "cheng2020-anchor h_s": (cheng_h_s(), (4, 4)),
}


@pytest.mark.parametrize("stage", KNOWN)
def test_the_published_recursion_gives_the_known_answers(stage):
    axis, overlap = KNOWN[stage]
    assert axis.published_overlaps()[0] == overlap


@pytest.mark.parametrize("stage", KNOWN)
def test_the_exact_maps_give_the_known_answers(stage):
    axis, overlap = KNOWN[stage]
    assert axis.overlaps()[0] == overlap
    reach = axis.reaches()[-1]
    tile = Span(0, max(reach.period.output, int(64 * reach.scale)))
    read = Brute(axis).unclipped(tile)[0]
    assert (-min(read), max(read) + 1 - int(tile.stop / reach.scale)) == overlap


def test_rounding_up_is_what_the_published_recursion_does_not_do():
    """g_s needs 1 and 2; the printed formula, rounded up at every step, would give 2 and 3."""
    floor, ceiling = Overlap(0, 0), Overlap(0, 0)
    for _ in range(4):
        step = published_overlap(deconv(5, 2), floor)
        assert step is not None
        floor = step
        ceiling = Overlap(-(-(ceiling.before + 2) // 2), -(-(ceiling.after + 3) // 2))
    assert floor == (1, 2)
    assert ceiling == (2, 3)


@given(half=st.integers(0, 3), stride=st.integers(1, 3), left=st.integers(0, 9), right=st.integers(0, 9))
@many
def test_one_exact_step_is_the_published_one_where_that_is_stated(half, stride, left, right):
    kernel, out = 2 * half + 1, Overlap(left, right)
    step = exact_overlap(conv(kernel, stride), out)
    published = published_overlap(conv(kernel, stride), out)
    assert published is not None
    # a stride may leave inputs at the tile's end unread, which the published figure counts as read
    assert (step.before, max(step.after, stride * right)) == published
    if kernel >= stride:
        assert exact_overlap(deconv(kernel, stride), out) == published_overlap(deconv(kernel, stride), out)


def test_a_shuffle_is_bridged_by_its_exact_map():
    axis = chain(Expand(2), Window(3, 1, 1, 1))
    assert [overlap.before for overlap in axis.published_overlaps()] == [1, 1, 1]
