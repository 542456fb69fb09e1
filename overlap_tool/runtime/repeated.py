"""Computes tiles that are alike by replaying a recording of one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.plan import AxisPlan, Step, form_of
from overlap_tool.graph.network import Input, Network, Op
from overlap_tool.kernels.recording import Recorder
from overlap_tool.kernels.tape import Rooms, Tape, copied_alike, is_right, is_tried, tape_of
from overlap_tool.rules.mode import computes_first
from overlap_tool.rules.placing import placed
from overlap_tool.runtime.conditions import Conditions

WORTH = {"cpu": 6, "cuda": 1}
"""How many replays save more than recording costs. On the CPU, a recording and its trial take as long
as five or six replays save, of tiles with much work and with little."""


Taken = Literal["read", "place", "left", "above"]
"""What a tile takes: a piece of a map, a value at its place, or what the tiles to the left and above kept."""

Strided = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]
"""A tensor's shape, strides, type and device."""


@dataclass
class Script:
    """The inputs and outputs of a tile, op by op, in the order of its tape."""

    recorder: Recorder = field(default_factory=Recorder)
    takes: list[tuple[Taken, int]] = field(default_factory=list)
    aboves: dict[int, Strided] = field(default_factory=dict)
    leaves: list[tuple[Literal["write", "left"], int]] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    """The inputs, and copies of those that may be written to."""
    found: list[Tensor] = field(default_factory=list)
    tries: bool = False
    """Whether the tape is to be tried: only then are the tensors kept."""

    def take(self, what: Taken, op: int, tensor: Tensor) -> None:
        if (what, op) not in self.takes:
            self.takes.append((what, op))
            if self.tries:
                self.given.append(tensor)
                with self.recorder.paused():  # nothing is written to what is read
                    self.before.append(tensor if what == "read" else copied_alike(tensor))
            self.recorder.gives(tensor)

    def leave(self, what: Literal["write", "left"], op: int, tensor: Tensor) -> None:
        self.leaves.append((what, op))
        if self.tries:
            self.found.append(tensor)
        self.recorder.returns(tensor)


@dataclass(frozen=True)
class Replayed:
    """A tape, with its inputs and outputs."""

    tape: Tape
    takes: Sequence[tuple[Taken, int]]
    aboves: Mapping[int, Strided]
    """The buffers for the next band, of which a tile takes a part."""
    leaves: Sequence[tuple[Literal["write", "left"], int]]


class Repeats:
    """The recordings of a network's tiles, valid in one pass or under the same conditions."""

    def __init__(self, conditions: Conditions, worth: int) -> None:
        self.conditions, self._worth, self.rooms = conditions, worth, Rooms()
        self._numbers: tuple[dict[object, int], dict[object, int]] = {}, {}
        self._forms: dict[int, int] = {}
        self._left: dict[tuple[int, int], int] = {}
        self._before: set[tuple[int, int]] = set()
        """Forms of earlier passes. Those that occur again are expected in many more."""
        self._started = False
        self._recorded: set[tuple[int, int]] = set()
        self._constants: dict[Any, Tensor] = {}
        self._untried: dict[tuple[int, int], Replayed] = {}
        self.known: dict[tuple[int, int], Replayed] = {}

    def begin(self, network: Network, rows: AxisPlan, groups: Sequence[Sequence[Step]]) -> None:
        """Begin a pass, in which each group of columns is computed together."""
        self._before.update(self._left)
        self._forms.clear()
        given = {at for at, op in enumerate(network.ops) if is_placed(op)}
        axes = (network.rows, [[step] for step in rows.steps]), (network.columns, groups)
        down, across = (self._counted(*each, given, n) for each, n in zip(axes, self._numbers, strict=True))
        self._left = {(a, b): n * m for a, n in down.items() for b, m in across.items()}

    def _counted(
        self, axis: Axis, groups: Sequence[Sequence[Step]], given: set[int], numbers: dict[object, int]
    ) -> Counter[int]:
        for step, *others in groups:
            form = form_of(axis, step, given), _kept(step), len(others)
            self._forms[id(step)] = numbers.setdefault(form, len(numbers))
        return Counter(self._forms[id(step)] for step, *_ in groups)

    def form(self, row: Step, column: Step) -> tuple[int, int]:
        return self._forms[id(row)], self._forms[id(column)]

    def script(self, form: tuple[int, int]) -> Script | None:
        """The script of tiles that are to be recorded; None for any others."""
        if form in self._untried:
            return Script(tries=True)
        self._left[form] -= 1
        first, self._started = not self._started, True
        if first or form in self._recorded:  # the first tile of all tries kernels and packs weights
            return None
        if form not in self._before and self._left[form] < self._worth:
            return None
        self._recorded.add(form)
        return Script()

    def keep(self, form: tuple[int, int], script: Script) -> None:
        replayed = self._untried.pop(form, None)
        if replayed is not None:
            # the tape is tried on another tile, which reveals any dependence on the first one's numbers
            if (script.takes, script.leaves) == (replayed.takes, replayed.leaves) and is_right(
                replayed.tape, script.before, script.given, script.found
            ):
                self.known[form] = replayed
            return
        tape = tape_of(script.recorder, self._constants, self.rooms)
        if tape is None:
            return
        replayed = Replayed(tape, script.takes, script.aboves, script.leaves)
        if not is_tried(tape):
            self._untried[form] = replayed
        elif is_right(tape):
            self.known[form] = replayed


def is_placed(op: Input | Op) -> TypeGuard[Op]:
    """Whether an op gives a value at its place, such as a mask of windows. It is an input of a tape, so that
    tiles at any place replay it."""
    return isinstance(op, Op) and op.target is placed


def repeats(
    network: Network,
    rows: AxisPlan,
    groups: Sequence[Sequence[Step]],
    corner: Tensor,
    conditions: Conditions,
) -> Repeats | None:
    """The recordings for a pass; None if tiles are not recorded. `corner` is a piece of a map."""
    worth = None if isinstance(corner, FakeTensor) else WORTH.get(corner.device.type)
    if worth is None or corner.ndim > 4 or not computes_first():
        return None  # a replayed tile of a volume holds more than is predicted
    # a pass takes the recordings with it, so that no two passes replay a tape at the same time
    found: Repeats | None = network.passes.pop(LAST, None)
    if found is not None and found.conditions.hold_for(conditions):
        found.begin(network, rows, groups)
        return found
    found = Repeats(conditions, worth)
    found.begin(network, rows, groups)
    conditions.note()
    return found


def keep_for_another_pass(network: Network, found: Repeats) -> None:
    found.rooms.release()
    if found.conditions.are_noted:
        network.passes[LAST] = found


LAST = "last"


def _kept(step: Step) -> tuple[tuple[int, ...], ...]:
    return tuple(
        (compute.start - hold.start, compute.length, hold.length, keep.start - hold.start, keep.length)
        for compute, hold, keep in zip(step.compute, step.hold, step.keep, strict=True)
    )
