"""Finds the stages of a model: its largest traceable parts with spatial context and no quantiser inside.

A part that cannot be tiled raises an error, unless it works on latents: then the model's own code runs it
whole. A copy of the model is run once on a small image, to see which parts map one map to one map, at which
scale, and which round: a quantiser is known by its class or by what it does. Everything else is static.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from overlap_tool import plugins
from overlap_tool.errors import OptionError, TraceError
from overlap_tool.geometry.layout import Layout
from overlap_tool.graph.copying import copied
from overlap_tool.graph.example import FORWARD, Example
from overlap_tool.graph.network import Network
from overlap_tool.graph.standing_in import put_back
from overlap_tool.graph.trace import input_channels, trace
from overlap_tool.graph.tracer import TrialError, tensors
from overlap_tool.models import inline
from overlap_tool.models.closed_loop import ClosedLoop
from overlap_tool.models.inline import InlineStage
from overlap_tool.models.rounding import RoundingWatch
from overlap_tool.rules import engine, is_quantiser

TRIAL_IMAGES = (64, 256)
"""Heights of the images on which a model is tried, the quicker first. The images are three times as wide, so
that every map is wider than high, even half of one, as in a checkerboard; the output of a barrier, such as a
pool to 3x3, is not."""

NAME_QUANTISER = (
    "If it is a codec whose parts are to be tiled: nothing in it was seen to round, so name the class that "
    'quantises, with overlap_tool.rules.register_quantiser("package.module.Class")'
)


@dataclass(frozen=True)
class Stage:
    """A part of a model that can be computed tile by tile."""

    name: str
    module: nn.Module
    network: Network
    input_scale: Fraction
    """Samples of its input per pixel of the image, on either axis."""
    inline: InlineStage | None = None
    """How the model computes it, if not by calling this module."""
    example: Example | None = None
    """How the module is called, if not with one map."""

    @property
    def begins(self) -> tuple[nn.Module, Callable[..., Tensor]]:
        """The part of the model whose call begins the stage, and the function from its arguments to the
        input."""
        return (self.module, _itself) if self.inline is None else self.inline.begins

    @property
    def ends(self) -> tuple[nn.Module, Callable[[Any], Any]]:
        """The part whose call ends the stage, and the function from its result to the output."""
        return (self.module, _itself) if self.inline is None else self.inline.ends

    def run_by(self, forward: Callable[..., Any]) -> None:
        """Make the model compute the stage by this function."""
        setattr(self.module, self._method, forward)
        if self.inline is not None:
            self.inline.serve()

    def run_by_itself(self) -> None:
        """Make the model's own code compute the stage again."""
        delattr(self.module, self._method)
        if self.inline is not None:
            self.inline.release()

    @property
    def _method(self) -> str:
        return FORWARD if self.example is None else self.example.method


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Untiled:
    """A part that stays whole: the model's own code runs it on whole maps, tiled or not."""

    name: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """The stages of a model, the channels of its images, and the number that their sides must be a multiple
    of."""

    stages: tuple[Stage, ...]
    multiple: int
    channels: int
    untiled: tuple[Untiled, ...] = ()
    loop: ClosedLoop | None = None
    """The model, if it is a closed loop: its stages are the networks that it runs for every block."""


@dataclass
class _Observed:
    """What one run of a model revealed about its parts."""

    scales: dict[str, Fraction] = field(default_factory=dict)
    """For each part that is called with one map and returns one: samples of its input per pixel."""
    inputs: dict[str, Layout] = field(default_factory=dict)
    """For each part in `scales`, the layout of its input."""
    finest: dict[str, Fraction] = field(default_factory=dict)
    """For each part in `scales`, the larger of the scales of input and output."""
    several: set[str] = field(default_factory=set)
    """The parts that take or return several maps."""
    latent: Fraction = Fraction(0)
    """The finest scale at which something is quantised."""
    rounding: set[str] = field(default_factory=set)
    """The parts in which a map coarser than the image is rounded."""
    channels: int | None = None
    """The channels of the image."""
    inline_holds: bool = True
    """Whether the model gives the same bits when its inline stages are computed as one each."""


