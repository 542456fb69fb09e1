"""What is recorded on the processor gives, replayed for other tensors, what the same code gives for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest import mock

import llvmlite.ir as ir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from support.tapes import Code, check, gdn, program, recorded, steps
from support.tapes import normal as on_a_device
from torch import Tensor

import overlap_tool
from overlap_tool.kernels import joining, strips, tape, threads
from overlap_tool.kernels.recording import Entry, Lying, Recorder
from overlap_tool.kernels.tape import Tape, tape_of

pytestmark = pytest.mark.usefixtures("exactly")


@pytest.fixture
def exactly() -> Iterator[None]:
    with torch.no_grad(), overlap_tool.exact_kernels():
        yield


def normal(*shape: int) -> Tensor:
    return on_a_device(*shape, device="cpu")


@contextmanager
def strips_of(**limits: int) -> Iterator[list[tuple[int, ...]]]:
    """The heights of all that goes by strips meanwhile, with other limits."""
    found = []

    def noted(entries: list[Entry]) -> list[Entry]:
        entries = in_strips(entries)
        found.extend(each.work.heights for each in entries if isinstance(each.work, strips.Strips))
        return entries

    in_strips = joining.in_strips
    with (
        mock.patch.multiple(strips, **(limits or {"ENOUGH": strips.ENOUGH})),
        mock.patch.object(joining, "in_strips", noted),
    ):
        yield found


@cache
def code_from_the_last_strip_on() -> int:
    add = ir.IRBuilder.atomic_rmw

    def taken_from_the_end(b: ir.IRBuilder, *how: Any) -> ir.Value:
        taken, strips = add(b, *how), b.load(b.gep(how[1], [ir.IntType(64)(1)]))
        last = b.sub(strips, ir.IntType(64)(1))
        return b.select(b.icmp_signed("<", taken, strips), b.sub(last, taken), taken)

    with mock.patch.object(ir.IRBuilder, "atomic_rmw", taken_from_the_end):
        return strips._code.__wrapped__()


@contextmanager
def last_strips_first() -> Iterator[None]:
    """As threads might: which of them is first, one run does not show."""
    code = code_from_the_last_strip_on()
    with mock.patch.object(strips, "_code", return_value=code):
        yield


ONE_ROW = {"WORTH_IT": 0, "ENOUGH": 1, "FEWEST": 1, "CACHED_BYTES": 1}
"""However small the maps."""


def steps_of(found: Tape) -> Counter[str]:
    """How many calls of generated code, and ops of PyTorch's by name."""
    return Counter(
        "call" if isinstance(step, tape._Launched) else str(step._call.func) for step in found._steps
    )


def test_a_gdn_is_a_square_and_one_convolution(exactly: None) -> None:
    normalise = gdn(normal(24, 24), normal(24))
    assert steps_of(check(lambda x: [normalise(x)], normal(1, 24, 9, 8))) == {"call": 2}


