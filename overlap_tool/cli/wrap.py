"""`overlap-tool wrap`: a checkpoint as one file that infers tile by tile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.options import (
    CallOptions,
    ModelOptions,
    SizeOption,
    busy,
    load_plugins,
    parse_size,
    parse_tile,
    refuse_unfit_target,
)
from overlap_tool.errors import OptionError
from overlap_tool.legible import legible
from overlap_tool.settings import Engine, Order, Schedule, Store

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool wrap --tile 256 mbt2018.pt

  overlap-tool wrap --memory 2GiB mbt2018.pt --output small.tiled.pt

  overlap-tool wrap --tile 3840x64 --schedule stream zoo:cheng2020-attn

  overlap-tool wrap weights.pt --model mynet.models:Net --example '{"image": {"map": 3}, "mask": {"map": 1}}'
"""


@command(EXAMPLES)
def wrap(
    tile: Annotated[
        str | None,
        typer.Option(
            "--tile",
            metavar="N or WxH",
            help="Tile in pixels of the image, or samples of a sound. If neither this nor --memory is given, "
            "256; of volumes 64, of sound some seconds.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="2GiB", help="Choose tile and schedule to stay within this."),
    ] = None,
    schedule: Annotated[
        Literal[Schedule, Order] | None,
        typer.Option(
            "--schedule",
            help="stream (nothing is computed twice) or tiles (independent); for a closed loop, wavefront or "
            "raster.",
        ),
    ] = None,
    store: Annotated[Store, typer.Option("--store", help="Where whole maps live.")] = "auto",
    engine: Annotated[
        Engine,
        typer.Option(
            "--engine", help="exact (the same bits for every tile) or stock (the library's own kernels)."
        ),
    ] = "exact",
    uniform: Annotated[
        bool,
        typer.Option(
            "--uniform", help="Give all tiles one shape at every op, for capture or export; schedule tiles."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; NAME.tiled.pt if left out.")
    ] = None,
    size: SizeOption = None,
    *,
    model: ModelOptions,
    call: CallOptions,
) -> None:
    """Write a model that runs tile by tile in bounded memory, and report what that takes."""
    asked, arguments = None if size is None else parse_size(size), model.arguments()
    side = None if tile is None else parse_tile(tile)
    target = output or _beside(model.source, model.model_class)
    refuse_unfit_target("--output", target, model.read)
    with busy(f"Wrapping {model.name}"):
        from overlap_tool import checkpoint
        from overlap_tool.report.tables import plan_table, untiled_tables
        from overlap_tool.report.terminal import drawn, screen
        from overlap_tool.wrapping import retrofit

        load_plugins(model.plugin)
        loaded = checkpoint.load_checkpoint(model.source, **arguments)
        if ":" not in loaded.architecture and loaded.architecture not in checkpoint.names():
            raise OptionError(
                model.source,
                f"a pickled {loaded.architecture} cannot be built again from a file without code",
                "Save its state_dict with torch.save, and wrap that: overlap-tool wrap WEIGHTS.pt --model "
                f"{type(loaded.model).__module__}:{type(loaded.model).__qualname__}",
            )
        tiled = retrofit.wrap(
            loaded.model,
            tile=side,
            memory=memory,
            schedule=schedule,
            store=store,
            engine=engine,
            uniform=uniform,
            inplace=True,
            **call.arguments(),
        )
        plans = retrofit.plans(tiled, retrofit.brought_up_to_fit(tiled, asked))
        retrofit.save(tiled, target, loaded.architecture, loaded.arguments)
    console = screen()
    for table in (plan_table(loaded.architecture, plans), *untiled_tables(retrofit.untiled(tiled))):
        console.print(drawn(table))
    console.print(legible(f"wrote {target}"), highlight=False, markup=False, soft_wrap=True)


def _beside(source: str, model: str | None) -> Path:
    """Where the file goes: beside the checkpoint, or in the current folder for a zoo model."""
    if source and not source.startswith("zoo:"):
        path = Path(source)
        return path.with_name(f"{path.name.partition('.')[0]}.tiled.pt")
    name = source.removeprefix("zoo:") or (model or "").rpartition(":")[2]
    return Path(f"{name.replace('@', '-')}.tiled.pt")
