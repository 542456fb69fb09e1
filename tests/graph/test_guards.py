"""Of a network whose code asks for the size, the trace that is used for a size is the one made at that size.

Nothing is executed but on stand-ins for tensors. `CASES=10000 pytest tests/graph/test_guards.py` tries as
many networks with sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from overlap_tool.errors import TraceError
from overlap_tool.geometry import Span
from overlap_tool.graph.network import Network, Op
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.graph.tracer import TrialError
from overlap_tool.verification.observing import tensors_in


class Asking(nn.Module):
    """Does what was drawn, step by step, and returns all that it made on the way if it returns several."""

    def __init__(self, steps: list[tuple[str, int, int]], several: bool) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 5, padding=2)
        self.steps, self.several = steps, several

    def forward(self, x: Tensor) -> Any:
        made = [self.conv(x)]
        for name, a, b in self.steps:
            made.append(STEPS[name](self, made[-1], *made[-1].shape[2:], a, b))
        return tuple(made) if self.several else made[-1]


def padded(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return F.pad(x, (0, -w % a, -h % a, 0), mode=("constant", "replicate")[b % 2])


def cropped(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return x[..., : max(1, h - h % a), w % b if w > b else 0 :]


def by_a_remainder(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return m.wide(x) if h % a == b % a else x.relu()


def by_the_longer_side(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return m.wide(x) if h > w else x[:, [1, 0]]


def by_its_area(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return x * 2 if h * w > 40 * a else m.wide(x)


def by_its_least_side(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return x + 1 if min(h, w) <= 3 * b else x - 1


def asserting(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    assert min(h, w) > b, f"{h}x{w} is too small"
    if h < 1000 and h % 7 == a:
        raise ValueError(f"{h}x{w} does not suit {a}")
    return x


def resized(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return F.interpolate(
        x, size=(h + a, max(1, w // 2)), mode=("nearest", "bilinear", "nearest-exact")[b % 3]
    )


def joined(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    small = F.max_pool2d(x, min(2 + a % 2, h, w), ceil_mode=b % 2 == 0)
    return x + F.interpolate(m.wide(small), size=(h, w))


def written(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    y = x.clone()
    y[..., a % h :: 2, ::b] = m.wide(x)[..., a % h :: 2, ::b]
    y[:, 1, : (h + 1) // 2] *= 2
    return y


def looped(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    for _ in range(min(2, h // (3 * a))):
        x = m.wide(x).relu()
    return x


def with_coordinates(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return x + torch.arange(h)[:, None] * a / (w + b)


def halves(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return torch.cat([x.chunk(2, 3)[0], x.chunk(2, 3)[0]], 1)[:, :2]


def plain(m: Any, x: Tensor, h: int, w: int, a: int, b: int) -> Tensor:
    return m.wide(x)


STEPS: dict[str, Callable[..., Tensor]] = {
    step.__name__: step
    for step in (
        padded, cropped, by_a_remainder, by_the_longer_side, by_its_area, by_its_least_side, asserting,
        resized, joined, written, looped, with_coordinates, halves, plain,
    )
}  # fmt: skip

numbers = st.integers(1, 5)
steps = st.tuples(st.sampled_from(sorted(STEPS)), numbers, numbers)
sizes = st.tuples(st.integers(1, 2), st.integers(2, 40), st.integers(2, 40))


@dataclass(frozen=True)
class Case:
    steps: list[tuple[str, int, int]]
    several: bool
    sizes: list[tuple[int, int, int]]


cases = st.builds(
    Case, st.lists(steps, min_size=1, max_size=3), st.booleans(), st.lists(sizes, min_size=1, max_size=4)
)


def described(network: Network, height: int, width: int) -> list[Any]:
    """All that a plan is made of and, of a trace for one size, what its ops are called with."""
    told: list[Any] = [network.results, network.returns]
    for axis, n in ((network.rows, height), (network.columns, width)):
        lengths = axis.sizes(n)
        told.append(lengths)
        for end in axis.ends:
            for start in range(0, lengths[end], 5):
                told.append(axis.needs({end: Span(start, min(start + 7, lengths[end]))}, lengths))
    for op in network.ops:
        if isinstance(op, Op):
            told.append((op.id, op.kind, op.inputs, op.rule.kernel, op.rule.stride))
            told += [repr((op.args, op.kwargs))] if network.asks else []
    return told


def answered(network: Network, size: tuple[int, int, int]) -> Any:
    """The network for a size, or what is said of it: by the module itself, or by a refusal."""
    try:
        return fitted(network, *size)
    except TrialError as refusal:
        if refusal.own is None:
            raise
        return type(refusal.own), str(refusal.own)
    except TraceError as refusal:
        return refusal


def own_answer(module: nn.Module, size: tuple[int, int, int]) -> Any:
    """The shapes of what the module makes of an image of this size, or what it says of it."""
    images, height, width = size
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        image = torch.empty(images, 1, height, width)
        try:
            made = tensors_in(module(image))
        except (AssertionError, ValueError, RuntimeError) as error:
            return type(error), str(error)
    return [tuple(tensor.shape[-2:]) for tensor in made.values()]


def check(case: Case) -> None:
    module = Asking(case.steps, case.several).eval()
    network = trace(module, "net", 1)
    for size in dict.fromkeys(case.sizes):
        check_at(module, network, size)
    for size in dict.fromkeys(case.sizes):  # once others were asked for
        if isinstance(used := answered(network, size), Network):
            assert used is answered(network, size)
            assert sizes_of_results(used, size) == own_answer(module, size)


def check_at(module: nn.Module, network: Network, size: tuple[int, int, int]) -> None:
    used, own = answered(network, size), own_answer(module, size)
    fresh = answered(replace(network, asks=True, of_sizes={}), size)
    if isinstance(used, TraceError):
        assert (type(used), used.where) == (type(fresh), fresh.where)
    elif isinstance(used, Network):
        assert sizes_of_results(used, size) == own
        fresh = replace(fresh, asks=network.asks)
        assert described(used, *size[1:]) == described(fresh, *size[1:])
    else:
        assert used == fresh == own


def sizes_of_results(network: Network, size: tuple[int, int, int]) -> list[tuple[int, int]]:
    _, height, width = size
    lengths = zip(network.rows.sizes(height), network.columns.sizes(width), strict=True)
    of_ops = dict(zip(map(attrgetter("id"), network.ops), lengths, strict=True))
    return [of_ops[result] for result in network.results]


@tries(8, derandomize=True)
@given(cases)
def test_the_trace_for_a_size_is_the_one_made_at_that_size(case):
    check(case)
