"""Checks that tiles give the untouched model's own bits: in each stage, and in all that the model returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool.errors import OverlapToolError, RuleError
from overlap_tool.graph.example import Example
from overlap_tool.models import coded
from overlap_tool.models.stages import Stage
from overlap_tool.planning.choose import StagePlan
from overlap_tool.rules import engine
from overlap_tool.settings import Engine
from overlap_tool.verification.blame import find_fault
from overlap_tool.verification.certificate import Check, DifferenceMap, Figure, Status
from overlap_tool.verification.observing import (
    Seen,
    difference_map,
    differing,
    kept,
    largest_difference,
    tensors_in,
    watched_stages,
    watched_symbols,
)
from overlap_tool.verification.pieces import run_stage

LEAST_SHARE = 0.01
"""The least share of symbols other than zero: below it, equal bitstreams prove next to nothing."""


UNSEEN_SYMBOLS = (
    "the model codes an image, and no class that is known to quantise was called, so its symbols are not "
    'seen: to see them, name that class with overlap_tool.rules.register_quantiser("package.module.Class")'
)

FEW_OF_A_GIVEN_IMAGE = (
    "That is what these weights make of this image: give one with more detail, or trained weights, or "
    "of a higher rate"
)


@dataclass(frozen=True)
class Run:
    """What one run of a model returned: outputs, symbols to be coded, and its stages' inputs and outputs."""

    outputs: dict[str, Tensor]
    symbols: tuple[Tensor, ...]
    seen: dict[str, Seen]


@dataclass(frozen=True)
class Coded:
    """A compressed image, or the reason why there is none."""

    stream: Any
    """None if there is no compressed image."""
    refusal: str = ""


@torch.no_grad()
def run_model(
    model: nn.Module,
    image: Tensor,
    stages: Sequence[Stage] = (),
    kernels: Engine = "exact",
    example: Example | None = None,
) -> Run:
    """Run a model on an image or, if it is called as in an example, on maps side by side in one tensor."""
    by_example = [stage for stage in stages if stage.example is not None]  # such a stage is the whole model
    watched = watched_stages([] if by_example else stages)
    with watched as seen, watched_symbols(model) as symbols, engine(kernels):
        given = image.clone()
        outputs = tensors_in(model(given) if example is None else example.run(model, given))
    if by_example:
        seen = {each.name: Seen(kept(each.network.ops[0].layout, image), outputs) for each in by_example}
    return Run(outputs, tuple(symbols), seen)


@torch.no_grad()
def compress(model: Any, image: Tensor, kernels: Engine = "exact", example: Example | None = None) -> Coded:
    """Run the model's own `compress`. A failure without tiles is not counted against tiles."""
    if example is not None:
        return Coded(None, "the model is called as in an example, which says nothing of its compress")
    if not hasattr(model, "compress"):
        return Coded(None, "the model has no compress")
    try:
        with engine(kernels):
            stream = coded.needed(model.compress(image.clone()))
    except OverlapToolError:
        raise
    except Exception as error:
        return Coded(None, f"its compress refuses: {_first_line(error)}")
    try:
        coded.packed(stream, [])
    except TypeError as error:
        return Coded(None, f"its compress gives {error}, which cannot be compared")
    return Coded(stream)


@torch.no_grad()
def decompress(model: Any, stream: Any) -> dict[str, Tensor]:
    with engine("exact"):
        return tensors_in(coded.decompressed(model, stream))


def why_not_decoded(error: Exception) -> str:
    return f"its decompress refuses: {_first_line(error)}"


def check_stage(plan: StagePlan, seen: Seen, batch: int, blank: Check) -> Check:
    """Compare tiled with full on the stage's real input; if they differ, name the op to blame."""
    blank = replace(blank, name="stage-equality")
    try:
        with engine("exact"):
            found = tensors_in(run_stage(plan, seen.input, batch))
    except RuleError as error:
        return replace(
            blank, status="failed", message=str(error), figures={"op": error.where, "fault": "overlap"}
        )
    except Exception as error:  # a wrong rule may raise anything
        return raised(blank, error)
    both = [(found[name], values) for name, values in seen.outputs.items()]
    figures: dict[str, Figure] = {
        "tiles": plan.tiles,
        "outputs": sum(values.numel() for values in seen.outputs.values()),
        "differing": sum(differing(*pair) for pair in both),
        "largest_difference": max(largest_difference(*pair) for pair in both),
    }
    unlike = next((pair for pair in both if not torch.equal(*pair)), None)
    if unlike is None:
        return replace(blank, status="passed", figures=figures)
    blame = find_fault(plan, seen.input)
    return replace(
        blank,
        status="failed",
        message=f"first to differ: {blame.message}" if blame.op else blame.message,
        figures={**figures, "op": blame.op, "fault": blame.fault},
        where=difference_map(*unlike),
    )


