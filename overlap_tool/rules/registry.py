"""The registry: from a module type, function or tensor method to its rule.

A rule builder is called as `builder(call, *args, **kwargs)` with the traced op's own arguments, tensors being
`Operand`s; for a module the first argument is the module. It returns a `Rule`, whose `run` has the same
signature, with `Patches` in place of `call` and real tensors in place of operands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import getattr_static
from math import prod
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from overlap_tool.errors import GlobalOpError, PluginError, SizeDependenceError, UnknownOpError
from overlap_tool.geometry import POINTWISE, Everything, Geometry, Span, Window
from overlap_tool.geometry.layout import Layout, MapSize
from overlap_tool.rules.exactness import Exactness, declare
from overlap_tool.rules.padding import PADDING_MODES, pair, same_padding
from overlap_tool.rules.pieces import Patches, extend

NO_MAP = Layout(())


@dataclass(frozen=True)
class Operand:
    """A tensor argument of a traced op.

    `shape` is its shape at the first trial size. A `spatial` operand depends on the stage's input and has
    rows and columns. Others are weights, or a `summary`, which depends on the input, but has no rows and
    columns that follow it; its first dimension is that of the images.
    """

    id: str
    shape: tuple[int, ...]
    spatial: bool
    summary: bool = False
    layout: Layout = NO_MAP
    """The layout of the model's own tensor, if it is spatial."""

    @property
    def channels(self) -> int:
        """Numbers per image and position."""
        return prod(self.layout.channels)


@dataclass(frozen=True)
class SizeArgument:
    """A numeric argument that follows the size of the input: its values at the trial sizes."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """The op that a rule is asked about."""

    name: str
    kind: str
    target: Any
    output_shapes: tuple[tuple[int, ...], ...]
    """The shape of the output at each trial size."""
    input_shapes: tuple[tuple[int, ...], ...]
    """The shape of the first spatial input at each trial size."""
    sizes: tuple[MapSize, ...] = ()
    """Images, rows and columns of the first spatial input at each trial size."""
    of_one_size: bool = False
    """Whether the rule is for inputs of the first trial size only, and may rely on it."""

    def refuse_global(self, reason: str) -> NoReturn:
        raise GlobalOpError(
            f"{self.name} ({self.kind})",
            f"{reason}, so that every output depends on every input and no finite overlap is enough",
            "Analyze the parts before and after it, with `stage`, or replace it by a local op",
        )

    def refuse_size(self, reason: str) -> NoReturn:
        raise SizeDependenceError(
            f"{self.name} ({self.kind})",
            f"{reason}, so that a piece would be treated differently from the whole image",
            "Use amounts that do not depend on the size, or register a rule with overlap_tool.register_rule "
            "in a plugin (on the command line, --plugin FILE.py)",
        )

    def refuse(self, reason: str) -> NoReturn:
        raise UnknownOpError(
            f"{self.name} ({self.kind})",
            f"{reason}, for which there is no rule",
            "Register one with overlap_tool.register_rule, in a plugin "
            "(on the command line, --plugin FILE.py)",
        )


@dataclass(frozen=True)
class Rule:
    """What is known of one op: its geometry on rows and columns, its cost, and how to run it on a piece.

    `run(patches, *args, **kwargs)` returns exactly the outputs `patches[axis].out`. It must not change its
    inputs, and must give the same values whatever the piece. `macs` counts multiply-accumulates per output
    position, over all channels; `scratch` is how many tensors as large as its output it holds besides while
    it runs. `kernel` and `stride` are for display. A geometry that was only probed is not `proved`.

    A rule is `uniform` if its `run` accepts pieces that extend beyond the image, where they may hold
    anything: `extend` and `cleared` take care of that, and a local rule always can. It is `pure` if its `run`
    reads nothing that changes except its arguments; what is recorded of one call of a model then serves later
    ones. `layout` is that of the
    result, where it does not follow from the shape because dimensions differ from the operands'. An op on a
    map of one row that goes through it from the first column to the last has a `scan` beside its `run`:
    `scan(state, *args, **kwargs)` returns the outputs of the next columns and the new state.
    """

    run: Callable[..., Any]
    rows: Geometry = POINTWISE
    columns: Geometry = POINTWISE
    macs: int = 0
    scratch: int = 0
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    proved: bool = True
    uniform: bool = False
    pure: bool = False
    layout: Layout | None = None
    scan: Callable[..., tuple[Any, Any]] | None = None

    @classmethod
    def windowed(
        cls,
        compute: Callable[..., Tensor],
        *,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        padding: str = "zeros",
        amount: int | Sequence[int] | None = None,
        fill: float = 0.0,
        macs: int = 0,
        scratch: int = 0,
    ) -> Rule:
        """The rule of an op whose outputs each read a window of its input, as those of a convolution do.

        `compute` takes the op's own arguments, the first tensor being a piece with its padding already added,
        and computes without padding. `padding` is what the op puts around the image: "zeros", "reflect",
        "replicate", "circular", or "constant" for `fill`; `amount` is how much, on each axis or on both. By
        default every window is centred on its own output, as PyTorch's "same" does it.

        >>> from overlap_tool import Rule
        >>> rule = Rule.windowed(lambda x: x.unfold(2, 3, 1).amax(-1), kernel=(3, 1), padding="replicate")
        >>> rule.rows.before, rule.rows.after, rule.columns.before
        (1, 1, 0)
        """
        outside = PADDING_MODES[padding]
        kernels, strides, dilations = pair(kernel), pair(stride), pair(dilation)
        amounts = (
            [same_padding(k, d) for k, d in zip(kernels, dilations, strict=True)]
            if amount is None
            else [(each, each) for each in pair(amount)]
        )
        rows, columns = (
            Window(k, s, before, after, d, outside)
            for k, s, d, (before, after) in zip(kernels, strides, dilations, amounts, strict=True)
        )

        def run(patches: Patches, *args: Any, **kwargs: Any) -> Tensor:
            place = next((i for i, value in enumerate(args) if isinstance(value, Tensor)), None)
            if place is None:
                name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
                return compute(*args, **{**kwargs, name: extend(kwargs[name], patches, outside, fill)})
            piece = extend(args[place], patches, outside, fill)
            return compute(*args[:place], piece, *args[place + 1 :], **kwargs)

        return cls(run, rows, columns, macs, scratch, kernels, strides, uniform=True)

    @property
    def local(self) -> bool:
        """Whether every output reads only the input at its own position."""
        return self.rows == POINTWISE and self.columns == POINTWISE

    @property
    def whole(self) -> bool:
        """Whether the model's own code runs it on the whole map, between two passes."""
        return isinstance(self.rows, Everything)