def survey(model: nn.Module, only: str | None = None, example: Example | None = None) -> Survey:
    """The stages of a model, in the order in which it defines them.

    `only` picks one, by its name or the last part of it, or names any other part that maps one map to one;
    nothing else is traced then. A model that is called as in an `example`, and is not a codec, is a single
    stage.
    """
    plugins.discover()  # for their rules
    if isinstance(model, ClosedLoop):
        if example is not None:
            raise OptionError(
                "example", f"{type(model).__name__} is a closed loop, which reads one image", "Leave it out"
            )
        return _of_closed_loop(model, only)
    inlined = {each.name: each for each in inline.stages_of(model)}
    if only is None and not inlined and not _contains_quantiser(model):
        found = _rounding_or_plain(model, example)
        if isinstance(found, Stage):
            return Survey((found,), 1, found.network.ops[0].channels)
        seen = found
    else:
        seen = _observed(model, example)
    if not seen.inline_holds:
        raise TraceError(
            f"{type(model).__name__} ({type(model).__module__})",
            f"computes something else than what is registered for {' and '.join(inlined)} of its class",
            "Use the version of its code that the plugin knows, or leave `model_class` out, if the weights "
            "are recognised without it",
        )
    if only is not None:
        path = _path_of(only, [path for path in seen.scales if path] or [""], model)
        module = inlined[path].module if path in inlined else model.get_submodule(path)
        parts: list[Stage | Untiled] = [_stage(path, module, seen, inlined.get(path))]
    else:
        parts = [_stage(name, each.module, seen, each) for name, each in inlined.items()]
        parts += _walk("", model, seen)
    stages = tuple(part for part in parts if isinstance(part, Stage))
    untiled = tuple(part for part in parts if isinstance(part, Untiled))
    coded = bool(seen.rounding) or _contains_quantiser(model)
    if coded and not stages:
        raise TraceError(
            type(model).__name__,
            "has no part with spatial context outside its quantisers",
            "Give the module that holds the transforms, or its class as `model_class`",
        )
    placed = ((stage.network, stage.input_scale) for stage in stages)
    multiple = fitting_multiple(seen.scales.values(), placed) if coded else 1
    return Survey(stages, multiple, seen.channels or stages[0].network.ops[0].channels, untiled)


def _rounding_or_plain(model: nn.Module, example: Example | None) -> _Observed | Stage:
    """What a run revealed of a codec that rounds in its own code; for any other model, its single stage."""
    codec, failure = hasattr(model, "compress"), None
    if codec:
        try:
            seen = _observed(model, example)
        except TraceError as error:
            failure = error
        else:
            if seen.rounding:
                return seen
    try:
        if example is None:
            return Stage("", model, trace(model, ""), Fraction(1))
        network = trace(example.applied_to(model), "", example.layout)
        return Stage("", model, network, Fraction(1), example=example)
    except TraceError as refusal:
        if failure is not None:
            raise failure from refusal
        if codec:
            raise type(refusal)(
                refusal.where, refusal.reason, f"{refusal.way_out}. {NAME_QUANTISER}"
            ) from refusal
        with suppress(TraceError):
            seen = _observed(model, example)
            if seen.rounding:
                return seen
        if isinstance(refusal, TrialError) and example is not None and example.has_tensors:
            raise TrialError(
                refusal.where,
                f"{refusal.reason}. The maps are of two images, and the example's other tensors as given",
                "Let the model's code take these for any number of images, or pass them as maps, with the "
                "rows and columns of the image",
            ) from refusal
        raise


def _stage(path: str, module: nn.Module, seen: _Observed, inlined: InlineStage | None = None) -> Stage:
    return Stage(path, module, trace(module, path, seen.inputs.get(path)), seen.scales[path], inlined)


def fitting_multiple(scales: Iterable[Fraction], stages: Iterable[tuple[Network, Fraction]]) -> int:
    """The multiple for which every part gets whole samples, and every stage whole periods of strides and
    windows.

    `scales` are of the parts' inputs and outputs, in samples per pixel of the image; each stage has its
    input's.
    """
    patterns = (axis.period / scale for network, scale in stages for axis in (network.rows, network.columns))
    return lcm(*(scale.denominator for scale in scales), *(pattern.numerator for pattern in patterns))


