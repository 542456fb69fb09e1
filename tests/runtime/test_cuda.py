"""The kernels on a GPU, bit for bit. Models on one are in `test_devices.py`; `make gpu` runs both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.convolutions import CASES, Case, chain, operands
from support.emulated_driver import forget
from torch import Tensor

import overlap_tool
from overlap_tool.errors import SlowKernelWarning
from overlap_tool.kernels import cpu, cuda, elementwise, nvrtc, trial
from overlap_tool.kernels.form import Form

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


LARGE = {
    "1x1 of 1280": Case(1280, 40, (1, 1), x="channels last"),
    "3x3 of 640": Case(640, 130, (3, 3), x="channels last"),
    "5x5 of 320": Case(320, 12, (5, 5), (2, 2), x="channels last"),
    "5x5 of 192 by rows": Case(192, 192, (5, 5), images=2),
    "11x11 depthwise": Case(96, 96, (11, 11), groups=96, images=3, x="channels last"),
    "9x9 of 3": Case(3, 64, (9, 9), (4, 4)),
}
"""Depths of up to 8,000 taps, where orders of summation differ the most."""


def on_gpu(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same values with the same strides."""
    return [None if t is None else torch.empty_like(t, device="cuda").copy_(t) for t in tensors]


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_a_convolution_is_the_chain_bit_for_bit(name: str) -> None:
    case = {**CASES, **LARGE}[name]
    x, weight, bias, form = operands(case)
    found = cuda.convolve(*on_gpu(x, weight, bias), form).cpu()
    assert torch.equal(found, chain(x, weight, bias, form))
    assert torch.equal(found, cpu.convolve(x, weight, bias, form))


@pytest.mark.parametrize("name", [*CASES, *LARGE])
@pytest.mark.parametrize("kernel", [cuda, elementwise])
def test_every_layer_passes_its_trial(kernel, name: str) -> None:
    x, weight, _, form = operands({**CASES, **LARGE}[name])
    assert trial.fault(kernel, trial.Layer.of(x.cuda(), weight.shape, form)) == ""


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_elementwise_operations_are_the_chain_bit_for_bit(name: str) -> None:
    x, weight, bias, form = operands({**CASES, **LARGE}[name])
    found = elementwise.convolve(*on_gpu(x, weight, bias), form).cpu()
    assert torch.equal(found, chain(x, weight, bias, form))


@pytest.mark.usefixtures("_untried")
@pytest.mark.parametrize("broken", ["one bit off", "no compiler"])
def test_a_layer_whose_kernel_is_broken_has_the_same_bits(monkeypatch, broken: str) -> None:
    x, weight, bias, _ = operands(CASES["3x3"])
    right = cuda.convolve
    if broken == "no compiler":
        monkeypatch.setattr(nvrtc, "_names", lambda major: iter(()))
        monkeypatch.setattr(nvrtc, "_library", nvrtc._library.__wrapped__)
        forget()
    else:
        monkeypatch.setattr(cuda, "convolve", lambda *args: right(*args).mul_(1 + 2.0**-23))
    with overlap_tool.exact_kernels(), trial.fallbacks() as slow:
        with pytest.warns(SlowKernelWarning, match="on cuda:0: "):
            found = F.conv2d(*on_gpu(x, weight, bias), stride=2, padding=1)
        expected = F.conv2d(x, weight, bias, stride=2, padding=1)
    forget()
    assert len(slow) == 1
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("kernel", [cuda, elementwise])
@pytest.mark.parametrize("small", [2.0**-126, 2.0**-140])
def test_small_numbers_are_not_flushed(small: float, kernel) -> None:
    x, weight, bias, form = operands(CASES["3x3"])
    assert bias is not None
    x, bias = x * small, bias * small
    found = kernel.convolve(*on_gpu(x, weight, bias), form).cpu()
    assert torch.equal(found, chain(x, weight, bias, form))
    assert found.ne(0).any()


@pytest.mark.parametrize("groups", [1, 2, 64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_bit_depends_on_the_tile_or_the_batch(groups: int, layout: torch.memory_format) -> None:
    x = torch.randn(3, 64, 70, 91, device="cuda").contiguous(memory_format=layout)
    weight, bias = torch.randn(64, 64 // groups, 5, 5, device="cuda"), torch.randn(64, device="cuda")
    form = Form(stride=(2, 2), groups=groups)
    whole = cuda.convolve(x, weight, bias, form)
    for top, left, height, width in [(0, 0, 1, 1), (3, 7, 5, 9), (32, 40, 1, 4), (10, 0, 20, 44)]:
        rows = slice(2 * top, 2 * (top + height - 1) + 5)
        columns = slice(2 * left, 2 * (left + width - 1) + 5)
        tile = cuda.convolve(x[:, :, rows, columns], weight, bias, form)
        assert torch.equal(tile, whole[:, :, top : top + height, left : left + width])
    for image in range(3):
        assert torch.equal(cuda.convolve(x[image : image + 1], weight, bias, form)[0], whole[image])


def test_a_map_of_more_than_two_to_the_31_samples() -> None:
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB")
    # by rows, so that channels are far apart: the last one begins beyond 2**31
    x = torch.zeros(1, 3, 30_000, 30_000, device="cuda")
    x[..., -4:, -4:].normal_()
    weight = torch.randn(1, 3, 3, 3, device="cuda")
    corner = cuda.convolve(x[..., -4:, -4:].contiguous(), weight, None, Form())
    assert torch.equal(cuda.convolve(x, weight, None, Form())[..., -2:, -2:], corner)
