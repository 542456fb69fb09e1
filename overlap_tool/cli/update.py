"""`overlap-tool update`: codes a compressed image again of which a rectangle has changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.on_files import FileOptions, InMemoryOption, glance_at_image
from overlap_tool.cli.options import parse_region
from overlap_tool.errors import OptionError

if TYPE_CHECKING:
    from overlap_tool.files import Codec, RunSummary

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool update --model mbt2018-mean.tiled.pt scene.lic --image changed.zarr --region 100,100,500,400

  overlap-tool update --model mbt2018-mean.tiled.pt scene.lic --image new.png --region 0,0,64,64 -o new.lic
"""


@command(EXAMPLES)
def update(
    coded: Annotated[
        Path, typer.Argument(help="What overlap-tool compress --blocks wrote.", metavar="FILE.lic")
    ],
    image: Annotated[Path, typer.Option("--image", metavar="FILE", help="The whole image, as it is now.")],
    region: Annotated[
        str,
        typer.Option(
            "--region",
            metavar="X,Y,WIDTH,HEIGHT",
            help="The rectangle that has changed; nothing outside of it has.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; in the place of the old one if left out."),
    ] = None,
    in_memory: InMemoryOption = "256MiB",
    *,
    files: FileOptions,
) -> None:
    """Code again the parts of a compressed image that a change reaches, and copy the rest."""

    if files.resume:
        raise OptionError("--resume", "an update keeps nothing of one that was stopped", "Leave it out")

    def work(codec: Codec, resume: bool, **how: Any) -> RunSummary:
        from overlap_tool.files import update
        from overlap_tool.settings import parse_bytes

        wanted, size = parse_region(region), parse_bytes(in_memory)
        assert wanted is not None
        return update(codec, coded, image, wanted, output, in_memory=size, **how)

    from overlap_tool.files.formats import container

    container.read(coded)  # checked before torch is imported, which takes longer
    glance_at_image(image)
    files.do(output or coded, work)
