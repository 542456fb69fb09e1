"""The kernel for CUDA where there is no GPU: in Triton's interpreter, and as compiled code that is only read.

Whether the compiled kernel gives the bits of the chain is for `tests/test_cuda.py`, on a GPU. The interpreter
of Triton 3.9 rounds a fused multiply-add once, as a GPU does; there the bits are compared here, too. Those of
older ones round twice, and only say that the right samples meet the right weights.

Triton reads TRITON_INTERPRET when it is imported, so all cases run in one process of their own: this file.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.convolutions import CASES, LAYOUTS, Case, chain, operands

from overlap_tool.kernels import cuda, trial
from overlap_tool.kernels.form import Form


def interpret(case: Case) -> dict[str, object]:
    """In the interpreter: how far from a convolution in float64, and how many outputs are not the chain's."""
    x, weight, bias, form = operands(case)
    stride, dilation, groups = form
    doubles = (None if t is None else t.double() for t in (x, weight, bias))
    expected = F.conv2d(*doubles, stride=stride, dilation=dilation, groups=groups)
    out = None if case.out is None else LAYOUTS[case.out](torch.full_like(expected, 7, dtype=case.dtype))
    found = cuda.convolve(x, weight, bias, form, out)
    assert out is None or found is out
    return {
        "error": float((found - expected).abs().max()),
        "shape": found.shape == expected.shape,
        "not the chain": int((found != chain(x, weight, bias, form)).sum()),
    }


def rounds_once() -> bool:
    """Whether the interpreter's multiply-add is fused: (1 + a)(1 + a) - (1 + 2a) leaves a squared."""
    a = 2.0**-23
    x = torch.tensor([1, 1 + a]).view(1, 1, 1, 2)
    weight = torch.tensor([-(1 + 2 * a), 1 + a]).view(1, 1, 1, 2)
    return cuda.convolve(x, weight, None, Form()).item() == a * a


def trials() -> list[str]:
    """What is wrong with some layers."""
    cases = (CASES[name] for name in ("3x3", "dilation 2x3, stride 2x1", "three groups of 5"))
    return [
        trial.fault(cuda, trial.Layer.of(x, weight.shape, form))
        for x, weight, _, form in map(operands, cases)
    ]


def main() -> None:
    found = {name: interpret(case) for name, case in CASES.items()}
    print(json.dumps({"rounds once": rounds_once(), "trials": trials(), "cases": found}))


@pytest.fixture(scope="module")
def interpreted() -> dict:
    pytest.importorskip("triton")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_interpreted_it_is_a_convolution(interpreted: dict, name: str) -> None:
    found = interpreted["cases"][name]
    assert found["shape"]
    assert found["error"] < (1e-4 if CASES[name].dtype == torch.float32 else 1e-12)


def test_interpreted_every_bit_is_the_chains(interpreted: dict) -> None:
    if not interpreted["rounds once"]:
        pytest.skip("this interpreter rounds a multiply-add twice")
    assert interpreted["trials"] == ["", "", ""]
    assert [name for name, found in interpreted["cases"].items() if found["not the chain"]] == []


@pytest.mark.parametrize("number", ["fp32", "fp64"])
@pytest.mark.parametrize("across_groups", [False, True])
def test_compiled_it_is_multiply_adds_and_sums_of_one_rounding_each(number: str, across_groups: bool) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from overlap_tool.kernels.triton_chain import chain_kernel

    if "constexprs" not in inspect.signature(ASTSource).parameters:
        pytest.skip("this Triton describes a kernel in another way")
    constants = {
        "HAS_BIAS": True,
        "CHANNELS_LAST": True,
        "ACROSS_GROUPS": across_groups,
        "CHANNELS": 32,
    }
    signature = {
        parameter.name: "constexpr"
        if parameter.name in constants
        else f"*{number}"
        if parameter.name in ("x", "weight", "bias", "y")
        else parameter.annotation_type or "i32"
        for parameter in chain_kernel.params
    }
    compiled = triton.compile(
        ASTSource(chain_kernel, signature, constants),
        target=GPUTarget("cuda", 80, 32),
        options={"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False},
    )
    arithmetic = re.findall(r"\b(?:add|sub|mul|mad|fma|div)\.(?:[a-z]+\.)*f(?:32|64)", compiled.asm["ptx"])
    # .rn: to nearest, and not to be fused with anything; no .ftz, which would flush small numbers to zero
    kind = number.replace("fp", "f")
    assert set(arithmetic) == {f"fma.rn.{kind}", f"add.rn.{kind}"}


if __name__ == "__main__":
    main()
