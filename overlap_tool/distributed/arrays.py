"""`map_tiles`: a network over a Dask array, lazily, with the overlap that it needs and no other."""

from __future__ import annotations

from math import prod
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from overlap_tool.distributed.cluster import dask_library
from overlap_tool.distributed.pieces import (
    compute_area,
    grid,
    refuse_other_bits,
    refuse_other_networks,
    refuse_whole_maps,
)
from overlap_tool.distributed.reading import SentWindow
from overlap_tool.errors import OptionError
from overlap_tool.files.running import area_read
from overlap_tool.geometry.walk import Area
from overlap_tool.planning.choose import Shape
from overlap_tool.wrapping.retrofit import TiledForward, settings_of, tiled_stages, wrap


def map_tiles(model: nn.Module, array: Any) -> Any:
    """What a network makes of a Dask array, as a Dask array: the bits of `model(whole)`, chunk by chunk.

    The array's last three axes are channels, rows and columns, of the type of the network's weights; the
    network is one stage, wrapped or not (then in tiles of 256). Nothing is computed before Dask is asked to.
    Every chunk of rows and columns gives one of the result; what it needs of its neighbours, and no more, is
    read with it. The model goes to each worker once.

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
    refuse_whole_maps(stage)
    refuse_other_bits(stage)
    axes = stage.network.rows, stage.network.columns
    sizes = [axis.sizes(n)[-1] for axis, n in zip(axes, array.shape[-2:], strict=True)]
    places = [
        sorted({0, size, *(min(size, round(edge * axis.scale)) for edge in np.cumsum(chunks)[:-1].tolist())})
        for axis, size, chunks in zip(axes, sizes, array.chunks[-2:], strict=True)
    ]
    name = f"overlap-tool-{uuid4().hex}"
    sent = dask.delayed(tiled, pure=False, name=f"{name}-model", traverse=False)
    leading = (*array.shape[:-3], stage.network.ops[-1].channels)
    pieces = []
    for number, area in enumerate(grid(*places)):
        read = area_read(stage, shape, area)
        window = array[..., slice(*read.rows), slice(*read.columns)].rechunk(-1)
        values = dask.delayed(compute_piece_of_array, pure=False)(
            sent, window, read, shape, area, dask_key_name=f"{name}-{number}"
        )
        size = (*leading, area.rows.length, area.columns.length)
        pieces.append(dask_array.from_delayed(values, size, array.dtype))
    across = len(places[1]) - 1
    return dask_array.block([pieces[start : start + across] for start in range(0, len(pieces), across)])


def compute_piece_of_array(
    model: nn.Module, window: NDArray[Any], read: Area, shape: Shape, area: Area
) -> NDArray[Any]:
    """On a worker: an area of the output, from the window of the input that it reads."""
    given = torch.from_numpy(np.array(window)).reshape(shape.images, -1, *window.shape[-2:])
    made = compute_area(only_stage(model), SentWindow(given, read), shape, area)
    return made.reshape(*window.shape[:-3], *made.shape[1:]).numpy()


def only_stage(model: nn.Module) -> TiledForward:
    """Of a wrapped model that is one network."""
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
    """Of the network's input, of an array that it takes."""
    where = f"array of shape {tuple(array.shape)}"
    channels = stage.network.ops[0].channels
    if array.ndim not in (3, 4) or array.shape[-3] != channels:
        raise OptionError(
            where,
            f"its last axes are not {channels} channels, rows and columns",
            "Move them there with dask.array.moveaxis",
        )
    dtype = next((parameter.dtype for parameter in stage.module.parameters()), torch.float32)
    wanted = torch.empty(0, dtype=dtype).numpy().dtype
    if array.dtype != wanted:
        raise OptionError(
            where, f"its numbers are {array.dtype}, and the network's {wanted}", f'Use .astype("{wanted}")'
        )
    rows, columns = array.shape[-2:]
    stage.fitted(prod(array.shape[:-3]), rows, columns).require(rows, columns)
    return Shape(prod(array.shape[:-3]), rows, columns, wanted.itemsize)
