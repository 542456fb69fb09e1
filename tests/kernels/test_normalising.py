"""Layer norms by generated code, against a loop over neighbours in numpy, and against PyTorch's own sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from support.tapes import check, normal
from torch import Tensor

import overlap_tool
from overlap_tool.kernels import compositions, normalising, strips
from overlap_tool.kernels.arithmetic.oracle import Oracle
from overlap_tool.kernels.arithmetic.programs import PROGRAMS

TYPES = st.sampled_from((torch.float32, torch.float64))


def tree(numbers: np.ndarray) -> np.floating:
    """Neighbours are added; if their number is odd, the last is kept as it is."""
    level = list(numbers)
    while len(level) > 1:
        level = [sum(level[i + 1 : i + 2], level[i]) for i in range(0, len(level), 2)]
    return level[0]


def by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> tuple[np.ndarray, ...]:
    """One pixel, by the formula of docs/arithmetic.md, every operation rounded."""
    kind = x.dtype.type
    with np.errstate(all="ignore"):
        centre = tree(x) / kind(len(x))
        centred = x - centre
        variance = tree(centred * centred) / kind(len(x))
        scale = PROGRAMS["rsqrt"](Oracle(kind is np.float32), np.array([variance + kind(eps)], kind))
        return centred * scale * weight + bias, np.array([centre]), scale


def numbers(*shape: int, dtype: torch.dtype, seed: int, wide: float = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x, power = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    return (x * torch.exp2(wide * power)).to(dtype)


def same(one: Tensor, other: Tensor) -> bool:
    """Zeros with their signs; any NaN is any other."""
    bits = one.signbit() == other.signbit()
    return bool((((one == other) & bits) | (one.isnan() & other.isnan())).all())


@tries(40)
@given(
    st.lists(st.integers(1, 5), max_size=3),
    st.one_of(st.integers(1, 80), st.sampled_from([96, 127, 192, 320, 513, 1024])),
    st.sampled_from(["whole", "rows", "channels", "pixels"]),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([0.0, 1e-5, 1e-6, 0.1]),
    st.integers(0, 1 << 30),
    TYPES,
)
def test_every_pixel_is_as_by_hand(
    leading: list[int],
    channels: int,
    cut: str,
    given: tuple[bool, bool],
    eps: float,
    seed: int,
    dtype: torch.dtype,
) -> None:
    """Whatever lies between the numbers that it reads."""
    around = [*leading, channels + (cut == "channels")]
    around = [n + 1 if cut in ("rows", "pixels") and at < len(leading) else n for at, n in enumerate(around)]
    whole = numbers(*around, dtype=dtype, seed=seed, wide=seed % 9)
    if cut == "pixels" and leading:  # channels first
        whole = whole.movedim(-1, 0).contiguous().movedim(0, -1)
    x = whole[tuple(slice(n) for n in (*leading, channels))]
    weight, bias = (numbers(channels, dtype=dtype, seed=seed + n) for n in (1, 2))
    taken = [each if wanted else None for each, wanted in zip((weight, bias), given, strict=True)]
    with torch.no_grad(), overlap_tool.exact_kernels():
        found = torch.native_layer_norm(x, (channels,), *taken, eps)
    ones, zeros = torch.ones(channels, dtype=dtype), torch.full((channels,), -0.0, dtype=dtype)
    told = [each if each is not None else other for each, other in zip(taken, (ones, zeros), strict=True)]
    pixels = x.reshape(-1, channels).numpy()
    expected = [by_hand(pixel, *(each.numpy() for each in told), eps) for pixel in pixels]
    for each, parts in zip(found, zip(*expected, strict=True), strict=True):
        assert each.shape[:-1] == x.shape[:-1]
        assert same(each.reshape(len(pixels), -1), torch.from_numpy(np.stack(parts)))


@tries(30)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 600),
    st.integers(1, 40),
    st.integers(0, 1 << 30),
    TYPES,
)
def test_rows_of_any_length_have_the_bits_of_the_composition(
    images: int, rows: int, columns: int, channels: int, seed: int, dtype: torch.dtype
) -> None:
    x = numbers(images, rows, columns, channels, dtype=dtype, seed=seed, wide=3)
    weight, bias = (numbers(channels, dtype=dtype, seed=seed + n) for n in (1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalising, "WORTH_THREADS", 1)
        found = normalising.layer_norm(x, weight, bias, 1e-5)
    assert found is not None
    for one, other in zip(found, compositions._normalised(x, [3], weight, bias, 1e-5), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45, 3e38])
def test_special_numbers(special: float) -> None:
    x = torch.randn(20, 35)
    x[3, 7] = x[17] = special
    found = normalising.layer_norm(x, None, None, 1e-5)
    assert found is not None
    for one, other in zip(found, compositions._normalised(x, [1], None, None, 1e-5), strict=True):
        assert same(one, other)


def test_what_there_is_no_code_for_is_composed() -> None:
    """Too many channels, several dimensions, weights of another type."""
    assert normalising.layer_norm(torch.randn(2, 1025), None, None, 1e-5) is None
    assert normalising.layer_norm(torch.randn(2, 8), torch.ones(8).double(), None, 1e-5) is None
    x = torch.randn(3, 5, 7)
    with torch.no_grad(), overlap_tool.exact_kernels():
        found = F.layer_norm(x, (5, 7))
    assert same(found, compositions._normalised(x, [1, 2], None, None, 1e-5)[0])


def test_a_norm_goes_along_with_the_convolutions_around_it() -> None:
    """And so does the product of two halves of a map, whose pixels lie further apart than its own."""
    sizes = (32, 16), (64, 32), (8, 32)
    first, wide, last = (normal(*size, 1, 1, device="cpu") for size in sizes)

    def block(x: Tensor) -> list[Tensor]:
        y = F.layer_norm(F.conv2d(x, first).permute(0, 2, 3, 1), (32,)).permute(0, 3, 1, 2)
        one, other = F.conv2d(y, wide).chunk(2, 1)
        return [F.conv2d(one * other, last)]

    with torch.no_grad(), overlap_tool.exact_kernels(), pytest.MonkeyPatch.context() as patch:
        for name, value in {"WORTH_IT": 0, "ENOUGH": 1, "FEWEST": 1, "CACHED_BYTES": 1}.items():
            patch.setattr(strips, name, value)
        tape = check(block, normal(2, 16, 40, 33, device="cpu"))
    assert len(tape._steps) == 1
