"""Gives a model's stages tiled forwards, and restores their own. The rest of the model is unchanged.

A stage keeps its module: its class, parameters, buffers and place in the state dict. Only the instance's
`forward` is replaced, so the model's `forward`, `compress`, `decompress`, `update` and `.to()` go on working.
Under the exact engine the model's own methods run in that engine, too: what lies between the stages has to
give the same bits as in the model that was not wrapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from math import lcm
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from overlap_tool import checkpoint
from overlap_tool.checkpoint.artefact import REWRAP, Artefact
from overlap_tool.errors import (
    CheckpointError,
    OptionError,
    OverlapToolError,
    PluginError,
    SizeDependenceError,
    TraceError,
    TrainingModeError,
    WeightsError,
)
from overlap_tool.geometry.layout import Layout, MapSize
from overlap_tool.graph.aftermath import set_attributes
from overlap_tool.graph.copying import copied, with_own_forward
from overlap_tool.graph.example import Example, Given, example_of
from overlap_tool.graph.network import Network
from overlap_tool.graph.replacing import ONE_AT_A_TIME
from overlap_tool.graph.snapshot import Snapshot, same_items
from overlap_tool.graph.standing_in import StandIn, put_back, stands_in
from overlap_tool.graph.trace import as_deep, fitted, trace
from overlap_tool.graph.tracer import TrialError
from overlap_tool.models import inline, raster
from overlap_tool.models.closed_loop import ClosedLoop
from overlap_tool.models.stages import Survey, Untiled, survey
from overlap_tool.planning.choose import (
    BudgetError,
    Plan,
    Plans,
    Shape,
    StagePlan,
    plan_stage,
    require_uniform,
)
from overlap_tool.planning.usual import as_taken, usual_size, usual_tile
from overlap_tool.rules import engine
from overlap_tool.rules.pieces import as_kept
from overlap_tool.runtime import passes
from overlap_tool.runtime.progress import TileProgress
from overlap_tool.runtime.stores import MapBetween, TensorSource
from overlap_tool.settings import Engine, Order, Schedule, Settings, Size, Store, inside, parse_bytes
from overlap_tool.wrapping.loops import LoopTiling
from overlap_tool.wrapping.tiling import Tiling, show_settings

Model = TypeVar("Model", bound=nn.Module)

PLANS_KEPT = 8

OTHERS_KEPT = 8
"""A stage keeps its traces for this many sets of parameter values."""

METHODS = ("forward", "compress", "decompress", "update")
"""The methods of a model that compute, and so run in the chosen engine: `update` makes tables."""

WRAPPED = "_overlap_tool_wrapped"
"""The attribute of a wrapped model that holds its `Wrapped` record."""


@dataclass
class Wrapped(StandIn):
    """What is stored about a wrapped model, beside its tiled forwards."""

    untiled: tuple[Untiled, ...]
    """The parts that stay whole."""
    parts: dict[str, tuple[nn.Module, ...]]
    """For each stage's path, the modules whose forwards were replaced, as `_made_of` returns them."""
    channels: int
    """The channels of the image."""
    example: Example | None
    """How the model is called, if not with an image alone."""


