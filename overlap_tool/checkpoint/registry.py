"""The registry of known architectures, by name; plugins add theirs."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from overlap_tool.checkpoint.conditions import Condition, StateDict
from overlap_tool.errors import OptionError, PluginError, UnknownArchitectureError


def unchanged(state: StateDict) -> StateDict:
    return state


@dataclass(frozen=True)
class Architecture:
    """How to recognise a state dict, read hyper-parameters from its shapes, and build its model."""

    name: str
    detect: Condition
    arguments: Callable[[StateDict], dict[str, Any]]
    build: Callable[..., nn.Module]
    """Called with `**arguments`; its imports are deferred until then."""
    small: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of a small instance, for tests."""
    default: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `zoo:NAME`."""
    rename: Callable[[StateDict], StateDict] = unchanged
    """Renames this architecture's old keys to the current ones."""
    pretrained: Callable[[int], nn.Module] | None = None
    """`zoo:NAME@QUALITY`; raises ValueError for a quality that was never published."""


_architectures: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> Architecture:
    """Add an architecture, or raise and leave the registry unchanged."""
    if not isinstance(architecture, Architecture) or not isinstance(architecture.detect, Condition):
        raise PluginError(
            f"register_architecture({architecture!r})",
            "not an Architecture with a Condition to detect it",
            "Pass overlap_tool.checkpoint.Architecture(name=..., detect=..., arguments=..., build=...)",
        )
    if architecture.name in _architectures:
        raise PluginError(
            f"architecture {architecture.name!r}",
            "an architecture of this name is registered already",
            "Choose another name, or register it once only",
        )
    _architectures[architecture.name] = architecture
    return architecture


def names() -> tuple[str, ...]:
    return tuple(_architectures)


def find(name: str, written: str | None = None) -> Architecture:
    """The architecture of this name; `written` is how the user wrote it, if not as `architecture`."""
    if name in _architectures:
        return _architectures[name]
    written = written or f"architecture={name!r}"
    near = difflib.get_close_matches(name, _architectures, n=1, cutoff=0.4)
    raise OptionError(
        written,
        f"no architecture is called {name!r}",
        (f"Did you mean {_in_text(written.replace(name, near[0]))}? " if near else "") + known_names(),
    )


def _in_text(written: str) -> str:
    return f"`{written}`" if "=" in written else written


def known_names() -> str:
    """The known architectures, as an error message lists them."""
    return f"Known are {', '.join(_architectures)}; a plugin that is installed adds its own"


def detect(state: StateDict, where: str = "the state dict") -> Architecture:
    """The one architecture whose condition holds for these keys and shapes."""
    matches = [one for one in _architectures.values() if one.detect(state)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UnknownArchitectureError(
            where,
            f"it fits several architectures: {', '.join(one.name for one in matches)}",
            f"Name the right one: {' or '.join(f'`architecture={one.name!r}`' for one in matches)}",
        )
    nearest = min(_architectures.values(), key=lambda one: _distance(one.detect, state))
    missed = nearest.detect.missed(state)
    raise UnknownArchitectureError(
        where,
        f"no known architecture fits its {len(state)} tensors ({_prefixes(state)}); the nearest is "
        f"{nearest.name}, but: {listed(missed)}",
        'Bring its class with `model_class="pkg.module:Class"` and `kwargs={"width": 64}`, install the '
        f"plugin that knows it, or name it as `architecture`. {known_names()}",
    )


def listed(texts: Iterable[str], limit: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    listed = list(texts)
    rest = f"; and {len(listed) - limit} more" if len(listed) > limit else ""
    return "; ".join(listed[:limit]) + rest


def _distance(condition: Condition, state: StateDict) -> float:
    return len(condition.missed(state)) / condition.weight


def _prefixes(state: StateDict) -> str:
    counts = Counter(key.split(".")[0] for key in state)
    return listed((f"{prefix}.*: {count}" for prefix, count in counts.most_common()), 6).replace(";", ",")
