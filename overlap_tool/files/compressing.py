"""`compress`: an image file as a `.lic` file.

The model's own `compress` runs on a map in place of the image. It codes what the untouched model codes under
`exact_kernels()`, so the strings are the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from overlap_tool import bounds
from overlap_tool.errors import CodingError, OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.coding import own_code
from overlap_tool.files.coding.matching import refuse_impossible
from overlap_tool.files.coding.waiting import codes_in_order, note_a_long_wait
from overlap_tool.files.decompressing import decode
from overlap_tool.files.formats import container
from overlap_tool.files.formats.addresses import located
from overlap_tool.files.formats.container import CodedString, Head
from overlap_tool.files.formats.frame import Frame, padding
from overlap_tool.files.formats.pictures import Picture, open_picture, read_window
from overlap_tool.files.formats.pixels import PictureNumbers, refuse_channels
from overlap_tool.files.job import Job
from overlap_tool.files.running import Crew, Workspace
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import IN_MEMORY, Task, refuse_no_file
from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area
from overlap_tool.runtime.lazy import LazyMap


def compress(
    codec: Codec,
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    in_memory: int = IN_MEMORY,
    check: bool = False,
    blocks: int | None = None,
    resume: bool = False,
    quiet: bool = True,
    notify: Callable[[str], None] | None = None,
    crew: Crew | None = None,
) -> RunSummary:
    """Code an image file as a `.lic` file. `check` decodes it again, and reports the PSNR.

    `blocks` codes squares of so many pixels a side as separate strings, so that `decompress` reads and
    decodes only those under a region; symbols and decoded image are unchanged. A `crew` computes the model's
    stages: `overlap_tool.distributed.compress` provides one.
    """
    notes, source, target = RunNotes(notify), located(image), Path(output)
    codec.refuse_if_no_codec()
    refuse_no_file(target)
    picture = open_picture(source)
    if picture.missing:
        notes.note(f"{source}: {picture.missing}")
    if picture.profile is not None:
        notes.note(f"the colour profile of {source} is not kept: a .lic file holds none")
    refuse_channels(str(source), picture, codec.channels)
    height, width, _ = picture.shape
    dtype = picture.dtype.newbyteorder("=")
    frame = Frame(height, width, codec.channels, dtype, padding(height, width, codec.multiple))
    if blocks is not None:
        _refuse_blocks(codec, blocks)
    note_a_long_wait(codec, frame, in_memory, notes)
    task = Task("compress", codec, source, target, notes, resume, quiet, crew)
    with crew or nullcontext(), task.job(memory=in_memory, blocks=blocks) as job:
        block = tuple(Fraction(min(blocks or side, side), side) for side in frame.padded)
        workspace = task.workspace(job, in_memory, "compress", block=block)
        workspace.refuse_too_large(frame, check=check)
        numbers = PictureNumbers(str(source), picture, frame, codec.device)
        with codec.running(workspace, frame):
            head, strings = coded(codec, numbers, workspace)
        if blocks is not None and not all(isinstance(string, CodedString) for string in strings):
            raise CodingError(
                f"{codec.architecture} ({codec.where})",
                "it codes symbols in code of its own, as one string",
                "Leave `blocks` out",
            )
        refuse_impossible(str(source), head, codec, head.payload)
        made = written(job, head, strings)
        size = made.stat().st_size
        psnr = None
        if check:
            psnr = _psnr_of(codec, made, picture, frame, task.workspace(job, in_memory, "check"))
        job.finish(made)
    return task.summary(job, head.frame, size, head.most_bands, psnr)


def coded(codec: Codec, image: PictureNumbers, workspace: Workspace) -> tuple[Head, list[bytes]]:
    """The result of the model's `compress` for an image: the head of a file, and its strings."""
    frame, picture, strings = image.frame, image.picture, list[bytes]()
    shape = (1, codec.channels, *frame.padded)
    whole = LazyMap(image, shape, torch.float32, codec.device, workspace.taken_whole)
    given, packed = own_code.compress(codec, whole, strings)
    turns = {id(string): turn for turn, string in enumerate(workspace.coded)}
    head = Head(
        architecture=codec.architecture,
        weights_sha256=codec.weights_sha256,
        width=frame.width,
        height=frame.height,
        channels=picture.shape[2],
        padding=frame.around,
        dtype=str(frame.dtype),
        engine=codec.fingerprint,
        **container.told_of(given, packed, strings),
        bands=tuple(container.bands_of(string) for string in strings),
    )
    if head.banded and sorted(map(id, strings)) == sorted(turns):
        head = replace(head, order=tuple(turns[id(string)] for string in strings))
    return head, strings


def written(job: Job, head: Head, strings: list[bytes]) -> Path:
    """Write the whole file, in the folder of a job, and sync it to disk."""
    made = job.folder / "coded"
    with made.open("wb") as file:
        container.write(file, head, strings)
        file.flush()
        os.fsync(file.fileno())
    return made


def _refuse_blocks(codec: Codec, blocks: int) -> None:
    if not isinstance(blocks, int) or blocks < 1:
        raise OptionError(f"blocks={blocks!r}", "is not a number of pixels", "Write `blocks=1024`")
    if codes_in_order(codec.model):
        raise OptionError(
            f"blocks={blocks!r}",
            f"{codec.architecture} codes one position after another, so that no block decodes alone",
            "Leave `blocks` out, or take a codec without such a context model",
        )


def _unchecked(codec: Codec, reason: str) -> CodingError:
    return CodingError(
        f"{codec.architecture} ({codec.where})",
        f"what it has just coded cannot be checked: {reason}",
        "Try both on the untouched model; without `check`, the file is written all the same",
    )


def _psnr_of(
    codec: Codec,
    made: Path,
    picture: Picture,
    frame: Frame,
    workspace: Workspace,
) -> float:
    with bounds.lifted():  # the image was really there: nothing is a mere claim
        head, strings = container.read(made)
    squares = 0.0

    def compare(start: int, rows: NDArray[Any]) -> None:
        nonlocal squares
        original = read_window(str(made), picture, Span(start, start + len(rows)), Span(0, picture.shape[1]))
        squares += float(np.square(rows.astype(np.float64) - original).sum())

    area = Area.whole(frame.height, frame.width)
    decode(codec, str(made), head, strings, workspace, compare, area, lambda why: _unchecked(codec, why))
    mean = squares / math.prod(picture.shape)
    return math.inf if mean == 0 else 10 * math.log10(frame.largest**2 / mean)
