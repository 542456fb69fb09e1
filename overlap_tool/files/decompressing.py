"""`decompress`: a `.lic` file as an image file.

The model's own `decompress` runs, and gives a map whose rows are computed as they are written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
from overlap_tool.files.coding.waiting import tell_a_long_wait
from overlap_tool.files.formats import container
from overlap_tool.files.formats.container import CodedString, Head
from overlap_tool.files.formats.outputs import refuse_unwritable
from overlap_tool.files.formats.pixels import inner_rows, samples
from overlap_tool.files.running import Workspace, pour
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import IN_MEMORY, ResumedImage, Task


def decompress(
    codec: Codec,
    coded: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    in_memory: int = IN_MEMORY,
    resume: bool = False,
    quiet: bool = True,
    tell: Callable[[str], None] | None = None,
    any_engine: bool = False,
) -> RunSummary:
    """Decode a `.lic` file to an image file. `any_engine` tries one that other kernels wrote."""
    notes, source, target = RunNotes(tell), Path(coded), Path(output)
    codec.refuse_if_no_codec()
    head, strings = container.read(source)
    refuse_another_checkpoint(str(source), head, codec)
    refuse_impossible(str(source), head, codec, sum(map(len, strings)))
    refuse_another_engine(str(source), head, codec, any_engine, notes)
    shape = (head.height, head.width, head.channels)
    refuse_unwritable(target, shape, head.frame.dtype, resume)
    tell_a_long_wait(codec, head.frame, in_memory, notes)
    task = Task("decompress", codec, source, target, notes, resume, quiet)
    with task.job(memory=in_memory) as job:
        image = ResumedImage(job, shape, head.frame.dtype)
        workspace = task.workspace(job, in_memory, "decompress")
        decode(codec, str(source), head, strings, workspace, image.take, image.done)
        image.finish()
    return task.summary(job, head.frame, source.stat().st_size, head.most_bands)


def decode(
    codec: Codec,
    where: str,
    head: Head,
    strings: list[CodedString],
    workspace: Workspace,
    take: Callable[[int, NDArray[Any]], None],
    done: int = 0,
    refuse: Callable[[str], OverlapToolError] | None = None,
) -> None:
    """Hand on the decoded image's rows in bands, those from `done` on at least. `refuse` makes refusals."""
    frame = head.frame
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

        def crop(start: int, band: Tensor) -> None:
            inside, rows = inner_rows(start, samples(band, frame, where, container.AGAIN), frame)
            if len(rows):
                take(inside, rows)

        if done < frame.height:
            pour(decoded, crop, done + frame.around[2] if done else 0)
