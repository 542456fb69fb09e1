"""`overlap-tool analyze`: overlaps, phases, arithmetic and memory of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.options import (
    CallOptions,
    ModelOptions,
    SizeOption,
    StageOption,
    busy,
    load_plugins,
    make_folder,
    parse_size,
    refuse_unfit_target,
)
from overlap_tool.cli.workers import parse_workers, refuse_other_formats, show_outlook
from overlap_tool.errors import OptionError
from overlap_tool.settings import USUAL_SIZE, ReportFormat, Size

if TYPE_CHECKING:
    from overlap_tool.distributed.outlook import CodingOutlook, Outlook

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool analyze mbt2018.pt

  overlap-tool analyze mbt2018.pt --html report.html --memory 500MB

  overlap-tool analyze zoo:cheng2020-attn --size 7680x4320 --stage g_a

  overlap-tool analyze weights.pt --model mynet.models:Net --kwargs '{"width": 64}' --format json

  overlap-tool analyze weights.pt --model mynet.models:Net --example '{"qp": 21}'

  overlap-tool analyze weights.pt --model mynet.models:Net --method encode

  overlap-tool analyze zoo:mbt2018-mean --size 100000x100000 --workers 16x32GiB
"""


@command(EXAMPLES)
def analyze(
    format: Annotated[ReportFormat, typer.Option("--format", "-f", help="How to print the report.")] = "rich",
    size: SizeOption = None,
    stage: StageOption = None,
    all_ops: Annotated[bool, typer.Option("--all-ops", help="List pointwise ops, too.")] = False,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="2GiB", help="Show the tile that wrap --memory would choose."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write the report as a page, with pictures."),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FOLDER", help="Write its pictures there, as SVG.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FOLDER", help="Write its pictures there, as PNG.")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar="16x32GiB",
            help="Show instead what this many workers, with this much memory each, would need.",
        ),
    ] = None,
    *,
    model: ModelOptions,
    call: CallOptions,
) -> None:
    """Derive the minimal overlaps of a model, layer by layer, and what tiles cost."""
    image, arguments = None if size is None else parse_size(size), model.arguments()
    if workers is not None:
        refuse_other_formats(format, html=html, svg=svg, png=png)
        of_workers = parse_workers(workers)
        with busy(f"Planning {model.name}"):
            load_plugins(model.plugin)
            found = _outlook(model, call, memory, stage, image or USUAL_SIZE, *of_workers)
        show_outlook(*found, image or USUAL_SIZE, of_workers[0], format)
        return
    refuse_unfit_target("--html", html, model.read)
    _refuse_no_folder("--svg", svg)
    _refuse_no_folder("--png", png)
    with busy(f"Analyzing {model.name}"):
        from overlap_tool.planning.analysis import analyze as analyze_model

        load_plugins(model.plugin)
        analysis = analyze_model(
            model.source,
            size=image,
            memory=memory,
            stage=stage,
            **arguments,
            **call.arguments(),
        )

        from overlap_tool import report
        from overlap_tool.checkpoint import write_bytes
        from overlap_tool.report.terminal import screen, show

        pages = {} if html is None else {html: report.to_html(analysis).encode()}
        pages |= _inside(svg, report.svg_files(analysis)) if svg is not None else {}
        pages |= _inside(png, report.png_files(analysis)) if png is not None else {}
        for path, content in pages.items():
            write_bytes(path, content)
    if format == "rich":
        show(analysis, screen(), all_ops)
    else:
        typer.echo(report.FORMATS[format](analysis))


def _outlook(
    model: ModelOptions, call: CallOptions, memory: str | None, stage: str | None, size: Size, *workers: int
) -> tuple[list[Outlook], CodingOutlook | None]:
    from overlap_tool import checkpoint
    from overlap_tool.distributed.outlook import coding_outlook, outlook
    from overlap_tool.files import Codec
    from overlap_tool.wrapping import retrofit

    loaded = checkpoint.load_checkpoint(model.source, **model.arguments())
    tiled = retrofit.wrap(loaded.model, memory=memory, inplace=True, **call.arguments())
    codec = Codec(tiled, loaded.architecture, "", model.name)
    passes = outlook(codec, size, *workers, only=stage)
    return passes, coding_outlook(codec, size) if stage is None else None


def _inside(folder: Path, files: Mapping[str, bytes]) -> dict[Path, bytes]:
    folder.mkdir(exist_ok=True)
    return {folder / name: content for name, content in files.items()}


def _refuse_no_folder(option: str, path: Path | None) -> None:
    """Raise unless the path is a folder, or can be created in one that exists."""
    if path is not None and path.exists() and not path.is_dir():
        raise OptionError(f"{option} {path}", "is not a folder", "Name a folder for the pictures")
    if path is not None and not path.absolute().parent.is_dir():
        raise OptionError(f"{option} {path}", "the folder above it does not exist", make_folder(path.parent))
