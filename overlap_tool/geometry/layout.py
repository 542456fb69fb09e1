"""How a tensor holds a map: every dimension is a product of axes, in order. Pure integers, no torch.

Models rearrange axes: `view` cuts rows into blocks and the positions inside one, `permute` moves the blocks
beside the images, `reshape` joins both. A `Layout` states what every dimension is made of, so that an op
along a dimension is known to run along channels, rows, columns or images. Cutting rows into blocks of eight
makes a map of an eighth of the rows, in which the position inside a block is a channel: an op inside blocks
then acts on one position, and attention in windows is a pointwise op.

>>> tokens = Layout.of_map(64).permuted((0, 2, 3, 1))
>>> windows = tokens.reshaped([(2, 48, 96), (3, 96, 240)], [(2, 6, 8, 12, 8, 64), (3, 12, 8, 30, 8, 64)])
>>> windows.layout.permuted((0, 1, 3, 2, 4, 5)), windows.rows, windows.columns
(Layout((images) (rows) (columns) (8) (8) (64)), 8, 8)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple


class Following(Enum):
    """The axis that a length follows: it differs from one input to another."""

    IMAGES = "images"
    ROWS = "rows"
    COLUMNS = "columns"


IMAGES, ROWS, COLUMNS = Following
Factor = Following | int
"""An axis of the map, or a number of channels."""

Dimension = tuple[Factor, ...]
"""The factors of a dimension, the slowest first; `(1,)` for a dimension of length one."""

MapSize = tuple[int, int, int]
"""The number of images, rows and columns of a map."""


Kind = Literal["image", "volume", "sound"]
"""What a map represents: two axes, two axes and a depth among the channels, or one axis."""


class LayoutError(ValueError):
    """A dimension would not be a product of axes, or would be cut where no tile can be."""


@dataclass(frozen=True, repr=False)
class Layout:
    """The dimensions of a tensor that holds a map. Each axis of the map is in one dimension, or in none."""

    dims: tuple[Dimension, ...]

    def __repr__(self) -> str:
        names = (
            "*".join(str(f if isinstance(f, int) else f.value) for f in dimension) for dimension in self.dims
        )
        return f"Layout({' '.join(f'({name})' for name in names)})"

    @staticmethod
    def of_map(*channels: int) -> Layout:
        """Images, channels, rows, columns: the layout in which the executor keeps all maps."""
        return Layout(((IMAGES,), *((n,) for n in channels), (ROWS,), (COLUMNS,)))

    @staticmethod
    def of_sequence(channels: int) -> Layout:
        """Images, channels, columns: a map of one row, as code for sound has it."""
        return Layout(((IMAGES,), (channels,), (COLUMNS,)))

    @cached_property
    def flat(self) -> Dimension:
        return tuple(factor for dimension in self.dims for factor in dimension)

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """The numbers of channels, in order: the dimensions of a kept map between images and rows."""
        return tuple(factor for factor in self.flat if isinstance(factor, int))

    @cached_property
    def is_kept(self) -> bool:
        """Whether this is the layout in which maps are kept."""
        return self == Layout.of_map(*self.channels)

    @property
    def kind(self) -> Kind | None:
        """What a tensor of this layout represents; None if no layer takes such an input."""
        kinds: dict[int, Kind] = {1: "image", 2: "volume"}
        if self.is_kept:
            return kinds.get(len(self.channels))
        return "sound" if self == Layout.of_sequence(*self.channels[:1] or (0,)) else None

    @cached_property
    def missing(self) -> tuple[Following, ...]:
        """The axes that the tensor lacks: it is constant along them."""
        return tuple(axis for axis in Following if axis not in self.flat)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """For every factor, and then for every missing axis, the dimension of the kept map that holds it."""
        channels = iter(range(1, 1 + len(self.channels)))
        places = {IMAGES: 0, ROWS: 1 + len(self.channels), COLUMNS: 2 + len(self.channels)}
        factors = (*self.flat, *self.missing)
        return tuple(next(channels) if isinstance(f, int) else places[f] for f in factors)

    def sizes(self, of: MapSize) -> tuple[int, ...]:
        """The lengths of all factors."""
        lengths = dict(zip(Following, of, strict=True))
        return tuple(f if isinstance(f, int) else lengths[f] for f in self.flat)

    def shape(self, of: MapSize) -> tuple[int, ...]:
        """The lengths of all dimensions."""
        lengths = dict(zip(Following, of, strict=True))
        return tuple(prod(f if isinstance(f, int) else lengths[f] for f in each) for each in self.dims)

    def size_of(self, shape: Sequence[int]) -> MapSize | None:
        """The images, rows and columns of a tensor of this shape; None if the shape does not match.

        >>> Layout.of_map(3).size_of((1, 3, 48, 64)), Layout.of_sequence(2).size_of((1, 2, 24000))
        ((1, 48, 64), (1, 1, 24000))
        """
        if len(shape) != len(self.dims):
            return None
        lengths = dict.fromkeys(Following, 1)
        lengths.update((d[0], n) for d, n in zip(self.dims, shape, strict=True) if d[0] in lengths)
        size = lengths[IMAGES], lengths[ROWS], lengths[COLUMNS]
        return size if self.shape(size) == tuple(shape) else None

    def place_of(self, axis: Following) -> int | None:
        """The dimension that consists of this axis alone, if there is one."""
        return self.dims.index((axis,)) if (axis,) in self.dims else None

    def following(self, dims: Iterable[int]) -> set[Following]:
        """The axes that appear in any of these dimensions."""
        return {f for dim in dims for f in self.dims[dim] if isinstance(f, Following)}

    def permuted(self, order: Sequence[int]) -> Layout:
        return Layout(tuple(self.dims[dim] for dim in order))

    def with_lengths(self, lengths: dict[int, int], dropped: Iterable[int] = ()) -> Layout:
        """The layout with other lengths, which follow no axis, for some dimensions, and without others."""
        dims = [(lengths[i],) if i in lengths else dimension for i, dimension in enumerate(self.dims)]
        gone = set(dropped)
        return Layout(tuple(dimension for i, dimension in enumerate(dims) if i not in gone))

    def with_ones(self, places: Sequence[int]) -> Layout:
        """The layout with new dimensions of length one at these positions of the result."""
        rest = iter(self.dims)
        ndim = len(self.dims) + len(places)
        return Layout(tuple((1,) if i in places else next(rest) for i in range(ndim)))

    def joined(self) -> Resized:
        """With blocks of rows, and the positions inside them, as rows again; likewise for columns."""
        blocks = {ROWS: 1, COLUMNS: 1}
        dims: list[Dimension] = []
        for dimension in self.dims:
            factors: list[Factor] = []
            for factor in dimension:
                if isinstance(factor, int) and factors and factors[-1] in blocks:
                    blocks[factors[-1]] *= factor
                else:
                    factors.append(factor)
            dims.append(tuple(factors))
        return Resized(Layout(tuple(dims)), blocks[ROWS], blocks[COLUMNS])

    def reshaped(self, sizes: Sequence[MapSize], shapes: Sequence[Sequence[int]]) -> Resized:
        """The layout after a reshape, which keeps the order of numbers.

        The reshape is known for maps of several `sizes`, with one of `shapes` each, which shows what follows
        the size.
        """
        left = [_Axis(f, lengths) for f, lengths in self._lengths(sizes) if f != 1]
        left = _with_channels_joined(left)[::-1]
        dims: list[Dimension] = []
        blocks = {ROWS: 1, COLUMNS: 1}
        for lengths in zip(*shapes, strict=True):
            factors: list[Factor] = []
            while lengths != (1,) * len(sizes) or (left and left[-1].lengths == lengths):
                if not left:
                    raise LayoutError("changes how many numbers there are")
                axis = left.pop()
                if not _divides(axis.lengths, lengths):
                    if not _divides(lengths, axis.lengths):
                        raise LayoutError("cuts a dimension where none of its axes ends")
                    axis, inner = axis.cut(lengths)
                    if axis.factor in blocks:
                        blocks[axis.factor] *= inner.lengths[0]
                    left.append(inner)
                factors.append(axis.factor)
                lengths = tuple(n // own for n, own in zip(lengths, axis.lengths, strict=True))
            dims.append(tuple(factors) or (1,))
        if left:
            raise LayoutError("changes how many numbers there are")
        return Resized(Layout(tuple(dims)), blocks[ROWS], blocks[COLUMNS])

    def _lengths(self, sizes: Sequence[MapSize]) -> Iterable[tuple[Factor, tuple[int, ...]]]:
        return zip(self.flat, zip(*map(self.sizes, sizes), strict=True), strict=True)


class Resized(NamedTuple):
    """A layout of a map with fewer rows and columns than before, by a factor, or with more."""

    layout: Layout
    rows: int
    columns: int


class _Axis(NamedTuple):
    factor: Factor
    lengths: tuple[int, ...]
    """At each of the sizes."""

    def cut(self, outer: tuple[int, ...]) -> tuple[_Axis, _Axis]:
        """Cut into `outer` blocks, and the positions inside one."""
        inner = tuple(own // n for own, n in zip(self.lengths, outer, strict=True))
        if isinstance(self.factor, int):
            return _Axis(outer[0], outer), _Axis(inner[0], inner)
        if self.factor is IMAGES:
            raise LayoutError("takes the images of a batch apart")
        if len(set(inner)) > 1:
            raise LayoutError(
                f"cuts all {self.factor.value} of an image in a fixed number of parts, so that places from "
                "all over it stand together"
            )
        return _Axis(self.factor, outer), _Axis(inner[0], inner)


def _with_channels_joined(axes: list[_Axis]) -> list[_Axis]:
    """Adjacent numbers of channels as one: only their order matters."""
    joined: list[_Axis] = []
    for axis in axes:
        if joined and isinstance(axis.factor, int) and isinstance(joined[-1].factor, int):
            n = axis.factor * joined.pop().factor  # type: ignore[operator]
            axis = _Axis(n, (n,) * len(axis.lengths))
        joined.append(axis)
    return joined


def _divides(divisors: Sequence[int], numbers: Sequence[int]) -> bool:
    return all(number % divisor == 0 for divisor, number in zip(divisors, numbers, strict=True))


def broadcast(layouts: Sequence[Layout], shape: Sequence[int]) -> Layout | None:
    """The layout of a pointwise op's result on several tensors of this shape.

    None if they hold their axes in different dimensions. A dimension that follows an axis in any of them does
    in the result.
    """
    dims: list[Dimension] = []
    for dim in range(-len(shape), 0):
        made = {each.dims[dim] for each in layouts if dim >= -len(each.dims)} - {(1,)}
        if any(isinstance(f, Following) for each in made for f in each):
            if len(made) > 1:
                return None
            dims.append(made.pop())
        else:
            dims.append((shape[dim],))
    layout = Layout(tuple(dims))
    # rows in two dimensions would mean all pairs of rows
    return None if any(layout.flat.count(axis) > 1 for axis in Following) else layout
