"""The integer maps of single ops on one axis: which inputs feed which outputs. Pure integers, no torch.

An op on one axis answers four questions: how long its output is (`size`), which inputs a span of outputs
reads (`need`), what stands outside the image (`padding`), and at which shift its behaviour repeats
(`period`). Coordinates are unclipped: below 0 or past the end lies the op's own padding, and `inside` maps a
span there to real samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

FAR = 1 << 60
"""Stands for infinity in the span of a global op: no image, and no product of strides, comes near it."""


class Span(NamedTuple):
    """A half-open interval `[start, stop)` of rows or columns."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return max(0, self.stop - self.start)

    @property
    def empty(self) -> bool:
        return self.stop <= self.start

    @property
    def unbounded(self) -> bool:
        # strides divide or multiply FAR, so anything of its order means "everything"
        return self.stop - self.start > FAR >> 20

    def shift(self, by: int) -> Span:
        return Span(self.start + by, self.stop + by)

    def within(self, other: Span) -> Span:
        """The intersection with another span; empty if they have nothing in common."""
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))

    def clip(self, n: int) -> Span:
        """The part inside `[0, n)`; if there is none, empty at the nearer end."""
        start = min(max(self.start, 0), n)
        return Span(start, max(start, min(self.stop, n)))


def hull(spans: Iterable[Span]) -> Span:
    """The smallest span that covers all nonempty spans: what a join needs."""
    covered = [span for span in spans if not span.empty]
    if not covered:
        return Span(0, 0)
    return Span(min(span.start for span in covered), max(span.stop for span in covered))


class Padding(Enum):
    """What stands outside the image."""

    CONSTANT = "constant"
    REFLECT = "reflect"
    REPLICATE = "replicate"
    CIRCULAR = "circular"
    CLAMP = "clamp"
    """There is no padding: the op's window shrinks at the border."""

    def accepts(self, before: int, after: int, n: int) -> bool:
        """Whether `n` samples suffice for this padding; a roll, which pads by a crop, needs none."""
        if self is Padding.REFLECT:
            return max(before, after) < n
        return self is not Padding.CIRCULAR or min(before, after) < 0 or max(before, after) <= n

    def inside(self, span: Span, n: int) -> Span:
        """The real samples of `[0, n)` that `span` reads; samples outside are made of some of them."""
        if 0 <= span.start < span.stop <= n:
            return span
        parts = [span.clip(n)]
        before = Span(span.start, min(span.stop, 0))
        after = Span(max(span.start, n), span.stop)
        if self is Padding.REPLICATE:
            parts += [Span(0, 1)] if not before.empty else []
            parts += [Span(n - 1, n)] if not after.empty else []
        elif self is Padding.REFLECT:
            parts += [Span(1 - before.stop, 1 - before.start)] if not before.empty else []
            parts += [Span(2 * n - 1 - after.stop, 2 * n - 1 - after.start)] if not after.empty else []
        elif self is Padding.CIRCULAR:
            parts += [_wrapped(part, n) for part in (before, after)]
        covered = hull(parts)
        return parts[0] if covered.empty else covered.clip(n)

    def source(self, index: int, n: int) -> int | None:
        """The real sample behind coordinate `index`, or None for a constant or nothing."""
        if 0 <= index < n:
            return index
        if self is Padding.REPLICATE:
            return 0 if index < 0 else n - 1
        if self is Padding.REFLECT:
            return -index if index < 0 else 2 * (n - 1) - index
        if self is Padding.CIRCULAR:
            return index % n
        return None


