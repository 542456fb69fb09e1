"""What the host does for a tile that is replayed, in time: a driver stands in that does nothing.

    PYTHONPATH=tests python -m support.host_time

There is no GPU in it. The engine believes that the CPU's tensors are on one; the tiles are small, so that
what PyTorch copies takes next to no time. With a GPU, each launch costs what its driver takes for it besides.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from types import SimpleNamespace
from typing import Any

import llvmlite.ir as ir
import pytest
import torch
from torch import Tensor

import overlap_tool
from overlap_tool.kernels import codegen, compositions, cuda, driver, joining, tape, trial
from overlap_tool.kernels.arithmetic import on_gpu, tensors
from overlap_tool.runtime import execute, repeated
from overlap_tool.wrapping.retrofit import tiled_stages
from support.emulated_driver import emulated_driver
from support.small_models import small_model

TILE, TILES = 64, 30


def nothing() -> Any:
    """A function of C's that takes whatever it is given."""
    module = ir.Module("nothing")
    module.triple = codegen.triple()
    function = ir.Function(module, ir.FunctionType(ir.IntType(32), [ir.IntType(64)]), "run")
    ir.IRBuilder(function.append_basic_block()).ret(ir.IntType(32)(0))
    return ctypes.CFUNCTYPE(ctypes.c_int)(codegen.compiled(module))


def compute(name: str, x: Tensor, *others: Tensor, numbers: Any = (), out: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x) if out is None else out
    assert on_gpu.run(name, [x, *others], numbers, y, tensors.by_processor)
    return y


def microseconds(stage: str, schedule: str) -> tuple[int, float]:
    """How many tiles were replayed, and the median."""
    taken: list[float] = []
    by_tape = execute.Execution.by_tape

    def timed(*args: Any) -> bool:
        start = time.perf_counter()
        replayed = by_tape(*args)
        taken.append(time.perf_counter() - start)
        return replayed

    model = small_model("mbt2018")
    run = tiled_stages(overlap_tool.wrap(model, tile=TILE, schedule=schedule))[stage]
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.no_grad(),
        emulated_driver(interpret=False) as computing,
    ):
        patch.setattr(trial, "choose", lambda layer: (cuda, None))
        patch.setattr(compositions, "compute", compute)
        patch.setitem(repeated.WORTH, "cpu", 1)
        for each in joining, tape:
            patch.setattr(each, "on_processor", lambda device: False)
        patch.setattr(
            tape,
            "program_kernel",
            lambda name, dtype, inputs, device: on_gpu.kernel_of(
                name, dtype, inputs, 0, device, tensors.by_processor
            ),
        )
        patch.setattr(execute.Execution, "by_tape", timed)
        image = torch.rand(1, 3, TILE, TILE * TILES)
        x = image if stage == "g_a" else model.g_a(image)
        run(x)  # by the CPU: tapes are tried
        run.network.passes.clear()  # a tape launches by the driver that it was recorded with
        patch.setattr(driver, "libcuda", lambda: SimpleNamespace(cuLaunchKernel=nothing()))
        run(x)
        taken.clear()
        computing.launches.clear()
        run(x)
        assert not computing.launches, "what was timed has computed"
    return len(taken), statistics.median(taken) * 1e6


if __name__ == "__main__":
    for which in ("g_a", "g_s"):
        for how in ("tiles", "stream"):
            replayed, median = microseconds(which, how)
            print(
                f"mbt2018 {which}, {how} of {TILE}: {median:.0f} microseconds, the median of {replayed} tiles"
            )
