"""Axis plans: per step and op, the span to compute and the span that must be available. Pure integers.

A plan in two dimensions is the product of a plan for rows and one for columns: tile (i, j) computes, of every
op, the rows of row step i and the columns of column step j.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from math import ceil, lcm
from operator import add
from typing import NamedTuple

from overlap_tool.geometry import Geometry, Padding, Patch, Span, hull, patch
from overlap_tool.geometry.axis import Axis, Lengths


@dataclass(frozen=True)
class Step:
    """One step on one axis; every field has an entry per op."""

    compute: tuple[Span, ...]
    """The outputs to compute."""
    hold: tuple[Span, ...]
    """The outputs available to readers: those computed now, and those kept from before."""
    keep: tuple[Span, ...]
    """The part at the end of `hold` that later steps still read."""
    patches: tuple[Patch | None, ...]
    """What an op reads to compute its outputs; None for the stage's input, and where it computes nothing."""

    def computes(self, part: Span) -> bool:
        """Whether any of these is among the last op's outputs."""
        return not self.compute[-1].within(part).empty

    def moved(self, axis: Axis, by: Sequence[int]) -> Step:
        """The same step at another place, at a distance of whole periods for every op."""

        def moved(spans: Sequence[Span]) -> tuple[Span, ...]:
            return tuple(map(Span.shift, spans, by))

        patches = tuple(
            None if patch is None else patch.moved(by[index], by[axis.ops[index].inputs[0]])
            for index, patch in enumerate(self.patches)
        )
        return Step(moved(self.compute), moved(self.hold), moved(self.keep), patches)


@dataclass(frozen=True)
class RunOfSteps:
    """Consecutive steps that are alike; each moves every op on by the same number of outputs."""

    first: Step
    count: int = 1
    moves: tuple[int, ...] = ()
    axis: Axis | None = None

    @property
    def steps(self) -> Iterator[Step]:
        yield self.first
        for number in range(1, self.count):
            assert self.axis is not None
            yield self.first.moved(self.axis, [number * move for move in self.moves])

    @property
    def computed(self) -> Iterator[Span]:
        """From the first to the last output of every op that any step computes."""
        if self.count == 1:
            yield from self.first.compute
            return
        for span, move in zip(self.first.compute, self.moves, strict=True):
            yield hull([span, span.shift((self.count - 1) * move)])


@dataclass(frozen=True)
class AxisPlan:
    """The plan of one axis of a stage: the sizes of all ops, and the steps, in runs that are alike."""

    sizes: tuple[int, ...]
    runs: tuple[RunOfSteps, ...]

    @staticmethod
    def of(sizes: tuple[int, ...], steps: Iterable[Step]) -> AxisPlan:
        return AxisPlan(sizes, tuple(map(RunOfSteps, steps)))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for run in self.runs for step in run.steps)

    @cached_property
    def count(self) -> int:
        """The number of steps."""
        return sum(run.count for run in self.runs)

    @cached_property
    def later(self) -> tuple[Step, ...]:
        """One step of every run after the first."""
        return tuple(run.first for run in self.runs[self.runs[0].count == 1 :])

    @cached_property
    def computed(self) -> tuple[int, ...]:
        """How many outputs every op computes over all steps, including recomputed ones."""
        lengths = zip(
            *([run.count * span.length for span in run.first.compute] for run in self.runs), strict=True
        )
        return tuple(map(sum, lengths))

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """The most outputs of every op that outlive a step."""
        spans = zip(*(run.first.keep for run in self.runs), strict=True)
        return tuple(max(span.length for span in of_op) for of_op in spans)

    @cached_property
    def extents(self) -> tuple[Span, ...]:
        """From the first to the last output of every op that any step computes."""
        return tuple(map(hull, zip(*(run.computed for run in self.runs), strict=True)))

    @cached_property
    def overlapping(self) -> bool:
        """Whether some step recomputes what another has computed."""
        spans = zip(*(step.compute for step in self.steps), strict=True)
        return any(
            after.start < before.stop
            for of_op in spans
            for before, after in pairwise(sorted(span for span in of_op if not span.empty))
        )


def whole(axis: Axis, n: Lengths) -> AxisPlan:
    """The whole map in one step, including outputs that nobody reads."""
    sizes = axis.sizes(n)
    everything = tuple(Span(0, size) for size in sizes)
    return AxisPlan.of(sizes, [_step(axis, sizes, everything)])


def tiles(axis: Axis, n: Lengths, cuts: Sequence[Span]) -> AxisPlan:
    """Independent tiles of the output, `cuts`: every tile computes all that it reads, and keeps nothing."""
    sizes = axis.sizes(n)
    at = places(axis, sizes)
    steps = []
    for cut in cuts:
        starts, stops = at(cut.start), at(cut.stop)
        wanted = {end: Span(starts[end], stops[end]) for end in axis.ends}
        steps.append(_step(axis, sizes, axis.needs(wanted, sizes)))
    return AxisPlan.of(sizes, steps)


