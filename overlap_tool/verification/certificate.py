"""What a verification found, as plain data: every check with its figures, and all that it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from overlap_tool.kernels import Fallback
from overlap_tool.models.stages import Untiled
from overlap_tool.settings import Order, Schedule, Size

SCHEMA = 1

Status = Literal["passed", "failed", "skipped", "noted"]
"""`noted` is information only, such as the difference to other kernels: it neither passes nor fails."""

Figure = int | float | bool | str

MODEL = "model"
"""Stands for the whole model where a check names a stage."""


@dataclass(frozen=True)
class DifferenceMap:
    """Where a map differs, coarsely: how many of its numbers do in every cell, all channels together.

    A cell is a square of `cell` rows and columns; `counts` has a row of them for each row of cells.
    """

    rows: int
    columns: int
    cell: int
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Check:
    """One question, and its answer on one image. `tile` is in pixels of the image.

    `where` is kept only of maps that differ and should not.
    """

    name: str
    stage: str
    image: str
    status: Status
    message: str = ""
    tile: Size | None = None
    schedule: Schedule | Order | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    where: DifferenceMap | None = None


@dataclass(frozen=True)
class ImageRecord:
    """An image that was used: its size, the size that the model got, and a hash of its pixels.

    `digests` are of what the untouched model gave: outputs of its stages, its own, and its strings.
    """

    name: str
    size: Size
    padded: Size
    sha256: str
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanRecord:
    """How a stage ran. The overlaps are in samples of its input, for an aligned tile; None with barriers."""

    stage: str
    image: str
    tile: Size
    schedule: Schedule
    passes: int
    tiles: int
    left: int | None
    right: int | None
    top: int | None
    bottom: int | None
    macs: int
    working_bytes: int
    store_bytes: int
    peak_bytes: int
    uniform: bool = False


@dataclass(frozen=True)
class Machine:
    """What computed."""

    device: str
    cpu_capability: str
    threads: int
    libraries: Mapping[str, str]


@dataclass(frozen=True, repr=False)
class Certificate:
    """The answer of `overlap-tool verify`. `time` is in UTC; `fallbacks` are layers that ran slowly."""

    source: str
    architecture: str
    arguments: Mapping[str, Any]
    weights_sha256: str
    engine: str
    arithmetic: str
    """Whose bits these are, but for what `library_ops` computed."""
    machine: Machine
    time: str
    images: tuple[ImageRecord, ...]
    plans: tuple[PlanRecord, ...]
    checks: tuple[Check, ...]
    fallbacks: tuple[Fallback, ...] = ()
    library_ops: tuple[str, ...] = ()
    """Ops without an exact kernel, which PyTorch's own computed of whole tensors, between the stages."""
    untiled: tuple[Untiled, ...] = ()
    """Parts that stay whole, and why: no check is made of them by themselves."""
    call: str = ""
    """How the model was called, if not with an image alone: a method, and its arguments."""

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.of(status))} {status}" for status in get_args(Status))
        return f"Certificate({self.architecture} {self.verdict}: {counts})"

    def _repr_html_(self) -> str:
        import overlap_tool

        return overlap_tool.report.fragment(self)

    @property
    def holds(self) -> bool:
        return not self.of("failed")

    @property
    def verdict(self) -> str:
        return "holds" if self.holds else "fails"

    def of(self, status: Status) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == status)
