"""Programs of the arithmetic on CUDA where there is no GPU: their PTX gives the processor's bits."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
import torch
from support.emulated_driver import emulated_driver
from torch import Tensor

from overlap_tool.errors import ExactnessError, SlowKernelWarning
from overlap_tool.kernels import nvrtc
from overlap_tool.kernels.arithmetic import on_gpu, tensors, vectors
from overlap_tool.kernels.arithmetic.functions import HALFWAY
from overlap_tool.kernels.arithmetic.in_cuda import kernel_over
from overlap_tool.kernels.arithmetic.programs import PROGRAMS
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS, published_digests

try:
    nvrtc._library()
except ExactnessError as error:
    pytest.skip(f"needs NVRTC: {error}", allow_module_level=True)

TAKES = {"pow": (2, 0), "power": (1, 1), "power_of": (1, 1), "softplus": (1, 2), "elu": (1, 3)}
"""Tensors and numbers; of others one tensor."""

ROUNDED = r"(?:add|sub|mul|div|fma|sqrt|rcp)\.rn\.f(?:32|64)|cvt\.rn\.f32\.f64"
EXACT = r"(?:abs|neg|copysign|max|min|mov)\.f(?:32|64)|cvt\.f64\.f32|(?:setp\.\w+|selp)\.f(?:32|64)"
MOVED = r"(?:ld\.param|ld\.global|ld\.global\.nc|st\.global)\.f(?:32|64)"


def numbers(dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Of all sizes, near them, and at the ends."""
    rng = np.random.default_rng(seed)
    most = 120 if dtype == torch.float32 else 900
    sizes = (
        rng.uniform(-10, 10, 150),
        *(rng.choice([-1, 1], 90) * 2.0 ** rng.uniform(-m, m, 90) for m in (20, most)),
    )
    ends = [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38, 88.8, -104, 0.5, 2]
    return torch.from_numpy(np.concatenate([*sizes, ends])).to(dtype)


def bits(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), torch.nan, x).view(torch.int32 if x.itemsize == 4 else torch.int64)


def held_to_the_processor(target: str, name: str, xs: list[Tensor], given: tuple[float, ...] = ()) -> None:
    found, expected = torch.full_like(xs[0], 7), torch.empty_like(xs[0])
    with emulated_driver(target) as driver:
        assert on_gpu.run(name, xs, given, found, tensors.by_processor)
    assert driver.launches[-1].numbers == given
    tensors.by_processor(name, xs, given, expected)
    wrong = bits(found) != bits(expected)
    assert not wrong.any(), f"{int(wrong.sum())} of {len(wrong)}: {xs[0][wrong][:3]}"


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch) -> None:
    monkeypatch.setattr(on_gpu, "TRIED", 64)


def a_program(target: str, name: str, dtype: torch.dtype) -> None:
    inputs, given = TAKES.get(name, (1, 0))
    held_to_the_processor(
        target, name, [numbers(dtype, seed) for seed in range(inputs)], (1.5, 20.0, 0.75)[:given]
    )


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in ("power", "power_of")])
def test_interpreted_every_bit_is_the_processors(name: str) -> None:
    a_program("compute_90", name, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("target", "name"), [*product(("compute_80", "compute_90", "compute_100"), PROGRAMS)]
)
def test_interpreted_they_are_on_all_targets(target: str, name: str, dtype: torch.dtype) -> None:
    a_program(target, name, dtype)


QUICK = ("sqrt", "exp", "tanh")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        pytest.param(*each, marks=() if each[0] == "compute_90" and each[1] in QUICK else pytest.mark.slow)
        for each in product(("compute_80", "compute_90"), FUNCTIONS)
    ],
)
def test_interpreted_a_million_inputs_have_the_published_digest(target: str, name: str) -> None:
    x = vectors.sample()
    found = torch.empty_like(x)
    with emulated_driver(target):
        assert on_gpu.run(name, [x], (), found, tensors.by_processor)
    assert vectors.digest(found) == published_digests("functions")[name]["sample"]


@pytest.mark.parametrize("name", HALFWAY)
def test_what_is_hardest_to_round_is_rounded_right(name: str) -> None:
    hardest = published_digests("functions")[name]["hardest"]
    x, expected = (
        torch.tensor([int(one, 16) for one in ones]).to(torch.int32).view(torch.float32)
        for ones in (hardest, hardest.values())
    )
    found = torch.empty_like(x)
    with emulated_driver():
        assert on_gpu.run(name, [x], (), found, tensors.by_processor)
    assert torch.equal(bits(found), bits(expected))
    looked_up = torch.tensor([float.fromhex(given) for given, _ in HALFWAY[name]])
    held_to_the_processor("compute_90", name, [looked_up])


def only_what_is_written(name: str, dtype: torch.dtype) -> None:
    entry = on_gpu.kernel_name(name, dtype)
    source = kernel_over(entry, PROGRAMS[name], dtype == torch.float32, *TAKES.get(name, (1, 0)))
    ptx = nvrtc.compile_kernel(source, entry, "compute_90").code.decode()
    found = set(re.findall(r"\b[a-z]+(?:\.\w+)*\.f(?:16|32|64)(?:\.\w+)*", ptx))
    assert {each for each in found if not re.fullmatch(f"{ROUNDED}|{EXACT}|{MOVED}", each)} <= {".reg.f32"}
    assert ".ftz" not in ptx
    assert ".local" not in ptx
    assert ".approx" not in ptx


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_every_operation_rounds_to_nearest(name: str, dtype: torch.dtype) -> None:
    only_what_is_written(name, dtype)


def test_in_place_and_at_any_length() -> None:
    with emulated_driver():
        for count in (1, 255, 256, 257):
            x = numbers(torch.float32)[:1].repeat(count) + torch.arange(count) / 64
            expected = torch.sigmoid(x)
            tensors.by_processor("sigmoid", [x.clone()], (), expected)
            assert on_gpu.run("sigmoid", [x], (), x, tensors.by_processor)
            assert torch.equal(bits(x), bits(expected))


def test_a_program_whose_kernel_is_broken_is_the_processors() -> None:
    x = numbers(torch.float32)
    found = torch.empty_like(x)
    one = "0d3FF0000000000000"
    broken = {"to zero": ("fma.rn.f64", "fma.rz.f64"), "another": (one, "0d3FF0001000000000")}
    for what, (right, wrong) in broken.items():
        with (
            emulated_driver(edit=lambda ptx, pair=(right, wrong): ptx.replace(*pair)),
            pytest.warns(SlowKernelWarning, match=r"exp of float32 on cpu: .*The processor computes it"),
        ):
            assert not on_gpu.run("exp", [x], (), found, tensors.by_processor), what


def test_all_programs_are_known_here() -> None:
    assert set(FUNCTIONS) < set(PROGRAMS)
    assert set(TAKES) < set(PROGRAMS)
