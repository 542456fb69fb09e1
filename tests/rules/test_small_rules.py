"""Ops in place, and small rules between channels: reaches by brute force, and tiles bit for bit."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.pieces_of import Functional
from support.probes import COLUMNS, ROWS, dependence
from torch import Tensor, nn

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.errors import (
    GlobalOpError,
    OverlapToolError,
    SizeDependenceError,
    TraceError,
    UnknownOpError,
)
from overlap_tool.graph.functional import out_of_place
from overlap_tool.graph.trace import trace


def around(compute: Callable[[Tensor], Tensor], channels: int = 4) -> nn.Module:
    """A convolution, the op, and another convolution, so that a wrong place is seen."""
    torch.manual_seed(5)
    with torch.no_grad():
        made = compute(torch.rand(1, channels, 8, 9))

    def whole(self: Any, x: Tensor) -> Tensor:
        return self.after(compute(self.before(x)).float())

    members = {
        "before": nn.Conv2d(3, channels, 3, padding=1),
        "after": nn.Conv2d(made.shape[1], 3, 3, padding=1),
    }
    return Functional(whole, **members).eval()


def check(module: nn.Module, size: tuple[int, int] = (17, 22)) -> None:
    """Tiles of odd sizes against the module's own forward, and its reach against what NaN shows."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), exact_kernels():
        whole = module(x.clone())
        for tile, schedule in (((5, 7), "stream"), ((6, 4), "tiles")):
            tiled = overlap_tool.wrap(module, tile=tile, schedule=schedule)
            assert torch.equal(tiled(x), whole), schedule
    network = trace(module, "", 3)
    for axis, dim in ((network.rows, ROWS), (network.columns, COLUMNS)):
        reach = axis.reaches()[-1]
        seen = dependence(module, x[:1], dim)
        for output in range(seen.shape[0]):
            named = reach.of(output).clip(x.shape[dim])
            assert set(seen[output].nonzero().flatten().tolist()) <= set(range(*named))


IN_PLACE = """
    abs_ absolute_ add_ addcdiv_ addcmul_ atan_ ceil_ clamp_ clamp_max_ clamp_min_ clip_ copysign_ cos_ div_
    divide_ eq_ erf_ erfc_ exp_ expm1_ floor_ floor_divide_ fmod_ frac_ ge_ gt_ le_ lerp_ log10_ log1p_ log2_
    log_ logical_and_ logical_not_ lt_ masked_fill_ mul_ multiply_ nan_to_num_ ne_ neg_ negative_ pow_
    reciprocal_ relu_ remainder_ round_ rsqrt_ sgn_ sigmoid_ sign_ sin_ sqrt_ square_ sub_ subtract_ tanh_
    true_divide_ trunc_
""".split()
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "addcdiv_": (2.0, 3.0), "addcmul_": (2.0, 3.0), "clamp_": (-1, 1), "clamp_max_": (1,), "clamp_min_": (0,),
    "clip_": (-1, 1), "lerp_": (2.0, 0.25), "masked_fill_": (0.0,), "pow_": (2,),
}  # fmt: skip
ALONE = set("""
    abs_ absolute_ atan_ ceil_ cos_ erf_ erfc_ exp_ expm1_ floor_ frac_ log10_ log1p_ log2_ log_ logical_not_
    nan_to_num_ neg_ negative_ reciprocal_ relu_ round_ rsqrt_ sgn_ sigmoid_ sign_ sin_ sqrt_ square_ tanh_
    trunc_
""".split())  # fmt: skip


def in_place(name: str) -> Callable[[Tensor], Tensor]:
    def compute(x: Tensor) -> Tensor:
        x = x.abs() + 0.5 if name.startswith(("log", "sqrt", "rsqrt", "pow")) else x * 3
        given: tuple[Any, ...] = () if name in ALONE else ARGUMENTS.get(name, (0.75,))
        if name in ("addcdiv_", "addcmul_"):
            given = (x.detach() * 2 + 1, x.detach().abs() + 3)
        elif name == "lerp_":
            given = (x * 2, 0.25)
        elif name == "masked_fill_":
            given = (x > 0, 0.5)
        elif name in ("copysign_", "logical_and_"):
            given = (x - 1,)
        other = x + 1
        getattr(x, name)(*given)
        return x + other

    return compute


