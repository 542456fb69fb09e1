"""`run`: any network from image to image, on images in files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.errors import ImageFileError, OptionError, SizeError
from overlap_tool.files.codec import Codec
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.outputs import WITH_PROFILE, refuse_unwritable
from overlap_tool.files.formats.pictures import Picture, open_picture
from overlap_tool.files.formats.pixels import PictureNumbers, refuse_channels, samples
from overlap_tool.files.formats.rows import Bands
from overlap_tool.files.region import Rectangle, area_of
from overlap_tool.files.running import BetweenPasses, StageNumbers, area_read
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import ResumedImage, Task
from overlap_tool.geometry.walk import Area
from overlap_tool.graph.network import Network
from overlap_tool.kernels import engine
from overlap_tool.planning.choose import Shape
from overlap_tool.runtime import passes
from overlap_tool.settings import SampleType
from overlap_tool.wrapping.retrofit import TiledForward

AS_THEY_ARE = 'Check the weights, or keep the numbers as they are: `dtype="float32"`'


def run(
    codec: Codec,
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: SampleType | None = None,
    region: Rectangle | None = None,
    resume: bool = False,
    quiet: bool = True,
    notify: Callable[[str], None] | None = None,
) -> RunSummary:
    """Put an image file through a network that gives one map, and write that as an image file.

    Samples are read as numbers from 0 to 1, and written as such, of the input's type or of `dtype`; float32
    keeps the network's numbers as they are. Of a `region` of the output, the column and the row of its upper
    left pixel, its width and its height, only that rectangle is computed and written.
    """
    notes, source, target = RunNotes(notify), Path(image), Path(output)
    work = NetworkOnImage.opened(codec, source, dtype)
    area = area_of(region, *work.size)
    made = Frame(area.rows.length, area.columns.length, work.channels, work.dtype)
    refuse_unwritable(target, (made.height, made.width, made.channels), work.dtype, resume)
    if work.picture.missing:
        notes.note(f"{source}: {work.picture.missing}")
    profile = work.picture.profile
    if profile is not None and (
        target.suffix.lower() not in WITH_PROFILE or work.channels != work.picture.shape[2]
    ):
        profile = None
        notes.note(f"the colour profile of {source} is not kept in {target}")
    if region is not None and work.stage.settings.engine != "exact":
        notes.note("by the library's kernels, its last bits may differ from those of the whole output")
    if region is not None and work.network.need_whole_maps:
        whole_map = work.network.need_whole_maps[0].name
        notes.note(f"{whole_map} needs the whole map: all of {source} is read for it")
    task = Task("run", codec, source, target, notes, resume, quiet)
    with task.job(dtype=str(work.dtype), region=region) as job:
        image_made = ResumedImage(job, area, work.channels, work.dtype, profile)
        work.pour(image_made.missing, image_made.take, partial(BetweenPasses, job.folder), quiet)
        image_made.finish()
    return task.summary(job, made)


@dataclass(frozen=True)
class NetworkOnImage:
    """A network and an image file that it takes; what it makes of it has this type of samples."""

    stage: TiledForward
    network: Network
    """The stage's, for images of this size."""
    device: torch.device
    where: str
    picture: Picture
    dtype: np.dtype[Any]

    @staticmethod
    def opened(codec: Codec, source: Path, dtype: SampleType | None) -> NetworkOnImage:
        """From a wrapped model that is one network, and an image that fits it."""
        if dtype is not None and dtype not in get_args(SampleType):
            raise OptionError(f"dtype={dtype!r}", "is not one", f"Use {', '.join(get_args(SampleType))}")
        stages = codec.stages
        if len(stages) != 1 or stages[0].module is not codec.model:
            raise OptionError(
                codec.where,
                f"{codec.architecture} is not one network from map to map",
                "Use overlap-tool compress for a codec",
            )
        stages[0].network.require_one_map(codec.where)
        stage, where, picture = stages[0], str(source), open_picture(source)
        stage.require_inference()
        refuse_channels(where, picture, stage.network.ops[0].channels)
        height, width, _ = picture.shape
        try:
            network = stage.fitted(1, height, width)
            network.require(height, width)
        except SizeError as error:
            reason = f"the network does not take an image of {width}x{height}: {error.where} {error.reason}"
            raise ImageFileError(where, reason, error.way_out) from error
        kept = np.dtype(dtype) if dtype else picture.dtype.newbyteorder("=")
        return NetworkOnImage(stage, network, codec.device, where, picture, kept)

    @property
    def shape(self) -> Shape:
        """The shape of the network's input."""
        return Shape(1, *self.picture.shape[:2])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's output."""
        axes = self.network.rows, self.network.columns
        height, width = (axis.sizes(n)[-1] for axis, n in zip(axes, self.picture.shape[:2], strict=True))
        return height, width

    @property
    def channels(self) -> int:
        """The channels of the network's output."""
        return self.network.ops[-1].channels

    def pour(
        self, area: Area, take: Callable[[int, NDArray[Any]], object], keep: passes.Keep, quiet: bool = True
    ) -> None:
        """Compute an area of the output, and give it to `take` in bands, with their first rows."""
        if not area.size:
            return
        given = self.network.ops[0].channels
        read = Frame(self.shape.rows, self.shape.columns, given, self.picture.dtype.newbyteorder("="))
        across = area_read(self.stage, self.shape, area).columns
        source = PictureNumbers(self.where, self.picture, read, self.device, across)
        made = Frame(*self.size, self.channels, self.dtype)

        def take_samples(start: int, band: Tensor) -> None:
            take(start, samples(band, made, self.where, AS_THEY_ARE))

        numbers = StageNumbers(self.stage, source, self.shape, keep, 0, quiet, on_demand=True)
        with torch.no_grad(), engine(self.stage.settings.engine):
            numbers.pour(Bands(area.columns, take_samples), area)
