"""Work that is done again and again, on other tensors of the same form: recorded once, then played.

What Python and PyTorch made of it is gone from a tape: it is a list of launches, whose arguments are prepared
but for addresses. What depends on weights alone was computed when it was recorded. Zeros around a map are
left to a kernel that can add them, and what is computed number by number goes along with what comes before.
No operation is another or comes in another order for it, so no bit differs; and a tape is tried once, all the
same, on other tensors than it was recorded of, before it is relied on.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from overlap_tool.errors import SlowKernelWarning
from overlap_tool.kernels.arithmetic import fused
from overlap_tool.kernels.arithmetic.generated import INPUTS
from overlap_tool.kernels.arithmetic.tensors import program_kernel
from overlap_tool.kernels.copying import Copied
from overlap_tool.kernels.driver import in_order
from overlap_tool.kernels.work import OTHERS, AnyLaunch, Convolution, Elementwise, noting

VECTOR = 16
"""Bytes that a kernel for a GPU takes at once, where they are aligned."""

ALIGNED = 512
"""Bytes, as PyTorch's allocator has it."""

MAKES_ROOM = frozenset("empty empty_like empty_strided empty_permuted new_empty new_empty_strided".split())

ASKS = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
"""Of ops that hand numbers to Python."""


def on_processor(device: torch.device) -> bool:
    return device.type == "cpu"


class NotRepeatable(Exception):
    """What was recorded cannot be played."""


@dataclass(frozen=True)
class Lying:
    """Where a tensor lies: so many bytes from the start of a root, which is a piece of memory."""

    root: int
    offset: int
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    beyond: int
    """Bytes between the root's start and the last whole vector before it."""

    def stride(self, dim: int | None = None) -> Any:
        return self.strides if dim is None else self.strides[dim]

    def data_ptr(self) -> int:
        """As far as its alignment goes."""
        return self.offset + self.beyond

    def element_size(self) -> int:
        return self.dtype.itemsize

    def numel(self) -> int:
        return self.shape.numel()

    def lies_as(self, other: Lying) -> bool:
        return (self.shape, self.strides, self.dtype) == (other.shape, other.strides, other.dtype)

    def apart_from(self, other: Lying) -> bool:
        """Whether they are boxes of one map that share no number. Not so if that cannot be told."""
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
                if at and most >= steps[at - 1]:  # an address would be that of several places in the map
                    return False
            if rest:
                return False
            boxes.append(box)
        return any(a >= d or c >= b for (a, b), (c, d) in zip(*boxes, strict=True))

    def part(self, rows: tuple[int, int], columns: tuple[int, int]) -> Lying:
        """Of a map: so many rows and columns, from first to last."""
        (_, _, row, pixel), (first, stop), (left, right) = self.strides, rows, columns
        shape = torch.Size((*self.shape[:2], stop - first, right - left))
        offset = self.offset + (first * row + left * pixel) * self.dtype.itemsize
        return replace(self, offset=offset, shape=shape)

    def lies_beside(self, other: Lying) -> bool:
        """Whether a kernel can read it along with the other, channels of one pixel by those of one."""
        return (
            self.root != other.root
            and (self.shape, self.dtype, self.device) == (other.shape, other.dtype, other.device)
            and len(self.shape) == 4
            and all(each.shape[1] == 1 or each.strides[1] == 1 for each in (self, other))
        )

    @property
    def dense(self) -> bool:
        """Whether nothing lies between its numbers."""
        by_stride = sorted((s, n) for s, n in zip(self.strides, self.shape, strict=True) if n > 1)
        return all(s == prod(n for _, n in by_stride[:at]) for at, (s, _) in enumerate(by_stride))


@dataclass
class Root:
    start: int
    memory: tuple[int, int]
    """Address and size of the whole of it, of which a given or a fixed tensor may be a part."""
    alive: StorageWeakRef
    """Keeps its name in memory from being given away, though not the memory."""
    given: bool = False
    derived: bool = False
    """Whether its numbers follow from those that are given."""
    kept: Tensor | None = None
    """A tensor there, of weights, and of what is made of them alone and read to make what follows."""

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
    """What is computed number by number."""

    expression: fused.Expression
    xs: tuple[Lying, ...]
    out: Lying
    otherwise: Dispatched | None = None
    """What it was, where inputs lie otherwise than the output: no kernel of its own computes it then."""


