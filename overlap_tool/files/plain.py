"""`run`: any network from image to image, on images in files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overlap_tool.errors import ImageFileError, OptionError, SizeError
from overlap_tool.files.codec import Codec
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.outputs import WITH_PROFILE, refuse_unwritable
from overlap_tool.files.formats.pictures import open_picture
from overlap_tool.files.formats.pixels import PictureNumbers, refuse_channels, samples
from overlap_tool.files.region import Rectangle, area_of
from overlap_tool.files.running import columns_read, pour
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import ResumedImage, Task
from overlap_tool.planning.choose import Shape
from overlap_tool.runtime.lazy import LazyMap

AS_THEY_ARE = 'Check the weights, or keep the numbers as they are: `dtype="float32"`'
DTYPES = ("uint8", "uint16", "float32")


def run(
    codec: Codec,
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    region: Rectangle | None = None,
    resume: bool = False,
    quiet: bool = True,
    tell: Callable[[str], None] | None = None,
) -> RunSummary:
    """Put an image file through a network that gives one map, and write that as an image file.

    Samples are read as numbers from 0 to 1, and written as such, of the input's type or of `dtype`; float32
    keeps the network's numbers as they are. Of a `region` of the output, the column and the row of its upper
    left pixel, its width and its height, only that rectangle is computed and written.
    """
    notes, source, target = RunNotes(tell), Path(image), Path(output)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"dtype={dtype!r}", "is not one", f"Use {', '.join(DTYPES)}")
    stages = codec.stages
    if len(stages) != 1 or stages[0].module is not codec.model:
        raise OptionError(
            codec.where,
            f"{codec.architecture} is not one network from map to map",
            "Use overlap-tool compress for a codec",
        )
    stage = stages[0]
    picture = open_picture(source)
    wanted = stage.network.ops[0].channels
    refuse_channels(str(source), picture, wanted)
    height, width, _ = picture.shape
    try:
        network = stage.fitted(1, height, width)
        network.require(height, width)
    except SizeError as error:
        reason = f"the network does not take an image of {width}x{height}: {error.where} {error.reason}"
        raise ImageFileError(str(source), reason, error.way_out) from error
    sizes = network.rows.sizes(height)[-1], network.columns.sizes(width)[-1]
    area = area_of(region, *sizes)
    shape = (area.rows.length, area.columns.length, network.ops[-1].channels)
    kept = np.dtype(dtype) if dtype else picture.dtype.newbyteorder("=")
    refuse_unwritable(target, shape, kept, resume)
    read = Frame(height, width, wanted, picture.dtype.newbyteorder("="))
    made = Frame(*shape, kept)
    if picture.missing:
        notes.note(f"{source}: {picture.missing}")
    profile = picture.profile
    if profile is not None and (target.suffix.lower() not in WITH_PROFILE or shape[2] != picture.shape[2]):
        profile = None
        notes.note(f"the colour profile of {source} is not kept in {target}")
    if region is not None and network.barriers:
        notes.note(f"{network.barriers[0].name} needs the whole map: all of {source} is read for it")
    task = Task("run", codec, source, target, notes, resume, quiet)
    with task.job(dtype=str(kept), region=region) as job:
        output_image = ResumedImage(job, area, shape[2], kept, profile)
        workspace = task.workspace(job, 0, "run", on_demand=True)
        across = columns_read(stage, Shape(1, height, width), area)
        numbers = PictureNumbers(str(source), picture, read, codec.device, across)
        whole = LazyMap(
            numbers, (1, wanted, height, width), torch.float32, codec.device, workspace.taken_whole
        )

        def take(start: int, band: Tensor) -> None:
            output_image.take(start, samples(band, made, str(source), AS_THEY_ARE))

        with codec.running(workspace, read):
            result: Any = codec.model(whole)
            pour(result, take, output_image.missing)
        output_image.finish()
    return task.summary(job, made)
