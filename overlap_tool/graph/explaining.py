"""What is at the bottom of a refusal: a part that mixes the whole map, which no rule could help."""

from __future__ import annotations

from overlap_tool.errors import (
    GlobalOpError,
    SizeDependenceError,
    TraceError,
    UnknownOpError,
    WrapAroundError,
)
from overlap_tool.graph.spread import Reach, spread
from overlap_tool.graph.tracer import REGISTER, Tracer


def explained(error: TraceError, tracer: Tracer) -> TraceError:
    """The error, or what is at the bottom of it."""
    if type(error) not in (TraceError, UnknownOpError, SizeDependenceError) or tracer.found_barrier:
        return error  # behind a barrier, every part is seen to mix the whole map
    for path in tracer.parts_around(tracer.stopped_in):
        part = tracer.root.get_submodule(path)
        seen = spread(part, tracer.parts[path])
        if seen is not None:
            break
    if seen is None or seen.reach is Reach.NEAR:
        return error
    where = f"{tracer.dotted(path)} ({type(part).__name__})"
    trial = f"in a trial on {seen.size[0]}x{seen.size[1]} samples, a change in one outermost {seen.line}"
    stopped = f"tracing stopped at {error.where}: {error.reason}"
    if seen.reach is Reach.EVERYWHERE:
        return GlobalOpError(
            where,
            f"mixes the whole map: {trial} was seen up to the opposite one, so that no finite overlap is "
            f"enough ({stopped})",
            "Analyze the parts before and after it, with `stage`, or replace it by a local op",
        )
    return WrapAroundError(
        where,
        f"reads across the border of the map: {trial} was seen at the opposite one and not between, as when "
        f"a roll is not masked or a map is mirrored, so that tiles at one border need the other ({stopped})",
        f"Mask what comes from across the border and retrain, or {REGISTER[0].lower()}{REGISTER[1:]}, with a "
        "circular geometry",
    )
