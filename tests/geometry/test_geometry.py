"""The integer maps against brute force: dependency sets from each op's definition, sizes from torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from support.cases import tries
from support.prefixes import ready

from overlap_tool.geometry import (
    FAR,
    Everything,
    Expand,
    Geometry,
    Linear,
    Overlap,
    Pad,
    Padding,
    Shrink,
    Span,
    Transposed,
    Window,
    brought_up,
    hull,
    padding_free_overlap,
    published_overlap,
    roll,
)

torch.set_num_threads(1)

BORDERS = [Padding.CONSTANT, Padding.REFLECT, Padding.REPLICATE, Padding.CIRCULAR]
NUMPY_MODES = {Padding.REFLECT: "reflect", Padding.REPLICATE: "edge", Padding.CIRCULAR: "wrap"}
REACH = 70
"""Brute force looks at coordinates from -REACH to REACH, far more than any case below needs."""

many = tries(500)
some = tries(200)


@dataclass
class Case:
    """A geometry beside its oracle: `feeds(a)` is the set of unclipped inputs that output `a` reads."""

    geometry: Geometry
    feeds: Callable[[int], set[int]]
    smallest: int
    """The smallest input that the op accepts."""
    border: Padding = Padding.CLAMP

    def __repr__(self) -> str:
        return f"{self.geometry} from {self.smallest} samples"

    def real(self, output: int, n: int) -> set[int]:
        """The samples of `[0, n)` that an output reads, also through what stands outside the image."""
        return {i for i in (standing_at(self.border, i, n) for i in self.feeds(output)) if i is not None}


def standing_at(border: Padding, index: int, n: int) -> int | None:
    """Which sample stands at a coordinate, from numpy's own padding of a ramp."""
    if 0 <= index < n:
        return index
    if border not in NUMPY_MODES:
        return None
    before, after = max(0, -index), max(0, index - n + 1)
    padded = np.pad(np.arange(n), (before, after), mode=NUMPY_MODES[border])  # type: ignore[call-overload]
    return int(padded[index + before])


def tight(indices: set[int]) -> Span:
    return Span(min(indices), max(indices) + 1) if indices else Span(0, 0)


def gathered(case: Case, outputs: Span) -> set[int]:
    return {i for a in range(*outputs) for i in case.feeds(a)}


def gathered_real(case: Case, outputs: Span, n: int) -> set[int]:
    return {i for a in range(*outputs) for i in case.real(a, n)}


def scattered(targets: Callable[[int], list[int]]) -> Callable[[int], set[int]]:
    """From "input i feeds these outputs" to "output a reads these inputs", by listing every input."""
    table: defaultdict[int, set[int]] = defaultdict(set)
    for source in range(-REACH, REACH):
        for output in targets(source):
            table[output].add(source)
    return lambda output: table[output]


@st.composite
def window_cases(draw) -> Case:
    kernel, stride, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    before, after = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    border = draw(st.sampled_from(BORDERS))
    extent = dilation * (kernel - 1) + 1
    window = Window(kernel, stride, before, after, dilation, border)
    room_for_padding = {Padding.REFLECT: 1 + max(before, after), Padding.CIRCULAR: max(before, after)}
    return Case(
        window,
        lambda a: {a * stride - before + dilation * j for j in range(kernel)},
        max(1, extent - before - after, room_for_padding.get(border, 1)),
        border,
    )


@st.composite
def pooling_cases(draw) -> Case:
    kernel, stride, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, kernel // 2))
    extent = dilation * (kernel - 1) + 1
    return Case(
        Window(kernel, stride, padding, padding, dilation, ceil=True),
        lambda a: {a * stride - padding + dilation * j for j in range(kernel)},
        max(1, extent - 2 * padding),
        Padding.CONSTANT,
    )


@st.composite
def masked_cases(draw) -> Case:
    kernel, stride, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, 6))
    taps = draw(st.sets(st.integers(0, kernel - 1), min_size=1))
    full = Window(kernel, stride, padding, padding, dilation)
    return Case(
        full.masked(taps),
        lambda a: {a * stride - padding + dilation * j for j in taps},
        max(1, dilation * (kernel - 1) + 1 - 2 * padding),
        Padding.CONSTANT,
    )


