"""Maps that are not in memory behave as tensors do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from overlap_tool import exact_kernels
from overlap_tool.errors import ExactnessError
from overlap_tool.geometry import Span
from overlap_tool.lazy import InMemory, LazyMap
from overlap_tool.stores import TensorSink

VALUES = torch.linspace(-3, 3, 4 * 7 * 5).reshape(1, 4, 7, 5)
GAIN = torch.tensor([1.5])
PER_CHANNEL = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)


class Elsewhere(InMemory):
    """Numbers that are to be read piece by piece."""


def lazy(told: list[LazyMap] | None = None) -> LazyMap:
    told = [] if told is None else told
    numbers = type("Numbers", (), {"read": InMemory(VALUES).read, "pour": InMemory(VALUES).pour})()
    return LazyMap(numbers, tuple(VALUES.shape), torch.float32, torch.device("cpu"), told.append)


LOCAL = {
    "abs": torch.abs,
    "method": lambda x: x.abs(),
    "times a number": lambda x: 2 * x,
    "times a parameter": lambda x: x * GAIN,
    "per channel": lambda x: x * PER_CHANNEL - PER_CHANNEL,
    "with a tensor of its size": lambda x: x - VALUES.abs(),
    "with itself": lambda x: x * x + x,
    "clamped": lambda x: x.clamp(0, 1),
    "clamped in place": lambda x: x.clamp_(0, 1),
    "changed in place": lambda x: x.__imul__(3.0),
    "chunks": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split([1, 3], 1)[1],
    "joined": lambda x: torch.cat([x, x.abs()], 1),
    "double": lambda x: x.double(),
}
NOT_LOCAL = {
    "convolution": lambda x: F.conv2d(x, torch.ones(2, 4, 3, 3), padding=1),
    "rows": lambda x: x[:, :, 2:4],
    "sum": lambda x: x.sum(),
    "chunks of rows": lambda x: x.chunk(2, 2)[1],
    "joined rows": lambda x: torch.cat([x, x], 2),
    "with a row": lambda x: x * torch.arange(5.0),
    "comparison": lambda x: x > 0,
    "padding": lambda x: F.pad(x, (1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", LOCAL)
def test_what_keeps_positions_to_itself_is_put_off(name) -> None:
    told: list[LazyMap] = []
    result = LOCAL[name](lazy(told))
    expected = LOCAL[name](VALUES.clone())
    assert isinstance(result, LazyMap)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    rows, columns = Span(2, 6), Span(1, 4)
    assert torch.equal(result.read(rows, columns), expected[..., 2:6, 1:4])
    sink = TensorSink(7, 5)
    result.numbers.pour(sink, 0)
    assert torch.equal(sink.result(), expected)
    assert told == []


@pytest.mark.parametrize("name", NOT_LOCAL)
def test_anything_else_gets_the_whole_map_and_that_is_told(name) -> None:
    told: list[LazyMap] = []
    result = NOT_LOCAL[name](lazy(told))
    assert type(result) is Tensor
    assert torch.equal(result, NOT_LOCAL[name](VALUES))
    assert len(told) >= 1


def test_questions_need_no_numbers() -> None:
    told: list[LazyMap] = []
    map_ = lazy(told)
    assert (map_.shape, map_.size(1), map_.dtype, map_.device.type) == ((1, 4, 7, 5), 4, torch.float32, "cpu")
    assert (map_.ndim, map_.is_floating_point(), map_.numel(), map_.element_size()) == (4, True, 140, 4)
    assert map_.new_zeros((2, 3)).shape == (2, 3)
    assert isinstance(map_, Tensor)
    assert "LazyMap" in repr(map_)
    assert told == []


def test_in_place_changes_are_seen_by_the_map_and_not_by_what_was_made_before() -> None:
    map_ = lazy()
    before = map_.abs()
    assert map_.clamp_(0, 1) is map_
    everything = Span(0, 7), Span(0, 5)
    assert torch.equal(map_.read(*everything), VALUES.clamp(0, 1))
    assert torch.equal(before.read(*everything), VALUES.abs())
    map_[:, :, 0] = 9.0
    assert torch.equal(map_.read(*everything)[:, :, 0], torch.full((1, 4, 5), 9.0))


def test_an_operand_that_changes_before_it_is_read_is_refused() -> None:
    offset = PER_CHANNEL.clone()
    later = lazy() + offset
    offset.add_(1)
    with pytest.raises(ExactnessError, match="changed in place"):
        later.read(Span(0, 7), Span(0, 5))


def test_under_the_exact_engine() -> None:
    with exact_kernels():
        result = F.conv2d(lazy().abs() * GAIN, torch.ones(2, 4, 3, 3), padding=1)
        expected = F.conv2d(VALUES.abs() * GAIN, torch.ones(2, 4, 3, 3), padding=1)
    assert torch.equal(result, expected)


def test_code_that_goes_past_torchs_functions_is_refused() -> None:
    with pytest.raises(ExactnessError, match="not in memory"), torch._C.DisableTorchFunctionSubclass():
        lazy().abs()
