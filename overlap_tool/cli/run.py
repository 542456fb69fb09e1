"""`overlap-tool run`: an image file through any network from image to image, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overlap_tool.cli.options import (
    AsJson,
    Debug,
    Device,
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
from overlap_tool.errors import OptionError

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool run --model denoiser.tiled.pt noisy.tif -o clean.tif

  overlap-tool run --model net.tiled.pt in.tif -o out.zarr --dtype float32
"""


def run(
    image: Annotated[Path, typer.Argument(help="A PNG, JPEG, WebP, TIFF or .npy file, or a Zarr folder.")],
    model: Tiled,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .tif, .zarr, .npy or .png to write.", show_default=False)
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="uint8, uint16 or float32; the input's if left out. Integers span 0 to 1."
        ),
    ] = None,
    resume: Resume = False,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Put an image file of any size through a wrapped network."""
    with busy(f"Loading {model}", quiet):
        from overlap_tool import files
        from overlap_tool.files.plain import DTYPES

        if dtype is not None and dtype not in DTYPES:
            raise OptionError(f"--dtype {dtype}", "is not one", f"Use {', '.join(DTYPES)}")
        load_plugins(plugin)
        codec = files.Codec.load(model, device)
    with resumable():
        summary = files.run(
            codec, image, output, dtype=dtype, resume=resume, quiet=quiet, tell=told_on_stderr(quiet)
        )
    show_summary(summary, quiet, as_json)


run.__doc__ = f"{run.__doc__}\n{EXAMPLES}"