@pytest.mark.parametrize("name", IN_PLACE)
def test_every_op_in_place_is_as_the_one_out_of_place(name: str) -> None:
    check(around(in_place(name)), (9, 11))


def test_every_method_that_has_a_rule_has_one_in_place() -> None:
    """None is listed by itself: whatever is known is known in place."""
    from overlap_tool.rules.pointwise import METHODS
    from overlap_tool.rules.registry import rule_for_function

    twins = [f"{name}_" for name in METHODS if hasattr(Tensor, f"{name}_")]
    assert len(twins) > 60
    assert [name for name in twins if rule_for_function(out_of_place(name)) is None] == ["detach_"]
    for function in (torch.relu_, torch.exp_, torch.round_, F.elu_, F.threshold_, F.hardtanh_, operator.iadd):
        assert rule_for_function(out_of_place(function)) is not None, function


@pytest.mark.parametrize("name", ["unsqueeze_", "squeeze_", "t_", "transpose_", "resize_"])
def test_what_changes_how_a_tensor_lies_has_no_twin(name: str) -> None:
    assert out_of_place(name) == name


def test_an_op_in_place_keeps_the_type_of_its_tensor() -> None:
    """By `gt`, a map would be of truth values; by `mul`, of double precision."""
    factor = torch.linspace(0.1, 0.9, 4, dtype=torch.float64).view(1, 4, 1, 1)

    def compute(x: Tensor) -> Tensor:
        x = x * 1
        return x.mul_(factor).sub_(0.1).gt_(0) * 3 / 7

    module = around(compute)
    network = trace(module, "", 3)
    assert {op.kind for op in network.ops[1:]} >= {"mul_", "gt_"}
    check(module)


def test_a_value_of_the_whole_map_changed_in_place_is_another_for_earlier_readers() -> None:
    def compute(x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True)
        y = x + s
        s.neg_()
        z = y + s.clone()
        F.relu(s, True)
        return z * s + y

    module = around(compute)
    x = torch.randn(2, 3, 17, 22)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(overlap_tool.wrap(module, tile=6)(x), module(x))


