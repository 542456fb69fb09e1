"""The images to verify on: files or a seeded image, and how large the seeded one has to be."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, lcm, prod

import torch
import torch.nn.functional as F
from PIL import Image as Picture
from torch import Tensor

from overlap_tool.errors import OptionError
from overlap_tool.geometry import brought_up
from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.layout import ROWS, Layout
from overlap_tool.graph import segments
from overlap_tool.models.stages import Stage, Survey
from overlap_tool.rules.pieces import as_laid_out
from overlap_tool.settings import Samples, Size
from overlap_tool.verification.certificate import ImageRecord

BLOCKS = (64, 16, 4, 1)
"""Sides of the squares that a seeded image is a sum of: it has detail at every scale, as photos have."""


@dataclass(frozen=True)
class Image:
    """One image as the model gets it: samples from 0 to 1, padded."""

    record: ImageRecord
    values: Tensor


def seeded(size: Size, layout: Layout, multiple: int) -> Image:
    """A seeded image, the same on every machine. For sound, the width is its length."""
    width, height = size = size if ROWS in layout.flat else Samples(size.width, 1)
    channels = prod(layout.channels)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(channels, height, width, dtype=torch.int64)
    for block in BLOCKS:
        squares = torch.randint(
            0, 256 // len(BLOCKS), (channels, ceil(height / block), ceil(width / block)), generator=generator
        )
        pixels += squares.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width]
    name = "x".join(map(str, (size, *layout.channels[1:])))
    return _prepared(f"seeded {name}", pixels.to(torch.uint8), layout, multiple)


def read(path: str | os.PathLike[str], layout: Layout, multiple: int) -> Image:
    """A picture from a file, in colour or grey as the model takes it."""
    where, channels = f"images={os.fspath(path)!r}", layout.channels[0]
    if layout.kind != "image" or channels not in (1, 3):
        told = f"{channels} channels" if layout.kind == "image" else f"a {layout.kind}"
        raise OptionError(where, f"the model takes {told}", "Leave `images` out: one is made up")
    try:
        with Picture.open(path) as opened:
            picture = opened.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, Picture.DecompressionBombError) as error:
        raise OptionError(where, f"cannot be read ({error})", "Give a PNG or JPEG file") from error
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.reshape(picture.height, picture.width, channels).permute(2, 0, 1)
    return _prepared(os.path.basename(path), pixels, layout, multiple)


def _prepared(name: str, pixels: Tensor, layout: Layout, multiple: int) -> Image:
    """The pixels, padded with black on all sides to a size that the model takes, as CompressAI's evaluation
    does."""
    _, height, width = pixels.shape
    above, below = brought_up(height, multiple) if ROWS in layout.flat else (0, 0)
    values = F.pad(pixels.unsqueeze(0).float() / 255, (*brought_up(width, multiple), above, below))
    sha256 = hashlib.sha256(pixels.contiguous().numpy().data).hexdigest()
    of_layout = Size if ROWS in layout.flat else Samples
    sizes = of_layout(width, height), of_layout(values.shape[3], values.shape[2])
    record = ImageRecord(name, *sizes, sha256)
    return Image(record, as_laid_out(values.unflatten(1, layout.channels), layout))


def multiple(found: Survey) -> int:
    """What the sides of an image should be a multiple of.

    A codec's multiple is known. Another network may take any size, or may fail where a part that goes down
    and up again meets one that does not, unless the sides are multiples of its stages' periods.
    """
    if found.multiple > 1:
        return found.multiple
    periods = (
        Fraction(axis.period) / stage.input_scale
        for stage in found.stages
        for axis in (stage.network.rows, stage.network.columns)
    )
    return lcm(*(ceil(period) for period in periods))


def telling_size(stages: Sequence[Stage], tiles: Sequence[Size], multiple: int) -> Size:
    """An image size on which every check has something to find.

    It has at least two tiles and a remainder on either axis, and in every stage some tile whose whole overlap
    lies inside the image on every side.
    """
    networks = [(stage, segment.network) for stage in stages for segment in segments.cut(stage.network)]
    width = max(_telling_side([(s, network.columns) for s, network in networks], tile) for tile, _ in tiles)
    height = max(_telling_side([(s, network.rows) for s, network in networks], tile) for _, tile in tiles)
    # not square, so that rows and columns cannot be confused; for sound, only the width counts
    return Size(_raised(width, multiple) + multiple, _raised(height, multiple))


def _telling_side(axes: Sequence[tuple[Stage, Axis]], tile: int) -> int:
    side = 2 * tile
    for stage, axis in axes:
        outputs = max(1, int(tile * stage.input_scale * axis.scale))
        own = outputs / axis.scale  # a tile in samples of the stage's input
        for op, (before, after) in zip(axis.ops, axis.overlaps(), strict=True):
            if op.geometry is None:
                first = ceil(before / op.scale / own) * own
                needed = (first, 2 * own, own + after / op.scale)
                side = max(side, *(ceil(n / stage.input_scale) for n in needed))
    return side + max(1, tile // 8)


def _raised(side: int, multiple: int) -> int:
    return ceil(side / multiple) * multiple
