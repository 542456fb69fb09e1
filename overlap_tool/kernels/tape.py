"""Repeated work on other tensors of the same form: recorded once, then replayed.

A tape contains none of the recorded Python and PyTorch calls: it is a list of launches, whose arguments are
prepared except for addresses. What depends on weights alone was computed during recording. Before a tape is
used, it is tried once on other tensors than those that it was recorded with.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _pop_mode_temporarily
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from overlap_tool.errors import SlowKernelWarning
from overlap_tool.kernels.arithmetic import fused
from overlap_tool.kernels.arithmetic.tensors import pixel_kernel, program_kernel
from overlap_tool.kernels.driver import in_order
from overlap_tool.kernels.joining import fused_entries
from overlap_tool.kernels.recording import VECTOR, Dispatched, Entry, Lying, Pointwise, Recorder, on_processor
from overlap_tool.kernels.strips import Strips
from overlap_tool.kernels.threads import Calls, ReadyCall
from overlap_tool.kernels.work import AnyLaunch, Convolution, Elementwise

ALIGNED = 512
"""The alignment of PyTorch's allocator, in bytes."""

Memory = tuple[Tensor, int]
"""A tensor, and the offset in its storage at which a root begins, in bytes."""


class NotRepeatable(Exception):
    """What was recorded cannot be replayed."""


