"""`trace`: from a module to a network.

Most code computes the same way on images of any size. Its network is traced once, at two sizes together. Code
that reads the size of its input, to pad to a multiple or to assert something, is traced with plain numbers
instead: the result holds for images of one size, and `fitted` traces again for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import add
from typing import Any

from torch import fx, nn

from overlap_tool.errors import SizeDependenceError, TraceError
from overlap_tool.geometry.layout import ROWS, Layout, MapSize
from overlap_tool.graph.aftermath import Aftermath, with_attributes
from overlap_tool.graph.copying import modes, put_in_modes, twin, with_own_forward
from overlap_tool.graph.explaining import explained
from overlap_tool.graph.functional import functionalise
from overlap_tool.graph.lowering import check_sizes, lowered
from overlap_tool.graph.network import Network
from overlap_tool.graph.pairing import are_the_same, pair_traces
from overlap_tool.graph.randomness import OwnRandomness
from overlap_tool.graph.replacing import ONE_AT_A_TIME
from overlap_tool.graph.tracer import (
    DEPTH,
    FITTING,
    SMALLER,
    TRIALS,
    VALUES_ARE_READ,
    TooLargeError,
    Tracer,
    TrialError,
    fitting_to,
)
from overlap_tool.graph.values import UnmaskedRoll, check_values

_STEP = 3 * FITTING  # also divisible by nine; maps this large are never computed
_WIDER, _HIGHER = (1, _STEP, 3 * _STEP), (1, 3 * _STEP, _STEP)
APART = (_WIDER, _HIGHER, (1, 2520, 7560), (1, 256, 768), (1, 60, 180), (0, 8, 24), (0, 8, 8))
"""Differences in images, rows and columns to the second size, tried in order to see what follows the size.

