"""A traced stage: a DAG of ops and values in a networkx graph with typed nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import prod
from typing import Any

import networkx as nx
from torch import nn

from overlap_tool.errors import OptionError, SizeError
from overlap_tool.geometry import Geometry
from overlap_tool.geometry.axis import Axis, AxisOp, fault, fitting
from overlap_tool.geometry.layout import ROWS, Kind, Layout
from overlap_tool.geometry.walk import Reads
from overlap_tool.graph.returned import ALONE, paths
from overlap_tool.rules import Operand, Reduction, Rule, SizeArgument


@dataclass(frozen=True)
class Input:
    """A map that is given: the stage's input or, in a segment, one that was computed before.

    `scale` is its samples per sample of the stage's input, on rows and on columns.
    """

    id: str
    name: str
    layout: Layout
    scale: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))

    @property
    def channels(self) -> int:
        """Numbers per image and position."""
        return prod(self.layout.channels)


@dataclass(frozen=True)
class Constant:
    """A value that does not depend on the input: a weight, or something computed from weights.

    `source` is the dotted name of a parameter or buffer; without one, `target` is called on the arguments.
    """

    id: str
    source: str | None = None
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """One op with its rule. `args` and `kwargs` hold an `Operand` for every tensor."""

    id: str
    name: str
    kind: str
    target: Any
    """What the model calls: a module, a function, or a method's name."""
    rule: Rule
    layout: Layout
    """The layout of the model's own result."""
    inputs: tuple[str, ...]
    """The ops that feed it, in order, without weights."""
    in_place: bool
    """Whether the model computes it in place; here its result is a tensor of its own."""
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def channels(self) -> int:
        """Numbers per image and position."""
        return prod(self.layout.channels)


@dataclass(frozen=True)
class Barrier:
    """An op that needs the whole map `source`, and reduces it to a value without rows and columns."""

    id: str
    name: str
    kind: str
    target: Any
    rule: Reduction
    source: str
    numbers: int
    """How many numbers its value has per image."""
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """A value that depends on the input through barriers alone.

    It is computed whole, once per run, by what the model itself calls; it is never cut, so no rule is needed.
    """

    id: str
    target: Any
    numbers: int
    """How many numbers it has per image."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Node = Input | Constant | Op | Barrier | Summary


def maps_read(node: Node) -> tuple[str, ...]:
    """The maps that a node reads, as maps."""
    return node.inputs if isinstance(node, Op) else (node.source,) if isinstance(node, Barrier) else ()


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested arguments that is not itself nested, in order."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    elif isinstance(value, slice):
        yield from leaves([value.start, value.stop, value.step])
    else:
        yield value


def substituted(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """Nested arguments with everything of this kind replaced by the result of `by`."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, tuple):
        return tuple([substituted(item, kind, by) for item in value])
    if isinstance(value, list):
        return [substituted(item, kind, by) for item in value]
    if isinstance(value, dict):
        return {key: substituted(item, kind, by) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(substituted(end, kind, by) for end in (value.start, value.stop, value.step)))
    return value


def at_trial(argument: Any, trial: int = 0) -> Any:
    """Nested arguments with the values that numbers have at one of the traced sizes."""
    return substituted(argument, SizeArgument, lambda size: size.values[trial])