@st.composite
def transposed_cases(draw) -> Case:
    kernel, stride, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    trim = draw(st.integers(0, 4))
    extra = draw(st.integers(0, max(stride, dilation) - 1))
    length = dilation * (kernel - 1) + 1 + extra - 2 * trim
    return Case(
        Transposed(kernel, stride, trim, extra, dilation),
        scattered(lambda i: [i * stride - trim + dilation * j for j in range(kernel)]),
        1 if length >= 1 else 1 + -(-(1 - length) // stride),
    )


@st.composite
def expand_cases(draw) -> Case:
    factor = draw(st.integers(1, 5))
    return Case(Expand(factor), scattered(lambda i: [i * factor + j for j in range(factor)]), 1)


@st.composite
def shrink_cases(draw) -> Case:
    factor = draw(st.integers(1, 5))
    return Case(Shrink(factor), lambda a: {a * factor + j for j in range(factor)}, factor)


@st.composite
def linear_cases(draw) -> Case:
    up, down = draw(st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8)]))

    def feeds(output: int) -> set[int]:
        position = (output + Fraction(1, 2)) * Fraction(down, up) - Fraction(1, 2)
        below = floor(position)
        return {below} if position == below else {below, below + 1}

    return Case(Linear(up, down), feeds, down, Padding.REPLICATE)


@st.composite
def pad_cases(draw) -> Case:
    border = draw(st.sampled_from(BORDERS))
    before, after = draw(st.integers(-5, 6)), draw(st.integers(-5, 6))
    room_for_padding = {Padding.REFLECT: 1 + max(before, after), Padding.CIRCULAR: max(before, after)}
    return Case(
        Pad(before, after, border),
        lambda a: {a - before},
        max(1, 1 - before - after, -before, -after, room_for_padding.get(border, 1)),
        border,
    )


@st.composite
def roll_cases(draw) -> Case:
    shift = draw(st.integers(-30, 30))
    return Case(roll(shift), lambda a: {a - shift}, 1, Padding.CIRCULAR)


FAMILIES = {
    "window": window_cases(),
    "pooling with ceil_mode": pooling_cases(),
    "masked": masked_cases(),
    "transposed": transposed_cases(),
    "expand": expand_cases(),
    "linear": linear_cases(),
    "shrink": shrink_cases(),
    "pad": pad_cases(),
    "roll": roll_cases(),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def drawn(data: st.DataObject, family: str) -> tuple[Case, int, Span]:
    """A case, an input length it accepts, and some of its outputs."""
    case = data.draw(FAMILIES[family])
    n = case.smallest + data.draw(st.integers(0, 14))
    if isinstance(case.geometry, Shrink):
        n *= case.geometry.factor
    size = case.geometry.size(n)
    assert size >= 1
    start = data.draw(st.integers(0, size - 1))
    return case, n, Span(start, data.draw(st.integers(start + 1, size)))


@every_family
@given(data=st.data())
@some
def test_need_is_the_hull_of_the_unclipped_dependency_set(family, data):
    case = data.draw(FAMILIES[family])
    start = data.draw(st.integers(-15, 15))
    outputs = Span(start, start + data.draw(st.integers(1, 9)))
    need, truth = case.geometry.need(outputs), tight(gathered(case, outputs))
    assert need == truth or (need.empty and truth.empty)


@every_family
@given(data=st.data())
@some
def test_reads_is_the_hull_of_the_real_samples(family, data):
    case, n, outputs = drawn(data, family)
    reads, truth = case.geometry.reads(outputs, n), tight(gathered_real(case, outputs, n))
    assert reads == truth or (reads.empty and truth.empty)
    assert 0 <= reads.start <= reads.stop <= n


@every_family
@given(data=st.data())
@some
def test_ready_is_the_longest_prefix_that_depends_on_what_exists(family, data):
    case, n, _ = drawn(data, family)
    size = case.geometry.size(n)
    real = [case.real(a, n) for a in range(size)]
    counts = [ready(case.geometry, stop, n) for stop in range(n + 1)]
    assert counts == sorted(counts)
    assert counts[n] == size
    for stop, count in enumerate(counts):
        late = [a for a in range(size) if any(i >= stop for i in real[a])]
        assert count == (late[0] if late else size)


@every_family
@given(data=st.data())
@some
def test_the_dependency_repeats_with_the_period(family, data):
    case = data.draw(FAMILIES[family])
    period = case.geometry.period
    start, repeats = data.draw(st.integers(-9, 9)), data.draw(st.integers(-2, 2))
    moved = case.feeds(start + repeats * period.output)
    assert moved == {i + repeats * period.input for i in case.feeds(start)}
    outputs = Span(start, start + data.draw(st.integers(1, 9)))
    need = case.geometry.need(outputs)
    assert need.empty or case.geometry.need(outputs.shift(period.output)) == need.shift(period.input)


@every_family
@given(data=st.data())
@some
def test_some_outputs_read_no_more_than_all_outputs_do(family, data):
    case, n, outputs = drawn(data, family)
    every = case.geometry.reads(Span(0, case.geometry.size(n)), n)
    assert hull([case.geometry.reads(outputs, n), every]) == hull([every])


@given(case=st.one_of(window_cases(), masked_cases(), pooling_cases()), start=st.integers(-20, 20))
@many
def test_a_window_begins_at_the_first_output_that_reads_nothing_before_the_piece(case, start):
    begins = case.geometry.begins(start)
    assert min(case.feeds(begins)) >= start
    assert min(case.feeds(begins - 1)) < start


@given(
    case=st.one_of(transposed_cases(), expand_cases(), pad_cases(), roll_cases()), start=st.integers(-20, 20)
)
@many
def test_a_scattering_op_begins_at_the_first_output_that_the_piece_feeds(case, start):
    begins = case.geometry.begins(start)
    assert start in case.feeds(begins)
    assert not any(start in case.feeds(a) for a in range(begins - 40, begins))


@given(ratio=st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 2), (1, 4)]), whole=st.integers(-9, 9))
@some
def test_linear_begins_where_its_grid_starts_anew(ratio, whole):
    up, down = ratio
    start = whole * down

    def position(output: int) -> Fraction:
        return (output + Fraction(1, 2)) * Fraction(down, up) - Fraction(1, 2)

    assert position(Linear(up, down).begins(start)) == start + position(0)


