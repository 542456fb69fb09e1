"""`selftest`: the published digests on this machine, and what it says of arithmetic that has other bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import llvmlite.binding as llvm
import pytest
import torch
from support.threads import on_threads

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.kernels import codegen, cpu
from overlap_tool.kernels.arithmetic import tensors, vectors
from overlap_tool.kernels.arithmetic.vectors import Hashed, digest_of_maps
from overlap_tool.rules.exactness import OPS
from overlap_tool.verification import operations, published, witnesses

MODELS = vectors.published_digests("models")
FAST = ("mbt2018-mean", "elic2022-official")
NOTHING_ROUNDED = {
    *("abs", "ceil", "copysign", "floor", "neg", "relu", "sgn", "sign", "signbit", "trunc", "index_put"),
    *(f"upsample_nearest{axes}d" for axes in (1, 2, 3)),
    *(f"_upsample_nearest_exact{axes}d" for axes in (1, 2, 3)),
}
SAME_FUNCTION = {"cudnn_batch_norm", "_native_batch_norm_legit"}
"""As `native_batch_norm`: another name for it, of a device or of training."""


def test_every_op_that_rounds_has_a_digest() -> None:
    unrounded = ("moves", "compares", "draws", "of ops")
    known = {name for name, (how, _) in OPS.items() if how not in unrounded}
    assert set(vectors.published_digests("operations")) == known - NOTHING_ROUNDED - SAME_FUNCTION
    assert set(operations.arguments(torch.float32)) == set(vectors.published_digests("operations"))


def test_every_architecture_has_a_digest() -> None:
    assert set(MODELS) == set(checkpoint.names())


def test_numbers_are_the_hash_that_the_page_describes() -> None:
    def hashed(i: int) -> int:
        x = i
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    numbers = Hashed()
    assert numbers.integers((2, 2)).flatten().tolist() == [hashed(i) for i in range(4)]
    assert numbers.uniform((1,)).item() == (hashed(4) >> 8) / 2**24


def test_every_op_gives_the_published_bits() -> None:
    """Functions of one number are held to theirs in `test_arithmetic`."""
    assert on_threads(2, operations.digests) == vectors.published_digests("operations")


@pytest.mark.parametrize("name", FAST)
def test_a_narrow_model_gives_the_published_bits(name: str) -> None:
    model = witnesses.narrow_model(checkpoint.find(name))
    assert witnesses.model_digests(model, witnesses.image()) == MODELS[name]


@pytest.mark.slow
@pytest.mark.usefixtures("_untried")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_all_models_give_them_by_vectors_of_any_size(width: int, threads: int, monkeypatch) -> None:
    processor = codegen.Processor(width, 32 if width == 64 else 16)
    for module in (codegen, cpu):
        monkeypatch.setattr(module, "processor", lambda: processor)
    monkeypatch.setattr(tensors, "_machine_code", cache(tensors._machine_code.__wrapped__))
    found = on_threads(threads, lambda: overlap_tool.selftest(models=True))
    assert (found.of("failed"), found.of("skipped")) == ((), ())


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_whichever_kernels_pytorch_has(capability: str) -> None:
    """In a process of its own. PyTorch takes what it is told, even what the processor does not have."""
    if not llvm.get_host_cpu_features().get({"avx512": "avx512f"}.get(capability, capability), True):
        pytest.skip(f"this processor has no {capability}")
    there = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-W", "ignore", "-m", "overlap_tool", "selftest", "--models"]
    done = subprocess.run(command, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_held_to_them_too(monkeypatch) -> None:
    monkeypatch.setattr(published, "FUNCTIONS", ("sqrt", "erf"))
    some = {"models": {name: MODELS[name] for name in FAST[:1]}}
    monkeypatch.setattr(
        published, "published_digests", lambda what: some.get(what) or vectors.published_digests(what)
    )
    found = overlap_tool.selftest(models=True, device="cuda")
    assert (found.of("failed"), found.of("skipped")) == ((), ())
    assert found.machine.device == torch.cuda.get_device_name()
    assert [held.name for held in found.vectors if held.kind == "models"] == [*FAST[:1]]


def test_a_function_with_other_bits_is_named(run, tmp_path, monkeypatch) -> None:
    right = tensors.compute

    def wrong(name: str, x: torch.Tensor) -> torch.Tensor:
        found = right(name, x)
        return found.nextafter(found + 1) if name == "erf" else found

    others = {**vectors.published_digests("operations"), "erf": {"float32": "0"}}
    monkeypatch.setattr(published, "compute", wrong)
    monkeypatch.setattr(operations, "digests", lambda device: others)
    code, out, _ = run("selftest", "--report", tmp_path / "found.json")
    assert code == 1
    assert "DIFFERS: 2 do not give the bits of arithmetic 1" in out
    written = json.loads((tmp_path / "found.json").read_text())
    failed = [(v["kind"], v["name"], v["message"]) for v in written["vectors"] if v["status"] == "failed"]
    assert failed == [("functions", "erf", ""), ("operations", "erf", "float32, float64")]
    assert written["verdict"] == "differs"


def test_a_report_that_cannot_be_written_is_bad_input(run, tmp_path) -> None:
    code, _, err = run("selftest", "--report", tmp_path / "nowhere" / "found.json")
    assert code == 2
    assert "mkdir" in err


def test_a_model_whose_plugin_is_missing_is_skipped(monkeypatch) -> None:
    monkeypatch.setattr(published, "published_digests", lambda what: {"nobody's": {}})
    (found,) = published._models(torch.device("cpu"), lambda doing: None)
    assert (found.status, found.message) == ("skipped", "the plugin that knows it is not installed")


def test_zeros_have_no_sign_in_maps() -> None:
    assert digest_of_maps(torch.tensor([-0.0, 1])) == digest_of_maps(torch.tensor([0.0, 1]))
    assert digest_of_maps(torch.tensor([1.0])) != digest_of_maps(torch.tensor([1.0 + 2**-23]))
