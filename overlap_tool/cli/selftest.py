"""`overlap-tool selftest`: does this machine compute the same bits as every other?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overlap_tool.cli.command import command
from overlap_tool.cli.options import Debug, Device, busy, load_plugins, refuse_unfit_target

EXAMPLES = """
[bold]Examples[/bold]

  overlap-tool selftest

  overlap-tool selftest --models --device cuda

  overlap-tool selftest --report here.json && echo "the bits of arithmetic 1"

[bold]Exit codes[/bold]

  0 all digests are the published ones, 1 some differ, 2 bad input
"""


@command(EXAMPLES)
def selftest(
    models: Annotated[
        bool,
        typer.Option(
            "--models",
            help="Models, too: tables, outputs, strings and decoded images of all architectures. Takes a "
            "minute, and needs CompressAI.",
        ),
    ] = False,
    device: Device = "cpu",
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.json", help="Write what was found.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare this machine's arithmetic with the published digests."""
    refuse_unfit_target("--report", report, [])
    with busy("Computing what has a published digest"):
        from overlap_tool import report as reports
        from overlap_tool.checkpoint import write_bytes
        from overlap_tool.report.terminal import screen, show_selftest
        from overlap_tool.verification import selftest as run

        load_plugins(None)
        found = run(models=models, device=device)
    if report is not None:
        write_bytes(report, reports.selftest_to_json(found).encode())
    show_selftest(found, screen())
    if not found.holds:
        raise typer.Exit(1)