@pytest.mark.parametrize("channels", [3, 8, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_follows_a_convolution_goes_along_with_it(channels: int, dtype: torch.dtype) -> None:
    """Of a piece of a larger map, too, as the other branch of a block is."""
    weight = normal(channels, channels, 3, 3).to(dtype)

    def code(x: Tensor, y: Tensor) -> list[Tensor]:
        return [torch.relu(F.conv2d(x, weight) + x[..., 1:-1, 1:-1]) * y]

    given = normal(2, channels, 9, 60).to(dtype), normal(2, channels, 7, 58).to(dtype)
    assert steps_of(check(code, *given)) == {"call": 1}


def test_what_is_computed_for_a_larger_map_is_written_there(exactly: None) -> None:
    weight = normal(20, 20, 3, 3)

    def code(x: Tensor, left: Tensor, above: Tensor) -> list[Tensor]:
        block = torch.empty((1, 20, 11, 13), memory_format=torch.channels_last)
        new = torch.relu(F.conv2d(x, weight))
        block[..., :4] = left
        block[..., :3, 4:] = above
        block[..., 3:, 4:] = new
        return [F.conv2d(block, weight)]

    found = check(code, normal(1, 20, 10, 11), normal(1, 20, 11, 4), normal(1, 20, 3, 9))
    assert steps_of(found) == {"call": 4}


def test_zeros_around_a_map_take_no_memory_of_their_own(exactly: None) -> None:
    weight = normal(20, 20, 3, 3)
    found = check(lambda x: [F.conv2d(F.conv2d(x, weight), weight, padding=(1, 2))], normal(1, 20, 9, 8))
    assert steps_of(found) == {"call": 2 + 4}


@pytest.mark.parametrize(
    "code",
    [
        lambda block, new: block[..., 1:6, 2:5].copy_(new),
        lambda block, new: block[..., :5, 4:].copy_(new),
    ],
)
def test_what_another_writes_there_is_not_written_over(code: Code) -> None:
    """The second write to the same place comes after the convolution's, and before the copy."""
    weight = normal(4, 4, 1, 1)

    def overlapping(x: Tensor, y: Tensor) -> list[Tensor]:
        block = torch.zeros((1, 4, 7, 7)).contiguous(memory_format=torch.channels_last) + y
        new = F.conv2d(x, weight)
        block[..., :4, :4] = y[..., 3:, 3:]
        code(block, new)
        return [block * 2]

    check(overlapping, normal(1, 4, 5, 3), normal(1, 4, 7, 7))


def test_what_another_convolution_reads_there_is_not_written_over_before() -> None:
    """What is fused with one was forgotten among all that it reads."""
    weight = normal(4, 4, 1, 1)

    def code(x: Tensor, y: Tensor) -> list[Tensor]:
        block = y * 2
        new = F.conv2d(x, weight)
        between = F.conv2d(x, weight * 2) + block[..., 1:6, 2:5]
        block[..., 1:6, 2:5] = new
        return [block * 2, between]

    check(code, normal(1, 4, 5, 3), normal(1, 4, 7, 7))


def at(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Lying:
    return Lying(0, 4 * offset, torch.Size(shape), strides, torch.float32, torch.device("cpu"), 0)


@tries(2000)
@given(st.data())
def test_boxes_that_share_no_number_are_told(data) -> None:
    """Held to all places of both. What cannot be told counts as shared."""
    draw = data.draw
    size = [draw(st.integers(1, 4)) for _ in range(3)]  # rows, columns, channels
    strides = size[0] * size[1] * size[2], 1, size[1] * size[2], size[2]
    boxes = []
    for _ in range(2):
        spans = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in size]
        corner = [first for first, _ in spans]
        rows, columns, channels = (stop - first for first, stop in spans)
        offset = corner[0] * strides[2] + corner[1] * strides[3] + corner[2]
        boxes.append(at(offset, (1, channels, rows, columns), strides))
    one, other = boxes

    def places(box: Lying) -> set[int]:
        room = torch.arange(500)
        return set(room.as_strided(box.shape, box.strides, box.offset // 4).flatten().tolist())

    if one.apart_from(other):
        assert places(one).isdisjoint(places(other))
    elif min(*one.shape[1:], *other.shape[1:]) > 1:
        assert not places(one).isdisjoint(places(other))


def test_a_tape_that_gives_other_bits_is_not_replayed(monkeypatch) -> None:
    monkeypatch.setattr(joining, "_keeps_off", lambda *_: True)
    weight = normal(4, 4, 1, 1)

    def code(x: Tensor) -> list[Tensor]:
        block = torch.empty((1, 4, 5, 5), memory_format=torch.channels_last)
        new = F.conv2d(x, weight)
        block.copy_(x)
        block.copy_(new)
        return [block + 0.5]

    with pytest.warns(overlap_tool.SlowKernelWarning, match="other bits"):
        assert recorded(code, normal(1, 4, 5, 5))[1] is None


@tries(60)
@given(steps, st.sampled_from([4, 16, 24]), st.integers(1, 3), st.sampled_from(["", "forward", "backward"]))
def test_any_code_gives_the_same(
    steps: list[tuple[str, int, int]], channels: int, images: int, order: str
) -> None:
    given = normal(images, channels, 5, 6), normal(images, channels, 6, 5)
    with (
        strips_of(**ONE_ROW) if order else nullcontext(),
        last_strips_first() if order == "backward" else nullcontext(),
    ):
        check(program(steps, "cpu", channels), *given)


def test_what_reads_row_for_row_goes_along_strip_by_strip() -> None:
    first, wide, narrow = normal(8, 8, 3, 3), normal(16, 8, 1, 1), normal(8, 16, 1, 1)

    def block(x: Tensor, y: Tensor) -> list[Tensor]:
        middle = F.conv2d(F.relu(F.conv2d(x, first)), wide) + y
        return [middle, F.relu(F.conv2d(middle, narrow))]

    with strips_of(**ONE_ROW) as heights:
        check(block, normal(1, 8, 12, 11), normal(1, 16, 10, 9))
    assert heights == [(1, 1, 1)]
    with strips_of() as heights:
        check(block, normal(1, 8, 12, 11), normal(1, 16, 10, 9))
    assert heights == []


@pytest.mark.parametrize("rows", [7, 8])
def test_phases_of_a_transposed_convolution_go_along_with_what_reads_their_rows(rows: int) -> None:
    weight, normalise = normal(16, 16, 5, 5), gdn(normal(16, 16), normal(16))
    with strips_of(**ONE_ROW) as heights:
        check(lambda x: [normalise(F.conv_transpose2d(x, weight, None, 2, 2, 1))], normal(1, 16, rows, 6))
    assert heights == [(1, 1, 1, 1, 2, 2)]


@pytest.mark.parametrize("kernel", [(3, 1), (1, 3)])
def test_what_reads_other_rows_comes_after(kernel: tuple[int, int]) -> None:
    weight, then = normal(8, 8, 3, 3), normal(8, 8, *kernel)
    with strips_of(**ONE_ROW) as heights:
        check(lambda x: [F.conv2d(F.conv2d(x, weight), then)], normal(1, 8, 12, 11))
    assert heights == ([] if kernel[0] > 1 else [(1, 1)])


def test_rows_that_are_put_further_down_are_not_read_too_early() -> None:
    """What is read lies in the rows of another strip than those that are written."""
    weight, mix = normal(8, 8, 3, 3), normal(8, 8, 1, 1)

    def code(x: Tensor) -> list[Tensor]:
        room = x.clone()
        room[..., 1:-1, 1:-1] = F.conv2d(x, weight)
        return [F.conv2d(room[..., 2:, 1:-1], mix), room]

    with strips_of(**ONE_ROW) as heights:
        check(code, normal(1, 8, 12, 11))
    assert heights == []


@pytest.mark.parametrize("order", [nullcontext, last_strips_first])
def test_images_are_not_taken_for_more_rows(order: Callable[[], AbstractContextManager[None]]) -> None:
    """What reads two images as the rows of one kept step with them: it read unwritten rows."""
    weight, mix = normal(8, 8, 3, 3), normal(8, 8, 1, 1)

    def joined(x: Tensor) -> list[Tensor]:
        rows = F.conv2d(x, weight).permute(0, 2, 3, 1)
        return [F.conv2d(rows.reshape(1, -1, *rows.shape[2:]).permute(0, 3, 1, 2), mix)]

    with strips_of(**ONE_ROW) as heights, order():
        check(joined, normal(2, 8, 12, 11))
    assert heights == []
    with strips_of(**ONE_ROW) as heights, order():
        check(lambda x: [F.conv2d(F.conv2d(x, weight), mix)], normal(2, 8, 12, 11))
    assert heights == [(1, 1)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "follow",
    [
        lambda y: torch.sigmoid(y.flatten(2)) * y.flatten(2),
        lambda y: torch.sigmoid(y[0].permute(1, 2, 0).flatten(0, 1)),
        lambda y: torch.sigmoid(y.permute(0, 2, 3, 1)) * y.permute(0, 2, 3, 1),
        lambda y: F.conv2d(y, torch.ones(8, 8, 1, 1)) * y[..., :1, :].expand_as(y),
    ],
)
def test_what_reads_maps_of_other_axes_goes_by_itself(follow: Code) -> None:
    """Of such there are no rows; a tape was given up for it."""
    weight = normal(8, 8, 3, 3)
    with strips_of(**ONE_ROW):
        check(lambda x: [y := F.conv2d(x, weight), follow(y)], normal(1, 8, 12, 11))


# --- what a review has found ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        lambda x: [x + torch.from_numpy(np.round(x.numpy() * 4))],
        lambda x: [x * (2.0 if max(x.flatten().tolist()) > 1 else 1.0)],
        lambda x: [x + torch.from_numpy(np.asarray(x * 2))],
        lambda x: [torch.from_dlpack(x * 2) + x],
    ],
)
def test_numbers_that_numpy_reads_are_refused(code: Code) -> None:
    """They went by PyTorch's dispatcher, and were taken for weights."""
    recorder, found = recorded(code, normal(1, 4, 3, 3))
    assert found is None
    assert "hands numbers to Python" in recorder.refused


def test_weights_made_by_convolutions_are_told_apart() -> None:
    """By numbers of places in one recording, those of another were taken for them."""
    made, first, second = normal(4, 4, 3, 3), normal(4, 4, 1, 1), normal(4, 4, 1, 1)

    def code(shift: int) -> Code:
        def compute(x: Tensor) -> list[Tensor]:
            for _ in range(shift):
                torch.empty(1)
            y = F.conv2d(x, F.conv2d(made, first))
            return [F.conv2d(y, F.conv2d(made, second))]

        return compute

    x = normal(1, 4, 9, 8)
    expected = code(0)(x)[0]
    for shift in range(30):
        constants: dict = {}
        for each in (code(0), code(shift)):
            recorder = Recorder()
            with recorder.on():
                recorder.gives(x)
                result = each(x)
                recorder.returns(result[0])
            found = tape_of(recorder, constants)
            assert found is not None
            replayed = found.replay([x])
            assert replayed is not None
            assert torch.equal(replayed[0], expected), shift


def test_the_default_device_does_not_matter() -> None:
    """Memory for intermediate results was asked for there."""
    weight, x = normal(4, 4, 3, 3), normal(1, 4, 9, 8)
    found = check(lambda x: [F.conv2d(F.conv2d(x, weight), weight)], x)
    expected = found.replay([x])
    torch.set_default_device("meta")
    try:
        replayed = found.replay([x])
    finally:
        torch.set_default_device(None)
    assert replayed is not None
    assert expected is not None
    assert torch.equal(replayed[0], expected[0])


def test_memory_that_grows_is_refused() -> None:
    weight = normal(4, 4, 1, 1)

    def resized(x: Tensor) -> list[Tensor]:
        y = torch.empty(0)
        y.resize_(x.shape)
        y.copy_(x)
        return [F.conv2d(y.mul_(2), weight)]

    def out(x: Tensor) -> list[Tensor]:
        y = torch.empty(0)
        torch.mul(x, 2, out=y)
        return [F.conv2d(y, weight)]

    for code in (resized, out):
        recorder, found = recorded(code, normal(1, 4, 3, 3))
        assert found is None
        assert "grew" in recorder.refused


@pytest.mark.filterwarnings("error")
def test_a_convolution_is_not_fused_into_what_it_changes_in_place() -> None:
    weight = normal(4, 4, 1, 1)
    check(lambda x: [x.abs().sqrt().mul_(F.conv2d(x, weight))], normal(1, 4, 5, 5))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 4, 2, 5, 3)])
