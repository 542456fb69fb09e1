"""Maps that are not in memory: a tensor's shape and type, with numbers that are read piece by piece.

A model's own code can be given one in place of a tensor. Elementwise functions, and those that select or
write rows, columns or channels, are deferred until a piece is read. Any other function gets the whole map as
a tensor: the result is right, but it takes memory, so it is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from overlap_tool.errors import ExactnessError
from overlap_tool.geometry import Span
from overlap_tool.runtime.deferred import Argument, Computed, InMemory, Numbers, Overwritten, Region, part

Notify = Callable[["LazyMap", str], None]
"""Called with a map, and the name of the function that needs all of it."""

ATTRIBUTES = frozenset("shape dtype device ndim is_cuda is_meta is_sparse layout requires_grad".split())
QUESTIONS = frozenset("size dim ndimension numel nelement element_size is_floating_point is_complex".split())


class LazyMap(Tensor):
    """A map by its shape, type and device; its `numbers` are stored or computed elsewhere.

    `at` is the axis of the rows, which that of the columns follows. A map can be a view of another: then it
    shows what is written there, and writes there.
    """

    at: int
    notify: Notify
    _numbers: Numbers | View

    @staticmethod
    def __new__(
        cls: type[LazyMap],
        numbers: Numbers | View,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        notify: Notify,
        at: int | None = None,
    ) -> LazyMap:
        made: LazyMap = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        made.at = len(shape) - 2 if at is None else at
        made.notify = notify
        made._numbers = numbers
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"LazyMap{tuple(self.shape)}"

    @property
    def bytes(self) -> int:
        return self.numel() * self.element_size()

    @property
    def lines(self) -> tuple[int, int]:
        """The number of rows and columns."""
        return self.shape[self.at], self.shape[self.at + 1]

    @property
    def behind(self) -> int:
        """How many axes there are from the rows on."""
        return self.ndim - self.at

    @property
    def numbers(self) -> Numbers:
        return self._numbers.numbers if isinstance(self._numbers, View) else self._numbers

    @numbers.setter
    def numbers(self, numbers: Numbers) -> None:
        if isinstance(self._numbers, View):
            self._numbers.write(numbers)
        else:
            self._numbers = numbers

    def read(self, rows: Span, columns: Span) -> Tensor:
        return self.numbers.read(rows, columns)

    def expect(self, rows: Span, columns: Span) -> None:
        """Nothing is prefetched."""

    def like(self, numbers: Numbers | View, shape: Sequence[int], at: int, dtype: torch.dtype) -> LazyMap:
        """Another map, on the same device."""
        return LazyMap(numbers, shape, dtype, self.device, self.notify, at)

    def snapshot(self) -> LazyMap:
        """The map as it is now, unaffected by later writes."""
        return self.like(self.numbers, self.shape, self.at, self.dtype)

    def each(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> LazyMap:
        """The deferred result of an elementwise function of the map."""
        return self.like(Computed(function, (self.numbers,), self.behind), self.shape, self.at, dtype)

    def whole(self, name: str) -> Tensor:
        """All of it, in memory from now on, for the function of this name."""
        numbers = self.numbers
        if not isinstance(numbers, InMemory):
            self.notify(self, name)
            height, width = self.lines
            numbers = InMemory(numbers.read(Span(0, height), Span(0, width)).clone(), self.behind)
            if not isinstance(self._numbers, View):
                self._numbers = numbers
        return numbers.values

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in QUESTIONS or (name == "__get__" and func.__self__.__name__ in ATTRIBUTES):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        found = _deferred_by(name)(func, args, kwargs)
        if found is not NotImplemented:
            return found
        if name.startswith("new_") and isinstance(args[0], LazyMap):
            like = torch.empty(0, dtype=args[0].dtype, device=args[0].device)
            return func(like, *args[1:], **kwargs)
        return _on_whole_maps(func, name, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise ExactnessError(
            str(func),
            "it was given a map that is not in memory by code that goes past torch's functions",
            "Use the model on a tensor",
        )


class LazyZeros(TorchFunctionMode):
    """Inside, `torch.zeros` returns a map where a tensor would take more than `limit` bytes."""

    def __init__(self, limit: int, notify: Notify) -> None:
        super().__init__()
        self.limit = limit
        self.notify = notify

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros:
            asked = func(*args, **{**kwargs, "device": "meta"})
            if asked.ndim >= 4 and asked.numel() * asked.element_size() > self.limit:
                device = torch.device(kwargs.get("device") or torch.get_default_device())
                return LazyMap(_nothing(asked, device), asked.shape, asked.dtype, device, self.notify)
        return func(*args, **kwargs)


@dataclass(frozen=True)
class View:
    """What a map shows of another: a region, or all of it with its axes rearranged."""

    source: LazyMap
    region: Region | None
    seen: Callable[[Tensor], Tensor] | None = None
    behind: int = 2

    @property
    def numbers(self) -> Numbers:
        if self.region is not None:
            return part(self.source.numbers, self.region)
        assert self.seen is not None
        return Computed(self.seen, (self.source.numbers,), self.behind)

    def write(self, numbers: Numbers) -> None:
        if self.region is None:
            raise ExactnessError(
                "a map that is not in memory",
                "it was written to through a view of it that has other axes",
                "Use the model on a tensor",
            )
        _write(self.source, self.region, numbers)


def _on_whole_maps(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the function on whole tensors; if it wrote to a map, write the result back."""
    target = args[0] if args and isinstance(args[0], LazyMap) and _in_place(name) else None
    asking = name.strip("_")
    given, named = tree_map(
        lambda leaf: leaf.whole(asking) if isinstance(leaf, LazyMap) else leaf, (args, kwargs)
    )
    if target is None:
        return func(*given, **named)
    values = given[0].contiguous()
    result = func(values, *given[1:], **named)
    target.numbers = InMemory(values, target.behind)
    return target if result is values else result


