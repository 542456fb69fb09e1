"""What every run on files has: a resumable job, an output, and a summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overlap_tool.checkpoint.writing import refuse_overwriting
from overlap_tool.errors import OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.formats.arrays import ArrayForm
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.outputs import open_output
from overlap_tool.files.job import Job, stamp
from overlap_tool.files.running import Crew, Workspace
from overlap_tool.files.summary import RunNotes, RunSummary, peak_memory_bytes
from overlap_tool.geometry import Span
from overlap_tool.geometry.layout import Kind
from overlap_tool.geometry.walk import Area

IN_MEMORY = 256 << 20
"""The default memory limit of a map, in bytes; larger maps are coded in bands."""


def refuse_no_file(target: Path) -> None:
    """Raise for an impossible output, before any work is done."""
    if not target.parent.is_dir() or target.is_dir():
        raise OptionError(
            f"output={str(target)!r}", "cannot be written there", "Name a file in a folder that exists"
        )


@dataclass(frozen=True)
class Task:
    """A command, from a file to a file."""

    command: str
    codec: Codec
    source: Path
    target: Path
    notes: RunNotes
    resume: bool
    quiet: bool
    crew: Crew | None = None

    def job(self, **settings: Any) -> Job:
        """The job; `settings` are what else the result depends on."""
        refuse_overwriting(f"output={str(self.target)!r}", self.target, (self.source, self.codec.where))
        settings |= {"workers": self.crew is not None}  # with workers, other maps are kept
        identity = {"command": self.command, **self.codec.identity, "input": stamp(self.source), **settings}
        return Job(self.target, identity, self.resume)

    def workspace(self, job: Job, in_memory: int, purpose: str, **how: Any) -> Workspace:
        return Workspace(job, in_memory, self.quiet, self.notes.note, purpose, crew=self.crew, **how)

    def summary(
        self,
        job: Job,
        image: Frame,
        size: int | None = None,
        bands: int | None = None,
        psnr: float | None = None,
        kind: Kind = "image",
        depth: int | None = None,
    ) -> RunSummary:
        return RunSummary(
            command=self.command,
            input=str(self.source),
            output=str(self.target),
            width=image.width,
            height=image.height,
            depth=depth,
            kind=kind,
            channels=image.channels,
            sample_bits=8 * image.dtype.itemsize,
            bytes=size,
            bits_per_pixel=None if size is None else 8 * size / (image.width * image.height),
            bands=bands,
            psnr=psnr,
            resumed=job.resumed,
            seconds=self.notes.seconds,
            peak_memory_bytes=peak_memory_bytes(),
            notes=self.notes.notes,
        )


class ResumedImage:
    """The image that a job makes, in bands: an area of a larger one, or all of it. `done` of its rows are on
    disk already."""

    def __init__(
        self, job: Job, area: Area, form: ArrayForm, dtype: np.dtype[Any], profile: bytes | None = None
    ) -> None:
        self.job = job
        self.area = area
        self.done = job.done.get("image", 0)
        self.output = open_output(job.target, job.folder, form, dtype, "image" in job.done, profile)

    @property
    def missing(self) -> Area:
        """The rest of the area, not on disk yet."""
        return Area(Span(self.area.rows.start + self.done, self.area.rows.stop), self.area.columns)

    def take(self, start: int, rows: NDArray[Any]) -> None:
        """Add a band, by its first row in the larger image."""
        durable = self.output.write(start - self.area.rows.start, rows)
        if durable > self.done:
            self.done = durable
            self.job.mark("image", durable)

    def finish(self) -> None:
        self.job.finish(self.output.finish())
