"""`run`: any network from image to image, on images in files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overlap_tool import __version__
from overlap_tool.errors import ImageFileError, OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.job import Job, stamp
from overlap_tool.files.outputs import open_output, refuse_unwritable
from overlap_tool.files.pictures import open_picture
from overlap_tool.files.pixels import Frame, PictureNumbers, channels_read, samples
from overlap_tool.files.running import Workspace, pour
from overlap_tool.files.summary import Clock, Summary, peak_memory_bytes
from overlap_tool.lazy import LazyMap

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
    identity = {
        "command": "run",
        "tool": __version__,
        "model": [codec.architecture, codec.weights_sha256],
        "tiles": asdict(stage.settings),
        "engine": codec.fingerprint,
        "input": stamp(source),
        "dtype": str(kept),
    }
    with Job(target, identity, resume) as job:
        done = job.done.get("image", 0)
        written = open_output(target, job.folder, shape, kept, begun="image" in job.done)
        workspace = Workspace(job, 0, quiet, clock.note, "run")
        numbers = PictureNumbers(str(source), picture, read, grey, codec.device)
        whole = LazyMap(
            numbers, (1, wanted, height, width), torch.float32, codec.device, workspace.taken_whole
        )

        def take(start: int, band: Tensor) -> None:
            durable = written.write(start, samples(band, made))
            if durable > job.done.get("image", 0):
                job.mark("image", durable)

        with codec.running(workspace):
            result: Any = codec.model(whole)
            if done < shape[0]:
                pour(result, take, done)
        job.finish(written.finish())
    return Summary(
        command="run",
        input=str(source),
        output=str(target),
        width=shape[1],
        height=shape[0],
        channels=shape[2],
        sample_bits=8 * kept.itemsize,
        bytes=None,
        bits_per_pixel=None,
        bands=None,
        psnr=None,
        resumed=job.resumed,
        seconds=clock.seconds,
        peak_memory_bytes=peak_memory_bytes(),
        notes=clock.notes,
    )
