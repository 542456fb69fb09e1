"""Depthwise convolutions of channels-last maps by the exact engine and by PyTorch, beside the peak of fused
multiply-adds, in one run."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from benchmarks.measuring import Way, exact, ratio, seconds_in_turn
from benchmarks.peak import peak
from overlap_tool.kernels import cpu
from overlap_tool.kernels.form import Form
from overlap_tool.kernels.work import Convolution

MAPS = (192, 128), (192, 256), (192, 64), (96, 128), (30, 128), (3, 128)
"""Channels, and outputs per side."""
SIDES = 3, 5, 7, 9, 11
ROUNDS = 15


@torch.no_grad()
def main() -> list[Table]:
    """Of the exact engine the whole op, and what a tape replays of it: a prepared call, into memory at hand.
    The rates are the best ones, for other work on the machine only takes from them."""
    own = torch.get_num_threads()
    table = Table(
        title=f"Billions of operations a second, best of {ROUNDS} rounds; time to PyTorch's, medians"
    )
    for heading in ("threads", "map", "kernel", "peak", "PyTorch", "op", "replayed", "op / PyTorch"):
        table.add_column(heading)
    table.add_column("replayed / PyTorch (range)")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for channels, outputs in MAPS:
            for side in SIDES:
                x = torch.randn(1, channels, *[outputs + side - 1] * 2).to(memory_format=torch.channels_last)
                ways = _ways(x, torch.randn(channels, 1, side, side))
                most = max(peak() for _ in range(3))
                runs, _ = seconds_in_turn(ways, x, rounds=ROUNDS)
                operations = 2 * channels * outputs**2 * side**2
                rates = (operations / min(run[way] for run in runs) for way in ways)
                table.add_row(
                    str(threads),
                    f"{channels}x{outputs}x{outputs}",
                    f"{side}x{side}",
                    *(f"{rate / 1e9:.0f}" for rate in (most, *rates)),
                    f"{median(run['op'] / run['stock'] for run in runs):.2f}",
                    ratio(runs, "replayed", "stock"),
                )
    torch.set_num_threads(own)
    return [table]


def _ways(x: Tensor, weight: Tensor) -> dict[str, Way]:
    def stock(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, groups=len(weight))

    ways: dict[str, Callable[[Tensor], Tensor]] = {"stock": stock, "op": exact(stock)}
    form = Form(groups=len(weight))
    packed = cpu.pack(weight, form.groups)
    out = form.result(x, packed.shape, None)
    launch = Convolution(x, packed, None, form, out).launch()
    call = launch.ready()
    for place, tensor in zip(launch.places, launch.tensors, strict=True):
        if tensor is not None:
            call.words[place] = tensor.data_ptr()

    def replayed(x: Tensor) -> Tensor:
        call.run(None)
        return out

    return {**ways, "replayed": replayed}