SMALL: dict[str, Callable[[Tensor], Tensor]] = {
    "repeat": lambda x: x.repeat(1, 3, 1, 1),
    "repeat of a tuple": lambda x: x.repeat((1, 2, 1, 1)),
    "tile": lambda x: torch.tile(x, (2, 1, 1)),
    "repeat behind the map": lambda x: x.permute(0, 2, 3, 1).repeat(1, 1, 1, 2).permute(0, 3, 1, 2),
    "largest channel": lambda x: torch.max(x, dim=1)[0].unsqueeze(1),
    "largest channel by name": lambda x: x.max(1, keepdim=True).values + x,
    "smallest and largest": lambda x: torch.cat([x.min(1, True)[0], torch.max(x, 1, keepdim=True).values], 1),
    "where it stands": lambda x: x.max(dim=1, keepdim=True)[1] * 0.25 + x,
    "unpacked": lambda x: sum(v * 0.5 for v in x.max(dim=1, keepdim=True)) + x,
    "the larger of two": lambda x: torch.max(x, x * 2) + x.min(-x),
    "argmax": lambda x: x.argmax(1, keepdim=True) * 0.5 + x,
    "attention over positions": lambda x: (
        x * torch.cat([x.mean(1, keepdim=True), torch.max(x, 1, True)[0]], 1).sum(1, keepdim=True).sigmoid()
    ),
    "stack of channels": lambda x: torch.stack([x, x * 2], 1).flatten(1, 2),
    "stack behind channels": lambda x: torch.stack([x, x * 2, x + 1], 2).sum(2),
    "dropout": lambda x: F.dropout3d(x, training=False) + 1,
    "dropout by default": lambda x: F.alpha_dropout(x) + F.feature_alpha_dropout(x, 0.2),
    "gated": lambda x: F.glu(x.repeat(1, 2, 1, 1), 1) + F.glu(torch.cat([x, x + 1], -3), -3),
    "channels mirrored": lambda x: (
        torch.flip(x, (1,)) * 0.5 + x.flip(1) + x.flip([-3]) + torch.flip(x, dims=[1])
    ),
    "data": lambda x: x + x.data.abs(),
    "a start without channels": lambda x: torch.cat(
        [torch.cat([x.new_empty(x.shape[0], 0, x.shape[2], x.shape[3]), x], 1), x.abs()], 1
    ),
    "zeros beside": lambda x: torch.cat([x, x.new_zeros(x.size(0), 1, x.size(2), x.size(3))], 1),
    "ones beside": lambda x: torch.cat([x, torch.ones_like(x), x.new_full(x.shape, 0.25)], 1),
    "comparisons": lambda x: ((x > 0) & (x < 1) | ~(x >= -1)) * 0.5 + x,
    "remainders": lambda x: x // 0.5 + x % 0.75 + x.floor() + x.trunc(),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_rules(name: str) -> None:
    check(around(SMALL[name]))


def test_a_stack_behind_the_map_moves_rows_and_columns() -> None:
    def compute(x: Tensor) -> Tensor:
        return torch.stack([x, x.abs()], -1).permute(0, 1, 4, 2, 3).flatten(1, 2)

    check(around(compute))


@pytest.mark.parametrize(
    "drop", [nn.Dropout2d(), nn.Dropout3d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()]
)
def test_dropout_drops_nothing_in_eval_mode(drop: nn.Module) -> None:
    check(nn.Sequential(nn.Conv2d(3, 3, 3), drop, nn.Conv2d(3, 3, 3)).eval())


class Efficient(nn.Module):
    """Channel attention by a convolution along the channels of the pooled map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.along = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.along(self.pool(x).squeeze(-1).transpose(-1, -2))
        y = self.norm(y.transpose(-1, -2)).unsqueeze(-1)
        return x * y.sigmoid()


def test_a_layer_without_a_rule_may_stand_behind_a_barrier() -> None:
    module = Efficient().eval()
    module.along.weight.data = torch.tensor([[[0.5, -1.0, 2.0]]])
    x = torch.randn(2, 3, 17, 22)
    with torch.no_grad():
        with exact_kernels():
            whole = module(x)
        assert torch.equal(overlap_tool.wrap(module, tile=6)(x), whole)
        assert torch.equal(overlap_tool.wrap(module, tile=6, schedule="tiles")(x), whole)


class Responding(nn.Module):
    """A layer that no rule knows, on the map or on its mean."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.LocalResponseNorm(2)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.norm(x.mean((2, 3), keepdim=True)) if self.pooled else self.norm(x)


def test_the_same_layer_on_a_map_is_refused_by_its_name() -> None:
    assert trace(Responding(pooled=True).eval(), "").barriers
    with pytest.raises(UnknownOpError, match=r"norm \(LocalResponseNorm\).*no rule knows this op"):
        trace(Responding(pooled=False).eval(), "")


@pytest.mark.parametrize(
    ("compute", "refusal", "reason"),
    [
        (lambda x: x.repeat(1, 1, 2, 1), GlobalOpError, "repeats over rows or columns"),
        (lambda x: x.repeat(2, 1, 1, 1), UnknownOpError, "over the batch"),
        (lambda x: x.flip(2), UnknownOpError, "mirrors over rows or columns"),
        (lambda x: torch.flip(x, [1, 0]), UnknownOpError, "mirrors over the batch"),
        (lambda x: F.dropout2d(x), UnknownOpError, "drops at random in eval mode, too"),
        (lambda x: x.max(2)[0], GlobalOpError, "over rows or columns"),
        (lambda x: x * x.max(), OverlapToolError, "reduces"),
        (lambda x: x + x.new_empty(x.shape), SizeDependenceError, "made by the size of its input alone"),
        (lambda x: x.new_zeros(x.shape[0], 1, x.shape[3], x.shape[2]), TraceError, "does not depend on its"),
    ],
)
def test_what_these_rules_do_not_cover_is_refused(compute, refusal, reason: str) -> None:
    def whole(self: Any, x: Tensor) -> Tensor:
        return compute(self.conv(x))

    with pytest.raises(refusal, match=reason):
        trace(Functional(whole, conv=nn.Conv2d(3, 3, 3, padding=1)), "", 3)


def test_the_blocks_of_known_networks() -> None:
    check(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Attention(), nn.Conv2d(4, 3, 3, padding=1)).eval())


class Attention(nn.Module):
    """Attention over positions, as CBAM has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        largest, _ = torch.max(x, dim=1, keepdim=True)
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), largest], 1)).sigmoid_()
