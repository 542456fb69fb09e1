"""The kernels for CUDA where there is no GPU: compiled for three generations, and their PTX interpreted.

The project's own code packs, chooses and launches; only the driver is `emulated_driver`. What comes out has
to be the bits of the emulation and of the kernel for the CPU, without a race, every number written once.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.cases import tries
from support.convolutions import CASES, LAYOUTS, Case, chain, layers, operands, transposed
from support.emulated_driver import emulated_driver
from support.ptx import PtxError
from torch import Tensor

from overlap_tool import exact_kernels
from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import cpu, cuda, elementwise, nvrtc, trial
from overlap_tool.kernels.arithmetic import fused, on_gpu, tensors
from overlap_tool.kernels.form import Form
from overlap_tool.kernels.work import noting

try:
    nvrtc._library()
except ExactnessError as error:
    pytest.skip(f"needs NVRTC: {error}", allow_module_level=True)

TARGETS = "compute_80", "compute_90", "compute_100"

RUNS = [
    cuda.run_for(taps, stride, dilation, torch.float32)
    for taps, stride, dilation in ((3, 1, 1), (2, 2, 1), (5, 1, 1), (11, 1, 1), (11, 1, 4))
]
"""Of the depthwise kernel; the last row is too long to hold."""

WINDOWS = [
    (cuda.tile_for(outputs, torch.float32, 3), window)
    for outputs, window in {
        192: cuda.FewInputs(5, 15, 2, 6),
        64: cuda.FewInputs(3, 3, 1, 1),
        48: cuda.FewInputs(7, 21, 2, 6),
        20: cuda.FewInputs(3, 9, 1, 3),
        12: cuda.FewInputs(5, 15, 1, 3),
        3: cuda.FewInputs(3, 9, 1, 3),
    }.items()
]
"""Of the kernel for few inputs: tiles, and what is compiled in."""

SQUARING = cuda.tiled_name(cuda.LARGE[0], torch.float32, True, squares=True, point=True)

KERNELS = {
    **{
        cuda.tiled_name(tile, torch.float32, by_vectors): tile.high * tile.wide
        for tile in (*cuda.TILES.values(), *cuda.LARGE)
        for by_vectors in (True, False)
    },
    **{
        cuda.tiled_name(tile, torch.float32, True, 4): tile.high * tile.wide
        for tile in (cuda.TILES[64], *cuda.LARGE)
    },
    **{
        cuda.tiled_name(tile, torch.float32, True, point=True): tile.high * tile.wide
        for tile in (cuda.TILES[32], cuda.TILES[64], *cuda.LARGE)
    },
    SQUARING: cuda.LARGE[0].high * cuda.LARGE[0].wide,
    cuda.tiled_name(cuda.DOUBLES, torch.float64, True): cuda.DOUBLES.high * cuda.DOUBLES.wide,
    cuda.tiled_name(cuda.DOUBLES, torch.float64, False): cuda.DOUBLES.high * cuda.DOUBLES.wide,
    **{
        cuda.few_inputs_name(tile, window, torch.float32): window.span * tile.high * tile.wide
        for tile, window in WINDOWS
    },
    **{cuda.depthwise_name(*run, torch.float32): run[0] for run in RUNS},
    cuda.depthwise_name(4, (3, 1, 1), torch.float64): 4,
}
"""By name: how many outputs a thread has, with few inputs times the numbers of a row of the kernel."""

LAYERS = {
    "96x96, whole chunks": Case(16, 288, (2, 1), x="channels last"),
    "96x96, with a rest": Case(20, 96, (1, 2), x="channels last", images=2),
    "128x64": Case(4, 128, (3, 3), (2, 2), x="channels last"),
    "64x64": Case(12, 64, (2, 2), x="channels last", bias=False),
    "4 outputs": Case(20, 3, (3, 3), x="channels last", images=2),
    "4 outputs, number by number": Case(18, 4, (2, 3), (2, 1)),
    "12 outputs": Case(36, 12, (2, 2), x="channels last", images=3),
    "two groups of 9": Case(10, 18, (1, 3), groups=2, bias=False),
    "16 outputs": Case(8, 16, (2, 2), x="channels last", images=2),
    "64x64, two groups": Case(8, 100, (2, 2), groups=2, x="channels last"),
    "192x32, a channel in the way": Case(16, 24, (1, 1), x="some channels"),
    "a point, 96x96, with a rest": Case(20, 96, (1, 1), images=2, x="channels last"),
    "a point, 128x64, stride 2": Case(36, 128, (1, 1), (2, 2), x="channels last"),
    "a point, two groups": Case(8, 100, (1, 1), groups=2, x="channels last", out="some channels"),
    "depthwise, 7 columns": Case(33, 33, (2, 7), groups=33, images=2, x="channels last"),
    "3 channels": Case(3, 48, (5, 5), (2, 2)),
    "3 channels, apart": Case(3, 48, (5, 5), (2, 2), x="some channels"),
    "3 channels to 192": Case(3, 192, (5, 5), (2, 2), images=2, x="channels last"),
    "7 channels to 12": Case(7, 12, (3, 2), (1, 2), images=3, x="channels last"),
    "1 channel to 4": Case(1, 4, (3, 5), (2, 1), images=2),
    "3 channels, too many taps": Case(3, 130, (7, 9), x="channels last"),
    "a row too long to hold": Case(5, 5, (2, 5), (1, 3), (1, 9), groups=5, x="channels last"),
    "float64 by rows": Case(3, 40, (2, 2), dtype=torch.float64),
    "float64, number by number": Case(9, 40, (2, 2), dtype=torch.float64),
}
"""Beside the cases of all kernels: every tile, by vectors and number by number."""

OURS = {name: case for name, case in {**CASES, **LAYERS}.items() if case.out in (None, "some channels")}


def bits(x: Tensor) -> Tensor:
    """What is no number counts as one, whatever its payload."""
    x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x).contiguous()
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int64)


def same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    wrong = bits(found) != bits(expected)
    assert not wrong.any(), f"{wrong.float().mean():.1%} of the outputs differ"


def held_to_the_chain(
    target: str, x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, out: Tensor | None = None
) -> None:
    expected = chain(x, weight, bias, form)
    if out is not None:
        out = out.expand_as(expected)
    with emulated_driver(target) as driver:
        found = cuda.convolve(x, weight, bias, form, out)
    assert len(driver.launches) == 1
    same(found, expected)
    same(cpu.convolve(x, weight, bias, form), expected)


def check(target: str, name: str) -> None:
    case = OURS[name]
    x, weight, bias, form = operands(case)
    held_to_the_chain(target, x, weight, bias, form)
    if case.out is not None:
        expected = chain(x, weight, bias, form)
        out = LAYOUTS[case.out](torch.full_like(expected, 7).to(memory_format=torch.channels_last))
        with emulated_driver(target):
            assert cuda.convolve(x, weight, bias, form, out) is out
        same(out, expected)


QUICK = [
    *(("compute_90", name) for name in OURS),
    *product(("compute_80", "compute_100"), ("96x96, whole chunks", "3 channels", "depthwise", "4 outputs")),
    # which cannot copy meanwhile
    *product(("compute_75",), ("128x64", "3 channels", "float64 by rows", "12 outputs")),
]


@pytest.mark.parametrize(("target", "name"), QUICK)
def test_interpreted_every_bit_is_the_chains(target: str, name: str) -> None:
    check(target, name)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [each for each in product(TARGETS, OURS) if each not in QUICK])
def test_interpreted_every_bit_is_the_chains_on_all_targets(target: str, name: str) -> None:
    check(target, name)


FINISHED = {
    "root and product": (("mul", 1, ("rsqrt", 0)), 1),
    "sum, then bounded below": (("relu", ("add", ("leaky_relu", 0, (0.2).hex()), 1)), 1),
    "of three": (("sub", ("mul", 0, 2), ("div", 1, (3.0).hex())), 2),
}
"""What is made of outputs, and of how many tensors beside."""


@pytest.mark.parametrize("what", FINISHED)
@pytest.mark.parametrize(
    "name", ["96x96, with a rest", "3 channels", "depthwise, 7 columns", "float64 by rows"]
)
def test_interpreted_what_is_made_of_outputs_is_what_programs_make_of_them(name: str, what: str) -> None:
    expression, count = FINISHED[what]
    x, weight, bias, form = operands(OURS[name])
    x = x.contiguous(memory_format=torch.channels_last)
    chained = cpu.convolve(x, weight, bias, form)
    others = tuple(torch.randn_like(chained) for _ in range(count))
    expected = tensors.compute(fused.named(expression), chained, *others)
    out = torch.full_like(chained, 7)
    work = cuda.Convolution(x, cuda.pack(weight, form.groups), bias, form, out, expression, others)
    with emulated_driver("compute_90"):
        work.launch().run()
    same(out, expected)


@pytest.mark.parametrize(
    "name", ["96x96, with a rest", "3 channels", "64x64", "float64 by rows", "12 outputs"]
)
@pytest.mark.parametrize("target", TARGETS)
def test_interpreted_the_chain_of_squares_is_that_of_what_was_squared_before(target: str, name: str) -> None:
    x, weight, bias, form = operands(OURS[name])
    x = x.contiguous(memory_format=torch.channels_last)
    expected = chain(x * x, weight, bias, form)
    out = torch.full_like(expected, 7).contiguous(memory_format=torch.channels_last)
    work = cuda.Convolution(x, cuda.pack(weight, form.groups), bias, form, out, squares=True)
    with emulated_driver(target):
        work.launch().run()
    same(out, expected)


@pytest.mark.parametrize("fused_with_the_chain", [True, False])
def test_relu_of_minus_zero_is_minus_zero(fused_with_the_chain: bool) -> None:
    """By the library it is -0 on some processors and +0 on others, and so a GPU's own bits hung on fusing."""
    x, weight = torch.full((1, 5, 1, 3), -(2.0**-100)), torch.full((2, 5, 1, 1), 2.0**-100)
    bias, out = torch.tensor([-0.0, 0.0]), torch.full((1, 2, 1, 3), 7.0)
    x, out = (each.contiguous(memory_format=torch.channels_last) for each in (x, out))
    work = cuda.Convolution(x, cuda.pack(weight, 1), bias, Form(), out, ("relu", 0))
    with emulated_driver():
        if fused_with_the_chain:
            work.launch().run()
        else:
            y = cuda.convolve(x, weight, bias, Form())
            assert on_gpu.run("relu", [y], (), out, tensors.by_processor)
    with exact_kernels():
        by_the_cpu = torch.relu(F.conv2d(x, weight, bias))
        in_place = F.conv2d(x, weight, bias).relu_()
    for found in (out, by_the_cpu, in_place):
        assert found.signbit()[0, :, 0].tolist() == [[True] * 3, [False] * 3]
        assert not found.any()