_PutOff = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""From a function and its arguments to the deferred result, or NotImplemented if it needs whole maps."""


def _elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Each position depends on the same position of all operands."""
    maps = _maps(args, kwargs)
    behind, lines = maps[0].behind, maps[0].lines
    if any(one.behind != behind or one.lines != lines for one in maps):
        return NotImplemented
    for other in _tensors(args, kwargs):
        down = other.ndim - behind
        if down >= 0 and any(
            size not in (1, own) for size, own in zip(other.shape[down : down + 2], lines, strict=True)
        ):
            return NotImplemented
        if down < 0 and other.numel() != 1 and other.ndim > behind - 2:
            return NotImplemented
    return _computed(func, args, kwargs, behind, behind)


def _of_two(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Elementwise with two operands; with one operand or an axis, the function is a reduction."""
    if len(args) < 2 or not all(isinstance(one, Tensor) for one in args[:2]):
        return NotImplemented
    return _elementwise(func, args, kwargs)


def _joined(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`cat` along an axis other than rows and columns."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    first = _maps(args, kwargs)[0]
    if axis % first.ndim in (first.at, first.at + 1):
        return NotImplemented
    return _elementwise(func, args, kwargs)


def _last_axis(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`linear`, if the last axis is neither rows nor columns."""
    map = args[0]
    if not isinstance(map, LazyMap) or map.behind <= 2 or len(_maps(args, kwargs)) > 1:
        return NotImplemented
    return _computed(func, args, kwargs, map.behind, None)


def _convolved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """1x1 convolutions."""
    named = dict(zip(("input", "weight", "bias", "stride", "padding"), args, strict=False)) | kwargs
    map, weight = named["input"], named["weight"]
    local = (
        isinstance(map, LazyMap)
        and (map.ndim, map.behind, len(_maps(args, kwargs))) == (4, 2, 1)
        and tuple(weight.shape[2:]) == (1, 1)
        and named.get("stride", 1) in (1, (1, 1), [1, 1])
        and named.get("padding", 0) in (0, (0, 0), [0, 0], "same", "valid")
    )
    return _computed(func, args, kwargs, 2, None) if local else NotImplemented


def _picked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`map[index]`, by whole numbers and slices."""
    map, index = args
    region = _region(map, index) if isinstance(map, LazyMap) else None
    return NotImplemented if region is None else _view(map, region)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`map[index] = value`, by whole numbers and slices, or by a map of booleans."""
    map, index, value = args
    if not isinstance(map, LazyMap):
        return NotImplemented
    if isinstance(index, LazyMap) and index.dtype == torch.bool and not isinstance(value, Tensor):
        return None if _elementwise(Tensor.masked_fill_, (map, index, value), {}) is map else NotImplemented
    region = _region(map, index)
    numbers = NotImplemented if region is None else _spread_over(map, region, value)
    if region is None or numbers is NotImplemented:
        return NotImplemented
    _write(map, region, numbers)
    return None


def _padded(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`pad` with zeros, or by negative amounts, at the ends of rows and columns."""
    named = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
    map, around = named["input"], tuple(named["pad"])
    if not isinstance(map, LazyMap) or map.behind != 2 or len(around) != 4:
        return NotImplemented
    if named.get("mode", "constant") != "constant" or named.get("value"):
        return NotImplemented
    left, right, top, bottom = around
    height, width = map.lines
    if max(around) <= 0:
        inside = map[..., -top : height + bottom, -left : width + right]
        assert isinstance(inside, LazyMap)
        return inside.snapshot()
    if min(around) < 0:
        return NotImplemented
    shape = (*map.shape[:-2], height + top + bottom, width + left + right)
    made = map.like(_nothing(_meta(shape, map.dtype), map.device), shape, map.at, map.dtype)
    made[..., top : top + height, left : left + width] = map
    return made


def _split(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`chunk` and `split` along an axis other than rows and columns."""
    map = args[0]
    axis = kwargs.get("dim", args[2] if len(args) > 2 else 0) % map.ndim
    if axis in (map.at, map.at + 1):
        return NotImplemented
    with torch._C.DisableTorchFunctionSubclass():
        sizes = [one.shape[axis] for one in func(_meta(map.shape, map.dtype), *args[1:], **kwargs)]
    before = (slice(None),) * axis
    indexes = [(*before, slice(*ends)) for ends in pairwise(accumulate(sizes, initial=0))]
    return tuple(map[index] for index in indexes)


def _unsqueezed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    map = args[0]
    axis = kwargs.get("dim", args[-1]) % (map.ndim + 1)
    if axis == map.at + 1:
        return NotImplemented
    from_end = axis - map.ndim - 1
    at = map.at + (axis <= map.at)
    shape = (*map.shape[:axis], 1, *map.shape[axis:])
    return _reshaped(map, shape, at, lambda piece: piece.unsqueeze(from_end))


def _squeezed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    map = args[0]
    if len(args) + len(kwargs) != 2 or not isinstance(axis := kwargs.get("dim", args[-1]), int):
        return NotImplemented
    axis %= map.ndim
    if axis in (map.at, map.at + 1) or map.shape[axis] != 1:
        return NotImplemented
    from_end = axis - map.ndim
    shape = (*map.shape[:axis], *map.shape[axis + 1 :])
    return _reshaped(map, shape, map.at - (axis < map.at), lambda piece: piece.squeeze(from_end))


def _zeros_like(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    map = args[0]
    dtype = kwargs.get("dtype") or map.dtype
    return map.like(_nothing(_meta(map.shape, dtype), map.device, map.behind), map.shape, map.at, dtype)


def _new_zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A map again if it has the axes of one."""
    map, *rest = args
    asked = torch.empty(0, dtype=map.dtype, device="meta").new_zeros(*rest, **{**kwargs, "device": "meta"})
    if asked.ndim < 4:
        return NotImplemented
    return map.like(_nothing(asked, map.device), asked.shape, asked.ndim - 2, asked.dtype)


def _not_at_all(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return NotImplemented


def _itself(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]


_ELEMENTWISE = """
    abs neg sign round clamp clamp_min clamp_max relu leaky_relu sigmoid tanh gelu silu exp log sqrt
    float double int to type_as clone
    add sub mul div true_divide radd rsub rmul rtruediv truediv iadd isub imul itruediv
    lt le gt ge eq ne maximum minimum where masked_fill
"""
_PUT_OFF: dict[str, _PutOff] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    "max": _of_two,
    "min": _of_two,
    "cat": _joined,
    "concat": _joined,
    "linear": _last_axis,
    "conv2d": _convolved,
    "getitem": _picked,
    "setitem": _written,
    "pad": _padded,
    "chunk": _split,
    "split": _split,
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    "zeros_like": _zeros_like,
    "new_zeros": _new_zeros,
    "detach": _itself,
    "contiguous": _itself,
}
"""By the name of a function or method, without underscores at its ends."""


def _deferred_by(name: str) -> _PutOff:
    """The handler that defers the function or method of this name, in-place or not."""
    found = _PUT_OFF.get(name.strip("_"), _not_at_all)
    writes = _in_place(name) and name not in _WRITING
    return _not_at_all if name in _NUMBERS or (writes and found is not _elementwise) else found


_NUMBERS = frozenset(("__int__", "__float__"))
_WRITING = frozenset(("__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__"))

_PIECE = object()


def _computed(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], behind: int, behind_others: int | None
) -> Any:
    """The function's result as a map, or NotImplemented if its rows and columns are not those of its
    operands.

    `behind_others` says how tensors among the operands are cut along with maps; None leaves them whole.
    """
    in_place = _in_place(func.__name__)
    if kwargs.get("inplace"):
        in_place, kwargs = True, {**kwargs, "inplace": False}
    leaves, spec = tree_flatten((args, kwargs))
    first = next(leaf for leaf in leaves if isinstance(leaf, LazyMap))
    shapes = [_meta(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    shaped_args, shaped_kwargs = tree_unflatten(shapes, spec)
    try:
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*shaped_args, **shaped_kwargs)
    except NotImplementedError:  # a move from a device without numbers to another one
        return NotImplemented
    at = found.ndim - behind
    if at < 0 or tuple(found.shape[at : at + 2]) != first.lines:
        return NotImplemented
    if in_place and not (leaves[0] is first and found.shape == first.shape):
        return NotImplemented

    def function(*pieces: Tensor) -> Tensor:
        following = iter(pieces)
        filled: list[Any] = [next(following) if leaf is _PIECE else leaf for leaf in held]
        if in_place:
            filled[0] = filled[0].clone()
        filled_args, filled_kwargs = tree_unflatten(filled, spec)
        result: Tensor = func(*filled_args, **filled_kwargs)
        return result

    held = [_PIECE if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    operands = tuple(
        leaf.numbers if isinstance(leaf, LazyMap) else Argument(leaf, leaf._version, behind_others)
        for leaf in leaves
        if isinstance(leaf, Tensor)
    )
    numbers = Computed(function, operands, behind)
    if in_place:
        first.numbers = numbers
        return first
    return first.like(numbers, found.shape, at, found.dtype)


def _in_place(name: str) -> bool:
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


def _view(map: LazyMap, region: Region) -> LazyMap:
    return map.like(View(map, region), region.shape, len(region.shape) - region.behind, map.dtype)


def _reshaped(map: LazyMap, shape: Sequence[int], at: int, seen: Callable[[Tensor], Tensor]) -> LazyMap:
    return map.like(View(map, None, seen, len(shape) - at), shape, at, map.dtype)


def _write(map: LazyMap, region: Region, numbers: Numbers) -> None:
    everything = region.shape == tuple(map.shape)
    map.numbers = numbers if everything else Overwritten(map.numbers, region, numbers)


def _region(map: LazyMap, index: Any) -> Region | None:
    """The region selected by an index of whole numbers and slices; None for any other index, or a line."""
    given = list(index) if isinstance(index, tuple) else [index]
    if not all(one is Ellipsis or isinstance(one, slice) or type(one) is int for one in given):
        return None
    missing = [slice(None)] * (map.ndim - sum(one is not Ellipsis for one in given))
    place = given.index(Ellipsis) if Ellipsis in given else len(given)
    given[place : place + 1] = missing
    picked: list[int | range] = []
    for one, size in zip(given, map.shape, strict=True):
        if isinstance(one, int) and not -size <= one < size:
            raise IndexError(f"index {one} is out of bounds for an axis of {size}")
        picked.append(one % size if isinstance(one, int) else range(size)[one])
    region = Region(tuple(picked), map.at)
    if any(isinstance(picked[axis], int) for axis in (map.at, map.at + 1)):
        return None
    return region


def _spread_over(map: LazyMap, region: Region, value: Any) -> Any:
    """The numbers of a value, broadcast to a region that it is written to, or NotImplemented."""
    if isinstance(value, LazyMap):
        if tuple(value.shape) != region.shape or value.behind != region.behind:
            return NotImplemented
        if value.dtype != map.dtype:
            value = value.each(partial(Tensor.to, dtype=map.dtype), map.dtype)
        return value.numbers
    tensor = torch.as_tensor(value, dtype=map.dtype, device=map.device).expand(region.shape)
    return Argument(tensor, tensor._version, region.behind)


def _nothing(asked: Tensor, device: torch.device, behind: int = 2) -> InMemory:
    """Zeros of a shape, without memory."""
    return InMemory(torch.zeros((), dtype=asked.dtype, device=device).expand(asked.shape), behind)


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _maps(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[LazyMap]:
    return [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, LazyMap)]


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The ordinary tensors among the operands."""
    leaves = tree_flatten((args, kwargs))[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, LazyMap)]