First multiples of many numbers, since code pads and asserts by remainders, and so that either side is the
longer one; then small ones, since code compares with numbers, too.
"""

SQUARE: MapSize = (2, FITTING, FITTING)
"""For code that takes the square root of the number of positions as the height."""

ROUNDS = 4
"""How often a module is traced, each time with more parts kept whole, before it is refused."""

KEPT = 32
"""How many networks for other sizes, or depths, are cached."""


def trace(module: nn.Module, name: str, layout: Layout | int | None = None) -> Network:
    """The network of a module that takes one map and returns one.

    `layout` is the map's layout, or the number of channels of an image; by default it is derived from the
    module's layers. Only one thread traces at a time.
    """
    if isinstance(layout, int):
        layout = Layout.of_map(layout)
    with ONE_AT_A_TIME, OwnRandomness(), _in_eval_mode(module):
        if layout is not None:
            return _trace(module, name, layout)
        refusals: list[TrialError] = []
        for candidate in input_layouts(module):
            try:
                return _trace(module, name, candidate)
            except TrialError as refusal:
                refusals.append(refusal)
        first = refusals[0]
        raise TraceError(first.where, first.reason, first.way_out) from first


def fitted(network: Network, images: int, height: int, width: int) -> Network:
    """The network for images of this size: the same one, unless its code reads the size."""
    if not network.asks:
        return network
    size = images, height, width
    with ONE_AT_A_TIME:
        if size not in network.of_sizes:
            root = with_own_forward(network.root)
            with OwnRandomness(), _in_eval_mode(root):
                layout = network.ops[0].layout
                found = _in_rounds(
                    lambda apart: _of_one_size(root, network.name, layout, size, apart)[0],
                    network.parts_whole,
                )
            _make_room(network.of_sizes)
            network.of_sizes[size] = replace(found, of_sizes=network.of_sizes)
        return network.of_sizes[size]


def as_deep(network: Network, shape: Sequence[int]) -> Network:
    """The network for maps of this shape: the same one, except for volumes of another depth."""
    layout = network.ops[0].layout
    channels = layout.channels
    if len(channels) != 2 or len(shape) != len(layout.dims) or shape[1] != channels[0]:
        return network
    depth = shape[2]
    if depth == channels[1]:
        return network
    with ONE_AT_A_TIME:
        if depth not in network.of_depths:
            root = with_own_forward(network.root)
            with OwnRandomness(), _in_eval_mode(root):
                found = _trace(root, network.name, Layout.of_map(shape[1], depth))
            _make_room(network.of_depths)
            network.of_depths[depth] = found
        return network.of_depths[depth]


def _make_room(kept: dict[Any, Network]) -> None:
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]


class _Refused(Exception):
    """A refusal, and the tracer that raised it."""

    def __init__(self, refusal: TraceError, tracer: Tracer) -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.tracer = tracer


def _trace(module: nn.Module, name: str, layout: Layout) -> Network:
    """For images of any size or, for code that reads the size, for images of a trial size."""
    return _in_rounds(lambda apart: _with_parts_whole(module, name, layout, apart), frozenset())


def _in_rounds(make: Callable[[frozenset[str]], Network], apart: frozenset[str]) -> Network:
    """Trace with some parts kept whole: if a part on coarse maps is refused, it and those like it are kept
    whole."""
    first: _Refused | None = None
    for rounds_left in reversed(range(ROUNDS)):
        try:
            return make(apart)
        except _Refused as refused:
            first = first or refused
            more = refused.tracer.coarse_parts_like(refused.tracer.stopped_in) - apart
            if not (more and rounds_left) or isinstance(refused.refusal, TrialError):
                raise explained(first.refusal, first.tracer) from first.refusal
            apart |= more
    raise AssertionError("the last round returns or raises")


def _with_parts_whole(module: nn.Module, name: str, layout: Layout, apart: frozenset[str]) -> Network:
    tracer = Tracer(name, module, layout, fitting_to(layout, TRIALS), apart)
    try:
        try:
            return _of_any_size(tracer)
        except TooLargeError:
            tracer = Tracer(name, module, layout, fitting_to(layout, SMALLER), apart)
            return _of_any_size(tracer)
    except _Refused as refused:
        if not (tracer.asked or isinstance(refused.refusal, SizeDependenceError)):
            raise
    try:
        network, tracer = _of_one_size(module, name, layout, fitting_to(layout, TRIALS)[0], apart)
    except TooLargeError:
        network, tracer = _of_one_size(module, name, layout, fitting_to(layout, SMALLER)[0], apart)
    except _Refused as refused:
        square = Tracer(name, module, layout, (SQUARE,), apart)
        square.untouched = with_own_forward(twin(module))
        refuses = not isinstance(refused.refusal, TrialError) or ROWS in layout.missing
        if refuses or square.own_failure() is not None:
            raise
        try:
            network, tracer = _of_one_size(module, name, layout, SQUARE, apart)
            network = replace(network, of_squares=True)
        except (TooLargeError, _Refused):
            raise refused from None
    _checked(network, tracer, lambda size: _traced_at(size, module, name, layout, apart))
    return network


def _of_any_size(tracer: Tracer) -> Network:
    error = _recorded(tracer)
    if error is not None:
        raise _Refused(error, tracer)
    try:
        network = _lowered(tracer)
    except TraceError as refusal:
        raise _Refused(refusal, tracer) from refusal
    _checked(network, tracer, lambda size: tracer)
    return network


def _checked(network: Network, tracer: Tracer, traced_at: Callable[[MapSize], Tracer | None]) -> None:
    try:
        check_values(network, tracer, traced_at)
    except UnmaskedRoll as refusal:
        tracer.stopped_in = tracer.nodes[refusal.id].meta["scope"]
        raise _Refused(refusal, tracer) from refusal


def _of_one_size(
    module: nn.Module, name: str, layout: Layout, size: MapSize, apart: frozenset[str]
) -> tuple[Network, Tracer]:
    """The network for images of this size, from a trace there and one at another size with the same ops."""
    refusals: list[TraceError] = []
    square = [(1, _STEP, _STEP)] if size[1] == size[2] else []
    for more in (*fitting_to(layout, APART), *square):
        images, height, width = map(add, size, more)
        height = 1 if ROWS in layout.missing else height
        other = images, height, width
        first, second = (Tracer(name, module, layout, (each,), apart) for each in (size, other))
        error = _recorded(first)
        try:
            beside = _recorded(second)
            following = [name for name in first.left if first.left[name] != second.left.get(name)]
            if following and error is None and beside is None and not _written_before_read(first, second):
                raise _changes(following[0], first)
            pair_traces(first, second)
        except (TooLargeError, SizeDependenceError) as refusal:
            refusals.append(refusal)
            continue
        if error is None and beside is not None:
            refusals.append(beside)
            continue
        try:
            if error is not None:
                raise _obstacle_before(first) or error
            network = _lowered(first)
            return (replace(network, left=first.left_behind or {}) if following else network), first
        except TraceError as refusal:
            raise _Refused(refusal, first) from refusal
    reason = error if isinstance(error, TrialError) else refusals[0]
    raise _Refused(reason, first) from reason


def _written_before_read(first: Tracer, second: Tracer) -> bool:
    """Whether both traces leave only numbers behind, which a later forward overwrites before reading, at
    either size."""
    if first.left_behind is None or second.left_behind is None:
        return False
    for left in (first.left_behind, second.left_behind):
        again = Tracer(first.name, first.root, first.layout, first.sizes, first.apart)
        with with_attributes(first.root, left):
            if _recorded(again) is not None or not are_the_same(first, again) or again.left != first.left:
                return False
    return True


def _traced_at(
    size: MapSize, module: nn.Module, name: str, layout: Layout, apart: frozenset[str]
) -> Tracer | None:
    tracer = Tracer(name, module, layout, (size,), apart)
    if _recorded(tracer) is not None:
        return None
    functionalise(tracer.graph, tracer)
    return tracer


def _recorded(tracer: Tracer) -> TraceError | None:
    """Trace the tracer's module; return what stopped it, if anything did.

    Raises nothing but `TooLargeError`.
    """
    aftermath = Aftermath(tracer.root)
    error: TraceError | None = None
    try:
        tracer.trace(tracer.root)
    except TooLargeError:
        raise
    except TraceError as refusal:
        error = refusal
        if tracer.of_one_size and isinstance(refusal, TrialError) and refusal.own is None:
            own = tracer.own_failure()
            refusal.own = None if isinstance(own, VALUES_ARE_READ) else own
    finally:
        if tracer.of_one_size:
            tracer.left, tracer.left_behind = aftermath.numbers(), aftermath.left_behind(tracer.made)
        changed = aftermath.undo(lambda proxy: tracer.depends_on_input(proxy.node))
    if error is not None:
        _drop_what_failed(tracer)
        return error if tracer.of_one_size else _obstacle_before(tracer) or error
    return _changes(changed[0], tracer) if changed else None


def _changes(attribute: str, tracer: Tracer) -> TraceError:
    return TraceError(
        tracer.dotted(attribute),
        "changes while the module runs, which tiles could not do alike",
        "Do not change it in eval mode",
    )


def _lowered(tracer: Tracer) -> Network:
    functionalise(tracer.graph, tracer)
    network = lowered(tracer.graph, tracer)
    check_sizes(network, tracer)
    return network


def _drop_what_failed(tracer: Tracer) -> None:
    if tracer.decision is not None:
        _erase_unread(tracer.decision)
    for node in reversed(tracer.graph.nodes):
        if "values" not in node.meta:  # the op failed, so nothing reads it
            tracer.graph.erase_node(node)


def _obstacle_before(tracer: Tracer) -> TraceError | None:
    """The first refusal among the ops that were recorded before tracing stopped."""
    stopped_in = tracer.stopped_in
    try:
        functionalise(tracer.graph, tracer)
        lowered(tracer.graph, tracer)
    except TraceError as error:
        return error
    tracer.stopped_in = stopped_in
    return None


def _erase_unread(node: fx.Node) -> None:
    """Erase a node, and what was recorded for it alone: a decision's operands are no obstacle before it."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one.op != "placeholder" and not one.users and not one._erased:
            waiting += one.all_input_nodes
            one.graph.erase_node(one)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    before = modes(module)
    module.eval()
    try:
        yield
    finally:
        put_in_modes(module, before)


def input_layouts(module: nn.Module) -> list[Layout]:
    """The layouts to try for a module's input.

    Maps of as many axes as its convolutions have, the first convolution's before others, or images; with as
    many channels as its layers have, in order, or those of a colour or a grey image.
    """
    axes = [len(m.kernel_size) for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    made: dict[int, Callable[[int], Layout]]
    made = {1: Layout.of_sequence, 2: Layout.of_map, 3: lambda channels: Layout.of_map(channels, DEPTH)}
    return [
        make(channels)
        for make in (made[n] for n in dict.fromkeys(axes or [2]))
        for channels in input_channels(module)
    ]


def input_channels(module: nn.Module) -> list[int]:
    """The input channels to try: those of the layers, in order, then of a colour and a grey image."""
    found = [getattr(m, "in_channels", None) for m in module.modules()]
    counts = [count for count in found if isinstance(count, int) and count > 0]
    return list(dict.fromkeys([*counts, 3, 1]))