def operands(value: Any) -> Iterator[Operand]:
    """All operands in nested arguments, in order."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Operand))


@dataclass(frozen=True)
class Shifted:
    """The ops between a roll and the roll that undoes it."""

    roll: Op
    back: Op
    inside: tuple[str, ...]
    """The ops on the rolled map, the roll itself first."""


@dataclass(frozen=True)
class Network:
    """A stage as a graph: nodes are ids with a `Node` as their attribute `op`, in computation order; edges
    are data flow.

    `kept` are wanted maps beside the output: those that a stage returns, too, or that later segments read.
    """

    name: str
    graph: nx.DiGraph
    output: str
    root: nn.Module
    kept: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    """The maps and summaries that a stage returns, in the order of their places in `returns`."""
    returns: Any = ALONE
    parts_whole: frozenset[str] = frozenset()
    """The paths of parts that the model's own code runs on whole maps."""
    shifted: tuple[Shifted, ...] = ()
    """The shifted windows, whose rolls pad the map instead of wrapping around the opposite border."""
    asks: bool = False
    """Whether the code reads the size of its input, so that this network holds for images of one size."""
    of_squares: bool = False
    """Whether the code takes only images whose height and width are equal."""
    left: Mapping[str, Any] = field(default_factory=dict)
    """The numbers that its code leaves in attributes for an image of this size, by name."""
    of_sizes: dict[tuple[int, int, int], Network] = field(default_factory=dict, compare=False, repr=False)
    """Networks for images of other sizes, as far as they were traced."""
    of_depths: dict[int, Network] = field(default_factory=dict, compare=False, repr=False)
    """Networks for volumes of other depths."""
    passes: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What a pass over the network has left for the next one."""

    @cached_property
    def nodes(self) -> dict[str, Node]:
        return dict(self.graph.nodes(data="op"))

    @cached_property
    def ops(self) -> tuple[Input | Op, ...]:
        """The ops that carry a map, in topological order: the output is last."""
        return tuple(op for op in self.nodes.values() if isinstance(op, Input | Op))

    @cached_property
    def index(self) -> dict[str, int]:
        """The position of each op in `ops`."""
        return {op.id: i for i, op in enumerate(self.ops)}

    @cached_property
    def reads(self) -> tuple[Reads, ...]:
        """For each of `ops`, what feeds it and who reads it last; a barrier's reads count as those of the op
        before."""
        last: dict[str, int] = {}
        latest = 0
        for node in self.nodes.values():
            latest = self.index[node.id] if isinstance(node, Op) else latest
            last.update(dict.fromkeys(maps_read(node), latest))
        inputs = [tuple(self.index[i] for i in maps_read(op)) for op in self.ops]
        lasts = [last.get(op.id) for op in self.ops]
        return tuple(
            Reads(read, lasts[op], tuple(source for source in read if lasts[source] == op))
            for op, read in enumerate(inputs)
        )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The maps that it is computed for, the output last."""
        return (*self.kept, self.output)

    @cached_property
    def constants(self) -> tuple[Constant, ...]:
        return tuple(op for op in self.nodes.values() if isinstance(op, Constant))

    @cached_property
    def barriers(self) -> tuple[Barrier, ...]:
        return tuple(op for op in self.nodes.values() if isinstance(op, Barrier))

    @cached_property
    def wholes(self) -> tuple[Op, ...]:
        """The ops that the model's own code runs on whole maps, between two passes."""
        return tuple(op for op in self.ops if isinstance(op, Op) and op.rule.whole)

    def is_whole(self, id: str) -> bool:
        node = self.nodes[id]
        return isinstance(node, Op) and node.rule.whole

    @property
    def need_whole_maps(self) -> tuple[Barrier | Op, ...]:
        """The nodes that need whole maps, and so end a pass."""
        return (*self.barriers, *self.wholes)

    @cached_property
    def beforehand(self) -> tuple[Summary, ...]:
        """The summaries that need no barrier, being made of the number of images alone."""
        later: set[str] = set()
        for id, node in self.nodes.items():
            read = (
                {operand.id for operand in operands((node.args, node.kwargs))}
                if isinstance(node, Summary)
                else set()
            )
            if isinstance(node, Barrier) or not later.isdisjoint(read):
                later.add(id)
        return tuple(node for id, node in self.nodes.items() if isinstance(node, Summary) and id not in later)

    @cached_property
    def rows(self) -> Axis:
        return self._axis([None if isinstance(op, Input) else op.rule.rows for op in self.ops], 0)

    @cached_property
    def columns(self) -> Axis:
        return self._axis([None if isinstance(op, Input) else op.rule.columns for op in self.ops], 1)

    def accepts(self, height: int, width: int) -> bool:
        """Whether the stage can compute a map of this size: every op has outputs, and joined maps have equal
        sizes."""
        return all(fault(axis, n) is None for axis, n in ((self.rows, height), (self.columns, width)))

    def require(self, height: int, width: int) -> None:
        """Raise for a map of a size that the stage cannot compute, naming the nearest sizes that it can."""
        for axis, n, lines in ((self.rows, height, "rows"), (self.columns, width, "columns")):
            found = fault(axis, n)
            if found is None:
                continue
            op = self.ops[found.op]
            given = " and ".join(map(str, dict.fromkeys(found.given)))
            verb = "joins maps of" if len(set(found.given)) > 1 else "cannot be computed on"
            here = "" if found.given == (n,) else f", which {n} {lines} of the stage's input come to here"
            instead = fitting(axis, n)
            raise SizeError(
                f"{op.name} ({op.kind})" if isinstance(op, Op) else op.name,
                f"{verb} {given} {lines}{here}",
                f"Use {' or '.join(map(str, instead))} {lines}"
                if instead
                else f"No number of {lines} near {n} works: use another stage",
            )

    @property
    def takes(self) -> Kind | None:
        """The kind of map that it takes; None if no layer takes such an input."""
        return self.ops[0].layout.kind

    @property
    def takes_sound(self) -> bool:
        """Whether its input has one axis, and so is a map of one row."""
        return ROWS in self.ops[0].layout.missing

    @property
    def depth(self) -> int | None:
        """The depth of its volumes."""
        return self.ops[0].layout.channels[-1] if self.takes == "volume" else None

    def require_image(self, where: str) -> None:
        """Raise unless the stage takes an image."""
        if self.takes != "image":
            raise OptionError(
                where,
                f"takes {'sound' if self.takes_sound else 'a volume'}, and here images are read",
                "Use overlap-tool run in one process, or overlap_tool.wrap in Python",
            )

    def require_one_map(self, where: str) -> None:
        """Raise unless the stage returns a single map of the kind of its input, so that it can be written to
        a file."""
        alone = set(self.results) == {self.output}
        if not alone or self.takes is None or self.takes != self.ops[-1].layout.kind:
            named = ", ".join(filter(None, paths(self.returns))) or ("other axes" if alone else "no map")
            raise OptionError(
                where,
                f"returns {named}, and one map is to be written",
                "Wrap a module that returns one map",
            )

    @property
    def has_spatial_context(self) -> bool:
        return bool(self.need_whole_maps) or any(isinstance(op, Op) and not op.rule.local for op in self.ops)

    def _axis(self, geometries: list[Geometry | None], dim: int) -> Axis:
        return Axis(
            tuple(
                AxisOp(geometry, (), op.scale[dim])
                if isinstance(op, Input)
                else AxisOp(geometry, tuple(self.index[i] for i in op.inputs))
                for op, geometry in zip(self.ops, geometries, strict=True)
            ),
            tuple(self.index[kept] for kept in self.kept),
        )
