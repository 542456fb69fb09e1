"""What a user would do instead of deriving the overlap: time, memory, and the error that it makes.

MONAI's sliding window with its default overlap, tiles without any overlap, and lightstream, which finds the
overlap by probing, each against the stage's own forward on the whole image, in turn in one process.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import torch
from rich.table import Table
from torch import Tensor, nn

import overlap_tool
from benchmarks.measuring import RUNS, Way, peak_bytes, ratio, seconds_in_turn
from overlap_tool import checkpoint
from overlap_tool.wrapping.retrofit import TiledForward, tiled_stages

MODELS = ("bmshj2018-factorized-relu", "mbt2018", "cheng2020-anchor")
STAGES = ("g_a", "g_s")
SIDE = 2048
TILE = 256
ROUNDING = 1e-5
"""Relative to the largest output: more than kernels differ by when they add up in another order."""


def without_overlap(stage: nn.Module, tile: int) -> Way:
    def run(image: Tensor) -> Tensor:
        bands = (
            torch.cat([stage(part) for part in band.split(tile, dim=-1)], dim=-1)
            for band in image.split(tile, dim=-2)
        )
        return torch.cat(list(bands), dim=-2)

    return run


def sliding_window(stage: nn.Module, tile: int) -> Way | str:
    if find_spec("monai") is None:
        return "MONAI is not installed"
    from monai.inferers import sliding_window_inference

    return lambda image: sliding_window_inference(image, tile, 1, stage)


def probed(stage: nn.Module, tile: int, channels: int) -> Way | str:
    """lightstream corrects convolutions and pooling, and says so; for other layers it is not made."""
    if any(list(part.parameters(recurse=False)) and type(part) is not nn.Conv2d for part in stage.modules()):
        return "has layers that it is not for"
    if find_spec("lightstream") is None or find_spec("lightning") is None:
        return "lightstream is not installed"
    from lightstream.core.scnn.scnn import StreamingCNN

    for part in stage.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False  # which its hooks do not take
    with torch.enable_grad():  # it leaves gradients on
        return StreamingCNN(stage, (1, channels, tile, tile), copy_to_gpu=False)


def methods(model_name: str, stage_name: str) -> tuple[TiledForward, dict[str, Way | str]]:
    def fresh() -> nn.Module:
        return checkpoint.load_checkpoint(f"zoo:{model_name}").model.eval()

    model = fresh()
    exact = tiled_stages(overlap_tool.wrap(model, tile=TILE))[stage_name]
    stage = model.get_submodule(stage_name)
    tile = int(TILE * exact.input_scale)
    return exact, {
        "the whole image": stage,
        "overlap-tool": exact,
        "overlap-tool, stock kernels": tiled_stages(overlap_tool.wrap(model, tile=TILE, engine="stock"))[
            stage_name
        ],
        "tiles without overlap": without_overlap(stage, tile),
        "MONAI, overlap 0.25": sliding_window(stage, tile),
        # it changes the layers that it streams
        "lightstream": probed(fresh().get_submodule(stage_name), tile, exact.network.ops[0].channels),
    }


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("monai", "lightstream") if find_spec(name))


def _wrong(result: Tensor, right: Tensor) -> str:
    if result.shape != right.shape:
        return f"another size: {tuple(result.shape[-2:])}"
    differs = (result - right).abs() / right.abs().max()
    return f"{(differs > ROUNDING).double().mean():.2%}, by up to {differs.max():.1e}"


@torch.no_grad()
def main() -> list[Table]:
    table = Table(
        title=f"Each method on {SIDE}x{SIDE}, tile {TILE}, against the stage's own forward on the whole, "
        f"{torch.get_num_threads()} threads; median of {RUNS} runs in turn (range). Wrong is what differs by "
        f"more than {ROUNDING:.0e} of the largest output. {_versions()}"
    )
    for heading in ("stage", "method", "time / full (range)", "bytes / full", "wrong samples"):
        table.add_column(heading)
    for model_name in MODELS:
        for stage_name in STAGES:
            exact, named = methods(model_name, stage_name)
            side = int(SIDE * exact.input_scale)
            image = torch.rand(1, exact.network.ops[0].channels, side, side)
            full = named["the whole image"]
            assert isinstance(full, nn.Module)
            weights = [*full.parameters(), *full.buffers()]
            runnable = {name: method for name, method in named.items() if not isinstance(method, str)}
            runs, _ = seconds_in_turn(runnable, image)
            most, right = peak_bytes(full, image, weights)
            for name, method in named.items():
                if isinstance(method, str):
                    table.add_row(f"{model_name} {stage_name}", name, method)
                    continue
                peak, result = peak_bytes(method, image, weights)
                table.add_row(
                    f"{model_name} {stage_name}",
                    name,
                    ratio(runs, name, "the whole image"),
                    f"{peak / most:.1%}",
                    _wrong(result, right),
                )
            print(f"{model_name} {stage_name}: done")
    return [table]
