"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from overlap_tool import bounds
from overlap_tool.errors import OptionError
from overlap_tool.legible import legible
from overlap_tool.settings import Size

StageOption = Annotated[str | None, typer.Option("--stage", help="Only this part of the model, such as g_a.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Load rules or architectures from a file. Repeatable."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow code that the file contains or names to run: a pickled module, a wrapped model's class.",
    ),
]
Large = Annotated[
    bool,
    typer.Option(
        "--large",
        help="Accept inputs beyond the usual bounds: huge files, models, images.",
        callback=bounds.lift,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True)
class ModelOptions:
    """The model that a command is about, and how to load it."""

    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint (.pt, .pth, .pth.tar, .safetensors), zoo:NAME for a seeded model, or "
            "zoo:NAME@QUALITY for CompressAI's pretrained one.",
            metavar="SOURCE",
            show_default=False,
        ),
    ] = ""
    architecture: Annotated[
        str | None,
        typer.Option("--arch", help="Take the checkpoint for this architecture instead of detecting it."),
    ] = None
    model_class: Annotated[
        str | None,
        typer.Option("--model", metavar="PKG.MODULE:CLASS", help="Your own class, to load the weights into."),
    ] = None
    kwargs: Annotated[
        str | None, typer.Option("--kwargs", metavar="JSON", help="Arguments of the --model class.")
    ] = None
    trust: Trust = False
    large: Large = False
    plugin: Plugin = None
    debug: Debug = False

    def __post_init__(self) -> None:
        glance_at_checkpoint(self.source)

    @property
    def name(self) -> str:
        return self.source or self.model_class or ""

    @property
    def read(self) -> list[str | os.PathLike[str]]:
        """The files that are read to load it."""
        return [self.source, *(self.plugin or ())]

    def arguments(self) -> dict[str, Any]:
        """The arguments of every function that loads a model, beside the source."""
        return {
            "architecture": self.architecture,
            "model_class": self.model_class,
            "kwargs": None if self.kwargs is None else parse_object("--kwargs", self.kwargs),
            "trust": self.trust,
        }


@dataclass(frozen=True)
class CallOptions:
    """How the model is called, if it takes more than an image."""

    example: Annotated[
        str | None,
        typer.Option(
            "--example",
            metavar="JSON",
            help='Named arguments that follow the image, such as {"qp": 21}; {"map": 3} is a map of 3 '
            "channels; if there is one, all arguments are named.",
        ),
    ] = None
    method: Annotated[
        str | None, typer.Option("--method", metavar="NAME", help="The method to call in place of forward.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of every function that is told how a model is called."""
        given = None if self.example is None else parse_object("--example", self.example)
        return {"example": None if given is None else _with_maps(given), "method": self.method}


def _with_maps(value: Any) -> Any:
    """The same value, with a small map in place of each object that stands for one."""
    if isinstance(value, dict) and set(value) == {"map"}:
        channels = value["map"]
        if type(channels) is not int or channels < 1:
            raise OptionError(
                f"--example {json.dumps(value)}",
                "is no map, which has a number of channels",
                'Write {"map": 3}',
            )
        import torch

        return torch.zeros(1, 1, 1, 1).expand(1, channels, 2, 2)
    if isinstance(value, dict):
        return {key: _with_maps(item) for key, item in value.items()}
    return [_with_maps(item) for item in value] if isinstance(value, list) else value


def glance_at_checkpoint(path: str | os.PathLike[str]) -> None:
    """Raise for a checkpoint over the limits before torch is imported, which takes longer than checking.

    One that cannot be read raises where it is loaded.
    """
    with suppress(OSError):
        if os.path.isfile(path):
            bounds.refuse_checkpoint(Path(path))


SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        help="The image size that memory is computed for; 3840x2160 if left out. For sound, the width.",
        show_default=False,
    ),
]


def busy(doing: str, quiet: bool = False) -> AbstractContextManager[object]:
    """Show what is being done on a terminal's stderr."""
    console = Console(stderr=True)
    return console.status(Text(legible(doing))) if console.is_terminal and not quiet else nullcontext()


def load_plugins(paths: list[Path] | None) -> None:
    """Import the installed plugins, and then those given as files."""
    from overlap_tool import plugins

    plugins.discover()
    if paths:
        from overlap_tool.checkpoint import look_in_working_folder

        look_in_working_folder()
    for path in paths or []:
        plugins.load_file(path)
    gc.freeze()  # what was imported stays: to look through all of it again took a third of `analyze`
    gc.enable()


def parse_size(text: str) -> Size:
    """Parse `3840x2160` as a size."""
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if match is None:
        raise OptionError(
            f"--size {text}", "is not a width and a height", "Write it as WIDTHxHEIGHT, such as 3840x2160"
        )
    return Size(int(match[1]), int(match[2]))


def parse_tile(text: str) -> Size:
    """Parse `256` or `1024x256` as a size."""
    match = re.fullmatch(r"(\d+)(?:[xX×](\d+))?", text.strip())
    if match is None:
        raise OptionError(
            f"--tile {text}", "is not a whole number of pixels", "Write --tile 256, or --tile 1024x256"
        )
    return Size(int(match[1]), int(match[2] or match[1]))


def parse_region(text: str | None) -> tuple[int, int, int, int] | None:
    """Parse `100,50,640,480` as the upper left pixel's column and row, width and height."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", text.replace(" ", ""))
    if match is None:
        raise OptionError(
            f"--region {text}",
            "is not a rectangle",
            "Write it as X,Y,WIDTH,HEIGHT in pixels of the output, such as 100,50,640,480",
        )
    x, y, width, height = map(int, match.groups())
    return x, y, width, height


def refuse_unfit_target(option: str, path: Path | None, read: Iterable[str | os.PathLike[str]]) -> None:
    """Raise, before any work is done, if a path cannot be written or is an input of the command."""
    if path is None:
        return
    where = f"{option} {path}"
    if not os.path.isdir(path.parent):
        raise OptionError(where, "its folder does not exist", make_folder(path.parent))
    if os.path.isdir(path):
        raise OptionError(where, "is a folder", "Name a file in it")
    from overlap_tool.checkpoint.writing import refuse_overwriting

    refuse_overwriting(where, path, read)


def make_folder(path: Path) -> str:
    """The way out where a folder is missing."""
    return f"Run mkdir -p {shlex.quote(str(path))} first"


def parse_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # also raised for numbers of thousands of digits
        raise OptionError(
            f"{option} {text}", f"is not JSON ({error})", "Write it as an object, such as '{\"N\": 128}'"
        ) from error
    if not isinstance(value, dict):
        raise OptionError(
            f"{option} {text}", "is not a JSON object", "Write it as an object, such as '{\"N\": 128}'"
        )
    return value
