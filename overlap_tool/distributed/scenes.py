"""`run` on workers: a scene in pieces, each read, computed and written by one worker."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from overlap_tool.distributed.cluster import connected, memory_of_a_worker
from overlap_tool.distributed.models import Wanted, file_bytes, send_model
from overlap_tool.distributed.passes import PassesOnWorkers, Sent, Written, cut_passes
from overlap_tool.distributed.pieces import (
    cut_scene,
    recomputed,
    refuse_other_bits,
    refuse_other_networks,
    refuse_whole_maps,
)
from overlap_tool.distributed.reading import MapInPieces, PictureWindow, refuse_other_folder
from overlap_tool.distributed.sums import SummedByWorkers
from overlap_tool.errors import OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.formats.addresses import located
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.outputs import WholeChunks, open_output, refuse_unwritable
from overlap_tool.files.formats.pictures import library
from overlap_tool.files.formats.pixels import PictureNumbers
from overlap_tool.files.job import Job
from overlap_tool.files.plain import NetworkOnImage, samples_to
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import Task
from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area
from overlap_tool.graph.network import Barrier
from overlap_tool.planning.choose import BarrierBands
from overlap_tool.runtime import passes
from overlap_tool.runtime.stores import Sink, Source, Within
from overlap_tool.settings import SampleType


def run(
    codec: Codec,
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    workers: int | None = None,
    dask: str | None = None,
    dtype: SampleType | None = None,
    piece: int | None = None,
    trust: bool = False,
    resume: bool = False,
    quiet: bool = True,
    notify: Callable[[str], None] | None = None,
) -> RunSummary:
    """`overlap_tool.files.run` by several worker processes: the same samples, as a Zarr array.

    `workers` starts as many processes of this machine, `dask` is the address of a scheduler. Workers read the
    image and write the output themselves, so both paths must be valid for all of them; the model is sent to
    each once. The scene is cut into pieces of about `piece` pixels a side, by default 4096, or less for a
    small scene; each recomputes its halo. A piece is computed again if its worker dies. `resume` keeps
    finished pieces. `trust` permits workers to import the class that a file names.

    For example, `run(Codec.load("net.tiled.pt"), "scene.zarr", "out.zarr", workers=4)`.
    """
    notes, source, target = RunNotes(notify), located(image).absolute(), located(output).absolute()
    work = NetworkOnImage.opened(codec, source, dtype)
    work.network.require_image(codec.where)
    refuse_other_networks(work.stage, work.shape)
    refuse_whole_maps(work.stage)
    refuse_other_bits(work.stage)
    if target.suffix.lower() != ".zarr":
        raise OptionError(
            f"output={str(output)!r}", "workers write chunks, which only Zarr has", "Name a .zarr folder"
        )
    form = work.form_of(Area.whole(*work.size))
    made = Frame(*form.as_image, work.dtype)
    refuse_unwritable(target, form, made.dtype, resume)
    if work.picture.missing:
        notes.note(f"{source}: {work.picture.missing}")
    task = Task("run", codec, source, target, notes, resume, quiet)
    with connected(workers, dask) as client, task.job(dtype=str(made.dtype), piece=piece) as job:
        array = open_output(target, job.folder, form, made.dtype, "image" in job.done).finish()
        chunk = library("zarr").open_array(store=str(array), mode="r").chunks[:2]
        memory = memory_of_a_worker(client) - file_bytes(work.stage.module)
        areas = cut_passes(
            work.stage,
            work.shape,
            memory,
            piece,
            True,
            work.picture.dtype.itemsize,
            partial(cut_scene, work.size, chunk),
        )
        _refuse_other_pieces(job, areas)
        job.mark("image", 0)
        added = recomputed(work.stage, work.shape, areas)
        notes.note(f"{sum(map(len, areas))} pieces, whose halos add {added:.1%} to the arithmetic")
        ScenePasses(
            client,
            send_model(client, codec),
            Wanted(codec.identity, trust),
            work.stage,
            work.shape,
            areas,
            job.folder,
            quiet,
            job,
            SceneInChunks(str(array), made, str(source)),
        ).run(work.pixels(Span(0, work.shape.columns)))
        job.finish(array)
    return task.summary(job, made)


def _refuse_other_pieces(job: Job, areas: Sequence[Sequence[Area]]) -> None:
    """Raise if a resumed run began with other pieces, which follow the memory of workers."""
    pieces = json.dumps(areas).encode()
    if not job.resumed:
        job.keep("pieces", pieces)
    elif job.kept("pieces") != pieces:
        raise OptionError(
            "resume=True",
            "these workers have other memory, so the scene would be cut into other pieces",
            "Start workers as before, or leave `resume` out to begin anew",
        )


@dataclass(frozen=True)
class SceneInChunks:
    """The output, a Zarr array at a path that is valid for all workers; `where` is the input, for errors."""

    path: str
    frame: Frame
    where: str

    @contextmanager
    def writing(self, number: int, at: Area) -> Iterator[Sink]:
        refuse_other_folder(located(self.path))
        array = library("zarr").open_array(store=self.path, mode="r+")
        yield Within(samples_to(WholeChunks(array, at).write, at, self.frame, self.where), at)


@dataclass
class ScenePasses(PassesOnWorkers):
    """The passes of a network on an image. Workers read and write maps in the folder of the job, whose
    journal has the pieces that are done."""

    job: Job
    scene: SceneInChunks

    def sent(self, source: Source, area: Area) -> Sent:
        assert isinstance(source, MapInPieces | PictureNumbers)
        return PictureWindow.of(source) if isinstance(source, PictureNumbers) else source

    def written(self, maps: Mapping[str, MapInPieces]) -> Mapping[str, Written]:
        output = self.plan.network.output
        return {**maps, output: self.scene} if output in maps else maps

    def left(self, pieces: range) -> Sequence[int]:
        return [index for index in pieces if self._named(index) not in self.job.done]

    def take(self, maps: Mapping[str, MapInPieces], index: int, came: Mapping[str, NDArray[Any]]) -> None:
        self.job.mark(self._named(index), 1)

    def reduce(
        self, barrier: Barrier, values: Mapping[str, Any], source: Source, bands: BarrierBands
    ) -> Tensor:
        """Added up by workers, and stored, since the map may be gone when the run is resumed."""
        name = f"value-{barrier.id}"
        if name not in self.job.done:
            window = self.sent(source, Area.whole(bands.height, bands.width))
            whole = SummedByWorkers(source, bands, self.client, window, self.stage.settings.engine)
            made = io.BytesIO()
            torch.save(passes.value_of(barrier, values, whole), made)
            self.job.keep(name, made.getvalue())
            self.job.mark(name, 1)
        value: Tensor = torch.load(io.BytesIO(self.job.kept(name)), weights_only=True)
        return value

    def _named(self, index: int) -> str:
        return f"piece-{self.number}-{index}"
