"""The arithmetic by itself: every function against its digests, hard cases, MPFR and another backend."""

from __future__ import annotations

import math
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.threads import on_threads

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import codegen, ops_of_the_library, pieces
from overlap_tool.kernels.arithmetic import functions, tensors
from overlap_tool.kernels.arithmetic.oracle import Oracle
from overlap_tool.kernels.arithmetic.programs import PROGRAMS
from overlap_tool.kernels.arithmetic.tensors import compute
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS, digest, published_digests, sample
from overlap_tool.kernels.emulation import fma_of_doubles
from overlap_tool.rules import exact_kernels
from overlap_tool.rules.exactness import OPS

ROOT = Path(__file__).parents[2]
VECTORS = published_digests("functions")
INF, NAN = math.inf, math.nan
MPMATH = {"sqrt": mpmath.sqrt, "rsqrt": lambda x: 1 / mpmath.sqrt(x), "exp2": lambda x: mpmath.mpf(2) ** x,
          "log2": lambda x: mpmath.log(x, 2)}  # fmt: skip
WIDTHS = [codegen.Processor(16, 16), codegen.Processor(32, 16), codegen.Processor(64, 32)]


def bits(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.isnan(), NAN, values).view(torch.int32 if values.itemsize == 4 else torch.int64)


@pytest.fixture(params=WIDTHS, ids=["16 bytes", "32 bytes", "64 bytes"])
def width(request, monkeypatch) -> None:
    """Code generated for vectors of this size."""
    monkeypatch.setattr(codegen, "processor", lambda: request.param)
    monkeypatch.setattr(tensors, "_machine_code", tensors._machine_code.__wrapped__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_million_floats_have_the_published_digest(name: str) -> None:
    assert on_threads(2, lambda: digest(compute(name, sample()))) == VECTORS[name]["sample"]


@pytest.mark.slow
@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_vectors_of_any_size_give_that_digest(name: str) -> None:
    assert on_threads(1, lambda: digest(compute(name, sample()))) == VECTORS[name]["sample"]


@pytest.mark.usefixtures("width")
def test_vectors_of_any_size_give_that_digest_of_one_function() -> None:
    assert digest(compute("erf", sample())) == VECTORS["erf"]["sample"]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "hardest" in VECTORS[name]])
def test_what_lies_halfway_is_rounded_right(name: str) -> None:
    """The inputs whose true value lies closest to halfway between two float32, of all that there are."""
    hardest = VECTORS[name]["hardest"]
    x, expected = (
        torch.tensor([int(one, 16) for one in ones]).to(torch.int32).view(torch.float32)
        for ones in (hardest, hardest.values())
    )
    assert torch.equal(bits(compute(name, x)), bits(expected))


@pytest.mark.parametrize("name", functions.HALFWAY)
def test_what_float64_takes_for_halfway_is_looked_up(name: str) -> None:
    """Each by 60 digits, and none that would be right without: log(9.4726...) is 2.2484072, not 2.248407."""
    x, expected = (
        np.array([float.fromhex(one) for one in ones], np.float32)
        for ones in zip(*functions.HALFWAY[name], strict=True)
    )
    with mpmath.workdps(60):
        true = [MPMATH.get(name, getattr(mpmath, name, None))(mpmath.mpf(float(one))) for one in x]
        near = [[np.nextafter(y, np.float32(end)) for end in (-np.inf, np.inf)] for y in expected]
        for value, y, others in zip(true, expected, near, strict=True):
            assert all(abs(value - float(y)) < abs(value - float(other)) for other in others)
    assert torch.equal(compute(name, torch.from_numpy(x)), torch.from_numpy(expected))
    with np.errstate(all="ignore"):
        plain = functions.PROGRAMS[name](Oracle(True), x.astype(np.float64)).astype(np.float32)
    assert (plain != expected).all()


