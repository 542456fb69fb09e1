"""How a model is called that takes more than a map: other maps, and parameters such as a rate index.

Maps of one size are traced as one, side by side in its channels. Everything else is a parameter: the trace
holds for the values that it was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from overlap_tool.errors import OptionError
from overlap_tool.geometry.layout import Layout
from overlap_tool.graph.copying import with_own_forward
from overlap_tool.graph.returned import Place, put_together, taken_apart


@dataclass(frozen=True, eq=False)
class Example:
    """The arguments of a call, with places in which maps stand."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    channels: tuple[int, ...] = ()
    """Those of the maps. Not known if an example has no map: then it is called with one, first of all."""

    @property
    def layout(self) -> Layout | None:
        """Of the maps as one, side by side in its channels."""
        return Layout.of_map(sum(self.channels)) if self.channels else None

    @staticmethod
    def of(example: Mapping[str, Any] | tuple[Any, ...]) -> Example:
        """From the arguments of a call, or from those by keyword that follow an image."""
        if isinstance(example, Mapping):
            call = (Place(0),), dict(example)
            if _maps_in(call):
                raise OptionError("example", "has maps among keyword arguments", "Give `example` as a tuple")
            return Example(call)
        maps, (args, kwargs) = taken_apart((tuple(example), {}), is_map)
        if not maps:
            raise OptionError(
                "example",
                "has no map, which is a tensor of images, channels, rows and columns",
                "Give an image of any size among the arguments",
            )
        return Example((args, kwargs), tuple(each.shape[1] for each in maps))

    def of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Example] | None:
        """The maps of another call as one, and its arguments as an example; None if tiles do not cover it."""
        maps, (places, named) = taken_apart((args, kwargs), is_map)
        channels = tuple(each.shape[1] for each in maps)
        if not maps or len({(each.shape[0], each.shape[2:], each.dtype) for each in maps}) > 1:
            return None
        if self.channels and channels != self.channels:
            return None
        whole = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        return whole, Example((places, named), self.channels)

    def same_as(self, other: Example) -> bool:
        """Whether all but the maps is the same."""
        (own, shape), (others, other_shape) = tree_flatten(self.arguments), tree_flatten(other.arguments)
        return shape == other_shape and all(map(_same, own, others))

    def call(self, function: Any, whole: Any) -> Any:
        """Call a function with the maps that lie side by side in one."""
        starts = [sum(self.channels[:i]) for i in range(len(self.channels))]
        maps = (
            [whole[:, start : start + n] for start, n in zip(starts, self.channels, strict=True)]
            if len(starts) > 1
            else [whole]
        )
        args, kwargs = put_together(self.arguments, maps)
        return function(*args, **kwargs)

    def applied_to(self, model: nn.Module) -> nn.Module:
        """The same model, on the same weights, as one that takes one map."""
        made, kind = with_own_forward(model), type(model)

        def forward(self: nn.Module, whole: Any) -> Any:
            return example.call(lambda *args, **kwargs: kind.forward(self, *args, **kwargs), whole)

        example = self
        made.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
        return made


def is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def _maps_in(value: Any) -> bool:
    return bool(taken_apart(value, is_map)[0])


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)