def special(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random numbers, of which every third is at an end of the range, subnormal, a zero or no number."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    ends = torch.tensor(
        [torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 2.0**-149, -(2.0**-140), 3e38, -(2.0**-126)]
    )
    at = torch.randint(0, 3 * len(ends), shape, generator=generator)
    return torch.where(at < len(ends), ends[at.clamp(max=len(ends) - 1)], x)


@pytest.mark.parametrize("groups", [1, 20])
@pytest.mark.parametrize("target", TARGETS)
def test_numbers_of_every_kind(target: str, groups: int) -> None:
    """A product of single numbers, which no infinity spreads over; and chains of small ones."""
    for seed in range(3):
        x, weight = special((1, 20, 6, 12), seed), special((20, 20 // groups, 1, 1), seed + 9)
        if groups == 1:  # few inputs, so that not all sums are lost
            x, weight = x[:, :2], weight[:, :2]
        held_to_the_chain(target, x, weight, special((20,), seed + 5), Form(groups=groups))
    x, weight, bias, form = operands(CASES["3x3"])
    held_to_the_chain(target, x * 2.0**-70, weight * 2.0**-70, None, form)
    held_to_the_chain(target, x * 2.0**-100, weight, bias * 2.0**-100, form)


@pytest.mark.parametrize("channels", [1, 5, 16, 17])
@pytest.mark.parametrize("kernel", [cpu, cuda, elementwise])
def test_a_sum_too_small_is_a_zero_with_its_sign(channels: int, kernel) -> None:
    """Of minus nothing and a bias of -0 it is -0, so nothing may be added to it. Without a bias zero is
    added, which the emulation, the slow kernel and that for CUDA once left out."""
    x, weight = torch.full((1, channels, 1, 1), -(2.0**-100)), torch.full((2, channels, 1, 1), 2.0**-100)
    with emulated_driver():
        by_bias = kernel.convolve(x, kernel.pack(weight, 1), torch.tensor([-0.0, 0.0]), Form())
        without = kernel.convolve(x, kernel.pack(weight, 1), None, Form())
    assert by_bias.signbit().flatten().tolist() == [True, False]
    assert not without.signbit().any()
    same(by_bias, chain(x, weight, torch.tensor([-0.0, 0.0]), Form()))
    same(without, chain(x, weight, None, Form()))


pads = st.tuples(st.integers(-1, 3), st.integers(-1, 3))

drawn = given(st.sampled_from(TARGETS), layers(), st.tuples(pads, pads))


def form_of(layer, padding) -> Form:
    """With as much padding as there have to be samples."""
    x, weight, _, options = layer
    padding = tuple(
        (before, max(after, d * (k - 1) + 1 - n - before))
        for (before, after), d, k, n in zip(
            padding, options["dilation"], weight.shape[2:], x.shape[2:], strict=True
        )
    )
    return Form(options["stride"], options["dilation"], options["groups"], padding)


@pytest.mark.parametrize("target", TARGETS)
@tries(67, suppress_health_check=[HealthCheck.too_slow])
@given(layers(), st.tuples(pads, pads))
def test_two_hundred_random_layers(target, layer, padding) -> None:
    held_to_the_chain(target, *layer[:3], form_of(layer, padding))


few = given(
    st.sampled_from(TARGETS),
    st.integers(1, cuda.FEW),
    st.sampled_from([1, 4, 9, 16, 20, 48, 70, 96, 130]),
    *[st.tuples(st.integers(1, 4), st.integers(1, 4))] * 2,
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.sampled_from([1, 7, 17, 40])),
    st.tuples(pads, pads),
    st.integers(0, 99),
)


@tries(25, suppress_health_check=[HealthCheck.too_slow])
@few
def test_random_layers_of_few_inputs(target, inputs, outputs, kernel, stride, size, padding, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, *size = size
    x = torch.randn(
        images, inputs, *(n + k - 1 for n, k in zip(size, kernel, strict=True)), generator=generator
    )
    weight, bias = torch.randn(outputs, inputs, *kernel, generator=generator), torch.randn(outputs)
    form = form_of((x, weight, bias, {"stride": stride, "dilation": (1, 1), "groups": 1}), padding)
    held_to_the_chain(target, x.contiguous(memory_format=torch.channels_last), weight, bias, form)


@pytest.mark.parametrize("target", TARGETS)
def test_a_row_of_few_inputs_with_gaps(target) -> None:
    """The last vector of a row's samples reaches beyond all rows: what it brings along is not used."""
    x, weight = torch.randn(1, 1, 1, 3), torch.randn(1, 1, 1, 3)
    form = form_of((x, weight, None, {"stride": (4, 4), "dilation": (1, 1), "groups": 1}), ((0, 0), (0, 0)))
    held_to_the_chain(target, x.contiguous(memory_format=torch.channels_last), weight, None, form)


@tries(100)
@drawn
def test_what_is_launched_is_the_layer(target, layer, padding) -> None:
    """The bytes that a kernel is given, read without its code."""
    x, weight, bias, _ = layer
    form = form_of(layer, padding)
    packed = cuda.pack(weight, form.groups)
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous(memory_format=torch.channels_last)
    with emulated_driver(target, interpret=False) as driver:
        found = cuda.convolve(x, packed, bias, form)
    (launch,) = driver.launches
    same(launch.weight, weight)
    assert (launch.bias is None) == (bias is None)
    same(launch.x, x)
    blocks = launch.shape.pixels * weight.shape[0] / (launch.grid[0] * launch.grid[1])
    assert 0 < blocks <= math.prod(launch.block)
    same(found, cpu.convolve(x, weight, bias, form))


def test_every_kind_of_layer_passes_its_trial() -> None:
    with emulated_driver():
        for name in ("3x3", "dilation 2x3, stride 2x1", "three groups of 5", "depthwise"):
            x, weight, _, form = operands(CASES[name])
            assert trial.fault(cuda, trial.Layer.of(x, weight.shape, form)) == ""


@pytest.mark.usefixtures("_untried")
def test_launches_of_what_is_made_of_chains(monkeypatch) -> None:
    """Padding costs no launch of its own, and a transposed convolution one for each of its phases."""
    monkeypatch.setitem(trial.OWN, "cpu", cuda)
    monkeypatch.setattr(trial, "choose", lambda layer: (cuda, None))
    x, weight, bias = torch.randn(1, 4, 7, 9), torch.randn(4, 96, 5, 5), torch.randn(96)
    a, b = torch.randn(19, 37), torch.randn(37, 70)
    with emulated_driver() as driver, exact_kernels():
        found = F.conv_transpose2d(x, weight, bias, stride=2, padding=2, output_padding=1)
        assert len(driver.launches) == 4
        same(found, transposed(x, weight, bias, (2, 2), (2, 2), (1, 1), (1, 1), 1))
        narrow = F.conv_transpose2d(x, weight[:, :3], bias[:3], stride=2, padding=2, output_padding=1)
        assert len(driver.launches) == 5  # all phases together
        same(narrow, found[:, :3])
        padded = F.conv2d(x, weight.transpose(0, 1), bias, padding=2)
        same(padded, chain(x, weight.transpose(0, 1), bias, Form(padding=((2, 2), (2, 2)))))
        product_of_matrices = a @ b
        assert len(driver.launches) == 7
    with exact_kernels():
        monkeypatch.setitem(trial.OWN, "cpu", cpu)
        monkeypatch.setattr(trial, "choose", lambda layer: (cpu, None))
        same(product_of_matrices, a @ b)


def phases(
    *shape: int, edit: Callable[[str], str] = str, target: str = "compute_90"
) -> tuple[Tensor, Tensor]:
    """A transposed convolution by a kernel of that shape, in one launch, and by the emulation."""
    x, weight, bias = torch.randn(2, shape[0], 5, 7), torch.randn(shape), torch.randn(shape[1])
    x = x.contiguous(memory_format=torch.channels_last)
    works: list[cuda.Convolution] = []
    with pytest.MonkeyPatch.context() as patch, emulated_driver(target, edit=edit) as driver:
        patch.setitem(trial.OWN, "cpu", cuda)
        patch.setattr(trial, "choose", lambda layer: (cuda, None))
        with exact_kernels(), noting(works.append):
            found = F.conv_transpose2d(x, weight, bias, stride=2, padding=2, output_padding=1)
        found.fill_(7)
        driver.launches.clear()
        assert cuda.go_together(works)
        cuda.Together(tuple(works)).launch().run()
    (launch,) = driver.launches
    assert len(launch.parts) == 4
    return found, transposed(x, weight, bias, (2, 2), (2, 2), (1, 1), (1, 1), 1)


@pytest.mark.parametrize(
    ("target", "shape"),
    [*product(TARGETS, [(20, 96, 5, 5)]), ("compute_90", (3, 130, 4, 3)), ("compute_90", (8, 40, 5, 3))],
)
def test_interpreted_phases_in_one_launch_are_the_chains(target: str, shape: tuple[int, ...]) -> None:
    same(*phases(*shape, target=target))


def test_a_launch_of_phases_that_mistakes_them_is_noticed() -> None:
    try:
        found, expected = phases(4, 96, 5, 5, edit=lambda ptx: ptx.replace("%ctaid.y", "%ctaid.x"))
    except (PtxError, AssertionError):
        return
    assert not torch.equal(bits(found), bits(expected))


def test_a_thread_that_never_used_the_gpu_can_launch() -> None:
    x, weight, bias, form = operands(CASES["2x2"])
    found = []
    with emulated_driver() as driver:
        here = cuda.convolve(x, weight, bias, form)
        other = threading.Thread(target=lambda: found.append(cuda.convolve(x, weight, bias, form)))
        other.start()
        other.join()
    assert len(driver.threads) == 2
    same(found[0], here)


@pytest.mark.parametrize(("most", "rows"), [(40, 15), (100, 15), (4, 3), (1, 3)])
def test_a_map_of_too_many_pixels_is_launched_in_parts(monkeypatch, most: int, rows: int) -> None:
    """One of a single row, too, which it once tried to halve by rows without end."""
    x, weight, bias, _ = operands(Case(3, 5, (3, 3), (2, 1), images=3))
    form = Form((2, 1), padding=((2, 1), (0, 3)) if rows > 3 else ((0, 0), (1, 2)))
    x = F.pad(x, (0, 0, 0, 9))[:, :, :rows]
    monkeypatch.setattr(cuda, "MOST_PIXELS", most)
    with emulated_driver() as driver:
        found = cuda.convolve(x, weight, bias, form)
    assert len(driver.launches) > 1
    assert all(launch.shape.pixels <= most for launch in driver.launches)
    same(found, chain(x, weight, bias, form))


# what is compiled


def arithmetic(ptx: str) -> set[str]:
    return set(
        re.findall(r"\b(?:add|sub|mul|mad|fma|div|rcp|sqrt|cvt)\.(?:[a-z0-9]+\.)*f(?:16|32|64)\S*", ptx)
    )


def only_what_is_written(target: str, name: str) -> None:
    """One rounding each, to nearest; nothing is flushed, nothing fused, and nothing in slow memory."""
    kind, depth = ("f64", 8) if "double" in name else ("f32", 16)
    ptx = nvrtc.compile_kernel(cuda.source(), name, target).code.decode()
    assert arithmetic(ptx) == {f"fma.rn.{kind}", f"add.rn.{kind}"} | (
        {"mul.rn.f32"} if name == SQUARING else set()
    )
    assert ".ftz" not in ptx
    assert ".local" not in ptx
    if not name.startswith("depthwise"):  # of tiles a whole chunk, and one step of a rest
        times = depth + 1 if name.startswith("tiled") else 1
        assert len(re.findall(rf"\bfma\.rn\.{kind}", ptx)) == KERNELS[name] * times


@pytest.mark.parametrize("name", KERNELS)
def test_compiled_it_is_the_multiply_adds_that_are_written(name: str) -> None:
    only_what_is_written("compute_90", name)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), product(("compute_80", "compute_100"), KERNELS))
