"""The algebra of axes held to numpy: a layout says where every number of a tensor comes from."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries

from overlap_tool.geometry import Expand, Geometry, Shrink, Span
from overlap_tool.geometry.layout import COLUMNS, IMAGES, ROWS, Layout, LayoutError, broadcast

CHANNELS = 12
SIZES = ((2, 12, 24), (3, 48, 36))


@dataclass
class Traced:
    """A tensor of numbers that tell where they came from, at two sizes, and what its layout says of it."""

    values: list[Any]
    sizes: list[tuple[int, int, int]]
    layout: Layout
    rows: list[Geometry]
    columns: list[Geometry]

    @staticmethod
    def start() -> Traced:
        shapes = [(images, CHANNELS, rows, columns) for images, rows, columns in SIZES]
        values = [np.arange(prod(shape)).reshape(shape) for shape in shapes]
        return Traced(values, list(SIZES), Layout.of_map(CHANNELS), [], [])

    @property
    def ndim(self) -> int:
        return len(self.layout.dims)

    @property
    def free(self) -> list[int]:
        """The dimensions that follow nothing."""
        return [dim for dim in range(self.ndim) if not self.layout.following([dim])]

    @property
    def ones(self) -> list[int]:
        return [dim for dim in self.free if self.layout.dims[dim] == (1,)]

    def resized(self, layout: Layout, rows: Geometry, columns: Geometry) -> None:
        self.layout = layout
        self.rows.append(rows)
        self.columns.append(columns)
        self.sizes = [
            (images, rows.size(height), columns.size(width)) for images, height, width in self.sizes
        ]


def _cut_at_random(traced: Traced, draw: Any) -> list[tuple[int, ...]]:
    """A shape for each size, to which the tensor can be reshaped: its factors, cut and joined."""
    lengths: list[tuple[int, ...]] = []
    for factor, own in zip(
        traced.layout.flat, zip(*map(traced.layout.sizes, traced.sizes), strict=True), strict=True
    ):
        inner = draw(st.sampled_from([n for n in (1, 2, 3, 4) if all(size % n == 0 for size in own)]))
        parts = [own] if factor is IMAGES or inner == 1 else [tuple(size // inner for size in own)]
        lengths += parts if factor is IMAGES or inner == 1 else [*parts, (inner,) * len(own)]
    if draw(st.booleans()):
        lengths.insert(draw(st.integers(0, len(lengths))), (1,) * len(SIZES))
    joined: list[tuple[int, ...]] = []
    for own in lengths:
        if joined and draw(st.booleans()):
            own = tuple(a * b for a, b in zip(joined.pop(), own, strict=True))
        joined.append(own)
    return list(zip(*joined, strict=True))


def _reshape(traced: Traced, shapes: list[tuple[int, ...]]) -> None:
    made = traced.layout.reshaped(traced.sizes, shapes)
    traced.values = [value.reshape(shape) for value, shape in zip(traced.values, shapes, strict=True)]
    traced.resized(made.layout, Shrink(made.rows), Shrink(made.columns))


def _view(traced: Traced, draw: Any) -> None:
    _reshape(traced, _cut_at_random(traced, draw))


def _flatten(traced: Traced, draw: Any) -> None:
    first = draw(st.integers(0, traced.ndim - 1))
    last = draw(st.integers(first, traced.ndim - 1))
    shapes = [value.shape for value in traced.values]
    _reshape(traced, [(*s[:first], prod(s[first : last + 1]), *s[last + 1 :]) for s in shapes])


def _unflatten(traced: Traced, draw: Any) -> None:
    """One dimension, where one of its factors ends or, of the last one, at blocks of some places."""
    dim = draw(st.integers(0, traced.ndim - 1))
    factors = len(traced.layout.dims[dim])
    before = sum(map(len, traced.layout.dims[:dim]))
    lengths = [traced.layout.sizes(size)[before : before + factors] for size in traced.sizes]
    if factors > 1 and draw(st.booleans()):
        place = draw(st.integers(1, factors - 1))
        inner = [prod(own[place:]) for own in lengths]
    elif traced.layout.dims[dim][-1] is IMAGES:
        return
    else:
        inner = [draw(st.sampled_from([n for n in (1, 2, 3, 4) if all(own[-1] % n == 0 for own in lengths)]))]
        inner *= len(lengths)
    shapes = [value.shape for value in traced.values]
    _reshape(traced, [(*s[:dim], s[dim] // n, n, *s[dim + 1 :]) for s, n in zip(shapes, inner, strict=True)])


def _permute(traced: Traced, draw: Any) -> None:
    order = draw(st.permutations(range(traced.ndim)))
    traced.values = [value.transpose(order) for value in traced.values]
    traced.layout = traced.layout.permuted(order)


def _movedim(traced: Traced, draw: Any) -> None:
    source, place = (draw(st.integers(0, traced.ndim - 1)) for _ in range(2))
    order = [dim for dim in range(traced.ndim) if dim != source]
    order.insert(place, source)
    traced.values = [np.moveaxis(value, source, place) for value in traced.values]
    traced.layout = traced.layout.permuted(order)


def _join(traced: Traced, draw: Any) -> None:
    made = traced.layout.joined()
    traced.resized(made.layout, Expand(made.rows), Expand(made.columns))


def _pick(traced: Traced, draw: Any) -> None:
    if not traced.free:
        return
    dim = draw(st.sampled_from(traced.free))
    n = traced.values[0].shape[dim]
    start = draw(st.integers(0, n - 1))
    count = draw(st.integers(1, n - start))
    traced.values = [value.take(range(start, start + count), dim) for value in traced.values]
    traced.layout = traced.layout.with_lengths({dim: count})


def _chunk(traced: Traced, draw: Any) -> None:
    if not traced.free:
        return
    dim = draw(st.sampled_from(traced.free))
    n = traced.values[0].shape[dim]
    parts = draw(st.sampled_from([parts for parts in (1, 2, 3, 4) if n % parts == 0]))
    which = draw(st.integers(0, parts - 1))
    traced.values = [np.split(value, parts, dim)[which] for value in traced.values]
    traced.layout = traced.layout.with_lengths({dim: n // parts})


def _expand(traced: Traced, draw: Any) -> None:
    """A dimension of length one, or a new one in front."""
    new = draw(st.booleans())
    if not (new or traced.ones):
        return
    dim = 0 if new else draw(st.sampled_from(traced.ones))
    layout = traced.layout.with_ones(range(new))
    shapes = [list(layout.shape(size)) for size in traced.sizes]
    for shape in shapes:
        shape[dim] = 3
    traced.values = [np.broadcast_to(v, shape) for v, shape in zip(traced.values, shapes, strict=True)]
    traced.layout = layout.with_lengths({dim: 3})


def _squeeze(traced: Traced, draw: Any) -> None:
    if traced.ones:
        dim = draw(st.sampled_from(traced.ones))
        traced.values = [value.squeeze(dim) for value in traced.values]
        traced.layout = traced.layout.with_lengths({}, [dim])


def _unsqueeze(traced: Traced, draw: Any) -> None:
    place = draw(st.integers(0, traced.ndim))
    traced.values = [np.expand_dims(value, place) for value in traced.values]
    traced.layout = traced.layout.with_ones([place])


STEPS = (
    _view, _flatten, _unflatten, _permute, _movedim, _join, _pick, _chunk, _expand, _squeeze, _unsqueeze,
)  # fmt: skip


def _held(geometries: list[Geometry], length: int) -> list[Span]:
    """For every output, the rows or columns of the start that it comes from."""
    spans = [Span(i, i + 1) for i in range(length)]
    for geometry in reversed(geometries):
        spans = [geometry.need(span) for span in spans]
    return spans


def _is_where_it_says(traced: Traced) -> bool:
    for start, size, value in zip(SIZES, traced.sizes, traced.values, strict=True):
        if value.shape != traced.layout.shape(size):
            return False
        inverse = np.argsort(traced.layout.order)
        kept = value.reshape(traced.layout.sizes(size)).transpose(inverse)
        rest, columns = np.divmod(kept, start[2])
        rest, rows = np.divmod(rest, start[1])
        images = rest // CHANNELS
        if (images != np.arange(start[0]).reshape(-1, *[1] * (kept.ndim - 1))).any():
            return False
        down, across = _held(traced.rows, size[1]), _held(traced.columns, size[2])
        for found, spans, shape in ((rows, down, (-1, 1)), (columns, across, (-1,))):
            first, last = (np.array(ends).reshape(shape) for ends in zip(*spans, strict=True))
            if ((found < first) | (found >= last)).any():
                return False
    return True


@tries(400)
@given(st.data())
def test_a_layout_says_where_every_number_comes_from(data: Any) -> None:
    traced = Traced.start()
    for _ in range(data.draw(st.integers(1, 10))):
        data.draw(st.sampled_from(STEPS))(traced, data.draw)
        assert _is_where_it_says(traced), traced.layout


def test_windows_and_back() -> None:
    sizes = [(2, 48, 96), (3, 96, 240)]
    tokens = Layout.of_map(64).permuted((0, 2, 3, 1))
    cut = tokens.reshaped(sizes, [(2, 6, 8, 12, 8, 64), (3, 12, 8, 30, 8, 64)])
    assert (cut.rows, cut.columns) == (8, 8)
    small = [(2, 6, 12), (3, 12, 30)]
    beside = cut.layout.permuted((0, 1, 3, 2, 4, 5))
    windows = beside.reshaped(small, [(2 * 6 * 12, 64, 64), (3 * 12 * 30, 64, 64)])
    assert windows.layout == Layout(((IMAGES, ROWS, COLUMNS), (64,), (64,)))
    apart = windows.layout.reshaped(small, [(2, 6, 12, 8, 8, 64), (3, 12, 30, 8, 8, 64)])
    back = apart.layout.permuted((0, 1, 3, 2, 4, 5)).reshaped(small, [(2, 48, 96, 64), (3, 96, 240, 64)])
    assert back.layout == Layout(((IMAGES,), (ROWS, 8), (COLUMNS, 8), (64,)))
    assert back.layout.joined() == (tokens, 8, 8)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([(2, 12, 4, 3, 24), (3, 12, 4, 12, 36)], "a fixed number of parts, so that places from all over it"),
        ([(2, 12, 12, 25), (3, 12, 48, 36)], "where none of its axes ends"),
        ([(2, 12, 12), (3, 12, 48)], "how many numbers"),
        ([(2, 1, 12, 12, 24), (1, 3, 12, 48, 36)], "takes the images of a batch apart"),
    ],
)
def test_what_is_no_product_of_axes_is_refused(shapes: Any, reason: str) -> None:
    with pytest.raises(LayoutError, match=reason):
        Layout.of_map(CHANNELS).reshaped(SIZES, shapes)


def test_what_meets_position_by_position() -> None:
    tokens = Layout(((IMAGES,), (ROWS, COLUMNS), (64,)))
    assert broadcast([tokens, Layout(((IMAGES,), (ROWS, COLUMNS), (1,)))], (2, 288, 64)) == tokens
    assert broadcast([tokens, Layout(((IMAGES,), (COLUMNS, ROWS), (64,)))], (2, 288, 64)) is None
    apart = [Layout(((IMAGES,), (ROWS, COLUMNS), (1,))), Layout(((IMAGES,), (1,), (ROWS, COLUMNS)))]
    assert broadcast(apart, (2, 288, 288)) is None
    assert broadcast([Layout.of_map(1)], (2, 12, 12, 24)) == Layout.of_map(12)