def _wrapped(span: Span, n: int) -> Span:
    """The hull of the samples of `[0, n)` that a span outside it wraps around to."""
    first = span.shift(span.start // n * -n)
    return first if first.stop <= n else Span(0, n)


class Period(NamedTuple):
    """Shifting the input by `input` samples shifts the output by `output` and changes nothing else."""

    input: int
    output: int


class Geometry(ABC):
    """One op on one axis."""

    by_place = False
    """Whether the op's result depends on where its outputs lie on the axis."""

    @property
    def padding(self) -> Padding:
        return Padding.CLAMP

    @property
    @abstractmethod
    def period(self) -> Period: ...

    @abstractmethod
    def size(self, n: int) -> int:
        """Output length for input length `n`; 0 or less where the op itself refuses such an input."""

    @abstractmethod
    def need(self, outputs: Span) -> Span:
        """The inputs that `outputs`, not empty, read: the tight hull, unclipped. Empty if they read none."""

    @abstractmethod
    def begins(self, start: int) -> int:
        """The coordinate of the first output of a run, without padding, on the inputs from `start` on."""

    def reads(self, outputs: Span, n: int) -> Span:
        """The real samples of an input of length `n` that `outputs` read."""
        if outputs.empty:
            return Span(0, 0)
        return self.padding.inside(self.need(outputs), n)

    def together(self, outputs: Span, n: int) -> Span:
        """The outputs that the op computes when asked for `outputs`: those, or more if they only come in
        groups."""
        return outputs


@dataclass(frozen=True)
class Patch:
    """Where a piece lies on one axis."""

    out: Span
    """The outputs that are asked for."""
    need: Span
    """The inputs that they read, unclipped."""
    have: Span
    """The samples that the piece holds: all real ones that `need` reads. Beyond the image, as in tiles of one
    shape, it may hold anything."""
    n: int
    """The length of the whole input."""

    def moved(self, out: int, by: int) -> Patch:
        """The same patch at another place: outputs shifted by `out`, inputs by `by`."""
        return Patch(self.out.shift(out), self.need.shift(by), self.have.shift(by), self.n)

    @property
    def complete(self) -> bool:
        """Whether the piece is exactly what is needed, all of it inside the image."""
        return self.need == self.have and self.inside

    @property
    def inside(self) -> bool:
        """Whether the piece holds samples of the image only."""
        return self.have.start >= 0 and self.have.stop <= self.n


def patch(op: Geometry, out: Span, n: int) -> Patch:
    """What a piece of an input of length `n` must be, for `op` to compute `out`, which is not empty."""
    return Patch(out, op.need(out), op.reads(out, n), n)


@dataclass(frozen=True)
class Window(Geometry):
    """Convolution and pooling: output `a` reads the inputs `a*stride - before + dilation*j`, `j < kernel`.

    With `ceil`, a last window may extend past the end, as with pooling's ceil_mode. Taps in `closed` are
    masked; the first and the last never are.

    >>> Window(kernel=5, stride=2, before=2, after=2).need(Span(10, 20))
    Span(start=18, stop=41)
    """

    kernel: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    outside: Padding = Padding.CONSTANT
    ceil: bool = False
    closed: frozenset[int] = frozenset()

    @property
    def padding(self) -> Padding:
        return self.outside

    @property
    def period(self) -> Period:
        return Period(self.stride, 1)

    @property
    def extent(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def size(self, n: int) -> int:
        if not self.outside.accepts(self.before, self.after, n):
            return 0
        room = n + self.before + self.after - self.extent
        if not self.ceil:
            return room // self.stride + 1
        size = -(-room // self.stride) + 1
        # torch drops a last window that would start past the input and its left padding
        return size - 1 if (size - 1) * self.stride >= n + self.before else size

    def need(self, outputs: Span) -> Span:
        first = outputs.start * self.stride - self.before
        last = (outputs.stop - 1) * self.stride - self.before
        return Span(first, last + self.extent)

    def reads(self, outputs: Span, n: int) -> Span:
        need = self.need(outputs)
        if not outputs.empty and need.start >= 0 and need.stop <= n:
            return need
        dense = self.dilation == 1 and self.kernel >= self.stride and not self.closed
        if dense or outputs.empty:
            return super().reads(outputs, n)
        # tap by tap, since at a border the outermost real sample of the hull may lie between two taps
        spans = []
        for tap in (self.dilation * j - self.before for j in range(self.kernel) if j not in self.closed):
            inside, after = (-((tap - edge) // self.stride) for edge in (0, n))
            for part in (
                Span(outputs.start, min(outputs.stop, inside)),
                Span(max(outputs.start, inside), min(outputs.stop, after)),
                Span(max(outputs.start, after), outputs.stop),
            ):
                for output in (part.start, part.stop - 1) if not part.empty else ():
                    sample = self.padding.source(output * self.stride + tap, n)
                    spans += [] if sample is None else [Span(sample, sample + 1)]
        return hull(spans)

    def begins(self, start: int) -> int:
        return -(-(start + self.before) // self.stride)

    def masked(self, taps: Collection[int]) -> Window:
        """The same op with all taps but these masked."""
        first, last = min(taps), max(taps)
        return Window(
            kernel=last - first + 1,
            stride=self.stride,
            before=self.before - first * self.dilation,
            after=self.after - (self.kernel - 1 - last) * self.dilation,
            dilation=self.dilation,
            outside=self.outside,
            ceil=self.ceil,
            closed=frozenset(range(last - first + 1)) - {tap - first for tap in taps},
        )


POINTWISE = Window(1)


@dataclass(frozen=True)
class Everything(Geometry):
    """Every output reads the whole map, and there are as many outputs as inputs."""

    @property
    def period(self) -> Period:
        return Period(1, 1)

    def size(self, n: int) -> int:
        return n

    def need(self, outputs: Span) -> Span:
        return Span(-FAR, FAR)

    def begins(self, start: int) -> int:
        return start


class _AtItsPlace(Window):
    by_place = True


AT_ITS_PLACE = _AtItsPlace(1)
"""A pointwise op whose result depends on the position of each output."""


@dataclass(frozen=True)
class Transposed(Geometry):
    """Transposed convolution: input `i` feeds the outputs `i*stride - trim + dilation*j`, `j < kernel`.

    `trim` is torch's padding, `extra` its output_padding.
    """

    kernel: int
    stride: int = 1
    trim: int = 0
    extra: int = 0
    dilation: int = 1

    @property
    def period(self) -> Period:
        return Period(1, self.stride)

    def size(self, n: int) -> int:
        return (n - 1) * self.stride - 2 * self.trim + self.dilation * (self.kernel - 1) + self.extra + 1

    def need(self, outputs: Span) -> Span:
        if self._dense and not outputs.empty:
            first, last = outputs.start + self.trim, outputs.stop - 1 + self.trim
            return Span(-(-(first - self.kernel + 1) // self.stride), last // self.stride + 1)
        return hull(self._taps(outputs))

    def reads(self, outputs: Span, n: int) -> Span:
        if self._dense and not outputs.empty:
            return hull([self.need(outputs).clip(n)])
        return hull(tap.clip(n) for tap in self._taps(outputs))

    @property
    def _dense(self) -> bool:
        """Whether every output is fed, by adjacent inputs."""
        return self.dilation == 1 and self.kernel >= self.stride

    def _taps(self, outputs: Span) -> Iterator[Span]:
        """Tap by tap: with kernel < stride, or with dilation, few taps or none feed some outputs."""
        first, last = outputs.start + self.trim, outputs.stop - 1 + self.trim
        for tap in range(0, self.dilation * self.kernel, self.dilation):
            yield Span(-(-(first - tap) // self.stride), (last - tap) // self.stride + 1)

    def begins(self, start: int) -> int:
        return start * self.stride - self.trim


@dataclass(frozen=True)
class Expand(Geometry):
    """Every input becomes `factor` outputs: pixel shuffle, and nearest upsampling by an integer."""

    factor: int

    @property
    def period(self) -> Period:
        return Period(1, self.factor)

    def size(self, n: int) -> int:
        return n * self.factor

    def need(self, outputs: Span) -> Span:
        return Span(outputs.start // self.factor, -(-outputs.stop // self.factor))

    def begins(self, start: int) -> int:
        return start * self.factor


@dataclass(frozen=True)
class Shrink(Geometry):
    """Every `factor` inputs become one output, with no remainder: pixel unshuffle."""

    factor: int

    @property
    def period(self) -> Period:
        return Period(self.factor, 1)

    def size(self, n: int) -> int:
        return 0 if n % self.factor else n // self.factor

    def need(self, outputs: Span) -> Span:
        return Span(outputs.start * self.factor, outputs.stop * self.factor)

    def begins(self, start: int) -> int:
        return -(-start // self.factor)


@dataclass(frozen=True)
class Linear(Geometry):
    """Linear interpolation with half-pixel centres, by `up` or by `1/down`; one of them is 1.

    Output `a` lies at `(a + 1/2)*down/up - 1/2` and reads the sample below and the one above, or the one that
    it falls on. Past the border the nearest sample is repeated.
    """

    up: int = 1
    down: int = 1

    @property
    def padding(self) -> Padding:
        return Padding.REPLICATE

    @property
    def period(self) -> Period:
        return Period(self.down, self.up)

    def size(self, n: int) -> int:
        return n * self.up // self.down

    def need(self, outputs: Span) -> Span:
        unit = 2 * self.up
        first = (2 * outputs.start + 1) * self.down - self.up
        last = (2 * outputs.stop - 1) * self.down - self.up
        return Span(first // unit, -(-last // unit) + 1)

    def begins(self, start: int) -> int:
        return -(-start * self.up // self.down)


@dataclass(frozen=True)
class Pad(Geometry):
    """An explicit pad; negative amounts crop. A roll is a circular pad at one end and a crop at the other."""

    before: int = 0
    after: int = 0
    outside: Padding = Padding.CONSTANT

    @property
    def padding(self) -> Padding:
        return self.outside

    @property
    def period(self) -> Period:
        return Period(1, 1)

    def size(self, n: int) -> int:
        return n + self.before + self.after if self.outside.accepts(self.before, self.after, n) else 0

    def need(self, outputs: Span) -> Span:
        return outputs.shift(-self.before)

    def begins(self, start: int) -> int:
        return start + self.before


def roll(shift: int) -> Pad:
    """`torch.roll` by `shift`: what leaves at one end enters at the other."""
    return Pad(shift, -shift, Padding.CIRCULAR)


class Overlap(NamedTuple):
    """How far beyond its own samples a tile reads, before and after it on one axis."""

    before: int
    after: int


def published_overlap(op: Geometry, out: Overlap) -> Overlap | None:
    """One step of the published recursion (Kim et al., CVPR 2026), from an op's output to its input.

    It is stated for convolutions with "same" padding and transposed ones with output padding stride - 1, for
    a tile aligned to the stride. None for ops that it does not cover.
    """
    left, right = out
    if isinstance(op, Window):
        k, s = op.extent, op.stride
        h = (k - 1) // 2
        return Overlap(s * left + h, s * right + max(0, (k - 1 - h) - (s - 1)))
    if isinstance(op, Transposed):
        k, s = op.dilation * (op.kernel - 1) + 1, op.stride
        h = (k - 1) // 2
        return Overlap((left + h) // s, (right + (k - 1 - h) + (s - 1)) // s)
    return None


def padding_free_overlap(receptive_field: int, scale: int) -> int:
    """The bound of Continuous Patch Stitching (Zhang et al., eq. 4) on the overlap of two input patches."""
    r, rho = receptive_field, scale
    return r - rho if r % rho == 0 else rho * (r // rho)


def brought_up(n: int, multiple: int) -> tuple[int, int]:
    """The padding before and after an image of `n` samples, up to a multiple: half on either side, and an odd
    sample after it, as in CompressAI's `compute_padding`."""
    missing = -n % multiple
    return missing // 2, missing - missing // 2
