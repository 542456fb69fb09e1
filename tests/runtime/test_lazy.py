"""Maps that are not in memory behave as tensors do."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool import exact_kernels
from overlap_tool.errors import ExactnessError
from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area
from overlap_tool.runtime import deferred
from overlap_tool.runtime.deferred import InMemory
from overlap_tool.runtime.lazy import LazyMap, LazyZeros
from overlap_tool.runtime.stores import TensorSink

VALUES = torch.linspace(-3, 3, 4 * 7 * 5).reshape(1, 4, 7, 5)
GAIN = torch.tensor([1.5])
PER_CHANNEL = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)


ONE_TAP = nn.Conv2d(4, 3, 1).requires_grad_(False)
LINEAR = nn.Linear(2, 1).requires_grad_(False)


class Elsewhere:
    """Numbers that are read piece by piece."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def read(self, rows: Span, columns: Span) -> Tensor:
        return InMemory(self.values).read(rows, columns)


def lazy(told: list[str] | None = None, values: Tensor = VALUES) -> LazyMap:
    """`told` gets the names of functions that ask for all of it."""
    told = [] if told is None else told
    numbers = Elsewhere(values)
    shape = tuple(values.shape)
    return LazyMap(numbers, shape, values.dtype, torch.device("cpu"), lambda _, name: told.append(name))


def everything(map_: Tensor) -> Tensor:
    assert isinstance(map_, LazyMap)
    height, width = map_.lines
    return map_.read(Span(0, height), Span(0, width))


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
    "rectified in place": lambda x: F.leaky_relu(x, 0.1, inplace=True) + x,
    "larger of two": lambda x: torch.max(x, GAIN),
    "comparison": lambda x: x > 0,
    "choice": lambda x: torch.where(x > 0, x, PER_CHANNEL),
    "with a row": lambda x: x * torch.arange(5.0).reshape(1, 1, 1, 5),
    "convolution of one tap": lambda x: ONE_TAP(x),
    "another axis behind": lambda x: LINEAR(
        torch.cat([x.unsqueeze(4), GAIN.expand(x.unsqueeze(dim=4).shape)], dim=4)
    ).squeeze(dim=4),
    "another axis in front": lambda x: x.unsqueeze(0).abs().squeeze(0),
    "written where a condition holds": lambda x: _after(x.clone(), lambda y: y.__setitem__(y < 0.5, 0)),
    "zeros": lambda x: torch.zeros_like(x) + x.new_zeros((1, 4, 7, 5)),
}
NOT_LOCAL = {
    "convolution": lambda x: F.conv2d(x, torch.ones(2, 4, 3, 3), padding=1),
    "one row": lambda x: x[:, :, 2],
    "indexes": lambda x: x[:, [0, 1]],
    "largest": lambda x: x.max(),
    "largest of a row": lambda x: x.max(3)[0],
    "sum": lambda x: x.sum(),
    "chunks of rows": lambda x: x.chunk(2, 2)[1],
    "joined rows": lambda x: torch.cat([x, x], 2),
    "with a row without axes": lambda x: x * torch.arange(5.0),
    "mirrored padding": lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "linear over columns": lambda x: F.linear(x, torch.ones(2, 5)),
}
OTHER_SIZES = {
    "rows": lambda x: x[:, :, 2:6],
    "every other position": lambda x: x[..., 1::2, ::2],
    "padding": lambda x: F.pad(x, (1, 2, 3, 0)),
    "cropping": lambda x: F.pad(x, (-1, 0, -2, -1)),
    "a half of a pair": lambda x: _after(x.new_zeros((2, 1, 4, 7, 5)), lambda y: y.__setitem__(1, x))[1],
    "both halves of a pair": lambda x: (
        _after(x.new_zeros((2, 1, 4, 7, 5)), lambda y: y.__setitem__(0, x)) + 1
    ),
}


def _after(map_: Tensor, change) -> Tensor:
    change(map_)
    return map_


