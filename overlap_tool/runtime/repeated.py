"""Tiles that do the same as one before, by what was recorded of that one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.plan import AxisPlan, Step, form_of
from overlap_tool.graph.network import Network, Op
from overlap_tool.kernels.mode import computes_first
from overlap_tool.kernels.recording import Recorder
from overlap_tool.kernels.tape import Rooms, Tape, copied_alike, is_right, is_tried, tape_of

WORTH = {"cpu": 10_000_000_000, "cuda": 0}
"""Multiply-accumulates of such tiles together below which recording one takes longer than it saves."""


@dataclass
class Script:
    """What a tile takes and leaves, op by op, in the order in which its tape has it."""

    recorder: Recorder = field(default_factory=Recorder)
    takes: list[tuple[Literal["read", "left", "above"], int]] = field(default_factory=list)
    leaves: list[tuple[Literal["write", "left"], int]] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    """Copies of what was given."""
    found: list[Tensor] = field(default_factory=list)
    tries: bool = False
    """Whether the tape is tried: only then are the tensors kept."""

    def take(self, what: Literal["read", "left", "above"], op: int, tensor: Tensor) -> None:
        if (what, op) not in self.takes:
            self.takes.append((what, op))
            if self.tries:
                self.given.append(tensor)
                with self.recorder.paused():
                    self.before.append(copied_alike(tensor))
            self.recorder.gives(tensor)

    def leave(self, what: Literal["write", "left"], op: int, tensor: Tensor) -> None:
        self.leaves.append((what, op))
        if self.tries:
            self.found.append(tensor)
        self.recorder.returns(tensor)


@dataclass(frozen=True)
class Played:
    """A tape, and what it takes and leaves."""

    tape: Tape
    takes: Sequence[tuple[Literal["read", "left", "above"], int]]
    leaves: Sequence[tuple[Literal["write", "left"], int]]


class Repeats:
    """Of the tiles of a pass, those that do the same."""

    def __init__(self, network: Network, rows: AxisPlan, columns: AxisPlan, worth: int) -> None:
        self._network, self._worth, self.rooms = network, worth, Rooms()
        self._forms: dict[int, int] = {}
        counts = [self._numbered(*each) for each in ((network.rows, rows), (network.columns, columns))]
        self._left = {(a, b): n * m for a, n in counts[0].items() for b, m in counts[1].items()}
        self._started = False
        self._recorded: set[tuple[int, int]] = set()
        self._constants: dict[Any, Tensor] = {}
        self._untried: dict[tuple[int, int], Played] = {}
        self.known: dict[tuple[int, int], Played] = {}

    def _numbered(self, axis: Axis, plan: AxisPlan) -> Counter[int]:
        numbers: dict[object, int] = {}
        for step in plan.steps:
            self._forms[id(step)] = numbers.setdefault((form_of(axis, step), _kept(step)), len(numbers))
        return Counter(self._forms[id(step)] for step in plan.steps)

    def form(self, row: Step, column: Step) -> tuple[int, int]:
        return self._forms[id(row)], self._forms[id(column)]

    def script(self, row: Step, column: Step) -> Script | None:
        """Of a tile that is to be recorded."""
        form = self.form(row, column)
        if form in self._untried:
            return Script(tries=True)
        left = self._left[form] = self._left[form] - 1
        first, self._started = not self._started, True
        if first or form in self._recorded:  # by the first tile of all, kernels are tried and weights packed
            return None
        self._recorded.add(form)
        return Script() if left > 0 and left * self._macs(row, column) >= self._worth else None

    def _macs(self, row: Step, column: Step) -> int:
        return sum(
            op.rule.macs * down.length * across.length
            for op, down, across in zip(self._network.ops, row.compute, column.compute, strict=True)
            if isinstance(op, Op)
        )

    def keep(self, form: tuple[int, int], script: Script) -> None:
        played = self._untried.pop(form, None)
        if (
            played is not None
        ):  # it is tried on another tile: what hangs on the numbers of the first one shows
            if (script.takes, script.leaves) == (played.takes, played.leaves) and is_right(
                played.tape, script.before, script.given, script.found
            ):
                self.known[form] = played
            return
        tape = tape_of(script.recorder, self._constants, self.rooms)
        if tape is None:
            return
        played = Played(tape, script.takes, script.leaves)
        if not is_tried(tape):
            self._untried[form] = played
        elif is_right(tape):
            self.known[form] = played


def repeats(network: Network, rows: AxisPlan, columns: AxisPlan, corner: Tensor) -> Repeats | None:
    """Nothing where tiles are not recorded. The corner of a map shows where it is."""
    worth = None if isinstance(corner, FakeTensor) else WORTH.get(corner.device.type)
    if worth is None or not computes_first():
        return None
    return Repeats(network, rows, columns, worth)


def _kept(step: Step) -> tuple[tuple[int, ...], ...]:
    return tuple(
        (compute.start - hold.start, compute.length, hold.length, keep.start - hold.start, keep.length)
        for compute, hold, keep in zip(step.compute, step.hold, step.keep, strict=True)
    )
