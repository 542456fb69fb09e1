"""What there is to know of the kernels for CUDA, in twelve minutes on a machine with a GPU: `make gpu`.

Bits first, then speed, then memory. Every line is written to the file as soon as it is known, so that a run
that is cut short has said something. Where there is no GPU it says so, and has only compiled.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.convolutions import CASES, Case, chain, operands  # noqa: E402

import overlap_tool  # noqa: E402
from overlap_tool import checkpoint  # noqa: E402
from overlap_tool.kernels import cuda, fallbacks, nvrtc  # noqa: E402
from overlap_tool.kernels.arithmetic.tensors import compute  # noqa: E402
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS, digest, published_digests, sample  # noqa: E402
from overlap_tool.kernels.form import Form  # noqa: E402

NO_GPU = "There is no GPU here: nothing of what follows was run, and nothing is said of any."

DEEP = {
    "192 to 192, 5x5, stride 2": Case(192, 192, (5, 5), (2, 2), x="channels last"),
    "320 to 320, 3x3": Case(320, 320, (3, 3), x="channels last"),
    "96 depthwise, 11x11": Case(96, 96, (11, 11), groups=96, images=3, x="channels last"),
}

LAYERS = {
    "192 to 192, 5x5, stride 2, 256x256": (192, 192, 5, 2, 1, 256),
    "192 to 192, 5x5, stride 2, 64x64": (192, 192, 5, 2, 1, 64),
    "192 to 192, 1x1, 256x256": (192, 192, 1, 1, 1, 256),
    "128 to 128, 3x3, 256x256": (128, 128, 3, 1, 1, 256),
    "320 to 320, 3x3, 64x64": (320, 320, 3, 1, 1, 64),
    "3 to 192, 5x5, stride 2, 512x512": (3, 192, 5, 2, 1, 512),
    "192 to 12, 3x3, 256x256": (192, 12, 3, 1, 1, 256),
    "192 depthwise, 11x11, 128x128": (192, 192, 11, 1, 192, 128),
}
"""Inputs, outputs, kernel, stride, groups and size of the map."""


def compiled() -> Iterator[str]:
    """No GPU is needed for this."""
    tiles = *cuda.LARGE, *cuda.TILES.values()
    names = [cuda.tiled_name(tile, torch.float32, by) for tile in tiles for by in (True, False)]
    for target in ("sm_80", "sm_90", "sm_100"):
        start = time.perf_counter()
        size = sum(len(nvrtc.compile_kernel(cuda.source(), name, target).code) for name in names)
        yield f"{len(names)} kernels for {target}: {size} bytes in {time.perf_counter() - start:.1f} s"


def device() -> Iterator[str]:
    properties = torch.cuda.get_device_properties(0)
    yield f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    yield f"{properties.total_memory} bytes, capability {torch.cuda.get_device_capability()}"
    yield f"PyTorch {torch.__version__}"


def chains() -> Iterator[str]:
    for name, case in {**CASES, **DEEP}.items():
        x, weight, bias, form = operands(case)
        there = [None if t is None else t.cuda() for t in (x, weight, bias)]
        found = cuda.convolve(*there, form).cpu()
        yield f"{same(found, chain(x, weight, bias, form))}: {name}"


def functions() -> Iterator[str]:
    x, published = sample().cuda(), published_digests("functions")
    for name in FUNCTIONS:
        right = digest(compute(name, x).cpu()) == published[name]["sample"]
        yield f"{'same bits' if right else 'OTHER BITS'}: {name} of a million numbers"


def models() -> Iterator[str]:
    """Narrow ones: all that they return, and what they compress here and there."""
    for name in checkpoint.names():
        try:
            yield from _model(name)
        except Exception as error:  # the others are worth knowing
            yield f"FAILED: {name}: {type(error).__name__}: {error}"


def _model(name: str) -> Iterator[str]:
    known = checkpoint.find(name)
    here = checkpoint.seeded_model(known, known.small)
    x = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), overlap_tool.exact_kernels(), fallbacks() as slow:
        expected, strings = here(x)["x_hat"], here.compress(x)
        there = here.cuda()
        found, others = there(x.cuda())["x_hat"].cpu(), there.compress(x.cuda())
        decoded = there.decompress(strings["strings"], strings["shape"])["x_hat"].cpu()
        there.cpu()
        again = here.decompress(others["strings"], others["shape"])["x_hat"]
    text = "same strings" if others["strings"] == strings["strings"] else "OTHER STRINGS"
    yield f"{same(found, expected)}, {text}, decoded across: {same(decoded, again)}: {name}"
    yield from (f"SLOW: {each.layer}: {each.reason}" for each in slow)
    there.cuda()
    for schedule in ("tiles", "stream"):  # most tiles are played from what was recorded of others
        with torch.no_grad(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            tiled = overlap_tool.wrap(there, tile=32, schedule=schedule)(x.cuda())["x_hat"].cpu()
        yield f"{same(tiled, expected)}, in {schedule} of 32: {name}"
        slow_ones = (each for each in told if issubclass(each.category, overlap_tool.SlowKernelWarning))
        yield from (f"SLOW: {each.message}" for each in slow_ones)


def throughput() -> Iterator[str]:
    """By PyTorch's own kernels in float32 and TF32, and by ours, in TFLOP/s."""
    for name, (inputs, outputs, kernel, stride, groups, size) in LAYERS.items():
        like = torch.channels_last
        x = torch.randn(1, inputs, size, size, device="cuda").to(memory_format=like)
        weight = torch.randn(outputs, inputs // groups, kernel, kernel, device="cuda").to(memory_format=like)
        packed, form = cuda.pack(weight, groups), Form((stride, stride), groups=groups)
        work = 2e-12 * cuda.convolve(x, packed, None, form).numel() * weight[0].numel()
        theirs = partial(F.conv2d, x, weight, stride=stride, groups=groups)
        rates = []
        for tf32 in (False, True):
            torch.backends.cudnn.allow_tf32 = tf32
            rates.append(work / seconds(theirs))
        ours = work / seconds(partial(cuda.convolve, x, packed, None, form))
        yield f"{name}: float32 {rates[0]:.2f}, TF32 {rates[1]:.2f}, ours {ours:.2f} TFLOP/s"


def memory() -> Iterator[str]:
    """The most that the allocator gave for g_a of an image of 4K, at full width."""
    model = checkpoint.seeded_model(checkpoint.find("mbt2018")).cuda()
    x = torch.rand(1, 3, 2160, 3840, device="cuda")
    stages: dict[str, Callable[[], Tensor]] = {"stock, whole": lambda: model.g_a(x)}
    for schedule in ("tiles", "stream"):
        tiled = overlap_tool.wrap(model, tile=256, schedule=schedule)
        stages[f"exact, {schedule} of 256"] = lambda tiled=tiled: tiled.g_a(x)
    with torch.no_grad():
        for name, run in stages.items():
            run()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, start = torch.cuda.memory_allocated(), time.perf_counter()
            run()
            torch.cuda.synchronize()
            took, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated() - before
            yield f"mbt2018 g_a, 3840x2160, {name}: {took * 1e3:.0f} ms, {peak / 2**20:.0f} MiB more"


def same(found: Tensor, expected: Tensor) -> str:
    wrong = (
        (found.view(torch.int32) != expected.view(torch.int32))
        if found.dtype == torch.float32
        else (found != expected)
    )
    return f"OTHER BITS, {wrong.float().mean():.1%}" if wrong.any() else "same bits"


def seconds(run: Callable[[], object], rounds: int = 10) -> float:
    for _ in range(3):
        run()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(rounds):
        run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3 / rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "on-a-gpu.txt")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w") as file:

        def say(line: str) -> None:
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

        for part in (compiled, device, chains, functions, models, throughput, memory):
            if part is device:
                try:
                    torch.cuda.init()
                except (RuntimeError, AssertionError) as error:
                    say(f"{NO_GPU} ({str(error).splitlines()[0]})")
                    return 2
            say(f"\n{part.__name__}")
            try:
                for line in part():
                    say(f"  {line}")
                    if time.monotonic() > end:
                        say("  the time is up")
                        return 1
            except Exception:
                say(f"  FAILED: {traceback.format_exc(limit=-3)}")
        say("\nstages against PyTorch's own kernels")
        left = max(1.0, end - time.monotonic())
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            "zoo:4K",
            "--device",
            "cuda",
            "--save",
            str(options.out.parent),
        ]
        try:
            subprocess.run(command, cwd=ROOT, timeout=left, check=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            say(f"  {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
