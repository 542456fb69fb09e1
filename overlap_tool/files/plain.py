"""`run`: any network from map to map, on images, volumes and sound in files."""

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
from overlap_tool.files.formats.addresses import located
from overlap_tool.files.formats.arrays import NAMED, ArrayForm
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.outputs import WITH_PROFILE, refuse_unwritable
from overlap_tool.files.formats.pictures import Picture, open_picture
from overlap_tool.files.formats.pixels import PictureNumbers, refuse_channels, samples
from overlap_tool.files.formats.rows import Bands
from overlap_tool.files.region import Rectangle, area_of
from overlap_tool.files.running import BetweenPasses, StageNumbers, area_read
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import ResumedImage, Task
from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area
from overlap_tool.graph.network import Network
from overlap_tool.graph.tracer import TrialError
from overlap_tool.planning.choose import Shape
from overlap_tool.rules import engine
from overlap_tool.runtime import passes
from overlap_tool.runtime.stores import Kept, Sink, Source, Turned
from overlap_tool.settings import SampleType
from overlap_tool.wrapping.retrofit import TiledForward

UNSIGNED = 'Use `dtype="uint16"`, or `dtype="float32"` for the numbers as they are'
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
    """Run a network on an image file, and write its one output map as an image file.

    Samples are scaled to numbers from 0 to 1, signed ones of sound to -1 to 1, and back for the output, which
    has the input's type or `dtype`; float32 stores the network's numbers unscaled. With a `region` of the
    output, the column and the row of its upper left pixel, its width and its height, only that rectangle is
    computed and written.

    For a network on volumes, the file is an array of (channels, depth, rows, columns), for one on sound of
    (channels, samples), as .npy or Zarr; a single channel may be omitted. Arrays of floating-point numbers
    are taken unscaled, and give float32.
    """
    notes, source, target = RunNotes(notify), located(image), located(output)
    work = NetworkOnImage.opened(codec, source, dtype)
    if region is not None and work.form.kind == "sound":
        raise OptionError(
            f"region={list(region)!r}", "is a rectangle, and the model takes sound", "Leave `region` out"
        )
    area = area_of(region, *work.size)
    form = work.form_of(area)
    refuse_unwritable(target, form, work.dtype, resume)
    if work.picture.missing:
        notes.note(f"{source}: {work.picture.missing}")
    profile = work.picture.profile
    if profile is not None and (
        target.suffix.lower() not in WITH_PROFILE or form.channels != work.form.channels
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
        image_made = ResumedImage(job, area, form, work.dtype, profile)
        work.pour(image_made.missing, image_made.take, partial(BetweenPasses, job.folder), quiet)
        image_made.finish()
    made = Frame(form.size.height, form.size.width, form.channels, work.dtype)
    return task.summary(job, made, kind=form.kind, depth=form.depth)


@dataclass(frozen=True)
class NetworkOnImage:
    """A network and an image file as its input; `dtype` is the type of output samples."""

    stage: TiledForward
    network: Network
    """The stage's network for images of this size."""
    device: torch.device
    where: str
    picture: Picture
    dtype: np.dtype[Any]

    @staticmethod
    def opened(codec: Codec, source: Path, dtype: SampleType | None) -> NetworkOnImage:
        """Open an image for a wrapped model that is a single network."""
        if dtype is not None and dtype not in get_args(SampleType):
            raise OptionError(f"dtype={dtype!r}", "is not one", f"Use {', '.join(get_args(SampleType))}")
        stages = codec.stages
        if len(stages) != 1 or stages[0].module is not codec.model:
            raise OptionError(
                codec.where,
                f"{codec.architecture} is not one network from map to map",
                "Use overlap-tool compress for a codec",
            )
        stage, where = stages[0], str(source)
        stage.network.require_one_map(codec.where)
        stage.require_inference()
        kind = stage.network.takes
        assert kind is not None, "asked by require_one_map"
        if dtype == "int16" and kind != "sound":
            raise OptionError(
                f"dtype={dtype!r}", f"is for sound, and the model takes {NAMED[kind]}", UNSIGNED
            )
        picture = open_picture(source, kind)
        form, shape = picture.form, _shape_of(picture)
        refuse_channels(where, picture, stage.network.ops[0].layout.channels[0])
        try:
            stage = stage.as_deep((1, form.channels, *form.shape[-3:]))
            network = stage.fitted(1, shape.rows, shape.columns)
            network.require(shape.rows, shape.columns)
        except (SizeError, TrialError) as error:
            reason = f"the network does not take {form}: {error.where} {error.reason}"
            raise ImageFileError(where, reason, error.way_out) from error
        own = picture.dtype.newbyteorder("=") if picture.dtype.kind in "ui" else np.dtype(np.float32)
        return NetworkOnImage(stage, network, codec.device, where, picture, np.dtype(dtype) if dtype else own)

    @property
    def form(self) -> ArrayForm:
        """The form of the array that is read."""
        return self.picture.form

    @property
    def shape(self) -> Shape:
        """The shape of the network's input."""
        return _shape_of(self.picture)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the network's output, as a file has them."""
        made = (
            self.network.rows.sizes(self.shape.rows)[-1],
            self.network.columns.sizes(self.shape.columns)[-1],
        )
        return made[::-1] if self.form.kind == "sound" else made

    def form_of(self, area: Area) -> ArrayForm:
        """The form of an array with an area of the output; one channel is omitted if the input omits it."""
        channels = self.network.ops[-1].layout.channels
        cut = (area.rows.length, area.columns.length)[: len(self.form.parts[1])]
        if self.form.kind == "image":
            return ArrayForm("image", (*cut, *channels))
        return ArrayForm(self.form.kind, (*channels[channels[0] == 1 and not self.form.has_channels :], *cut))

    def pour(
        self, area: Area, take: Callable[[int, NDArray[Any]], object], keep: passes.Keep, quiet: bool = True
    ) -> None:
        """Compute an area of the output, and pass it to `take` in bands, with their first rows."""
        if not area.size:
            return
        sound = self.form.kind == "sound"
        asked = Area(*area[::-1]) if sound else area
        pixels = self.pixels(area_read(self.stage, self.shape, asked)[0 if sound else 1])

        def turned_keep(height: int, width: int) -> Kept:
            return Turned(keep(width, height))

        made = Frame(*self.size, self.network.ops[-1].channels, self.dtype)
        bands = samples_to(take, area, made, self.where)
        source: Source = Turned(pixels) if sound else pixels
        sink: Sink = Turned(bands) if sound else bands
        between: passes.Keep = turned_keep if sound else keep
        numbers = StageNumbers(self.stage, source, self.shape, between, 0, quiet, on_demand=True)
        with torch.no_grad(), engine(self.stage.settings.engine):
            numbers.pour(sink, asked)

    def pixels(self, across: Span) -> PictureNumbers:
        """The image as the network's input, of which only these columns are read."""
        given, picture = self.network.ops[0], self.picture
        frame = Frame(*picture.shape[:2], given.channels, picture.dtype.newbyteorder("="))
        return PictureNumbers(self.where, picture, frame, self.device, across, given.layout.channels)


def samples_to(take: Callable[[int, NDArray[Any]], object], area: Area, made: Frame, where: str) -> Bands:
    """A sink for an area of the output of an image from `where`, which passes its samples to `take` in
    bands."""

    def take_samples(start: int, band: Tensor) -> None:
        take(start, samples(band, made, where, AS_THEY_ARE))

    return Bands(area.columns, take_samples)


def _shape_of(picture: Picture) -> Shape:
    """The picture's shape as a network's input. Sound is one row there, and one column in files."""
    rows, columns, _ = picture.shape
    return Shape(1, columns, rows) if picture.form.kind == "sound" else Shape(1, rows, columns)
