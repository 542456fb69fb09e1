"""Axis plans on random axes and cuts: what every step computes, holds, reads and keeps. Pure integers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import lcm
from typing import Any
from unittest import mock

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.cases import tries
from support.prefixes import ready
from support.windows import Windows

from overlap_tool.geometry import (
    POINTWISE,
    Expand,
    Geometry,
    Linear,
    Overlap,
    Pad,
    Padding,
    Span,
    Transposed,
    Window,
    patch,
    roll,
)
from overlap_tool.geometry.axis import Axis, AxisOp, MisalignedJoin
from overlap_tool.geometry.plan import (
    AxisPlan,
    Step,
    alike,
    cut,
    places,
    stream,
    stream_cuts,
    tiles,
    uniform,
    whole,
)

many = tries(400)

BORDERS = [Padding.CONSTANT, Padding.REFLECT, Padding.REPLICATE, Padding.CIRCULAR]
borders = st.sampled_from(BORDERS)
small = st.integers(0, 3)

geometries = st.one_of(
    st.builds(Window, st.integers(1, 5), st.integers(1, 3), small, small, st.integers(1, 2), borders),
    st.builds(
        lambda k, s, p: Window(k, s, p, p, ceil=True), st.integers(2, 3), st.integers(1, 3), st.just(1)
    ),
    st.builds(Transposed, st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), small, st.integers(1, 2)),
    st.builds(Expand, st.integers(2, 3)),
    st.sampled_from([Linear(2, 1), Linear(1, 2), Linear(4, 1)]),
    st.builds(Pad, st.integers(-2, 3), st.integers(-2, 3)),
    st.builds(Pad, small, small, borders),
    st.builds(roll, st.integers(-20, 20)),
    st.builds(Windows, st.integers(2, 4), st.integers(-2, 2)),
)


@dataclass(frozen=True)
class Case:
    """An axis, an input length at which every op gives something, and tiles of the output."""

    axis: Axis
    n: int
    cuts: tuple[Span, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.axis.sizes(self.n)

    @property
    def needed(self) -> tuple[Span, ...]:
        return self.axis.needs({len(self.axis.ops) - 1: Span(0, self.sizes[-1])}, self.sizes)

    def sources(self, op: int) -> tuple[int, ...]:
        return self.axis.ops[op].inputs


@st.composite
def cases(draw: Any, most: int = 40) -> Case:
    """Every op follows any earlier one; ops of equal size meet in joins. An op that refuses the size it is
    given, or makes too much of it, becomes a pointwise one."""
    n = draw(st.integers(1, most))
    ops, sizes = [AxisOp(None)], [n]
    for _ in range(draw(st.integers(1, 8))):
        source = len(ops) - 1 if draw(st.integers(0, 2)) else draw(st.integers(0, len(ops) - 1))
        geometry: Geometry = draw(geometries)
        sources = [source]
        if not 1 <= geometry.size(sizes[source]) <= 3 * most:
            geometry = POINTWISE
        if draw(st.booleans()):
            sources += [i for i in range(len(ops)) if i != source and sizes[i] == sizes[source]][:2]
        ops.append(AxisOp(geometry, tuple(sources)))
        sizes.append(geometry.size(sizes[source]))
    return Case(Axis(tuple(ops)), n, draw(cuts(sizes[-1])))


@st.composite
def cuts(draw: Any, size: int) -> tuple[Span, ...]:
    """Equal tiles, or tiles of any lengths."""
    if draw(st.booleans()):
        return cut(size, draw(st.integers(1, size + 3)))
    inner = sorted(draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
    return tuple(map(Span, [0, *inner], [*inner, size]))


def together(case: Case, op: int, outputs: Span) -> Span:
    """By windows, for attention; all other ops can compute any outputs."""
    geometry = case.axis.ops[op].geometry
    if not isinstance(geometry, Windows):
        return outputs
    edges = range(geometry.shift % geometry.window - geometry.window, 999, geometry.window)
    start = max(edge for edge in edges if edge <= outputs.start)
    return Span(start, min(edge for edge in edges if edge >= outputs.stop)).clip(case.sizes[op])


def each_op(case: Case, plan: AxisPlan) -> list[tuple[int, list[Step]]]:
    return [(op, list(plan.steps)) for op in range(len(case.axis.ops))]


# --- cuts -------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 250))
def test_a_cut_covers_the_size_once_in_tiles_of_one_length_but_the_last(size, tile):
    spans = cut(size, tile)
    assert [i for span in spans for i in range(*span)] == list(range(size))
    assert all(span.length == tile for span in spans[:-1])
    assert 1 <= spans[-1].length <= tile


@given(cases(), st.integers(1, 60))
@many
def test_no_step_of_a_stream_computes_more_than_a_tile(case, tile):
    """Of any op; rounded up to periods, since cuts fall between them. Borders that reflect the image or take
    its other end are read besides, and after tiles that read nothing of the image, the overlap."""
    try:
        reaches = case.axis.reaches()
    except MisalignedJoin:
        assume(False)
    reading = Padding.REFLECT, Padding.REPLICATE, Padding.CIRCULAR
    spans = stream_cuts(case.axis, case.sizes[-1], tile)
    assert [i for span in spans for i in range(*span)] == list(range(case.sizes[-1]))
    assert all(1 <= span.length <= tile for span in spans)
    ahead = max(
        overlap.after * reaches[-1].scale / reach.scale
        for overlap, reach in zip(case.axis.overlaps(), reaches, strict=True)
    )
    if case.sizes[-1] <= tile:
        assert len(spans) == 1
    elif ahead < tile and not any(op.geometry and op.geometry.padding in reading for op in case.axis.ops):
        period = lcm(*(reach.period.input for reach in reaches))
        plan = stream(case.axis, case.n, spans)
        fed_by_nothing = plan.steps[0].compute[0].empty
        for op, steps in each_op(case, plan):
            of_a_tile = (tile / reaches[-1].scale + period) * reaches[op].scale
            if fed_by_nothing:
                of_a_tile += max(0, sum(case.axis.overlaps()[op]))
            assert all(step.compute[op].length <= of_a_tile for step in steps)


def test_after_tiles_that_padding_alone_feeds_one_also_computes_its_overlap():
    """The first two read nothing: what is padded was cropped before. It was said that no step computes more
    than a tile, and the third takes two inputs for one output, where one makes two."""
    twice = Window(2, 1, 1, 1)
    axis = chain(Expand(2), twice, twice, Transposed(1, 1, 2, 0, 1), Pad(2, 0))
    steps = stream(axis, 2, stream_cuts(axis, axis.sizes(2)[-1], 1)).steps
    assert [step.compute[0].length for step in steps] == [0, 0, 2, 0]
    assert [step.compute[1].length for step in steps] == [0, 0, 3, 1]


def test_after_a_tile_that_reads_nothing_one_computes_its_overlap_on_both_sides():
    """The first output lies between the taps of a dilated transposed convolution, and reads nothing. It was
    said that the next tile computes its overlap before itself besides; here that is a crop, of one sample
    less, and it computes two ahead."""
    axis = chain(Pad(-2, 0), Transposed(2, 2, 2, 0, 2), Pad(-1, 0))
    assert axis.overlaps()[1] == Overlap(-1, 2)
    steps = stream(axis, 9, stream_cuts(axis, axis.sizes(9)[-1], 9)).steps
    assert [step.compute[-1].length for step in steps] == [1, 9]
    assert [step.compute[1].length for step in steps] == [0, 6]


def test_the_first_tile_of_a_stream_leaves_room_for_what_it_reads_ahead():
    axis = chain(Window(7, 1, 3, 3))
    spans = stream_cuts(axis, 32, 8)
    assert [span.length for span in spans] == [5, 8, 8, 8, 3]
    inputs = [step.compute[0].length for step in stream(axis, 32, spans).steps]
    assert inputs == [8, 8, 8, 8, 0]


# --- stream -----------------------------------------------------------------------------------------------


@given(cases(120))
@many
def test_steps_that_are_alike_are_moved_to_what_each_would_be(case):
    """By planning every one of them."""
    plan = stream(case.axis, case.n, case.cuts)
    with mock.patch("overlap_tool.geometry.plan._Moves.alike", return_value=False):
        alone = stream(case.axis, case.n, case.cuts)
    assert len(alone.runs) == len(case.cuts)
    assert plan.steps == alone.steps
    for figure in ("count", "computed", "kept", "extents", "overlapping"):
        assert getattr(plan, figure) == getattr(alone, figure)


def test_a_long_stream_has_few_steps_of_its_own():
    axis = Axis((AxisOp(None), AxisOp(Window(5, 2, 2, 2), (0,)), AxisOp(Window(3, 1, 1, 1), (1,))))
    plan = stream(axis, 100_000, cut(50_000, 128))
    assert plan.count == len(plan.steps) == 391
    assert len(plan.runs) < 30


@given(cases())
@many
def test_a_stream_computes_every_needed_output_once_and_in_order(case):
    plan = stream(case.axis, case.n, case.cuts)
    assert len(plan.steps) == len(case.cuts)
    for op, steps in each_op(case, plan):
        computed = [i for step in steps for i in range(*step.compute[op])]
        assert computed == list(range(*case.needed[op]))
        assert plan.computed[op] == case.needed[op].length
        for before, after in pairwise(steps):
            assert before.compute[op].stop == after.compute[op].start
    assert [step.compute[-1].stop for step in plan.steps] == [
        together(case, len(case.sizes) - 1, Span(0, cut.stop)).stop for cut in case.cuts
    ]


@given(cases(), st.sampled_from([stream, tiles]))
@many
def test_what_comes_together_is_computed_together(case, planner):
    for op, steps in each_op(case, planner(case.axis, case.n, case.cuts)):
        for step in steps:
            if op and not step.compute[op].empty:
                assert together(case, op, step.compute[op]) == step.compute[op]


@given(cases())
@many
def test_a_stream_holds_what_it_kept_and_what_it_computes(case):
    plan = stream(case.axis, case.n, case.cuts)
    for op, steps in each_op(case, plan):
        kept = 0
        for step in steps:
            hold, keep, compute = step.hold[op], step.keep[op], step.compute[op]
            assert hold.length == kept + compute.length
            assert hold.stop == keep.stop == compute.stop
            assert hold.start <= keep.start <= keep.stop
            assert hold.start == compute.start - kept
            kept = keep.length
        assert kept == 0, "nothing is read after the last step"
        assert plan.kept[op] == max(step.keep[op].length for step in steps)


@given(cases())
@many
def test_a_stream_reads_only_what_it_holds(case):
    plan = stream(case.axis, case.n, case.cuts)
    for op, steps in each_op(case, plan):
        geometry = case.axis.ops[op].geometry
        for step in steps:
            reads = step.patches[op]
            if geometry is None or step.compute[op].empty:
                assert reads is None
                continue
            for source in case.sources(op):
                assert reads == patch(geometry, step.compute[op], case.sizes[source])
                if not reads.have.empty:
                    assert step.hold[source].start <= reads.have.start
                    assert reads.have.stop <= step.hold[source].stop


@given(cases())
@many
def test_a_stream_computes_no_more_than_is_ready(case):
    plan = stream(case.axis, case.n, case.cuts)
    for op, steps in each_op(case, plan):
        geometry = case.axis.ops[op].geometry
        for step in steps if geometry is not None else []:
            if step.compute[op].empty:
                continue
            for source in case.sources(op):
                arrived = step.hold[source].stop
                # `ready` counts from the very first output, whose inputs a crop may leave out
                if case.needed[op].start == 0:
                    assert step.compute[op].stop <= ready(geometry, arrived, case.sizes[source])


@given(cases())
@many
def test_a_stream_keeps_nothing_that_no_later_step_reads(case):
    """Without its first sample, what is kept would not do."""
    plan = stream(case.axis, case.n, case.cuts)
    for op, steps in each_op(case, plan):
        readers = [i for i in range(len(case.axis.ops)) if op in case.sources(i)]
        for index, step in enumerate(steps):
            if step.keep[op].empty:
                continue
            reads = [later.patches[reader] for later in steps[index + 1 :] for reader in readers]
            starts = [p.have.start for p in reads if p is not None and not p.have.empty]
            assert min(starts) == step.keep[op].start


@given(cases())
@many
def test_a_stream_computes_nothing_before_some_output_asks_for_it(case):
    """After every step, each op has come exactly as far as the outputs so far demand."""
    plan = stream(case.axis, case.n, case.cuts)
    last = len(case.axis.ops) - 1
    for op, steps in each_op(case, plan):
        for step in steps:
            stop = step.compute[op].stop
            if step.compute[op].empty or op == last:
                continue
            readers = [i for i in range(len(case.axis.ops)) if op in case.sources(i)]
            reads = [step.patches[reader] for reader in readers]
            asked = max(p.have.stop for p in reads if p is not None and not p.have.empty)
            assert stop == together(case, op, Span(0, asked)).stop


@st.composite
def cases_that_keep(draw: Any) -> Case:
    """Ops are wanted beside the last, as those are that a segment hands on; all joins are of one scale."""
    case = draw(cases())
    inner = range(1, len(case.axis.ops) - 1)
    kept = draw(st.sets(st.sampled_from(inner))) if inner else set()
    try:
        case.axis.reaches()
    except MisalignedJoin:
        kept = set()
    return Case(Axis(case.axis.ops, tuple(sorted(kept))), case.n, case.cuts)


@given(cases_that_keep())
@many
def test_all_that_is_wanted_is_computed_from_what_is_held(case):
    """By a stream once and in order, by tiles at least once, and always from inputs that are at hand."""
    for planner in (stream, tiles):
        plan = planner(case.axis, case.n, case.cuts)
        for end in case.axis.ends:
            computed = [i for step in plan.steps for i in range(*step.compute[end])]
            everything = list(range(case.sizes[end]))
            assert computed == everything if planner is stream else sorted(set(computed)) == everything
        for step in plan.steps:
            for op, reads in enumerate(step.patches):
                for source in case.sources(op) if reads is not None and not reads.have.empty else ():
                    assert step.hold[source].start <= reads.have.start
                    assert reads.have.stop <= step.hold[source].stop


@given(cases_that_keep(), st.integers(0, 5))
@many
def test_a_stream_may_begin_at_any_tile(case, skipped):
    """Of the stream of everything. Then it computes what it reads, too, and no more than that. An op that is
    wanted itself was held to be computed up to its place before the first tile, where others read it."""
    tiles = [step.compute[-1] for step in stream(case.axis, case.n, case.cuts).steps]
    tiles = [tile for tile in tiles if not tile.empty]
    cuts = tiles[min(skipped, len(tiles) - 1) :]
    plan = stream(case.axis, case.n, cuts)
    at = places(case.axis, case.sizes)
    begin, stop = at(cuts[0].start), at(cuts[-1].stop)
    wanted = {end: Span(begin[end], stop[end]) for end in case.axis.ends if begin[end] < stop[end]}
    needed = case.axis.needs(wanted, case.sizes)
    for op, steps in each_op(case, plan):
        computed = [i for step in steps for i in range(*step.compute[op])]
        assert computed == list(range(*needed[op]))
        for step in steps:
            reads = step.patches[op]
            for source in case.sources(op) if reads is not None and not reads.have.empty else ():
                assert step.hold[source].start <= reads.have.start
                assert reads.have.stop <= step.hold[source].stop


# --- tiles, and the whole ---------------------------------------------------------------------------------


@given(cases())
@many
def test_tiles_compute_the_clipped_needs_of_each_and_keep_nothing(case):
    plan = tiles(case.axis, case.n, case.cuts)
    last = len(case.axis.ops) - 1
    assert len(plan.steps) == len(case.cuts)
    for step, tile in zip(plan.steps, case.cuts, strict=True):
        assert step.compute == case.axis.needs({last: tile}, case.sizes)
        assert step.hold == step.compute
        assert all(span.empty for span in step.keep)
        for op, reads in enumerate(step.patches):
            geometry = case.axis.ops[op].geometry
            assert (reads is None) == (geometry is None or step.compute[op].empty)
            for source in case.sources(op) if reads is not None else []:
                assert reads == patch(geometry, step.compute[op], case.sizes[source])
                assert reads.have.empty or (
                    step.hold[source].start <= reads.have.start and reads.have.stop <= step.hold[source].stop
                )
    assert plan.kept == (0,) * len(case.axis.ops)


@given(cases())
@many
def test_one_tile_as_large_as_the_output_is_the_same_in_both_schedules(case):
    everything = cut(case.sizes[-1], case.sizes[-1])
    (tiled,), (streamed,) = (plan(case.axis, case.n, everything).steps for plan in (tiles, stream))
    for op in range(len(case.axis.ops)):
        assert list(range(*tiled.compute[op])) == list(range(*streamed.compute[op]))
        assert tiled.patches[op] == streamed.patches[op]


@given(cases())
@many
def test_the_whole_is_one_step_that_computes_everything(case):
    plan = whole(case.axis, case.n)
    (step,) = plan.steps
    assert plan.sizes == case.sizes == plan.computed
    assert step.compute == step.hold == tuple(Span(0, size) for size in case.sizes)
    assert plan.kept == (0,) * len(case.axis.ops)


@given(cases(), st.integers(1, 4))
@many
def test_steps_that_are_alike_cut_their_pieces_alike(case, most):
    """In a group, every op takes the same part of what each of its inputs holds."""
    steps = tiles(case.axis, case.n, case.cuts).steps
    groups = alike(case.axis, steps, most)
    assert sorted(step.compute[-1] for group in groups for step in group) == [
        together(case, len(case.sizes) - 1, tile) for tile in case.cuts
    ]
    for group in groups:
        assert 1 <= len(group) <= most
        for op in range(len(case.axis.ops)):
            for source in case.sources(op):
                assert len({_part(step, op, source) for step in group}) == 1
            assert len({step.hold[op].length for step in group}) == 1


def _part(step: Step, op: int, source: int) -> Span | None:
    reads = step.patches[op]
    return None if reads is None or reads.have.empty else reads.have.shift(-step.hold[source].start)


# --- tiles of one shape -----------------------------------------------------------------------------------


def in_one_shape(case: Case, tile: int) -> AxisPlan:
    try:
        return uniform(case.axis, case.n, tile)
    except MisalignedJoin:  # which no stage has
        assume(False)
        raise


tile_sides = st.integers(1, 40)


@given(cases(), tile_sides)
@many
def test_uniform_tiles_have_one_shape_at_every_op_and_cover_the_output_once(case, tile):
    plan = in_one_shape(case, tile)
    for op, steps in each_op(case, plan):
        assert len({step.compute[op].length for step in steps}) == 1
        if case.axis.ops[op].geometry is not None and not steps[0].compute[op].empty:
            source = case.sources(op)[0]
            assert len({step.patches[op].need.length for step in steps}) == 1
            assert len({_part(step, op, source) for step in steps}) == 1, "the same part of what is held"
    outputs = [i for step in plan.steps for i in range(*step.compute[-1])]
    assert outputs == list(range(len(outputs)))
    first, *_, last = plan.steps[0], plan.steps[-1]
    assert last.compute[-1].start < case.sizes[-1] <= last.compute[-1].stop
    assert first.compute[-1].length <= tile or len(plan.steps) == 1 or tile < _period(case.axis)


def _period(axis: Axis) -> int:
    """In samples of the output: the shift that moves every op by a whole number of its own periods."""
    shift = 1
    while any((shift / axis.scale * reach.scale) % reach.period.output for reach in axis.reaches()):
        shift += 1
    return shift


@given(cases(), tile_sides)
@many
def test_uniform_tiles_hold_all_that_their_samples_inside_the_image_read(case, tile):
    plan = in_one_shape(case, tile)
    for op, steps in each_op(case, plan):
        geometry = case.axis.ops[op].geometry
        for step in steps if geometry is not None else []:
            if step.compute[op].empty:
                continue
            reads = step.patches[op]
            assert (reads.out, reads.need) == (step.compute[op], geometry.need(step.compute[op]))
            for source in case.sources(op):
                real = geometry.reads(step.compute[op].clip(case.sizes[op]), case.sizes[source])
                if not real.empty:
                    assert reads.have.start <= real.start
                    assert real.stop <= reads.have.stop
                if not reads.have.empty:
                    assert step.hold[source].start <= reads.have.start
                    assert reads.have.stop <= step.hold[source].stop


def test_uniform_tiles_have_the_shape_of_a_tile_in_the_middle_whatever_the_image():
    axis = chain(Window(5, 2, 2, 2), Window(3, 1, 1, 1), Window(5, 2, 2, 2))
    for n in (1, 7, 64, 1000):
        plan = uniform(axis, n, 4)
        assert plan.steps[0].compute == axis.needs({3: Span(0, 4)}) == (
            Span(-8, 21), Span(-3, 10), Span(-2, 9), Span(0, 4),
        )  # fmt: skip
        assert len(plan.steps) == max(1, -(-axis.sizes(n)[-1] // 4))


def test_a_uniform_tile_is_rounded_down_to_whole_periods():
    axis = chain(Expand(4), Window(3, 1, 1, 1))
    lengths = {tile: uniform(axis, 50, tile).steps[0].compute[-1].length for tile in (1, 4, 7, 8, 30)}
    assert lengths == {1: 4, 4: 4, 7: 4, 8: 8, 30: 28}


def test_uniform_tiles_hold_what_padding_reflects_into_the_last_of_them():
    """Its one sample reads three samples back, which belong to the tile before."""
    plan = uniform(chain(Pad(0, 3, Padding.REFLECT)), 6, 4)
    assert plan.steps[-1].compute[1] == Span(8, 12)
    assert plan.steps[-1].patches[1].have.start <= 2, "8 stands for 5 - 3"


# --- by hand ----------------------------------------------------------------------------------------------


def chain(*geometries: Geometry) -> Axis:
    return Axis((AxisOp(None), *(AxisOp(geometry, (i,)) for i, geometry in enumerate(geometries))))


def test_a_stream_of_one_convolution_by_hand():
    plan = stream(chain(Window(3, 1, 1, 1)), 8, cut(8, 4))
    first, second = plan.steps
    assert first.compute == (Span(0, 5), Span(0, 4))
    assert first.keep[0] == Span(3, 5)
    assert second.compute == (Span(5, 8), Span(4, 8))
    assert second.hold[0] == Span(3, 8)
    assert plan.kept == (2, 0)


def test_a_short_branch_waits_for_a_long_one():
    axis = Axis((AxisOp(None), AxisOp(Window(9, 1, 4, 4), (0,)), AxisOp(POINTWISE, (0, 1))))
    first, second = stream(axis, 16, cut(16, 8)).steps
    assert first.compute == (Span(0, 12), Span(0, 8), Span(0, 8))
    assert first.keep[0] == Span(4, 12)
    assert second.compute == (Span(12, 16), Span(8, 16), Span(8, 16))


def test_what_a_crop_leaves_out_is_never_computed():
    plan = stream(chain(POINTWISE, Pad(-5, -3)), 12, cut(4, 2))
    assert [step.compute[1] for step in plan.steps] == [Span(5, 7), Span(7, 9)]
    assert plan.computed == (4, 4, 4)


@pytest.mark.parametrize(("shifts", "stop"), [((9, 3), 12), ((1, -1), 12), ((-4, 9), 10)])
def test_a_roll_that_is_read_in_its_middle_is_computed_from_its_beginning(shifts, stop):
    """As if all before it were asked for, too: that may need more input than the middle does."""
    plan = stream(chain(*map(roll, shifts)), 12, cut(12, 3))
    assert plan.steps[0].compute[0] == Span(0, stop)
