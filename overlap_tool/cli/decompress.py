"""`overlap-tool decompress`: a `.lic` file as an image file, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overlap_tool.cli.options import (
    AsJson,
    Debug,
    Device,
    InMemory,
    Plugin,
    Quiet,
    Resume,
    Tiled,
    busy,
    load_plugins,
    resumable,
    show_summary,
    told_on_stderr,
)

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool decompress --model mbt2018.tiled.pt photo.lic

  overlap-tool decompress --model mbt2018.tiled.pt scene.lic -o scene.tif --json

  overlap-tool decompress --model mbt2018-mean.tiled.pt scene.lic -o scene.zarr --resume
"""


def decompress(
    coded: Annotated[Path, typer.Argument(help="What overlap-tool compress wrote.", metavar="FILE.lic")],
    model: Tiled,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .png, .tif, .npy or .zarr to write, or a .webp; NAME.png if left out."
        ),
    ] = None,
    in_memory: InMemory = "256MiB",
    resume: Resume = False,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Decode a compressed image with the checkpoint that wrote it."""
    with busy(f"Loading {model}", quiet):
        from overlap_tool import files
        from overlap_tool.schedule.choose import parse_bytes

        load_plugins(plugin)
        codec = files.Codec.load(model, device)
    with resumable():
        summary = files.decompress(
            codec,
            coded,
            output or coded.with_suffix(".png"),
            in_memory=parse_bytes(in_memory),
            resume=resume,
            quiet=quiet,
            tell=told_on_stderr(quiet),
        )
    show_summary(summary, quiet, as_json)


decompress.__doc__ = f"{decompress.__doc__}\n{EXAMPLES}"
