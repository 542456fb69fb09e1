"""`overlap-tool decompress`: a `.lic` file as an image file, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.on_files import FileOptions, InMemoryOption, RegionOption, WorkerOptions
from overlap_tool.cli.options import parse_region

if TYPE_CHECKING:
    from overlap_tool.files import Codec, RunSummary

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool decompress --model mbt2018.tiled.pt photo.lic

  overlap-tool decompress --model mbt2018.tiled.pt scene.lic -o scene.tif --json

  overlap-tool decompress --model mbt2018-mean.tiled.pt scene.lic -o scene.zarr --resume

  overlap-tool decompress --model mbt2018-mean.tiled.pt scene.lic -o crop.png --region 40000,12000,2048,1024

  overlap-tool decompress --model mbt2018-mean.tiled.pt scene.lic -o out.zarr --dask tcp://scheduler:8786
"""


@command(EXAMPLES)
def decompress(
    coded: Annotated[Path, typer.Argument(help="What overlap-tool compress wrote.", metavar="FILE.lic")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .png, .tif, .npy or .zarr to write, or a .webp; NAME.png if left out."
        ),
    ] = None,
    in_memory: InMemoryOption = "256MiB",
    any_engine: Annotated[
        bool,
        typer.Option("--any-engine", help="Try a file that other kernels wrote: it may come out wrong."),
    ] = False,
    region: RegionOption = None,
    *,
    where: WorkerOptions,
    files: FileOptions,
) -> None:
    """Decode a compressed image with the checkpoint that wrote it."""

    target = output or coded.with_suffix(".png")

    def work(codec: Codec, **how: Any) -> RunSummary:
        from overlap_tool.settings import parse_bytes

        how |= {"in_memory": parse_bytes(in_memory), "any_engine": any_engine}
        if not where.asked:
            from overlap_tool.files import decompress

            return decompress(codec, coded, target, region=parse_region(region), **how)
        from overlap_tool import distributed

        return distributed.decompress(codec, coded, target, **on_workers, **how)

    on_workers = where.arguments(files, region)
    from overlap_tool.files.formats import container

    container.read(coded, in_parts=region is not None)  # checked before torch is imported, which takes longer
    files.do(target, work)
