"""`overlap-tool run`: an image file through any network from image to image, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.on_files import FileOptions, ImageFile, RegionOption, glance_at_image
from overlap_tool.cli.options import parse_region
from overlap_tool.settings import SampleType

if TYPE_CHECKING:
    from overlap_tool.files import Codec, RunSummary

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool run --model denoiser.tiled.pt noisy.tif -o clean.tif

  overlap-tool run --model net.tiled.pt in.tif -o out.zarr --dtype float32

  overlap-tool run --model net.tiled.pt scene.zarr -o crop.png --region 40000,12000,2048,1024
"""


@command(EXAMPLES)
def run(
    image: ImageFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .tif, .zarr, .npy or .png to write.", show_default=False)
    ],
    dtype: Annotated[
        SampleType | None,
        typer.Option("--dtype", help="Of the output; the input's if left out. Integers span 0 to 1."),
    ] = None,
    region: RegionOption = None,
    *,
    files: FileOptions,
) -> None:
    """Put an image file of any size through a wrapped network."""

    def work(codec: Codec, **how: Any) -> RunSummary:
        from overlap_tool.files import run

        return run(codec, image, output, dtype=dtype, region=parse_region(region), **how)

    glance_at_image(image)
    files.do(output, work)