class TiledForward(StandIn):
    """The forward of one stage: it plans for the size of its input, and runs the plan."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        input_scale: Fraction,
        settings: Settings,
        example: Example | None = None,
    ) -> None:
        self.module = module
        self.example = example
        """How it is called, if with more than a map."""
        self.others: tuple[TiledForward, ...] = ()
        """The forwards for calls with other parameter values."""
        self.name = name
        self.input_scale = input_scale
        self.settings = settings
        self._network: Network | None = None
        self._layout: Layout | None = None
        """The layout of the map that it, or the forward that it is a copy of, was first traced for."""
        self._snapshot: Snapshot | None = None
        """The module as it was when it was traced."""
        self._plans: dict[tuple[Shape, Layout], StagePlan] = {}

    @property
    def network(self) -> Network:
        """The network of the module, traced again if the module was changed."""
        if not self._is_as_traced():
            with ONE_AT_A_TIME:  # if several threads call a copy for the first time, one of them traces it
                if not self._is_as_traced():
                    self._snapshot = None  # so that a trace that fails leaves none behind
                    self.is_traced_as(_traced_anew(self.module, self.name, self._layout, self.example))
        assert self._network is not None
        return self._network

    def _is_as_traced(self) -> bool:
        return self._network is not None and self._snapshot is not None and self._snapshot.holds()

    def is_traced_as(self, network: Network) -> None:
        self._network, self._snapshot = network, Snapshot(self.module, network.left)
        self._layout = network.ops[0].layout
        self._plans.clear()

    def settle(self, settings: Settings) -> None:
        """Use these settings from now on."""
        self.settings = settings
        self._plans.clear()
        self.others = ()

    def fitted(self, images: int, rows: int, columns: int) -> Network:
        """The network for inputs of this size."""
        return _or_own_error(lambda: fitted(self.network, images, rows, columns))

    def as_deep(self, shape: Sequence[int]) -> TiledForward:
        """The forward for maps of this shape: itself, unless they are volumes of another depth."""
        network = as_deep(self.network, shape)
        if network is self.network:
            return self
        made = copy(self)
        made.is_traced_as(network)
        return made

    def plan(self, shape: Shape) -> StagePlan:
        return self._plan(self.network, shape)

    def _plan(self, network: Network, shape: Shape) -> StagePlan:
        key = shape, network.ops[0].layout
        plan = self._plans.get(key)
        if plan is None:
            plan = plan_stage(self.name, network, self.input_scale, shape, self.settings)
            # a new dict, since other threads may be reading the old one
            self._plans = dict([*self._plans.items(), (key, plan)][-PLANS_KEPT:])
        return plan

    def original(self, *args: Any, **kwargs: Any) -> Any:
        kind = type(self.module)
        own = kind.forward if self.example is None else self.example.function_of(kind)
        return own(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        network = self.require_inference()
        whole: Any = args[0] if len(args) == 1 and not kwargs else None
        if self.example is not None and (call := self.example.of_call(args, kwargs)) is not None:
            whole, example = call
            if not self.example.same_as(example):
                return self._by(example)(*args, **kwargs)
        with engine(self.settings.engine):
            if isinstance(whole, Tensor):
                try:
                    network = as_deep(network, whole.shape)
                except TrialError:  # the model's own code raises a better error for this depth
                    return self.original(*args, **kwargs)
            if not _takes(network, whole):
                # not a map that can be tiled: the model's own code runs, or raises its own error
                return self.original(*args, **kwargs)
            size = _size_of(network, whole)
            try:
                fits = _or_own_error(partial(fitted, network, *size))
            except SizeDependenceError:
                # small maps may take another path through the code than all larger ones
                if self._in_one_tile(*size[1:]):
                    return self.original(*args, **kwargs)
                raise
            if not fits.accepts(*size[1:]):
                return self._at_odd_size(fits, whole, args, kwargs)
            result = (_runner.get() or TiledForward.tiled)(self, whole)
            set_attributes(self.module, fits.left)
            return result

    def _in_one_tile(self, rows: int, columns: int) -> bool:
        tile = self.settings.tile
        return tile is not None and (
            rows <= max(1, int(tile.height * self.input_scale)) and columns <= tile.width * self.input_scale
        )

    def _by(self, example: Example) -> TiledForward:
        """The forward for calls with other parameter values."""
        found = next((each for each in self.others if example.same_as(each.example or example)), None)
        if found is None:
            found = TiledForward(self.module, self.name, self.input_scale, self.settings, example)
            self.others = (*self.others, found)[-OTHERS_KEPT:]
        return found

    def require_inference(self) -> Network:
        """The network; raises if any part of the module is in training mode."""
        network = None if self.module.training else self.network
        if network is None or (self._snapshot is not None and self._snapshot.part_in_training() is not None):
            raise TrainingModeError(
                self.name, "tiles are for inference, and it is in training mode", "Call model.eval() first"
            )
        return network

    def tiled(self, whole: Tensor) -> Any:
        assert self._network is not None, "a call begins by asking whether it still holds"
        network = as_deep(self._network, whole.shape)
        size = _size_of(network, whole)
        plan = self._plan(network, Shape(*size, whole.element_size()))
        device = next((p.device for p in self.module.parameters()), whole.device)
        map = as_kept(whole, network.ops[0].layout, *size[1:])
        results = passes.Results(plan, self.settings.store)
        with TileProgress(self.name, plan.tiles) as progress:
            values = passes.run(
                plan.network,
                plan.segments,
                TensorSource(map, device),
                results.sinks,
                partial(MapBetween, store=self.settings.store),
                self.settings.batch,
                progress.advance,
            )
        return results.returned(whole, values)

    def _at_odd_size(
        self, network: Network, whole: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the model's own code on a map that cannot be tiled; if it fails, name sizes that can."""
        try:
            return self.original(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            if not isinstance(error, OverlapToolError | torch.OutOfMemoryError):
                network.require(*_size_of(network, whole)[1:])
            raise

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy or a pickle: without the network, which the copy traces from its own module."""
        return {**self.__dict__, "_network": None, "_snapshot": None, "_plans": {}, "others": ()}


def _or_own_error(find: Callable[[], Network]) -> Network:
    """Find a network for inputs of some size; if the module refuses them, raise the module's own error."""
    try:
        return find()
    except TrialError as refusal:
        raise refusal.own or refusal from None


def _takes(network: Network, whole: Any) -> bool:
    """Whether the stage was traced for maps like this one, of whatever size."""
    layout = network.ops[0].layout
    return isinstance(whole, Tensor) and whole.is_floating_point() and layout.size_of(whole.shape) is not None


def _size_of(network: Network, whole: Tensor) -> MapSize:
    size = network.ops[0].layout.size_of(whole.shape)
    assert size is not None, "asked by _takes"
    return size


def _traced_anew(module: nn.Module, name: str, layout: Layout | None, example: Example | None) -> Network:
    """Trace a module for a map of as many channels as before, or as its layers ask for if it takes no such
    map."""
    # other threads run the module itself
    twin = with_own_forward(module) if example is None else example.applied_to(module)
    if layout is None and example is not None:
        layout = example.layout
    if layout is not None:
        try:
            return trace(twin, name, layout)
        except TrialError:
            pass
    return trace(twin, name)


Runner = Callable[[TiledForward, Tensor], Any]

_runner: ContextVar[Runner | None] = ContextVar("runner", default=None)


def stages_run_by(runner: Runner) -> AbstractContextManager[Runner]:
    """Inside, the stages of wrapped models are run by this function instead of by `TiledForward.tiled`."""
    return inside(_runner, runner)


class WrappedLoop(StandIn):
    """A loop of a wrapped model that codes position by position."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name

    def __call__(self, *args: Any) -> Any:
        return raster.LOOPS[self.name](self.model, *args)


class WrappedMethod(StandIn):
    """A method of a wrapped model, run in the engine that its stages use."""

    def __init__(self, model: nn.Module, name: str, engine: Engine) -> None:
        self.model = model
        self.name = name
        self.engine = engine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _wrap_replaced_stages(self.model)
        with engine(self.engine):
            return getattr(type(self.model), self.name)(self.model, *args, **kwargs)


def wrap(
    model: Model,
    *,
    tile: int | Size | tuple[int, int] | None = None,
    memory: int | str | None = None,
    schedule: Schedule | Order | None = None,
    store: Store = "auto",
    batch: int = 1,
    engine: Engine = "exact",
    uniform: bool = False,
    example: Given = None,
    method: str | None = None,
    inplace: bool = False,
) -> Model:
    """Return the same model with its stages computed tile by tile, in bounded memory.

    `tile` is in pixels of the image, or in samples of a sound: one side, or width and height. If neither
    `tile` nor `memory` is given, it is 256 for images, 64 for volumes, and some seconds for sound. A closed
    loop has no tiles: it runs block by block, and its only choice is `schedule="wavefront"` or `"raster"`.

    `memory` ("2GiB", or bytes) bounds what each stage holds, input and output included; tile and schedule are
    then chosen for every input. `engine="stock"` computes with PyTorch's own kernels, whose last bits differ
    from those of the full image. `uniform` gives all tiles one shape at every op, as graph capture and export
    need; it requires `schedule="tiles"`, and rounds the tile down to whole periods of the stage. `batch` is
    how many tiles that are alike are computed at once, as on a GPU; it requires `schedule="tiles"`, too.

    `example` describes the call of a model that takes more than an image: positional arguments, `(image, 3)`,
    or keyword arguments, `{"qp": 21}`, which follow an image if none of them is a map. All maps have one
    size; parameters may change from call to call. `method="encode"` tiles that method in place of `forward`.
    The model is copied unless `inplace`.

    >>> import overlap_tool
    >>> model = nn.Conv2d(3, 3, 5, padding=2).eval()
    >>> in_tiles = wrap(model, tile=32)
    >>> image = torch.rand(1, 3, 100, 80)
    >>> with torch.no_grad(), overlap_tool.exact_kernels():
    ...     torch.equal(in_tiles(image), model(image))
    True
    """
    usual = tile is None and memory is None
    return _wrapped(
        model,
        Settings(
            tile=Size(1, 1) if usual else None if tile is None else Size.of_tile(tile, "tile"),
            memory=None if memory is None else parse_bytes(memory),
            schedule="tiles" if uniform and schedule is None else schedule,
            store=store,
            batch=batch,
            engine=engine,
            uniform=uniform,
        ),
        inplace,
        Example.of(example, method),
        usual,
    )


@contextmanager
def tiled(
    model: Model,
    *,
    tile: int | Size | tuple[int, int] | None = None,
    memory: int | str | None = None,
    **how: Any,
) -> Iterator[Model]:
    """Context manager: the model itself, without a copy, runs tile by tile inside. Takes the arguments of
    `wrap`.

    >>> model = nn.Conv2d(3, 3, 5, padding=2).eval()
    >>> with tiled(model, memory="64MiB"), torch.no_grad():
    ...     model(torch.rand(1, 3, 64, 64)).shape
    torch.Size([1, 3, 64, 64])
    """
    wrap(model, tile=tile, memory=memory, inplace=True, **how)
    try:
        yield model
    finally:
        unwrap(model, inplace=True)


def rewrap(model: nn.Module, settings: Settings) -> None:
    """Change the settings of a wrapped model. Nothing is copied or traced again."""
    _settings_of_wrapped(model)
    _tiling(model).settle(settings)
    show_settings(model, _settings_of_wrapped(model))


def unwrap(model: Model, *, inplace: bool = False) -> Model:
    """Return the model with its own forwards again: a copy, unless `inplace`.

    >>> model = nn.Conv2d(3, 3, 5, padding=2).eval()
    >>> settings_of(unwrap(wrap(model, tile=32))) is None
    True
    """
    model = model if inplace else copied(model)
    put_back(model)
    return model


def tiled_stages(model: nn.Module) -> dict[str, TiledForward]:
    """The tiled forwards of a wrapped model, by the names of their stages."""
    _wrap_replaced_stages(model)
    forwards = {name: _forward_of(module) for name, module in inline.named_modules(model)}
    return {name: forward for name, forward in forwards.items() if isinstance(forward, TiledForward)}


def untiled(model: nn.Module) -> tuple[Untiled, ...]:
    """The parts of a wrapped model that its own code runs on whole maps, and why."""
    wrapped = vars(model).get(WRAPPED)
    return wrapped.untiled if isinstance(wrapped, Wrapped) else ()


def settings_of(model: nn.Module) -> Settings | None:
    """The settings that a model was wrapped with; None if it is not wrapped."""
    return _tiling(model).settings


def _settings_of_wrapped(model: nn.Module) -> Settings:
    settings = settings_of(model)
    if settings is None:
        raise OptionError(type(model).__name__, "is not wrapped", "Call overlap_tool.wrap first")
    return settings


def plans(model: nn.Module, size: Size | tuple[int, int], images: int = 1) -> Plans:
    """Return how every stage of a wrapped model, or a whole closed loop, runs on images of this width and
    height.

    For sound, the width is its length.

    >>> plans(wrap(nn.Conv2d(3, 3, 5, padding=2).eval(), tile=32), (100, 80))["Conv2d"].tiles
    12
    """
    _settings_of_wrapped(model)
    size, depth = Size.of(size, "size"), None
    for stage in tiled_stages(model).values():
        size, depth = as_taken(size, stage.network), stage.network.depth
        break
    return Plans(type(model).__name__, size, _tiling(model).plans(size, images), depth)


def load(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, trust: bool = False
) -> nn.Module:
    """Load a wrapped model from the file that `save` or `overlap-tool wrap` wrote.

    A file may name a class of the user's own; importing that class runs its code, so it is refused unless
    `trust`.

    >>> import tempfile
    >>> in_tiles = wrap(nn.Conv2d(3, 3, 5, padding=2).eval(), tile=32)
    >>> arguments = {"in_channels": 3, "out_channels": 3, "kernel_size": 5, "padding": 2}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(in_tiles, f"{folder}/conv.tiled.pt", "torch.nn:Conv2d", arguments)
    ...     settings_of(load(f"{folder}/conv.tiled.pt", trust=True)).tile
    Size(width=32, height=32)
    """
    return restore(Artefact.read(path), os.fspath(path), device, trust)


def settings_in(written: Mapping[str, Any], where: str) -> Settings:
    """The settings stored in a file; errors name the file, not arguments."""
    try:
        return Settings(**written)
    except OptionError as error:
        # without backquotes, which the command line would turn into options
        told = f"{error.where}: {error.reason}".replace("`", "")
        raise CheckpointError(where, f"its settings cannot be used ({told})", REWRAP) from error
    except TypeError as error:
        raise CheckpointError(where, f"its settings are not known here ({error})", REWRAP) from error


def restore(
    artefact: Artefact, where: str, device: str | torch.device = "cpu", trust: bool = False
) -> nn.Module:
    """The wrapped model of an artefact; `where` names it in errors."""
    settings = settings_in(artefact.settings, where)
    model = checkpoint.rebuild(artefact.architecture, artefact.arguments, artefact.state, where, trust)
    return _wrapped(model.to(device).eval(), settings, True, Example.of_data(artefact.example))


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write a wrapped model to one file, whole or not at all.

    A model from `load_checkpoint` or `load` remembers how it was built. For any other, `architecture` names
    the class, "package.module:Class", and `arguments` are those of its constructor, as JSON can hold them.

    >>> import tempfile, overlap_tool
    >>> codec = overlap_tool.load_checkpoint("zoo:bmshj2018-factorized").model
    >>> in_tiles = wrap(codec, tile=128)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(in_tiles, f"{folder}/codec.tiled.pt")
    ...     settings_of(load(f"{folder}/codec.tiled.pt")).tile
    Size(width=128, height=128)
    """
    settings = _settings_of_wrapped(model)
    wrapped, example = vars(model).get(WRAPPED), None
    if isinstance(wrapped, Wrapped) and wrapped.example is not None:
        example = wrapped.example.as_data(wrapped.channels)
    origin = checkpoint.origin_of(model)
    if architecture is not None:
        origin = checkpoint.Origin(architecture, arguments or {})
    origin = _buildable(origin, type(model))
    overlaps = _tiling(model).overlaps()
    state = {key: tensor.cpu() for key, tensor in model.state_dict().items()}
    if architecture is not None:
        _refuse_another_model(origin, state)
    # plain numbers: a file that loads without this package holds none of its classes
    plain = asdict(settings) | {"tile": settings.tile and tuple(settings.tile)}
    Artefact(origin.architecture, dict(origin.arguments), state, plain, overlaps, example).write(path)


def _buildable(origin: checkpoint.Origin | None, kind: type[nn.Module]) -> checkpoint.Origin:
    """The origin, if `load` can build the model from it again."""
    if origin is None:
        raise OptionError(
            "architecture",
            f"nothing says how to build this {kind.__qualname__} again when the file is loaded",
            f'Add architecture="{kind.__module__}:{kind.__qualname__}", and the arguments of its constructor',
        )
    if ":" in origin.architecture:
        checkpoint.require_class(origin.architecture)
    else:
        checkpoint.find(origin.architecture, written=origin.architecture)
    return origin


def _refuse_another_model(origin: checkpoint.Origin, state: dict[str, Tensor]) -> None:
    """Raise unless the architecture and arguments that were given build the model of this state dict."""
    where = f"arguments={dict(origin.arguments)}"
    try:
        checkpoint.rebuild(origin.architecture, origin.arguments, state, where, trust=True)
    except (PluginError, WeightsError) as error:
        way_out = f"Give the arguments with which this {origin.architecture} was constructed"
        raise OptionError(where, error.reason, way_out) from error


def _wrapped(
    model: Model, settings: Settings, inplace: bool, example: Example | None = None, usual: bool = False
) -> Model:
    """Wrap a model; `usual` says that no tile was asked for, so that the model's usual one is taken."""
    if stands_in(model):
        raise OptionError(type(model).__name__, "is wrapped already", "Call overlap_tool.unwrap first")
    model = model if inplace else copied(model)
    tiling = _tiling(model, example)
    tiling.begin(replace(settings, tile=tiling.tile) if usual else settings)
    show_settings(model, _settings_of_wrapped(model))
    return model


def _tiling(model: nn.Module, example: Example | None = None) -> Tiling:
    if isinstance(model, ClosedLoop) and example is None:
        return LoopTiling(model)
    return StageTiling(model, example)


@dataclass(frozen=True)
class StageTiling:
    """The `Tiling` of a model with stages."""

    model: nn.Module
    example: Example | None = None

    @cached_property
    def found(self) -> Survey:
        return survey(self.model, example=self.example)

    @property
    def tile(self) -> Size:
        return usual_tile([(stage.network, stage.input_scale) for stage in self.found.stages])

    @property
    def settings(self) -> Settings | None:
        return next((stage.settings for stage in tiled_stages(self.model).values()), None)

    def begin(self, settings: Settings) -> None:
        model, found = self.model, self.found
        settings = _fitting(settings, [stage.network for stage in found.stages])
        for stage in found.stages:
            name = stage.name or type(model).__name__
            forward = TiledForward(stage.module, name, stage.input_scale, settings, stage.example)
            stage.run_by(forward)
            forward.is_traced_as(stage.network)
        made = {path: _made_of(part) for path, part in model.named_modules() if _forward_of(part) is not None}
        setattr(model, WRAPPED, Wrapped(found.untiled, made, found.channels, self.example))
        _run_methods_by(model, settings.engine)

    def settle(self, settings: Settings) -> None:
        stages = tiled_stages(self.model).values()
        settings = _fitting(settings, [stage.network for stage in stages])
        for stage in stages:
            stage.settle(settings)
        _run_methods_by(self.model, settings.engine)

    def plans(self, size: Size, images: int) -> dict[str, Plan]:
        made: dict[str, Plan] = {}
        short: list[BudgetError] = []
        for stage in tiled_stages(self.model).values():
            rows, columns = (_scaled(side, stage.input_scale) for side in (size.height, size.width))
            rows = 1 if stage.network.takes_sound else rows
            try:
                made[stage.name] = stage.plan(Shape(images, rows, columns))
            except BudgetError as error:
                short.append(error)
        if short:  # what the most demanding stage needs is enough for all
            raise max(short, key=lambda error: error.least)
        return made

    def overlaps(self) -> dict[str, list[int]]:
        networks = {stage.name: stage.network for stage in tiled_stages(self.model).values()}
        return {
            name: [*network.columns.overlap, *network.rows.overlap]
            for name, network in networks.items()
            if not network.need_whole_maps
        }


def _fitting(settings: Settings, networks: Sequence[Network]) -> Settings:
    """The settings as these networks use them. Raises, before anything is changed, if they cannot."""
    for network in networks if settings.uniform else ():
        require_uniform(network)
    return replace(settings, tile=settings.tile and as_taken(settings.tile, networks[0]))


def _forward_of(part: nn.Module) -> TiledForward | inline.PartForward | None:
    """The forward, or the other tiled method, that was put on a part; None if none was."""
    given = (value for value in vars(part).values() if isinstance(value, TiledForward | inline.PartForward))
    return next(given, None)


def _wrap_replaced_stages(model: nn.Module) -> None:
    """Give a module that has replaced a stage of a wrapped model the stage's tiled forward."""
    wrapped = vars(model).get(WRAPPED)
    if not isinstance(wrapped, Wrapped):
        return
    for path, before in wrapped.parts.items():
        part = _at(model, path)
        if part is None or same_items(_made_of(part), before):
            continue
        forward = _forward_of(before[0])
        if not isinstance(forward, TiledForward):
            raise TraceError(
                f"{path} ({type(part).__name__})",
                "is made of other modules than when the model was wrapped, and computes a stage with others",
                "Call overlap_tool.unwrap, then wrap again",
            )
        if _forward_of(part) is None:
            part.forward = TiledForward(
                part, forward.name, forward.input_scale, forward.settings, forward.example
            )
        wrapped.parts = {**wrapped.parts, path: (part,)}


def _made_of(part: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that a part's forward was made for; a tiled forward detects changes further inside."""
    return tuple(part.modules()) if isinstance(_forward_of(part), inline.PartForward) else (part,)


def _at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _run_methods_by(model: nn.Module, engine: Engine) -> None:
    """Make the model's methods compute in the engine that its stages use."""
    called = example_of(model)
    for name in METHODS if called is None else {*METHODS, called.method}:
        if isinstance(vars(model).get(name), WrappedMethod):
            delattr(model, name)
        if name not in vars(model) and hasattr(type(model), name):
            setattr(model, name, WrappedMethod(model, name, engine))
    if raster.is_raster(model):
        for name in raster.LOOPS:
            if name not in vars(model):
                setattr(model, name, WrappedLoop(model, name))


def brought_up_to_fit(model: nn.Module, size: Size | None) -> Size:
    """This size, padded if a stage cannot compute it as it is; a usual size if none is given."""
    stages = tiled_stages(model).values()
    size = size or usual_size([(stage.network, stage.input_scale) for stage in stages])
    width, height = size
    for stage in stages:
        rows, columns = _scaled(height, stage.input_scale), _scaled(width, stage.input_scale)
        if not _computes(stage.network, rows, columns):
            break
    else:
        return size
    whole = lcm(
        *(
            (axis.period / stage.input_scale).numerator
            for stage in stages
            for axis in (stage.network.rows, stage.network.columns)
        )
    )
    return Size(*(-(-side // whole) * whole for side in size))


def _computes(network: Network, rows: int, columns: int) -> bool:
    """Whether the stage computes maps of this size; its own code may refuse them."""
    try:
        return fitted(network, 1, rows, columns).accepts(rows, columns)
    except TrialError:
        return False


def _scaled(side: int, scale: Fraction) -> int:
    return -(-side * scale.numerator // scale.denominator)
