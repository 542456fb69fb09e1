"""`map_tiles`: a network on a Dask array, lazily, with exactly the overlap that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from overlap_tool.distributed.cluster import dask_library
from overlap_tool.distributed.pieces import (
    SIDE,
    compute_area,
    grid,
    refuse_other_bits,
    refuse_other_networks,
    refuse_whole_maps,
)
from overlap_tool.distributed.reading import SentWindow, part_of
from overlap_tool.errors import OptionError
from overlap_tool.files.running import area_read
from overlap_tool.geometry.walk import Area
from overlap_tool.planning.choose import Shape
from overlap_tool.wrapping.retrofit import TiledForward, settings_of, tiled_stages, wrap


def map_tiles(model: nn.Module, array: Any) -> Any:
    """Return the output of a network on a Dask array as a Dask array: the bits of `model(whole)`, chunk by
    chunk.

    The array's last three axes are channels, rows and columns, with the type of the network's weights. The
    network is a single stage, wrapped or not (then in tiles of 256). Nothing is computed before Dask is asked
    to. Every chunk of rows and columns gives one chunk of the result, in two tasks: one copies the edges that
    neighbours read, which is all of the chunk that is sent elsewhere, and one computes. The model is sent to
    each worker once.

    A Zarr array itself is read by the tasks, edges included: a chunk of the result then takes one task, and
    has as many whole chunks of the Zarr array as make up about 4096 rows and columns.

    >>> import dask.array, overlap_tool
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    >>> image = torch.rand(3, 100, 80)
    >>> chunked = dask.array.from_array(image.numpy(), chunks=(3, 50, 40))
    >>> lazily = map_tiles(net, chunked)
    >>> with torch.no_grad(), overlap_tool.exact_kernels():
    ...     bool((lazily.compute(scheduler="sync") == net(image[None])[0].numpy()).all())
    True
    """
    dask, dask_array = dask_library("dask"), dask_library("dask.array")
    tiled = wrap(model) if settings_of(model) is None else model
    stage = only_stage(tiled)
    shape = _shape_of(stage, array)
    refuse_other_networks(stage, shape)
    refuse_whole_maps(stage, in_passes=False)
    refuse_other_bits(stage)
    axes = stage.network.rows, stage.network.columns
    sizes = [axis.sizes(n)[-1] for axis, n in zip(axes, array.shape[-2:], strict=True)]
    given: InDask | InZarr = InDask(array) if isinstance(array, dask_array.Array) else InZarr(array)
    places = [
        sorted({0, size, *(min(size, round(border * axis.scale)) for border in known[:-1])})
        for axis, size, known in zip(axes, sizes, given.borders, strict=True)
    ]
    name = f"overlap-tool-{uuid4().hex}"
    sent = dask.delayed(given.sent_with(tiled), pure=False, name=f"{name}-model", traverse=False)
    areas = _placed(places).items()
    pieces = {place: PieceOfArray(shape, area, area_read(stage, shape, area)) for place, area in areas}
    graph = dask_library("dask.highlevelgraph").HighLevelGraph.from_collections(
        name, given.tasks(name, pieces, sent.key), dependencies=[*given.collections, sent]
    )
    lengths = (tuple(stop - start for start, stop in pairwise(edges)) for edges in places)
    made = (*((n,) for n in array.shape[:-3]), (stage.network.ops[-1].channels,), *lengths)
    return dask_array.Array(graph, name, made, array.dtype)


ChunkPlace = tuple[int, int]
"""The row and column of a chunk among the chunks."""

Tasks = dict[tuple[Any, ...], tuple[Any, ...]]
"""A part of Dask's graph."""


@dataclass(frozen=True)
class SentNetwork:
    """A wrapped network in pickled form. Dask would take a module itself apart and rebuild it as another."""

    model: nn.Module
    array: Any = None
    """An array that workers read themselves."""


@dataclass(frozen=True)
class PieceOfArray:
    """An area of the output, and what it reads of the input."""

    shape: Shape
    area: Area
    read: Area


@dataclass(frozen=True)
class ChunkEdges:
    """The areas of a chunk that neighbouring pieces read."""

    chunk: Area
    wanted: list[Area] = field(default_factory=list)


class InDask:
    """A Dask array: tasks are given its chunks."""

    def __init__(self, array: Any) -> None:
        self.array = array.rechunk(dict.fromkeys(range(array.ndim - 2), -1))
        self.collections = [self.array]
        self.borders = [[0, *accumulate(lengths)] for lengths in self.array.chunks[-2:]]

    def sent_with(self, model: nn.Module) -> SentNetwork:
        return SentNetwork(model)

    def tasks(self, name: str, pieces: Mapping[ChunkPlace, PieceOfArray], model: str) -> Tasks:
        return _tasks(name, self.array, _placed(self.borders), pieces, model)


class InZarr:
    """A Zarr array: tasks read it."""

    collections = ()

    def __init__(self, array: Any) -> None:
        self.array = array
        steps = (max(1, round(SIDE / of)) * of for of in array.chunks[-2:])
        self.borders = [[*range(0, n, step), n] for n, step in zip(array.shape[-2:], steps, strict=True)]

    def sent_with(self, model: nn.Module) -> SentNetwork:
        return SentNetwork(model, self.array)

    def tasks(self, name: str, pieces: Mapping[ChunkPlace, PieceOfArray], model: str) -> Tasks:
        return {_key(name, self.array, at): (read_and_compute, model, piece) for at, piece in pieces.items()}