@dataclass
class Entry:
    """With places for tensors."""

    work: Any
    reads: list[int]
    writes: list[int]
    makes: list[int] = field(default_factory=list)
    """What was not there before: PyTorch gives it memory."""

    @property
    def touches(self) -> set[int]:
        return {*self.reads, *self.writes}


class _Watch(TorchFunctionMode):
    """Sees what hands numbers to Python without asking PyTorch's dispatcher."""

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


class Recorder(TorchDispatchMode):
    """Notes what is computed, beneath the exact engine: what that makes of a model's ops."""

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
        with _pop_mode_temporarily() as exact, self, exact, noting(self._launched), _Watch(self):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def gives(self, tensor: Tensor) -> None:
        """What is another one when the tape is played."""
        if tensor.untyped_storage()._cdata in self._known:
            self.refuse("one tensor is given twice")
            return
        root = self._root(tensor, tensor.data_ptr())
        self.roots[root].given = self.roots[root].derived = True
        self.given.append(self._place(tensor))

    def returns(self, tensor: Tensor) -> None:
        self.returned.append(self._place(tensor))
        self._keep(tensor)

    def follows(self, tensor: Tensor) -> None:
        """Refuse if this is not known to follow from what is given: it came about unseen."""
        if not self.roots[self._place(tensor).root].derived:
            self.refuse("a result was computed by something that cannot be recorded")

    def refuse(self, reason: str) -> None:
        """The first reason is kept."""
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
        name = func._schema.name.removeprefix("aten::")
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        if any(each.is_meta for each in made):
            return
        if name in MAKES_ROOM:
            for each in made:
                self._root(each, each.untyped_storage().data_ptr())
            return
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        places = {id(each): self._place(each) for each in given if not each.is_meta}
        reads = [place.root for place in places.values()]
        derived = any(self.roots[root].derived for root in reads)
        if derived and (
            any(tag in func.tags for tag in ASKS)
            or any(not isinstance(leaf, Tensor) for leaf in tree_leaves(result) if leaf is not None)
            or any(each.device != self.given_on for each in made)
        ):
            self.refuse(f"{func} hands numbers to Python, or to another device")
            return
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refuse(f"{func} draws other numbers every time")
            return
        written = list(_written(func, args, kwargs))
        new = [each for each in made if each.untyped_storage()._cdata not in self._known]
        if not new and not written:  # another view
            return
        for each in new:
            self._root(each, each.untyped_storage().data_ptr())
        args, kwargs = tree_map_only(Tensor, lambda each: places.get(id(each), each), (args, kwargs))
        call = Dispatched(func, args, kwargs, tree_map_only(Tensor, self._place, result))
        read = [each for each in given if not each.is_meta]
        self._add(call, read, [*written, *new], [self._place(each).root for each in new])

    @property
    def given_on(self) -> torch.device:
        return self.given[0].device

    def _launched(self, work: Convolution | Elementwise) -> None:
        if self._paused or self.refused:
            return
        if isinstance(work, Convolution):
            packed = replace(work.packed, values=self._place(work.packed.values))
            bias = None if work.bias is None else self._place(work.bias)
            x, out = self._place(work.x), self._place(work.out)
            noted: Any = replace(work, x=x, packed=packed, bias=bias, out=out)
            read = [each for each in (work.x, work.packed.values, work.bias) if each is not None]
            self._add(noted, read, [work.out])
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
        if root is None:  # weights, and what is made of them
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


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The arguments that an op writes to."""
    if func._schema.is_mutable:
        for at, each in enumerate(func._schema.arguments):
            if each.alias_info is not None and each.alias_info.is_write:
                value = args[at] if at < len(args) else kwargs.get(each.name)
                yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


Memory = tuple[Tensor, int]
"""A tensor, and how many bytes behind the start of its storage a root begins."""


class Rooms:
    """Memory for intermediate results. The processor's is kept, for new memory is slow to write at first; a
    GPU's goes back to PyTorch's allocator, which keeps it."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def of(self, size: int, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.empty(size, dtype=torch.uint8, device=device)
        if self._kept is None or self._kept.numel() < size:
            self._kept = None  # the old one goes first
            self._kept = torch.empty(size, dtype=torch.uint8, device=device)
        return self._kept

    def release(self) -> None:
        """Others are going to need memory."""
        self._kept = None


