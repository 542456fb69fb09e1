"""Whether overlaps are as small as they can be: one sample less on any side, and the tile comes out wrong."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from overlap_tool.geometry import Span
from overlap_tool.kernels import exact_kernels
from overlap_tool.network import Network
from overlap_tool.schedule.choose import StagePlan
from overlap_tool.schedule.plan import AxisPlan, Step
from overlap_tool.verification.certificate import Check
from overlap_tool.verification.observing import Seen, differing
from overlap_tool.verification.pieces import ShortSource, halo, run_from

SIDES = {
    "left": ("columns", True),
    "right": ("columns", False),
    "top": ("rows", True),
    "bottom": ("rows", False),
}
"""The axis that each side is an end of, and whether it is the end where counting begins."""


def check_minimality(network: Network, plan: StagePlan, seen: Seen, blank: Check) -> list[Check]:
    """One check per side. `plan` is one of independent tiles; `blank` is what all checks have in common.

    For a tile with its whole overlap inside the image, the executor runs that tile alone on the stage's real
    input, but without the outermost line of samples that it reads on one side. All other samples are as they
    were, so this is the tile with an overlap of one sample less on that side; whatever stands in place of the
    line is all that the smaller patch has there.

    NaN in its place decides: it shows whether the arithmetic uses the line at all. NaN times anything is NaN,
    so no weight that happens to be 0 hides a dependence, and a line that is not read cannot make NaN of any
    output. Zeros are what a smaller patch would see, its own padding; how many outputs differ then is told
    as a figure, for it depends on these weights and this image.
    """
    return [_check_side(network, plan, seen, side, blank) for side in SIDES]


def _check_side(network: Network, plan: StagePlan, seen: Seen, side: str, blank: Check) -> Check:
    along, before = SIDES[side]
    axis, steps = getattr(network, along), {"rows": plan.rows.steps, "columns": plan.columns.steps}
    overlap = axis.reaches()[-1].overlap[0 if before else 1]
    blank = replace(blank, name="minimality", schedule="tiles", figures={"side": side, "overlap": overlap})
    if overlap == 0:
        return replace(blank, status="skipped", message=f"{side}: there is no overlap to make smaller")
    n = seen.input.shape[-1 if along == "columns" else -2]
    widest: tuple[int, Step, Span] | None = None
    for step in steps[along]:
        part = halo(axis, step, n)
        whole, width = (part.whole_before, part.before) if before else (part.whole_after, part.after)
        if whole and width > (widest[0] if widest else 0):
            start, stop = part.reads
            widest = width, step, Span(start + 1, stop) if before else Span(start, stop - 1)
    if widest is None:
        return replace(
            blank, status="skipped", message=f"{side}: no tile has its whole overlap inside this image"
        )
    width, step, kept = widest
    chosen = {name: of_axis[len(of_axis) // 2] for name, of_axis in steps.items()} | {along: step}
    expected = _tile(seen.output, chosen)
    lost = int(_without(network, plan, seen, chosen, along, kept, float("nan")).isnan().sum())
    changed = differing(_without(network, plan, seen, chosen, along, kept, 0.0), expected)
    return replace(
        blank,
        status="passed" if lost else "failed",
        message=""
        if lost
        else f"{side}: the outermost of {width} lines is not used, so the overlap could be smaller",
        figures={
            **blank.figures,
            "overlap_of_tile": width,
            "lost_outputs": lost,
            "changed_by_zeros": changed,
        },
    )


def _without(
    network: Network,
    plan: StagePlan,
    seen: Seen,
    chosen: dict[str, Step],
    along: str,
    kept: Span,
    fill: float,
) -> Tensor:
    """One tile's outputs when it gets only the part `kept` of what it reads."""
    short: dict[str, dict[Span, Span]] = {"rows": {}, "columns": {}} | {along: {chosen[along].hold[0]: kept}}
    rows = AxisPlan(plan.rows.sizes, (chosen["rows"],))
    columns = AxisPlan(plan.columns.sizes, (chosen["columns"],))
    with exact_kernels():
        found = run_from(
            network, rows, columns, ShortSource(seen.input, short["rows"], short["columns"], fill)
        )
    return _tile(found, chosen)


def _tile(whole: Tensor, chosen: dict[str, Step]) -> Tensor:
    rows, columns = chosen["rows"].compute[-1], chosen["columns"].compute[-1]
    return whole[..., rows.start : rows.stop, columns.start : columns.stop]