# --- sizes -----------------------------------------------------------------------------------------------


@given(case=window_cases(), n=st.integers(1, 40))
@many
def test_a_window_has_as_many_outputs_as_fit(case, n):
    window = case.geometry
    padded = n + window.before + window.after
    fits = [a for a in range(60) if a * window.stride + window.dilation * (window.kernel - 1) < padded]
    refused = window.outside in (Padding.REFLECT, Padding.CIRCULAR) and n < case.smallest
    assert max(0, window.size(n)) == (0 if refused else len(fits))


@given(case=masked_cases(), n=st.integers(1, 40), data=st.data())
@some
def test_masking_taps_changes_no_size(case, n, data):
    kernel, dilation = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    taps = data.draw(st.sets(st.integers(0, kernel - 1), min_size=1))
    full = Window(kernel, data.draw(st.integers(1, 3)), 2, 3, dilation)
    assert full.masked(taps).size(n) == full.size(n)


def length(call: Callable[[], torch.Tensor]) -> int:
    """The length of torch's output, 0 where torch refuses the input."""
    try:
        return call().shape[-1]
    except (RuntimeError, ValueError):
        return 0


def ramp(n: int) -> torch.Tensor:
    return torch.arange(float(n))[None, None]


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 5), st.integers(0, 6), st.integers(1, 3))
@many
def test_the_size_of_a_convolution_is_torchs(n, kernel, stride, padding, dilation):
    window = Window(kernel, stride, padding, padding, dilation)
    real = length(lambda: F.conv1d(ramp(n), torch.ones(1, 1, kernel), None, stride, padding, dilation))
    assert max(0, window.size(n)) == real


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 5), st.data(), st.integers(1, 3), st.booleans())
@many
def test_the_size_of_a_pooling_is_torchs(n, kernel, stride, data, dilation, ceil):
    padding = data.draw(st.integers(0, kernel // 2))
    window = Window(kernel, stride, padding, padding, dilation, ceil=ceil)
    real = length(lambda: F.max_pool1d(ramp(n), kernel, stride, padding, dilation, ceil_mode=ceil))
    assert max(0, window.size(n)) == real
    if dilation == 1:
        real = length(lambda: F.avg_pool1d(ramp(n), kernel, stride, padding, ceil_mode=ceil))
        assert max(0, window.size(n)) == real


@given(
    st.integers(1, 20), st.integers(1, 6), st.integers(1, 5), st.integers(0, 4), st.data(), st.integers(1, 3)
)
@many
def test_the_size_of_a_transposed_convolution_is_torchs(n, kernel, stride, trim, data, dilation):
    extra = data.draw(st.integers(0, max(stride, dilation) - 1))
    op = Transposed(kernel, stride, trim, extra, dilation)
    weight = torch.ones(1, 1, kernel)
    real = length(lambda: F.conv_transpose1d(ramp(n), weight, None, stride, trim, extra, 1, dilation))
    assert max(0, op.size(n)) == real


@given(st.integers(1, 200), st.sampled_from([1, 2, 3, 4, 8]), st.booleans())
@some
def test_the_size_of_an_interpolation_is_torchs(n, factor, shrinks):
    scale = 1 / factor if shrinks else float(factor)
    nearest = Window(1, factor, 0, 1 - factor) if shrinks else Expand(factor)
    assert max(0, nearest.size(n)) == length(lambda: F.interpolate(ramp(n), scale_factor=scale))
    if factor != 3:
        linear = Linear(1, factor) if shrinks else Linear(factor, 1)
        assert linear.size(n) == length(lambda: F.interpolate(ramp(n), scale_factor=scale, mode="linear"))


@given(st.integers(1, 20), st.integers(-6, 6), st.integers(-6, 6), st.sampled_from(BORDERS))
@some
def test_the_size_of_a_pad_is_torchs(n, before, after, border):
    assume(n + min(before, 0) + min(after, 0) > 0)
    assume(border is not Padding.CIRCULAR or min(before, after) >= 0)  # torch cannot do both
    real = length(lambda: F.pad(ramp(n), (before, after), mode=border.value))
    assert Pad(before, after, border).size(n) == real


@given(st.integers(1, 30), st.integers(1, 5))
@some
def test_the_sizes_of_pixel_shuffles_are_torchs(n, factor):
    x, y = torch.zeros(1, factor**2, n, n), torch.zeros(1, 1, n, n)
    assert Expand(factor).size(n) == F.pixel_shuffle(x, factor).shape[-1]
    assert Shrink(factor).size(n) == length(lambda: F.pixel_unshuffle(y, factor))


# --- padding ---------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 12), st.sampled_from(BORDERS[1:]))
@many
def test_the_source_of_a_padded_sample_is_torchs(n, before, after, border):
    limit = n - 1 if border is Padding.REFLECT else n if border is Padding.CIRCULAR else 12
    before, after = min(before, limit), min(after, limit)
    padded = F.pad(ramp(n), (before, after), mode=border.value)[0, 0].long().tolist()
    assert [border.source(index, n) for index in range(-before, n + after)] == padded


@pytest.mark.parametrize("border", [Padding.CONSTANT, Padding.CLAMP])
def test_outside_a_constant_border_stands_no_sample(border):
    assert [border.source(index, 3) for index in range(-2, 5)] == [None, None, 0, 1, 2, None, None]


@given(st.integers(1, 12), st.sampled_from(list(Padding)), st.data())
@many
def test_inside_is_the_hull_of_the_sources(n, border, data):
    limit = n - 1 if border is Padding.REFLECT else 12
    start = data.draw(st.integers(-limit, n + limit - 1))
    span = Span(start, data.draw(st.integers(start + 1, n + limit)))
    truth = tight({i for i in (standing_at(border, index, n) for index in range(*span)) if i is not None})
    inside = border.inside(span, n)
    assert inside == truth or (inside.empty and truth.empty)


@given(st.integers(1, 12), st.integers(-40, 40))
@some
def test_roll_reads_what_torch_rolls_there(n, shift):
    rolled = torch.roll(ramp(n), shift, -1)[0, 0].long().tolist()
    for output, sample in enumerate(rolled):
        assert roll(shift).reads(Span(output, output + 1), n) == (sample, sample + 1)


# --- spans, whole maps, and regressions ------------------------------------------------------------------


def test_a_global_op_reads_everything_and_is_ready_at_the_end():
    assert Everything().reads(Span(3, 4), 9) == (0, 9)
    assert [ready(Everything(), stop, 9) for stop in (0, 8, 9)] == [0, 0, 9]
    assert Everything().size(9) == 9
    assert Everything().need(Span(0, 1)).unbounded
    assert Everything().begins(5) == 5
    assert Window(3, 64).need(Span(-FAR, FAR)).unbounded
    assert Expand(64).need(Span(-FAR, FAR)).unbounded
    assert not Window(3).need(Span(0, 1 << 30)).unbounded


def test_no_output_reads_no_sample():
    assert Window(3, 1, 1, 1, outside=Padding.REFLECT).reads(Span(4, 4), 9).empty


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), max_size=5))
@some
def test_the_hull_covers_the_spans_that_are_not_empty(bounds):
    truth = tight({i for start, stop in bounds for i in range(start, stop)})
    assert hull(Span(*pair) for pair in bounds) == truth


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 6))
@some
def test_clipping_keeps_what_is_inside(start, stop, n):
    span = Span(start, stop)
    clipped = span.clip(n)
    assert set(range(*clipped)) == set(range(*span)) & set(range(n))
    assert 0 <= clipped.start <= clipped.stop <= n
    assert (span.length, span.empty) == (len(range(*span)), stop <= start)


