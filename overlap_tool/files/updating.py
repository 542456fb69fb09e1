"""`update`: codes a compressed image again of which a rectangle has changed; everything that this does not
reach is copied."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from overlap_tool.errors import ContainerError, ImageFileError, OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.coding.change import Change
from overlap_tool.files.coding.matching import (
    refuse_another_checkpoint,
    refuse_another_engine,
    refuse_impossible,
)
from overlap_tool.files.compressing import coded, written
from overlap_tool.files.formats import container
from overlap_tool.files.formats.addresses import located
from overlap_tool.files.formats.container import CodedString, Head
from overlap_tool.files.formats.pictures import Picture, open_picture
from overlap_tool.files.formats.pixels import PictureNumbers, refuse_channels
from overlap_tool.files.region import Rectangle, area_of
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import IN_MEMORY, Task, refuse_no_file
from overlap_tool.geometry.walk import Area


def update(
    codec: Codec,
    compressed: str | os.PathLike[str],
    image: str | os.PathLike[str],
    region: Rectangle,
    output: str | os.PathLike[str] | None = None,
    *,
    in_memory: int = IN_MEMORY,
    quiet: bool = True,
    notify: Callable[[str], None] | None = None,
) -> RunSummary:
    """Code again an image that differs from the compressed one inside `region` only.

    The region is the column and the row of its upper left pixel, its width and its height. The file must have
    been coded in blocks: those that the change reaches are computed and coded, the others keep their strings.
    The result is what `compress` would make of the new image with the same blocks. It replaces the old file,
    unless `output` names another; a symbolic link is followed. While it runs, no other update of the file can
    begin. Numbers that a model's own code derives from strings, such as their length, are not tracked.
    """
    notes, source, target = RunNotes(notify), Path(compressed), Path(output or compressed)
    codec.refuse_if_no_codec()
    if target.is_symlink():
        target = target.resolve()
    refuse_no_file(target)
    changed = located(image)
    picture = open_picture(changed)
    if codec.fingerprint["kernels"] != "exact":
        raise OptionError(codec.where, "its bits depend on tiles, and an update has others", ANEW)
    task = Task("update", codec, changed, target, notes, resume=False, quiet=quiet)
    with task.job(
        memory=in_memory, region=region
    ) as job:  # its lock keeps other updates from what is read now
        head, strings = container.read(source)
        refuse_another_checkpoint(str(source), head, codec)
        refuse_impossible(str(source), head, codec, head.payload)
        refuse_another_engine(str(source), head, codec, False, notes)
        numbers, area = _changed(str(source), head, str(image), picture, region, codec)
        workspace = task.workspace(job, in_memory, "update", on_demand=True)
        in_order: list[CodedString] = [string for _, string in sorted(zip(head.order, strings, strict=True))]
        change = Change(numbers, area, in_order, workspace)
        with codec.running(workspace, head.frame, change):
            head, made = coded(codec, numbers, workspace)
        if len(workspace.coded) != len(in_order):
            raise ContainerError(
                str(source), "of the image as it is now, its model codes another number of strings", ANEW
            )
        file = written(job, head, made)
        size = file.stat().st_size
        job.finish(file)
    return replace(task.summary(job, head.frame, size, head.most_bands), renewed=change.renewed)


def _changed(
    source: str, head: Head, image: str, picture: Picture, region: Rectangle, codec: Codec
) -> tuple[PictureNumbers, Area]:
    """The current image, and its changed area within the padding."""
    if not head.order:
        unknown = "it does not say in which order its strings were coded"
        raise ContainerError(
            source, unknown if head.banded else "it is not coded in blocks",
            "Compress the image again, with `blocks` smaller than it",
        )  # fmt: skip
    refuse_channels(image, picture, codec.channels)
    frame = head.frame
    found, expected = (*picture.shape, str(picture.dtype.newbyteorder("="))), (
        head.height, head.width, head.channels, head.dtype,
    )  # fmt: skip
    if found != expected:
        raise ImageFileError(
            image, f"it is {_told(*found)}, and what was coded was {_told(*expected)}",
            "Give the whole image after the change, or compress it anew",
        )  # fmt: skip
    changed = area_of(region, head.height, head.width)
    left, _, top, _ = frame.around
    area = Area(changed.rows.shift(top), changed.columns.shift(left))
    return PictureNumbers(image, picture, frame, codec.device), area


ANEW = "Compress the image anew"


def _told(height: int, width: int, channels: int, dtype: str) -> str:
    return f"{width}x{height} of {channels} channels, {dtype}"
