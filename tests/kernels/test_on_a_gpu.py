"""The script of `make gpu`, where there is no GPU."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from support.convolutions import CASES
from support.emulated_gpu import can_emulate, emulated_gpu
from support.small_models import small_model

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


@pytest.fixture
def script(monkeypatch) -> Any:
    """The module, for layers and models that take seconds on an emulated GPU, which has no clock."""
    if torch.cuda.is_available() or not can_emulate():
        pytest.skip("a GPU cannot, or need not, be emulated")
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = spec_from_file_location("on_a_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    found: Any = module_from_spec(spec)
    spec.loader.exec_module(found)
    monkeypatch.setattr(found.checkpoint, "names", list)
    model = small_model("mbt2018-mean")
    monkeypatch.setattr(found.checkpoint, "seeded_model", lambda known, how=None: copy.deepcopy(model))
    for name, value in {
        "CASES": {"3x3": CASES["3x3"]},
        "DEEP": {},
        "LAYERS": {"small": (8, 8, 3, 1, 1, 16)},
        "FIRST": ("mbt2018-mean",),
        "SIZES": {"small": (64, 256)},
        "seconds": lambda run: float(run() is not None),
    }.items():
        monkeypatch.setattr(found, name, value)
    return found


def test_on_an_emulated_gpu_its_parts_say_what_they_are_to_say(monkeypatch, script) -> None:
    with emulated_gpu(monkeypatch):
        chains, model, throughput, stages = (
            list(part)
            for part in (script.chains(), script._model("mbt2018-mean"), script.throughput(), script.stages())
        )
    assert chains == ["same bits: 3x3"]
    assert model == [
        "same bits, same strings, decoded across: same bits: mbt2018-mean",
        "same bits, in tiles of 32: mbt2018-mean",
        "same bits, in stream of 32: mbt2018-mean",
    ]
    assert throughput == ["small: float32 0.00, TF32 0.00, ours 0.00 TFLOP/s"]
    assert len(stages) == 8
    for stage, lines in zip(("g_a", "g_s"), (stages[:4], stages[4:]), strict=True):
        ways = ["stock", "exact, whole", "exact, tiles", "exact, stream"]
        for way, line in zip(ways, lines, strict=True):
            assert line.startswith(f"mbt2018-mean {stage}, small, {way}: ")
            assert line.endswith(" MiB" if way == "stock" else ", same bits")