def test_a_roll_further_than_the_image_is_long_wraps_more_than_once():
    assert roll(7).reads(Span(0, 1), 3) == (2, 3)


def test_a_dilated_window_reads_no_border_sample_that_lies_between_its_taps():
    # taps at -1, 1 and 3, 5: sample 0 is in the hull of what is needed, and read by none of them
    assert Window(2, 4, 1, 0, 2).reads(Span(0, 2), 9) == (1, 6)


def test_a_stride_beyond_the_kernel_skips_the_first_samples():
    # a 1x1 convolution with stride 3 and padding 1 reads -1, 2, 5
    assert Window(1, 3, 1, 1).reads(Span(0, 3), 6) == (2, 6)


def test_a_dilated_transposed_convolution_reads_no_border_sample_that_feeds_nothing():
    # output 4 is fed by the inputs 2 (tap 0) and -1 (tap 6), and by none of those between
    assert Transposed(3, 2, 0, 0, 3).reads(Span(4, 5), 9) == (2, 3)


def test_a_masked_tap_in_the_middle_is_not_read_at_a_border():
    # a 5x3 checkerboard has no open tap in its middle row: of a one-row image it reads nothing at all
    window = Window(5, 1, 2, 2).masked({0, 1, 3, 4})
    assert window.reads(Span(0, 1), 1).empty
    assert window.reads(Span(0, 1), 2) == (1, 2)


