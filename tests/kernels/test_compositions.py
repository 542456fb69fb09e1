"""Functions and sums composed of correctly rounded operations: near to the library's in float64, and the same
bits for any piece, layout and number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.threads import on_threads
from torch import nn

from overlap_tool import exact_kernels
from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import pieces
from overlap_tool.rules.exactness import OPS, How

torch.manual_seed(0)

POINTWISE = {
    "sigmoid": torch.sigmoid, "silu": F.silu, "softplus": F.softplus,
    "softplus with options": lambda x: F.softplus(x, 3.0, 2.0), "logsigmoid": F.logsigmoid, "mish": F.mish,
    "gelu": F.gelu, "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"), "elu": F.elu, "celu": F.celu,
    "selu": F.selu, "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01), "softsign": F.softsign, "tanhshrink": F.tanhshrink,
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(), "square": torch.square, "cube": lambda x: x**3,
    "root": lambda x: x.abs() ** 0.5, "inverse root": lambda x: (x.abs() + 0.1) ** -0.5,
    "inverse": lambda x: (x.abs() + 0.1) ** -1, "exp": torch.exp, "log": lambda x: torch.log(x.abs() + 0.1),
    "tanh": torch.tanh, "erf": torch.erf, "erfc": torch.erfc, "log1p": lambda x: torch.log1p(x.abs()),
    "expm1": torch.expm1, "exp2": torch.exp2, "log2": lambda x: torch.log2(x.abs() + 0.1),
    "log10": lambda x: torch.log10(x.abs() + 0.1), "sine": torch.sin, "cosine": torch.cos,
    "tangent": lambda x: torch.tan(x / 16), "atan": torch.atan, "a power": lambda x: (x.abs() + 0.1) ** 1.7,
    "a power of two": lambda x: 2.0 ** x, "powers": lambda x: (x.abs() + 0.1) ** (x / 4),
    "scaled sum": lambda x: torch.add(x, x * x, alpha=0.3),
    "difference": lambda x: torch.sub(x, x * x, alpha=0.3),
    "difference from one": lambda x: 1 - x, "addcmul": lambda x: torch.addcmul(x, x, x + 1, value=0.3),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.3),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "prelu": lambda x: F.prelu(x, torch.linspace(-1, 1, 7).to(x)),
    "batch norm": nn.BatchNorm2d(7).eval(), "a layer norm of channels": lambda x: F.layer_norm(
        x.permute(0, 2, 3, 1), (7,), torch.linspace(1, 2, 7).to(x), torch.linspace(0, 1, 7).to(x)
    ).permute(0, 3, 1, 2),
    "softmax of channels": lambda x: torch.softmax(x, 1), "log_softmax": lambda x: torch.log_softmax(x, 1),
    "logsumexp": lambda x: torch.logsumexp(x, 1, keepdim=True), "sum": lambda x: x.sum(1, keepdim=True),
    "mean": lambda x: x.mean(1, keepdim=True), "prod": lambda x: x.prod(1, keepdim=True),
    "var": lambda x: x.var(1, keepdim=True), "std": lambda x: x.std(1, keepdim=True, unbiased=False),
    "cumsum": lambda x: x.cumsum(1), "cumprod": lambda x: x.cumprod(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "norm": lambda x: x.norm(dim=1, keepdim=True), "absolute norm": lambda x: x.norm(1, dim=1, keepdim=True),
}  # fmt: skip
"""Of a map of seven channels: every position by itself."""

WHOLE = {
    "mean of all": lambda x: x.mean(), "sum of rows and columns": lambda x: x.sum((2, 3)),
    "one adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "nine adaptive pools": lambda x: F.adaptive_avg_pool2d(x, 3),
    "group norm": nn.GroupNorm(1, 7), "instance norm": nn.GroupNorm(7, 7), "variance": lambda x: x.var(),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pool, ceiling": lambda x: F.avg_pool2d(x, 2, 2, 1, ceil_mode=True, count_include_pad=False),
    "average pool with a divisor": lambda x: F.avg_pool2d(x, (2, 3), divisor_override=5),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear to corners": lambda x: F.interpolate(x, size=(11, 40), mode="bilinear", align_corners=True),
    "bilinear down": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), x.shape[2:], 3, padding=1, stride=2),
    "attention": lambda x: torch.softmax(x.flatten(2) @ x.flatten(2).mT, -1) @ x.flatten(2),
}  # fmt: skip
"""Of whole maps."""


def exactly(function, x):
    with torch.no_grad(), exact_kernels():
        return function(x)


def near(function, x) -> None:
    """To the library's own in float64, within a few roundings."""
    module = isinstance(function, nn.Module)
    with torch.no_grad():
        expected = (function.double() if module else function)(x.double())
        found = exactly(function.float() if module else function, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", POINTWISE)
def test_near_to_the_library(name: str) -> None:
    near(POINTWISE[name], 4 * torch.randn(2, 7, 13, 17))


@pytest.mark.parametrize("name", POINTWISE)
def test_no_bit_depends_on_the_piece(name: str) -> None:
    """Pieces of several sizes and places, in either layout, alone and in a batch, with one thread and two."""
    function, x = POINTWISE[name], 4 * torch.randn(3, 7, 61, 67)
    whole = exactly(function, x)
    assert torch.equal(on_threads(1, lambda: exactly(function, x)), whole)
    assert torch.equal(exactly(function, x.to(memory_format=torch.channels_last)), whole)
    for rows, columns in (((0, 1), (0, 1)), ((5, 12), (3, 20)), ((60, 61), (0, 67)), ((1, 60), (66, 67))):
        place = ..., slice(*rows), slice(*columns)
        for piece in (x[place], x[place].contiguous(), x[1:2][place].to(memory_format=torch.channels_last)):
            images = slice(1, 2) if len(piece) == 1 else slice(None)
            assert torch.equal(exactly(function, piece), whole[images][place])


@pytest.mark.parametrize("name", WHOLE)
def test_whole_maps(name: str) -> None:
    function, x = WHOLE[name], torch.randn(3, 7, 23, 31)
    near(function, x)
    whole = exactly(function, x)
    assert torch.equal(exactly(function, x.to(memory_format=torch.channels_last)), whole)
    assert torch.equal(on_threads(1, lambda: exactly(function, x)), whole)
    if whole.ndim > 1:
        assert torch.equal(exactly(function, x[1:2]), whole[1:2]), "alone as in a batch"


def test_sums_are_trees_of_neighbours() -> None:
    """Against a loop in Python."""
    x = torch.randn(11)
    level = list(x)
    while len(level) > 1:
        level = [level[i] + level[i + 1] for i in range(0, len(level) - 1, 2)] + (
            level[-1:] if len(level) % 2 else []
        )
    assert torch.equal(exactly(torch.sum, x), level[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: torch.linspace(-0.3, 1.7, 12, dtype=kind),
        lambda kind: torch.linspace(0.1, 0.7, 1, dtype=kind),
        lambda kind: torch.arange(0.1, 2, 0.3, dtype=kind),
        lambda kind: torch.arange(2.5, dtype=kind),
        lambda kind: torch.arange(0.5, 4, dtype=kind),
    ],
)
def test_steps_between_numbers(make) -> None:
    expected = make(torch.float64)
    with exact_kernels():
        assert torch.equal(make(torch.float32), make(torch.float64).float())
        torch.testing.assert_close(make(torch.float64), expected, rtol=1e-15, atol=1e-15)


def test_extremes_do_not_overflow() -> None:
    x = torch.tensor([-500.0, -90.0, 0.0, 90.0, 500.0])
    for name in ("sigmoid", "silu", "softplus", "logsigmoid", "mish", "gelu", "elu"):
        with torch.no_grad():
            expected = POINTWISE[name](x.double())
        torch.testing.assert_close(exactly(POINTWISE[name], x).double(), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_softmax_has_no_weight_left_for_what_a_mask_takes_away(dtype: torch.dtype) -> None:
    """Whatever stands behind a mask of -100, up to 55 above what is seen, the rest has the same weights."""
    seen, masked = torch.randn(50, 8, dtype=dtype), torch.linspace(-20, 50, 400, dtype=dtype).view(50, 8)
    weights = exactly(lambda x: torch.softmax(x, 1), torch.cat([masked - 100, seen], 1))
    assert not weights[:, :8].any()
    assert torch.equal(weights[:, 8:], exactly(lambda x: torch.softmax(x, 1), seen))
    # what it calls nothing is far below a rounding error
    whole = torch.softmax(torch.linspace(-60, 0, 1001, dtype=torch.float64), 0)
    found = exactly(lambda x: torch.softmax(x, 0), torch.linspace(-60, 0, 1001, dtype=torch.float64))
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-19)


def plus(a: np.float32, b: np.float32) -> np.float32:
    """log(exp(a) + exp(b)), rounded step by step."""
    if a == b and np.isinf(a):
        return b
    power = np.float32(np.exp(np.float64(min(a, b) - max(a, b))))
    return np.float32(np.log1p(np.float64(power))) + max(a, b)


@pytest.mark.parametrize(
    ("op", "step"), [(torch.cumsum, np.add), (torch.cumprod, np.multiply), (torch.logcumsumexp, plus)]
)
def test_cumulative_ops_go_from_the_first_number_to_the_last(op, step) -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    expected = x.numpy().copy()
    for row in expected:
        for i in range(1, len(row)):
            row[i] = step(row[i - 1], row[i])
    for found in (exactly(lambda x: op(x, 1), x), exactly(lambda x: op(x, -2), x.mT).mT):
        assert torch.equal(found, torch.from_numpy(expected))


def test_cumulative_ops_of_special_numbers_and_types() -> None:
    inf = torch.inf
    found = exactly(
        lambda x: x.logcumsumexp(0), torch.tensor([-inf, -inf, 2.0, -inf, inf, inf, -inf, torch.nan, 1])
    )
    expected = torch.tensor([-inf, -inf, 2.0, 2.0, inf, inf, inf, torch.nan, torch.nan])
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(exactly(lambda x: x.cumsum(0), torch.tensor(2.5)), torch.tensor(2.5))
    assert exactly(lambda x: x.cumprod(1), torch.zeros(2, 0)).shape == (2, 0)
    whole = torch.arange(5)
    assert torch.equal(exactly(lambda x: x.cumsum(0, dtype=torch.float64), whole), whole.cumsum(0).double())
    x = torch.rand(3, 4)
    assert torch.equal(exactly(lambda x: x.clone().cumsum_(1), x), exactly(lambda x: x.cumsum(1), x))


def test_normalising_by_the_batch_is_refused() -> None:
    with pytest.raises(ExactnessError, match=r"model\.eval"), pieces():
        exactly(nn.BatchNorm2d(3).train(), torch.rand(2, 3, 4, 4))


def named(*hows: How) -> list[str]:
    return [name for name, (how, _) in OPS.items() if how in hows]


ONE, NONE, ALL_ONES = torch.ones(1), torch.zeros(1), [1, 1]
STATISTICS = NONE, torch.full((1,), 1 - 1e-5)
NEUTRAL: dict[str, list[tuple]] = {
    **{name: [()] for name in named("number by number")},
    "add": [(0,), (0, 2), (torch.zeros(1, 1, 1, 1),)],
    "sub": [(0,), (0, 2), (torch.zeros(1, 1, 1, 1),)],
    "rsub": [(0,), (0, 0), (torch.zeros(1, 1, 1, 1),)],
    "index_put": [([torch.zeros(0, dtype=torch.long)], torch.zeros(0, 1, 1, 1))],
    "addcmul": [(NONE, NONE)],
    "addcdiv": [(NONE, ONE)],
    "lerp": [(torch.rand(2, 1, 1, 1), 0.0), (torch.rand(2, 1, 1, 1), torch.zeros(1))],
    "fmod": [(1e9,), (torch.full((1,), 1e9),)],
    "remainder": [(1e9,), (torch.full((1,), 1e9),)],
    "softplus": [(), (1, -1e9)],
    "log_sigmoid_forward": [()],
    "hardsigmoid": [()],
    "hardswish": [()],
    "_prelu_kernel": [(torch.ones(1, 1, 1, 1),)],
    "pow": [(1,), (1.0,), (0,), (-1,), (2,), (0.5,)],
    "sum": [(), ([1],), ([1], True), ([1, 2, 3],), ([-1], True)],
    "mean": [(), ([1],), ([1], True), ([-2, -1],)],
    "prod": [(), (1,), (1, True), (-1,)],
    "var": [([1], False), ([0], True, True)],
    "std": [([1], False), ([0], True, True)],
    "linalg_vector_norm": [(2, [1]), (1, [1], True), (float("inf"), [1], True)],
    "_softmax": [(1, False)],
    "_log_softmax": [(1, False)],
    "logsumexp": [([1],), ([1], True)],
    **{name: [(1,), (-1,)] for name in ("cumsum", "cumprod", "logcumsumexp")},
    "native_layer_norm": [([1], None, None, 1e-5), ([1, 1], torch.ones(1, 1), torch.zeros(1, 1), 1e-5)],
    "native_group_norm": [(None, None, 2, 1, 1, 1, 1e-5), (ONE, NONE, 2, 1, 1, 1, 1e-5)],
    "native_batch_norm": [(ONE, NONE, *STATISTICS, False, 0.1, 1e-5)],
    "_native_batch_norm_legit": [(None, None, *STATISTICS, False, 0.1, 1e-5)],
    "_native_batch_norm_legit_no_training": [(None, None, *STATISTICS, 0.1, 1e-5)],
    "cudnn_batch_norm": [(ONE, NONE, *STATISTICS, False, 0.1, 1e-5)],
    "avg_pool2d": [(ALL_ONES,), (ALL_ONES, ALL_ONES, [0, 0], True, False, 1)],
    "_adaptive_avg_pool2d": [(ALL_ONES,)],
    "avg_pool3d": [([1, 1, 1],)],
    "_adaptive_avg_pool3d": [([1, 1, 1],)],
    "upsample_linear1d": [([1], True), ([1], False)],
    "upsample_bilinear2d": [(ALL_ONES, True), (ALL_ONES, False)],
    "upsample_trilinear3d": [([1, 1, 1], True), ([1, 1, 1], False)],
    **{
        f"{name}{axes}d": [([1] * axes,)]
        for name in ("upsample_nearest", "_upsample_nearest_exact")
        for axes in (1, 2, 3)
    },
    "col2im": [(ALL_ONES, ALL_ONES, ALL_ONES, [0, 0], ALL_ONES)],
    "convolution": [
        (torch.ones(1, 1, 1, 1), None, ALL_ONES, [0, 0], ALL_ONES, transposed, [0, 0], 1)
        for transposed in (False, True)
    ],
    "mm": [(torch.eye(1),)],
    "addmm": [(torch.zeros(2, 1), torch.eye(1)), (torch.eye(2), torch.zeros(2, 1))],
    "bmm": [(torch.eye(1)[None].repeat(2, 1, 1),)],
    "baddbmm": [(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))],
}
"""Of every op that is composed, arguments with which the first one comes out as it is, or nearly."""

