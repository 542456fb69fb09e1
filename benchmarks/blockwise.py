"""The table of the block-based codec's paper: what a tile takes at its peak, against the full image.

Kim et al., CVPR 2026, published averages of peak memory and peak multiply-accumulates over four models. The
slides do not say what is counted. Here it is one stage, `g_a` as the encoder and `g_s` as the decoder. Peak
memory is the most bytes of maps alive at once, with the whole input and output of the stage, and in the tiles
with the copy of the weights that the exact engine makes. It is predicted from the plan, and
tests/test_retrofit.py holds predictions to what is alive while tiles run, within 15 %. Peak
multiply-accumulates are those of the most expensive tile, which tests/test_executed_macs.py counts.
Nothing is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from rich.table import Table
from torch import nn

from overlap_tool import checkpoint, plugins
from overlap_tool.geometry.plan import whole
from overlap_tool.models.stages import Stage, survey
from overlap_tool.planning.choose import Shape, plan_stage
from overlap_tool.planning.cost import full_bytes, macs, op_costs, peak_macs
from overlap_tool.settings import Settings

MODELS = (
    "hyperprior-nocontext",
    "hyperprior-checkerboard",
    "cheng2020-anchor-checkerboard",
    "elic2022-official",
)
PARTS = {"encoder": "g_a", "decoder": "g_s"}
IMAGES = {"2K": (1920, 1080), "4K": (3840, 2160)}
TILES = (256, 512)
WAYS = {
    "tiles": {"schedule": "tiles"},
    "uniform": {"schedule": "tiles", "uniform": True},
    "stream": {"schedule": "stream"},
}
PUBLISHED = {"encoder": ("13.94 %", "2.6 %"), "decoder": ("13.33 %", "1.24 %")}


@dataclass(frozen=True)
class Row:
    """Shares of the full image's, for one model, part, image, tile and way to tile."""

    model: str
    part: str
    image: str
    tile: int
    way: str
    full_bytes: int
    full_macs: int
    memory: float
    memory_with_weights: float
    macs: float


def _rows(name: str) -> list[Row]:
    model: nn.Module = checkpoint.load_checkpoint(f"zoo:{name}").model
    found = survey(model)
    stages = {stage.name: stage for stage in found.stages}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return [
        row
        for part, stage in PARTS.items()
        for label, image in IMAGES.items()
        for row in _stage_rows(name, part, stages[stage], (label, image), found.multiple, weights)
    ]


def _stage_rows(
    name: str, part: str, stage: Stage, image: tuple[str, tuple[int, int]], multiple: int, weights: int
) -> list[Row]:
    network = stage.network
    # the image as the model needs it: its sides brought up to multiples
    width, height = (int(-(-side // multiple) * multiple * stage.input_scale) for side in image[1])
    shape = Shape(1, height, width)
    costs = op_costs(network)
    full = whole(network.rows, height), whole(network.columns, width)
    bytes_of_all, macs_of_all = full_bytes(costs, *full), macs(costs, *full)
    rows = []
    for tile in TILES:
        for way, options in WAYS.items():
            settings = Settings(tile=(tile, tile), **options)  # type: ignore[arg-type]
            plan = plan_stage(stage.name, network, stage.input_scale, shape, settings)
            (only,) = plan.segments
            rows.append(
                Row(
                    name,
                    part,
                    image[0],
                    tile,
                    way,
                    bytes_of_all,
                    macs_of_all,
                    plan.peak_bytes / bytes_of_all,
                    (plan.peak_bytes + weights) / (bytes_of_all + weights),
                    peak_macs(costs, only.rows, only.columns) / macs_of_all,
                )
            )
    return rows


def _of_part(rows: list[Row], part: str) -> Table:
    table = Table(
        title=f"The {part}, {PARTS[part]}: peak memory, predicted from the plan, and multiply-accumulates "
        "of the most expensive tile, of what the full image takes; 32-bit floats, exact engine"
    )
    table.add_column("model", overflow="fold")
    for heading in ("image", "tile", "memory of all", *(f"memory, {way}" for way in WAYS)):
        table.add_column(heading)
    for heading in ("MACs of all", *(f"MACs, {way}" for way in WAYS)):
        table.add_column(heading)
    of_part = [row for row in rows if row.part == part]
    for model, image, tile in dict.fromkeys((row.model, row.image, row.tile) for row in of_part):
        alike = [row for row in of_part if (row.model, row.image, row.tile) == (model, image, tile)]
        table.add_row(
            model,
            image,
            str(tile),
            f"{alike[0].full_bytes / 1e6:.0f} MB",
            *(f"{row.memory:.2%}" for row in alike),
            f"{alike[0].full_macs / 1e9:.0f} G",
            *(f"{row.macs:.2%}" for row in alike),
        )
    return table


def _averages(rows: list[Row]) -> Table:
    table = Table(
        title="Averages over the four models at 2K and 4K. Weights: those of the whole model, on both sides. "
        "The slides say neither what the published averages count nor over which tiles and images they go"
    )
    headings = [f"{part} {what}" for part in PARTS for what in ("memory", "MACs", "memory, weights")]
    for heading in ("", "tile", *headings):
        table.add_column(heading)
    table.add_row("published", "", *(cell for pair in PUBLISHED.values() for cell in (*pair, "")))
    for way in WAYS:
        for tiles in (TILES, *((tile,) for tile in TILES)):
            cells = []
            for part in PARTS:
                alike = [row for row in rows if (row.part, row.way) == (part, way) and row.tile in tiles]
                cells += [mean(getattr(row, of) for row in alike) for of in FIGURES]
            table.add_row(way, ", ".join(map(str, tiles)), *(f"{cell:.2%}" for cell in cells))
    return table


FIGURES = ("memory", "macs", "memory_with_weights")


def main() -> list[Table]:
    plugins.discover()
    rows = [row for name in MODELS for row in _rows(name)]
    return [*(_of_part(rows, part) for part in PARTS), _averages(rows)]
