"""Records computations: every op and every launch, the places of its tensors, and their dependencies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _pop_mode_temporarily
from torch.utils._pytree import tree_leaves, tree_map_only

from overlap_tool.kernels.arithmetic import fused
from overlap_tool.kernels.dispatching import DispatchMode
from overlap_tool.kernels.work import Convolution, Normalisation, Work, noting, tensors_among

VECTOR = 16
"""Bytes that a GPU kernel reads at once, if they are aligned."""

MAKES_ROOM = frozenset("empty empty_like empty_strided empty_permuted new_empty new_empty_strided".split())

ASKS = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
"""Tags of ops that pass numbers to Python."""


def on_processor(device: torch.device) -> bool:
    return device.type == "cpu"


@dataclass(frozen=True)
class Lying:
    """Where a tensor lies: its offset in bytes from the start of a root, which is a piece of memory."""

    root: int
    offset: int
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    beyond: int
    """Bytes between the last aligned vector and the root's start."""

    def stride(self, dim: int | None = None) -> Any:
        return self.strides if dim is None else self.strides[dim]

    def data_ptr(self) -> int:
        """For its alignment only."""
        return self.offset + self.beyond

    def element_size(self) -> int:
        return self.dtype.itemsize

    def numel(self) -> int:
        return self.shape.numel()

    def has_strides(self, strides: tuple[int, ...]) -> bool:
        """Whether they give the same addresses; those of dimensions of one number do not count."""
        return strides == self.strides or all(
            n == 1 or a == b for n, a, b in zip(self.shape, strides, self.strides, strict=True)
        )

    def lies_as(self, other: Lying) -> bool:
        return (self.shape, self.strides, self.dtype) == (other.shape, other.strides, other.dtype)

    def apart_from(self, other: Lying) -> bool:
        """Whether they are known to be boxes of one map without a number in common."""
        if self.strides != other.strides or self.dtype != other.dtype:
            return False
        axes = sorted(zip(self.strides, self.shape, other.shape, strict=True), reverse=True)
        axes = [axis for axis in axes if axis[1:] != (1, 1)]
        steps = [step for step, *_ in axes]
        if 0 in steps:
            return False
        boxes = []
        for place, sizes in ((self, [n for _, n, _ in axes]), (other, [n for *_, n in axes])):
            rest, most, box = place.offset // self.dtype.itemsize, 0, []
            for step, n in zip(steps, sizes, strict=True):
                first, rest = divmod(rest, step)
                box.append((first, first + n))
            for at in reversed(range(len(steps))):
                most += (box[at][1] - 1) * steps[at]
                if at and most >= steps[at - 1]:  # an address would belong to several places in the map
                    return False
            if rest:
                return False
            boxes.append(box)
        return any(a >= d or c >= b for (a, b), (c, d) in zip(*boxes, strict=True))

    def part(self, rows: tuple[int, int], columns: tuple[int, int]) -> Lying:
        """Part of a map: some rows and columns, from first to last."""
        (_, _, row, pixel), (first, stop), (left, right) = self.strides, rows, columns
        shape = torch.Size((*self.shape[:2], stop - first, right - left))
        offset = self.offset + (first * row + left * pixel) * self.dtype.itemsize
        return replace(self, offset=offset, shape=shape)

    def lies_beside(self, other: Lying) -> bool:
        """Whether a kernel can read it along with the other, pixel by pixel."""
        return (
            self.root != other.root
            and (self.shape, self.dtype, self.device) == (other.shape, other.dtype, other.device)
            and len(self.shape) == 4
            and all(each.shape[1] == 1 or each.strides[1] == 1 for each in (self, other))
        )

    @property
    def dense(self) -> bool:
        """Whether it is contiguous."""
        by_stride = sorted((s, n) for s, n in zip(self.strides, self.shape, strict=True) if n > 1)
        return all(s == prod(n for _, n in by_stride[:at]) for at, (s, _) in enumerate(by_stride))


@dataclass
class Root:
    start: int
    memory: tuple[int, int]
    """Address and size of its storage, which a given or constant tensor may be a part of."""
    alive: StorageWeakRef
    """Keeps the storage's identity from being reused, though not its memory."""
    given: bool = False
    derived: bool = False
    """Whether its numbers depend on the given ones."""
    kept: Tensor | None = None
    """A tensor there that depends on weights alone and that derived numbers depend on."""

    @property
    def size(self) -> int:
        return self.memory[1]