def test_compiled_for_other_generations_it_is_as_well(target: str, name: str) -> None:
    only_what_is_written(target, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_no_register_is_spilled(name: str, target: str) -> None:
    log = nvrtc.compile_kernel(cuda.source(), name, target, ("--ptxas-options=-v",)).log
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log


# whether the interpreter would notice

MULTIPLY = re.compile(r"fma\.rn\.f32 \t(%f\d+), (%f\d+), (%f\d+), (%f\d+);")


def two_multiply_adds_the_other_way_round(ptx: str) -> str:
    """Of one chain: its second step first."""
    first = next(each for each in MULTIPLY.finditer(ptx) if each[1] != each[4])
    second = next(each for each in MULTIPLY.finditer(ptx) if each[4] == first[1])
    one = f"fma.rn.f32 \t{first[1]}, {second[2]}, {second[3]}, {first[4]};"
    other = f"fma.rn.f32 \t{second[1]}, {first[2]}, {first[3]}, {second[4]};"
    between = ptx[first.end() : second.start()]
    # what the second one reads has to be there
    return ptx[: first.start()] + between + one + other + ptx[second.end() :]


def nth(pattern: str, by: str, n: int) -> Callable[[str], str]:
    def edit(ptx: str) -> str:
        at = list(re.finditer(pattern, ptx))[n]
        return ptx[: at.start()] + at.expand(by) + ptx[at.end() :]

    return edit


MUTATIONS: dict[str, Callable[[str], str]] = {
    "the barrier after the table of pixels": nth(r"bar\.sync \t0;", "", 0),
    "the barrier of a step": nth(r"bar\.sync \t0;", "", 1),
    "the wait for copies": nth(r"cp\.async\.wait_all;", "", 0),
    "to zero": nth(r"fma\.rn\.f32", "fma.rz.f32", 700),
    "small numbers flushed": nth(r"fma\.rn\.f32", "fma.rn.ftz.f32", 3),
    "order": two_multiply_adds_the_other_way_round,
    "a sample of another pixel": nth(r"(ld\.shared\.v4\.f32 \t.*\[%rd\d+)\+640\]", r"\1+1280]", 0),
    "a tap of another channel": nth(
        r"fma\.rn\.f32 \t(%f\d+), (%f\d+), (%f\d+)", r"fma.rn.f32 \t\1, \2, \2", 9
    ),
    "another output": nth(
        r"fma\.rn\.f32 \t(%f\d+), (%f\d+), (%f\d+), %f\d+", r"fma.rn.f32 \t\1, \2, \3, \2", 70
    ),
    "no bias": nth(r"add\.rn\.f32 \t(%f\d+), (%f\d+), (%f\d+)", r"add.rn.f32 \t\1, \2, \2", 5),
    "a copy that is not made": nth(r"setp\.eq\.u32 %none, (%r\d+), 0", r"setp.ne.u32 %none, \1, 0", 2),
    "a copy of less": nth(r"(cp\.async\.cg.*), 16,", r"\1, 8,", 1),
    "a bound": nth(r"setp\.lt\.u32(.*\s+and\.pred)", r"setp.le.u32\1", 4),
    "a stride": nth(r"shl\.b64 \t(%rd\d+), (%rd\d+), 2", r"shl.b64 \t\1, \2, 3", 2),
    "the end of the depth": nth(r"setp\.lt\.s32", "setp.le.s32", -1),
    "samples where no vector begins": nth(r"(ld\.shared\.v4\.f32 \t.*\[%rd\d+)\+640\]", r"\1+644]", 0),
    "outputs where no vector begins": nth(r"(st\.global\.v4\.f32 \t\[%rd\d+)\]", r"\1+4]", 0),
    "a vector of less": nth(r"st\.global\.v4\.f32", "st.global.v2.f32", 0),
}

TO_FEW_OUTPUTS: dict[str, Callable[[str], str]] = {
    "the barrier of a step": MUTATIONS["the barrier of a step"],
    "the wait for copies": MUTATIONS["the wait for copies"],
    "order": two_multiply_adds_the_other_way_round,
    "a tap less": nth(r"setp\.gt\.u32 \t(%p\d+), (%r\d+), 47", r"setp.gt.u32 \t\1, \2, 46", 0),
    "a tap more": nth(r"setp\.gt\.u32 \t(%p\d+), (%r\d+), 47", r"setp.gt.u32 \t\1, \2, 48", 1),
    "a sample of another pixel": nth(r"(ld\.shared\.v4\.u32 \t.*\[%rd\d+)\+256\]", r"\1+512]", 0),
    "an output less": nth(r"setp\.lt\.s32 \t(%p\d+), (%r\d+), 12;", r"setp.lt.s32 \t\1, \2, 13;", 0),
}
"""Where a block's threads are more than its vectors of taps, and one has all outputs of a pixel."""


OF_FEW_INPUTS: dict[str, Callable[[str], str]] = {
    "the barrier": MUTATIONS["the barrier after the table of pixels"],
    "the wait for copies": MUTATIONS["the wait for copies"],
    "order": two_multiply_adds_the_other_way_round,
    "a sample of another pixel": nth(r"(ld\.shared\.f32 \t.*\[%rd\d+)\+216\]", r"\1+220]", 0),
    "a tap of another channel": nth(r"(ld\.shared\.v4\.f32 \t.*\[%rd\d+)\+320\]", r"\1+256]", 0),
    "a number beside the image": nth(r"setp\.lt\.u32", "setp.le.u32", 1),
    "a line less": nth(r"setp\.lt\.u32 \t(%p\d+), (%r\d+), 9;", r"setp.lt.u32 \t\1, \2, 8;", 0),
    "a pixel beside the outputs": nth(r"setp\.ge\.u32", "setp.gt.u32", 0),
    "no bias": nth(r"add\.rn\.f32 \t(%f\d+), (%f\d+), (%f\d+)", r"add.rn.f32 \t\1, \2, \2", 5),
}

OF_A_POINT: dict[str, Callable[[str], str]] = {
    "the barrier after the table of pixels": MUTATIONS["the barrier after the table of pixels"],
    "the barrier of a step": MUTATIONS["the barrier of a step"],
    "the wait for copies": MUTATIONS["the wait for copies"],
    "order": two_multiply_adds_the_other_way_round,
    "a copy that is not made": MUTATIONS["a copy that is not made"],
    "a sample of another pixel": MUTATIONS["a sample of another pixel"],
}

OF_SQUARES: dict[str, Callable[[str], str]] = {
    "the barrier of a step": MUTATIONS["the barrier of a step"],
    "the wait for copies": MUTATIONS["the wait for copies"],
    "a sample that is not squared": nth(r"mul\.rn\.f32 \t(%f\d+), (%f\d+), (%f\d+)", r"mov.b32 \t\1, \2", 5),
    "one squared where another was": nth(r"(st\.shared\.v4\.f32 \t\[%rd\d+)\+2560\]", r"\1+5120]", 0),
    "order": two_multiply_adds_the_other_way_round,
}

DEEP = Case(20, 64, (1, 2), images=4, x="channels last")
"""Its depth is whole chunks, and a rest."""

LAYERS_TO_BREAK = {
    "deep": (DEEP, MUTATIONS),
    "to few outputs": (DEEP._replace(outputs=12), TO_FEW_OUTPUTS),
    "of few inputs": (Case(3, 64, (2, 2), images=2, x="channels last"), OF_FEW_INPUTS),
    "of a point": (Case(20, 64, (1, 1), images=4, x="channels last"), OF_A_POINT),
    "of squares": (Case(20, 128, (1, 1), images=4, x="channels last"), OF_SQUARES),
}


def mutated(edit: Callable[[str], str], case: Case, squares: bool = False) -> bool:
    """Whether it is noticed that the program is another. Where all is minus nothing, one step too many is
    seen."""
    x, weight, bias, form = operands(case)
    if case.kernel != (1, 1):
        form = form._replace(padding=((1, 1), (1, 1)))
    changed = []

    def counted(ptx: str) -> str:
        changed.append(edit(ptx) != ptx)
        return edit(ptx)

    def convolved(x: Tensor, weight: Tensor, bias: Tensor, form: Form) -> Tensor:
        packed = cuda.pack(weight, form.groups)
        out = form.result(x, packed.shape, None)
        cuda.Convolution(x, packed, bias, form, out, squares=squares).launch().run()
        return out

    try:
        with emulated_driver(edit=counted):
            found = convolved(x, weight, bias, form)
            small = torch.full_like(x, -(2.0**-100)), torch.full_like(weight, 2.0**-100)
            nothing = convolved(*small, torch.full_like(bias, -0.0), Form())
    except (PtxError, AssertionError):
        noticed = True
    else:
        noticed = not torch.equal(bits(found), bits(chain(x * x if squares else x, weight, bias, form)))
        noticed |= not squares and not nothing.signbit().all()
    assert changed == [edit is not unchanged]
    return noticed


def unchanged(ptx: str) -> str:
    return ptx


@pytest.mark.parametrize(
    ("layer", "what"), [(layer, what) for layer, (_, edits) in LAYERS_TO_BREAK.items() for what in edits]
)
def test_another_program_is_noticed(layer: str, what: str) -> None:
    case, edits = LAYERS_TO_BREAK[layer]
    assert mutated(edits[what], case, squares=edits is OF_SQUARES)


@pytest.mark.parametrize("layer", LAYERS_TO_BREAK)
def test_the_same_program_is_not(layer: str) -> None:
    case, edits = LAYERS_TO_BREAK[layer]
    assert not mutated(unchanged, case, squares=edits is OF_SQUARES)


@pytest.mark.parametrize("which", ["samples", "outputs"])
def test_a_map_that_is_no_vectors_is_noticed_where_vectors_are_taken(monkeypatch, which: str) -> None:
    """Every address lies in the map, and a GPU would end the program all the same."""
    monkeypatch.setattr(cuda, "_by_vectors", lambda x, channels: True)
    maps = torch.zeros(2, 1, 3, 5, 68).permute(0, 1, 4, 2, 3)
    x, out = (
        each[:, 1:65] if which == name else each[:, :64]
        for name, each in zip(("samples", "outputs"), maps, strict=True)
    )
    with emulated_driver(), pytest.raises(PtxError, match="not aligned"):
        cuda.convolve(x, torch.zeros(64, 64, 1, 1), None, Form(), out)
