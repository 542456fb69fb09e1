"""Adds to a refusal what a trial of the part shows: whether what it reads ends anywhere near.

The reason of a refusal is the first obstacle, always. A trial sees one small map, so what it adds is what was
seen there, and no more.
"""

from __future__ import annotations

from time import monotonic

from overlap_tool.errors import SizeDependenceError, TraceError, UnknownOpError
from overlap_tool.graph.spread import Extent, OutOfTime, spread
from overlap_tool.graph.tracer import Tracer

SECONDS = 0.8
"""What a trial may take. It is looked at between any two ops, so that all is said within a second."""

UNKNOWN = "whether a finite overlap is enough is not known"


def explained(error: TraceError, tracer: Tracer) -> TraceError:
    """The error, and what a trial shows of the part in which tracing stopped."""
    if type(error) not in (TraceError, UnknownOpError, SizeDependenceError) or tracer.found_barrier:
        return error  # behind a barrier, every part is seen to read the whole map
    try:
        seen = _seen(tracer)
    except OutOfTime:
        seen = f"{UNKNOWN}: a trial was stopped after {SECONDS:g} s"
    return type(error)(error.where, f"{error.reason} ({seen})", error.way_out) if seen else error


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
