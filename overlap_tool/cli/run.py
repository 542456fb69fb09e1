"""`overlap-tool run`: a file through any network from map to map, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.on_files import FileOptions, ImageFile, RegionOption, WorkerOptions, glance_at_image
from overlap_tool.cli.options import parse_region
from overlap_tool.settings import SampleType

if TYPE_CHECKING:
    from overlap_tool.files import Codec, RunSummary

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool run --model denoiser.tiled.pt noisy.tif -o clean.tif

  overlap-tool run --model net.tiled.pt in.tif -o out.zarr --dtype float32

  overlap-tool run --model net.tiled.pt scene.zarr -o crop.png --region 40000,12000,2048,1024

  overlap-tool run --model segment.tiled.pt volume.npy -o labels.zarr

  overlap-tool run --model net.tiled.pt scene.zarr -o out.zarr --workers 4

  overlap-tool run --model net.tiled.pt scene.zarr -o out.zarr --dask tcp://scheduler:8786 --resume
"""


@command(EXAMPLES)
def run(
    image: ImageFile,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A .zarr, .npy, .tif or .png to write; the first two for volumes and sound.",
            show_default=False,
        ),
    ],
    dtype: Annotated[
        SampleType | None,
        typer.Option(
            "--dtype",
            help="Type of the output; the input's if left out. Integers span 0 to 1; int16 sound -1 to 1.",
        ),
    ] = None,
    region: RegionOption = None,
    *,
    where: WorkerOptions,
    files: FileOptions,
) -> None:
    """Run a wrapped network on an image, a volume or a sound of any size."""

    def work(codec: Codec, **how: Any) -> RunSummary:
        if not where.asked:
            from overlap_tool.files import run

            return run(codec, image, output, dtype=dtype, region=parse_region(region), **how)
        from overlap_tool import distributed

        return distributed.run(codec, image, output, dtype=dtype, **on_workers, **how)

    on_workers = where.arguments(files, region)
    glance_at_image(image, "volume", "sound")
    files.do(output, work)
