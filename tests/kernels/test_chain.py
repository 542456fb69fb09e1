"""The CPU kernels give the canonical chain, bit for bit, as an emulation in numpy does; threads and shapes
change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import tries
from support.convolutions import CASES, LAYOUTS, Case, chain, layers, operands, transposed
from support.threads import on_threads
from torch import Tensor

from overlap_tool import exact_kernels
from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import chain as kernels_of_chains
from overlap_tool.kernels import codegen, cpu, emulation, threads
from overlap_tool.kernels.form import Form

NEIGHBOURS = "channels last", "some channels"
"""Layouts in which channels lie side by side, as the kernel writes them."""


def same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert torch.equal(found, expected), f"{(found != expected).float().mean():.1%} of the outputs differ"


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups) -> Tensor:
    """`F.conv2d` by the emulation: zeros around, then chains."""
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    return chain(padded, weight, bias, Form(stride, dilation, groups))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.out in (None, *NEIGHBOURS)])
def test_cases_of_every_kind(name: str) -> None:
    case = CASES[name]
    x, weight, bias, form = operands(case)
    expected = chain(x, weight, bias, form)
    out = None
    if case.out is not None:
        out = LAYOUTS[case.out](torch.full_like(expected, 7).to(memory_format=torch.channels_last))
    same(cpu.convolve(x, weight, bias, form, out), expected)


@settings(max_examples=120, deadline=None)
@given(layers())
def test_convolutions_are_chains(layer) -> None:
    x, weight, bias, options = layer
    with exact_kernels():
        found = F.conv2d(x, weight, bias, **options)
    same(found, convolution(x, weight, bias, **options))


@st.composite
def depthwise_layers(draw) -> tuple[Tensor, Tensor, Tensor | None, Form]:
    """Samples, weights and bias; more than a tile's rows, and up to several tiles or a block across."""
    kernel, stride, dilation = (draw(st.tuples(*[st.integers(1, n)] * 2)) for n in (11, 4, 4))
    channels = draw(st.sampled_from([2, 3, 8, 15, 16, 17, 30, 35, 64]))
    down, across = draw(st.integers(1, 13)), draw(st.integers(1, 20)) + draw(st.sampled_from([0, 0, 48]))
    outputs = zip((down, across), kernel, stride, dilation, strict=True)
    size = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in outputs]
    form = {"dtype": draw(st.sampled_from([torch.float32] * 4 + [torch.float64]))}
    form["generator"] = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](
        torch.randn(draw(st.integers(1, 2)), channels, *size, **form)
    )
    weight = torch.randn(channels, 1, *kernel, **form)
    bias = torch.randn(channels, **form) if draw(st.booleans()) else None
    return x, weight, bias, Form(stride, dilation, channels)


@tries(120)
@given(depthwise_layers(), st.sampled_from(NEIGHBOURS))
def test_depthwise_convolutions_are_chains(layer, place) -> None:
    """Also if taps are dilated or strides leave rows out. Beside the outputs nothing is written."""
    x, weight, bias, form = layer
    expected = chain(x, weight, bias, form)
    out = LAYOUTS[place](torch.full_like(expected, 7).to(memory_format=torch.channels_last))
    whole = out if out._base is None else out._base
    before = whole.clone()
    same(cpu.convolve(x, weight, bias, form, out), expected)
    out.fill_(7)
    same(whole, before)


