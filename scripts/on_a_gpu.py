"""What there is to know of the kernels for CUDA, in minutes on a machine with a GPU: `make gpu`.

Bits first, then speed and memory. What only asks for bits runs at once, in processes of its own, so that no
error of the device, which ends all work of its process, ends more than that. Every line is written to the
file as soon as it is known, so that a run that is cut short has said something. Where there is no GPU it
says so, and has only compiled.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.convolutions import CASES, Case, chain, operands  # noqa: E402

import overlap_tool  # noqa: E402
from overlap_tool import checkpoint  # noqa: E402
from overlap_tool.kernels import cuda, nvrtc  # noqa: E402
from overlap_tool.kernels.form import Form  # noqa: E402
from overlap_tool.kernels.trial import fallbacks  # noqa: E402
from overlap_tool.planning.choose import Shape  # noqa: E402
from overlap_tool.wrapping.retrofit import tiled_stages  # noqa: E402

NO_GPU = "There is no GPU here: nothing of what follows was run, and nothing is said of any."

DEEP = {
    "192 to 192, 5x5, stride 2": Case(192, 192, (5, 5), (2, 2), x="channels last"),
    "320 to 320, 3x3": Case(320, 320, (3, 3), x="channels last"),
    "3 to 192, 5x5, stride 2": Case(3, 192, (5, 5), (2, 2), images=2, x="channels last"),
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

SIZES = {"1K": (1024, 1024), "4K": (2176, 3840)}
"""Rows and columns."""

Lines = Iterator[str]


def compiled() -> Lines:
    """No GPU is needed for this."""
    tiles = *cuda.LARGE, *cuda.TILES.values()
    names = [cuda.tiled_name(tile, torch.float32, by) for tile in tiles for by in (True, False)]
    names += [cuda.tiled_name(tile, torch.float32, True, point=True) for tile in tiles]
    names.append(cuda.tiled_name(cuda.LARGE[0], torch.float32, True, squares=True, point=True))
    names.append(cuda.few_inputs_name(cuda.LARGE[0], cuda.FewInputs(5, 15, 2, 6), torch.float32))
    for target in ("sm_80", "sm_90", "sm_100"):
        start = time.perf_counter()
        size = sum(len(nvrtc.compile_kernel(cuda.source(), name, target).code) for name in names)
        yield f"{len(names)} kernels for {target}: {size} bytes in {time.perf_counter() - start:.1f} s"


def device() -> Lines:
    properties = torch.cuda.get_device_properties(0)
    yield f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    yield f"{properties.total_memory} bytes, capability {torch.cuda.get_device_capability()}"
    yield f"PyTorch {torch.__version__}"


def chains() -> Lines:
    for name, case in {**CASES, **DEEP}.items():
        x, weight, bias, form = operands(case)
        there = [None if t is None else t.cuda() for t in (x, weight, bias)]
        found = cuda.convolve(*there, form).cpu()
        yield f"{same(found, chain(x, weight, bias, form))}: {name}"


def models(share: int = 0, of: int = 1) -> Lines:
    """Narrow ones: all that they return, and what they compress here and there."""
    for name in checkpoint.names()[share::of]:
        try:
            yield from _model(name)
        except Exception as error:  # the others are worth knowing
            yield f"FAILED: {name}: {type(error).__name__}: {error}"


def _model(name: str) -> Lines:
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
    for schedule in ("tiles", "stream"):  # most tiles are replayed from what was recorded of others
        with torch.no_grad(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            tiled = overlap_tool.wrap(there, tile=32, schedule=schedule)(x.cuda())["x_hat"].cpu()
        yield f"{same(tiled, expected)}, in {schedule} of 32: {name}"
        slow_ones = (each for each in told if issubclass(each.category, overlap_tool.SlowKernelWarning))
        yield from (f"SLOW: {each.message}" for each in slow_ones)


def throughput() -> Lines:
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


FIRST = "mbt2018", "cheng2020-attn", "elic2022-official"


@torch.no_grad()
def stages() -> Lines:
    """At full width: time, the most that the allocator gave, and what the plan says of it."""
    torch.backends.cudnn.allow_tf32 = False
    for name in (*FIRST, *(other for other in checkpoint.names() if other not in FIRST)):
        try:
            model = checkpoint.seeded_model(checkpoint.find(name)).cuda()
            wrapped = {
                schedule: tiled_stages(overlap_tool.wrap(model, tile=256, schedule=schedule))
                for schedule in ("tiles", "stream")
            }
            for stage in ("g_a", "g_s"):
                for size in SIZES:
                    yield from _stage(f"{name} {stage}, {size}", SIZES[size], stage, wrapped)
        except Exception as error:  # the others are worth knowing
            yield f"FAILED: {name}: {type(error).__name__}: {error}"


def _stage(label: str, size: tuple[int, int], stage: str, wrapped: dict[str, dict[str, object]]) -> Lines:
    own = {schedule: stages[stage] for schedule, stages in wrapped.items()}
    first = own["stream"]
    rows, columns = (int(side * first.input_scale) for side in size)
    x = torch.rand(1, first.network.ops[0].channels, rows, columns, device="cuda")

    def exact() -> Tensor:
        with overlap_tool.exact_kernels():
            return first.original(x)

    ways: dict[str, Callable[[], Tensor]] = {"stock": lambda: first.original(x), "exact, whole": exact}
    ways |= {f"exact, {schedule}": partial(own[schedule], x) for schedule in own}
    stock, found = 0.0, None
    for way, run in ways.items():
        result = run()
        bits = ""
        if way != "stock":
            found = result if found is None else found
            bits = f", {same(result, found)}"
        del result
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        took = median(_wall(run) for _ in range(5))
        peak = torch.cuda.max_memory_allocated() - before
        stock = stock or took
        told = ""
        if way.partition(", ")[2] in own:
            predicted = own[way.partition(", ")[2]].plan(Shape(1, rows, columns)).peak_bytes
            told = f", predicted {predicted / 2**20:.0f}"
        yield f"{label}, {way}: {took * 1e3:.1f} ms ({took / stock:.2f}), {peak / 2**20:.0f} MiB{told}{bits}"


def _wall(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def same(found: Tensor, expected: Tensor) -> str:
    wrong = (found != expected) & ~(found.isnan() & expected.isnan())
    if found.dtype == torch.float32:
        wrong |= (found == 0) & (found.signbit() != expected.signbit())
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


SHARES = 4
TESTS = "tests/runtime/test_cuda.py", "tests/runtime/test_devices.py"
AT_ONCE = {
    "chains": ["chains"],
    **{f"models {share}": ["models", str(share), str(SHARES)] for share in range(SHARES)},
    "selftest": ["-m", "overlap_tool", "selftest", "--models", "--device", "cuda"],
    "tests": ["-m", "pytest", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", "-m", "not slow", *TESTS],
}
"""In processes of their own: what they are told."""


def run_at_once(say: Callable[[str], None], left: float) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "2",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }

    def read(name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                say(f"  {name}: {line.rstrip()}")
        say(f"  {name}: ended with {process.wait()} after {time.monotonic() - start:.0f} s")

    start, readers, processes = time.monotonic(), [], []
    for name, told in AT_ONCE.items():
        command = [sys.executable, *([] if told[0] == "-m" else [__file__, "--part"]), *told]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        processes.append(process)
        readers.append(threading.Thread(target=read, args=(name, process)))
        readers[-1].start()
    for reader in readers:
        reader.join(max(0.0, start + left - time.monotonic()))
    for process in processes:
        process.kill()  # what has ended does not mind


ALONE = (throughput, stages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "on-a-gpu.txt")
    parser.add_argument("--part", nargs="+", help="one part alone, in this process")
    options = parser.parse_args()
    if options.part:
        name, *numbers = options.part
        for line in globals()[name](*map(int, numbers)):
            print(line, flush=True)
        return 0
    end = time.monotonic() + 60 * options.minutes
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w") as file:

        def say(line: str) -> None:
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

        def tell(part: Callable[[], Lines]) -> None:
            say(f"\n{part.__name__}")
            try:
                for line in part():
                    say(f"  {line}")
                    if time.monotonic() > end:
                        say("  the time is up")
                        return
            except Exception:
                say(f"  FAILED: {traceback.format_exc(limit=-3)}")

        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            tell(compiled)
            say(f"{NO_GPU} ({str(error).splitlines()[0]})")
            return 2
        tell(device)
        say("\nbits, at once")
        run_at_once(say, 0.6 * (end - time.monotonic()))
        for part in ALONE:
            tell(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
