"""Loads a model with weights from a file, from `zoo:NAME`, or from a class of the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from overlap_tool import plugins
from overlap_tool.checkpoint import registry, third_party, zoo
from overlap_tool.checkpoint.artefact import Artefact, is_artefact
from overlap_tool.checkpoint.conditions import StateDict
from overlap_tool.checkpoint.fitting import assemble, refuse_nonfinite
from overlap_tool.checkpoint.hashing import hash_weights
from overlap_tool.checkpoint.origin import Origin, origin_of, remember
from overlap_tool.checkpoint.reading import read_payload, strip_prefixes, weights_of
from overlap_tool.errors import CheckpointError, OptionError, PluginError, UntrustedClassError, WeightsError


@dataclass(frozen=True)
class Loaded:
    """A model ready for inference, and where it came from."""

    model: nn.Module
    """In eval mode, on the CPU, `requires_grad` as built."""
    architecture: str
    """A registered name such as `mbt2018`, `pkg.module:Class`, or the class of a pickled module."""
    arguments: Mapping[str, Any]
    """The constructor's arguments, as JSON can hold them."""
    weights_sha256: str
    source: str
    example: Mapping[str, Any] | None = None
    """How a wrapped model's file says the model is called, if not with an image alone."""

    @staticmethod
    def of(model: nn.Module) -> Loaded:
        """A model that is in memory already."""
        origin = origin_of(model) or Origin(type(model).__qualname__, {})
        return Loaded(model, origin.architecture, origin.arguments, hash_weights(model.state_dict()), "")


def load_checkpoint(
    source: str | os.PathLike[str] | None = None,
    *,
    architecture: str | None = None,
    model_class: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Loaded:
    """Load a model from a checkpoint file, from `zoo:NAME[@QUALITY]`, or of a class of the user's own.

    Without `source`, `model_class` is required, and the weights are as constructed, from a fixed seed.
    Loading a pickled module runs its code, and so does importing the class that a wrapped model's file names:
    both are refused unless `trust` is given. Such a class can also be named as `model_class`.
    """
    plugins.discover()
    where = os.fspath(source) if source else ""
    _refuse_contradictions(where, architecture, model_class, kwargs)
    example = None
    if model_class is not None:
        model, name, arguments, example = _from_class(where, model_class, kwargs, trust)
    elif where.startswith(zoo.PREFIX):
        model, known, arguments = zoo.from_zoo(where)
        name = known.name
    else:
        model, name, arguments, example = _from_file(where, architecture, trust)
    refuse_nonfinite(model, where or name)
    remember(model, Origin(name, arguments))
    return Loaded(model.eval(), name, arguments, hash_weights(model.state_dict()), where, example)


def rebuild(
    architecture: str, arguments: Mapping[str, Any], state: StateDict, where: str, trust: bool = False
) -> nn.Module:
    """The model of an artefact: of a registered architecture or, if trusted, of a class to be imported."""
    plugins.discover()
    if ":" in architecture:
        if not trust:
            raise UntrustedClassError(
                where,
                f"its model is a {architecture}: a file can name any code, and importing it would run it",
                "If you trust whoever made the file, and that code, pass `trust=True`",
            )
        third_party.require_class(architecture)
        try:
            model = third_party.construct(architecture, arguments)
            third_party.fill(model, state, f"{where} as {architecture}")
        except (PluginError, WeightsError) as error:
            told = f"{architecture}, called with {dict(arguments)}, does not make its model: {error.reason}"
            way_out = "Use the code of the model that was saved, or save it again with its `arguments`"
            raise type(error)(where, told, way_out) from error
    elif architecture in registry.names():
        model, _ = assemble(registry.find(architecture), state, where)
    else:
        raise OptionError(
            where,
            f"it holds a {architecture!r}, which no architecture here is called",
            "Install the plugin that knows it, or import its file (on the command line, --plugin FILE.py). "
            f"{registry.known_names()}",
        )
    refuse_nonfinite(model, where)
    remember(model, Origin(architecture, arguments))
    return model


def _refuse_contradictions(
    where: str, architecture: str | None, model_class: str | None, kwargs: Mapping[str, Any] | None
) -> None:
    if not where and model_class is None:
        raise OptionError(
            "SOURCE",
            "no checkpoint was given",
            "Name a file after the command, or a seeded model: zoo:mbt2018",
        )
    if architecture is not None and model_class is not None:
        raise OptionError(
            f"architecture={architecture!r}", "`model_class` names a class already", "Give one of the two"
        )
    if architecture is not None and where.startswith(zoo.PREFIX):
        raise OptionError(
            f"architecture={architecture!r}", f"{where} names one already", "Leave `architecture` out"
        )
    if model_class is not None and where.startswith(zoo.PREFIX):
        raise OptionError(
            f"model_class={model_class!r}", f"{where} is a model of its own", "Give a file, or none"
        )
    if kwargs is not None and model_class is None:
        raise OptionError(
            f"kwargs={dict(kwargs)}",
            "there is no `model_class` to construct",
            'Add `model_class="pkg.module:Class"`',
        )


_Found = tuple[nn.Module, str, dict[str, Any], dict[str, Any] | None]
"""A model, its architecture's name, its constructor's arguments, and its example."""


def _from_class(where: str, model_class: str, kwargs: Mapping[str, Any] | None, trust: bool) -> _Found:
    third_party.look_in_working_folder()
    payload: Any = read_payload(where, trust) if where else None
    example = None
    if is_artefact(payload):
        wrapped = Artefact.parse(payload, where)
        if wrapped.architecture == model_class:
            kwargs = wrapped.arguments if kwargs is None else kwargs
            example = wrapped.example
    model = third_party.construct(model_class, kwargs or {})
    if where:
        found = weights_of(payload, where)
        state = dict(found.state_dict()) if isinstance(found, nn.Module) else found
        third_party.fill(model, state, f"{where} as {model_class}")
    return model, model_class, dict(kwargs or {}), example


def _from_file(where: str, name: str | None, trust: bool) -> _Found:
    forced = registry.find(name) if name is not None else None
    payload = read_payload(where, trust)
    if forced is None and is_artefact(payload):
        # the file names its class itself, which nothing else could do for a class of the user's own
        wrapped = Artefact.parse(payload, where)
        model = rebuild(wrapped.architecture, wrapped.arguments, wrapped.state, where, trust)
        return model, wrapped.architecture, wrapped.arguments, wrapped.example
    found = weights_of(payload, where)
    if isinstance(found, nn.Module):
        return *_from_module(found, where, forced), None
    state = strip_prefixes(found, where)
    architecture = forced or registry.detect(state, where)
    model, arguments = assemble(architecture, state, where)
    return model, architecture.name, arguments, None


def _from_module(
    model: nn.Module, where: str, forced: registry.Architecture | None
) -> tuple[nn.Module, str, dict[str, Any]]:
    """Use a trusted pickled module as it is: the pickle knows its class best."""
    if forced is not None:
        raise CheckpointError(
            where,
            f"it is a whole pickled module, and `architecture={forced.name!r}` cannot change it",
            "Leave `architecture` out",
        )
    kind = type(model)
    if kind.__module__.partition(".")[0] == "compressai" and find_spec("compressai.registry") is not None:
        # a fork may lack them
        from compressai.registry import MODELS

        for name in registry.names():
            if MODELS.get(name) is kind:
                return model.cpu(), name, registry.find(name).arguments(model.state_dict())
    return model.cpu(), f"{kind.__module__}.{kind.__qualname__}", {}
