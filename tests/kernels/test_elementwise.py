"""Elementwise operations give the canonical chain, as numpy emulates it and as a processor fuses it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.convolutions import CASES, LAYOUTS, Case, chain, layers, operands

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import cpu, elementwise
from overlap_tool.kernels.form import Form


@pytest.mark.parametrize("name", CASES)
def test_cases_of_every_kind(name: str) -> None:
    case = CASES[name]
    x, weight, bias, form = operands(case)
    expected = chain(x, weight, bias, form)
    out = None if case.out is None else LAYOUTS[case.out](torch.full_like(expected, 7))
    found = elementwise.convolve(x, weight, bias, form, out)
    assert out is None or found is out
    assert torch.equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(layers(), st.booleans())
def test_convolutions_are_chains(layer, double: bool) -> None:
    x, weight, bias, options = layer
    form = Form(options["stride"], options["dilation"], options["groups"])
    rows, columns = (4 + d * (k - 1) for d, k in zip(options["dilation"], weight.shape[2:], strict=True))
    tensors = x[:1, :, :rows, :columns], weight, bias
    args = [None if t is None else t.double() if double else t for t in tensors]
    found = elementwise.convolve(*args, form)
    assert torch.equal(found, cpu.convolve(*args, form))
    if not double:  # its emulation is slow
        assert torch.equal(found, chain(*args, form))


@pytest.mark.parametrize("at_once", [1, 9, 40, 100])
@pytest.mark.parametrize("name", ["dilation 2x3, stride 2x1", "three groups of 5", "batch 3"])
def test_blocks_of_any_size_are_the_same(monkeypatch, name: str, at_once: int) -> None:
    """Single pixels, parts of rows, rows."""
    x, weight, bias, form = operands(CASES[name])
    expected = elementwise.convolve(x, weight, bias, form)
    monkeypatch.setitem(elementwise.AT_ONCE, "cpu", at_once)
    assert torch.equal(elementwise.convolve(x, weight, bias, form), expected)


def near_one(bits: int) -> st.SearchStrategy[float]:
    """Numbers of so many bits, the first and the last of which are set: their sums often lie near a tie."""
    mantissas = st.sampled_from([2 ** (bits - 1) + 1, 2 ** (bits - 1), 2**bits - 1, 3 * 2 ** (bits - 2)])
    made = st.builds(math.ldexp, mantissas, st.integers(-3 * bits, 4 - bits))
    return made | made.map(lambda number: -number)


def chains_of(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[list]:
    """Many short chains: samples and taps."""
    return st.lists(st.tuples(*[numbers] * 3, *[numbers] * 3), min_size=1, max_size=100)


def same_bits(chains: list[tuple[float, ...]], dtype: torch.dtype) -> None:
    """Every chain is a group of its own. Against numpy, and against the processor's own multiply-add."""
    samples, taps = torch.tensor(chains, dtype=torch.float64).to(dtype).unflatten(1, (2, -1)).unbind(1)
    operands = samples.reshape(1, -1, 1, 1), taps[..., None, None], None
    form = Form(groups=len(chains))
    found = elementwise.convolve(*operands, form)
    for expected in (chain(*operands, form), cpu.convolve(*operands, form)):
        assert torch.equal(found, expected)
        assert torch.equal(found.signbit(), expected.signbit())


@settings(max_examples=60, deadline=None)
@given(chains_of(near_one(24) | st.floats(-(2.0**60), 2.0**60, width=32)))
def test_every_step_of_singles_is_rounded_once(chains) -> None:
    """From the smallest number on: floats of 32 bits include the subnormal ones."""
    same_bits(chains, torch.float32)


def test_a_sum_just_below_the_middle_of_two_singles_is_rounded_down() -> None:
    """Rounded to float64 it is the middle itself, from which it would go up, to the even neighbour."""
    last = 2.0**-23
    start, first, second = 1 + last, last / 2 * (1 + last), 1 - last
    assert float(torch.tensor(start + first * second, dtype=torch.float64).float()) == 1 + 2 * last
    x, weight = torch.tensor([start, first]).view(1, 2, 1, 1), torch.tensor([1, second]).view(1, 2, 1, 1)
    assert elementwise.convolve(x, weight, None, Form()).item() == start
    assert elementwise.convolve(-x, weight, None, Form()).item() == -start


def doubles(least: int, most: int) -> st.SearchStrategy[float]:
    made = st.builds(math.ldexp, st.integers(2**52, 2**53 - 1), st.integers(least - 52, most - 53))
    return made | made.map(lambda number: -number) | st.just(0.0)


@settings(max_examples=60, deadline=None)
@given(chains_of(near_one(53) | doubles(-60, 60)) | chains_of(doubles(-480, 480)))
def test_every_step_of_doubles_is_rounded_once(chains) -> None:
    """From 2**-480 to 2**480 in magnitude: products reach from 2**-960 to 2**960."""
    same_bits(chains, torch.float64)


@pytest.mark.parametrize("number", [2.0**481, -(2.0**481), 2.0**-481, 5e-324])
def test_doubles_whose_products_might_not_be_exact_are_refused(number: float) -> None:
    x, weight, bias, form = operands(Case(2, 3, (1, 1), dtype=torch.float64))
    for operand in (x, weight):
        changed = operand.clone()
        changed.view(-1)[1] = number
        args = (changed, weight) if operand is x else (x, changed)
        with pytest.raises(ExactnessError, match=r"2\*\*480.*\.float"):
            elementwise.convolve(*args, bias, form)


def test_what_overflows_is_infinite() -> None:
    x = torch.tensor([3e38, 3e38, -3e38, 1.0]).view(1, 4, 1, 1)
    weight = torch.ones(1, 4, 1, 1)
    assert elementwise.convolve(x, weight, None, Form()).item() == math.inf
    assert elementwise.convolve(-x, weight, None, Form()).item() == -math.inf
