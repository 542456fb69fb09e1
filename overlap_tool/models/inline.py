"""Stages that a class computes inline: its forward calls several parts, none of which maps one map to one
map.

Swin transformers pass tokens from layer to layer, with a height and a width. A plugin that knows such a class
provides each stage as one module, on the same weights, and says where the stage begins and ends. When it runs
in tiles, the class keeps its own methods: one of the parts computes the whole stage, and the others return
their input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from overlap_tool.errors import PluginError
from overlap_tool.graph.copying import twin as twin
from overlap_tool.graph.standing_in import StandIn


@dataclass(frozen=True)
class InlineStage:
    """A stage of one model as a module, and how it replaces the parts that compute it there."""

    name: str
    module: nn.Module
    """Maps one map to one map. Its parameters are those of the parts: the same objects, not copies. If it
    calls the parts themselves, it calls a `twin` of them, whose forward is not replaced."""
    begins: tuple[nn.Module, Callable[..., Tensor]]
    """The part that is called first, and a function from its arguments to the stage's input."""
    ends: tuple[nn.Module, Callable[[Any], Tensor]]
    """The part that is called last, and a function from its result to the stage's output."""
    forwards: Mapping[nn.Module, Callable[..., Any]]
    """For every part, what it computes when the stage is computed as one: a function of the stage's module
    and the part's arguments. Copies of a model share these functions, so they hold no module themselves."""

    def serve(self) -> None:
        """Make the model's parts compute the stage by this module."""
        for part, forward in self.forwards.items():
            part.forward = PartForward(part, self.name, self.module, forward)

    def release(self) -> None:
        """Restore the parts' own forwards."""
        for part in self.forwards:
            del part.forward


class PartForward(StandIn):
    """The forward of one part of a stage that is computed as one."""

    def __init__(self, part: nn.Module, name: str, stage: nn.Module, forward: Callable[..., Any]) -> None:
        self.part = part
        self.name = name
        self.stage = stage
        self.forward = forward

    def __call__(self, *args: Any) -> Any:
        # it is not a submodule, so `train` and `eval` do not reach it
        self.stage.training = self.part.training
        return self.forward(self.stage, *args)


InlineBuilder = Callable[[Any], Sequence[InlineStage]]
AnyInlineBuilder = TypeVar("AnyInlineBuilder", bound=InlineBuilder)

_builders: dict[str, InlineBuilder] = {}


def register_inline_stages(qualified_name: str) -> Callable[[AnyInlineBuilder], AnyInlineBuilder]:
    """Register a function that makes the inline stages of models of a class, "package.module.Class".

    The function raises for an instance that it does not support. Its stages are tried before they are used:
    on a small image, the model has to give the same bits with them as without.
    """

    def add(builder: AnyInlineBuilder) -> AnyInlineBuilder:
        if qualified_name in _builders:
            raise PluginError(
                qualified_name, "its inline stages are registered already", "Register them once only"
            )
        _builders[qualified_name] = builder
        return builder

    return add


def stages_of(model: nn.Module) -> tuple[InlineStage, ...]:
    """The inline stages of a model of exactly this class: a derived class may compute something else."""
    kind = type(model)
    builder = _builders.get(f"{kind.__module__}.{kind.__qualname__}")
    return () if builder is None else tuple(builder(model))


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model by name, and the inline stages that replace some of them."""
    for name, module in model.named_modules():
        yield name, module
        forward = vars(module).get("forward")
        if isinstance(forward, PartForward):
            yield forward.name, forward.stage