def test_maps_of_other_axes_may_have_zeros_around(shape: tuple[int, ...]) -> None:
    check(lambda x: [F.relu(F.pad(x, (1, 1, 1, 1)))], normal(*shape))


def test_zeros_keep_their_sign() -> None:
    found = check(lambda x: [F.pad(x, (1, 1, 1, 1), value=-0.0)], normal(1, 4, 3, 3))
    replayed = found.replay([normal(1, 4, 3, 3)])
    assert replayed is not None
    assert replayed[0][..., 0, :].signbit().all()


def test_a_negated_view_is_refused() -> None:
    check(lambda x, y: [y.copy_(x) * 1], normal(1, 4, 3, 3), normal(1, 4, 3, 3))
    _, found = recorded(
        lambda x, y: [y.copy_(torch._neg_view(x)) * 1], normal(1, 4, 3, 3), normal(1, 4, 3, 3)
    )
    assert found is None


def test_a_view_that_has_to_copy_is_recorded() -> None:
    """`flatten` says that it is a view; of rows that lie apart it makes new memory, which is no weight."""
    found = check(lambda x: [x[..., ::2].flatten(2) * 2], normal(1, 4, 6, 6))
    assert len(found.given) == 1


def test_without_openmp_a_tape_is_replayed_by_python(monkeypatch) -> None:
    monkeypatch.setattr(threads, "_fork", lambda: None)
    weight = normal(20, 20, 3, 3)
    check(lambda x: [F.conv2d(F.conv2d(x, weight).relu(), weight)], normal(1, 20, 90, 80))
