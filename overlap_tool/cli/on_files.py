"""What `compress`, `decompress`, `update` and `run` share: a wrapped model, and a long run on files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlap_tool.cli.messages import say
from overlap_tool.cli.options import (
    Debug,
    Device,
    Large,
    Plugin,
    Trust,
    busy,
    glance_at_checkpoint,
    load_plugins,
)
from overlap_tool.errors import OptionError
from overlap_tool.legible import legible

if TYPE_CHECKING:
    from collections.abc import Callable

    from overlap_tool.files import RunSummary
    from overlap_tool.geometry.layout import Kind

ImageFile = Annotated[Path, typer.Argument(help="A PNG, JPEG, WebP, TIFF or .npy file, or a Zarr folder.")]
InMemoryOption = Annotated[
    str,
    typer.Option(
        "--in-memory",
        metavar="256MiB",
        help="The largest feature map that is kept in memory; larger ones are coded in bands.",
    ),
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="X,Y,WIDTH,HEIGHT",
        help="Only this rectangle of the output: the same pixels, and nothing else is computed.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class WorkerOptions:
    """Where a run is computed, if not in this process."""

    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", help="Compute in N processes of this machine.", show_default=False
        ),
    ] = None
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="ADDRESS",
            help="Compute on the workers of this scheduler.",
            show_default=False,
        ),
    ] = None
    piece: Annotated[
        int | None,
        typer.Option("--piece", metavar="4096", help="Side in pixels of what a worker computes at once."),
    ] = None

    @property
    def asked(self) -> bool:
        return self.workers is not None or self.dask is not None

    def arguments(self, files: FileOptions, region: str | None = None) -> dict[str, Any]:
        """For the functions of `overlap_tool.distributed`; empty if no workers are asked for."""
        if not self.asked:
            if self.piece is not None:
                raise OptionError("--piece", "is for several processes", "Add --workers 2, or leave it out")
            return {}
        if region is not None:
            raise OptionError(
                "--region", "is computed in one process", "Leave --workers and --dask out, or --region"
            )
        if files.plugin:
            raise OptionError(
                "--plugin", "is a file of this machine", "Install it as a package on all workers"
            )
        return {"workers": self.workers, "dask": self.dask, "piece": self.piece, "trust": files.trust}


def glance_at_image(path: Path, *others: Kind) -> None:
    """Raise for an image that cannot be read or is too large, before torch is imported.

    It may be of one of these other kinds, too.
    """
    from overlap_tool.files.formats.pictures import glance

    glance(path, ("image", *others))


@dataclass(frozen=True)
class FileOptions:
    """The options of these commands beside their input and output."""

    model: Annotated[
        Path,
        typer.Option(
            "--model", metavar="MODEL.tiled.pt", help="What overlap-tool wrap wrote.", show_default=False
        ),
    ]
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume a run that was stopped; the result is the same.")
    ] = False
    device: Device = "cpu"
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no notes, no summary.")] = (
        False
    )
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False
    trust: Trust = False
    large: Large = False
    plugin: Plugin = None
    debug: Debug = False

    def __post_init__(self) -> None:
        glance_at_checkpoint(self.model)

    def do(self, target: Path, work: Callable[..., RunSummary]) -> None:
        """Load the model, make `target` with it, and print the summary."""
        with busy(f"Loading {self.model}", self.quiet):
            from overlap_tool.checkpoint.writing import refuse_overwriting
            from overlap_tool.files import Codec

            refuse_overwriting(f"--output {target}", target, self.plugin or ())
            load_plugins(self.plugin)
            codec = Codec.load(self.model, self.device, trust=self.trust)
        try:
            summary = work(codec, resume=self.resume, quiet=self.quiet, notify=self._notify)
        except KeyboardInterrupt:
            say("stopped; --resume continues from here")
            raise typer.Exit(130) from None
        if self.as_json:
            typer.echo(summary.to_json())
        elif not self.quiet:
            typer.echo(legible(summary.to_text()))

    def _notify(self, note: str) -> None:
        if not self.quiet:
            say(note, "note", "yellow")
