"""`overlap-tool analyze`: overlaps, phases, arithmetic and memory of a checkpoint."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from overlap_tool.cli.options import (
    Arch,
    Debug,
    ModelClass,
    ModelKwargs,
    Plugin,
    Source,
    Stage,
    Trust,
    busy,
    load_plugins,
    parse_kwargs,
    parse_size,
)


class Format(str, Enum):
    rich = "rich"
    json = "json"
    markdown = "markdown"
    dot = "dot"


EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool analyze mbt2018.pt

  overlap-tool analyze zoo:cheng2020-attn --size 7680x4320 --stage g_a

  overlap-tool analyze weights.pt --model mynet.models:Net --kwargs '{"width": 64}' --format json
"""


def analyze(
    source: Source = "",
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print the report.")] = Format.rich,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="The image for memory and arithmetic.")
    ] = "3840x2160",
    stage: Stage = None,
    all_ops: Annotated[bool, typer.Option("--all-ops", help="List pointwise ops, too.")] = False,
    arch: Arch = None,
    model: ModelClass = None,
    kwargs: ModelKwargs = None,
    trust: Trust = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Derive the minimal overlaps of a model, layer by layer, and what tiles cost."""
    image, arguments = parse_size(size), parse_kwargs(kwargs)
    with busy(f"Analyzing {source or model}"):
        from overlap_tool.analysis import analyze as analyze_model

        load_plugins(plugin)
        analysis = analyze_model(
            source,
            size=image,
            stage=stage,
            architecture=arch,
            model_class=model,
            kwargs=arguments,
            trust=trust,
        )

        from overlap_tool import report
        from overlap_tool.report.terminal import show
    if format is Format.rich:
        show(analysis, Console(), all_ops)
    else:
        typer.echo(report.FORMATS[format.value](analysis))


analyze.__doc__ = f"{analyze.__doc__}\n{EXAMPLES}"
