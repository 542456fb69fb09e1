"""PyTorch's notations of padding, and of options for several axes at once."""

from __future__ import annotations

from collections.abc import Sequence

from overlap_tool.geometry import Padding

PADDING_MODES = {
    "zeros": Padding.CONSTANT,
    "constant": Padding.CONSTANT,
    "reflect": Padding.REFLECT,
    "replicate": Padding.REPLICATE,
    "circular": Padding.CIRCULAR,
}


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One number for rows and columns, or one each; of three, the last two."""
    if isinstance(value, int):
        return value, value
    first, second = (*value, *value)[-2:]
    return first, second


def of_depth(value: int | Sequence[int]) -> int:
    """The number for the depth, from one number for all axes or from three."""
    return value if isinstance(value, int) else value[0]


def of_each_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """For rows and columns, and for the depth before them if there are three axes."""
    return pair(value) if axes == 2 else (of_depth(value), *pair(value))


def same_padding(kernel: int, dilation: int) -> tuple[int, int]:
    """torch's "same": the odd sample of an even kernel goes to the end."""
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2
