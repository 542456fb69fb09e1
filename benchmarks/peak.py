"""Whole stages against the peak of fused multiply-adds: exact stream, tile 256, 2048x2048.

The peak is measured in the same run, before and after each stage: independent chains in registers, on as many
threads.
Every product of a convolution counts once, those of GDNs too; of a transposed one, those with samples.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import llvmlite.ir as ir
import torch
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.kernels import codegen
from overlap_tool.kernels.codegen import I64, counted
from overlap_tool.kernels.threads import run_on_threads
from overlap_tool.wrapping.retrofit import tiled_stages

SIDE, TILE, WARM, ROUNDS = 2048, 256, 4, 5
LIMITS = {"mbt2018": 0.7, "elic2022-official": 0.75, "cheng2020-attn": 0.8}
"""Of the peak."""

CHAINS, STEPS, TIMES = 12, 4096, 2000
"""More chains than an addition takes to finish, and than are started meanwhile; times that they are run."""


class Products(TorchDispatchMode):
    """Counts those of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            x, weight, transposed = args[0], args[1], args[6]
            self.count += (x if transposed else result).numel() * weight[0].numel()
        return result


def products(stage: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """On a sixteenth of the image: borders have as many, for zeros around it count, too."""
    with Products() as counter:
        stage(image[..., : image.shape[-2] // 4, : image.shape[-1] // 4])
    return 16 * counter.count


@cache
def chains() -> int:
    """Code that takes the next of `TIMES` items, each of so many steps of independent chains."""
    lanes = codegen.processor().lanes(4)
    vector = ir.VectorType(ir.FloatType(), lanes)
    module = ir.Module("peak")
    module.triple = codegen.triple()
    fma = ir.Function(module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f32")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), "run")
    b = ir.IRBuilder(function.append_basic_block())
    take, work, done = (function.append_basic_block() for _ in range(3))
    place = b.bitcast(b.gep(function.args[0], [I64(8)]), vector.as_pointer())
    kept = [b.alloca(vector) for _ in range(CHAINS)]

    def read(at: ir.Value) -> ir.Value:
        value = b.load(at)
        value.align = 4
        return value

    factor = read(place)
    for n, each in enumerate(kept):  # from numbers of their own, or one chain would do for all
        b.store(read(b.gep(place, [I64(n)])), each)
    b.branch(take)
    b.position_at_end(take)
    item = b.atomic_rmw("add", function.args[0], I64(1), "monotonic")
    b.cbranch(b.icmp_signed("<", item, I64(TIMES)), work, done)
    b.position_at_end(work)
    with counted(b, I64(STEPS)):
        for each in kept:
            b.store(b.call(fma, [factor, factor, b.load(each)]), each)
    b.branch(take)
    b.position_at_end(done)
    for n, each in enumerate(kept):  # or the compiler would leave them out
        b.store(b.load(each), b.gep(place, [I64(n)])).align = 4
    b.ret_void()
    return codegen.compiled(module)


def peak() -> float:
    """Operations a second: two for each fused multiply-add."""
    lanes = codegen.processor().lanes(4)
    memory = (ctypes.c_int64 * (8 + CHAINS * lanes))()
    start = time.perf_counter()
    run_on_threads(chains(), ctypes.addressof(memory), torch.get_num_threads())
    return 2 * lanes * CHAINS * STEPS * TIMES / (time.perf_counter() - start)


@torch.no_grad()
def main(only: str = "") -> list[Table]:
    """`only` is one model."""
    table = Table(
        title=f"Exact stream, tile {TILE}, {SIDE}x{SIDE}, {torch.get_num_threads()} threads, against the "
        f"peak of fused multiply-adds, measured beside each; medians of {ROUNDS} (range), after {WARM} passes"
    )
    for heading in ("stage", "products", "time", "peak", "of the peak", "limit", "holds"):
        table.add_column(heading)
    for name, limit in LIMITS.items():
        if only not in ("", name):
            continue
        model = checkpoint.load_checkpoint(f"zoo:{name}").model
        stages = tiled_stages(overlap_tool.wrap(model, tile=TILE, schedule="stream"))
        for stage in (stages["g_a"], stages["g_s"]):
            side = int(SIDE * stage.input_scale)
            image = torch.rand(1, stage.network.ops[0].channels, side, side)
            count = products(stage.original, image)
            for _ in range(WARM):  # what is found again is recorded, tried, and then replayed
                stage(image)
            runs = []
            for _ in range(ROUNDS):
                before, start = peak(), time.perf_counter()
                stage(image)
                took = time.perf_counter() - start
                most = max(before, peak())  # what else ran meanwhile only takes from it
                runs.append((2 * count / took / most, took, most))
            shares = [share for share, *_ in runs]
            table.add_row(
                f"{name} {stage.name}",
                f"{count / 1e9:.1f} G",
                f"{median(took for _, took, _ in runs):.2f} s",
                f"{median(most for *_, most in runs) / 1e9:.0f} GFLOP/s",
                f"{median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})",
                f"{limit:.0%}",
                "yes" if median(shares) >= limit else "NO",
            )
            print(f"{name} {stage.name}: done", flush=True)
    return [table]