@pytest.mark.parametrize("name", LOCAL)
def test_elementwise_functions_are_deferred(name) -> None:
    told: list[str] = []
    result = LOCAL[name](lazy(told))
    expected = LOCAL[name](VALUES.clone())
    assert isinstance(result, LazyMap)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    rows, columns = Span(2, 6), Span(1, 4)
    assert torch.equal(result.read(rows, columns), expected[..., 2:6, 1:4])
    sink = TensorSink(7, 5)
    deferred.pour(result.numbers, Area.whole(7, 5), sink)
    assert torch.equal(sink.result(), expected)
    assert told == []


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_rows_and_columns_are_picked_when_they_are_read(name) -> None:
    told: list[str] = []
    result = OTHER_SIZES[name](lazy(told))
    expected = OTHER_SIZES[name](VALUES.clone())
    assert isinstance(result, LazyMap)
    assert result.shape == expected.shape
    height, width = result.lines
    for rows in (Span(0, height), Span(1, 2), Span(height - 1, height)):
        for columns in (Span(0, width), Span(1, width - 1)):
            found = result.read(rows, columns)
            assert torch.equal(found, expected[..., rows.start : rows.stop, columns.start : columns.stop])
    assert told == []


@pytest.mark.parametrize("name", NOT_LOCAL)
def test_anything_else_gets_the_whole_map_and_that_is_told(name) -> None:
    told: list[str] = []
    result = NOT_LOCAL[name](lazy(told))
    assert type(result) is Tensor
    assert torch.equal(result, NOT_LOCAL[name](VALUES))
    assert len(told) >= 1


def test_questions_need_no_numbers() -> None:
    told: list[str] = []
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
    assert torch.equal(everything(map_), VALUES.clamp(0, 1))
    assert torch.equal(everything(before), VALUES.abs())
    map_[:, :, 0] = 9.0
    assert torch.equal(everything(map_)[:, :, 0], torch.full((1, 4, 5), 9.0))


def test_views_see_what_is_written_and_write_through() -> None:
    map_, tensor = lazy(), VALUES.clone()
    for one in (map_, tensor):
        first, second = one.split([1, 3], 1)
        taller = one.unsqueeze(4)
        first[:] = 7.0
        second[..., ::2, 1:3] *= 2
        second.chunk(3, 1)[2].clamp_(0, 1)
        one[..., 3:, :] = second[:, :1, 3:] + taller[..., 3:, :, 0].abs()
    assert torch.equal(everything(map_), tensor)
    assert torch.equal(everything(map_.unsqueeze(4)), tensor.unsqueeze(4))
    with pytest.raises(ExactnessError, match="other axes"):
        map_.unsqueeze(4).abs_()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_picked_and_written_in_whatever_order(seed) -> None:
    """Against a tensor: nested regions, written to in turn, and snapshots that stay as they were."""
    chance, told = random.Random(seed), []
    values = torch.randn(2, 1, 4, 8, 6, generator=torch.Generator().manual_seed(seed))
    pairs: list[tuple[Tensor, Tensor]] = [(lazy(told, values), values.clone())]
    for _ in range(12):
        map_, tensor = chance.choice(pairs)
        match chance.randrange(4):
            case 0 | 1:
                index = _some_index(chance, tuple(tensor.shape))
                pairs.append((map_[index], tensor[index]))
            case 2:
                gain = chance.random()
                map_.mul_(gain)
                tensor.mul_(gain)
            case _:
                others = [pair for pair in pairs if pair[1].shape == tensor.shape]
                other, plain = chance.choice(others)
                map_[:] = other.abs() - 1
                tensor[:] = plain.abs() - 1
        pairs.append(((map_ + 1), (tensor + 1)))
    for map_, tensor in pairs:
        assert torch.equal(everything(map_), tensor)
    assert told == []


def _some_index(chance: random.Random, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    lead = [
        chance.choice([slice(None), chance.randrange(size), slice(chance.randrange(size), None)])
        for size in shape[:-2]
    ]
    lines = [slice(chance.randrange(min(2, size)), None, chance.choice([1, 1, 2, 3])) for size in shape[-2:]]
    return (*lead, *lines)


def test_zeros_that_are_too_many_are_a_map() -> None:
    with LazyZeros(1000, lambda *_: None):
        few, many = torch.zeros(1, 2, 3, 4), torch.zeros((1, 8, 9, 9), dtype=torch.float64)
        flat = torch.zeros(5000)
    assert type(few) is Tensor
    assert type(flat) is Tensor
    assert isinstance(many, LazyMap)
    many[..., 1:-1, 1:-1] = torch.ones(1, 8, 7, 7)
    assert torch.equal(everything(many), F.pad(torch.ones(1, 8, 7, 7, dtype=torch.float64), (1, 1, 1, 1)))


def test_a_change_in_place_of_all_of_it_is_written_back() -> None:
    told: list[str] = []
    map_ = lazy(told)
    map_[:, 1:3].cumsum_(3)
    expected = VALUES.clone()
    expected[:, 1:3].cumsum_(3)
    assert torch.equal(everything(map_), expected)
    assert told == ["cumsum"]


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
