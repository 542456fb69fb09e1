"""`overlap-tool compress`: an image file as a `.lic` file, in bounded memory."""

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

  overlap-tool compress --model mbt2018.tiled.pt photo.png

  overlap-tool compress --model mbt2018.tiled.pt scene.tif -o scene.lic --check --json

  overlap-tool compress --model mbt2018-mean.tiled.pt scene.zarr -o scene.lic --resume
"""


def compress(
    image: Annotated[Path, typer.Argument(help="A PNG, JPEG, WebP, TIFF or .npy file, or a Zarr folder.")],
    model: Tiled,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; NAME.lic if left out.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Decode what was written, and tell its PSNR.")
    ] = False,
    in_memory: InMemory = "256MiB",
    resume: Resume = False,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Compress an image file of any size with a wrapped codec."""
    with busy(f"Loading {model}", quiet):
        from overlap_tool import files
        from overlap_tool.schedule.choose import parse_bytes

        load_plugins(plugin)
        codec = files.Codec.load(model, device)
    with resumable():
        summary = files.compress(
            codec,
            image,
            output or image.with_suffix(".lic"),
            in_memory=parse_bytes(in_memory),
            check=check,
            resume=resume,
            quiet=quiet,
            tell=told_on_stderr(quiet),
        )
    show_summary(summary, quiet, as_json)


compress.__doc__ = f"{compress.__doc__}\n{EXAMPLES}"
