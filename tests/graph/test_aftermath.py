"""What a forward does beside returning a map: it assigns to its module, changes tensors, asks its weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.errors import TraceError

pytestmark = pytest.mark.usefixtures("one_thread")


class Doing(nn.Module):
    """A function of a module and of what its first layer gives, between two layers."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.tail = nn.Conv2d(4, 3, 3, padding=1)
        self.weight = nn.Parameter(torch.rand(4) + 1)
        self.mean = torch.rand(1, 4, 1, 1)
        self.last: Any = None
        self.notes: dict[str, list[Any]] = {"seen": []}
        self.calls = 0
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.compute(self, self.head(x)))


def doing(compute: Callable[[Any, Tensor], Tensor]) -> Doing:
    torch.manual_seed(0)
    return Doing(compute).eval()


def assert_tiles_are_right(module: nn.Module) -> None:
    x = torch.rand(2, 3, 30, 41)
    tiled = overlap_tool.wrap(module, tile=(11, 8))
    with torch.no_grad():
        found = tiled(x)
        with exact_kernels():
            assert torch.equal(found, copy.deepcopy(module)(x))


def keeping(m: Any, y: Tensor) -> Tensor:
    m.last = y
    return y


def noting(m: Any, y: Tensor) -> Tensor:
    m.notes["seen"].append(y)
    return y


def noting_what_is_new(m: Any, y: Tensor) -> Tensor:
    m.features = {"first": (y,)}
    return y


def counting_in_a_tensor(m: Any, y: Tensor) -> Tensor:
    m.mean.add_(1)
    return y


def remembering_its_size(m: Any, y: Tensor) -> Tensor:
    m.last = y.shape[2], y.shape[3]
    return y[:, :, : m.last[0]]


def reading_the_last_size(m: Any, y: Tensor) -> Tensor:
    before, m.calls = m.calls, y.shape[2]
    return y + before


def keeping_what_its_size_gives(m: Any, y: Tensor) -> Tensor:
    """Of the second image of a size it would take what it kept."""
    if m.calls != y.shape[2]:
        m.calls, m.last = y.shape[2], torch.arange(y.shape[2], device=y.device)[:, None]
    return y * m.last


def asking_whether_it_was_called(m: Any, y: Tensor) -> Tensor:
    y = y if m.last is None else -y
    m.last = y.shape[2]
    return y


def adding_up_its_sizes(m: Any, y: Tensor) -> Tensor:
    m.calls = m.calls + y.shape[3]
    return y


@pytest.mark.parametrize(
    ("compute", "where"),
    [
        (keeping, "last"),
        (noting, "notes"),
        (noting_what_is_new, "features"),
        (reading_the_last_size, "calls"),
        (adding_up_its_sizes, "calls"),
        (keeping_what_its_size_gives, "calls"),
        (asking_whether_it_was_called, "last"),
        (counting_in_a_tensor, "mean"),
    ],
)
def test_an_attribute_that_changes_with_every_input_is_refused(compute, where):
    """Another stage might read it. In tiles it would be that of one tile, or of the last whole image."""
    module = doing(compute)
    with pytest.raises(TraceError, match="changes while the module runs") as refused:
        overlap_tool.analyze(module)
    assert refused.value.where == where


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_numbers_of_its_size_are_left_behind_as_the_model_leaves_them(schedule):
    """Written before they are read: what an earlier image left is no matter."""
    module = doing(remembering_its_size)
    tiled = overlap_tool.wrap(module, tile=(11, 8), schedule=schedule)
    traced = tiled.forward.network
    for height, width in ((30, 41), (16, 16), (30, 41)):
        x = torch.rand(2, 3, height, width)
        with torch.no_grad():
            found = tiled(x)
            with exact_kernels():
                assert torch.equal(found, module(x))
        assert tiled.last == module.last == (height, width)
    assert tiled.forward.network is traced, "what it writes itself is no change of the module"


def counting(m: Any, y: Tensor) -> Tensor:
    m.calls += 1
    m.notes["seen"].append(y.shape[1])
    m.mean = m.mean.type_as(y)
    return y - m.mean


@pytest.mark.parametrize(
    "compute",
    [
        keeping,
        noting,
        noting_what_is_new,
        remembering_its_size,
        keeping_what_its_size_gives,
        counting_in_a_tensor,
        counting,
    ],
)
def test_a_model_has_the_attributes_that_it_had(compute):
    module = doing(compute)
    before, mean = dict(vars(module)), module.mean.clone()
    try:
        overlap_tool.analyze(module)
    except TraceError:
        assert compute is not counting
    assert list(vars(module)) == list(before)
    assert all(vars(module)[key] is value for key, value in before.items())
    assert module.notes == {"seen": []}
    assert torch.equal(module.mean, mean)


AS_THE_MAP: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "type_as": lambda m, y: y - m.mean.type_as(y),
    "to a map": lambda m, y: y - m.mean.to(y),
    "to its device": lambda m, y: y - m.mean.to(y.device),
    "to its type": lambda m, y: y - m.mean.to(y.dtype),
    "assigned": counting,
    "a weight": lambda m, y: y * m.weight.type_as(y)[:, None, None],
    "made": lambda m, y: y + torch.tensor([1.0, 2.0, 3.0, 4.0]).to(y)[:, None, None],
}


@pytest.mark.parametrize("compute", AS_THE_MAP.values(), ids=AS_THE_MAP)
def test_a_constant_of_a_maps_type_is_a_constant(compute):
    """EDSR's and RCAN's mean was taken for a map, and joined at a scale that it does not have."""
    assert_tiles_are_right(doing(compute))


