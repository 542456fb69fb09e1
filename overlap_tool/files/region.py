"""A requested rectangle of an image."""

from __future__ import annotations

from overlap_tool.errors import OptionError
from overlap_tool.geometry import Span
from overlap_tool.geometry.walk import Area

Rectangle = tuple[int, int, int, int]
"""The column and the row of its upper left pixel, its width and its height."""


def area_of(region: Rectangle | None, height: int, width: int) -> Area:
    """The rectangle in an image of this height and width; None means all of it."""
    if region is None:
        return Area.whole(height, width)
    where = f"region={list(region)!r}"
    if len(region) != 4 or not all(isinstance(side, int) for side in region):
        raise OptionError(where, "is not four whole numbers", "Give x, y, width and height in pixels")
    x, y, wide, high = region
    if min(wide, high) < 1:
        raise OptionError(where, "has no pixels", "Give x, y, and a width and a height of 1 or more")
    if min(x, y) < 0 or x + wide > width or y + high > height:
        raise OptionError(
            where,
            f"is not inside of an image of {width}x{height}",
            "Give x, y, width and height of a rectangle in it, in pixels of the output",
        )
    return Area(Span(y, y + high), Span(x, x + wide))
