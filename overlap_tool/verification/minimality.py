"""Checks that overlaps are minimal: with one sample less on any side, a tile comes out wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from overlap_tool.geometry import Span
from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.plan import AxisPlan, Step
from overlap_tool.graph.network import Input
from overlap_tool.planning.choose import StagePlan
from overlap_tool.rules import exact_kernels
from overlap_tool.runtime import passes
from overlap_tool.runtime.passes import Pass
from overlap_tool.runtime.stores import TensorSource
from overlap_tool.verification.certificate import Check, Figure
from overlap_tool.verification.observing import Seen, differing
from overlap_tool.verification.pieces import ShortSource, halo, run_tile

EDGES = {
    "left": ("columns", True),
    "right": ("columns", False),
    "top": ("rows", True),
    "bottom": ("rows", False),
}
"""For each side, the axis that it is an end of, and whether it is the lower end."""


def check_minimality(plan: StagePlan, seen: Seen, blank: Check) -> list[Check]:
    """One check per side of every map that a segment is given; without barriers, that is the stage's input.

    Sound has two sides. `plan` is of independent tiles; `blank` holds what all checks have in common. For a
    tile with its whole overlap inside the map, the executor runs that tile alone on the real maps, but
    without the outermost line of samples that it reads on one side: the tile with an overlap of one sample
    less on that side.

    With NaN in the line's place, the outputs show whether the arithmetic uses the line at all: NaN times
    anything is NaN, so a weight that happens to be 0 hides no dependence, and a line that is not read cannot
    turn an output into NaN. Zeros are what a smaller patch would see, its own padding; how many outputs
    differ then depends on these weights and this image, and is reported as a figure only.
    """
    blank = replace(blank, name="minimality", schedule="tiles")
    checks: list[Check] = []
    with exact_kernels():
        whole = TensorSource(seen.input, seen.input.device)
        sinks = passes.Results(plan).sinks
        for each in passes.one_by_one(plan.network, plan.segments, whole, sinks):
            checks += _check_segment(each, plan, blank)
            if each.plan is plan.segments[-1]:
                break  # its outputs are not used here
    return checks


def _check_segment(each: Pass, plan: StagePlan, blank: Check) -> Iterator[Check]:
    for given, op in enumerate(each.plan.segment.network.ops):
        if isinstance(op, Input) and each.plan.segment.computes:
            for side, (axis, _) in EDGES.items():
                if axis == "rows" and plan.network.takes == "sound":
                    continue
                figures: dict[str, Figure] = {"side": side}
                if len(plan.segments) > 1:
                    figures |= {"segment": plan.segments.index(each.plan), "map": op.name}
                yield _check_side(each, given, side, replace(blank, figures=figures))


def _check_side(each: Pass, given: int, side: str, blank: Check) -> Check:
    along, before = EDGES[side]
    network = each.plan.segment.network
    axis: Axis = getattr(network, along)
    of_axis: AxisPlan = getattr(each.plan, along)
    told = f"{blank.figures['map']}, {side}" if "map" in blank.figures else side
    overlap = max(0, axis.overlaps()[given][0 if before else 1])
    blank = replace(blank, figures={**blank.figures, "overlap": overlap})
    if overlap == 0:
        return replace(blank, status="skipped", message=f"{told}: there is no overlap to make smaller")
    widest: tuple[int, Step, Span] | None = None
    for step in of_axis.steps:
        part = halo(axis, step, of_axis.sizes, given)
        whole, width = (part.whole_before, part.before) if before else (part.whole_after, part.after)
        if whole and width > (widest[0] if widest else 0):
            start, stop = part.reads
            widest = width, step, Span(start + 1, stop) if before else Span(start, stop - 1)
    if widest is None:
        return replace(
            blank, status="skipped", message=f"{told}: no tile has its whole overlap inside this image"
        )
    width, step, kept = widest
    chosen = {name: _middle(getattr(each.plan, name)) for name in ("rows", "columns")} | {along: step}
    shorter = {name: {chosen[name].hold[given]: kept} if name == along else {} for name in chosen}
    map = network.ops[given].id

    def tile(fill: float) -> tuple[Tensor, ...]:
        short = ShortSource(each.sources[map], shorter["rows"], shorter["columns"], fill)
        return run_tile(each, chosen["rows"], chosen["columns"], {**each.sources, map: short})

    lost = sum(int(part.isnan().sum()) for part in tile(float("nan")))
    expected = run_tile(each, chosen["rows"], chosen["columns"], each.sources)
    changed = sum(differing(*pair) for pair in zip(tile(0.0), expected, strict=True))
    return replace(
        blank,
        status="passed" if lost else "failed",
        message=""
        if lost
        else f"{told}: the outermost of {width} lines is not used, so the overlap could be smaller",
        figures={
            **blank.figures,
            "overlap_of_tile": width,
            "lost_outputs": lost,
            "changed_by_zeros": changed,
        },
    )


def _middle(plan: AxisPlan) -> Step:
    return plan.steps[len(plan.steps) // 2]
