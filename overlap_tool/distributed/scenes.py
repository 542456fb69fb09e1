"""`run` on workers: a scene in pieces, each read, computed and written by one worker."""

from __future__ import annotations

import os
from collections.abc import Callable

from overlap_tool.distributed.cluster import connected
from overlap_tool.distributed.models import Wanted, send_model
from overlap_tool.distributed.passes import PassesOnWorkers, SceneInFiles
from overlap_tool.distributed.pieces import (
    recomputed,
    refuse_other_bits,
    refuse_other_networks,
    refuse_whole_maps,
)
from overlap_tool.errors import OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.formats.addresses import located
from overlap_tool.files.formats.frame import Frame
from overlap_tool.files.formats.outputs import open_output, refuse_unwritable
from overlap_tool.files.formats.pictures import library
from overlap_tool.files.plain import NetworkOnImage
from overlap_tool.files.summary import RunNotes, RunSummary
from overlap_tool.files.task import Task
from overlap_tool.geometry.walk import Area
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
    refuse_whole_maps(work.stage, summaries=False)
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
        job.mark("image", 0)
        chunk = library("zarr").open_array(store=str(array), mode="r").chunks[:2]
        scene = SceneInFiles(str(source), str(array), dtype, Wanted(codec.identity, trust))
        on_workers = PassesOnWorkers(client, send_model(client, codec), scene, work, job, chunk, piece, quiet)
        added = recomputed(work.stage, work.shape, on_workers.areas)
        count = sum(map(len, on_workers.areas))
        notes.note(f"{count} pieces, whose halos add {added:.1%} to the arithmetic")
        on_workers.run()
        job.finish(array)
    return task.summary(job, made)