def test_ready_counts_an_output_that_reads_padding_past_the_end_alone():
    # only the last of seven taps is open, so the one output of three samples reads coordinate 4
    window = Window(7, 1, 2, 2).masked({6})
    assert window.size(3) == 1
    assert ready(window, 0, 3) == 1


# --- published figures -----------------------------------------------------------------------------------


def test_the_published_step_floors_for_transposed_convolutions():
    deconv = Transposed(5, 2, 2, 1)
    out, steps = Overlap(0, 0), []
    for _ in range(4):
        step = published_overlap(deconv, out)
        assert step is not None
        steps.append(step)
        out = step
    assert out == (1, 2)
    assert steps[0] == (1, 1)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 20), st.integers(0, 20))
@some
def test_the_published_step_is_the_exact_one_for_odd_kernels_and_aligned_tiles(half, stride, left, right):
    """For an aligned tile of `stride` periods, beside the brute force of what the window reads."""
    kernel = 2 * half + 1
    conv, tile = Window(kernel, stride, half, half), 7
    taps = {a * stride - half + j for a in range(-left, tile + right) for j in range(kernel)}
    stop = max(max(taps) + 1, (tile + right) * stride)
    assert published_overlap(conv, Overlap(left, right)) == (-min(taps), stop - tile * stride)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 20), st.integers(0, 20))
@some
def test_the_published_step_is_the_exact_one_for_transposed_convolutions(half, stride, left, right):
    kernel, tile = 2 * half + 1, 7
    assume(kernel >= stride)
    feeds = scattered(lambda i: [i * stride - half + j for j in range(kernel)])
    read = {i for a in range(-left, tile * stride + right) for i in feeds(a)}
    step = published_overlap(Transposed(kernel, stride, half, stride - 1), Overlap(left, right))
    assert step == (-min(read), max(read) + 1 - tile)


def test_the_published_recursion_says_nothing_of_other_ops():
    assert published_overlap(Expand(2), Overlap(1, 1)) is None
    assert published_overlap(Pad(1, 1), Overlap(1, 1)) is None


@pytest.mark.parametrize(
    ("receptive_field", "scale", "overlap"),
    [
        (72, 16, 64),
        (63, 16, 48),
        (64, 16, 48),
        (65, 16, 64),
        (79, 16, 64),
        (80, 16, 64),
        (81, 16, 80),
        (3, 1, 2),
    ],
)
def test_the_padding_free_bound_either_side_of_divisibility(receptive_field, scale, overlap):
    assert padding_free_overlap(receptive_field, scale) == overlap


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_an_image_is_brought_up_as_compressai_pads(height, width, multiple):
    from compressai.ops import compute_padding

    padded = (*brought_up(width, multiple), *brought_up(height, multiple))
    assert padded == compute_padding(height, width, min_div=multiple)[0]
