"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from overlap_tool.errors import OptionError

if TYPE_CHECKING:
    from overlap_tool.files import Summary

Source = Annotated[
    str,
    typer.Argument(
        help="A checkpoint (.pt, .pth, .pth.tar, .safetensors), zoo:NAME for a seeded model, or "
        "zoo:NAME@QUALITY for CompressAI's pretrained one.",
        metavar="[SOURCE]",
        show_default=False,
    ),
]
Stage = Annotated[str | None, typer.Option("--stage", help="Only this part of the model, such as g_a.")]
Arch = Annotated[
    str | None,
    typer.Option("--arch", help="Take the checkpoint for this architecture instead of detecting it."),
]
ModelClass = Annotated[
    str | None,
    typer.Option("--model", metavar="PKG.MODULE:CLASS", help="Your own class, to load the weights into."),
]
ModelKwargs = Annotated[
    str | None, typer.Option("--kwargs", metavar="JSON", help="Arguments of the --model class.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Load a pickled module, which runs code from the file. Off by default."),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Load rules or architectures from a file. Repeatable."),
]
Tiled = Annotated[
    Path,
    typer.Option(
        "--model", metavar="MODEL.tiled.pt", help="What overlap-tool wrap wrote.", show_default=False
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
InMemory = Annotated[
    str,
    typer.Option(
        "--in-memory",
        metavar="256MiB",
        help="The largest feature map that is kept in memory; larger ones are coded in bands.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with a run that was stopped; the result is the same.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no notes, no summary.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def told_on_stderr(quiet: bool) -> Callable[[str], None]:
    """Where notes of a long run go."""
    console = Console(stderr=True)

    def tell(note: str) -> None:
        if not quiet:
            console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)

    return tell


def show_summary(summary: Summary, quiet: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(summary.to_json())
    elif not quiet:
        typer.echo(summary.to_text())


@contextmanager
def resumable() -> Iterator[None]:
    """A run that is stopped by hand says how it is gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; --resume goes on from here", highlight=False)
        raise typer.Exit(130) from None


def busy(doing: str, quiet: bool = False) -> AbstractContextManager[object]:
    """Say on a terminal's stderr what is being done."""
    console = Console(stderr=True)
    return console.status(doing) if console.is_terminal and not quiet else nullcontext()


def load_plugins(paths: Sequence[Path] | None) -> None:
    """Import the installed plugins, and then those given as files."""
    from overlap_tool import plugins

    plugins.discover()
    for path in paths or []:
        plugins.load_file(path)


def parse_size(text: str) -> tuple[int, int]:
    """`3840x2160` as width and height."""
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if match is None:
        raise OptionError(
            f"--size {text}", "is not a width and a height", "Write it as WIDTHxHEIGHT, such as 3840x2160"
        )
    return int(match[1]), int(match[2])


def parse_tile(text: str) -> tuple[int, int]:
    """`256`, or `1024x256` as width and height."""
    match = re.fullmatch(r"(\d+)(?:[xX×](\d+))?", text.strip())
    if match is None:
        raise OptionError(
            f"--tile {text}", "is not a whole number of pixels", "Write --tile 256, or --tile 1024x256"
        )
    return int(match[1]), int(match[2] or match[1])


def refuse_missing_folder(option: str, path: Path | None) -> None:
    """Before the work is done, and not after."""
    if path is not None and not path.parent.is_dir():
        raise OptionError(f"{option} {path}", "its folder does not exist", "Make it, or name another file")
    if path is not None and path.is_dir():
        raise OptionError(f"{option} {path}", "is a folder", "Name a file in it")


def parse_kwargs(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(
            f"--kwargs {text}", f"is not JSON ({error})", "Write it as an object, such as '{\"N\": 128}'"
        ) from error
    if not isinstance(value, dict):
        raise OptionError(
            f"--kwargs {text}", "is not a JSON object", "Write it as an object, such as '{\"N\": 128}'"
        )
    return value
