"""Does the same work in fewer launches.

Zeros around a map are left to kernels that can pad, and pointwise operations are merged into what precedes
them. No operation changes or is reordered, so no bit differs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any, cast

import torch

from overlap_tool.kernels import cuda
from overlap_tool.kernels.arithmetic import fused
from overlap_tool.kernels.arithmetic.generated import INPUTS
from overlap_tool.kernels.boxes import MOST_TOGETHER as MOST_BOXES
from overlap_tool.kernels.boxes import Boxes, can_copy
from overlap_tool.kernels.copying import Copied
from overlap_tool.kernels.recording import Dispatched, Entry, Lying, Pointwise, on_processor
from overlap_tool.kernels.strips import in_strips
from overlap_tool.kernels.work import OTHERS, Convolution, Elementwise, Normalisation


def fused_entries(entries: list[Entry], seen: set[int]) -> list[Entry]:
    """The same work in fewer launches. What is written to roots that are visible outside stays."""
    entries = list(chain.from_iterable(map(_zeros_and_a_copy, entries)))
    entries = [_with_zeros_of_its_own(_as_pointwise(_as_copy(entry)), entries, seen) for entry in entries]
    read = {root for entry in entries for root in entry.reads} | seen
    entries = [entry for entry in entries if not (entry.makes and read.isdisjoint(entry.makes))]
    entries = [_without_figures(entry, read) for entry in entries]
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
    entries = _written_in_place(_squared_while_read(entries, seen), seen)
    return in_strips(_side_by_side(_copied_together(entries)))


def _without_figures(entry: Entry, read: set[int]) -> Entry:
    """A layer norm that does not write means and factors that nothing reads."""
    work = entry.work
    if not isinstance(work, Normalisation):
        return entry
    unread: dict[str, Any] = {
        name: None for name in ("centre", "scale") if getattr(work, name).root not in read
    }
    work = replace(work, **unread)
    writes = [part.root for name in work.WRITTEN if (part := getattr(work, name)) is not None]
    return replace(entry, work=work, writes=writes)


def _side_by_side(entries: list[Entry]) -> list[Entry]:
    """On a GPU, independent convolutions, such as the phases of a transposed one, in one launch.

    One by one, those of small maps would leave most of the GPU idle.
    """
    found: list[Entry] = []
    for entry in entries:
        if isinstance(entry.work, Convolution) and found:
            before = found[-1]
            works = *_convolutions(before), entry.work
            if len(works) > 1 and _independent(before, entry) and cuda.go_together(works):
                reads, writes = before.reads + entry.reads, before.writes + entry.writes
                found[-1] = Entry(cuda.Together(works), reads, writes)
                continue
        found.append(entry)
    return found


def _squared_while_read(entries: list[Entry], seen: set[int]) -> list[Entry]:
    """Squares that only a convolution reads, as in GDN, are computed by its kernel from the samples."""
    found = list(entries)
    for entry in entries:
        work = entry.work
        if not isinstance(work, Pointwise) or not _is_square(work) or work.out.root in seen:
            continue
        x, squared = work.xs[0], work.out
        touching = [each for each in found if squared.root in each.touches]
        one = touching[-1].work
        first, last = found.index(entry), found.index(touching[-1])
        if (
            len(touching) != 2
            or not isinstance(one, Convolution)
            or not one.packed.squares
            or one.x != squared
            or squared in one.others
            or any(x.root in each.writes for each in found[first + 1 : last + 1])
        ):
            continue
        reads = [x.root, *(root for root in touching[-1].reads if root != squared.root)]
        found[last] = replace(touching[-1], work=replace(one, x=x, squares=True), reads=reads)
        del found[first]
    return found


def _is_square(work: Pointwise) -> bool:
    name, *parts = work.expression
    return name == "mul" and all(isinstance(n, int) and work.xs[n] == work.xs[0] for n in parts)


def _convolutions(entry: Entry) -> tuple[Convolution, ...]:
    if isinstance(entry.work, cuda.Together):
        return entry.work.works
    return (entry.work,) if isinstance(entry.work, Convolution) else ()


def _independent(before: Entry, after: Entry) -> bool:
    """Whether neither convolution reads what the other writes, and they write different numbers."""
    if not (set(before.writes).isdisjoint(after.reads) and set(after.writes).isdisjoint(before.reads)):
        return False
    out = after.work.out
    return all(one.out.root != out.root or out.apart_from(one.out) for one in _convolutions(before))


def _written_in_place(entries: list[Entry], seen: set[int]) -> list[Entry]:
    """Convolution outputs that are only copied into a part of a larger map are written there directly."""
    found = list(entries)
    touching: dict[int, list[Entry]] = {}
    for entry in entries:
        for root in entry.touches:
            touching.setdefault(root, []).append(entry)
    for entry in entries:
        if not isinstance(entry.work, Copied):
            continue
        to, source = entry.work.to, entry.work.source
        if (
            source is None
            or len(touching[source.root]) != 2
            or touching[source.root][1] is not entry
            or source.root in seen
        ):
            continue
        making = touching[source.root][0]
        one = making.work
        if not isinstance(one, Convolution) or one.out != source or to.root in making.touches:
            continue
        at, last = found.index(making), found.index(entry)
        if not all(_keeps_off(each, to) for each in found[at + 1 : last]):
            continue
        found[at] = replace(making, work=replace(one, out=to), writes=[to.root])
        del found[last]
    return found


def _copied_together(entries: list[Entry]) -> list[Entry]:
    """On a GPU, copies join the last ones before them, if they may run that early. Copies that could only run
    right after these wait for the next ones."""
    found: list[Entry] = []
    waiting: list[Entry] = []
    for entry in entries:
        copy = entry.work
        if not isinstance(copy, Copied) or copy.source is None or on_processor(copy.to.device):
            if not all(_can_swap(entry, each.work) for each in waiting):
                found.append(_boxes(waiting))
                waiting = []
            found.append(entry)
            continue
        at = max((n for n, each in enumerate(found) if isinstance(each.work, Boxes)), default=len(found))
        behind, is_full = found[at:], at < len(found) and len(found[at].work.copies) == MOST_BOXES
        apart = all(_can_swap(each, copy) for each in waiting)
        if behind and apart and not is_full and all(_can_swap(each, copy) for each in behind):
            found[at] = _boxes([found[at], entry])
        elif len(behind) == 1 and apart and len(waiting) < MOST_BOXES - 1:
            waiting.append(entry)
        elif apart:
            found.append(_boxes([*waiting, entry]))
            waiting = []
        else:
            found += [_boxes(waiting), _boxes([entry])]
            waiting = []
    return [*found, _boxes(waiting)] if waiting else found


def _boxes(entries: list[Entry]) -> Entry:
    """One entry for copies and entries of several copies."""
    copies = chain.from_iterable(
        each.work.copies if isinstance(each.work, Boxes) else (each.work,) for each in entries
    )
    reads, writes = (
        [*chain.from_iterable(each)]
        for each in zip(*((each.reads, each.writes) for each in entries), strict=True)
    )
    return Entry(Boxes(tuple(copies)), reads, writes)


def _can_swap(entry: Entry, copy: Copied) -> bool:
    """Whether the two may run in either order."""
    assert copy.source is not None
    return _keeps_off(entry, copy.to) and _keeps_off(entry, copy.source, only_writes=True)


def _keeps_off(entry: Entry, part: Lying, only_writes: bool = False) -> bool:
    """Whether it touches no number there, or at least writes none."""
    touches = entry.writes if only_writes else entry.touches
    if part.root not in touches:
        return True
    work = entry.work
    reads: tuple[Any, ...]
    if isinstance(work, Copied | Boxes):
        copies = work.copies if isinstance(work, Boxes) else (work,)
        reads, writes = tuple(each.source for each in copies), tuple(each.to for each in copies)
    elif isinstance(work, Convolution):
        reads, writes = (work.x, work.packed.values, work.bias, *work.others), (work.out,)
    elif isinstance(work, Normalisation):
        reads, writes = (work.x, work.weight, work.bias), (work.out, work.centre, work.scale)
    else:  # an op of PyTorch's, whose accesses are known less precisely
        return False
    parts = writes if only_writes else reads + writes
    return all(each is None or each.root != part.root or each.apart_from(part) for each in parts)


def _zeros_and_a_copy(entry: Entry) -> list[Entry]:
    """Zero padding on the CPU, as zeros and a copy of the map, both in the tape's own memory."""
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
    zeros = (Entry(Copied(None, part), [], [out.root]) for part in border if part.numel())
    return [*zeros, Entry(Copied(x, inside), [x.root], [out.root])]


