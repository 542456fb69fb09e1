"""`decompress`: a `.lic` file as an image file.

The model's own `decompress` runs, and returns a map whose rows are computed as they are written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.errors import ContainerError, OverlapToolError
from overlap_tool.files.codec import Codec
from overlap_tool.files.coding import own_code
from overlap_tool.files.coding.matching import (
    refuse_another_checkpoint,
    refuse_another_engine,
    refuse_impossible,
)
from overlap_tool.files.coding.waiting import codes_in_order, note_a_long_wait
from overlap_tool.files.formats import container
from overlap_tool.files.formats.addresses import located
from overlap_tool.files.formats.arrays import ArrayForm
from overlap_tool.files.formats.container import CodedString, Head
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.outputs import refuse_unwritable
from overlap_tool.files.formats.pixels import samples
from overlap_tool.files.region import Rectangle, area_of
from overlap_tool.files.running import Crew, Workspace, pour
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import IN_MEMORY, ResumedImage, Task
from overlap_tool.geometry.walk import Area


def decompress(
    codec: Codec,
    coded: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    in_memory: int = IN_MEMORY,
    resume: bool = False,
    quiet: bool = True,
    notify: Callable[[str], None] | None = None,
    any_engine: bool = False,
    region: Rectangle | None = None,
    crew: Crew | None = None,
) -> RunSummary:
    """Decode a `.lic` file to an image file. `any_engine` permits a file that other kernels wrote.

    With a `region`, the column and the row of its upper left pixel, its width and its height, only that
    rectangle is decoded and written; from an image coded in blocks, only the blocks under it are read. A
    `crew` computes the model's stages: `overlap_tool.distributed.decompress` provides one.
    """
    notes, source, target = RunNotes(notify), Path(coded), located(output)
    codec.refuse_if_no_codec()
    serial = codes_in_order(codec.model)
    head, strings = container.read(source, in_parts=region is not None and not serial)
    refuse_another_checkpoint(str(source), head, codec)
    refuse_impossible(str(source), head, codec, head.payload)
    refuse_another_engine(str(source), head, codec, any_engine, notes)
    area = area_of(region, head.height, head.width)
    form = ArrayForm("image", (area.rows.length, area.columns.length, head.channels))
    refuse_unwritable(target, form, head.frame.dtype, resume)
    if region is not None and serial:
        notes.note(f"{codec.architecture} codes one position after another: all of its strings are decoded")
    elif region is not None and not head.banded:
        notes.note(f"{source} is not coded in blocks: all of its strings are decoded")
    note_a_long_wait(codec, head.frame, in_memory, notes)
    task = Task("decompress", codec, source, target, notes, resume, quiet, crew)
    with crew or nullcontext(), task.job(memory=in_memory, region=region) as job:
        image = ResumedImage(job, area, form, head.frame.dtype)
        alone = region is not None and head.banded and not serial
        workspace = task.workspace(job, in_memory, "decompress", on_demand=alone)
        decode(codec, str(source), head, strings, workspace, image.take, image.missing)
        image.finish()
    if region is not None:
        return task.summary(job, Frame(*form.as_image, head.frame.dtype))
    return task.summary(job, head.frame, source.stat().st_size, head.most_bands)


def decode(
    codec: Codec,
    where: str,
    head: Head,
    strings: list[CodedString],
    workspace: Workspace,
    take: Callable[[int, NDArray[Any]], None],
    area: Area,
    refuse: Callable[[str], OverlapToolError] | None = None,
) -> None:
    """Pass an area of the decoded image to `take` in bands, each with the number of its first row in the
    image.

    `refuse` makes the errors.
    """
    frame = head.frame
    workspace.refuse_too_large(frame, head)
    refuse = refuse or (lambda reason: ContainerError(where, reason, container.AGAIN))
    with codec.running(workspace, frame):
        try:
            given = container.coded_of(head, strings)
        except (LookupError, TypeError, ValueError) as error:
            raise refuse(f"what its model gave makes no sense ({error})") from error
        decoded = own_code.decompress(
            codec, given, lambda said: refuse(f"its model cannot decode it ({said})")
        )
        if tuple(decoded.shape) != (1, codec.channels, *frame.padded):
            raise refuse(f"it decodes to the shape {tuple(decoded.shape)}, which is not that of its image")

        left, _, top, _ = frame.around
        padded = Area(area.rows.shift(top), area.columns.shift(left))

        def take_samples(start: int, band: Tensor) -> None:
            take(start - top, samples(band, frame, where, container.AGAIN))

        pour(decoded, take_samples, padded)