def numbers(kind: np.dtype) -> np.ndarray:
    """Of all sizes, and near them."""
    rng = np.random.default_rng(0)
    most = 120 if kind == np.float32 else 900
    sizes = (
        rng.uniform(-10, 10, 400),
        *(rng.choice([-1, 1], 300) * 2.0 ** rng.uniform(-m, m, 300) for m in (20, most)),
    )
    special = [0.0, -0.0, 1, -1, INF, -INF, NAN, 1e-45, -1e-45, 3e38, -3e38, 88.8, -104, 0.5, 2]
    return np.concatenate([*sizes, special]).astype(kind)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_generated_code_and_numpy_give_the_same_bits(name: str, kind) -> None:
    x = numbers(kind)
    with np.errstate(all="ignore"):
        expected = PROGRAMS[name](Oracle(kind == np.float32), x)
    assert torch.equal(bits(compute(name, torch.from_numpy(x))), bits(torch.from_numpy(np.asarray(expected))))


def test_powers_by_generated_code_and_by_numpy() -> None:
    for kind in (np.float32, np.float64):
        x, y = np.abs(numbers(kind)), np.roll(numbers(kind), 5) / 4
        with np.errstate(all="ignore"):
            expected = PROGRAMS["pow"](Oracle(kind == np.float32), x, y)
        found = compute("pow", torch.from_numpy(x), torch.from_numpy(y))
        assert torch.equal(bits(found), bits(torch.from_numpy(np.asarray(expected))))


@given(st.data())
@settings(max_examples=100)
def test_numpys_multiply_add_is_rounded_once(data) -> None:
    finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
    a, b = data.draw(finite), data.draw(finite)
    c = data.draw(st.one_of(finite, st.just(-a * b).filter(math.isfinite)))
    try:
        expected = float(fma_of_doubles(np.float64(a), np.float64(b), np.float64(c)))
    except OverflowError:
        expected = math.copysign(INF, a * b)
    with np.errstate(all="ignore"):
        assert float(Oracle.fma(a, b, c)) == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_good_to_two_units_in_the_last_place(name: str) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-8, 8, 200), rng.uniform(-1, 1, 200) * 2.0 ** rng.uniform(-20, 3, 200)])
    if name in ("sin", "cos", "tan"):
        x = np.concatenate([x, rng.uniform(-1, 1, 100) * 2.0 ** rng.uniform(10, 1000, 100)])
    x = np.abs(x) if name.startswith(("log", "sqrt", "rsqrt")) else x
    function = MPMATH.get(name) or getattr(mpmath, name)
    with mpmath.workdps(350 if name in ("sin", "cos", "tan") else 40):
        for value, found in zip(x, compute(name, torch.from_numpy(x)).tolist(), strict=True):
            true = function(mpmath.mpf(float(value)))
            assert abs(found - true) <= abs(true) * 2.0**-50.5, value


SPECIAL = {
    "exp": [(INF, INF), (-INF, 0), (88.8, INF), (-104, 0)],
    "expm1": [(INF, INF), (-INF, -1), (-0.0, -0.0)],
    "log": [(0.0, -INF), (-0.0, -INF), (-1, NAN), (INF, INF), (1, 0)],
    "log1p": [(-1, -INF), (-2, NAN), (INF, INF), (-0.0, -0.0)],
    "log2": [(8, 3), (2.0**-149, -149), (-0.0, -INF)],
    "log10": [(1000, 3), (-1e-45, NAN)],
    "exp2": [(-149, 2.0**-149), (128, INF), (10, 1024)],
    "tanh": [(INF, 1), (-INF, -1), (-0.0, -0.0)],
    "sin": [(INF, NAN), (-0.0, -0.0)],
    "cos": [(-INF, NAN), (0.0, 1)],
    "atan": [(-0.0, -0.0), (INF, math.pi / 2)],
    "erf": [(INF, 1), (-0.0, -0.0)],
    "erfc": [(INF, 0), (-INF, 2)],
    "sqrt": [(-0.0, -0.0), (-1, NAN), (INF, INF)],
    "rsqrt": [(0.0, INF), (-0.0, -INF), (INF, 0), (4, 0.5)],
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_numbers(name: str) -> None:
    for kind in (torch.float32, torch.float64):
        for given_, expected in SPECIAL[name]:
            if kind == torch.float64 and abs(given_) in (88.8, 104, 128):
                continue
            found = compute(name, torch.tensor([given_, NAN], dtype=kind))
            assert torch.equal(bits(found), bits(torch.tensor([expected, NAN], dtype=kind))), (given_, found)


def test_powers_of_special_numbers() -> None:
    """As the C library's float64 function has them, whose result no rounding can change here."""
    values = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, INF, -INF, NAN, 4.0]
    x, y = (torch.tensor(ones) for ones in zip(*((a, b) for a in values for b in values), strict=True))
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(np.power(x.double().numpy(), y.double().numpy()))
    assert torch.equal(bits(compute("pow", x, y)), bits(expected.float()))


