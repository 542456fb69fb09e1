"""The call of a model that takes more than one map: other maps, and parameters such as a rate index.

Maps of one size are traced as one, side by side in its channels. Everything else is a parameter: a trace
holds for the parameter values that it was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import getattr_static, isfunction
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from overlap_tool.errors import OptionError
from overlap_tool.geometry.layout import Layout
from overlap_tool.graph.copying import with_own_forward
from overlap_tool.graph.returned import Place, put_together, taken_apart
from overlap_tool.graph.standing_in import StandIn

FORWARD = "forward"

SHOWN = 40
"""The most characters of a parameter that reports show."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Parameters, besides tensors, that a file without code can hold, alone or in tuples, lists and dicts."""


@dataclass(frozen=True, eq=False)
class Example:
    """The arguments of a call, with places for maps."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    channels: tuple[int, ...] = ()
    """The channels of the maps. Empty if the example has none: then an image of any channels comes first."""
    method: str = FORWARD
    """The method that is called."""

    @property
    def layout(self) -> Layout | None:
        """The layout of all maps as one, side by side in its channels."""
        return Layout.of_map(sum(self.channels)) if self.channels else None

    @property
    def has_tensors(self) -> bool:
        """Whether any parameter is a tensor."""
        return any(isinstance(value, Tensor) for value in tree_leaves(self.arguments))

    @staticmethod
    def of(example: Given, method: str | None = None) -> Example | None:
        """From positional arguments, or keyword arguments, which follow an image if none of them is a map.

        None if the model is called with an image alone, as most are.
        """
        if isinstance(example, Example) or (example is None and method is None):
            return example
        named = example is None or isinstance(example, Mapping)
        call = ((), dict(example or {})) if named else (tuple(example or ()), {})
        made = Example.of_arguments(*call, method or FORWARD)
        if made.channels:
            return made
        if named:
            return Example(((Place(0),), made.arguments[1]), (), made.method)
        raise OptionError(
            "example",
            "has no map, which is a tensor of images, channels, rows and columns",
            "Give an image of any size among the arguments",
        )

    @staticmethod
    def of_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], method: str) -> Example:
        maps, (places, named) = taken_apart((args, kwargs), _is_map_among((args, kwargs)))
        return Example((places, named), tuple(each.shape[1] for each in maps), method)

    def as_data(self, channels: int) -> dict[str, Any]:
        """What a file stores, for `of_data`: a call with small maps. `channels` are those of all maps
        together."""
        for value in tree_leaves(self.arguments):
            if not isinstance(value, Place | Tensor) and type(value) not in PLAIN:
                raise OptionError(
                    "example",
                    f"has a {type(value).__name__} in it, which a file without code cannot hold",
                    "Save the model's own weights, and wrap it after loading them",
                )
        maps = [torch.zeros(1, each, 2, 2) for each in self.channels or (channels,)]
        args, kwargs = put_together(tree_map(_stored, self.arguments), maps)
        return {"method": self.method, "args": args, "kwargs": kwargs}

    @staticmethod
    def of_data(data: Mapping[str, Any] | None) -> Example | None:
        if data is None:
            return None
        return Example.of_arguments(data["args"], data["kwargs"], data["method"])

    def __str__(self) -> str:
        args, kwargs = self.arguments
        given = [*map(_shown, args), *(f"{name}={_shown(value)}" for name, value in kwargs.items())]
        return f"{self.method}({', '.join(given)})"

    def of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Example] | None:
        """The maps of another call as one tensor, and its arguments as an example; None if not tiled."""
        maps, (places, named) = taken_apart((args, kwargs), _is_map_among((args, kwargs)))
        channels = tuple(each.shape[1] for each in maps)
        if not maps or len({(each.shape[0], each.shape[2:], each.dtype) for each in maps}) > 1:
            return None
        if self.channels and channels != self.channels:
            return None
        whole = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        return whole, Example((places, named), self.channels, self.method)

    def same_as(self, other: Example) -> bool:
        """Whether everything but the maps is the same."""
        (own, shape), (others, other_shape) = tree_flatten(self.arguments), tree_flatten(other.arguments)
        return shape == other_shape and all(map(_same, own, others))

    def function_of(self, kind: type[nn.Module]) -> Callable[..., Any]:
        """The method, of a class of models."""
        named = self.method == FORWARD or (
            not hasattr(nn.Module, self.method) and isfunction(getattr_static(kind, self.method, None))
        )
        if not named:
            raise OptionError(
                f"method={self.method!r}",
                f"is no method of {kind.__name__} that takes maps",
                f"Give one of these as `method`: {', '.join(_methods_of(kind))}",
            )
        function: Callable[..., Any] = getattr(kind, self.method)
        return function

    def run(self, model: nn.Module, whole: Tensor) -> Any:
        """What the model returns for maps that lie side by side in one tensor."""
        return self.call(model if self.method == FORWARD else getattr(model, self.method), whole)

    def call(self, function: Callable[..., Any], whole: Any) -> Any:
        """Call a function with maps that lie side by side in one tensor."""
        starts = [sum(self.channels[:i]) for i in range(len(self.channels))]
        maps = (
            [whole[:, start : start + n] for start, n in zip(starts, self.channels, strict=True)]
            if len(starts) > 1
            else [whole]
        )
        args, kwargs = put_together(self.arguments, maps)
        return function(*args, **kwargs)

    def applied_to(self, model: nn.Module) -> nn.Module:
        """The model, on the same weights, as one that takes a single map."""
        made, kind = with_own_forward(model), type(model)
        function = self.function_of(kind)

        def forward(self: nn.Module, whole: Any) -> Any:
            self.__class__ = kind  # the method may call the model, which has to run its own forward
            try:
                return example.call(partial(function, self), whole)
            finally:
                self.__class__ = one_map

        example = self
        one_map = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
        made.__class__ = one_map
        return made


def _stored(value: Any) -> Any:
    """A tensor that owns its numbers, unlike a view."""
    return (
        value.detach().cpu().clone(memory_format=torch.contiguous_format)
        if isinstance(value, Tensor)
        else value
    )


def _shown(value: Any) -> str:
    if isinstance(value, Place):
        return "map"
    if isinstance(value, Tensor):
        return f"tensor of {list(value.shape)}"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        inside = ", ".join(map(_shown, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return shorten(repr(value), SHOWN)


def is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def _is_map_among(call: Any) -> Callable[[Any], bool]:
    """Which arguments of a call are maps.

    Beside a larger map, a tensor of one row and one column is a parameter, such as a quantisation step per
    channel.
    """
    sizes = {tuple(leaf.shape[2:]) for leaf in tree_leaves(call) if is_map(leaf)}
    parameters = {(1, 1)} if sizes - {(1, 1)} else set()
    return lambda value: is_map(value) and tuple(value.shape[2:]) not in parameters


Given = Mapping[str, Any] | tuple[Any, ...] | Example | None
"""What users give as an example."""


def example_of(model: nn.Module) -> Example | None:
    """The example that a model was wrapped with, if any."""
    found = (getattr(value, "example", None) for value in vars(model).values() if isinstance(value, StandIn))
    return next((example for example in found if isinstance(example, Example)), None)


def _methods_of(kind: type[nn.Module]) -> Iterator[str]:
    yield FORWARD
    for name in dir(kind):
        if (
            not name.startswith("_")
            and not hasattr(nn.Module, name)
            and isfunction(getattr_static(kind, name))
        ):
            yield name


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)
