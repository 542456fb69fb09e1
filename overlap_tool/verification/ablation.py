"""The published experiment: what tiles with one sample too little overlap on every side do to rate and
quality.

There are two variants. A tile that pads has zeros in its input for the missing samples, and computes all its
outputs: the mildest case. A tile that does not pad has zeros in its output, wherever an output reads a
missing sample, however small its weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from overlap_tool.geometry import Span
from overlap_tool.geometry.axis import Axis
from overlap_tool.geometry.plan import AxisPlan
from overlap_tool.graph.example import Example
from overlap_tool.models.stages import Stage
from overlap_tool.planning.choose import Shape, plan_stage
from overlap_tool.runtime import passes
from overlap_tool.runtime.stores import TensorSource
from overlap_tool.settings import Settings
from overlap_tool.verification.certificate import MODEL, Check, Figure
from overlap_tool.verification.equality import Run, run_model
from overlap_tool.verification.observing import differing, kept, largest_difference
from overlap_tool.verification.pieces import ShortSource, halo

Zeros = Literal["input", "output"]
"""Where a tile with too little overlap has zeros."""


def ablate(
    model: nn.Module,
    stages: Sequence[Stage],
    settings: Settings,
    image: Tensor,
    exact: Run,
    blank: Check,
    example: Example | None = None,
) -> list[Check]:
    """Compare the model with the exact result while one stage at a time, and then all of them, lack overlap.

    Tiles are independent, kernels exact. Bits per pixel are estimated from the likelihoods, as in
    CompressAI's evaluation. In a stage with barriers every output would be missing without padding, so its
    tiles are only padded.
    """
    groups = [[stage] for stage in stages] + ([list(stages)] if len(stages) > 1 else [])
    return [
        _ablate(
            model, group, zeros, settings, image, exact, replace(blank, stage=_label(group, stages)), example
        )
        for zeros in get_args(Zeros)
        for group in groups
        if zeros == "input" or not any(stage.network.need_whole_maps for stage in group)
    ]


def _label(group: Sequence[Stage], stages: Sequence[Stage]) -> str:
    return "all stages" if len(group) > 1 else group[0].name or MODEL


def _ablate(
    model: nn.Module,
    stages: Sequence[Stage],
    zeros: Zeros,
    settings: Settings,
    image: Tensor,
    exact: Run,
    blank: Check,
    example: Example | None,
) -> Check:
    with short_of_overlap(stages, zeros, settings):
        run = run_model(model, image, example=example)
    figures: dict[str, Figure] = {"zeros": zeros}
    likelihoods = [name for name in exact.outputs if name.partition(".")[0] == "likelihoods"]
    if likelihoods:
        rates = [_bits(each, likelihoods) / image[0, 0].numel() for each in (run, exact)]
        figures |= {"bits_per_pixel": rates[0], "change_of_bits_per_pixel": rates[0] - rates[1]}
    output = "x_hat" if "x_hat" in exact.outputs else next(iter(exact.outputs))
    if output == "x_hat":
        qualities = [_psnr(each.outputs[output], image) for each in (run, exact)]
        figures |= {"psnr": qualities[0], "change_of_psnr": qualities[0] - qualities[1]}
    found, expected = run.outputs[output], exact.outputs[output]
    error = float((found - expected).double().square().mean())
    if error and output == "x_hat":
        figures["psnr_to_exact"] = -10 * math.log10(error)
    figures |= {
        "differing": differing(found, expected),
        "numbers": expected.numel(),
        "largest_difference": largest_difference(found, expected),
    }
    return replace(blank, name="ablation", status="noted", schedule="tiles", figures=figures)


@contextmanager
def short_of_overlap(stages: Sequence[Stage], zeros: Zeros, settings: Settings) -> Iterator[None]:
    """Inside, these stages of a model run in tiles whose overlaps are one sample too small."""
    for stage in stages:
        stage.run_by(_ShortForward(stage, zeros, settings))
    try:
        yield
    finally:
        for stage in stages:
            stage.run_by_itself()


class _ShortForward:
    def __init__(self, stage: Stage, zeros: Zeros, settings: Settings) -> None:
        self.stage = stage
        self.settings = settings
        # every output that reads NaN becomes NaN
        self.fill = 0.0 if zeros == "input" else math.nan

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        example = self.stage.example
        call = (args[0], None) if example is None else example.of_call(args, kwargs)
        assert call is not None, "the model is called as in the example"
        whole = kept(self.stage.network.ops[0].layout, call[0])
        images, *_, height, width = whole.shape
        shape = Shape(images, height, width, whole.element_size())
        plan = plan_stage(self.stage.name, self.stage.network, self.stage.input_scale, shape, self.settings)
        results, input = passes.Results(plan), TensorSource(whole, whole.device)
        for each in passes.one_by_one(plan.network, plan.segments, input, results.sinks):
            part = each.plan
            for map, source in each.sources.items():
                given = part.segment.network.index[map]
                rows = _shortened(part.segment.network.rows, part.rows, given)
                columns = _shortened(part.segment.network.columns, part.columns, given)
                each.sources[map] = ShortSource(source, rows, columns, self.fill)
        if math.isnan(self.fill):
            for found in results.maps():
                found.nan_to_num_(nan=0.0)
        return results.returned(call[0], each.values)


def _shortened(axis: Axis, plan: AxisPlan, given: int) -> dict[Span, Span]:
    """For each span that tiles read of a given map, the part that is left when overlaps are one sample
    smaller.

    Nothing is missing where the image ends within the overlap.
    """
    kept = {}
    for step in plan.steps:
        part = halo(axis, step, plan.sizes, given)
        start = part.reads.start + (part.before > 0 and part.whole_before)
        kept[part.reads] = Span(start, part.reads.stop - (part.after > 0 and part.whole_after))
    return kept


def _bits(run: Run, names: Sequence[str]) -> float:
    return sum(float(-torch.log2(run.outputs[name].double()).sum()) for name in names)


def _psnr(found: Tensor, image: Tensor) -> float:
    """The peak signal-to-noise ratio of the 8-bit image, in decibels."""
    error = ((found.clamp(0, 1) - image).double() * 255).round().square().mean()
    return 10 * math.log10(255**2 / max(float(error), 1e-12))
