"""`compress` and `decompress` on workers: they compute the stages, and code bands of symbols."""

from __future__ import annotations

import os
from typing import Any

from overlap_tool import files
from overlap_tool.distributed.crew import Workers
from overlap_tool.errors import OptionError
from overlap_tool.files.codec import Codec
from overlap_tool.files.summary import RunSummary


def compress(
    codec: Codec,
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    workers: int | None = None,
    dask: str | None = None,
    piece: int | None = None,
    trust: bool = False,
    **how: Any,
) -> RunSummary:
    """`overlap_tool.files.compress` with the stages computed by several worker processes: the same file.

    `workers` starts as many processes of this machine, `dask` is the address of a scheduler. Workers read the
    image themselves, so its path must be valid for all of them; the model is sent to each once, as are parts
    of the maps between stages, about `piece` pixels of the image a side. Results come back to this process,
    which sends workers the bands of symbols to code, and codes alone what has to be coded position by
    position. A piece is computed again if its worker dies. `trust` permits workers to import the class that a
    file names.

    For example, `compress(Codec.load("codec.tiled.pt"), "scene.zarr", "scene.lic", workers=4)`.
    """
    crew = Workers(codec, workers, dask, piece, trust)
    return files.compress(codec, image, output, crew=crew, **how)


def decompress(
    codec: Codec,
    coded: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    workers: int | None = None,
    dask: str | None = None,
    piece: int | None = None,
    trust: bool = False,
    **how: Any,
) -> RunSummary:
    """`overlap_tool.files.decompress` with the stages computed by several worker processes: the same samples.

    This process sends workers the strings of bands, and the parts of maps that they read; the rest is as for
    `compress`.
    """
    if how.get("region") is not None:
        raise OptionError(
            f"region={list(how['region'])!r}",
            "is decoded in one process, which reads no more than it needs",
            "Leave `workers` and `dask` out",
        )
    crew = Workers(codec, workers, dask, piece, trust)
    return files.decompress(codec, coded, output, crew=crew, **how)
