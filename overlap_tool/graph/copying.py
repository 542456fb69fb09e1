"""Copies of models: in the same modes as the original, sharing what cannot be copied."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from overlap_tool.errors import CopyError
from overlap_tool.graph.standing_in import StandIn

Model = TypeVar("Model", bound=nn.Module)


def copied(model: Model) -> Model:
    """A copy with its own weights. Parts that refuse to be copied, such as a coder in C++, are shared."""
    instead: dict[int, Any] = {}
    while True:
        try:
            made = copy.deepcopy(model, dict(instead))
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            refused = _what_refused(error)
            if id(refused) in instead or _must_be_copied(refused):
                reason = str(error).strip().split("\n")[0]
                raise CopyError(
                    f"{type(model).__name__} ({type(model).__module__})",
                    f"cannot be copied: its {type(refused).__name__} says {reason!r}",
                    f"Give {type(refused).__name__} a __deepcopy__ that works",
                ) from error
            instead[id(refused)] = refused.detach().clone() if isinstance(refused, Tensor) else refused
        else:
            put_in_modes(made, modes(model))
            return made


def twin(module: nn.Module) -> nn.Module:
    """The same modules anew, on the same weights and attributes: forwards can be replaced in the twin alone.

    Other threads may be running the original.
    """
    made: dict[nn.Module, nn.Module] = {}

    def of(part: nn.Module) -> nn.Module:
        if part not in made:
            # parametrized modules refuse copy.copy
            made[part] = object.__new__(type(part))
            attributes = vars(made[part])
            attributes.update(vars(part))
            for key in ("_parameters", "_buffers", "_modules"):
                attributes[key] = attributes[key].copy()
            attributes["_modules"].update(
                (name, of(inside)) for name, inside in part._modules.items() if inside is not None
            )
        return made[part]

    return of(module)


def with_own_forward(module: Model) -> Model:
    """The module on the same parts and weights, with its class's own forward and other tiled methods
    restored."""
    made: Model = object.__new__(type(module))
    vars(made).update((name, value) for name, value in vars(module).items() if not isinstance(value, StandIn))
    vars(made).pop("forward", None)
    return made


def modes(module: nn.Module) -> dict[str, bool]:
    """Which parts are in training mode, by name."""
    return {name: part.training for name, part in module.named_modules()}


def put_in_modes(module: nn.Module, wanted: Mapping[str, bool]) -> None:
    """Set each part's mode, from the outside in.

    By `train`, which may do more than set a flag: a module made by torchvision's `create_feature_extractor`
    switches its graph there, and every copy of it starts in training mode.
    """
    for name, part in module.named_modules():
        mode = wanted.get(name, part.training)
        if part.training != mode:
            part.train(mode)


def _what_refused(error: Exception) -> Any:
    """The object that the innermost call of `deepcopy` was copying."""
    refused, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is copy.deepcopy.__code__:
            refused = trace.tb_frame.f_locals["x"]
        trace = trace.tb_next
    return refused


def _must_be_copied(refused: Any) -> bool:
    """Whether it is a module or a weight, which every copy needs, and not a tensor computed of weights."""
    is_weight = isinstance(refused, Tensor) and refused.is_leaf
    return refused is None or isinstance(refused, nn.Module) or is_weight
