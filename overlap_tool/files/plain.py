"""`run`: any network from image to image, on images in files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overlap_tool.errors import ImageFileError, OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.formats.outputs import refuse_unwritable
from overlap_tool.files.formats.pictures import open_picture
from overlap_tool.files.formats.pixels import Frame, PictureNumbers, channels_read, samples
from overlap_tool.files.running import pour
from overlap_tool.files.summary import Clock, Summary
from overlap_tool.files.task import ResumedImage, Task
from overlap_tool.runtime.lazy import LazyMap

DTYPES = ("uint8", "uint16", "float32")


def run(
    codec: Codec,
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    resume: bool = False,
    quiet: bool = True,
    tell: Callable[[str], None] | None = None,
) -> Summary:
    """Put an image file through a network that gives one map, and write that as an image file.

    Samples are read as numbers from 0 to 1, and written as such, of the input's type or of `dtype`; float32
    keeps the network's numbers as they are.
    """
    clock, source, target = Clock(tell), Path(image), Path(output)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"--dtype {dtype}", "is not one", f"Use {', '.join(DTYPES)}")
    stages = codec.stages
    if len(stages) != 1 or stages[0].module is not codec.model:
        raise OptionError(
            f"--model {codec.where}",
            f"{codec.architecture} is not one network from map to map",
            "Use overlap-tool compress for a codec",
        )
    stage = stages[0]
    picture = open_picture(source)
    wanted = stage.network.ops[0].channels
    grey = channels_read(str(source), picture, wanted)
    height, width, _ = picture.shape
    if not stage.network.accepts(height, width):
        raise ImageFileError(
            str(source), f"the network does not take an image of {width}x{height}", "Crop it, or pad it"
        )
    sizes = stage.network.rows.sizes(height)[-1], stage.network.columns.sizes(width)[-1]
    shape = (*sizes, stage.network.ops[-1].channels)
    kept = np.dtype(dtype) if dtype else picture.dtype.newbyteorder("=")
    refuse_unwritable(target, shape, kept)
    read = Frame(height, width, wanted, picture.dtype.newbyteorder("="))
    made = Frame(*shape, kept)
    task = Task("run", codec, source, target, clock, resume, quiet)
    with task.job(dtype=str(kept)) as job:
        output_image = ResumedImage(job, shape, kept)
        workspace = task.workspace(job, 0, "run")
        numbers = PictureNumbers(str(source), picture, read, grey, codec.device)
        whole = LazyMap(
            numbers, (1, wanted, height, width), torch.float32, codec.device, workspace.taken_whole
        )

        def take(start: int, band: Tensor) -> None:
            output_image.take(start, samples(band, made))

        with codec.running(workspace, read):
            result: Any = codec.model(whole)
            if output_image.done < made.height:
                pour(result, take, output_image.done)
        output_image.finish()
    return task.summary(job, made)
