"""One axis of a network: a DAG of geometries, and what follows from composing them. Pure integers, no torch.

Along a path, maps are composed; at a fork, the spans that the branches need are united; at a join, every
branch needs the same span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, lcm

from overlap_tool.geometry import Geometry, Overlap, Period, Span, hull, published_overlap


@dataclass(frozen=True)
class AxisOp:
    """One op: its geometry, and the earlier ops that feed it.

    A given map is an op without geometry: the stage's input or, in a segment, a map that an earlier pass
    computed. `scale` is a given map's samples per sample of the stage's input.
    """

    geometry: Geometry | None
    inputs: tuple[int, ...] = ()
    scale: Fraction = Fraction(1)


Lengths = int | Sequence[int]
"""The length of the given map, or of each one in order."""


@dataclass(frozen=True)
class Reach:
    """What an op's outputs read of the stage's input: a table over one period.

    Output `a` reads the input span `table[a mod period.output]`, shifted by `period.input` for every whole
    period. A span is empty if its output reads nothing.
    """

    period: Period
    table: tuple[Span, ...]

    def of(self, output: int) -> Span:
        periods, phase = divmod(output, self.period.output)
        return self.table[phase].shift(periods * self.period.input)

    @property
    def scale(self) -> Fraction:
        return Fraction(self.period.output, self.period.input)

    @property
    def receptive_field(self) -> int:
        """The most inputs, end to end, that any one output reads."""
        return max(span.length for span in self.table)

    @property
    def overlap(self) -> Overlap:
        """How far a tile of whole periods reads beyond its own inputs."""
        whole = hull(self.table)
        return Overlap(max(0, -whole.start), max(0, whole.stop - self.period.input))


class MisalignedJoin(ValueError):
    """Branches of different scale meet at op `index`: no shift of the input moves both alike."""

    def __init__(self, index: int, scales: Sequence[Fraction]) -> None:
        super().__init__(f"op {index} joins branches of scale {', '.join(map(str, scales))}")
        self.index = index
        self.scales = tuple(scales)


@dataclass(frozen=True)
class Axis:
    """The ops of one axis in topological order. The last is the output; `kept` are other wanted ops."""

    ops: tuple[AxisOp, ...]
    kept: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """The wanted ops, the output last."""
        return (*self.kept, len(self.ops) - 1)

    def sizes(self, n: Lengths) -> tuple[int, ...]:
        """The length of every op's output for given maps of length `n`."""
        given = iter((n,) if isinstance(n, int) else n)
        sizes: list[int] = []
        for op in self.ops:
            sizes.append(next(given) if op.geometry is None else op.geometry.size(sizes[op.inputs[0]]))
        return tuple(sizes)

    def needs(self, wanted: Mapping[int, Span], sizes: Sequence[int] | None = None) -> tuple[Span, ...]:
        """The span that every op must compute for the `wanted` spans; empty where it is not needed.

        With `sizes`, spans are clipped to real samples at every op, as for running a tile; without, they are
        unclipped, as for a tile in the middle of an endless image.
        """
        asked: list[list[Span]] = [[] for _ in self.ops]
        for index, span in wanted.items():
            asked[index].append(span)
        spans = [Span(0, 0)] * len(self.ops)
        for index in reversed(range(len(self.ops))):
            spans[index] = asked[index][0] if len(asked[index]) == 1 else hull(asked[index])
            op = self.ops[index]
            if op.geometry is None or spans[index].empty:
                continue
            if sizes is not None:
                spans[index] = op.geometry.together(spans[index], sizes[op.inputs[0]])
            for source in op.inputs:
                if sizes is None:
                    asked[source].append(op.geometry.need(spans[index]))
                else:
                    asked[source].append(op.geometry.reads(spans[index], sizes[source]))
        return tuple(spans)

    def reaches(self) -> tuple[Reach, ...]:
        """What every op's outputs read of the stage's input."""
        return self._reaches

    @cached_property
    def _reaches(self) -> tuple[Reach, ...]:
        reaches: list[Reach] = []
        for index, op in enumerate(self.ops):
            if op.geometry is None:
                reaches.append(_given(op.scale))
                continue
            branches = [_through(op.geometry, reaches[source]) for source in op.inputs]
            scales = [branch.scale for branch in branches]
            if len(set(scales)) > 1:
                raise MisalignedJoin(index, scales)
            reaches.append(_joined(branches))
        return tuple(reaches)

    @cached_property
    def period(self) -> int:
        """The number of inputs after which all wanted ops repeat."""
        reaches = self.reaches()
        return lcm(*(reaches[end].period.input for end in self.ends))

    @property
    def overlap(self) -> Overlap:
        """How far a tile of whole periods reads beyond its own inputs, for all wanted ops."""
        reaches = self.reaches()
        overlaps = [reaches[end].overlap for end in self.ends]
        return Overlap(max(each.before for each in overlaps), max(each.after for each in overlaps))

    @cached_property
    def receptive_field(self) -> int:
        """The most inputs, end to end, that any one wanted output reads."""
        reaches = self.reaches()
        return max(reaches[end].receptive_field for end in self.ends)

    @cached_property
    def scale(self) -> Fraction:
        """Samples of the output per sample of the stage's input."""
        return self.reaches()[-1].scale

    @cached_property
    def aligned(self) -> bool:
        """Whether all branches that meet have the same scale, as in every network."""
        try:
            self.reaches()
        except MisalignedJoin:
            return False
        return True

    def overlaps(self) -> tuple[Overlap, ...]:
        """For an aligned tile of the output: how far every op is needed beyond the tile's own part."""
        reaches = self.reaches()
        period = lcm(*(reach.period.input for reach in reaches))
        cores = [Span(0, int(period * reach.scale)) for reach in reaches]
        spans = self.needs({end: cores[end] for end in self.ends})
        return tuple(
            Overlap(0, 0) if span.empty else Overlap(core.start - span.start, span.stop - core.stop)
            for span, core in zip(spans, cores, strict=True)
        )

    def published_overlaps(self) -> tuple[Overlap, ...]:
        """The published recursion, op by op from the stage's output, each at that op's *input*.

        At a fork, the larger demand counts. Ops that the recursion does not cover (shuffles, pads, windows)
        are bridged by their exact map.
        """
        asked: list[list[Overlap]] = [[] for _ in self.ops]
        for end in self.ends:
            asked[end].append(Overlap(0, 0))
        at_input = [Overlap(0, 0)] * len(self.ops)
        for index in reversed(range(len(self.ops))):
            op, demands = self.ops[index], asked[index]
            if not demands:
                continue
            out = Overlap(max(d.before for d in demands), max(d.after for d in demands))
            at_input[index] = out if op.geometry is None else _step(op.geometry, out)
            for source in op.inputs:
                asked[source].append(at_input[index])
        return tuple(at_input)