class Rooms:
    """Memory for intermediate results.

    The CPU's is kept, since new memory is slow at first; a GPU's goes back to PyTorch's allocator, which
    keeps it.
    """

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def of(self, size: int, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.empty(size, dtype=torch.uint8, device=device)
        if self._kept is None or self._kept.numel() < size:
            self._kept = None  # the old memory is freed first
            self._kept = torch.empty(size, dtype=torch.uint8, device=device)
        return self._kept

    def release(self) -> None:
        """Free the memory for other users."""
        self._kept = None


class Tape:
    """A recording that can be replayed."""

    def __init__(self, recorder: Recorder, constants: dict[Any, Tensor], rooms: Rooms | None = None) -> None:
        """Tapes that are not replayed at the same time share `constants`, made of weights, and rooms."""
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
        """Memory that is returned to the caller."""
        self._at, self._room = self._arranged(entries, last, scratch - self._own)
        fixed = {root: _address(*memory) for root, memory in self._fixed.items()}
        self._steps = [self._step(entry, fixed) for entry in entries]
        self._ends = [
            [root for root in entry.touches & made - returned if last[root] == at]
            for at, entry in enumerate(entries)
        ]
        """Memory that PyTorch allocated and that is not read again."""
        self._turns = list(_in_rows(self._steps, self._ends))
        order = [place.root for place in self.given], *((*entry.reads, *entry.writes) for entry in entries)
        number = {root: n for n, root in enumerate(dict.fromkeys(chain.from_iterable(order)))}
        self.fingerprint = (
            *(step.fingerprint(number) for step in self._steps),
            *((number[root], at) for root, at in self._at.items()),
        )
        """Everything that determines bits except numbers. Roots are numbered in order of appearance."""

    def _arranged(
        self, entries: list[Entry], last: dict[int, int], scratch: set[int]
    ) -> tuple[dict[int, int], int]:
        """Offsets of intermediate results in one piece of memory, first fit, and its size."""
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
        if isinstance(work, Strips):
            work = replace(work, works=tuple(map(_with_kernel, work.works)))
        return _Launched(_with_kernel(work).launch(), fixed)

    def replay(self, given: Sequence[Tensor]) -> list[Tensor] | None:
        """Do the same work on other tensors; return its results, or None if their memory layout differs."""
        memory: dict[int, Memory] = dict(self._fixed)
        addresses: dict[int, int] = {}
        for place, tensor in zip(self.given, given, strict=True):
            addresses[place.root] = address = tensor.data_ptr()
            if (
                tensor.shape != place.shape
                or not place.has_strides(tensor.stride())
                or tensor.dtype != place.dtype
                or (address % VECTOR != place.beyond and not on_processor(place.device))
            ):
                return None
            memory[place.root] = tensor, int(tensor.storage_offset()) * place.dtype.itemsize
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
                for step, ends in self._turns:
                    step.run(stream, addresses, memory)
                    for root in ends:
                        del memory[root]
            return [_tensor(place, memory) for place in self.returned]


class _Launched:
    def __init__(self, launch: AnyLaunch, fixed: Mapping[int, int]) -> None:
        self.ready: Any = launch.ready()
        self.on_processor = isinstance(self.ready, ReadyCall)
        self.moving: list[tuple[int, int, int]] = []
        """The words that are addresses: of a root, plus an offset."""
        for at, place in zip(launch.places, launch.tensors, strict=True):
            if isinstance(place, Lying):
                if place.root in fixed:
                    self.ready.words[at] = fixed[place.root] + place.offset
                else:
                    self.moving.append((at, place.root, place.offset))
        self._told = launch.told

    def fingerprint(self, number: Mapping[int, int]) -> Any:
        return self._told, tuple((at, number[root], offset) for at, root, offset in self.moving)

    def run(self, stream: Any, addresses: Mapping[int, int], memory: dict[int, Memory]) -> None:
        words = self.ready.words
        for at, root, offset in self.moving:
            words[at] = addresses[root] + offset
        self.ready.run(stream)


class _Row:
    """Consecutive launches on the CPU."""

    def __init__(self, launched: Sequence[_Launched]) -> None:
        self._calls = Calls([each.ready for each in launched])
        moving = [
            (start + at, root, offset)
            for start, each in zip(self._calls.starts, launched, strict=True)
            for at, root, offset in each.moving
        ]
        self._roots = list(dict.fromkeys(root for _, root, _ in moving))
        number = {root: n for n, root in enumerate(self._roots)}
        words = [(at, number[root], offset) for at, root, offset in moving]
        self._at, self._which, self._offsets = np.array(words, np.int64).reshape(-1, 3).T

    def run(self, stream: Any, addresses: Mapping[int, int], memory: dict[int, Memory]) -> None:
        starts = np.array([addresses[root] for root in self._roots], np.int64)
        self._calls.words[self._at] = starts[self._which] + self._offsets
        self._calls.run()


def _in_rows(
    steps: Sequence[_Launched | _Dispatched], ends: Sequence[list[int]]
) -> Iterator[tuple[_Launched | _Dispatched | _Row, list[int]]]:
    """Merge consecutive steps on the CPU."""
    row: list[_Launched] = []
    for step, ending in zip(steps, ends, strict=True):
        if isinstance(step, _Launched) and step.on_processor:
            row.append(step)
            if not ending:
                continue
            yield _Row(row), ending
        else:
            if row:
                yield _Row(row), []
            yield step, ending
        row = []
    if row:
        yield _Row(row), []


class _Dispatched:
    def __init__(self, call: Dispatched, makes: list[int]) -> None:
        self._call = call
        self._flat, self._spec = tree_flatten((call.args, call.kwargs))
        self._places = [(at, each) for at, each in enumerate(call.args) if isinstance(each, Lying)]
        self._plain = len(self._places) == sum(isinstance(each, Lying) for each in self._flat)
        """Whether no tensor is in a list, or passed by name."""
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
        if self._plain:
            plain = [*self._call.args]
            for at, place in self._places:
                plain[at] = _tensor(place, memory)
            result = self._call.func(*plain, **self._call.kwargs)
        else:
            given = [_tensor(each, memory) if isinstance(each, Lying) else each for each in self._flat]
            args, kwargs = tree_unflatten(given, self._spec)
            result = self._call.func(*args, **kwargs)
        if self._makes:
            made = tree_leaves(result)
            for at, root in self._makes:
                memory[root], addresses[root] = (made[at], 0), _address(made[at], 0)


def _with_kernel(work: Any) -> Any:
    if not isinstance(work, Pointwise):
        return work
    name, device, form = fused.named(work.expression), work.out.device, (work.out.dtype, len(work.xs))
    kernel = program_kernel(name, *form, device) if work.is_flat else pixel_kernel(name, *form)
    if kernel is None:
        raise NotRepeatable(f"{name} has no kernel")
    return Elementwise(kernel, name, work.xs, (), work.out)


def _tensor(place: Lying, memory: Mapping[int, Memory]) -> Tensor:
    tensor, start = memory[place.root]
    if tensor.dtype != place.dtype:
        tensor = tensor.view(place.dtype)
    return tensor.as_strided(place.shape, place.strides, (start + place.offset) // place.dtype.itemsize)


def _address(tensor: Tensor, start: int) -> int:
    return tensor.untyped_storage().data_ptr() + start


def _repeated(recorder: Recorder) -> list[Entry]:
    """The entries that have to be repeated: those that touch memory depending on the inputs."""
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
    """How a root's numbers are computed from weights, in a comparable form."""

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
            ):  # whose packed weights are compared differently
                parts = [
                    {**part, "packed": vars(part["packed"])} if "packed" in part else part for part in parts
                ]
            text = repr([tree_map_only(Lying, told, part) for part in parts])
            known[root] = hashlib.sha256(text.encode()).hexdigest()
        elif kept is not None:
            constants[start] = kept  # nothing else can be allocated there
            known[root] = str(start)
        else:
            raise NotRepeatable("what it needs is gone")
    return known[root]


def copied_alike(tensor: Tensor) -> Tensor:
    """A copy with the tensor's memory layout."""
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    before = tensor.data_ptr() % VECTOR // tensor.itemsize
    return tensor.new_empty(before + span).as_strided(tensor.shape, tensor.stride(), before).copy_(tensor)


_tried: dict[Any, bool] = {}

MOST_TRIED = 4096
"""The most results of trials that are kept. Older ones are dropped; their tapes are tried again."""


def tape_of(recorder: Recorder, constants: dict[Any, Tensor], rooms: Rooms | None = None) -> Tape | None:
    """None if there can be no tape."""
    try:
        return Tape(recorder, constants, rooms)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except NotRepeatable:
        return None
    except Exception as error:  # compilers may raise anything
        _warn(_told(error))
        return None


def is_tried(tape: Tape) -> bool:
    return tape.fingerprint in _tried


def is_right(
    tape: Tape, before: Sequence[Tensor] = (), then: Sequence[Tensor] = (), found: Sequence[Tensor] = ()
) -> bool:
    """Whether the tape gives `found` for the inputs, as they were before the work and are after it.

    It is tried once; later tapes like it need no tensors.
    """
    if not is_tried(tape):
        wrong = "it gives other bits"
        try:
            replayed = tape.replay(before)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            replayed, wrong = [], _told(error)
        if replayed is None:  # another memory layout shows nothing
            return False
        pairs = list(zip((*before, *replayed), (*then, *found), strict=False))
        _tried[tape.fingerprint] = len(replayed) == len(found) and all(_same_bits(*pair) for pair in pairs)
        if not _tried[tape.fingerprint]:
            _warn(wrong)
        if len(_tried) > MOST_TRIED:
            _tried.pop(next(iter(_tried)), None)
    return _tried.get(tape.fingerprint, False)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Every NaN is equal to every other."""
    same = one == other
    if one.is_floating_point():
        same = (same & (one.signbit() == other.signbit())) | (one.isnan() & other.isnan())
    return bool(same.all())


def _told(error: Exception) -> str:
    return f"it raises {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _warn(wrong: str) -> None:
    warnings.warn(
        f"the recording of a tile cannot be replayed for others: {wrong}. They are computed one by one: with "
        "the same bits, and slowly",
        SlowKernelWarning,
        stacklevel=3,
    )