def _as_copy(entry: Entry) -> Entry:
    """As a copy kernel, for maps whose channels are adjacent."""
    work = entry.work
    if not isinstance(work, Dispatched) or work.func not in COPIES or not isinstance(work.out, Lying):
        return entry
    source, to = work.args[1] if work.func is torch.ops.aten.copy_.default else work.args[0], work.out
    if not isinstance(source, Lying) or not source.lies_beside(to):
        return entry
    if not on_processor(source.device) and not can_copy(source, to):
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
    own = Pointwise(expression, xs, out)
    if own.is_flat or (on_processor(out.device) and out.shape[1] >= WIDE):
        return Entry(own, entry.reads, entry.writes)
    return replace(entry, work=Pointwise(expression, xs, out, otherwise=work))


WIDE = 16
"""From this many channels on, the CPU's kernel for pieces of maps is faster than PyTorch's op."""


def _with_zeros_of_its_own(entry: Entry, entries: list[Entry], seen: set[int]) -> Entry:
    """A convolution of a padded map, as one of the map itself that pads."""
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
    """The earlier work that can include this one: the last that makes any of its inputs."""
    work = entries[at].work
    if not isinstance(work, Pointwise):
        return None
    reads = set(entries[at].reads)
    before = next((n for n in reversed(range(at)) if not reads.isdisjoint(entries[n].writes)), None)
    if before is None or not isinstance(one := entries[before].work, Convolution | Pointwise):
        return None
    if work.otherwise and not isinstance(one, Convolution):
        return None
    if isinstance(one, Pointwise) and one.otherwise:
        return None
    value, out, most = one.out, work.out, INPUTS if isinstance(one, Pointwise) else OTHERS
    between, after = entries[before + 1 : at], entries[at + 1 :]
    unread = not any(value.root in each.reads for each in between) and (
        value.root == out.root or not (value.root in seen or any(value.root in each.reads for each in after))
    )
    apart = all(
        x == out for x in (one.xs if isinstance(one, Pointwise) else one.others) if x.root == out.root
    )
    if isinstance(one, Convolution):  # a convolution writes sums to its outputs before it reads other tensors
        apart &= one.x.root != out.root and all(x == value or x.root != out.root for x in work.xs)
    free = not any(out.root in each.touches for each in between)
    fits = value in work.xs and value.lies_as(out) and len(_beside(one, work)) <= most
    return before if fits and unread and apart and free else None


def _beside(one: Convolution | Pointwise, then: Pointwise) -> tuple[Any, ...]:
    """What both read, without what the first passes to the second."""
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