class WholeMap(ABC):
    """A map as a barrier reads it: too large for memory, band by band."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @abstractmethod
    def bands(self) -> Iterator[Tensor]:
        """Its rows in order, some at a time; or the columns of its only row, for a reduction that takes
        these."""

    def by_rows(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """The result of `reduce` for each row, one below the other.

        `reduce` is given bands of rows of any height, and has to treat every row separately.
        """
        return torch.cat([reduce(band) for band in self.bands()], -2)

    def within_rows(
        self, step: str, columns: Sequence[Span], transform: Callable[[Tensor], Tensor] = lambda band: band
    ) -> Iterator[Tensor]:
        """Of each row, the "sum", "amax" or "amin" of its transformed numbers in each span of columns, in
        bands of rows.

        `transform` treats every position separately.
        """
        for band in self.bands():
            values = transform(band)
            made = (getattr(values[..., slice(*span)], step)(-1, keepdim=True) for span in columns)
            yield torch.cat([*made], -1)


@dataclass(frozen=True)
class Reduction:
    """What is known of a barrier: an op that needs the whole map, and reduces it to a value of fixed size.

    `run` takes the arguments of a `Rule`'s, but no patches, and a `WholeMap` in place of the map. It must
    give the bits of the model's own op whatever the bands, so it reduces the columns within each row first,
    and then the rows. `profile` is how many numbers per row and channel it holds in between; `scratch` is how
    many tensors as large as a band it needs to reduce one. `by_columns` permits bands of columns for a map of
    one row.
    """

    run: Callable[..., Tensor]
    profile: int = 1
    scratch: int = 1
    by_columns: bool = False


RuleBuilder = Callable[..., Rule | Reduction]
AnyRuleBuilder = TypeVar("AnyRuleBuilder", bound=RuleBuilder)
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


@dataclass(frozen=True)
class Registered:
    """A rule builder as it was registered."""

    build: RuleBuilder
    accepts_sizes: bool
    any_layout: bool


_registered: dict[Any, Registered] = {}
_compositions: dict[Any, Callable[..., Any]] = {}
_quantisers: set[str] = set()


def register_rule(
    *targets: Any,
    accepts_sizes: bool = False,
    any_layout: bool = False,
    override: bool = False,
    exact: Callable[..., Any] | Mapping[str, Exactness] | None = None,
) -> Callable[[AnyRuleBuilder], AnyRuleBuilder]:
    """Register the rule of modules, functions or tensor methods.

    A target is a module class, a function, the qualified name of either ("package.module.Class", so that it
    need not be imported), or the bare name of a tensor method ("clamp"). Either all targets are registered or
    none.

    An argument that follows the size of the input raises an error, unless the rule `accepts_sizes` and makes
    its result independent of it. So does a map whose dimensions are not images, channels, rows and columns,
    unless the rule takes `any_layout`: then its `run` receives and returns pieces as the model lays them out.

    For an op with a kernel of your own, `torch.ops.namespace.op`, pass `exact`: a function of the op's
    arguments, whose own ops are computed exactly. For PyTorch's own ops, which the targets call, `exact` is
    what `exactly` of `rules/exactness.py` returns.
    """

    def add(builder: AnyRuleBuilder) -> AnyRuleBuilder:
        keys = [_key(target) for target in targets]
        taken = [key for key in _registered if any(_same(key, new) for new in keys)]
        if taken and not override:
            raise PluginError(
                ", ".join(map(str, taken)),
                "a rule is already registered",
                "Pass override=True to overlap_tool.register_rule to override it on purpose",
            )
        if isinstance(exact, Mapping):
            declare(exact)
        elif exact is not None:
            if not callable(exact):
                raise PluginError(
                    f"exact={exact!r}", "it is no function", "Pass a function of the op's arguments"
                )
            declare({_dispatched(target): Exactness("of ops", exact) for target in targets})
        for key in taken:
            del _registered[key]
        _registered.update(dict.fromkeys(keys, Registered(builder, accepts_sizes, any_layout)))
        return builder

    return add


def compose(
    *targets: Any, exact: Mapping[str, Exactness] | None = None
) -> Callable[[AnyFunction], AnyFunction]:
    """Register a function as a composition: it is traced as the ops of the decorated one.

    The decorated function takes the same arguments and gives the same result. Classes of `torch.nn` among the
    targets are those that call the function. The exact engine is not affected: under it, the function has to
    give the bits that the ops give. `exact` is as in `register_rule`.
    """

    def add(composition: AnyFunction) -> AnyFunction:
        taken = [target for target in targets if target in _compositions or target in _registered]
        if taken:
            raise PluginError(
                ", ".join(map(str, taken)), "a rule is already registered", "Compose each function once"
            )
        declare(exact or {})
        _compositions.update(dict.fromkeys(targets, composition))
        return composition

    return add


def composition_of(target: Any) -> Callable[..., Any] | None:
    """The registered composition of a function or class, if there is one."""
    return _compositions.get(target) or _compositions.get(qualified_name(target))


def register_quantiser(*qualified_names: str) -> None:
    """Register module classes that quantise: stages end before them."""
    _quantisers.update(qualified_names)


def rule_for_module(module: nn.Module) -> Registered | None:
    """The rule for a module's class, or for a base class whose behaviour it inherits unchanged."""
    cls = type(module)
    if "forward" in vars(module):
        return None
    for base in cls.__mro__:
        found = _registered.get(base) or _registered.get(qualified_name(base))
        if found is not None:
            return found if _inherits_behaviour(cls, base) else None
    return None


