"""Models of a third-party class: `--model pkg.module:Class --kwargs JSON`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from math import inf
from operator import attrgetter
from pathlib import PurePath
from typing import Any

from torch import nn

from overlap_tool import bounds
from overlap_tool.checkpoint.blank import OverBudgetError, counted_weights
from overlap_tool.checkpoint.conditions import StateDict
from overlap_tool.checkpoint.fitting import fit, respell
from overlap_tool.checkpoint.reading import strippings
from overlap_tool.errors import OptionError, PluginError, WeightsError
from overlap_tool.graph.randomness import OwnRandomness


def look_in_working_folder() -> None:
    """Add the working folder to the module search path, as `python -m` does, for the rest of the process.

    A class may import more when it first runs. This is done for classes that the user names, never for those
    that a file names: whoever filled the folder could choose what runs.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def construct(model_class: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The class, constructed; its random weights are always the same."""
    factory = _import(model_class)
    try:
        model = _built(factory, kwargs)
    except OverBudgetError as error:
        told = f"with {dict(kwargs)} it has over {bounds.MODEL >> 30} GiB of weights, or too many parts"
        raise bounds.beyond(PluginError, model_class, told) from error
    except Exception as error:  # third-party code may raise anything
        raise PluginError(
            model_class,
            f"its constructor refused {dict(kwargs)}: {type(error).__name__}: {error}",
            f"{_asking_for(factory)}, or name a function that makes the model",
        ) from error
    if not isinstance(model, nn.Module):
        raise PluginError(
            model_class, f"it made a {type(model).__name__}, not a torch.nn.Module", "Name a module's class"
        )
    return model


def _built(factory: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """The constructed model. Unless it is small, its size is measured first."""

    def within(budget: int, tensors: int, most: float = inf) -> Any:
        with OwnRandomness(0), counted_weights(budget, tensors, most):
            return factory(**kwargs)

    if not bounds.are_lifted():
        with suppress(OverBudgetError):
            return within(bounds.SMALL_MODEL, bounds.FEW_TENSORS)
        try:
            within(bounds.MODEL, bounds.TENSORS, bounds.SMALL_TENSOR)
        except OverBudgetError:
            raise
        except Exception:  # the constructor reads values, so its requests are counted while it really runs
            return within(bounds.MODEL, bounds.TENSORS)
    with OwnRandomness(0):
        return factory(**kwargs)


def require_class(model_class: str) -> None:
    """Raise unless the name is a module's class: a file's arguments are passed to it."""
    named = _import(model_class)
    if not (isinstance(named, type) and issubclass(named, nn.Module)):
        raise PluginError(
            model_class,
            "it is not the class of a torch.nn.Module, and a wrapped model may name nothing else",
            'Name the class that it makes, with `model_class="pkg.module:Class"`, when you wrap',
        )


def fill(model: nn.Module, state: StateDict, where: str) -> None:
    """Load the weights, with or without wrappers' prefixes, whichever fits this class better."""
    keys = model.state_dict().keys()
    best = max(strippings(state, where), key=lambda one: len(respell(one, model).keys() & keys))
    try:
        fit(model, dict(best), where, _asking_for(type(model)))
    except WeightsError:
        # the class may convert old files of its own
        if type(model).load_state_dict is nn.Module.load_state_dict:
            raise
        try:
            model.load_state_dict(dict(best))
        except Exception:  # the error of `fit` is clearer
            pass
        else:
            return
        raise


def _import(model_class: str) -> Any:
    module_name, _, qualified = model_class.partition(":")
    if not module_name or not qualified:
        raise OptionError(
            f"model_class={model_class!r}", "it names no class", f"Write {_spelled(model_class)}"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs third-party code, which may raise anything
        raise PluginError(
            model_class,
            f"its module cannot be imported: {type(error).__name__}: {error}",
            f"Write {_spelled(model_class)}"
            if "/" in module_name or module_name.endswith(".py")
            else "Install the package that is missing, run in the folder that contains it, or name it in "
            "PYTHONPATH",
        ) from error
    try:
        return attrgetter(qualified)(module)
    except AttributeError as error:
        classes = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module_name
        ]
        near = get_close_matches(qualified, classes, n=1, cutoff=0.0)
        raise PluginError(
            model_class,
            f"the module {module_name} has no {qualified}",
            f"Did you mean {_named(module_name, near[0])}?" if near else "Name a class that it defines",
        ) from error


def _spelled(model_class: str) -> str:
    """The option as it has to be written, guessed from a path or a name with a dot too many."""
    home, colon, name = model_class.partition(":")
    if not colon and not home.endswith(".py"):
        home, _, name = home.rpartition(".")
    path = PurePath(home.removesuffix(".py"))
    module = path.name if path.is_absolute() else ".".join(path.parts)
    return _named(module or "pkg.module", name or "Class" if module else "Class")


def _named(module: str, name: str) -> str:
    return f"`model_class={f'{module}:{name}'!r}`"


def _asking_for(factory: Callable[..., Any]) -> str:
    """The way out where constructor arguments are missing, or do not match the weights."""
    name = getattr(factory, "__name__", "it")
    with suppress(TypeError, ValueError):  # without a signature, as in C
        name += str(inspect.signature(factory).replace(return_annotation=inspect.Signature.empty))
    return f'Give the arguments of {name} with `kwargs`, as in `kwargs={{"width": 64}}`'
