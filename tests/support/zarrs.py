"""Zarr arrays in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray


def written(path: Path, values: NDArray[Any], chunks: tuple[int, ...]) -> zarr.Array:
    array = zarr.open_array(
        store=str(path), mode="w", shape=values.shape, chunks=chunks, dtype=values.dtype.str[1:]
    )
    array[:] = values
    return array


def values_of(path: Path) -> NDArray[Any]:
    return zarr.open_array(store=str(path), mode="r")[:]