def rule_for_function(function: Any) -> Registered | None:
    """The rule for a function, or for a tensor method given by its bare name."""
    return _registered.get(function) or _registered.get(qualified_name(function))


def is_quantiser(module: nn.Module) -> bool:
    return any(qualified_name(base) in _quantisers for base in type(module).__mro__)


def qualified_name(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"


def _same(first: Any, second: Any) -> bool:
    """Whether two targets are equal, or one is the other's qualified name."""
    if isinstance(first, str) == isinstance(second, str):
        return first == second
    return qualified_name(first) == second or first == qualified_name(second)


def _key(target: Any) -> Any:
    if isinstance(target, str) or callable(target):
        return target
    raise PluginError(
        repr(target),
        "a rule's target must be a module class, a function, or a name",
        "See overlap_tool.register_rule",
    )


def _dispatched(target: Any) -> str:
    """The name by which PyTorch dispatches an op."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = str(getattr(target, "_qualified_op_name", None) or target._schema.name)
        return name.removeprefix("aten::")
    raise PluginError(
        repr(target),
        "`exact` is for ops in a kernel of your own, torch.ops.namespace.op; the engine sees into others",
        "Leave it out",
    )


_CONSTRUCTION = {"__init__", "__repr__", "extra_repr", "__setstate__", "reset_parameters", "__doc__"}


def _inherits_behaviour(cls: type, base: type) -> bool:
    """Whether `cls` overrides no method of `base`, own or inherited, that could change what it computes."""
    return all(
        getattr_static(cls, name) is getattr_static(base, name)
        for ancestor in base.__mro__
        if ancestor not in (nn.Module, object)
        for name, method in [*vars(ancestor).items(), ("__call__", nn.Module.__call__)]
        if (callable(method) or isinstance(method, property)) and name not in _CONSTRUCTION
    )