def test_powers_halfway_between_two_floats_go_to_the_even_one() -> None:
    """(2**12 + 1)**2 and their like have 25 bits, of which the last is a one."""
    odd = torch.arange(4097, 5793, 2, dtype=torch.float64)
    expected = (odd * odd).float()
    assert torch.equal(compute("power", odd.float(), numbers=(2.0,)), expected)
    assert torch.equal(compute("power", expected.double().sqrt().float(), numbers=(2.0,)), expected)
    cubes = torch.arange(3, 257, 2, dtype=torch.float64)
    assert torch.equal(compute("power", cubes.float(), numbers=(3.0,)), (cubes**3).float())


@pytest.mark.parametrize("pairs", [1 << 19, pytest.param(1 << 30, marks=pytest.mark.slow)])
def test_powers_of_random_pairs(pairs: int) -> None:
    """PyTorch's float64 decides where all within 2**-44 of it is rounded alike, and MPFR the rest."""
    gmpy2 = pytest.importorskip("gmpy2")
    singles = gmpy2.context(precision=24, emax=128, emin=-148, subnormalize=True)
    generator, at_once = torch.Generator().manual_seed(0), 1 << 19
    for _ in range(pairs // at_once):
        logarithm, size = torch.rand(2, at_once, generator=generator, dtype=torch.float64) * 2 - 1
        x = (2.0 ** (logarithm * 148)).float()
        y = (size * 150 / x.double().log2()).float()
        found, wide = compute("pow", x, y), x.double() ** y.double()
        low, high = (wide * (1 - 2.0**-44)).float(), (wide * (1 + 2.0**-44)).float()
        assert torch.equal(found[low == high], low[low == high])
        for at in (low != high).nonzero()[:, 0].tolist():
            with gmpy2.context(singles):
                assert float(found[at]) == float(gmpy2.mpfr(float(x[at])) ** gmpy2.mpfr(float(y[at])))


def test_a_root_is_numpys_and_not_the_librarys() -> None:
    x = sample().abs()
    with exact_kernels(), np.errstate(all="ignore"):
        assert torch.equal(bits(x.sqrt()), bits(torch.from_numpy(np.sqrt(x.numpy()))))


@pytest.mark.parametrize("divisor", [3.0, 5.0, 6.0, 10.0, 192.0, 255.0, 0.1])
def test_a_quotient_by_a_number_is_rounded_once(divisor: float) -> None:
    x = sample()
    with exact_kernels(), np.errstate(all="ignore"):
        assert torch.equal(bits(x / divisor), bits(torch.from_numpy(x.numpy() / np.float32(divisor))))


SINGLE = {
    "fmod": (torch.fmod, np.fmod),
    "remainder": (torch.remainder, np.remainder),
    "floor_divide": (torch.floor_divide, np.floor_divide),
    "floored": (lambda a, b: torch.div(a, b, rounding_mode="floor"), np.floor_divide),
    "truncated": (lambda a, b: torch.div(a, b, rounding_mode="trunc"), lambda a, b: np.trunc(a / b)),
    "sum": (torch.add, np.add),
    "difference": (torch.sub, np.subtract),
    "product": (torch.mul, np.multiply),
    "quotient": (torch.div, np.divide),
    "reciprocal": (lambda a, b: a.reciprocal(), lambda a, b: a.dtype.type(1) / a),
    "fraction": (lambda a, b: a.frac(), lambda a, b: a - np.trunc(a)),
    "slope": (lambda a, b: F.leaky_relu(a, 0.01), lambda a, b: np.where(a > 0, a, a * a.dtype.type(0.01))),
    "rounded": (lambda a, b: a.round(), lambda a, b: np.rint(a)),
}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", SINGLE)
def test_single_operations_are_numpys(name: str, kind) -> None:
    """Of numbers with any bits at all, and of such that are near each other."""
    ours, theirs = SINGLE[name]
    rng, unsigned = np.random.default_rng(0), f"u{np.dtype(kind).itemsize}"
    wild = rng.integers(0, 256, (2, 1 << 16, np.dtype(kind).itemsize), np.uint8).view(unsigned).view(kind)
    for a, b in (wild[..., 0], (rng.normal(size=(2, 1 << 16)) * [[300], [1]]).astype(kind)):
        with exact_kernels(), np.errstate(all="ignore"):
            found = ours(torch.from_numpy(a), torch.from_numpy(b))
            assert torch.equal(bits(found), bits(torch.from_numpy(theirs(a, b))))


@pytest.mark.parametrize("ends", [(0, 1), (0.0, 255.0), (-1, 1), (3, 2), (0.1, 0.7)])
def test_steps_are_taken_in_float64(ends) -> None:
    """Between whole numbers, too, where a library's vectors and its single numbers differ."""
    start, end = ends
    step = (end - start) / 999
    expected = [start + i * step if i < 500 else end - (999 - i) * step for i in range(1000)]
    with exact_kernels():
        assert torch.equal(torch.linspace(start, end, 1000), torch.tensor(expected))


def test_integers_that_give_fractions_are_computed_by_the_arithmetic() -> None:
    whole = torch.arange(1, 1000)
    with exact_kernels(), pieces():
        assert torch.equal(whole**0.3, whole.float() ** 0.3)
        assert torch.equal(whole.sum(dtype=torch.float32), whole.float().sum())
        with pytest.raises(ExactnessError, match="logspace"):
            torch.logspace(0, 1, 5)


def test_complex_numbers_are_none_of_this_arithmetic() -> None:
    x = torch.complex(torch.ones(3), torch.ones(3))
    with exact_kernels(), ops_of_the_library() as told:
        x.abs()
        with pieces(), pytest.raises(ExactnessError, match="abs"):
            x.abs()
    assert list(told) == ["aten::abs"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_and_places(layout: torch.memory_format) -> None:
    x = torch.randn(2, 5, 33, 35).contiguous(memory_format=layout)
    whole = compute("tanh", x)
    assert whole.stride() == x.stride()
    part = ..., slice(3, 30), slice(1, 8)
    assert torch.equal(compute("tanh", x[part]), whole[part])
    copy = x.clone()
    assert compute("tanh", copy, out=copy) is copy
    assert torch.equal(copy, whole)
    copy = x.clone()
    compute("tanh", copy[part], out=copy[part])
    assert torch.equal(copy[part], whole[part])
    assert torch.equal(copy[..., :3, :], x[..., :3, :])
    assert compute("tanh", x[:0]).shape == (0, 5, 33, 35)


def test_half_precision_is_refused() -> None:
    with (
        pytest.raises(ExactnessError, match=r"torch\.exp of bfloat16.*\.float\(\)"),
        exact_kernels(),
        pieces(),
    ):
        torch.ones(3, dtype=torch.bfloat16).exp()


def test_integers_have_the_functions_of_the_same_numbers() -> None:
    x = torch.arange(-3, 20)
    with exact_kernels():
        assert torch.equal(bits(x.exp()), bits(x.float().exp()))
        assert torch.equal(bits(x.sqrt()), bits(x.float().sqrt()))


def test_where_nothing_can_be_compiled_numpy_computes(monkeypatch) -> None:
    def unknown(module: object) -> int:
        raise RuntimeError("LLVM does not know this processor")

    x = torch.randn(3, 1001)
    expected = [compute("erf", x), compute("softplus", x, numbers=(2.0, 5.0))]
    monkeypatch.setattr(codegen, "compiled", unknown)
    monkeypatch.setattr(tensors, "_machine_code", tensors._machine_code.__wrapped__)
    assert torch.equal(compute("erf", x), expected[0])
    assert torch.equal(compute("softplus", x, numbers=(2.0, 5.0)), expected[1])


def test_every_op_has_its_sentence() -> None:
    """All that the engine knows is in one row of the page, and no row names anything else."""
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "arithmetic.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(named) == len(set(named))
    assert set(named) == {name for name, (how, _) in OPS.items() if how != "of ops"}


def test_all_functions_have_digests() -> None:
    assert set(VECTORS) == set(FUNCTIONS) == set(functions.PROGRAMS) - {"pow"} | {"sqrt"}