def changed_by_a_weight(m: Any, y: Tensor) -> Tensor:
    values = torch.zeros(1, 4, 1, 1)
    values[0, :, 0, 0] = m.weight
    return y + values


def changed_between(m: Any, y: Tensor) -> Tensor:
    values = torch.zeros(1, 4, 1, 1)
    y = y + values
    values[0, 0] = 5.0
    return y * values


@pytest.mark.parametrize("compute", [changed_by_a_weight, changed_between])
def test_a_tensor_that_is_changed_in_place_is_refused(compute):
    """Both were traced without the change, and tiles had other values."""
    with pytest.raises(TraceError, match="in place"):
        overlap_tool.analyze(doing(compute))


def made_of_nothing(m: Any, y: Tensor) -> Tensor:
    values = torch.zeros(1, 4, 1, 1)
    values[0, 0] = 5.0
    return y + values


def by_its_weights(m: Any, y: Tensor) -> Tensor:
    device = m.weight.get_device()
    if device < 0 and m.weight.dim() == 1 and m.weight.numel() > 3:
        return y * 2
    return y


@pytest.mark.parametrize("compute", [made_of_nothing, by_its_weights])
def test_what_depends_on_no_input_is_constant(compute):
    assert_tiles_are_right(doing(compute))


def in_lower_precision(m: Any, y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.tail(m.head(m.tail(y)))


def with_noise(m: Any, y: Tensor) -> Tensor:
    return y + torch.randn(1, 4, 1, 1)


@pytest.mark.parametrize(
    ("compute", "reason"), [(in_lower_precision, "autocast"), (with_noise, "random numbers")]
)
def test_what_a_trace_would_lose_is_refused(compute, reason):
    """Both were traced without it: in full precision, with one noise for all images."""
    with pytest.raises(TraceError, match=reason):
        overlap_tool.analyze(doing(compute))


def test_a_block_that_switches_autocast_off_is_analysed():
    def in_full_precision(m: Any, y: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return y.float() * 2

    assert_tiles_are_right(doing(in_full_precision))


def by_being_an_instance(m: Any, y: Tensor) -> Tensor:
    if not isinstance(y, list | tuple) and isinstance(y, Tensor) and torch.is_tensor(y):
        return y * 2
    return y


def by_its_sizes(m: Any, y: Tensor) -> Tensor:
    columns = y.shape[3]
    largest = y.max(1, keepdim=True)
    return y + largest[0] * 3 if isinstance(columns, int) and isinstance(largest, tuple) else y


@pytest.mark.parametrize("compute", [by_being_an_instance, by_its_sizes])
def test_instances_are_what_they_are_when_the_module_runs(compute):
    """It was refused, for what was traced was something else."""
    assert_tiles_are_right(doing(compute))
    assert "isinstance" not in globals()


def test_while_a_module_is_traced_other_threads_see_what_is_there():
    """A traced value is one to them: what PyTorch would take for a tensor it may not be."""
    seen: list[tuple[bool, bool]] = []

    def tells(m: Any, y: Tensor) -> Tensor:
        told = threading.Thread(target=lambda: seen.append((isinstance(y, Tensor), isinstance(m, nn.Module))))
        told.start()
        told.join()
        return y if isinstance(y, Tensor) else m.head(y)

    overlap_tool.analyze(doing(tells))
    assert {(False, True), (True, True)} == {*seen}  # the last are maps that the module itself is held to


def by_type(m: Any, y: Tensor) -> Tensor:
    return y * 2 if type(y) is Tensor else y


def test_a_module_that_computes_something_else_when_it_is_traced_is_refused():
    """Tiles computed what was traced, and not what the module computes."""
    with pytest.raises(TraceError, match="computes something else when it is traced"):
        overlap_tool.analyze(doing(by_type))


def test_that_check_leaves_the_model_as_it_was():
    module = doing(counting)
    overlap_tool.analyze(module)
    assert (module.calls, module.notes, module.training) == (0, {"seen": []}, False)


class Folding(nn.Module):
    """As SPAN's convolutions are: the forward makes one layer's weights of the others', each time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.folded = nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.einsum("oikl,ij->ojkl", self.second.weight.data, self.first.weight.data[..., 0, 0])
        self.made = weight
        self.folded.weight.data = self.made.contiguous()
        self.folded.bias.data = self.second.bias + self.folded.weight.sum((1, 2, 3))
        return self.folded(x)


def test_weights_that_are_made_of_others_while_it_runs() -> None:
    torch.manual_seed(0)
    model = Folding().eval()
    before = model.folded.weight.clone()
    tiled = overlap_tool.wrap(model, tile=16)
    assert torch.equal(model.folded.weight, before)
    image = torch.rand(1, 3, 40, 33)
    with torch.no_grad(), overlap_tool.exact_kernels():
        expected = model(image)
        assert torch.equal(tiled(image), expected)
        for part in (model, tiled):
            part.second.weight.mul_(2)
        assert torch.equal(tiled(image), model(image))
        assert not torch.equal(tiled(image), expected)


def test_weights_that_are_made_of_the_input_are_refused() -> None:
    class Following(Folding):
        def forward(self, x: Tensor) -> Tensor:
            self.folded.weight.data = x * 2
            return self.folded(x)

    with pytest.raises(TraceError, match=r"assigns to \.data"):
        overlap_tool.analyze(Following().eval())
