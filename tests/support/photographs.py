"""Photographs, codecs in tiles, and the untouched model on the whole image: what files are held to."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from compressai.ops import compute_padding

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.files import Codec
from overlap_tool.files.formats import container
from overlap_tool.files.formats.pictures import Picture
from overlap_tool.geometry import Span
from overlap_tool.planning.live_bytes import LiveBytes
from overlap_tool.settings import Settings
from overlap_tool.wrapping.retrofit import rewrap, settings_of
from support.exactness import tiled_model
from support.small_models import small_model

Pixels = np.ndarray[Any, np.dtype[Any]]


class LiveMemory(LiveBytes):
    """Without tensors that have a shape and no memory."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._count(storage)


def photograph(name: str, height: int, width: int, at: tuple[int, int] = (40, 60)) -> Pixels:
    """A cut-out of a photograph that comes with scikit-image."""
    pixels = getattr(skimage.data, name)()
    return np.ascontiguousarray(pixels[at[0] : at[0] + height, at[1] : at[1] + width])


def rows_of(picture: Picture, start: int, stop: int) -> Pixels:
    """A band of an open picture, over its whole width."""
    return picture.read(Span(start, stop), Span(0, picture.shape[1]))


@cache
def _codec(architecture: str) -> Codec:
    weights = small_model(architecture).state_dict()
    return Codec(tiled_model(architecture), architecture, checkpoint.hash_weights(weights), architecture)


def codec(architecture: str) -> Codec:
    """A small codec in tiles of 64, until another test asks for others; treat it as read-only."""
    found, settings = _codec(architecture), Settings(tile=(64, 64))
    if settings_of(found.model) != settings:
        rewrap(found.model, settings)
    return found


def untouched(architecture: str, pixels: Pixels) -> tuple[list[Any], Any, Pixels]:
    """Strings, shape and decoded pixels of the model that was never wrapped, on the whole image."""
    return coded_whole(small_model(architecture), pixels, 16 if "factorized" in architecture else 64)


def coded_whole(model: Any, pixels: Pixels, multiple: int = 64) -> tuple[list[Any], Any, Pixels]:
    """The same of any model."""
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / np.iinfo(pixels.dtype).max
    pad, unpad = compute_padding(*pixels.shape[:2], min_div=multiple)
    with torch.no_grad(), overlap_tool.exact_kernels():
        coded = model.compress(F.pad(image, pad))
        decoded = F.pad(model.decompress(**coded)["x_hat"], unpad)
    return coded["strings"], coded["shape"], as_samples(decoded, pixels.dtype)


def as_samples(decoded: torch.Tensor, dtype: Any) -> Pixels:
    scaled = torch.round(decoded.clamp(0, 1) * np.iinfo(dtype).max)
    return scaled[0].permute(1, 2, 0).numpy().astype(dtype)


def strings_in(path: Path) -> list[Any]:
    head, strings = container.read(path)
    return container.nested(head.strings, strings)
