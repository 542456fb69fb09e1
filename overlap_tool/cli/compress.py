"""`overlap-tool compress`: an image file as a `.lic` file, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.on_files import FileOptions, ImageFile, InMemoryOption, WorkerOptions, glance_at_image

if TYPE_CHECKING:
    from overlap_tool.files import Codec, RunSummary

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool compress --model mbt2018.tiled.pt photo.png

  overlap-tool compress --model mbt2018.tiled.pt scene.tif -o scene.lic --check --json

  overlap-tool compress --model mbt2018-mean.tiled.pt scene.zarr -o scene.lic --resume

  overlap-tool compress --model mbt2018-mean.tiled.pt scene.zarr -o scene.lic --blocks 1024

  overlap-tool compress --model mbt2018-mean.tiled.pt scene.zarr -o scene.lic --workers 4
"""


@command(EXAMPLES)
def compress(
    image: ImageFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; NAME.lic if left out.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Decode what was written, and report its PSNR.")
    ] = False,
    blocks: Annotated[
        int | None,
        typer.Option(
            "--blocks",
            metavar="1024",
            help="Code squares of this many pixels separately, so that decompress --region reads few.",
            show_default=False,
        ),
    ] = None,
    in_memory: InMemoryOption = "256MiB",
    *,
    where: WorkerOptions,
    files: FileOptions,
) -> None:
    """Compress an image file of any size with a wrapped codec."""

    from overlap_tool.files.formats.addresses import Address, located

    beside = Path(image.name) if isinstance(located(image), Address) else image
    target = output or beside.with_suffix(".lic")

    def work(codec: Codec, **how: Any) -> RunSummary:
        from overlap_tool.settings import parse_bytes

        how |= {"in_memory": parse_bytes(in_memory), "check": check, "blocks": blocks}
        if not where.asked:
            from overlap_tool.files import compress

            return compress(codec, image, target, **how)
        from overlap_tool import distributed

        return distributed.compress(codec, image, target, **on_workers, **how)

    on_workers = where.arguments(files)
    glance_at_image(image)
    files.do(target, work)
