"""Somebody else's class: `--model pkg.module:Class --kwargs JSON`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from overlap_tool.checkpoint.conditions import StateDict
from overlap_tool.checkpoint.fitting import fit, respell
from overlap_tool.checkpoint.reading import strippings
from overlap_tool.errors import OptionError, PluginError, WeightsError


def construct(model_class: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The class, constructed; its random weights are always the same."""
    factory = _import(model_class)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = factory(**kwargs)
        except Exception as error:  # Their code: it may raise anything.
            raise PluginError(
                model_class,
                f"its constructor refused {dict(kwargs)}: {type(error).__name__}: {error}",
                "Give the constructor's arguments with --kwargs, as JSON",
            ) from error
    if not isinstance(model, nn.Module):
        raise PluginError(
            model_class, f"it made a {type(model).__name__}, not a torch.nn.Module", "Name a module's class"
        )
    return model


def fill(model: nn.Module, state: StateDict, where: str) -> None:
    """Loads the weights, with or without wrappers' prefixes, whichever fits this class better."""
    keys = model.state_dict().keys()
    best = max(strippings(state, where), key=lambda one: len(respell(one, model).keys() & keys))
    try:
        fit(model, dict(best), where)
    except WeightsError:
        # The class may know old files of its own that we do not.
        if type(model).load_state_dict is nn.Module.load_state_dict:
            raise
        try:
            model.load_state_dict(dict(best))
        except Exception:  # Then our own account of the misfit is the clearer one.
            pass
        else:
            return
        raise


def _import(model_class: str) -> Any:
    module_name, _, qualified = model_class.partition(":")
    if not module_name or not qualified:
        raise OptionError(
            f"--model {model_class}", "it names no class", "Write it as pkg.module:Class, with one colon"
        )
    # As `python -m` does, and for good: the class may import more of its package when it first runs.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # Importing runs their code: it may raise anything.
        raise PluginError(
            model_class,
            f"its module cannot be imported: {type(error).__name__}: {error}",
            "Install the package, or run in the folder that contains it",
        ) from error
    try:
        return attrgetter(qualified)(module)
    except AttributeError as error:
        raise PluginError(
            model_class, f"the module {module_name} has no {qualified}", "Check the name of the class"
        ) from error