@settings(max_examples=120, deadline=None)
@given(layers(), st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_transposed_convolutions_are_chains(layer, more) -> None:
    x, weight, bias, options = layer
    x = x[..., :9, :9]
    groups, kernel = options["groups"], weight.shape[-2:]
    options["padding"] = [
        min(p, d * (k - 1)) for p, d, k in zip(options["padding"], options["dilation"], kernel, strict=True)
    ]
    options["output_padding"] = [min(o, s - 1) for o, s in zip(more, options["stride"], strict=True)]
    weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # (in, out / groups, ...)
    with exact_kernels():
        found = F.conv_transpose2d(x, weight, bias, **options)
    same(found, transposed(x, weight, bias, **options))


@pytest.mark.parametrize("channels", [640, 1280])
def test_very_many_taps_are_a_chain_too(channels: int) -> None:
    """Where libraries begin to cut the sum in parts, and the weights are read in portions."""
    case = Case(channels, 40, (3, 3), x="channels last")
    x, weight, bias, form = operands(case)
    assert weight[0].numel() * 4 * 32 > cpu.CACHED_BYTES
    same(cpu.convolve(x, weight, bias, form), chain(x, weight, bias, form))


def test_one_dimension_is_a_row() -> None:
    x, weight, bias = torch.randn(2, 6, 31), torch.randn(8, 3, 5), torch.randn(8)
    with exact_kernels():
        found = F.conv1d(x, weight, bias, stride=2, padding=2, groups=2)
    expected = convolution(x[:, :, None], weight[:, :, None], bias, (1, 2), (0, 2), (1, 1), 2)
    same(found, expected[:, :, 0])


def test_matrix_products_are_chains() -> None:
    a, b, c = torch.randn(53, 37), torch.randn(37, 70), torch.randn(70)
    expected = torch.from_numpy(emulation.chains(a.numpy()[:, None], b.T.numpy()[None]))
    with exact_kernels():
        same(a @ b, expected)
        same(F.linear(a, b.T, c), expected + c)
        same(torch.addmm(c, a, b, beta=0.5, alpha=2.0), 2.0 * expected + 0.5 * c)
        for rows in (1, 2, 7, 50):
            same(a[:rows] @ b, expected[:rows])


def test_batches_of_matrix_products_are_chains() -> None:
    a, b = torch.randn(5, 9, 11), torch.randn(5, 11, 20)
    expected = np.stack(
        [emulation.chains(x[:, None], y.T[None]) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    )
    with exact_kernels():
        same(a @ b, torch.from_numpy(expected))
        same(a[3:4] @ b[3:4], torch.from_numpy(expected[3:4]))


def test_double_precision_is_a_chain_of_its_own() -> None:
    case = Case(7, 20, (3, 2), (2, 1), x="channels last", dtype=torch.float64)
    x, weight, bias, form = operands(case)
    same(cpu.convolve(x, weight, bias, form), chain(x, weight, bias, form))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_change_no_bit(count: int) -> None:
    x, weight, bias = torch.randn(2, 24, 61, 67), torch.randn(70, 24, 3, 3), torch.randn(70)
    assert x[:, :1].numel() * weight.numel() > cpu.WORTH_THREADS
    found = on_threads(count, lambda: cpu.convolve(x, weight, bias, Form()))
    same(found[1:, :, 50:], chain(x[1:, :, 50:], weight, bias, Form()))
    same(found[:1, :, :9], chain(x[:1, :, :11], weight, bias, Form()))


@pytest.mark.parametrize("together", [True, False])
def test_a_transposed_convolution_does_not_tell_whether_its_phases_came_together(
    monkeypatch, together
) -> None:
    """Where they do, zeros are added, and -0 was +0 then; and where no input came, a bias of -0 stayed."""
    monkeypatch.setattr(kernels_of_chains, "_together", lambda *_: together)
    x, weight = torch.full((1, 2, 3, 4), -(2.0**-100)), torch.full((2, 3, 1, 2), 2.0**-100)
    with exact_kernels():
        found = F.conv_transpose2d(x, weight, torch.tensor([-0.0, 0.0, 1.0]), stride=2)
    assert not found.signbit().any()
    assert (found[:, :2] == 0).all()
    assert (found[:, 2] == 1).all()


def test_without_an_openmp_runtime_python_threads_do_it(monkeypatch) -> None:
    monkeypatch.setattr(threads, "_runner", lambda: threads._on_python_threads)
    x, weight = torch.randn(1, 24, 61, 67), torch.randn(70, 24, 3, 3)
    found = cpu.convolve(x, weight, None, Form())
    same(found[..., :2, :], chain(x[..., :4, :], weight, None, Form()))


@pytest.mark.parametrize(
    "machine", [codegen.Processor(32, 16), codegen.Processor(16, 16), codegen.Processor(16, 32)]
)
def test_narrower_processors_compute_the_same(machine, monkeypatch) -> None:
    """As on AVX2, SSE and NEON: the vectors are shorter, the bits are not different."""
    for module in (codegen, cpu):
        monkeypatch.setattr(module, "processor", lambda: machine)
    for name in (
        "3x3",
        "two groups of 17",
        "depthwise",
        "depthwise, taps apart",
        "more than a block of channels",
    ):
        x, weight, bias, form = operands(CASES[name])
        same(cpu.convolve(x, weight, bias, form), chain(x, weight, bias, form))


def test_operands_that_do_not_fit_get_the_librarys_own_error() -> None:
    """Nothing may be read beyond a tensor's end."""
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(6, 5, 3, 3)
    for call in (
        lambda: F.conv2d(x, weight),
        lambda: F.conv2d(x, weight[:, :4].double()),
        lambda: F.conv2d(x[..., :2], weight[:, :4]),
        lambda: F.conv_transpose2d(x, weight),
        lambda: x[0, 0] @ weight[0, 0],
        lambda: torch.bmm(x[0], weight[0]),
    ):
        with pytest.raises(RuntimeError) as own:
            call()
        with exact_kernels(), pytest.raises(RuntimeError) as ours:
            call()
        assert str(ours.value) == str(own.value)
        assert not isinstance(ours.value, ExactnessError)


def test_empty_batches_stay_empty() -> None:
    with exact_kernels():
        assert F.conv2d(torch.randn(0, 4, 8, 8), torch.randn(6, 4, 3, 3)).shape == (0, 6, 6, 6)
        assert (torch.randn(0, 3) @ torch.randn(3, 2)).shape == (0, 2)


def test_weights_that_change_are_packed_again() -> None:
    """Also behind the back of the count of changes that tensors keep."""
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(6, 4, 3, 3)
    with exact_kernels():
        first = F.conv2d(x, weight)
        weight.mul_(2)
        same(F.conv2d(x, weight), first * 2)
        weight.data.mul_(2)
        same(F.conv2d(x, weight), first * 4)
        weight.data = weight.data * 2
        same(F.conv2d(x, weight), first * 8)


def test_one_weight_serves_layers_of_several_dilations() -> None:
    """The phases of a transposed convolution were once kept by weight and stride alone."""
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(4, 64, 4, 4)
    dilations = 1, 2, 3
    with exact_kernels():
        found = [F.conv_transpose2d(x, weight, stride=2, dilation=dilation) for dilation in dilations]
    for dilation, y in zip(dilations, found, strict=True):
        same(y, transposed(x, weight, None, (2, 2), (0, 0), (0, 0), (dilation, dilation), 1))
