"""`exact_kernels()` as a user meets it: any model, nested, in threads, in and out without a trace."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import overlap_tool
from overlap_tool import exact_kernels, kernels, rules
from overlap_tool.errors import ExactnessError, OverlapToolError, PluginError
from overlap_tool.rules.mode import SetAside, computes_first, conv2d, conv_transpose2d

X = torch.randn(1, 8, 33, 35, generator=torch.Generator().manual_seed(0))
MODEL = nn.Sequential(nn.Conv2d(8, 24, 3, padding=1), nn.Sigmoid(), nn.ConvTranspose2d(24, 4, 5, 2, 2)).eval()


@pytest.fixture
def stock() -> torch.Tensor:
    with torch.no_grad():
        return MODEL(X)


@pytest.fixture
def exact() -> torch.Tensor:
    with torch.no_grad(), exact_kernels():
        return MODEL(X)


def test_it_computes_something_else_and_nearly_the_same(stock, exact) -> None:
    assert not torch.equal(stock, exact), "if these were equal, no test here would say anything"
    torch.testing.assert_close(stock, exact, rtol=1e-4, atol=1e-5)


def test_it_leaves_no_trace(stock) -> None:
    with torch.no_grad():
        with exact_kernels():
            MODEL(X)
        assert torch.equal(MODEL(X), stock)
        with pytest.raises(ZeroDivisionError), exact_kernels():
            _ = 1 / 0
        assert torch.equal(MODEL(X), stock)


def test_it_nests(exact, stock) -> None:
    with torch.no_grad():
        with exact_kernels():
            with exact_kernels():
                assert torch.equal(MODEL(X), exact)
            assert torch.equal(MODEL(X), exact)
        assert torch.equal(MODEL(X), stock)


CONVOLUTIONS = {
    "plain": ((6, 8, 3, 3), False, ([1, 1], [0, 0], [1, 1], 1)),
    "strides, padding, dilation and groups": ((6, 4, 3, 2), False, ([2, 1], [1, 2], [1, 2], 2)),
    "transposed": ((8, 4, 5, 5), True, ([2, 2], [2, 2], [1, 1], 1)),
    "transposed, in groups": ((8, 3, 3, 4), True, ([3, 1], [0, 1], [1, 2], 2)),
}


def asked_of_pytorch(transposed: bool, x, weight, bias, stride, padding, dilation, groups) -> torch.Tensor:
    if transposed:
        return F.conv_transpose2d(x, weight, bias, stride, padding, 0, groups, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def asked_straight(transposed: bool, x, weight, bias, stride, padding, dilation, groups) -> torch.Tensor:
    if transposed:
        return conv_transpose2d(x, weight, bias, stride, padding, [0, 0], groups, dilation)
    return conv2d(x, weight, bias, stride, padding, dilation, groups)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("of", CONVOLUTIONS)
def test_the_engine_asked_straight_gives_what_it_gives_by_way_of_pytorch(of: str, biased: bool) -> None:
    shape, transposed, how = CONVOLUTIONS[of]
    weight = nn.Parameter(torch.randn(shape))
    bias = torch.randn(shape[1] * how[-1] if transposed else shape[0]) if biased else None
    given = (transposed, X, weight, bias, *how)
    with torch.no_grad():
        assert torch.equal(asked_straight(*given), asked_of_pytorch(*given)), "and without an engine"
        with exact_kernels():
            expected = asked_of_pytorch(*given)
            found = asked_straight(*given)
            with torch.autocast("cpu"), pytest.raises(ExactnessError, match="bfloat16"):
                asked_straight(*given)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    with exact_kernels():
        assert asked_straight(*given).requires_grad, (
            "where gradients are wanted, PyTorch sees what is computed"
        )


@pytest.mark.parametrize("double", ["weight", "bias"])
def test_operands_of_two_types_are_refused_as_pytorch_refuses_them(double: str) -> None:
    """The straight way once refused them in other words than the model itself does."""
    weight = torch.randn(6, 8, 3, 3, dtype=torch.float64 if double == "weight" else torch.float32)
    bias = torch.randn(6, dtype=torch.float64)
    with torch.no_grad(), exact_kernels():
        with pytest.raises(RuntimeError) as expected:
            F.conv2d(X, weight, bias)
        with pytest.raises(RuntimeError) as found:
            conv2d(X, weight, bias, [1, 1], [0, 0], [1, 1], 1)
    assert str(found.value) == str(expected.value)


def test_a_mode_before_the_engine_sees_what_is_asked_straight() -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), exact_kernels(), Watch():
        conv2d(X, torch.randn(6, 8, 3, 3), None, [1, 1], [0, 0], [1, 1], 1)
    assert "aten::convolution" in seen


def test_the_engine_set_aside_is_back_afterwards(exact) -> None:
    with torch.no_grad(), exact_kernels():
        engine = SetAside()
        with engine.aside():
            assert not computes_first()
            with engine:
                assert torch.equal(MODEL(X), exact)
            assert not computes_first()
            with pytest.raises(ZeroDivisionError), engine:
                _ = 1 / 0
            assert not computes_first()
        with pytest.raises(ZeroDivisionError), engine.aside():
            _ = 1 / 0
        assert computes_first()
        assert torch.equal(MODEL(X), exact)


def test_it_is_a_decorator_too(exact) -> None:
    @exact_kernels()
    def compute() -> torch.Tensor:
        return MODEL(X)

    with torch.no_grad():
        assert torch.equal(compute(), exact)
        assert torch.equal(compute(), exact)


def test_each_thread_has_its_own(exact, stock) -> None:
    found = {}
    inside = threading.Barrier(2)

    @torch.no_grad()
    def compute(name: str, exactly: bool) -> None:
        if exactly:
            with exact_kernels():
                inside.wait()
                found[name] = MODEL(X)
        else:
            inside.wait()
            found[name] = MODEL(X)

    threads = [threading.Thread(target=compute, args=args) for args in (("exact", True), ("stock", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found["exact"], exact)
    assert torch.equal(found["stock"], stock)


def test_inference_mode_is_the_same(exact) -> None:
    with torch.inference_mode(), exact_kernels():
        assert torch.equal(MODEL(X), exact)


def test_with_gradients_wanted_the_values_are_the_same(exact) -> None:
    with exact_kernels():
        assert torch.equal(MODEL(X.clone().requires_grad_()), exact)


def test_in_place_ops_change_their_tensor() -> None:
    x = torch.randn(5)
    with exact_kernels():
        expected = torch.sigmoid(x)
        y = x.clone()
        assert y.sigmoid_() is y
        assert torch.equal(y, expected)
        y.add_(x, alpha=0.5)
        assert torch.equal(y, expected + 0.5 * x)


def test_values_are_put_where_an_index_says() -> None:
    """As the VBR models do with torch 2.6; with later ones it is a copy into a view."""
    x = torch.zeros(4)
    with exact_kernels():
        x.index_put_((torch.tensor([1, 3]),), torch.tensor([5.0, 7.0]))
        x[x > 6] = 9.0
    assert x.tolist() == [0, 5, 0, 9]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_lie_in_memory_as_the_librarys_do(layout) -> None:
    x = X.to(memory_format=layout)
    with torch.no_grad():
        expected = [module(y).stride() for module, y in ((MODEL[0], x), (MODEL[2], MODEL[0](x)))]
        with exact_kernels():
            assert [module(y).stride() for module, y in ((MODEL[0], x), (MODEL[2], MODEL[0](x)))] == expected


def test_a_tensor_without_memory_may_change_in_place() -> None:
    """Tracing inside the mode asked fake tensors for their memory, which torch warns of."""
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(), FakeTensorMode(), exact_kernels():
            warnings.simplefilter("error")
            torch.empty(3).add_(1)
    finally:
        torch.set_warn_always(False)


def test_integers_are_let_through() -> None:
    x = torch.arange(10)
    with exact_kernels():
        assert torch.equal(torch.cumsum(x, 0), x * (x + 1) // 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype) -> None:
    with pytest.raises(ExactnessError, match=r"float32 and float64 only.*\.float\(\)"), exact_kernels():
        F.conv2d(X.to(dtype), MODEL[0].weight.to(dtype))


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda: torch.fft.rfft(X), "fft"),
        (lambda: torch.asinh(X), "asinh"),
        (lambda: torch.add(X, X, out=torch.empty_like(X)), "out"),
        (lambda: torch.lgamma(X), "lgamma"),
        (lambda: X.clone().index_put((torch.tensor([0, 0]),), X, accumulate=True), "fixed order"),
    ],
)
def test_what_is_not_known_is_refused_by_name_on_pieces_of_maps(compute, name: str) -> None:
    with pytest.raises(ExactnessError, match=name), exact_kernels(), kernels.pieces():
        compute()


def test_an_op_of_ones_own_is_registered_by_name() -> None:
    @torch.library.custom_op("overlap_tool_tests::mixed", mutates_args=())
    def mixed(x: torch.Tensor) -> torch.Tensor:
        return MODEL[0](x)

    with torch.no_grad(), exact_kernels():
        with (
            kernels.pieces(),
            pytest.raises(ExactnessError, match=r"overlap_tool_tests\.mixed.*register_exact_op"),
        ):
            mixed(X)
        rules.register_exact_op("overlap_tool_tests::mixed")(MODEL[0])
        assert torch.equal(mixed(X), MODEL[0](X)), "and its own ops are exact"
    with pytest.raises(PluginError, match="already"):
        rules.register_exact_op("overlap_tool_tests::mixed")(MODEL[0])


def test_an_op_of_ones_own_that_gives_what_it_was_given_gives_a_copy() -> None:
    @torch.library.custom_op("overlap_tool_tests::idle", mutates_args=())
    def idle(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    rules.register_exact_op("overlap_tool_tests::idle")(lambda x: x)
    x = torch.ones(3)
    with torch.no_grad(), exact_kernels():
        idle(x).zero_()
    assert torch.equal(x, torch.ones(3))


def test_the_stock_engine_is_the_librarys(stock, exact) -> None:
    with torch.no_grad():
        assert torch.equal(overlap_tool.wrap(MODEL, tile=512, engine="exact")(X), exact)
        assert torch.equal(overlap_tool.wrap(MODEL, tile=16, engine="exact")(X), exact)
        torch.testing.assert_close(overlap_tool.wrap(MODEL, tile=16, engine="stock")(X), stock)
        assert not torch.equal(overlap_tool.wrap(MODEL, tile=16, engine="stock")(X), exact)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(OverlapToolError, match="engine='fast'"):
        overlap_tool.wrap(MODEL, engine="fast")  # type: ignore[arg-type]