def _of_closed_loop(model: ClosedLoop, only: str | None) -> Survey:
    """The networks of a closed loop, which work on a grid of blocks."""
    if only is not None and only not in model.networks:
        known = ", ".join(model.networks)
        raise OptionError(
            f"stage={only!r}", "the model has no such network", f"Give one of these as `stage`: {known}"
        )
    stages = (
        Stage(name, network, trace(network, name), Fraction(1, model.block))
        for name, network in model.networks.items()
        if only in (None, name)
    )
    return Survey(tuple(stages), model.block, model.colours, loop=model)


def _walk(path: str, module: nn.Module, seen: _Observed) -> Iterator[Stage | Untiled]:
    if is_quantiser(module):
        return
    quantises = path in seen.rounding or _contains_quantiser(module)
    if path in seen.scales and not quantises:
        try:
            network = trace(module, path, seen.inputs.get(path))
        except TraceError as refusal:
            if not path or seen.finest[path] > seen.latent:
                raise
            yield Untiled(path, f"{refusal.where} {refusal.reason}")
            return
        if network.has_spatial_context or not path:
            yield Stage(path, module, network, seen.scales[path])
        return
    if path in seen.several and not quantises:
        yield Untiled(path, "takes or returns several maps; those of its parts that take one are stages")
    for name, child in module.named_children():
        yield from _walk(f"{path}.{name}" if path else name, child, seen)


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
        f"stage={name!r}",
        "several parts end in that name" if matching else f"{type(model).__name__} has no such part",
        f"Give one of these as `stage`: {', '.join(close)}",
    )


def _observed(model: nn.Module, example: Example | None) -> _Observed:
    failures: list[str] = []  # text, since an exception would keep a copy of the model alive
    given = [] if example is None or not example.channels else [sum(example.channels)]
    for channels in given or input_channels(model):
        for side in TRIAL_IMAGES:
            try:
                return _run_once(copied(model).eval(), channels, side, example)
            except Exception as failure:
                failures.append(str(failure).strip().split("\n")[0])
    raise TraceError(
        type(model).__name__,
        f"cannot be run on a {3 * TRIAL_IMAGES[0]}x{TRIAL_IMAGES[0]} image to see its stages: {failures[0]}",
        "Give a call that works as `example`, or the module of the transforms as `model_class`",
    )


def _run_once(model: nn.Module, channels: int, side: int, example: Example | None) -> _Observed:
    """What a run on a wide image reveals of the model's parts.

    Where a tensor may be a map or may have its channels last, a run on the transposed image decides: rows and
    columns follow the image, and no other dimension does.
    """
    seen = _Observed(channels=channels)
    inlined = inline.stages_of(model)
    image = _trial_image(model, channels, (side, 3 * side), filled=bool(inlined))
    with torch.no_grad(), engine("exact" if inlined else "stock"):
        with _watched(model, inlined) as calls:
            seen.inline_holds = _runs_as_one(model, image, inlined, example)
        turned: Sequence[_Call | None] = [None] * len(calls)
        if not all(_is_clear(shape) for call in calls for shapes in call.shapes for shape in shapes):
            # a part may refuse a transposed image
            with _watched(model, inlined) as others, suppress(Exception):
                _runs_as_one(model, image.mT.contiguous(), inlined, example)
            if [call.kind for call in others] == [call.kind for call in calls]:
                turned = others  # otherwise it took another path through its parts
    for call, other in zip(calls, turned, strict=True):
        _note(seen, call, other, side)
    return seen


def _trial_image(model: nn.Module, channels: int, size: tuple[int, int], filled: bool) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    image = torch.full((1, channels, *size), 0.5)
    if filled:  # results are compared, so the image must not be blank
        image.uniform_(generator=torch.Generator().manual_seed(0))
    return image.to(device, dtype)


@dataclass(frozen=True)
class _Call:
    """A call of a part, or of the whole model: the shapes of its input and output tensors."""

    path: str
    quantises: bool
    simple: bool
    """Whether it takes one tensor and returns one."""
    given: tuple[torch.Size, ...]
    made: tuple[torch.Size, ...]
    rounded: tuple[torch.Size, ...]
    """The shapes of the tensors that were rounded meanwhile."""

    @property
    def shapes(self) -> tuple[tuple[torch.Size, ...], ...]:
        return self.given, self.made, self.rounded

    @property
    def kind(self) -> tuple[str, int, int, int]:
        return self.path, len(self.given), len(self.made), len(self.rounded)


