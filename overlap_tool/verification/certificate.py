"""The result of a verification as plain data: every check with its figures, and all that it depends on."""

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
    """Where two maps differ, coarsely: how many numbers differ in every cell, over all channels.

    A cell is a square of `cell` rows and columns; `counts` has one tuple for each row of cells.
    """

    rows: int
    columns: int
    cell: int
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Check:
    """One question and its answer, on one image. `tile` is in pixels of the image.

    `where` is kept only if maps differ that should not.
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
    """An image that was used: its size, the padded size that the model got, and a hash of its pixels.

    `digests` are of what the untouched model returned: its stages' outputs, its own, and its strings.
    """

    name: str
    size: Size
    padded: Size
    sha256: str
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanRecord:
    """How a stage ran. Overlaps are in samples of its input, for an aligned tile; None with barriers."""

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
    """The machine and the versions that computed."""

    device: str
    cpu_capability: str
    threads: int
    libraries: Mapping[str, str]


@dataclass(frozen=True, repr=False)
class Certificate:
    """The result of `overlap-tool verify`. `time` is in UTC; `fallbacks` are layers run by a slow kernel."""

    source: str
    architecture: str
    arguments: Mapping[str, Any]
    weights_sha256: str
    engine: str
    arithmetic: str
    """The version of the arithmetic that defines the bits, except for those of `library_ops`."""
    machine: Machine
    time: str
    images: tuple[ImageRecord, ...]
    plans: tuple[PlanRecord, ...]
    checks: tuple[Check, ...]
    fallbacks: tuple[Fallback, ...] = ()
    library_ops: tuple[str, ...] = ()
    """Ops without an exact kernel, computed by PyTorch's own on whole tensors between the stages."""
    untiled: tuple[Untiled, ...] = ()
    """Parts that stay whole, and why: they are not checked separately."""
    call: str = ""
    """How the model was called, if not with an image alone: a method and its arguments."""

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