class Tape:
    """What was recorded, to be played."""

    def __init__(self, recorder: Recorder, constants: dict[Any, Tensor], rooms: Rooms | None = None) -> None:
        """Tapes that are not played at the same time share `constants`, made of weights alone, and rooms."""
        self._rooms = Rooms() if rooms is None else rooms
        self.given, self.returned = recorder.given, recorder.returned
        self._roots = roots = recorder.roots
        returned = {place.root for place in self.returned}
        entries = fused_entries(_repeated(recorder), returned | {place.root for place in self.given})
        last = {root: at for at, entry in enumerate(entries) for root in entry.touches}
        made = {root for entry in entries for root in entry.makes}
        self._fixed = {
            root: (kept, roots[root].start - _address(kept, 0))
            for root in last.keys() | returned
            if (kept := roots[root].kept) is not None
        }
        known: dict[int, str] = {}
        for root, (kept, start) in self._fixed.items():
            way = _way(root, recorder, constants, known), start, kept.dtype
            self._fixed[root] = constants.setdefault(way, kept), start
        for each in roots:
            each.kept = None
        scratch = {root for root in last if not roots[root].given} - made - self._fixed.keys()
        self._own = returned & scratch
        """Memory that is given away."""
        self._at, self._room = self._arranged(entries, last, scratch - self._own)
        fixed = {root: _address(*memory) for root, memory in self._fixed.items()}
        self._steps = [self._step(entry, fixed) for entry in entries]
        self._ends = [
            [root for root in entry.touches & made - returned if last[root] == at]
            for at, entry in enumerate(entries)
        ]
        """What PyTorch gave memory to and is not read again."""
        order = [place.root for place in self.given], *((*entry.reads, *entry.writes) for entry in entries)
        number = {root: n for n, root in enumerate(dict.fromkeys(chain.from_iterable(order)))}
        self.fingerprint = (
            *(step.fingerprint(number) for step in self._steps),
            *((number[root], at) for root, at in self._at.items()),
        )
        """Of all that decides about bits, but for the numbers. Roots are counted as they come."""

    def _arranged(
        self, entries: list[Entry], last: dict[int, int], scratch: set[int]
    ) -> tuple[dict[int, int], int]:
        """Where in one piece of memory intermediate results lie, first come, first fit; and its size."""
        at: dict[int, int] = {}
        living: list[tuple[int, int, int]] = []
        for now, entry in enumerate(entries):
            living = [each for each in living if each[2] >= now]
            for root in sorted(entry.touches & scratch - at.keys()):
                start, size = 0, -(-self._roots[root].size // ALIGNED) * ALIGNED
                for begin, end, _ in sorted(living):
                    if begin < start + size and start < end:
                        start = end
                at[root] = start
                living.append((start, start + size, last[root]))
        sizes = (start + -(-self._roots[root].size // ALIGNED) * ALIGNED for root, start in at.items())
        return at, max(sizes, default=0)

    def _step(self, entry: Entry, fixed: Mapping[int, int]) -> _Launched | _Dispatched:
        work = entry.work
        if isinstance(work, Dispatched):
            return _Dispatched(work, entry.makes)
        if isinstance(work, Pointwise):
            name, device = fused.named(work.expression), work.out.device
            kernel = program_kernel(name, work.out.dtype, len(work.xs), device)
            if kernel is None:
                raise NotRepeatable(f"{name} has no kernel")
            work = Elementwise(kernel, name, work.xs, (), work.out)
        return _Launched(work.launch(), fixed)

    def play(self, given: Sequence[Tensor]) -> list[Tensor] | None:
        """The same work on other tensors; what it returns. Nothing if they lie otherwise in memory."""
        memory: dict[int, Memory] = dict(self._fixed)
        addresses: dict[int, int] = {}
        for place, tensor in zip(self.given, given, strict=True):
            addresses[place.root] = address = tensor.data_ptr()
            if (
                tensor.shape != place.shape
                or tensor.stride() != place.strides
                or tensor.dtype != place.dtype
                or (not on_processor(place.device) and address % VECTOR != place.beyond)
            ):
                return None
            memory[place.root] = tensor, address - _address(tensor, 0)
        with _pop_mode_temporarily():
            device = self.given[0].device
            if self._room:
                room = self._rooms.of(self._room, device)
                start = room.data_ptr()
                for root, at in self._at.items():
                    memory[root], addresses[root] = (room, at), start + at
            for root in self._own:
                piece = torch.empty(self._roots[root].size, dtype=torch.uint8, device=device)
                memory[root], addresses[root] = (piece, 0), piece.data_ptr()
            with nullcontext() if on_processor(device) else in_order(device.index) as stream:
                for step, ends in zip(self._steps, self._ends, strict=True):
                    step.run(stream, addresses, memory)
                    for root in ends:
                        del memory[root]
            return [_tensor(place, memory) for place in self.returned]


class _Launched:
    def __init__(self, launch: AnyLaunch, fixed: Mapping[int, int]) -> None:
        self._launch = launch.ready()
        self._moving: list[tuple[int, int, int]] = []
        for at, place in zip(launch.places, launch.tensors, strict=True):
            if isinstance(place, Lying):
                if place.root in fixed:
                    self._launch.words[at] = fixed[place.root] + place.offset
                else:
                    self._moving.append((at, place.root, place.offset))
        self._told = launch.told

    def fingerprint(self, number: Mapping[int, int]) -> Any:
        return self._told, tuple((at, number[root], offset) for at, root, offset in self._moving)

    def run(self, stream: Any, addresses: Mapping[int, int], memory: dict[int, Memory]) -> None:
        words = self._launch.words
        for at, root, offset in self._moving:
            words[at] = addresses[root] + offset
        self._launch.run(stream)


class _Dispatched:
    def __init__(self, call: Dispatched, makes: list[int]) -> None:
        self._call = call
        self._flat, self._spec = tree_flatten((call.args, call.kwargs))
        self._plain = not call.kwargs and len(self._flat) == len(call.args) == self._spec.num_nodes - 3
        """Whether arguments are a mere list."""
        self._makes = [
            (at, place.root)
            for at, place in enumerate(tree_leaves(call.out))
            if isinstance(place, Lying) and place.root in makes
        ]

    def fingerprint(self, number: Mapping[int, int]) -> Any:
        told = (
            replace(each, root=number[each.root]) if isinstance(each, Lying) else each for each in self._flat
        )
        return self._call.func, repr(self._spec), repr(list(told))

    def run(self, stream: Any, addresses: dict[int, int], memory: dict[int, Memory]) -> None:
        given = [_tensor(each, memory) if isinstance(each, Lying) else each for each in self._flat]
        if self._plain:
            result = self._call.func(*given)
        else:
            args, kwargs = tree_unflatten(given, self._spec)
            result = self._call.func(*args, **kwargs)
        if self._makes:
            made = tree_leaves(result)
            for at, root in self._makes:
                memory[root], addresses[root] = (made[at], 0), _address(made[at], 0)


def _tensor(place: Lying, memory: Mapping[int, Memory]) -> Tensor:
    tensor, start = memory[place.root]
    if tensor.dtype != place.dtype:
        tensor = tensor.view(place.dtype)
    return tensor.as_strided(place.shape, place.strides, (start + place.offset) // place.dtype.itemsize)


def _address(tensor: Tensor, start: int) -> int:
    return tensor.untyped_storage().data_ptr() + start


def _repeated(recorder: Recorder) -> list[Entry]:
    """What has to be done again: what reads or writes memory that follows from what is given."""
    if recorder.refused:
        raise NotRepeatable(recorder.refused)
    roots, varying = recorder.roots, -1
    while varying != (varying := sum(root.derived for root in roots)):
        for entry in recorder.entries:
            if any(roots[root].derived for root in entry.touches):
                for root in entry.writes:
                    roots[root].derived = True
    entries = [entry for entry in recorder.entries if any(roots[root].derived for root in entry.writes)]
    wanted = {place.root for place in recorder.returned} | {n for n, root in enumerate(roots) if root.given}
    needed = []
    for entry in reversed(entries):
        if not wanted.isdisjoint(entry.writes):
            wanted.update(entry.reads)
            needed.append(entry)
    if any(roots[root].derived == (roots[root].kept is not None) for each in needed for root in each.reads):
        raise NotRepeatable("what it needs is gone, or changes")
    return needed[::-1]


def _way(root: int, recorder: Recorder, constants: dict[Any, Tensor], known: dict[int, str]) -> str:
    """How the numbers of a root are made of weights, as what can be compared."""

    def told(place: Lying) -> Any:
        form = place.offset, place.shape, place.strides, place.dtype
        return form if place.root == root else (_way(place.root, recorder, constants, known), *form)

    if root not in known:
        making = [entry.work for entry in recorder.entries if root in entry.writes]
        start, kept = recorder.roots[root].start, recorder.roots[root].kept
        if making:
            parts = [vars(work) for work in making]
            if any(
                isinstance(work, Convolution) for work in making
            ):  # whose weights have a form of their own
                parts = [
                    {**part, "packed": vars(part["packed"])} if "packed" in part else part for part in parts
                ]
            text = repr([tree_map_only(Lying, told, part) for part in parts])
            known[root] = hashlib.sha256(text.encode()).hexdigest()
        elif kept is not None:
            constants[start] = kept  # nothing else comes to lie there
            known[root] = str(start)
        else:
            raise NotRepeatable("what it needs is gone")
    return known[root]


def fused_entries(entries: list[Entry], seen: set[int]) -> list[Entry]:
    """The same work in fewer launches. What is written to roots that are seen from outside stays so."""
    entries = list(chain.from_iterable(map(_zeros_and_a_copy, entries)))
    entries = [_with_zeros_of_its_own(_as_pointwise(_as_copy(entry)), entries, seen) for entry in entries]
    read = {root for entry in entries for root in entry.reads} | seen
    entries = [entry for entry in entries if not (entry.makes and read.isdisjoint(entry.makes))]
    at = 0
    while at < len(entries):
        into = _before(entries, at, seen)
        if into is None:
            at += 1
        else:
            entries[into] = _both(entries[into], entries.pop(at))
    for at, entry in enumerate(entries):
        if isinstance(entry.work, Pointwise) and entry.work.otherwise:
            entries[at] = replace(entry, work=entry.work.otherwise)
    return _written_in_place(entries, seen)


def _written_in_place(entries: list[Entry], seen: set[int]) -> list[Entry]:
    """Outputs of convolutions that are only copied into a part of a larger map go there at once."""
    found = list(entries)
    touching: dict[int, list[Entry]] = {}
    for entry in entries:
        for root in entry.touches:
            touching.setdefault(root, []).append(entry)
    for entry in entries:
        if not isinstance(entry.work, Copied):
            continue
        to, source = entry.work.to, entry.work.source
        if len(touching[source.root]) != 2 or touching[source.root][1] is not entry or source.root in seen:
            continue
        making = touching[source.root][0]
        one = making.work
        if not isinstance(one, Convolution) or one.out != source or to.root in making.touches:
            continue
        at, last = found.index(making), found.index(entry)
        between = [
            part for each in found[at + 1 : last] if to.root in each.touches for part in _parts_of(each, to)
        ]
        if any(part is None or not to.apart_from(part) for part in between):
            continue
        found[at] = replace(making, work=replace(one, out=to), writes=[to.root])
        del found[last]
    return found


def _parts_of(entry: Entry, whole: Lying) -> Iterator[Lying | None]:
    """The parts of a root that an entry touches; nothing in the place of what is not known."""
    work = entry.work
    if isinstance(work, Copied):
        given: Any = (work.source, work.to)
    elif isinstance(work, Dispatched) and work.func is torch.ops.aten.zero_.default:
        given = work.args
    elif isinstance(work, Convolution):
        given = work.x, work.out, *work.others
    else:
        yield None
        return
    yield from (each for each in given if each is None or each.root == whole.root)


def _zeros_and_a_copy(entry: Entry) -> list[Entry]:
    """Zeros put around a map on the CPU, as zeros and a copy of the map: both go where tapes have memory."""
    work = entry.work
    if not isinstance(work, Dispatched) or work.func is not torch.ops.aten.constant_pad_nd.default:
        return [entry]
    (x, around, *value), out = work.args, work.out
    if (
        not on_processor(x.device)
        or (len(around), len(x.shape)) != (4, 4)
        or min(around) < 0
        or work.kwargs
        or str(float(value[0] if value else 0)) != "0.0"
    ):
        return [entry]
    left, _, top, _ = around
    inside = out.part((top, top + x.shape[2]), (left, left + x.shape[3]))
    if not x.lies_beside(inside):
        return [entry]
    rows, columns = (0, top, top + x.shape[2], out.shape[2]), (0, left, left + x.shape[3], out.shape[3])
    border = [
        out.part(rows[:2], columns[::3]),
        out.part(rows[2:], columns[::3]),
        out.part(rows[1:3], columns[:2]),
        out.part(rows[1:3], columns[2:]),
    ]
    zeros = (Dispatched(torch.ops.aten.zero_.default, (part,), {}, part) for part in border if part.numel())
    return [*(Entry(each, [], [out.root]) for each in zeros), Entry(Copied(x, inside), [x.root], [out.root])]


def _as_copy(entry: Entry) -> Entry:
    """Of maps on the CPU whose channels are neighbours, by a kernel of its own."""
    work = entry.work
    if not isinstance(work, Dispatched) or work.func not in COPIES or not isinstance(work.out, Lying):
        return entry
    source, to = work.args[1] if work.func is torch.ops.aten.copy_.default else work.args[0], work.out
    if not isinstance(source, Lying) or not on_processor(source.device) or not source.lies_beside(to):
        return entry
    return Entry(Copied(source, to), entry.reads, entry.writes)


COPIES = frozenset((torch.ops.aten.copy_.default, torch.ops.aten.clone.default))


def _as_pointwise(entry: Entry) -> Entry:
    work = entry.work
    if isinstance(work, Elementwise) and (not work.numbers or work.name in fused.BY_NUMBERS):
        expression = work.name, *range(len(work.xs)), *(float(number).hex() for number in work.numbers)
        return replace(entry, work=Pointwise(expression, work.xs, work.y))
    if not isinstance(work, Dispatched) or work.kwargs or not isinstance(work.out, Lying):
        return entry
    name, out = work.func._schema.name.removeprefix("aten::").rstrip("_"), work.out
    xs = tuple(dict.fromkeys(each for each in work.args if isinstance(each, Lying)))
    if (
        name not in fused.OPERATIONS
        or out.dtype not in (torch.float32, torch.float64)
        or len(xs) > INPUTS
        or not out.dense
        or not all(x.lies_as(out) or x.lies_beside(out) for x in xs)
        or not all(isinstance(each, Lying | int | float) for each in work.args)
    ):
        return entry
    parts = (xs.index(each) if isinstance(each, Lying) else float(each).hex() for each in work.args)
    expression = name, *parts
    if all(x.lies_as(out) for x in xs):
        return Entry(Pointwise(expression, xs, out), entry.reads, entry.writes)
    return replace(entry, work=Pointwise(expression, xs, out, otherwise=work))


def _with_zeros_of_its_own(entry: Entry, entries: list[Entry], seen: set[int]) -> Entry:
    """A convolution of what zeros were put around, as one that reads them where nothing is."""
    work = entry.work
    if not isinstance(work, Convolution) or not work.packed.adds_zeros or work.x.root in seen:
        return entry
    x = cast(Lying, work.x)
    touching = [each for each in entries if x.root in each.touches]
    if len(touching) != 2 or not isinstance(call := touching[0].work, Dispatched) or call.out != x:
        return entry
    around = cast(Lying, call.args[0])
    between = entries[entries.index(touching[0]) : entries.index(touching[1])]
    if (
        call.func is not torch.ops.aten.constant_pad_nd.default
        or len(call.args[1]) != 4
        or str(float(call.args[2] if len(call.args) > 2 else 0)) != "0.0"
        or (around.shape[1] > 1 and around.strides[1] != 1)
        or any(around.root in each.writes for each in between)
    ):
        return entry
    left, right, top, bottom = call.args[1]
    (above, below), (before, after) = work.form.padding
    padding = (above + top, below + bottom), (before + left, after + right)
    work = replace(work, x=around, form=work.form._replace(padding=padding))
    return replace(entry, work=work, reads=[around.root, *entry.reads[1:]])


def _before(entries: list[Entry], at: int, seen: set[int]) -> int | None:
    """The earlier work that can do this along with its own: the last that makes any of what this reads."""
    work = entries[at].work
    if not isinstance(work, Pointwise):
        return None
    made = [n for n in range(at) if not set(entries[n].writes).isdisjoint(entries[at].reads)]
    if not made or not isinstance(one := entries[made[-1]].work, Convolution | Pointwise):
        return None
    if work.otherwise and not (isinstance(one, Convolution) and one.packed.others_lie_anyhow):
        return None
    if isinstance(one, Pointwise) and one.otherwise:
        return None
    value, out, most = one.out, work.out, INPUTS if isinstance(one, Pointwise) else OTHERS
    between, after = entries[made[-1] + 1 : at], entries[at + 1 :]
    unread = not any(value.root in each.reads for each in between) and (
        value.root == out.root or not (value.root in seen or any(value.root in each.reads for each in after))
    )
    apart = all(
        x == out for x in (one.xs if isinstance(one, Pointwise) else one.others) if x.root == out.root
    )
    if isinstance(one, Convolution):  # which writes sums to its outputs before it reads anything beside
        apart &= one.x.root != out.root and all(x == value or x.root != out.root for x in work.xs)
    free = not any(out.root in each.touches for each in between)
    fits = value in work.xs and value.lies_as(out) and len(_beside(one, work)) <= most
    return made[-1] if fits and unread and apart and free else None


def _beside(one: Convolution | Pointwise, then: Pointwise) -> tuple[Any, ...]:
    """What both read, without what the first hands to the second."""
    first = one.xs if isinstance(one, Pointwise) else one.others
    return tuple(dict.fromkeys((*first, *(x for x in then.xs if x != one.out))))


def _both(first: Entry, second: Entry) -> Entry:
    one, then = first.work, second.work
    beside = _beside(one, then)
    own = isinstance(one, Convolution)
    before = one.program if own else one.expression
    if not own:
        before = fused.with_inputs(before, {n: beside.index(x) for n, x in enumerate(one.xs)})
    inputs = {n: before if x == one.out else beside.index(x) + own for n, x in enumerate(then.xs)}
    expression = fused.with_inputs(then.expression, inputs)
    if own:
        work: Any = replace(one, program=expression, others=beside, out=then.out)
    else:
        work = Pointwise(expression, beside, then.out)
    reads = [root for root in (*first.reads, *second.reads) if root != one.out.root]
    return Entry(work, list(dict.fromkeys((*reads, *(x.root for x in beside)))), second.writes)


def copied_alike(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as the tensor does."""
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    before = tensor.data_ptr() % VECTOR // tensor.itemsize
    return tensor.new_empty(before + span).as_strided(tensor.shape, tensor.stride(), before).copy_(tensor)


_tried: dict[Any, bool] = {}


def tape_of(recorder: Recorder, constants: dict[Any, Tensor], rooms: Rooms | None = None) -> Tape | None:
    """Nothing where there can be none."""
    try:
        return Tape(recorder, constants, rooms)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except NotRepeatable:
        return None
    except Exception as error:  # as a compiler may raise
        _warn(_told(error))
        return None


def is_tried(tape: Tape) -> bool:
    return tape.fingerprint in _tried


def is_right(
    tape: Tape, before: Sequence[Tensor] = (), then: Sequence[Tensor] = (), found: Sequence[Tensor] = ()
) -> bool:
    """Whether it gives what was found, of what was given: as that was before the work, and as it is then. It
    is tried once, and later ones like it need no tensors."""
    if not is_tried(tape):
        wrong = "it gives other bits"
        try:
            played = tape.play(before)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            played, wrong = [], _told(error)
        if played is None:  # these lie otherwise in memory, which says nothing of it
            return False
        pairs = list(zip((*before, *played), (*then, *found), strict=False))
        _tried[tape.fingerprint] = len(played) == len(found) and all(_same_bits(*pair) for pair in pairs)
        if not _tried[tape.fingerprint]:
            _warn(wrong)
    return _tried[tape.fingerprint]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """What is not a number counts as one."""
    same = one == other
    if one.is_floating_point():
        same = (same & (one.signbit() == other.signbit())) | (one.isnan() & other.isnan())
    return bool(same.all())


def _told(error: Exception) -> str:
    return f"it raises {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _warn(wrong: str) -> None:
    warnings.warn(
        f"tiles cannot be computed by what was recorded of one: {wrong}. They are computed one by one: with "
        "the same bits, and slowly",
        SlowKernelWarning,
        stacklevel=3,
    )
