"""`Rule.windowed` and `check_rule`: right rules pass, and each way to be wrong is found and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from torch import Tensor, nn

import overlap_tool
from overlap_tool import Rule, register_rule
from overlap_tool.errors import RuleError
from overlap_tool.geometry import Window
from overlap_tool.rules import registry
from overlap_tool.testing import check_rule

X = torch.rand(2, 3, 17, 22, generator=torch.Generator().manual_seed(0))


class Largest(nn.Module):
    """The largest of a window, by an op of one's own."""

    def __init__(self, kernel: tuple[int, int] = (3, 3), stride: int = 1, mode: str = "replicate") -> None:
        super().__init__()
        self.kernel, self.stride, self.mode = kernel, stride, mode

    def of(self, padded: Tensor) -> Tensor:
        (high, wide), step = self.kernel, self.stride
        return padded.unfold(2, high, step).unfold(3, wide, step).flatten(-2).amax(-1)

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (((k - 1) // 2, k - 1 - (k - 1) // 2) for k in self.kernel)
        mode = "constant" if self.mode == "zeros" else self.mode
        return self.of(F.pad(x, (left, right, top, bottom), mode=mode))


@pytest.fixture
def ruled() -> Iterator[Callable[[Callable[..., Rule]], None]]:
    """Registers a rule for `Largest`, for one test."""

    def give(build: Callable[..., Rule]) -> None:
        register_rule(Largest, override=True)(build)

    yield give
    registry._registered.pop(Largest, None)


def right(call: Any, module: Largest, input: Any) -> Rule:
    return Rule.windowed(Largest.of, kernel=module.kernel, stride=module.stride, padding=module.mode)


@tries(12)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 3),
    st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
)
def test_a_windowed_rule_is_right(kernel: tuple[int, int], stride: int, mode: str) -> None:
    register_rule(Largest, override=True)(right)
    try:
        check_rule(Largest(kernel, stride, mode), X)
    finally:
        registry._registered.pop(Largest, None)


def with_rows(**changes: Any) -> Callable[..., Rule]:
    def build(*args: Any) -> Rule:
        rule = right(*args)
        return replace(rule, rows=replace(rule.rows, **changes))

    return build


def computing(compute: Callable[[Largest, Tensor], Tensor]) -> Callable[..., Rule]:
    return lambda call, module, input: Rule.windowed(compute, kernel=3, padding="replicate")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            with_rows(before=0, after=2),
            r"output row 1 reads row 0, .*names 1 to 3: too few",
        ),
        (
            with_rows(kernel=5, before=2, after=2),
            r"row 0 reads \[0, 1\], .*names 0 to 2: more than tiles need",
        ),
        (with_rows(before=2, kernel=4), r"row 2 reads \[1, 2, 3\], .*names 0 to 3: more"),
        (computing(lambda module, x: module.of(x) * 1.5), "values: in tiles of 5x7, stream"),
        (computing(lambda module, x: module.of(x) * (1 + 2**-22)), "bits: in tiles of 5x7, stream"),
    ],
    ids=["too few", "too many", "too many on one side", "values", "bits"],
)
def test_a_wrong_rule_is_refused_by_what_is_wrong_with_it(ruled, build, reason: str) -> None:
    ruled(build)
    with pytest.raises(RuleError, match=reason):
        check_rule(Largest(), X)


def test_a_rule_of_the_wrong_size_is_refused(ruled) -> None:
    """At the trial sizes it is right."""

    class Odd(Window):
        def size(self, n: int) -> int:
            return n if n > 100 else n - n % 2

    ruled(lambda *args: replace(right(*args), rows=Odd(3, 1, 1, 1)))
    with pytest.raises(RuleError, match="geometry: of 3 rows it says 2, and the op gave 3"):
        check_rule(Largest(), X)


def test_tiles_that_go_beyond_the_image_are_tried(ruled) -> None:
    def build(call: Any, module: Largest, input: Any) -> Rule:
        rule = right(call, module, input)

        def run(patches: Any, module: Largest, x: Tensor) -> Tensor:
            if all(patch.inside for patch in patches):
                return rule.run(patches, module, x)
            return rule.run(patches, module, x) + 1

        return replace(rule, run=run)

    ruled(build)
    with pytest.raises(RuleError, match="values: in tiles of 5x7, tiles, uniform"):
        check_rule(Largest(), X)


def test_functions_are_checked_with_what_else_they_take() -> None:
    check_rule(F.conv2d, X, torch.rand(4, 3, 3, 5), torch.rand(4), 2, 1)
    check_rule(F.pad, X, (1, 2, 0, 3), "reflect")
    check_rule(torch.add, X, 2.0)


@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.ConvTranspose2d(3, 2, 5, 2, 2, 1),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelShuffle(1), nn.ReflectionPad2d((1, 2, 3, 4)),
        nn.Conv2d(3, 3, (3, 5), 2, 4, (2, 3), padding_mode="circular"), nn.GELU(), nn.Softmax(1),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_rules_of_our_own_pass(module: nn.Module) -> None:
    check_rule(module, X)


def test_a_layer_that_is_all_of_a_model_does_not_run_in_its_own_tiles() -> None:
    """A rule that calls the module came back to the tiles, without end."""
    for layer in (nn.ReLU(), nn.Softmax(1), nn.GELU()):
        tiled = overlap_tool.wrap(layer.eval(), tile=8)
        with torch.no_grad(), overlap_tool.exact_kernels():
            assert torch.equal(tiled(X), layer(X))
