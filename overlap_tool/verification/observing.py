"""Observes an untouched model: what its stages receive and return, and which symbols it codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry.layout import Layout
from overlap_tool.graph.returned import paths, taken_apart
from overlap_tool.models.stages import Stage
from overlap_tool.rules import is_quantiser
from overlap_tool.rules.pieces import as_kept
from overlap_tool.verification.certificate import DifferenceMap

CELLS = 32
"""The most cells of a coarse map on either axis, so that a certificate stays small whatever the image."""

ALONE = "output"
"""The name of an output that is a single tensor."""


@dataclass(frozen=True)
class Seen:
    """The input and outputs of one call of a stage, computed by the model's own code."""

    input: Tensor
    """Laid out as the executor keeps maps."""
    outputs: dict[str, Tensor]
    """By their dotted names in the return value."""


def kept(layout: Layout, given: Tensor) -> Tensor:
    """A stage's input, laid out as the executor keeps maps."""
    size = layout.size_of(given.shape)
    return given if size is None else as_kept(given, layout, *size[1:])


@contextmanager
def watched_stages(stages: Sequence[Stage]) -> Iterator[dict[str, Seen]]:
    """The last call of every stage, by the stage's name, while the model runs.

    A closed loop calls its networks pass by pass; the last call has the whole reconstruction.
    """
    seen: dict[str, Seen] = {}
    inputs: dict[str, Tensor] = {}
    layouts = {stage.name: stage.network.ops[0].layout for stage in stages}

    def before(name: str, read: Callable[..., Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[name] = read(*args).clone()

        return note

    def after(name: str, read: Callable[[Any], Any]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # copies, since later code may work in place
            outputs = {path: map.clone() for path, map in tensors_in(read(output)).items()}
            seen[name] = Seen(kept(layouts[name], inputs[name]), outputs)

        return note

    hooks = []
    for stage in stages:
        (first, given), (last, made) = stage.begins, stage.ends
        hooks += [
            first.register_forward_pre_hook(before(stage.name, given)),
            last.register_forward_hook(after(stage.name, made)),
        ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watched_symbols(model: nn.Module) -> Iterator[list[Tensor]]:
    """The integers that entropy models make of their inputs, call by call.

    A model may quantise a latent more than once; the last time in each call counts, since that is coded.
    """
    symbols: list[Tensor] = []
    hooks = []
    patched: list[tuple[nn.Module, str]] = []

    def watch(module: nn.Module) -> None:
        last: list[Tensor] = []

        def watch_method(name: str) -> None:
            quantise = getattr(module, name)

            def noting(inputs: Tensor, mode: str, means: Any = None, qs: Any = None, **rest: Any) -> Tensor:
                steps = {} if qs is None else {"qs": qs}
                outputs: Tensor = quantise(inputs, mode, means, **steps, **rest)
                levels = outputs if means is None or mode == "symbols" else outputs - means
                last[:] = [torch.round(levels if qs is None or mode == "symbols" else levels / qs)]
                return outputs

            setattr(module, name, noting)
            patched.append((module, name))

        def take(*_: Any) -> None:
            symbols.extend(last)
            last.clear()

        for name in ("quantize", "quantize_variable"):
            if hasattr(module, name):
                watch_method(name)
        hooks.append(module.register_forward_hook(take))

    for module in model.modules():
        if is_quantiser(module):
            watch(module)
    try:
        yield symbols
    finally:
        for hook in hooks:
            hook.remove()
        for module, name in patched:
            delattr(module, name)


def tensors_in(value: Any) -> dict[str, Tensor]:
    """Every tensor of a model's nested output, by its dotted name."""
    tensors, structure = taken_apart(value, lambda inner: isinstance(inner, Tensor))
    return {path or ALONE: tensor for path, tensor in zip(paths(structure), tensors, strict=True)}


def differing(found: Tensor, expected: Tensor) -> int:
    """How many numbers differ; all of them if the shapes do."""
    if found.shape != expected.shape:
        return expected.numel()
    return int((found != expected).sum())


def largest_difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or not expected.numel():
        return float("inf") if found.shape != expected.shape else 0.0
    return float((found.double() - expected.double()).abs().max())


def difference_map(found: Tensor, expected: Tensor) -> DifferenceMap | None:
    """Where two maps differ, in cells; None if nothing differs, or if they are not maps of one size."""
    if found.shape != expected.shape or expected.ndim < 3 or not differing(found, expected):
        return None
    rows, columns = (
        (1, expected.shape[-1]) if expected.ndim == 3 else expected.shape[-2:]
    )  # three dimensions are sound
    cell = ceil(max(rows, columns) / CELLS)
    down, along = ceil(rows / cell), ceil(columns / cell)
    per_position = (found != expected).reshape(-1, rows, columns).sum(0)
    padded = F.pad(per_position, (0, along * cell - columns, 0, down * cell - rows))
    counts = padded.reshape(down, cell, along, cell).sum((1, 3)).tolist()
    return DifferenceMap(rows, columns, cell, tuple(tuple(row) for row in counts))