@dataclass(frozen=True)
class Fault:
    """The first op that has no outputs for an input of this length, or whose inputs differ in length."""

    op: int
    given: tuple[int, ...]
    """The lengths of its inputs."""


def fault(axis: Axis, n: Lengths) -> Fault | None:
    """What prevents the axis from being computed on given maps of length `n`; None if nothing does."""
    sizes = axis.sizes(n)
    for index, op in enumerate(axis.ops):
        given = tuple(sizes[source] for source in op.inputs) or (sizes[index],)
        if sizes[index] < 1 or len(set(given)) > 1:
            return Fault(index, given)
    return None


MOST_PERIODS = 3
"""How many periods of the axis are searched for a valid length."""


def fitting(axis: Axis, n: int) -> tuple[int, ...]:
    """The nearest valid lengths below and above `n`; either may be missing."""
    far = MOST_PERIODS * max(axis.period, n)
    below = (length for length in range(n - 1, 0, -1) if fault(axis, length) is None)
    above = (length for length in range(n + 1, n + far + 1) if fault(axis, length) is None)
    return tuple(length for length in (next(below, None), next(above, None)) if length is not None)


def exact_overlap(op: Geometry, out: Overlap) -> Overlap:
    """One step of the recursion by the op's own map, for a tile of whole periods."""
    period = op.period
    tile = -(-(out.before + out.after + 1) // period.output) * period.output
    need = op.need(Span(-out.before, tile + out.after))
    return Overlap(-need.start, need.stop - tile // period.output * period.input)


def _step(op: Geometry, out: Overlap) -> Overlap:
    published = published_overlap(op, out)
    return exact_overlap(op, out) if published is None else published


def _given(scale: Fraction) -> Reach:
    """A given map: each sample stands for the samples of the stage's input that it covers."""
    period = Period(scale.denominator, scale.numerator)
    table = (Span(floor(i / scale), ceil((i + 1) / scale)) for i in range(period.output))
    return Reach(period, tuple(table))


def _through(op: Geometry, source: Reach) -> Reach:
    repeats = lcm(source.period.output, op.period.input)
    period = Period(
        repeats // source.period.output * source.period.input,
        repeats // op.period.input * op.period.output,
    )
    return Reach(period, tuple(_reach_of(op, source, output) for output in range(period.output)))


def _reach_of(op: Geometry, source: Reach, output: int) -> Span:
    need = op.need(Span(output, output + 1))
    return need if need.unbounded else hull(source.of(i) for i in range(need.start, need.stop))


def _joined(branches: Sequence[Reach]) -> Reach:
    inputs = lcm(*(branch.period.input for branch in branches))
    period = Period(inputs, int(inputs * branches[0].scale))
    return Reach(
        period,
        tuple(hull(branch.of(output) for branch in branches) for output in range(period.output)),
    )
