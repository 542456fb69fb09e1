"""`overlap-tool run`: a file through any network from map to map, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.on_files import FileOptions, ImageFile, RegionOption, glance_at_image
from overlap_tool.cli.options import parse_region
from overlap_tool.errors import OptionError
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


def _refuse_with_workers(**given: object) -> None:
    reasons = {
        "region": ("is computed in one process", "Leave --workers and --dask out, or --region"),
        "plugin": ("is a file of this machine", "Install it as a package on all workers"),
    }
    for name, value in given.items():
        if value:
            raise OptionError(f"--{name}", *reasons[name])


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
        typer.Option("--dtype", help="Of the output; the input's if left out. Integers span 0 to 1."),
    ] = None,
    region: RegionOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", help="Compute in N processes of this machine.", show_default=False
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="ADDRESS",
            help="Compute on the workers of this scheduler.",
            show_default=False,
        ),
    ] = None,
    piece: Annotated[
        int | None,
        typer.Option("--piece", metavar="4096", help="Pixels a side that a worker computes at once."),
    ] = None,
    *,
    files: FileOptions,
) -> None:
    """Put an image, a volume or a sound of any size through a wrapped network."""

    def work(codec: Codec, **how: Any) -> RunSummary:
        if workers is None and dask is None:
            from overlap_tool.files import run

            return run(codec, image, output, dtype=dtype, region=parse_region(region), **how)
        from overlap_tool import distributed

        how |= {"workers": workers, "dask": dask, "piece": piece, "trust": files.trust}
        return distributed.run(codec, image, output, dtype=dtype, **how)

    if workers is not None or dask is not None:
        _refuse_with_workers(region=region, plugin=files.plugin)
    elif piece is not None:
        raise OptionError("--piece", "is for several processes", "Add --workers 2, or leave it out")
    glance_at_image(image, "volume", "sound")
    files.do(output, work)
