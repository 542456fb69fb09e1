"""Attention in blocks of queries: scores that would be too large are computed some rows at a time.

A row of scores, its softmax and its product with the values depend on that row alone, so blocks of rows have
the bits of the whole. A product that would be too large is deferred: a stand-in knows how to compute any of
its rows. Row-wise ops return another stand-in, and the product with the values is computed block by block.
Any other op gets the whole product, as if nothing had been deferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from overlap_tool.settings import inside

BLOCK = 16 << 20
"""The scores of one block, in bytes. The ops around its softmax hold a few tensors of this size at once."""

PRODUCTS = frozenset(("bmm", "baddbmm"))

VIEWS = frozenset("view _unsafe_view _reshape_alias expand unsqueeze squeeze detach alias".split())
"""Views that keep the order of numbers."""

TURNS = frozenset(("transpose", "permute"))

BY_ROW = frozenset("add sub mul div masked_fill where clone".split())
"""Pointwise ops."""

SOFTMAX = frozenset(("_softmax", "_safe_softmax"))

Rows = Callable[[int, int], Tensor]
"""From the first row and one past the last to these rows."""

Anything = TypeVar("Anything")

_put_off: ContextVar[WeakSet[Scores] | None] = ContextVar("put_off", default=None)


@contextmanager
def in_blocks() -> Iterator[None]:
    """Inside, products that are too large are deferred. Results have to be `settled`."""
    if _put_off.get() is not None:
        yield
        return
    with inside(_put_off, WeakSet()):
        try:
            yield
        finally:
            settled(waiting())


def _at_once() -> AbstractContextManager[None]:
    """Inside, nothing is deferred, and writing settles nothing."""
    return inside(_put_off, None)


class Scores(Tensor):
    """A stand-in for matrices of scores, whose rows can be computed some at a time.

    `form` has its shape, strides and type, and no memory. Its rows are along `axis`, counted from the last
    dimension. Settling a view settles what it is a view of, with which it shares memory.
    """

    form: Tensor
    axis: int
    rows: Rows
    whole: Callable[[], Tensor]
    made: Tensor | None

    @staticmethod
    def __new__(
        cls: type[Scores],
        form: Tensor,
        device: torch.device,
        rows: Rows,
        axis: int = -2,
        whole: Callable[[], Tensor] | None = None,
    ) -> Scores:
        self: Scores = Tensor._make_wrapper_subclass(
            cls, form.shape, strides=form.stride(), dtype=form.dtype, device=device
        )
        self.form, self.rows, self.axis, self.made = form, rows, axis, None
        self.whole = whole or (lambda: rows(0, form.shape[axis]))
        put_off = _put_off.get()
        assert put_off is not None
        put_off.add(self)
        return self

    def settle(self) -> Tensor:
        """All of it, in memory."""
        if self.made is None:
            with _at_once():
                self.made = self.whole()
        return self.made

    def some(self, start: int, stop: int) -> Tensor:
        """The rows from `start` to `stop`."""
        if self.made is None:
            return self.rows(start, stop)
        return self.made.narrow(self.axis, start, stop - start)

    def blocks(self) -> Iterator[tuple[int, int]]:
        count = self.form.shape[self.axis]
        of_row = self.form.nbytes // count
        at_once = max(1, BLOCK // of_row)
        return ((start, min(count, start + at_once)) for start in range(0, count, at_once))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Called if the exact engine is not on top."""
        return func(*settled(args), **settled(kwargs or {}))


def settled(value: Anything) -> Anything:
    """The same value, with all deferred tensors in memory."""
    result: Anything = tree_map_only(Scores, Scores.settle, value)
    return result


def are_put_off() -> bool:
    """Whether products that are too large are deferred here."""
    return _put_off.get() is not None


def waiting() -> list[Scores]:
    """All deferred tensors. They have to be settled before anything is written that they may depend on."""
    return list(_put_off.get() or ())


def too_large(name: str, given: Sequence[Tensor]) -> bool:
    """Whether a product is to be deferred: it is large, and larger than its factors."""
    if name not in PRODUCTS or _put_off.get() is None:
        return False
    a, b = given[-2:]
    if a.ndim != 3 or b.ndim != 3:
        return False
    numbers = len(a) * a.shape[1] * b.shape[2]
    return numbers > a.numel() + b.numel() and numbers * a.itemsize > BLOCK


