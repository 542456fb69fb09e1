"""What the spans of any architecture are held to: brute force on the original modules."""

from __future__ import annotations

import copy
from itertools import count

import torch

from overlap_tool.geometry import Span
from overlap_tool.geometry.axis import Axis
from overlap_tool.graph.network import Input
from overlap_tool.models.stages import Stage
from support.probes import COLUMNS, ROWS, dependence, perturbation_dependence
from support.small_models import small_survey


def _axis(stage: Stage, dim: int) -> Axis:
    return stage.network.rows if dim == ROWS else stage.network.columns


def _sizes(stage: Stage, dim: int) -> tuple[int, int]:
    """A length that holds a tile with its whole halo, not a multiple of the period, and a narrow width."""
    reach = _axis(stage, dim).reaches()[-1]
    long = reach.receptive_field + 3 * reach.period.input + 1
    across = _axis(stage, COLUMNS if dim == ROWS else ROWS)
    # without padding, an op may need more than a period
    narrow = next(n for n in count(max(reach.period.input, 2)) if min(across.sizes(n)) >= 1)
    return long, narrow


def _double(stage: Stage) -> torch.nn.Module:
    return copy.deepcopy(stage.module).double()


def _image(stage: Stage, dim: int) -> torch.Tensor:
    long, narrow = _sizes(stage, dim)
    shape = (long, narrow) if dim == ROWS else (narrow, long)
    first = stage.network.ops[0]
    assert isinstance(first, Input)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, first.channels, *shape, generator=generator, dtype=torch.float64)


def _hull(line: torch.Tensor) -> Span:
    inputs = line.nonzero()
    return Span(int(inputs[0]), int(inputs[-1]) + 1)


def static_spans_are_the_brute_force_spans(architecture: str, dim: int) -> None:
    for stage in small_survey(architecture).stages:
        module, image, axis = _double(stage), _image(stage, dim), _axis(stage, dim)
        probe = perturbation_dependence if hasattr(stage.module, "mask") else dependence
        matrix = probe(module, image, dim)
        sizes = axis.sizes(image.shape[dim])
        assert sizes[-1] == matrix.shape[0], stage.name
        for output in range(sizes[-1]):
            static = axis.needs({len(axis.ops) - 1: Span(output, output + 1)}, sizes)[0]
            assert static == _hull(matrix[output]), f"{stage.name}, output {output}"


def static_spans_cover_what_gradients_find(architecture: str) -> None:
    for stage in small_survey(architecture).stages:
        module, image = _double(stage), _image(stage, COLUMNS).requires_grad_()
        axis = stage.network.columns
        sizes = axis.sizes(image.shape[-1])
        middle = sizes[-1] // 2
        weights = torch.rand(1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        output = module(image)[..., middle] * (1 + weights)
        (gradient,) = torch.autograd.grad(output.sum(), image)
        found = _hull(gradient.ne(0).any(dim=-2).any(dim=1)[0])
        static = axis.needs({len(axis.ops) - 1: Span(middle, middle + 1)}, sizes)[0]
        assert static.start <= found.start, stage.name
        assert found.stop <= static.stop, stage.name


def one_sample_less_on_either_side_loses_a_dependency(architecture: str, dim: int) -> None:
    """The reported overlap of an aligned tile is tight: NaN just outside changes nothing, NaN on the
    outermost sample of it does."""
    for stage in small_survey(architecture).stages:
        if hasattr(stage.module, "mask"):
            continue  # its zero weights times NaN are NaN; the test above holds it by perturbation
        module, image, axis = _double(stage), _image(stage, dim), _axis(stage, dim)
        reach = axis.reaches()[-1]
        overlap, period = reach.overlap, reach.period
        first = -(-overlap.before // period.input)
        core = Span(first * period.input, (first + 1) * period.input)
        tile = Span(first * period.output, (first + 1) * period.output)
        matrix = dependence(module, image, dim)[tile.start : tile.stop].any(dim=0)
        low, high = core.start - overlap.before, core.stop + overlap.after
        assert high < image.shape[dim], "the image must be long enough for the test to see its far side"
        assert matrix[low], stage.name
        assert matrix[high - 1], stage.name
        assert not matrix[:low].any(), stage.name
        assert not matrix[high:].any(), stage.name