DIMENSIONS = {"mm": 2, "addmm": 2, "bmm": 3, "baddbmm": 3}
DIMENSIONS |= {name: 3 for name in NEUTRAL if name.endswith("1d")}
DIMENSIONS |= {name: 5 for name in NEUTRAL if name.endswith("3d")}


def test_all_that_is_composed_is_in_that_list() -> None:
    assert sorted(NEUTRAL) == sorted(named("number by number", "composed", "chained"))


@pytest.mark.parametrize("part_of_a_larger", [False, True], ids=["whole", "part of a larger tensor"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_a_result_lies_in_memory_of_its_own(name: str, part_of_a_larger: bool) -> None:
    """Who changes it in place changes nothing else: `x.sum(1, keepdim=True)` of one channel was x itself."""
    larger = torch.rand(2, 3, 1, 1) + 0.5
    x = larger[:, 1:2] if part_of_a_larger else larger[:, 1:2].clone()
    x = x[..., None].flatten(DIMENSIONS.get(name, 4) - 1)
    before = larger.clone(), x.clone()
    for arguments in NEUTRAL[name]:
        op = getattr(torch.ops.aten, name)
        results = exactly(lambda x, op=op, given=arguments: op(x, *given), x)
        given = [each for each in (x, *arguments) if isinstance(each, torch.Tensor)]
        for result in results if isinstance(results, tuple) else (results,):
            kept = [each.clone() for each in given]
            result.fill_(77)
            assert all(map(torch.equal, given, kept)), f"{name}{arguments}"
    assert torch.equal(larger, before[0])
    assert torch.equal(x, before[1])


@pytest.mark.parametrize("dim", [None, 0, -1])
def test_the_sum_of_a_number_without_dimensions(dim: int | None) -> None:
    x = torch.tensor(3.0)
    for reduce in (torch.sum, torch.mean, torch.prod):
        assert exactly(lambda x, reduce=reduce: reduce(x) if dim is None else reduce(x, dim), x) == 3
    assert x == 3


def test_nearest_samples_of_a_long_sound() -> None:
    """The library's positions, in float32, give some samples twice and others never."""
    sound = torch.arange((1 << 23) + 1000, dtype=torch.float32).view(1, 1, -1) % 1013
    doubled = exactly(lambda x: torch.nn.functional.interpolate(x, scale_factor=2), sound)
    assert torch.equal(doubled, sound.repeat_interleave(2, -1))
