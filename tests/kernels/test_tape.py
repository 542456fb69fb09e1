"""What is recorded on a GPU gives, replayed for other tensors, what the same code gives for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from support.emulated_gpu import EmulatedGpu, can_emulate, emulated_gpu
from support.tapes import Code, check, gdn, normal, program, recorded, steps
from torch import Tensor

import overlap_tool
from overlap_tool.kernels import cuda, joining
from overlap_tool.kernels.form import Form
from overlap_tool.kernels.recording import Entry, Recorder
from overlap_tool.kernels.tape import Tape, is_tried, tape_of

if torch.cuda.is_available() or not can_emulate():
    pytest.skip("a GPU cannot, or need not, be emulated", allow_module_level=True)


@pytest.fixture(scope="module")
def gpu():
    with (
        pytest.MonkeyPatch.context() as patch,
        emulated_gpu(patch) as found,
        torch.no_grad(),
        overlap_tool.exact_kernels(),
    ):
        yield found


def launches(gpu: EmulatedGpu, tape: Tape, *tensors: Tensor) -> list[str]:
    gpu.driver.launches.clear()
    gpu.launched.clear()
    tape.replay(tensors)
    return [launch.told for launch in gpu.driver.launches] + gpu.launched


def test_what_depends_on_weights_alone_is_not_done_again(gpu) -> None:
    weight, bias, normalise = normal(8, 3, 5, 5), torch.rand(8, device="cuda"), gdn(normal(8, 8), normal(8))
    found = check(lambda x: [normalise(F.conv2d(F.pad(x, (2, 1, 0, 2)), weight, bias))], normal(1, 3, 9, 8))
    assert launches(gpu, found, normal(1, 3, 9, 8)) == ["few_inputs", "tiled"]
    assert gpu.driver.launches[1].squares


def test_squares_are_written_where_anything_else_reads_them_or_they_are_of_what_changes(gpu) -> None:
    weight = normal(8, 8, 1, 1)

    def read_twice(x: Tensor) -> list[Tensor]:
        y = x * x
        return [F.conv2d(y, weight), y]

    def read_beside(x: Tensor) -> list[Tensor]:
        y = x * x
        return [F.conv2d(y, weight) * y]

    def then_changed(x: Tensor) -> list[Tensor]:
        z = torch.relu(x)
        y = z * z
        z.add_(1)
        return [F.conv2d(y, weight), z]

    def no_square(x: Tensor) -> list[Tensor]:
        return [F.conv2d(x * x.flip(3).contiguous(memory_format=torch.channels_last), weight)]

    def in_place(x: Tensor) -> list[Tensor]:
        z = torch.relu(x)
        return [cuda.convolve(z * z, weight, None, Form(), z)]

    for code in (read_twice, read_beside, then_changed, no_square, in_place):
        x = normal(1, 8, 5, 6)
        launches(gpu, check(code, x), x)
        assert not any(launch.squares for launch in gpu.driver.launches if launch.told == "tiled"), code


def test_sums_and_activations_go_along_with_a_convolution(gpu) -> None:
    weight, depthwise = normal(8, 8, 3, 3), normal(8, 1, 3, 3)

    def block(x: Tensor) -> list[Tensor]:
        y = F.leaky_relu(F.conv2d(x, weight, padding=1), 0.2)
        y = torch.relu_(F.conv2d(y, depthwise, padding=1, groups=8) * 2 + 1)
        return [F.conv2d(y, weight, padding=1).sigmoid_() + x]

    assert launches(gpu, check(block, normal(2, 8, 6, 7)), normal(2, 8, 6, 7)) == [
        "tiled",
        "depthwise",
        "tiled",
    ]


def test_what_is_read_twice_is_written(gpu) -> None:
    weight = normal(4, 4, 1, 1)

    def code(x: Tensor) -> list[Tensor]:
        y = F.conv2d(x, weight)
        return [torch.relu(y), y]

    assert launches(gpu, check(code, normal(1, 4, 3, 3)), normal(1, 4, 3, 3)) == ["few_inputs", "relu"]


def test_convolutions_that_do_not_need_each_other_go_together(gpu) -> None:
    """The phases of a transposed one, which have kernels of several sizes, and branches."""
    weight, branches = normal(4, 40, 5, 5), [normal(40, 4, 3, 3), normal(40, 4, 1, 1), normal(40, 4, 3, 3)]

    def transposed(x: Tensor) -> list[Tensor]:
        return [F.conv_transpose2d(x, weight, stride=2, padding=2, output_padding=1)]

    def branched(x: Tensor) -> list[Tensor]:
        return [F.conv2d(x, each, padding=each.shape[2] // 2) for each in branches]

    def one_after_another(x: Tensor) -> list[Tensor]:
        return [F.conv2d(F.conv2d(x, branches[0]), branches[2].transpose(0, 1).contiguous())]

    x = normal(1, 4, 7, 9)
    assert launches(gpu, check(transposed, x), x) == ["tiled"]
    assert len(gpu.driver.launches[0].parts) == 4
    assert launches(gpu, check(branched, x), x) == ["tiled"]
    assert launches(gpu, check(one_after_another, x), x) == ["few_inputs", "tiled"]


def test_no_number_is_written_twice_by_what_goes_together(gpu) -> None:
    weights = [normal(40, 4, 1, 1) for _ in range(2)]

    def code(x: Tensor, step: int) -> list[Tensor]:
        room = torch.empty_like(F.conv2d(x, weights[0]))
        for n, weight in zip((0, step), weights, strict=True):
            cuda.convolve(x[..., :4], weight, None, Form(), room[..., n : n + 4])
        return [room[..., : 4 + step] * 2]

    x = normal(1, 4, 3, 9)
    assert launches(gpu, check(lambda x: code(x, 4), x), x) == ["tiled", "aten::mul"]
    assert launches(gpu, check(lambda x: code(x, 3), x), x) == ["few_inputs", "few_inputs", "aten::mul"]


def test_no_kernel_writes_where_it_reads_its_samples(gpu) -> None:
    weight = normal(4, 4, 3, 3)

    def code(x: Tensor) -> list[Tensor]:
        x += F.conv2d(x, weight, padding=1)
        return [x * 2]

    check(code, normal(1, 4, 5, 5))


def test_what_is_done_in_place_to_what_is_given_is_seen(gpu) -> None:
    check(lambda x: [x.relu_() + x], normal(1, 4, 3, 3))


def test_tensors_that_lie_otherwise_are_not_replayed(gpu) -> None:
    weight = normal(4, 4, 1, 1)
    found = check(lambda x: [F.conv2d(x, weight)], normal(1, 4, 5, 6))
    assert found.replay([normal(1, 4, 6, 5)]) is None
    assert found.replay([torch.randn(1, 4, 5, 6, device="cuda")]) is None
    assert (
        found.replay([normal(1, 4, 5, 7).flatten()[1:121].as_strided((1, 4, 5, 6), (120, 1, 24, 4))]) is None
    )


@pytest.mark.parametrize(
    "code",
    [
        lambda x: [x * x.sum().item()],
        lambda x: [x if bool((x > 0).all()) else -x],
        lambda x: [x + torch.rand_like(x)],
        lambda x: [x + torch.rand(1, 4, 3, 3, device="cuda")],
        lambda x: [x[x > 0]],
        lambda x: [x.cpu().cuda()],
        lambda x: [x.cpu().to(x.device) + x],
    ],
)
def test_what_hands_numbers_to_python_or_draws_them_is_refused(gpu, code: Code) -> None:
    recorder, found = recorded(code, normal(1, 4, 3, 3))
    assert found is None
    assert recorder.refused


def test_writing_to_weights_is_refused(gpu) -> None:
    weight = normal(1, 4, 3, 3)
    assert recorded(lambda x: [weight.add_(x) * 1], normal(1, 4, 3, 3))[1] is None


def test_one_tensor_given_twice_is_refused(gpu) -> None:
    x = normal(1, 4, 3, 3)
    assert recorded(lambda x, y: [x + y], x, x)[1] is None


def test_what_came_about_unseen_is_refused(gpu) -> None:
    recorder = Recorder()
    with recorder.on():
        recorder.gives(normal(1, 4, 3, 3))
        recorder.follows(normal(1, 4, 3, 3))
    assert recorder.refused


def test_what_was_tried_is_not_tried_again_whatever_else_was_seen(gpu) -> None:
    weight, x = normal(4, 4, 3, 3), normal(1, 4, 7, 5)
    code = lambda x: [F.conv2d(F.pad(x, (1, 1, 1, 1), value=2.0), weight).sigmoid()]  # noqa: E731
    check(code, x)
    recorder = Recorder()
    with recorder.on():
        torch.ones(3, device="cuda").add_(1)  # counts as a root before all others
        recorder.gives(x)
        for each in code(x):
            recorder.returns(each)
    again = tape_of(recorder, {})
    assert again is not None
    assert is_tried(again)


def test_a_tape_that_gives_other_bits_is_not_replayed(gpu, monkeypatch) -> None:
    both = joining._both

    def negated(first: Entry, second: Entry) -> Entry:
        entry = both(first, second)
        return replace(entry, work=replace(entry.work, program=("neg", entry.work.program)))

    monkeypatch.setattr(joining, "_both", negated)
    weight = normal(4, 4, 1, 1)
    with pytest.warns(overlap_tool.SlowKernelWarning, match="other bits"):
        assert recorded(lambda x: [torch.relu(F.conv2d(x, weight))], normal(1, 4, 5, 5))[1] is None


@tries(40)
@given(steps)
def test_any_code_gives_the_same(gpu, steps: list[tuple[str, int, int]]) -> None:
    """Ten thousand were drawn once, and held."""
    check(program(steps), normal(1, 4, 5, 6), normal(1, 4, 6, 5))


which, first = st.integers(0, 3), st.integers(0, 2)
moves = st.tuples(
    st.booleans(), which, which, *[st.tuples(first, first)] * 2, st.tuples(*[st.integers(1, 3)] * 2)
)


@tries(200)
@given(st.lists(moves, min_size=3, max_size=12))
def test_copies_may_be_made_earlier_and_later(gpu, moves: list[tuple[Any, ...]]) -> None:
    """Between parts of maps, of which two are given and changed, as what bands keep is."""
    weight = normal(4, 4, 1, 1)

    def code(*given: Tensor) -> list[Tensor]:
        maps = [*given, *(each * 2 for each in given)]
        for computes, one, other, (top, left), (to_top, to_left), (rows, columns) in moves:
            source = maps[one][..., top : top + rows, left : left + columns]
            to = maps[other][..., to_top : to_top + rows, to_left : to_left + columns]
            if one != other and computes:
                cuda.convolve(source, weight, None, Form(), to)
            elif one != other:
                to.copy_(source)
        return maps[2:]

    check(code, normal(1, 4, 5, 5), normal(1, 4, 5, 5))
