"""Adds to a refusal what a trial of the part shows: whether its reach is limited.

The reason of a refusal is always the first obstacle. A trial uses one small map, so the addition says what
was seen there, and no more.
"""

from __future__ import annotations

import re
from time import monotonic

from overlap_tool.errors import SizeDependenceError, TraceError, UnknownOpError
from overlap_tool.graph.spread import Extent, OutOfTime, spread
from overlap_tool.graph.tracer import Tracer, TrialError

USUAL = (224, 256, 384, 32, 64, 128, 28, 512)
"""Usual image sizes of networks made for a single size; others are found in the network's own errors."""

SECONDS = 0.8
"""The time limit of a trial, checked between any two ops, so that the refusal comes within a second."""

SECONDS_FOR_SIZES = 4
"""The limit where the module refuses sizes: all of it is run, without numbers, at one that it takes."""

UNKNOWN = "whether a finite overlap is enough is not known"


def explained(error: TraceError, tracer: Tracer) -> TraceError:
    """The error, with what a trial shows of the part in which tracing stopped."""
    if isinstance(error, TrialError):
        return _of_only_one_size(error, tracer)
    if type(error) not in (TraceError, UnknownOpError, SizeDependenceError) or tracer.found_barrier:
        return error  # after a barrier, every part seems to read the whole map
    try:
        seen = _seen(tracer)
    except OutOfTime:
        seen = f"{UNKNOWN}: a trial was stopped after {SECONDS:g} s"
    return type(error)(error.where, f"{error.reason} ({seen})", error.way_out) if seen else error


def _of_only_one_size(error: TrialError, tracer: Tracer) -> TrialError:
    """Extend the refusal of a network that takes images of a single size by that size."""
    until = monotonic() + SECONDS_FOR_SIZES
    named = [int(number) for number in re.findall(r"\d+", error.reason)]

    def takes(side: int) -> bool:
        with tracer.fake:
            image = tracer.trials[0].new_empty(tracer.layout.shape((1, side, side)))
        return tracer.raised(image, until) is None

    try:
        side = next((n for n in (*named, *USUAL) if 8 <= n <= 2048 and takes(n)), None)
        if side is None or takes(2 * side) or takes(3 * side):
            return error
    except OutOfTime:
        return error
    told = TrialError(
        error.where,
        f"is made for images of {side}x{side} alone, and {error.reason}",
        "Bring images to that size, or name a stage that takes any, with `stage`",
    )
    told.own = error.own
    return told


def _seen(tracer: Tracer) -> str | None:
    until = monotonic() + SECONDS
    for path in tracer.parts_around(tracer.stopped_in):
        part = tracer.submodule(path)
        seen = spread(part, tracer.parts[path], until)
        if seen is not None:
            break
    if seen is None or seen.reach is Extent.NEAR:
        return None
    rows, columns = seen.size
    trial = (
        f"on {rows}x{columns} samples, a change in one outermost {seen.line} of what {tracer.dotted(path)} "
        f"({type(part).__name__}) takes was seen"
    )
    if seen.reach is Extent.EVERYWHERE:
        return f"{trial} up to the opposite one: {UNKNOWN}"
    return (
        f"{trial} at the opposite one and not between, as when a roll is not masked or a map is mirrored: "
        "tiles at one border would need the other"
    )