@dataclass(frozen=True)
class Dispatched:
    """An op of PyTorch's."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


@dataclass(frozen=True)
class Pointwise:
    """A pointwise operation."""

    expression: fused.Expression
    xs: tuple[Lying, ...]
    out: Lying
    otherwise: Dispatched | None = None
    """The original op, if inputs have another memory layout than the output, for which there is no kernel."""

    @property
    def is_flat(self) -> bool:
        """Whether all numbers lie alike."""
        return all(x.lies_as(self.out) for x in self.xs)


@dataclass(eq=False)
class Entry:
    """An operation with places for tensors."""

    work: Any
    reads: list[int]
    writes: list[int]
    makes: list[int] = field(default_factory=list)
    """Roots that did not exist before: PyTorch allocates them."""

    @property
    def touches(self) -> set[int]:
        return {*self.reads, *self.writes}


class _Watch(TorchFunctionMode):
    """Detects numbers that are passed to Python without PyTorch's dispatcher."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in HANDS_OVER:
            for each in args[:1]:
                if isinstance(each, Tensor) and self._recorder.knows_derived(each):
                    self._recorder.refuse(f"Tensor.{func.__name__} hands numbers to Python")
        return func(*args, **(kwargs or {}))


HANDS_OVER = frozenset(("numpy", "tolist", "__array__", "__dlpack__"))


