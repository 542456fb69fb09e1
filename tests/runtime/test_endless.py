"""Sound that arrives in chunks, and whose length nobody knows: the bits of the whole, and no more work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from rules.test_sequences import Causal, Codec, Gated, OnImages, stacks
from support.cases import tries
from torch import Tensor, nn

import overlap_tool
from overlap_tool import exact_kernels, run_stream
from overlap_tool.errors import OptionError, TraceError, TrainingModeError
from overlap_tool.geometry import Patch
from overlap_tool.graph.network import Op
from overlap_tool.graph.trace import trace
from overlap_tool.runtime.execute import Execution


class Mirrored(nn.Module):
    """What it pads at the end is mirrored from samples before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 3, 5, padding=2, padding_mode="reflect"), nn.Conv1d(3, 2, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.pad(self.first(x), (3, 3), "reflect"))


class ByLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (1000 / x.shape[-1])


def joined(model: nn.Module, sound: Tensor, lengths: list[int]) -> Tensor:
    chunks = sound.split([*lengths, sound.shape[-1] - sum(lengths)], -1)
    return torch.cat(list(run_stream(model, chunks)), -1)


@pytest.mark.parametrize("length", [1000, 777, 20])
@pytest.mark.parametrize("model", [Causal, Codec, OnImages, Mirrored])
def test_chunks_as_they_arrive_have_the_bits_of_the_whole(model: Any, length: int) -> None:
    torch.manual_seed(0)
    net, sound = model().eval(), torch.randn(2, 2, length)
    with torch.no_grad(), exact_kernels():
        whole = net(sound)
    for chunk in (length, 130, 7):
        assert torch.equal(joined(net, sound, [chunk] * ((length - 1) // chunk)), whole), chunk


@tries(30)
@given(stacks(), st.integers(40, 90), st.data())
def test_stacks_drawn_at_random(model: nn.Module, length: int, data: Any) -> None:
    assume(trace(model, "").accepts(1, length))
    lengths = data.draw(st.lists(st.integers(0, 20), max_size=6).filter(lambda each: sum(each) <= length))
    sound = torch.randn(1, 1, length)
    with torch.no_grad(), exact_kernels():
        whole = model(sound)
    assert torch.equal(joined(model, sound, lengths), whole)


def test_sound_that_never_ends_takes_no_more_memory_and_no_more_time() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 9, padding=4), nn.ELU(), nn.Conv1d(4, 1, 8, stride=4)).eval()

    def forever() -> Iterator[Tensor]:
        while True:
            yield torch.ones(1, 1, 100)

    parts = run_stream(model, forever())
    lengths = [next(parts).shape[-1] for _ in range(50)]
    assert lengths[1:] == [25] * 49


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    computed, run = Counter[str](), Execution.run

    def counted(self: Execution, op: Op, vertical: Patch, horizontal: Patch, held: Any) -> Tensor:
        computed[op.kind] += horizontal.out.length
        return run(self, op, vertical, horizontal, held)

    monkeypatch.setattr(Execution, "run", counted)
    model = nn.Sequential(nn.Conv1d(1, 1, 9, padding=4), nn.Conv1d(1, 1, 5, padding=2)).eval()
    list(run_stream(model, torch.randn(1, 1, 600).split(50, -1)))
    assert computed["conv2d"] == 2 * 600


def test_what_needs_all_of_the_sound_is_refused_by_name() -> None:
    with pytest.raises(TraceError, match=r"norm\.moments .*needs the whole of the sound"):
        list(run_stream(Gated().eval(), torch.randn(1, 2, 500).split(100, -1)))


@pytest.mark.parametrize("length", [300, 60])
@pytest.mark.parametrize(
    "rest", [nn.Identity(), nn.ZeroPad1d((-3, 0)), nn.ConvTranspose1d(4, 2, 4, stride=2, padding=4)]
)
def test_an_lstm_goes_through_steps_that_nobody_reads(rest: nn.Module, length: int) -> None:
    """Its state began with the first step whose output was read."""
    sound = torch.randn(1, 2, length)
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), LastSteps(), rest).eval()
    with torch.no_grad(), exact_kernels():
        assert torch.equal(joined(model, sound, [40] * ((length - 1) // 40)), model(sound))


class LastSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, (_, _) = self.lstm(x.permute(2, 0, 1))
        return y.permute(1, 2, 0)[..., 3:]


@pytest.mark.parametrize("cut", [-9, -2, 40])
def test_what_an_end_cuts_off_is_not_given(cut: int) -> None:
    """More was given than the model returns."""
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), Cropped(cut)).eval()
    sound = torch.randn(1, 2, 300)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(joined(model, sound, [100, 100]), model(sound))


class Cropped(nn.Module):
    def __init__(self, cut: int) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.cut]