def uniform(axis: Axis, n: Lengths, tile: int) -> AxisPlan:
    """Independent tiles that have one shape at every op: that of a tile in the middle of an endless image.

    Each is the first one, shifted by whole periods: `tile` is rounded down to whole periods, but to at least
    one. So tiles differ only in where the image ends within them. Beyond its end a map may hold anything;
    inside the image, every sample that a tile computes is right.
    """
    sizes = axis.sizes(n)
    reaches = axis.reaches()
    period = lcm(*(reach.period.input for reach in reaches))
    periods = max(1, tile // int(period * axis.scale))
    shifts = [int(periods * period * reach.scale) for reach in reaches]
    count = max(-(-sizes[end] // shifts[end]) for end in axis.ends)
    spans = [Span(0, shift if op in axis.ends else 0) for op, shift in enumerate(shifts)]
    patches: list[Patch | None] = [None] * len(axis.ops)
    for index in reversed(range(len(axis.ops))):
        op, span = axis.ops[index], spans[index]
        if op.geometry is None or span.empty:
            continue
        source = op.inputs[0]
        ends = sizes[index], sizes[source]
        have = _reads_of_any(op.geometry, span, ends, (shifts[index], shifts[source]), count)
        patches[index] = Patch(span, op.geometry.need(span), have, sizes[source])
        for source in op.inputs:
            spans[source] = hull([spans[source], have])
    nothing = tuple(Span(span.stop, span.stop) for span in spans)
    first = Step(tuple(spans), tuple(spans), nothing, tuple(patches))
    return AxisPlan(sizes, (RunOfSteps(first, count, tuple(shifts), axis),))


def _reads_of_any(
    geometry: Geometry, outputs: Span, sizes: tuple[int, int], shifts: tuple[int, int], count: int
) -> Span:
    """The inputs that the first of `count` tiles must hold so that all of them can have its shape.

    It is the union, over all tiles, of what the outputs need and of where the op's padding takes samples
    from. `sizes` and `shifts` are those of the op's output and of its input.
    """
    need = geometry.need(outputs)
    if geometry.padding in (Padding.CONSTANT, Padding.CLAMP):
        return need
    real = (outputs.shift(i * shifts[0]).clip(sizes[0]) for i in range(count))
    return hull([need, *(geometry.reads(out, sizes[1]).shift(-i * shifts[1]) for i, out in enumerate(real))])


def stream(axis: Axis, n: Lengths, cuts: Sequence[Span]) -> AxisPlan:
    """Tiles of the output in order: every op computes what it has not computed yet, and keeps what is still
    to be read.

    Nothing is computed twice. `cuts` may begin at any tile of the full stream.
    """
    sizes = axis.sizes(n)
    at = places(axis, sizes)
    begin, end = at(cuts[0].start), at(cuts[-1].stop)
    wanted = {op: span for op in axis.ends if not (span := Span(begin[op], end[op])).empty}
    needed = axis.needs(wanted, sizes)
    stops = (cuts[0].start, *(cut.stop for cut in cuts))

    @cache
    def progress(number: int) -> Progress:
        if number == 0:  # nothing is done, even of a wanted op that others read before its place
            return _come_to(axis, sizes, needed, {})
        come = at(stops[number])
        return _come_to(axis, sizes, needed, {op: come[op] for op in wanted})

    moves = _Moves(axis, needed) if axis.aligned else None

    def runs(low: int, high: int) -> Iterator[RunOfSteps]:
        """The steps between two stops: where no border of the image is involved, all are alike."""
        first, last = progress(low), progress(high)
        if high - low == 1:
            yield RunOfSteps(_between(axis, sizes, first, last))
        elif moves and moves.alike(stops[low : high + 1], first, last):
            step = _between(axis, sizes, first, progress(low + 1))
            yield RunOfSteps(step, high - low, moves.by(stops[low + 1] - stops[low]), axis)
        else:
            middle = (low + high) // 2
            yield from runs(low, middle)
            yield from runs(middle, high)

    return AxisPlan(sizes, tuple(runs(0, len(cuts))))


class Progress(NamedTuple):
    """How far a stream has come: for every op, the outputs done, and the first one still to be read."""

    done: tuple[int, ...]
    unread: tuple[int, ...]

    def moved(self, by: Sequence[int]) -> Progress:
        return Progress(*(tuple(map(add, places, by)) for places in self))


class _Moves:
    """How far every op advances with the output, in whole periods."""

    def __init__(self, axis: Axis, needed: Sequence[Span]) -> None:
        reaches = axis.reaches()
        period = lcm(*(reach.period.input for reach in reaches))
        self.period = int(period * axis.scale)
        self.needed = needed
        moves = (int(period * reach.scale) for reach in reaches)
        self.moves = tuple(0 if span.empty else move for move, span in zip(moves, needed, strict=True))

    def by(self, outputs: int) -> tuple[int, ...]:
        periods = outputs // self.period
        return tuple(periods * move for move in self.moves)

    def alike(self, stops: Sequence[int], first: Progress, last: Progress) -> bool:
        """Whether a stream's steps between consecutive stops in this range are all alike.

        A border of the image puts a stream ahead at the beginning, and holds it back at the end, never the
        other way round: if one were involved, there would be less than whole periods between the two stops.
        """
        lengths = {stop - start for start, stop in pairwise(stops)}
        if len(lengths) > 1 or min(lengths) % self.period:
            return False
        if not all(
            span.empty or (span.start < before and after < span.stop)
            for span, before, after in zip(self.needed, first.done, last.done, strict=True)
        ):
            return False  # an op without reads before or after shows nothing about borders
        return first.moved(self.by(stops[-1] - stops[0])) == last


def _come_to(axis: Axis, sizes: Sequence[int], needed: Sequence[Span], stops: Mapping[int, int]) -> Progress:
    done = _frontiers(axis, sizes, needed, stops)
    return Progress(done, _first_unread(axis, sizes, done, needed))


def _between(axis: Axis, sizes: Sequence[int], before: Progress, after: Progress) -> Step:
    """The step of a stream from one place to the next."""
    spans = tuple(map(Span, before.done, after.done))
    hold = tuple(
        Span(min(low, done), now)
        for low, done, now in zip(before.unread, before.done, after.done, strict=True)
    )
    keep = tuple(Span(min(low, now), now) for low, now in zip(after.unread, after.done, strict=True))
    return Step(spans, hold, keep, _patches(axis, sizes, spans))


@dataclass(frozen=True)
class Endless:
    """A stream of a map whose length is not known yet; `axis` is that of a map that is far too long."""

    axis: Axis
    n: int
    from_start: tuple[int, ...] = ()
    """Ops that begin with their first output, whether or not anything reads it."""

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return self.axis.sizes(self.n)

    @cached_property
    def needed(self) -> tuple[Span, ...]:
        wanted = (*self.from_start, len(self.sizes) - 1)
        return self.axis.needs({op: Span(0, self.sizes[op]) for op in wanted}, self.sizes)

    @cached_property
    def held_back(self) -> int:
        """How many of the last inputs wait for more: as many as any output reads, and as the end mirrors."""
        scales = [reach.scale for reach in self.axis.reaches()]
        mirrored = [
            (max(-op.geometry.need(Span(0, 1)).start, self._beyond(index, op.geometry)) + 1) / scales[index]
            for index, op in enumerate(self.axis.ops)
            if op.geometry is not None and op.geometry.padding is Padding.REFLECT
        ]
        return self.axis.receptive_field + (self.axis.period + ceil(sum(mirrored)) if mirrored else 0)

    def _beyond(self, index: int, geometry: Geometry) -> int:
        size = self.sizes[index]
        return geometry.need(Span(size - 1, size)).stop - self.sizes[self.axis.ops[index].inputs[0]]

    def at(self, outputs: int) -> Progress:
        """The state of the stream once so many outputs are done."""
        return _come_to(self.axis, self.sizes, self.needed, {len(self.sizes) - 1: outputs})

    def outputs_of(self, inputs: int, at_least: int) -> int:
        """The most outputs that this many inputs suffice for."""
        last = len(self.sizes) - 1

        def enough(outputs: int) -> bool:
            return _frontiers(self.axis, self.sizes, self.needed, {last: outputs})[0] <= inputs

        low, more = at_least, max(1, int(self.axis.scale))
        while enough(low + more):
            low, more = low + more, 2 * more
        high = low + more
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if enough(middle) else (low, middle)
        return low

    def step(self, before: Progress, after: Progress) -> Step:
        return _between(self.axis, self.sizes, before, after)


def alike(axis: Axis, steps: Sequence[Step], most: int) -> list[list[Step]]:
    """Independent steps in groups of at most `most` that do the same to pieces of the same shape."""
    groups: dict[tuple[object, ...], list[list[Step]]] = {}
    for step in steps:
        same = groups.setdefault(form_of(axis, step), [[]])
        if len(same[-1]) == most:
            same.append([])
        same[-1].append(step)
    return [group for same in groups.values() for group in same]


def form_of(axis: Axis, step: Step, given: Collection[int] = ()) -> tuple[object, ...]:
    """What a step does, wherever it lies: lengths and differences; positions if a border is involved. What
    the ops in `given` compute does not count."""
    form: list[object] = []
    for at, (op, reads, hold) in enumerate(zip(axis.ops, step.patches, step.hold, strict=True)):
        if op.geometry is None or reads is None or at in given:
            form.append(hold.length)
        elif not reads.complete or op.geometry.by_place:
            form.append(reads)
        else:
            start = reads.have.start
            into = tuple(start - step.hold[source].start for source in op.inputs)
            lead = reads.out.start - op.geometry.begins(start)
            form.append((reads.out.length, reads.have.length, into, lead))
    return tuple(form)


def cut(size: int, tile: int) -> tuple[Span, ...]:
    """Spans of an output of `size` in tiles of `tile`; the last one has the remainder."""
    return tuple(Span(start, min(start + tile, size)) for start in range(0, size, tile))


def stream_cuts(axis: Axis, size: int, tile: int, start: int = 0) -> tuple[Span, ...]:
    """Tiles for a stream over an output of `size`, from `start` on.

    The first is shorter, if anything remains, by what a tile needs beyond its own part and no earlier tile
    has computed. So no step computes more of any op than a tile, plus its overlap where padding alone fed the
    tiles before.
    """
    if size - start <= tile:
        return (Span(start, size),)
    reaches = axis.reaches()
    needed = zip(axis.overlaps(), reaches, strict=True)
    beyond = ceil(
        max(
            (overlap.after + (overlap.before if start else 0)) * axis.scale / reach.scale
            for overlap, reach in needed
        )
    )
    first = tile - beyond if beyond < tile else min(tile, reaches[-1].period.output)
    return (
        Span(start, start + first),
        *(span.shift(start + first) for span in cut(size - start - first, tile)),
    )


def together(axis: Axis, sizes: Sequence[int], part: Span) -> Span:
    """The outputs computed for `part`: more than these if some come in groups, as in attention windows."""
    return axis.needs({len(axis.ops) - 1: part}, sizes)[-1]


def places(axis: Axis, sizes: Sequence[int]) -> Callable[[int], dict[int, int]]:
    """For a place in the output, the corresponding place in every wanted op: scaled, or its end for the
    output's end."""
    last = len(axis.ops) - 1
    reaches = axis.reaches() if axis.kept else ()
    scales = {end: reaches[end].scale / axis.scale for end in axis.kept}

    def at(place: int) -> dict[int, int]:
        others = {
            end: sizes[end] if place == sizes[last] else min(sizes[end], ceil(place * scale))
            for end, scale in scales.items()
        }
        return {**others, last: place}

    return at


def _frontiers(
    axis: Axis, sizes: Sequence[int], needed: Sequence[Span], stops: Mapping[int, int]
) -> tuple[int, ...]:
    """How far every op must have come, from its first needed output, for the wanted ops to have come to
    `stops`."""
    frontiers = [stops.get(index, span.start) for index, span in enumerate(needed)]
    for index in reversed(range(len(axis.ops))):
        geometry = axis.ops[index].geometry
        done = Span(needed[index].start, frontiers[index])
        if geometry is None or done.empty:
            continue
        done = geometry.together(done, sizes[axis.ops[index].inputs[0]])
        frontiers[index] = done.stop
        for source in axis.ops[index].inputs:
            reads = geometry.reads(done, sizes[source])
            if not reads.empty:
                frontiers[source] = max(frontiers[source], reads.stop)
    return tuple(frontiers)


def _first_unread(
    axis: Axis, sizes: Sequence[int], done: Sequence[int], needed: Sequence[Span]
) -> tuple[int, ...]:
    """For every op, the first output that is still to be read once its readers have done `done`."""
    first = list(done)
    for index, op in enumerate(axis.ops):
        pending = Span(done[index], needed[index].stop)
        if op.geometry is None or pending.empty:
            continue
        for source in op.inputs:
            reads = op.geometry.reads(pending, sizes[source])
            if not reads.empty:
                first[source] = min(first[source], reads.start)
    return tuple(first)


def _step(axis: Axis, sizes: Sequence[int], spans: tuple[Span, ...]) -> Step:
    """An independent step: it holds what it computes, and keeps nothing."""
    nothing = tuple(Span(span.stop, span.stop) for span in spans)
    return Step(spans, spans, nothing, _patches(axis, sizes, spans))


def _patches(axis: Axis, sizes: Sequence[int], spans: Sequence[Span]) -> tuple[Patch | None, ...]:
    return tuple(
        None if op.geometry is None or span.empty else patch(op.geometry, span, sizes[op.inputs[0]])
        for op, span in zip(axis.ops, spans, strict=True)
    )
