"""Kamisli's closed loop on an image of Kodak's size: block by block in raster order, against wavefronts.

Both orders run in turn in this process, with exact kernels, so that their ratio holds when the machine's
speed drifts. The image is made up and the weights are seeded: neither decides how much there is to compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.table import Table

import overlap_tool
from benchmarks import machine
from overlap_tool import checkpoint
from overlap_tool.geometry.layout import Layout
from overlap_tool.report.tables import count, in_units
from overlap_tool.settings import ORDERS, Order, Size
from overlap_tool.verification import images

NAMES = ("kamisli", "kamisli-hps2")
IMAGE = Size(768, 512)
RUNS = 3
PUBLISHED = {"kamisli": (27.4, 37.2), "kamisli-hps2": (29.2, 41.4)}
"""Seconds to encode and decode, of table 2 of the paper, on an RTX 3060 Ti."""


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


@torch.no_grad()
def main() -> list[Table]:
    times = Table(
        title=f"Seconds for an image of {IMAGE}, {torch.get_num_threads()} threads; "
        f"median (range) of {RUNS} runs in turn"
    )
    for heading in ("codec", "", "raster", "wavefront", "raster / wavefront", "same result", "published"):
        times.add_column(heading)
    plans = Table(title=f"What that takes, for an image of {IMAGE}")
    for heading in ("codec", "order", "blocks", "working memory", "multiply-accumulates", "bits per pixel"):
        plans.add_column(heading)
    image = images.seeded(IMAGE, Layout.of_map(3), multiple=8).values
    for name in NAMES:
        model: Any = checkpoint.load_checkpoint(f"zoo:{name}").model
        wrapped = {order: overlap_tool.wrap(model, schedule=order) for order in ORDERS}
        del model
        spent: dict[str, dict[Order, list[float]]] = {
            doing: {order: [] for order in ORDERS} for doing in ("compress", "decompress")
        }
        coded: dict[Order, Any] = {}
        decoded: dict[Order, Any] = {}
        for codec in wrapped.values():
            codec.compress(image[..., :64, :64])  # compiles the kernels
        for _ in range(RUNS):
            for order, codec in wrapped.items():
                seconds, coded[order] = _timed(partial(codec.compress, image))
                spent["compress"][order].append(seconds)
                # what the other order wrote, if it has
                stream = next(iter(coded.values()))
                seconds, decoded[order] = _timed(partial(codec.decompress, **stream))
                spent["decompress"][order].append(seconds)
        same = {
            "compress": coded["raster"] == coded["wavefront"],
            "decompress": torch.equal(decoded["raster"]["x_hat"], decoded["wavefront"]["x_hat"]),
        }
        for (doing, by_order), published in zip(spent.items(), PUBLISHED[name], strict=True):
            times.add_row(
                name,
                doing,
                machine.spread(by_order["raster"]),
                machine.spread(by_order["wavefront"]),
                f"{median(by_order['raster']) / median(by_order['wavefront']):.1f}",
                "yes" if same[doing] else "NO",
                f"{published} s",
            )
        length = sum(len(string) for row in coded["raster"]["strings"] for string in row)
        for order, codec in wrapped.items():
            (plan,) = overlap_tool.plans(codec, IMAGE).values()
            rate = f"{8 * length / (IMAGE.width * IMAGE.height):.3f}"
            plans.add_row(name, order, str(plan.tiles), in_units(plan.working_bytes), count(plan.macs), rate)
    return [times, plans]