@pytest.mark.parametrize(
    "results", [lambda y: (y, y[..., 1:]), lambda y: {"a": y}, lambda y: y.flatten(1), lambda y: y.mT]
)
def test_what_cannot_be_joined_along_samples_is_refused(results: Any) -> None:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 3)

        def forward(self, x: Tensor) -> Any:
            return results(self.conv(x))

    with pytest.raises(OptionError, match="does not return one tensor with samples as its last dimension"):
        list(run_stream(Returning().eval(), [torch.randn(1, 2, 100)]))


def test_a_model_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 3), nn.Dropout())
    with pytest.raises(TrainingModeError):
        list(run_stream(model, [torch.randn(1, 2, 100)]))


def test_numbers_that_follow_the_length_are_refused_before_anything_is_given() -> None:
    forever = repeat(torch.randn(1, 2, 500))
    with pytest.raises(TraceError, match="computes mul with other numbers than of a longer sound"):
        next(run_stream(ByLength().eval(), forever))


def test_circular_padding_is_refused() -> None:
    model = nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular").eval()
    with pytest.raises(TraceError, match="pads a sound with its end"):
        list(run_stream(model, [torch.randn(1, 2, 100)]))


@pytest.mark.parametrize("lengths", [[1], [0], [0, 0, 0], [1, 1, 1]])
def test_the_models_own_error_for_a_sound_that_is_too_short(lengths: list[int]) -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 5), nn.ELU(), nn.Conv1d(2, 1, 4, stride=2)).eval()
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        list(run_stream(model, [torch.randn(1, 2, length) for length in lengths]))


def test_chunks_that_are_no_sound_are_refused() -> None:
    model = nn.Conv1d(2, 2, 3).eval()
    with pytest.raises(OptionError, match="float64"):
        list(run_stream(model, [torch.randn(1, 2, 100), torch.randn(1, 2, 100).double()]))
    for other in ([0.0], torch.zeros(1, 2, 9, dtype=torch.int64)):
        with pytest.raises(OptionError, match="is no sound"):
            list(run_stream(model, [other]))  # type: ignore[list-item]
    with pytest.raises(OptionError, match="is no sound of 2 channels"):
        list(run_stream(model, [torch.randn(1, 3, 100)]))
    with pytest.raises(OptionError, match=r"one of 2 x .* follows one of 1 x"):
        list(run_stream(model, [torch.randn(1, 2, 100), torch.randn(2, 2, 100)]))
    with pytest.raises(OptionError, match="takes no sound"):
        list(run_stream(nn.Conv2d(2, 2, 3).eval(), [torch.randn(1, 2, 100)]))
    assert list(run_stream(model, [])) == []


def test_an_analysis_of_sound_is_of_one_row() -> None:
    analysis = overlap_tool.analyze(Causal().eval(), size=(1000, 800))
    (stage,) = analysis.stages
    assert (analysis.image.height, stage.left, stage.right) == (1, 12, 1)
    assert stage.full_macs == 1000 * (2 * 8 * 4 + 8 * 2 * 3)