class Recorder(DispatchMode):
    """Records what is computed below the exact engine: what that makes of a model's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Root] = []
        self.entries: list[Entry] = []
        self.given: list[Lying] = []
        self.returned: list[Lying] = []
        self.refused = ""
        self._known: dict[int, int] = {}
        self._paused = False

    @contextmanager
    def on(self) -> Iterator[None]:
        with _pop_mode_temporarily() as exact, self, exact, noting(self._launched):
            yield

    def watching(self) -> AbstractContextManager[Any]:
        """For code that may pass numbers to Python unseen by PyTorch's dispatcher. It is slow."""
        return _Watch(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def gives(self, tensor: Tensor) -> None:
        """Declare an input, which is another tensor when the tape is replayed."""
        if tensor.untyped_storage()._cdata in self._known:
            self.refuse("one tensor is given twice")
            return
        root = self._root(tensor, tensor.data_ptr())
        self.roots[root].given = self.roots[root].derived = True
        self.given.append(self._place(tensor))

    def returns(self, tensor: Tensor) -> None:
        self.returned.append(self._place(tensor))
        self._keep(tensor)

    def has_room(self, tensor: Tensor) -> None:
        """Declare new memory, not yet written to, that unrecorded code has allocated."""
        self._root(tensor, tensor.untyped_storage().data_ptr())

    def copied(self, source: Tensor, to: Tensor) -> None:
        """Record a copy that unrecorded code has made."""
        self._noted(torch.ops.aten.copy_.default, (to, source), {}, to)

    def cloned(self, source: Tensor, clone: Tensor) -> None:
        self._noted(torch.ops.aten.clone.default, (source,), {}, clone)

    def follows(self, tensor: Tensor) -> None:
        """Refuse the recording if this tensor is not known to depend on the inputs: it was made unseen."""
        if not self.roots[self._place(tensor).root].derived:
            self.refuse("a result was computed by something that cannot be recorded")

    def refuse(self, reason: str) -> None:
        """Give up the recording; the first reason is kept."""
        self.refused = self.refused or reason

    def knows_derived(self, tensor: Tensor) -> bool:
        root = self._known.get(tensor.untyped_storage()._cdata)
        return root is not None and self.roots[root].derived

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._paused and not self.refused:
            self._noted(func, args, kwargs, result)
        return result

    def _noted(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        of = _Known.of(func)
        made = [*tensors_among((result,))]
        if of.view and all(
            _in_one_memory(each, args[0]) for each in made
        ):  # some, such as flatten, copy at times
            return
        if any(each.is_meta for each in made):
            return
        if of.makes_room:
            for each in made:
                self.has_room(each)
            return
        given = [each for each in tensors_among((args, *kwargs.values())) if not each.is_meta]
        places = {id(each): self._place(each) for each in given}
        derived = any(self.roots[place.root].derived for place in places.values())
        if derived and (
            of.asks
            or any(not isinstance(leaf, Tensor) for leaf in tree_leaves(result) if leaf is not None)
            or any(each.device != self.given_on for each in made)
        ):
            self.refuse(f"{func} hands numbers to Python, or to another device")
            return
        if of.draws:
            self.refuse(f"{func} draws other numbers every time")
            return
        written = [*tensors_among(args[at] if at < len(args) else kwargs.get(key) for at, key in of.writes)]
        new = [each for each in made if each.untyped_storage()._cdata not in self._known]
        if not new and not written:  # a further view
            return
        for each in new:
            self.has_room(each)
        args, kwargs = tree_map_only(Tensor, lambda each: places.get(id(each), each), (args, kwargs))
        call = Dispatched(func, args, kwargs, tree_map_only(Tensor, self._place, result))
        self._add(call, given, [*written, *new], [self._place(each).root for each in new])

    @property
    def given_on(self) -> torch.device:
        return self.given[0].device

    def _launched(self, work: Work) -> None:
        if self._paused or self.refused:
            return
        if isinstance(work, Convolution):
            packed = replace(work.packed, values=self._place(work.packed.values))
            bias = None if work.bias is None else self._place(work.bias)
            x, out = self._place(work.x), self._place(work.out)
            noted: Any = replace(work, x=x, packed=packed, bias=bias, out=out)
            read = [each for each in (work.x, work.packed.values, work.bias) if each is not None]
            self._add(noted, read, [work.out])
        elif isinstance(work, Normalisation):
            parts = {name: each for name, each in vars(work).items() if isinstance(each, Tensor)}
            places: dict[str, Any] = {name: self._place(each) for name, each in parts.items()}
            written = [parts.pop(name) for name in work.WRITTEN if name in parts]
            self._add(replace(work, **places), [*parts.values()], written)
        else:
            xs, y = tuple(map(self._place, work.xs)), self._place(work.y)
            self._add(replace(work, xs=xs, y=y), work.xs, [work.y])

    def _add(
        self, work: Any, read: Sequence[Tensor], written: Sequence[Tensor], makes: Sequence[int] = ()
    ) -> None:
        reads, writes = ([self._place(each).root for each in some] for some in (read, written))
        self.entries.append(Entry(work, reads, writes, list(makes)))
        if any(self.roots[root].kept is not None for root in writes):
            self.refuse("it writes to what is not its own, or what was read")
        if any(self.roots[root].derived for root in reads):
            for root in writes:
                self.roots[root].derived = True
            for each in read:
                self._keep(each)

    def _keep(self, tensor: Tensor) -> None:
        root = self.roots[self._place(tensor).root]
        if not root.derived and root.kept is None:
            root.kept = tensor

    def _root(self, tensor: Tensor, start: int) -> int:
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = len(self.roots)
        memory = storage.data_ptr(), storage.nbytes()
        self.roots.append(Root(start, memory, StorageWeakRef(storage)))
        return len(self.roots) - 1

    def _place(self, tensor: Tensor) -> Lying:
        root = self._known.get(tensor.untyped_storage()._cdata)
        if root is None:  # weights, and what depends on them alone
            root = self._root(tensor, tensor.data_ptr())
            self.roots[root].kept = tensor
        storage = tensor.untyped_storage()
        if (storage.data_ptr(), storage.nbytes()) != self.roots[root].memory:
            self.refuse("a tensor grew, and its memory is another")
        if tensor.is_neg() or tensor.is_conj():
            self.refuse("a tensor is negated or conjugated when it is read")
        start = self.roots[root].start
        offset = tensor.data_ptr() - start if tensor.numel() else 0
        return Lying(root, offset, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, start % VECTOR)


class _Known(NamedTuple):
    """Cached properties of an op, which are slow to query."""

    view: bool
    makes_room: bool
    asks: bool
    draws: bool
    writes: tuple[tuple[int, str], ...]
    """Positions and names of the arguments that it writes to."""

    @classmethod
    @cache
    def of(cls, func: Any) -> _Known:
        arguments = enumerate(func._schema.arguments)
        return cls(
            func.is_view,
            func._schema.name.removeprefix("aten::") in MAKES_ROOM,
            any(tag in func.tags for tag in ASKS),
            torch.Tag.nondeterministic_seeded in func.tags,
            tuple((at, a.name) for at, a in arguments if a.alias_info is not None and a.alias_info.is_write),
        )


def _in_one_memory(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and one.untyped_storage()._cdata == other.untyped_storage()._cdata