def product(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """A stand-in for `a @ b`, or for `c + a @ b`."""
    *added, a, b = args
    form = torch.empty(len(a), a.shape[1], b.shape[2], dtype=a.dtype, device="meta")

    def rows(start: int, stop: int) -> Tensor:
        few = [_some(each, -2, form, start, stop) for each in (*added, a)]
        result: Tensor = func(*few, b, **kwargs)
        return result

    return Scores(form, a.device, rows)


def computed(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An op that is given scores."""
    first = next((each for each in args if isinstance(each, Scores)), None)
    found: Tensor | None = None
    if first is not None and first.made is None:
        if name in VIEWS:
            found = _seen(func, first, args, kwargs)
        elif name in TURNS:
            found = _turned(func, name, first, args)
        elif name in SOFTMAX:
            along = args[1] % first.ndim - first.ndim
            found = _by_row(func, first, args, kwargs) if along != first.axis else None
        elif name in BY_ROW:
            found = _by_row(func, first, args, kwargs)
        elif name == "bmm":
            found = _with_values(func, *args)
        elif func._can_decompose():
            return func.decompose(*args, **kwargs)
    return func(*settled(args), **settled(kwargs)) if found is None else found


def _seen(func: Any, scores: Scores, args: Sequence[Any], kwargs: dict[str, Any]) -> Scores | None:
    """As a view, if its rows stay separate."""
    form = func(scores.form, *args[1:], **kwargs)
    before, count = scores.shape[: scores.axis].numel(), scores.shape[scores.axis]
    places = [
        place for place, n in enumerate(form.shape) if n == count and form.shape[:place].numel() == before
    ]
    if form.numel() != scores.numel() or not places:
        return None
    axis = places[0] - form.ndim
    ahead, behind = form.shape[:axis], form.shape[places[0] + 1 :]
    return Scores(
        form,
        scores.device,
        lambda start, stop: scores.some(start, stop).reshape(*ahead, stop - start, *behind),
        axis,
        lambda: func(scores.settle(), *args[1:], **kwargs),
    )


def _turned(func: Any, name: str, scores: Scores, args: Sequence[Any]) -> Scores:
    """With its dimensions permuted."""
    order = list(range(-scores.ndim, 0))
    if name == "permute":
        order = [order[dim] for dim in args[1]]
    else:
        one, other = args[1:]
        order[one], order[other] = order[other], order[one]
    return Scores(
        func(scores.form, *args[1:]),
        scores.device,
        lambda start, stop: scores.some(start, stop).permute(order),
        order.index(scores.axis) - len(order),
        lambda: func(scores.settle(), *args[1:]),
    )


def _by_row(func: Any, scores: Scores, args: Sequence[Any], kwargs: dict[str, Any]) -> Scores | None:
    """Each row of the result needs one row of an argument, or all of it."""
    form, axis = func(*map(_form, args), **kwargs), scores.axis
    others = [each for each in args if isinstance(each, Scores)]
    if form.shape != scores.shape or any(each.axis != axis for each in others):
        return None
    return Scores(
        form,
        scores.device,
        lambda start, stop: func(*(_some(each, axis, form, start, stop) for each in args), **kwargs),
        axis,
    )


def _with_values(func: Any, a: Tensor, b: Tensor) -> Tensor | None:
    """The product with the values, with one block of scores in memory at a time."""
    if isinstance(a, Scores) and a.axis == -2:
        scores, values = a, settled(b)
    elif isinstance(b, Scores) and b.axis == -1:  # transposed scores
        scores, values = b, settled(a)
    else:
        return None
    out = values.new_empty(len(a), a.shape[1], b.shape[2])
    with _at_once():
        for start, stop in scores.blocks():
            some = scores.some(start, stop)
            part = func(some, values) if scores is a else func(values, some)
            out.narrow(scores.axis, start, stop - start).copy_(part)
            del some, part  # otherwise a block would stay alive while the next is computed
            if isinstance(out, FakeTensor):  # one block shows the memory of all
                break
    return out


def _form(value: Any) -> Any:
    if isinstance(value, Scores):
        return value.form
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def _some(value: Any, axis: int, form: Tensor, start: int, stop: int) -> Any:
    """The part of an argument for some rows of a result of this form."""
    if isinstance(value, Scores):
        return value.some(start, stop)
    if isinstance(value, Tensor) and value.ndim >= -axis and value.shape[axis] == form.shape[axis] > 1:
        return value.narrow(axis, start, stop - start)
    return value
