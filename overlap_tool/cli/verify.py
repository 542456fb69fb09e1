"""`overlap-tool verify`: is a tiled model the untouched one, bit for bit? For people and for CI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from overlap_tool.cli.command import command
from overlap_tool.cli.options import (
    CallOptions,
    Device,
    ModelOptions,
    StageOption,
    load_plugins,
    parse_size,
    parse_tile,
    refuse_unfit_target,
)
from overlap_tool.legible import legible
from overlap_tool.settings import SCHEDULES, Order, Schedule

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool verify mbt2018.pt --tile 256

  overlap-tool verify mbt2018.pt --tile 128,256,512 --schedule both --report report.json --junit junit.xml

  overlap-tool verify mbt2018.tiled.pt --image photo.png --html report.html

  overlap-tool verify zoo:bmshj2018-hyperprior --tile 128 --ablate

  overlap-tool verify mbt2018.pt --against of-another-machine.json

  overlap-tool verify weights.pt --model mynet.models:Net --example '{"qp": 21}' --method encode

[bold]Exit codes[/bold]

  0 all holds, 1 something does not, 2 bad input
"""


@command(EXAMPLES)
def verify(
    tiles: Annotated[
        str | None,
        typer.Option(
            "--tile",
            metavar="N or WxH,...",
            help="Tiles in pixels of the image, or samples of a sound, with commas between them; what a "
            "wrapped model was wrapped with, or wrap's own if left out.",
        ),
    ] = None,
    schedule: Annotated[
        Literal[Schedule, Order, "both"] | None,
        typer.Option(
            "--schedule",
            help="stream, tiles or both; for a closed loop wavefront, raster or both. Both if left out, or a "
            "wrapped model's own.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="WxH",
            help="Size of the generated image; large enough for the tiles if left out.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", help="A PNG or JPEG instead. Repeatable.")
    ] = None,
    stage: StageOption = None,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Independent tiles that have one shape at every op.")
    ] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Show what overlaps of one sample less do to rate and quality.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="FILE.json",
            help="Compare with another machine's certificate of the same model and images.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.json", help="Write the certificate.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE.xml", help="Write the checks for a CI.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE.md", help="Write a summary in Markdown.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write a page, with pictures of where bits differ."),
    ] = None,
    device: Device = "cpu",
    *,
    model: ModelOptions,
    call: CallOptions,
) -> None:
    """Check that tiles give the untouched model's bits, and that overlaps are minimal."""
    sizes = None if tiles is None else [parse_tile(part) for part in tiles.split(",")]
    sides, arguments = None if size is None else parse_size(size), model.arguments()
    for option, path in (
        ("--report", report),
        ("--junit", junit),
        ("--summary", summary),
        ("--html", html),
    ):
        refuse_unfit_target(
            option, path, [*model.read, *(images or []), *([] if against is None else [against])]
        )
    from overlap_tool import report as reports
    from overlap_tool.checkpoint import write_bytes
    from overlap_tool.report.terminal import screen, show_certificate
    from overlap_tool.verification import verify as verify_model

    load_plugins(model.plugin)
    certificate = verify_model(
        model.source,
        tiles=sizes,
        schedules=None if schedule is None else SCHEDULES if schedule == "both" else [schedule],
        size=sides,
        images=images or [],
        stage=stage,
        uniform=uniform,
        ablate=ablate,
        device=device,
        against=against,
        **arguments,
        **call.arguments(),
        progress=_told_on_a_terminal(),
    )
    for path, written in (
        (report, reports.certificate_to_json),
        (junit, reports.certificate_to_junit),
        (summary, reports.certificate_to_markdown),
        (html, reports.certificate_to_html),
    ):
        if path is not None:
            write_bytes(path, written(certificate).encode())
    show_certificate(certificate, screen())
    if not certificate.holds:
        raise typer.Exit(1)


def _told_on_a_terminal() -> Callable[[str], None]:
    """Show each step on a line of its own; progress bars are drawn below."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return lambda doing: None
    return lambda doing: console.print(Text(legible(doing), "dim"))
