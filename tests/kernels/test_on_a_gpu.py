"""The script of `make gpu`, where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import nvrtc

SCRIPT = Path(__file__).parents[2] / "scripts" / "on_a_gpu.py"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_goes_as_far_as_it_can_and_says_so(tmp_path: Path) -> None:
    try:
        nvrtc._library()
    except ExactnessError as error:
        pytest.skip(f"needs NVRTC: {error}")
    out = tmp_path / "found.txt"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    first, *others, last = out.read_text().strip().splitlines()
    assert first == "compiled"
    assert [line.split(":")[0] for line in others] == [
        f"  16 kernels for {t}" for t in ("sm_80", "sm_90", "sm_100")
    ]
    assert last.startswith("There is no GPU here")
    assert not any(word in done.stdout for word in ("same bits", "TFLOP", "FAILED"))
