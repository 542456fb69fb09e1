"""A scene of 100,000 x 100,000 on 256 workers, simulated: what the planner says, and how long that takes.

Nothing is computed. Pieces, tasks, traffic and recomputation are the planner's own integers; the seconds are
measured here, of the processor, and are those of planning. A task is a piece; one more hands on the model,
and a barrier has one for each piece of its map, after those. What is read and made is told in numbers of 32
bits; of an image, the file has a quarter of that. What is sent at once, the inputs of two pieces for each
worker, lies with the process that began.
"""

from __future__ import annotations

import time

from rich.table import Table
from torch import nn
from torchvision.ops import SqueezeExcitation

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.distributed.outlook import outlook
from overlap_tool.files import Codec
from overlap_tool.settings import Size

SCENE = Size(100_000, 100_000)
WORKERS, MEMORY = 256, 32 << 30
CODECS = ("mbt2018-mean", "cheng2020-anchor-checkerboard", "elic2022-official")
HEADINGS = (
    "model",
    "stage",
    "piece",
    "tasks",
    "recomputed",
    "busiest worker",
    "memory",
    "sent at once",
    "read",
    "made",
    "planned in",
)


def _networks() -> dict[str, nn.Module]:
    denoiser = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        *[layer for _ in range(8) for layer in (nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))],
        nn.ReLU(),
        nn.Conv2d(64, 3, 3, padding=1),
    )
    excited = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), SqueezeExcitation(32, 8), nn.Conv2d(32, 3, 3, padding=1)
    )
    return {"ten convolutions": denoiser.eval(), "squeeze-and-excitation": excited.eval()}


def main() -> list[Table]:
    models = {name: checkpoint.seeded_model(checkpoint.find(name)) for name in CODECS} | _networks()
    table = Table(
        *HEADINGS, title=f"{SCENE.width}x{SCENE.height} pixels, {WORKERS} workers of {MEMORY >> 30} GiB"
    )
    for name, model in models.items():
        codec = Codec(overlap_tool.wrap(model, tile=256), name, "", name)
        started = time.process_time()
        passes = outlook(codec, SCENE, WORKERS, MEMORY)
        seconds = time.process_time() - started
        for each in passes:
            table.add_row(
                name,
                each.stage,
                str(each.side),
                str(each.pieces),
                f"{each.added:.1%}",
                f"{each.busiest:.2f} shares",
                f"{each.memory / 2**30:.2f} GiB",
                f"{each.sent / 2**30:.1f} GiB",
                f"{each.read / 2**30:.1f} GiB",
                f"{each.made / 2**30:.1f} GiB",
                f"{seconds:.1f} s for all" if each is passes[0] else "",
            )
    return [table]
