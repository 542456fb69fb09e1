"""Adds to a refusal what a trial of the part shows: whether what it reads ends anywhere near.

The reason of a refusal is the first obstacle, always. A trial sees one small map, so what it adds is what was
seen there, and no more.
"""

from __future__ import annotations

import re
from time import monotonic

from overlap_tool.errors import SizeDependenceError, TraceError, UnknownOpError
from overlap_tool.graph.spread import Extent, OutOfTime, spread
from overlap_tool.graph.tracer import Tracer, TrialError

USUAL = (224, 256, 384, 32, 64, 128, 28, 512)
"""The sizes of images that networks for one size are made for; others stand in what such a network raises."""

SECONDS = 0.8
"""What a trial may take. It is looked at between any two ops, so that all is said within a second."""

SECONDS_FOR_SIZES = 4
"""The same where the module refuses a size: at one that it takes, all of it is run, without numbers."""

UNKNOWN = "whether a finite overlap is enough is not known"


def explained(error: TraceError, tracer: Tracer) -> TraceError:
    """The error, and what a trial shows of the part in which tracing stopped."""
    if isinstance(error, TrialError):
        return _of_only_one_size(error, tracer)
    if type(error) not in (TraceError, UnknownOpError, SizeDependenceError) or tracer.found_barrier:
        return error  # behind a barrier, every part is seen to read the whole map
    try:
        seen = _seen(tracer)
    except OutOfTime:
        seen = f"{UNKNOWN}: a trial was stopped after {SECONDS:g} s"
    return type(error)(error.where, f"{error.reason} ({seen})", error.way_out) if seen else error


def _of_only_one_size(error: TrialError, tracer: Tracer) -> TrialError:
    """The refusal of a network that takes images of one size alone says so."""
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
