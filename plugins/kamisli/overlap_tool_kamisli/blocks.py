"""Images as maps of blocks: every block of pixels is one place with as many channels."""

from __future__ import annotations

from torch import Tensor

from overlap_tool.errors import OptionError
from overlap_tool_kamisli.causality import Front

GREY = 0.5
"""The networks see pixels from -0.5 to 0.5. What is outside of the image, or not there yet, is grey."""


def to_blocks(image: Tensor, side: int) -> Tensor:
    """(images, colours, height, width) to (images, channels, rows of blocks, columns of blocks).

    Colours lie closest together, then columns, then rows of the block's pixels.
    """
    return _cells(image, side).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def to_image(blocks: Tensor, side: int) -> Tensor:
    cells = blocks.unflatten(1, (side, side, -1))
    return cells.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


def take(image: Tensor, side: int, front: Front) -> Tensor:
    """The blocks of a front, side by side: (1, channels, 1, rows * images)."""
    return _front(image, side, front).flatten(2).flatten(0, 1).T[None, :, None]


def put(values: Tensor, image: Tensor, side: int, front: Front) -> None:
    """Write a front's blocks, as `take` gives them, to their places in the image."""
    place = _front(image, side, front)
    place.copy_(spread(values, front).reshape(place.shape))


def spread(values: Tensor, front: Front) -> Tensor:
    """Blocks side by side, to (rows, images, channels)."""
    return values.squeeze(2).squeeze(0).T.unflatten(0, (len(front.rows), -1))


def _front(image: Tensor, side: int, front: Front) -> Tensor:
    """A front's pixels in a contiguous image, as a view.

    It is (rows of blocks, images, rows of pixels, columns of pixels, colours).
    """
    cells = _cells(image, side)
    images, colours, down, within, across, beside = cells.stride()
    first = cells.storage_offset() + front.start * down + front.column(front.start) * across
    sizes = len(front.rows), image.shape[0], side, side, image.shape[1]
    # below 0 only if the grid is narrower than the slope, so that a front is a single block
    next_row = max(0, down - front.slope * across)
    return cells.as_strided(sizes, (next_row, images, within, beside, colours), first)


def check(image: Tensor, side: int) -> None:
    """An image whose blocks are all whole."""
    if image.ndim != 4 or image.shape[1] != 3 or any(n % side or n == 0 for n in image.shape[2:]):
        raise OptionError(
            f"an image of {tuple(image.shape)}",
            f"is not made of RGB blocks of {side}x{side} pixels",
            f"Give (images, 3, height, width), padded to multiples of {side}",
        )


def _cells(image: Tensor, side: int) -> Tensor:
    """(images, colours, rows of blocks, rows of pixels, columns of blocks, columns of pixels), a view."""
    return image.unflatten(3, (-1, side)).unflatten(2, (-1, side))
