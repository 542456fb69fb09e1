"""Finding the stages of a model: its largest traceable parts with spatial context and no quantiser inside.

The model is run once on a small image, in a copy, to see which of its parts map one map to one map, and at
which scale. Everything else is static.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool.errors import OptionError, TraceError
from overlap_tool.network import Network
from overlap_tool.rules import is_quantiser
from overlap_tool.trace import input_channels, trace

TRIAL_IMAGES = (64, 256)
"""Sides of the square images on which a model is tried, smaller first since it is quicker."""


@dataclass(frozen=True)
class Stage:
    """A part of a model that can be computed tile by tile."""

    name: str
    module: nn.Module
    network: Network
    input_scale: Fraction
    """Samples of its input per pixel of the image, on either axis."""


@dataclass(frozen=True)
class Survey:
    """The stages of a model, and what images it takes: their channels, and the number that their sides must
    be a multiple of."""

    stages: tuple[Stage, ...]
    multiple: int
    channels: int


def survey(model: nn.Module, only: str | None = None) -> Survey:
    """The stages of a model in the order in which it defines them.

    `only` picks one, by its name or the last part of it, or names any other part that maps one map to one;
    nothing else is traced then.
    """
    coded = _contains_quantiser(model)
    scales, channels = _observed_scales(model) if coded or only else ({"": Fraction(1)}, None)
    if only is not None:
        path = _path_of(only, [path for path in scales if path] or [""], model)
        module = model.get_submodule(path)
        stages: tuple[Stage, ...] = (Stage(path, module, trace(module, path), scales[path]),)
    else:
        stages = tuple(_walk("", model, scales))
    if coded and not stages:
        raise TraceError(
            type(model).__name__,
            "has no part with spatial context outside its quantisers",
            "Give the module that holds the transforms, with --model",
        )
    multiple = lcm(*(scale.denominator for scale in scales.values())) if coded else 1
    return Survey(stages, multiple, channels or stages[0].network.ops[0].channels)


def _walk(path: str, module: nn.Module, scales: dict[str, Fraction]) -> Iterator[Stage]:
    if is_quantiser(module):
        return
    if path in scales and not _contains_quantiser(module):
        network = trace(module, path)
        if network.has_spatial_context or not path:
            yield Stage(path, module, network, scales[path])
        return
    for name, child in module.named_children():
        yield from _walk(f"{path}.{name}" if path else name, child, scales)


def _contains_quantiser(module: nn.Module) -> bool:
    return any(is_quantiser(part) for part in module.modules())


def _path_of(name: str, paths: list[str], model: nn.Module) -> str:
    """The one path that is `name`, or ends in it as a whole part."""
    if name in paths:
        return name
    matching = [path for path in paths if path.rpartition(".")[2] == name]
    if len(matching) == 1:
        return matching[0]
    close = matching or get_close_matches(name, paths, n=5, cutoff=0.0)
    raise OptionError(
        f"--stage {name}",
        "several parts end in that name" if matching else f"{type(model).__name__} has no such part",
        f"Parts of it are {', '.join(close)}",
    )


def _observed_scales(model: nn.Module) -> tuple[dict[str, Fraction], int]:
    """For each part that is called with one map and returns one: the scale of its input. And the channels of
    the image."""
    failures: list[Exception] = []
    for side in TRIAL_IMAGES:
        for channels in input_channels(model):
            try:
                return _run_once(copy.deepcopy(model).eval(), channels, side), channels
            except Exception as failure:
                failures.append(failure)
    reason = str(failures[0]).strip().split("\n")[0]
    raise TraceError(
        type(model).__name__,
        f"cannot be run on a {TRIAL_IMAGES[0]}x{TRIAL_IMAGES[0]} image to see its stages: {reason}",
        "Give the module that holds the transforms, with --model",
    )


def _run_once(model: nn.Module, channels: int, side: int) -> dict[str, Fraction]:
    scales: dict[str, Fraction] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if len(args) == 1 and _is_map(args[0]) and _is_map(output):
                scales.setdefault(path, Fraction(args[0].shape[-2], side))

        return note

    for path, module in model.named_modules():
        module.register_forward_hook(watch(path))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        model(torch.full((1, channels, side, side), 0.5, device=device, dtype=dtype))
    return scales


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4
