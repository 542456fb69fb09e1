"""The command line: one small file per command. Commands import torch; `--help` does not."""

from __future__ import annotations

import gc
import sys
import warnings
from contextvars import copy_context
from typing import Annotated

import typer

from overlap_tool import __version__
from overlap_tool.cli.analyze import analyze
from overlap_tool.cli.compress import compress
from overlap_tool.cli.decompress import decompress
from overlap_tool.cli.deferred import defer
from overlap_tool.cli.messages import say
from overlap_tool.cli.run import run
from overlap_tool.cli.selftest import selftest
from overlap_tool.cli.spelling import MistypedError, as_one_line, as_typed
from overlap_tool.cli.update import update
from overlap_tool.cli.verify import verify
from overlap_tool.cli.wrap import wrap
from overlap_tool.errors import OverlapToolError

app = typer.Typer(
    name="overlap-tool",
    help="Exact, retraining-free tiled inference for learned image codecs and other CNNs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(analyze)
app.command()(wrap)
app.command()(verify)
app.command()(compress)
app.command()(decompress)
app.command()(update)
app.command()(run)
app.command()(selftest)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"overlap-tool {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error of this package is one message on stderr and exit code 2."""
    defer()
    gc.disable()  # while modules are imported, as in `plugins.importing`; `load_plugins` ends it
    # CompressAI scripts a function on import, which newer versions of torch warn about
    warnings.filterwarnings("ignore", message=".*torch.jit.*")
    # our own errors and limits say the same; a library leaves warning filters to the program
    warnings.filterwarnings("ignore", message=".*pickle protocol.*")
    warnings.filterwarnings("ignore", message=".*decompression bomb.*")
    try:  # options hold for this run
        sys.exit(copy_context().run(app, standalone_mode=False))
    except OverlapToolError as error:
        if "--debug" in sys.argv:
            raise
        say(as_typed(error, app), "error")
    except MistypedError as error:
        say(as_one_line(error), "error")
    finally:
        gc.freeze()  # or Python looks for garbage in all that there is once more, as it ends
        gc.enable()
    sys.exit(2)
