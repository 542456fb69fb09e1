"""Tables of entropy models are those of the arithmetic, whichever of PyTorch's kernels the machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, sys, torch
from overlap_tool import load_checkpoint
model = load_checkpoint(sys.argv[1]).model
digest = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    if name.endswith(("_quantized_cdf", "_offset", "_cdf_length", "scale_table")):
        digest.update(value.contiguous().numpy().tobytes())
print(torch.backends.cpu.get_cpu_capability(), digest.hexdigest())
"""


def tables(model: str, capability: str) -> tuple[str, str]:
    """What PyTorch's kernels are made for, in a process of its own, and a digest of the model's tables."""
    there = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, model]
    found = subprocess.run(command, env=there, stdout=subprocess.PIPE, check=True)
    kind, digest = found.stdout.decode().split()
    return kind, digest


@pytest.mark.slow
def test_a_checkpoint_without_tables_gets_the_same_ones() -> None:
    (plain, first), (vectors, second) = (tables("zoo:mbt2018-mean", kind) for kind in ("default", "avx2"))
    if plain == vectors:
        pytest.skip("this processor has one kind of kernels")
    assert first == second
