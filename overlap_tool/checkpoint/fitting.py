"""Loads a state dict into a model: old spellings, CDF buffers of any size, and precise errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool.checkpoint.blank import OverBudgetError, blank_weights
from overlap_tool.checkpoint.conditions import StateDict
from overlap_tool.checkpoint.registry import Architecture, listed
from overlap_tool.errors import WeightsError
from overlap_tool.models import coding_tables

_BOTTLENECK_KEY = re.compile(r"\._?(matri(?:x|ces)|bias(?:es)?|factors?)\.?(\d+)$")
_SPARE_BYTES = 64 << 20

ANOTHER_CLASS = 'Name the right one as `architecture`, or bring your class: `model_class="pkg.module:Class"`'
"""The way out where weights do not fit."""


def assemble(architecture: Architecture, state: StateDict, where: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of this architecture with these weights; also return the constructor's arguments."""
    state = architecture.rename(state)
    try:
        arguments = architecture.arguments(state)
    except (KeyError, IndexError) as error:
        raise WeightsError(
            where,
            f"not a {architecture.name}: {listed(architecture.detect.missed(state)) or f'no {error}'}",
            "Leave `architecture` out to have the architecture detected from the weights",
        ) from error
    if not all(_positive(value) for value in arguments.values()):
        raise WeightsError(
            where,
            f"a {architecture.name} with {arguments} cannot be: its widths must be positive",
            "Check that the file was written completely, and by the training code you expect",
        )
    # a forged width must not allocate more than the file itself could hold
    budget = 4 * sum(tensor.numel() for tensor in state.values()) + _SPARE_BYTES
    try:
        with blank_weights(budget):
            model = architecture.build(**arguments)
    except (OverBudgetError, AssertionError, ValueError, RuntimeError) as error:
        reason = str(error) or "it would be far larger than the weights in the file"
        raise WeightsError(
            where,
            f"a {architecture.name} with {arguments}, as read from the shapes, cannot be built: {reason}",
            ANOTHER_CLASS,
        ) from error
    fit(model, state, f"{where} as {architecture.name}")
    return model, arguments


def fit(model: nn.Module, state: StateDict, where: str, way_out: str = ANOTHER_CLASS) -> None:
    """Load these weights into the model, strictly; the model owns its tensors afterwards."""
    state = respell(state, model)
    _resize_cdf_buffers(model, state, where)
    expected = model.state_dict()
    _refuse_misfit(state, expected, where, way_out)
    owned = {key: _owned(tensor, expected[key].dtype) for key, tensor in state.items()}
    # not by the model's own method: CompressAI's resizes and renames again, and cannot assign
    nn.Module.load_state_dict(model, owned, strict=True, assign=True)


def respell(state: StateDict, model: nn.Module) -> StateDict:
    """Rename keys that older or newer versions of CompressAI spell differently to this model's names."""
    keys = model.state_dict().keys()
    spelling = {_canonical(key): key for key in keys}
    return {
        key if key in keys else spelling.get(_canonical(key), key): tensor for key, tensor in state.items()
    }


def refuse_nonfinite(model: nn.Module, where: str) -> None:
    """Raise for NaN anywhere, and for infinity in a weight; a buffer, such as a mask, may hold infinity."""
    bad = [key for key, weight in model.named_parameters() if not weight.isfinite().all()]
    bad += [key for key, buffer in model.named_buffers() if buffer.isnan().any()]
    if bad:
        raise WeightsError(
            where,
            f"NaN or infinite weights in {listed(bad)}",
            "The training probably diverged: use an earlier checkpoint",
        )


def _canonical(key: str) -> str:
    key = key.replace(".downsample.", ".skip.")
    if "entropy_bottleneck" not in key:
        return key
    return _BOTTLENECK_KEY.sub(lambda match: f".{match[1][:4]}.{match[2]}", key)


def _resize_cdf_buffers(model: nn.Module, state: StateDict, where: str) -> None:
    """Give the model's CDF buffers the sizes in the file; absent ones count as not yet computed."""
    for name, module in coding_tables.entropy_models(model):
        prefix = f"{name}." if name else ""
        for buffer in coding_tables.BUFFERS:
            if buffer in module._buffers:
                present = module._buffers[buffer]
                found = state.setdefault(prefix + buffer, torch.empty(0))
                if present is not None:
                    module._buffers[buffer] = torch.empty(found.shape, dtype=present.dtype)
        names = [one for one in coding_tables.tables_of(module) if prefix + one in state]
        tables = {one: state[prefix + one] for one in names}
        coding_tables.refuse_broken(tables, f"{where}, {name}" if name else where)


def _refuse_misfit(state: StateDict, expected: Mapping[str, Tensor], where: str, way_out: str) -> None:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}"
        for key, tensor in state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    problems = [
        text
        for found, text in (
            (missing, f"missing keys: {listed(missing)}"),
            (unexpected, f"unexpected keys: {listed(unexpected)}"),
            (shapes, f"wrong shapes: {listed(shapes)}"),
        )
        if found
    ]
    if problems:
        raise WeightsError(where, ". ".join(problems), way_out)


def _owned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # copied, since the file may be mapped and change later
    return tensor.detach().to(dtype=dtype, copy=True, memory_format=torch.contiguous_format)


def _positive(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_positive(item) for item in value)
    return isinstance(value, bool) or not isinstance(value, int) or value > 0