def _placed(edges: Sequence[Sequence[int]]) -> dict[ChunkPlace, Area]:
    across = len(edges[1]) - 1
    return {divmod(number, across): area for number, area in enumerate(grid(*edges))}


def _tasks(
    name: str,
    array: Any,
    chunks: Mapping[ChunkPlace, Area],
    pieces: Mapping[ChunkPlace, PieceOfArray],
    model: str,
) -> Tasks:
    """Dask's task graph: a piece takes one chunk whole, the one of which it reads most."""
    edges = {place: ChunkEdges(chunk) for place, chunk in chunks.items()}
    tasks: Tasks = {}
    for place, piece in pieces.items():
        parts = {near: chunk.within(piece.read) for near, chunk in chunks.items() if chunk.meets(piece.read)}
        home = max(parts, key=lambda near: parts[near].size, default=(0, 0))
        around = [near for near in parts if near != home]
        for near in around:
            edges[near].wanted.append(parts[near])
        tasks[_key(name, array, place)] = (
            compute_piece_of_array,
            model,
            piece,
            chunks[home],
            _key(array.name, array, home),
            [_key(f"{name}-edges", array, near) for near in around],
        )
    for near, of in edges.items():
        if of.wanted:
            tasks[_key(f"{name}-edges", array, near)] = (edges_of, _key(array.name, array, near), of)
    return tasks


def _key(name: str, array: Any, place: ChunkPlace) -> tuple[Any, ...]:
    return (name, *(0,) * (array.ndim - 2), *place)


def edges_of(chunk: NDArray[Any], edges: ChunkEdges) -> list[tuple[Area, NDArray[Any]]]:
    """On a worker: the edges as copies, which do not keep the chunk in memory."""
    return [(area, part_of(chunk, edges.chunk, area).copy()) for area in edges.wanted]


def compute_piece_of_array(
    sent: SentNetwork,
    piece: PieceOfArray,
    home: Area,
    chunk: NDArray[Any],
    edges: Sequence[Sequence[tuple[Area, NDArray[Any]]]],
) -> NDArray[Any]:
    """On a worker: an area of the output, from a chunk of the input and the edges of its neighbours."""

    def as_given(values: NDArray[Any]) -> Tensor:
        writable = np.require(values, requirements="W")
        return torch.from_numpy(writable).reshape(piece.shape.images, -1, *values.shape[-2:])

    around = [(area, as_given(values)) for of in edges for area, values in of]
    source = SentWindow(as_given(chunk), home, around)
    made = compute_area(only_stage(sent.model), source, piece.shape, piece.area)
    return made.reshape(*chunk.shape[:-3], *made.shape[1:]).numpy()


def read_and_compute(sent: SentNetwork, piece: PieceOfArray) -> NDArray[Any]:
    """On a worker: an area of the output, from an array that the task reads."""
    rows, columns = piece.read
    return compute_piece_of_array(sent, piece, piece.read, sent.array[..., slice(*rows), slice(*columns)], ())


def only_stage(model: nn.Module) -> TiledForward:
    """The stage of a wrapped model that is a single network."""
    stages = list(tiled_stages(model).values())
    if len(stages) != 1 or stages[0].module is not model:
        raise OptionError(
            type(model).__name__, "is not one network from map to map", "Give one of its stages, such as g_a"
        )
    network, where = stages[0].require_inference(), type(model).__name__
    network.require_image(where)
    network.require_one_map(where)
    return stages[0]


def _shape_of(stage: TiledForward, array: Any) -> Shape:
    """The shape of the network's input for an array; raises unless the network takes the array."""
    where = f"array of shape {tuple(array.shape)}"
    of, *others = (kind.__module__.partition(".")[0] for kind in type(array).mro())
    if {"dask", "zarr"}.isdisjoint([of, *others]):
        reason = f"it is of {of}, and neither Dask's nor Zarr's"
        raise OptionError(where, reason, "Use dask.array.from_array, or give a Zarr array")
    channels = stage.network.ops[0].channels
    if array.ndim not in (3, 4) or array.shape[-3] != channels:
        raise OptionError(
            where,
            f"its last axes are not {channels} channels, rows and columns",
            "Move them there with dask.array.moveaxis",
        )
    if any(n != n for n in array.shape):
        reason = "it does not know how many rows, columns or images it has"
        raise OptionError(where, reason, "Call its compute_chunk_sizes() first")
    dtype = next((parameter.dtype for parameter in stage.module.parameters()), torch.float32)
    wanted = torch.empty(0, dtype=dtype).numpy().dtype
    if array.dtype != wanted:
        raise OptionError(
            where, f"its numbers are {array.dtype}, and the network's {wanted}", f'Use .astype("{wanted}")'
        )
    rows, columns = array.shape[-2:]
    stage.fitted(prod(array.shape[:-3]), rows, columns).require(rows, columns)
    return Shape(prod(array.shape[:-3]), rows, columns, wanted.itemsize)