def raised(check: Check, error: Exception) -> Check:
    """A failed check: the tiled model raised an error, and the untouched model did not."""
    return replace(check, status="failed", message=f"in tiles it raises {_first_line(error)}")


def check_outputs(found: Run, expected: Run, stages_hold: bool, blank: Check) -> list[Check]:
    """Each of the model's outputs by itself: x_hat, likelihoods, or the single map of a plain network."""
    cause = "; every stage by itself holds, so it is what lies between them" if stages_hold else ""
    checks = []
    for name, values in expected.outputs.items():
        other = found.outputs.get(name)
        same = other is not None and torch.equal(other, values)
        differ = values.numel() if other is None else differing(other, values)
        figures: dict[str, Figure] = {"output": name, "numbers": values.numel(), "differing": differ}
        if other is not None:
            figures["largest_difference"] = largest_difference(other, values)
        checks.append(
            replace(
                blank,
                name="model-equality",
                status="passed" if same else "failed",
                message="" if same else f"{name}: {differ} of {values.numel()} numbers differ{cause}",
                figures=figures,
                where=None if other is None else difference_map(other, values),
            )
        )
    return checks


def check_latents(run: Run, written: Coded, given: bool, blank: Check) -> Check:
    """Whether the symbols carry enough information for a bitstream to go wrong.

    Symbols are seen where a known class quantises; a codec that codes by other means shows none. In a made-up
    image, too few nonzero symbols do not pass, since another image can be given. In a `given` image they
    follow from the weights, and are only noted; if all symbols are zero, the check does not pass either.
    """
    blank = replace(blank, name="latents")
    total = sum(part.numel() for part in run.symbols)
    if not total:
        unseen = UNSEEN_SYMBOLS if written.stream is not None else "the model codes no symbols"
        return replace(blank, status="skipped", message=unseen)
    share = sum(int((part != 0).sum()) for part in run.symbols) / total
    status: Status = "passed"
    message = ""
    if share < LEAST_SHARE:
        status = "noted" if given and share else "failed"
        few = f"only {share:.2%} of the symbols" if share else "none of the symbols"
        message = f"{few} are not zero: equal bitstreams say {'little' if share else 'nothing'}. "
        message += FEW_OF_A_GIVEN_IMAGE if given else "Give an image"
    return replace(
        blank,
        status=status,
        message=message,
        figures={"symbols": total, "nonzero_share": share},
    )


def check_bitstream(found: Coded, expected: Coded, pixels: int, blank: Check) -> Check:
    blank = replace(blank, name="bitstream")
    if expected.stream is None:
        return replace(blank, status="skipped", message=expected.refusal)
    size = coded.size_in_bytes(expected.stream)
    same = found.stream is not None and coded.same(found.stream, expected.stream)
    return replace(
        blank,
        status="passed" if same else "failed",
        message="" if same else found.refusal or "the strings differ from the untouched model's",
        figures={"bytes": size, "bits_per_pixel": 8 * size / pixels},
    )


def check_decoding(
    tiled: nn.Module, streams: Sequence[Any], expected: Sequence[dict[str, Tensor]], blank: Check
) -> Check:
    """Every distinct stream, whoever wrote it, decoded by tiles as the untouched model decodes it."""
    differ = 0
    where: DifferenceMap | None = None
    for stream, images in zip(streams, expected, strict=True):
        try:
            found = decompress(tiled, stream)
        except Exception as error:
            return raised(replace(blank, name="decoding"), error)
        for name, image in images.items():
            differ += differing(found[name], image)
            where = where or difference_map(found[name], image)
    return replace(
        blank,
        name="decoding",
        status="failed" if differ else "passed",
        message=f"{differ} numbers of the decoded image differ" if differ else "",
        figures={"streams": len(streams), "differing": differ},
        where=where,
    )


def note_difference(name: str, found: tuple[Run, Coded], expected: tuple[Run, Coded], blank: Check) -> Check:
    """Note how other kernels change the image, the symbols and the bitstream. This check cannot fail."""
    (run, written), (base, base_written) = found, expected
    output = "x_hat" if "x_hat" in base.outputs else next(iter(base.outputs))
    values, other = base.outputs[output], run.outputs[output]
    figures: dict[str, Figure] = {
        "output": output,
        "largest_difference": largest_difference(other, values),
        "differing": differing(other, values),
        "numbers": values.numel(),
    }
    if output == "x_hat":
        figures["image_identical_in_8_bits"] = torch.equal(_eight_bits(other), _eight_bits(values))
    if base.symbols and len(run.symbols) == len(base.symbols):  # a loop may code symbols in other portions
        figures["symbols"] = sum(part.numel() for part in base.symbols)
        figures["differing_symbols"] = sum(
            differing(part, other) for part, other in zip(run.symbols, base.symbols, strict=True)
        )
    if base_written.stream is not None:
        figures["bitstream_identical"] = written.stream is not None and coded.same(
            written.stream, base_written.stream
        )
    return replace(blank, name=name, status="noted", figures=figures)


def _eight_bits(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