@contextmanager
def _watched(model: nn.Module, inlined: Sequence[InlineStage]) -> Iterator[list[_Call]]:
    """The calls of a model's parts, in order. Parts of an inline stage are not listed separately."""
    calls: list[_Call] = []
    rounded: list[torch.Size] = []
    before_calls: list[int] = []
    """For each call that has not ended, how many tensors had been rounded when it began."""

    def begin(*_: Any) -> None:
        before_calls.append(len(rounded))

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def note(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            alone = len(args) == 1 and not named
            simple = alone and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            given, made = (
                tuple(tensor.shape for tensor in tensors(value)) for value in ((args, named), output)
            )
            meanwhile = tuple(rounded[before_calls.pop() :])
            calls.append(_Call(path, is_quantiser(module), simple, given, made, meanwhile))

        return note

    spanned = {part for each in inlined for whole in each.forwards for part in whole.modules()}
    spanned |= {model} if inlined else set()
    watching = [(path, part) for path, part in model.named_modules() if part not in spanned]
    watching += [(each.name, each.module) for each in inlined]
    hooks = [part.register_forward_pre_hook(begin) for _, part in watching]
    hooks += [part.register_forward_hook(watch(path), with_kwargs=True) for path, part in watching]
    try:
        with RoundingWatch(lambda made: rounded.append(made.shape)):
            yield calls
        calls.append(_Call("", False, False, (), (), tuple(rounded)))
    finally:
        for hook in hooks:
            hook.remove()


def _note(seen: _Observed, call: _Call, turned: _Call | None, side: int) -> None:
    others = (None, None, None) if turned is None else turned.shapes
    given, made, rounded = (_maps(*shapes) for shapes in zip(call.shapes, others, strict=True))
    scales = [Fraction(shape[-2], side) for shape in (*given, *made)]
    latents = [Fraction(shape[-2], side) for shape in rounded if shape[-2] < side]
    if latents:
        seen.rounding.add(call.path)
        seen.latent = max([seen.latent, *latents])
    if call.quantises:
        seen.latent = max([seen.latent, *scales])
    elif call.simple and given and made:
        seen.scales.setdefault(call.path, scales[0])
        seen.inputs.setdefault(call.path, Layout.of_map(given[0][1]))
        seen.finest[call.path] = max(seen.finest.get(call.path, scales[0]), *scales)
    elif given and made:
        seen.several.add(call.path)


def _runs_as_one(
    model: nn.Module, image: Tensor, inlined: Sequence[InlineStage], example: Example | None
) -> bool:
    """Run the model; return whether it gives the same bits when its inline stages are computed as one
    each."""

    def outputs_of_model() -> list[Tensor]:
        return tensors(model(image) if example is None else example.run(model, image))

    outputs = outputs_of_model()
    if not inlined:
        return True
    try:
        for each in inlined:
            each.serve()
        found = outputs_of_model()
    except Exception:  # the class's own code may fail on unexpected input
        return False
    finally:
        put_back(model)
    return len(found) == len(outputs) and all(map(torch.equal, found, outputs))


def _is_clear(shape: torch.Size) -> bool:
    """Whether a tensor's shape, for a wide image, shows if its last two dimensions are rows and columns."""
    return (
        len(shape) != 4
        or shape[-1] <= shape[-2]
        or (_like_image(*shape[2:]) and not _like_image(*shape[1:3]))
    )


def _like_image(rows: int, columns: int) -> bool:
    """Whether it has the trial image's proportions, or half of its width, as in a checkerboard."""
    return columns in (3 * rows, 3 * rows / 2)


def _maps(shapes: tuple[torch.Size, ...], turned: tuple[torch.Size, ...] | None) -> list[torch.Size]:
    """The shapes that are maps: their last two dimensions, and no others, are the rows and columns of a wide
    image.

    If `turned` is known, the same tensors of the transposed image decide.
    """
    return [
        shape
        for i, shape in enumerate(shapes)
        if len(shape) == 4
        and shape[-1] > shape[-2]
        and (turned is None or (turned[i][:-2] == shape[:-2] and turned[i][-2] > turned[i][-1]))
    ]
