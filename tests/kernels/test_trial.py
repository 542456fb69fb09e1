"""A kernel is tried before it is relied on. Where it is wrong, the bits are right, and the layer is named."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.convolutions import CASES, Case, chain, operands, transposed
from torch import Tensor

from overlap_tool import exact_kernels
from overlap_tool.errors import ExactnessError, SlowKernelWarning
from overlap_tool.kernels import codegen, cpu, cuda, elementwise, nvrtc, trial
from overlap_tool.kernels.form import NOTHING, Form

pytestmark = pytest.mark.usefixtures("_untried")

RIGHT = cpu.convolve

NAME = r"convolution of 6 to 17 channels, 3x3, stride \(2, 2\), .* on cpu: "


def one_bit_off(x: Tensor, *rest: object) -> Tensor:
    return RIGHT(x, *rest).mul_(1 + 2.0**-23)


def uneven(x: Tensor, *rest: object) -> Tensor:
    """Of small maps the last column is computed in another way. The larger piece knows nothing of it."""
    result = RIGHT(x, *rest)
    if x.shape[-1] < 100:
        result[..., -1].mul_(1 + 2.0**-23)
    return result


def with_ones_around(x: Tensor, weight: object, bias: Tensor | None, form: Form, *rest: object) -> Tensor:
    if form.padding == NOTHING:
        return RIGHT(x, weight, bias, form, *rest)
    rows, columns = form.padding
    around = F.pad(x, (*columns, *rows), value=1.0)
    return RIGHT(around, weight, bias, form._replace(padding=NOTHING), *rest)


def raising(*_: object) -> Tensor:
    raise RuntimeError("LLVM ERROR: Cannot select\nwhatever")


BROKEN: dict[str, tuple[Callable[..., Tensor], str]] = {
    "one bit off": (one_bit_off, "of 16 outputs that were tried differ from the exact chain"),
    "uneven": (uneven, "a piece of a map has other bits than the same outputs of a larger piece"),
    "with ones around": (
        with_ones_around,
        "zeros that the kernel adds give other bits than zeros in the input",
    ),
    "raising": (raising, "it raises RuntimeError: LLVM ERROR: Cannot select"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", [cpu, elementwise])
def test_the_kernels_pass(kernel, name: str) -> None:
    x, weight, _, form = operands(CASES[name])
    assert trial.fault(kernel, trial.Layer.of(x, weight.shape, form)) == ""


@pytest.mark.parametrize("name", BROKEN)
def test_a_layer_with_a_broken_kernel_has_the_right_bits_and_is_named(monkeypatch, name: str) -> None:
    broken, reason = BROKEN[name]
    monkeypatch.setattr(cpu, "convolve", broken)
    x, weight, bias, _ = operands(CASES["3x3"])
    with trial.fallbacks() as slow, exact_kernels():
        with pytest.warns(SlowKernelWarning, match=NAME) as told:
            found = F.conv2d(x, weight, bias, stride=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # told once
            again = F.conv2d(x, weight, bias, stride=2)
    expected = chain(x, weight, bias, Form((2, 2)))
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)
    assert reason in str(told[0].message)
    (fallback,) = slow
    assert reason in fallback.reason
    assert str(told[0].message).startswith(fallback.layer)


@pytest.mark.parametrize("outputs", [2, 48])
def test_every_product_falls_back(monkeypatch, outputs: int) -> None:
    """Transposed convolutions, whose phases are computed together or apart, and matrices."""
    x, y = torch.randn(2, 6, 9, 11), torch.randn(5, 9, 11)
    weight, bias = torch.randn(6, outputs, 5, 5), torch.randn(outputs)

    def compute() -> list[Tensor]:
        with exact_kernels():
            return [
                F.conv_transpose2d(x, weight, bias, stride=2, padding=2, output_padding=1),
                y @ y.transpose(1, 2),
                y[0] @ y[0].T,
                F.conv1d(y, torch.randn(3, 9, 3, generator=torch.Generator().manual_seed(0))),
            ]

    expected = compute()
    trial.choose.cache_clear()
    monkeypatch.setattr(cpu, "convolve", one_bit_off)
    with pytest.warns(SlowKernelWarning):
        found = compute()
    assert all(map(torch.equal, found, expected))


def test_a_layer_is_tried_once(monkeypatch) -> None:
    x, weight, bias, _ = operands(CASES["3x3"])
    with exact_kernels():
        F.conv2d(x, weight, bias)
        monkeypatch.setattr(trial, "fault", lambda *_: pytest.fail("a layer is tried once"))
        F.conv2d(x[..., 1:], weight, bias, padding=2)
        with pytest.raises(pytest.fail.Exception):
            F.conv2d(x, weight, bias, stride=2)


def test_the_number_of_matrices_and_of_their_rows_is_no_layer_of_its_own(monkeypatch) -> None:
    a, b = torch.randn(50, 9, 11), torch.randn(50, 11, 20)
    with exact_kernels():
        assert a[:2] @ b[:2] is not None
        assert a[0] @ b[0] is not None
        monkeypatch.setattr(trial, "fault", lambda *_: pytest.fail("a layer is tried once"))
        assert a @ b is not None
        assert a[0, :3] @ b[0] is not None


def test_where_elementwise_operations_fail_too_the_layer_is_refused_by_name(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "convolve", one_bit_off)
    slow = elementwise.convolve
    monkeypatch.setattr(elementwise, "convolve", lambda *args: slow(*args) * 1.5)
    x, weight, bias, _ = operands(CASES["3x3"])
    with exact_kernels(), pytest.raises(ExactnessError, match=f"{NAME}.*by elementwise operations, .*stock"):
        F.conv2d(x, weight, bias, stride=2)


def test_memory_that_runs_out_is_no_fault_of_the_kernels(monkeypatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cpu, "convolve", full)
    x, weight, bias, _ = operands(CASES["3x3"])
    with exact_kernels(), pytest.raises(torch.OutOfMemoryError):
        F.conv2d(x, weight, bias)


def test_without_a_compiler_for_cuda_a_layer_runs_all_the_same(monkeypatch) -> None:
    """As on a GPU, where the kernel is `cuda`."""
    monkeypatch.setitem(trial.OWN, "cpu", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(nvrtc, "_names", lambda major: iter(()))
    monkeypatch.setattr(nvrtc, "_library", nvrtc._library.__wrapped__)
    x, weight, bias, _ = operands(CASES["3x3"])
    with (
        exact_kernels(),
        pytest.warns(SlowKernelWarning, match=f"{NAME}.*NVRTC is not to be found.*Install"),
    ):
        found = F.conv2d(x, weight, bias, stride=2)
    assert torch.equal(found, chain(x, weight, bias, Form((2, 2))))


def test_a_processor_that_llvm_does_not_know_is_slow(monkeypatch) -> None:
    def unknown() -> None:
        raise RuntimeError("failed getting host cpu features")

    monkeypatch.setattr(codegen.llvm, "get_host_cpu_features", unknown)
    asked_anew = codegen.processor.__wrapped__
    for module in (codegen, cpu):
        monkeypatch.setattr(module, "processor", asked_anew)
    monkeypatch.setattr(cpu, "kernel", codegen.kernel.__wrapped__)
    x, weight = torch.randn(1, 4, 6, 5), torch.randn(4, 3, 3, 3)
    expected = transposed(x, weight, None, (2, 2), (1, 1), (1, 1), (1, 1), 1)
    with exact_kernels(), pytest.warns(SlowKernelWarning, match="host cpu features"):
        found = F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
    assert torch.equal(found, expected)


def test_each_thread_is_told_its_own(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "convolve", one_bit_off)
    x, weight, bias, _ = operands(CASES["3x3"])

    def compute() -> None:
        with exact_kernels():
            F.conv2d(x, weight, bias)

    def compute_in_another_thread() -> None:
        other = threading.Thread(target=compute)
        other.start()
        other.join()

    with trial.fallbacks() as here:
        with pytest.warns(SlowKernelWarning):
            compute_in_another_thread()
        assert not here
        compute()
        assert len(here) == 1


def test_doubles_have_a_trial_too(monkeypatch) -> None:
    case = Case(3, 4, (3, 3), dtype=torch.float64)
    x, weight, _, form = operands(case)
    layer = trial.Layer.of(x, weight.shape, form)
    monkeypatch.setattr(cpu, "convolve", lambda *args: RIGHT(*args).mul_(1 + 2.0**-52))
    assert "4 outputs that were tried" in trial.fault(cpu, layer)
    assert trial.fault(elementwise, layer) == ""
