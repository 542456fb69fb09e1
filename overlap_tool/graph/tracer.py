"""A torch.fx tracer that knows the rules, and raises for what it cannot follow.

Every traced op is evaluated on fake tensors, which have shapes but no data, at each of the tracer's sizes.
With two sizes, what is the same at both is a constant (channels), and what differs follows the size of the
image: `x.size(1)` is a plain number while tracing, and a condition on `x.size(2)` raises. With one size,
every size is a plain number, and the trace holds for images of that size.
"""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from textwrap import shorten
from time import monotonic
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves as leaves

from overlap_tool.errors import (
    DataDependenceError,
    OverlapToolError,
    SizeDependenceError,
    TraceError,
    UnknownOpError,
)
from overlap_tool.geometry.layout import ROWS, Layout, MapSize
from overlap_tool.graph.aftermath import same_values
from overlap_tool.graph.copying import twin, with_own_forward
from overlap_tool.graph.randomness import OwnRandomness
from overlap_tool.graph.replacing import DRAWN, tracing_with
from overlap_tool.graph.returned import ALONE, taken_apart
from overlap_tool.graph.spread import Deadline, OutOfTime
from overlap_tool.legible import first_line
from overlap_tool.plugins import importing
from overlap_tool.rules import composition_of, is_quantiser, rule_for_module
from overlap_tool.rules.assigning import assign
from overlap_tool.rules.registry import qualified_name
from overlap_tool.rules.sequences import recurrent

FITTING = 2**8 * 3 * 5 * 7 * 11
"""Divisible by whatever a network downscales by, and by the windows that it then cuts."""

Sizes = tuple[MapSize, ...]

TRIALS: Sizes = ((2, FITTING, 2 * FITTING), (3, 4 * FITTING, 9 * FITTING))
"""Batch, height and width of the trials. All differ, and so do their differences and ratios, so that a number
which is the same at both trials does not follow the size."""

SMALLER: Sizes = ((2, 960, 1920), (3, 3840, 8640))
"""For a module that would make more numbers of a trial map than can be addressed, as when it compares all
pairs of positions."""

DEPTH = 96
"""The depth of the trial volumes. A trace holds for one depth."""


def fitting_to(layout: Layout, sizes: Sizes) -> Sizes:
    """The same sizes; with a single row, and longer, if maps of this layout have no rows."""
    if ROWS not in layout.missing:
        return sizes
    return tuple((images, 1, 8 * columns) for images, _, columns in sizes)


REGISTER = (
    "Register a rule for it with overlap_tool.register_rule, in a plugin "
    "(on the command line, --plugin FILE.py)"
)

INPLACE_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
"""In-place operators on tensors, and the same operators on numbers."""


ONE_ANSWER = frozenset(
    """
    is_complex is_contiguous is_cpu is_cuda is_floating_point is_inference is_leaf is_meta is_mkldnn is_mps
    is_nested is_quantized is_signed is_sparse is_xpu element_size get_device layout requires_grad
    """.split()
)
"""Attributes that code may read of a map and branch on: they depend neither on its size nor on its values."""


VALUES_ARE_READ = (DataDependentOutputException, DynamicOutputShapeException)
"""Raised by fake tensors where a number or a size would depend on values."""

MAKERS_LIKE: dict[Any, Callable[..., Any]] = {
    "new_zeros": torch.zeros,
    "new_ones": torch.ones,
    "new_full": torch.full,
    "new_empty": torch.empty,
}
"""Methods that make tensors of numbers alone, of another tensor's type."""

MOST_OPS = 10_000
"""The most ops in a trace: a loop over the pixels of a trial map would go on for hours."""

PATIENCE = 0.5
"""Seconds for which the module itself may run on a trial map, to see whether it fails where its trace did."""

MESSAGE = 200
"""Characters of a third-party message, or of a line of code, that an error repeats."""

NOT_THE_MODEL = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


class TooLargeError(TraceError):
    """An op makes more numbers of a trial map than can be addressed."""


class TrialError(TraceError):
    """An op refused the trial input; perhaps the number of channels was wrong.

    `own` is the error that the module itself raises for such an input, if it does.
    """

    own: Exception | None = None


class Proxy(fx.Proxy):
    """A traced value that knows its shape: channels are numbers; what follows the image's size is traced."""

    tracer: Tracer

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("tracer", "node"):
            object.__setattr__(self, name, value)
            return
        if name == "data" and self.tracer.assigns(self.node, value):
            return
        raise TraceError(
            self.tracer.where(),
            f"assigns to .{name} of a tensor while it runs, which tracing would silently drop",
            f"{REGISTER} that makes the whole module one op",
        )

    def __getattr__(self, name: str) -> Any:
        value = self.node.meta["values"][0]
        if name in ONE_ANSWER or isinstance(value, torch.device):
            return getattr(value, name)
        if name == "type":
            return self._type
        if name.startswith("__array"):
            self.tracer.refuse_use(self.node, "hands to numpy")
        if isinstance(value, tuple) and hasattr(value, name):  # x.max(1).values
            fields = [i for i, field in enumerate(value) if field is getattr(value, name)]
            if fields:
                return operator.getitem(self, fields[0])
        return super().__getattr__(name)

    def _type(self, dtype: Any = None, *args: Any, **named: Any) -> Any:
        """The type of a map; with arguments, the map converted to another type."""
        if dtype is None and not named:
            return self.node.meta["values"][0].type()
        return self.tracer.create_proxy("call_method", "type", (self, dtype, *args), named)

    @property
    def shape(self) -> tuple[Any, ...]:
        value = self.node.meta["values"][0]
        if self.tracer.of_one_size and isinstance(value, Tensor):
            return value.shape
        return tuple(self._dimension(i) for i in range(self.ndim))

    @property
    def ndim(self) -> int:
        return len(self.node.meta["values"][0].shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.node.meta["values"][0].dtype

    @property
    def device(self) -> Any:
        device = self.tracer.device_of_weights()
        return self.node.meta["values"][0].device if device is None else device

    @property
    def data(self) -> Any:
        return self.detach()

    @property
    def mT(self) -> Any:
        return self.transpose(-2, -1)

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self._dimension(dim)

    def _dimension(self, dim: int) -> Any:
        values = {int(value.shape[dim]) for value in self.node.meta["values"]}
        if len(values) == 1:
            return values.pop()
        self.tracer.asked = True
        return self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, Proxy) and key.dtype is not torch.bool:
            raise UnknownOpError(
                self.tracer.where(), "writes to images that are picked by numbers in a map", REGISTER
            )
        self.tracer.create_proxy("call_function", assign, (self, key, value), {})

    def __iter__(self) -> Iterator[Any]:
        return iter([operator.getitem(self, i) for i in range(len(self))])

    def __len__(self) -> int:
        value = self.node.meta["values"][0]
        if isinstance(value, tuple | list):
            return len(value)
        length = self._dimension(0)
        if isinstance(length, int):
            return length
        raise DataDependenceError(self.tracer.where(), "loops over the images of a batch", REGISTER)

    def __index__(self) -> int:
        self.tracer.refuse_use(self.node, "uses as a plain number")
        raise AssertionError("unreachable")

    __int__ = __float__ = __index__


def _in_place(changing: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Proxy, other: Any) -> Any:
        # torch.fx would trace `x += 1` as `x = x + 1`, which does not change other references to x
        tensor = isinstance(self.node.meta["values"][0], Tensor)
        return self.tracer.create_proxy("call_function", changing if tensor else plain, (self, other), {})

    return method


for _changing, _plain in INPLACE_OPERATORS.items():
    setattr(Proxy, f"__{_changing.__name__.strip('_')}__", _in_place(_changing, _plain))


class Tracer(fx.Tracer):
    def __init__(
        self,
        name: str,
        root: nn.Module,
        layout: Layout,
        sizes: Sizes = TRIALS,
        apart: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.root, self.root_module_name = root, type(root).__name__
        self.name = name
        self.layout = layout
        """The layout of the map that the module takes."""
        self.sizes = sizes
        self.of_one_size = len(sizes) == 1
        """Whether the trace holds for images of one size; it may be paired with one at another size."""
        self.apart = apart
        """The parts that the model's own code runs on whole maps."""
        self.areas: dict[str, int] = {}
        """The sizes of maps of the parts that were called with one map and returned one of its size."""
        self.finest = 0
        """The size of the largest map that a convolution has made."""
        self.submodule_paths: dict[nn.Module, str] = {}
        self.nodes: dict[str, fx.Node] = {}
        self.of_input: set[fx.Node] = set()
        self.made_modules: dict[str, nn.Module] = {}
        """The modules that the forward creates, by their names in the graph."""
        self.made: dict[str, Tensor] = {}
        """The tensors that the forward creates, by their names in the graph."""
        self.returns: Any = ALONE
        """What the forward returns, with places instead of traced values."""
        self.left: dict[str, list[int | float]] = {}
        """The numbers that attributes held after the forward."""
        self.left_behind: dict[str, Any] | None = None
        """The attributes that the forward set, if only to numbers."""
        self.assigned: dict[str, Any] = {}
        """Tensors that the forward has assigned in place of weights, made of other weights, by dotted
        name."""
        self.used: dict[int, tuple[Tensor, Tensor]] = {}
        """Tensors other than parameters, as they were when an op first took them."""
        self.untouched: nn.Module = root
        """The module with the attributes that it had before it was traced."""
        self.evaluating = False
        self.asked = False
        """Whether code has read a size that differs between the trials."""
        self.found_barrier = False
        self.parts: dict[str, int] = {"": layout.channels[0]}
        """The parts that were called with one map, and its channels."""
        self.stopped_in = ""
        self.decision: fx.Node | None = None
        """The value by which code wanted to decide something, where that stopped the trace."""
        """The innermost part at which tracing stands, once it is refused."""
        device = next((p.device for p in root.parameters()), torch.device("cpu"))
        dtype = next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)
        with importing():  # a process's first one imports PyTorch's compiler
            self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake:
            self.trials = tuple(torch.empty(layout.shape(size), device=device, dtype=dtype) for size in sizes)

    def dotted(self, path: str) -> str:
        return ".".join(part for part in (self.name, path) if part) or type(self.root).__name__

    def where(self) -> str:
        scope = self.scope
        kind = scope.module_type or type(self.root)
        return f"{self.dotted(scope.module_path)} ({kind.__name__})"

    def parts_around(self, path: str) -> Iterator[str]:
        """The parts at or around this one that take one map, from the innermost to the whole stage."""
        while path:
            if path in self.parts:
                yield path
            path = path.rpartition(".")[0]
        yield path

    def coarse_parts_like(self, path: str) -> frozenset[str]:
        """The innermost part at or around this one on a coarser map than some other, and parts of the same
        class.

        Empty if there is none.
        """
        finest = max(self.finest, prod(self.trials[0].shape[2:]))
        coarse = {path for path, area in self.areas.items() if 2 * area <= finest}  # and not just cropped
        while path and path not in coarse:
            path = path.rpartition(".")[0]
        if not path:
            return frozenset()
        kind = type(self.submodule(path))
        return frozenset(each for each in coarse if type(self.submodule(each)) is kind)

    def kind(self, node: fx.Node) -> str:
        """The name of an op."""
        if node.op == "call_module":
            return type(self.submodule(str(node.target))).__name__
        return str(node.target) if isinstance(node.target, str) else node.target.__name__

    def is_traced(self, value: Any) -> bool:
        return isinstance(value, fx.Proxy | Tensor)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        # a single placeholder; every other parameter of forward takes its default
        whole = self.create_proxy("placeholder", "input", (), {})
        if self.is_leaf_module(self.root, ""):
            return lambda root, x: self.create_proxy("call_module", "", (x,), {}), [self.root, whole]
        return root_fn, [self.root, whole]

    def proxy(self, node: fx.Node) -> Proxy:
        return Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.apart:
            return True
        if m._forward_pre_hooks or is_parametrized(m):
            return False  # the parametrization that computes its weight is traced, and then its own code
        if rule_for_module(m) is not None:
            return True
        path = f"{self.dotted(module_qualified_name)} ({type(m).__name__})"
        if is_quantiser(m):
            raise TraceError(
                path, "quantises inside a stage", "Stages end before quantisers: trace its parts"
            )
        if _is_torchs(m):
            raise UnknownOpError(path, "no rule knows this op, so its overlap is not known", REGISTER)
        return False

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        if qualified_name(type(m)) == "einops.layers.torch.Rearrange":
            axes: Any = m.axes_lengths
            return self.create_proxy(
                "call_function", sys.modules["einops"].rearrange, (*args, m.pattern), dict(axes)
            )
        if m not in self.submodule_paths:
            self.take_in(m)
        if _begins_with_zeros(m, args, kwargs):
            own: Any = m
            how = own.mode, own.num_layers, own.bias, own.bidirectional, own.batch_first
            made = self.create_proxy("call_function", recurrent, (args[0], list(own._flat_weights), *how), {})
            return made, _StateOf(self.where())
        _refuse_what_it_hides(m, lambda: f"{self.dotted(self.path_of_module(m))} ({type(m).__name__})")
        try:
            self.require_axes(m, args)
            self.note_part(m, args, kwargs)
            if self.of_fixed_size(args, kwargs) and rule_for_module(m) is None and _is_torchs(m):
                return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
            given = self.of_assigned(m, args) if self.assigned else None
            made = super().call_module(m, forward, args, kwargs) if given is None else given
            self.note_area(m, args, kwargs, made)
            return made
        except Exception as error:
            self.stopped_in = self.stopped_in or self.path_of_module(m)
            if isinstance(error, OverlapToolError):
                raise
            raise self.failure(error, self.dotted(self.path_of_module(m)), type(m)) from error

    def take_in(self, m: nn.Module) -> None:
        """Give a module that the forward created, as in `nn.ReLU()(x)`, a path in the stage."""
        if any(True for _ in (*m.parameters(), *m.buffers())):
            reason = f"calls a {type(m).__name__} with weights that is not one of its own submodules"
            raise TraceError(self.where(), reason, "Make it in __init__, as an attribute or in a ModuleList")
        if any(isinstance(part, _DropoutNd) and part.training for part in m.modules()):
            reason = f"makes a {type(m).__name__} when it runs, which drops at random in eval mode, too"
            raise TraceError(self.where(), reason, "Make it in __init__")
        for path, part in m.named_modules(prefix=f"{type(m).__name__}_{len(self.made_modules)}"):
            path = f"{self.scope.module_path}.{path}".strip(".")
            self.submodule_paths[part], self.made_modules[path] = path, part

    def submodule(self, path: str) -> nn.Module:
        return self.made_modules[path] if path in self.made_modules else self.root.get_submodule(path)

    def require_axes(self, m: nn.Module, args: tuple[Any, ...]) -> None:
        """Raise for a PyTorch layer for sounds or volumes that is given another kind of map."""
        axes = {"1d": "1 axis", "3d": "3 axes"}.get(type(m).__name__[-2:])
        positional = type(m).__module__.startswith("torch.nn.") and not isinstance(m, _DropoutNd)
        given = args[0] if args else None
        if axes and positional and isinstance(given, Proxy) and given.ndim == 4:
            raise TraceError(
                f"{self.dotted(self.path_of_module(m))} ({type(m).__name__})",
                f"{type(m).__name__} works on maps of {axes}, and images have rows and columns",
                "Name a part that takes an image, with `stage`",
            )

    def of_fixed_size(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether these are values of whole maps, or do not depend on the input: an op on them needs
        no rule."""
        given = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, fx.Proxy | Tensor)]
        sizes = [
            {tuple(tensor.shape[1:]) for tensor in value.node.meta["values"] if isinstance(tensor, Tensor)}
            for value in given
            if isinstance(value, fx.Proxy)
        ]
        return bool(given) and all(len(of_trials) == 1 for of_trials in sizes)

    def note_part(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) == 1 and not kwargs and isinstance(args[0], Proxy):
            values = args[0].node.meta["values"]
            is_map = isinstance(values[0], Tensor) and values[0].ndim == len(self.layout.dims)
            if is_map and len({value.shape[1] for value in values}) == 1:
                self.parts.setdefault(self.path_of_module(m), values[0].shape[1])

    def note_area(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        given = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Proxy)]
        if len(given) != 1 or given[0] is not next(iter(args), None) or not isinstance(made, Proxy):
            return
        before, after = (each.node.meta["values"][0] for each in (given[0], made))
        ndim = len(self.layout.dims)
        if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
            return
        if not before.ndim == after.ndim == ndim:
            return
        if before.shape[2:] == after.shape[2:]:
            # channels may be last, or many: a map must not be taken for a smaller one
            self.areas[self.path_of_module(m)] = prod(sorted(before.shape[1:])[2 - ndim :])
        if isinstance(m, nn.modules.conv._ConvNd):
            self.finest = max(self.finest, prod(after.shape[2:]))

    def assigns(self, weight: fx.Node, value: Any) -> bool:
        """Record `weight.data = value`, if it is a weight and the value does not depend on the input."""
        if weight.op != "get_attr" or not isinstance(value, fx.Proxy) or self.depends_on_input(value.node):
            return False
        self.assigned[str(weight.target)] = value
        return True

    def of_assigned(self, m: nn.Module, args: tuple[Any, ...]) -> Any:
        """A layer as a function of the weights that the forward assigned to it; None if it assigned none."""
        path = self.path_of_module(m)
        names = [name for name, _ in m.named_parameters(recurse=False) if f"{path}.{name}" in self.assigned]
        if not names:
            return None
        if not isinstance(m, nn.Conv2d) or rule_for_module(m) is None or len(args) != 1:
            where = f"{self.dotted(path)} ({type(m).__name__})"
            reason = "is called with weights that the forward has just given it, and is no convolution"
            raise TraceError(where, reason, "Give it its weights once, before the model is wrapped")
        return m._conv_forward(args[0], m.weight, m.bias)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluating:
            return attr_val
        found = super().getattr(attr, attr_val, parameter_proxy_cache)
        given = self.assigned and isinstance(found, fx.Proxy) and found.node.op == "get_attr"
        return self.assigned.get(str(found.node.target), found) if given else found

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Like `fx.Tracer.trace`, but without any effect on other threads."""
        where = f"{self.dotted('')} ({type(root).__name__})"
        self.graph = fx.Graph(tracer_cls=type(self))
        _refuse_what_it_hides(root, lambda: where)
        self.untouched = with_own_forward(twin(root))
        own = set(vars(root))
        self.submodule_paths = {module: path for path, module in root.named_modules()}
        self.tensor_attrs = {
            value: f"{path}.{key}".strip(".")
            for path, module in root.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        try:
            with tracing_with(self, root), OwnRandomness() as random:
                forward, args = self.create_args_for_root(type(root).forward, True)
                results, self.returns = taken_apart(forward(*args), self.is_traced)
                self.create_node("output", "output", (self.create_arg(tuple(results)),), {})
        except OverlapToolError:
            raise
        except Exception as error:
            raise self.failure(error, self.dotted(""), type(root)) from error
        if random.drawn:
            raise self.draws(where)
        if not all(same_values(tensor, before) for tensor, before in self.used.values()):
            reason = "changes a tensor in place that an op took before, which the trace would not tell apart"
            raise TraceError(where, reason, "Make a new tensor of it")
        self.made = {key: value for key, value in vars(root).items() if key not in own}
        return self.graph

    def failure(self, error: Exception, path: str, kind: type) -> TraceError:
        """Translate an error during tracing: the module's own, or one of tracing alone."""
        where = f"{path} ({kind.__name__})"
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            shape = "x".join(map(str, self.trials[0].shape))
            return TooLargeError(
                where,
                f"makes a tensor as large as a trial map of {shape} of other numbers, and runs out of memory",
                "Make it from the map, as by `torch.ones_like(x[:, :1]) * sigma`, or pass it as a map",
            )
        own = self.own_failure()
        if isinstance(own, VALUES_ARE_READ):
            return self.reads_values(where)
        if own is not None:
            shape = "x".join(map(str, self.trials[0].shape))
            failure = TrialError(
                where if type(own) is type(error) else self.dotted(""),
                f"fails by itself, given one map of {shape}: {type(own).__name__}: {_first_line(own)}",
                "Name a stage that takes one map, with `stage`, or correct the module",
            )
            failure.own = own
            return failure
        return TraceError(
            where,
            f"cannot be traced{_source_line(error)}: {_first_line(error)}",
            f"{REGISTER} that makes it one op",
        )

    def draws(self, where: str) -> TraceError:
        return TraceError(where, "draws random numbers in eval mode, too", "Draw them in training mode only")

    def reads_values(self, where: str) -> DataDependenceError:
        reason = "reads the values of its input, so that what it computes cannot be known in advance"
        return DataDependenceError(where, reason, REGISTER)

    def own_failure(self) -> Exception | None:
        """The error that the module itself raises for a trial map without tracing, if it does so soon."""
        try:
            return self.raised(self.trials[0], monotonic() + PATIENCE)
        except OutOfTime:
            return None

    def raised(self, given: Tensor, until: float) -> Exception | None:
        """The module's own error for a map without numbers. Raises `OutOfTime` at the time `until`."""
        self.evaluating = True
        try:
            with self.fake, torch.no_grad(), _without_a_log(), Deadline(until):
                self.untouched(given)
        except Exception as error:  # third-party modules may raise anything
            return error
        finally:
            self.evaluating = False
        return None

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.refuse_use(obj.node, "decides something by")
        raise AssertionError("unreachable")

    def refuse_use(self, node: fx.Node, doing: str) -> None:
        if isinstance(node.meta["values"][0], Tensor):
            self.decision = node
            raise DataDependenceError(
                self.where(),
                f"{doing} the values of its input, so that its path cannot be known in advance",
                REGISTER,
            )
        raise SizeDependenceError(
            self.where(),
            f"{doing} the size of its input, so that pieces would differ from the whole image",
            f"Move the check out of the stage, or {REGISTER[0].lower()}{REGISTER[1:]}",
        )

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        composition = composition_of(target) if kind in ("call_function", "call_method") else None
        if composition is not None:
            return composition(*args, **kwargs)
        if target in (torch._assert, torch._assert_async):
            bool(args[0])  # raises like any other condition on a traced value
            return None
        if target == "__setitem__":  # assignment into a tensor that is not traced
            kind, target = "call_function", assign
        if target in MAKERS_LIKE and self.of_one_size:
            target, args, kwargs = self.made_like(target, *args, **kwargs)
            kind = "call_function"
        if target in ("to", "type_as") and self.takes_after_a_map(args):
            args = (args[0], args[1].device, args[1].dtype)
            target = "to"
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if getattr(target, "__name__", target) in ONE_ANSWER:
            return proxy.node.meta["values"][0]
        if kind in ("call_function", "call_method"):
            value = proxy.node.meta["values"][0]
            known = self.of_one_size or not self.depends_on_input(proxy.node)
            if known and isinstance(value, bool | int | float | str | torch.dtype):
                return value  # made of weights alone, or at one size: code may branch on it
        return proxy

    def made_like(self, target: str, like: Proxy, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        """`x.new_zeros(h, w)` depends on no map's values, only on its type and device."""
        given = {name: value for name, value in kwargs.items() if value is not None}
        return MAKERS_LIKE[target], args, {"dtype": like.dtype, "device": like.device, **given}

    def takes_after_a_map(self, args: Any) -> bool:
        """Whether a constant takes its type and device from a map."""
        value, other = [*args, None][:2]
        return (
            isinstance(other, Proxy)
            and isinstance(other.node.meta["values"][0], Tensor)
            and not (isinstance(value, fx.Proxy) and self.depends_on_input(value.node))
        )

    def device_of_weights(self) -> Any:
        """The device of the stage when it runs; None if there are no weights to show it."""
        name = next((name for name, _ in self.root.named_parameters()), None)
        if name is None:
            return None
        weight = self.create_proxy("get_attr", name, (), {})
        return self.create_proxy("call_function", getattr, (weight, "device"), {})

    def depends_on_input(self, node: fx.Node) -> bool:
        return node in self.of_input

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not a.is_meta:
            self.used.setdefault(id(a), (a, a.clone()))
        return super().create_arg(a)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind != "placeholder" and any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            reason = "computes in lower precision, by autocast, which the trace would not have"
            raise TraceError(
                self.where(), reason, "Analyze it outside of torch.autocast, and call none inside"
            )
        if args[0] in DRAWN:
            raise self.draws(self.where())
        if len(self.nodes) == MOST_OPS:
            raise TraceError(
                self.where(),
                f"computes more than {MOST_OPS} ops, perhaps in a loop over positions",
                f"{REGISTER} that makes the loop one op",
            )
        node = super().create_node(kind, *args, **kwargs)
        self.nodes[node.name] = node
        node.meta["scope"] = self.scope.module_path
        if kind == "placeholder" or not self.of_input.isdisjoint(node.all_input_nodes):
            self.of_input.add(node)
        if kind != "output":
            node.meta["values"] = tuple(self.evaluate(node, trial) for trial in range(len(self.sizes)))
        return node

    def evaluate(self, node: fx.Node, trial: int) -> Any:
        """The result of a node at a trial size."""
        if node.op == "placeholder":
            return self.trials[trial]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["values"][trial])
        self.evaluating = True
        try:
            with self.fake, torch.no_grad(), _without_a_log():
                if node.op == "get_attr":
                    value = operator.attrgetter(str(node.target))(self.root)
                    return self.fake.from_tensor(value) if isinstance(value, Tensor) else value
                if node.op == "call_module":
                    # on fake weights, since a forward may assign to them (MaskedConv2d does)
                    module = self.submodule(str(node.target))
                    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                    fakes: dict[str, Tensor] = {k: self.fake.from_tensor(v) for k, v in state.items()}
                    return torch.func.functional_call(twin(module), fakes, args, kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                return node.target(*args, **kwargs)  # type: ignore[operator]
        except VALUES_ARE_READ as error:
            self.decision = node
            raise self.reads_values(self.where()) from error
        except Exception as error:
            shapes = [tuple(o.shape) for o in tensors((args, kwargs))]
            name = getattr(node.target, "__name__", node.target)  # the name of the whole stage is empty
            if "overflow" in str(error):
                raise TooLargeError(
                    self.where(),
                    f"makes more numbers of maps of {', '.join(map(str, shapes))} than memory has addresses",
                    "Analyze the parts before and after it, with `stage`",
                ) from error
            raise TrialError(
                f"{self.dotted(str(node.target) if node.op == 'call_module' else node.meta['scope'])}",
                f"{name or self.kind(node)} refuses a trial input of shape "
                f"{', '.join(map(str, shapes))}: {_first_line(error)}",
                "Check that the module takes one map of "
                f"{self.layout.channels[0]} channels, or name a stage that does with `stage`",
            ) from error
        finally:
            self.evaluating = False


@contextmanager
def _without_a_log() -> Iterator[None]:
    """Inside, PyTorch does not log errors on fake tensors with all of their traceback."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _first_line(error: Exception) -> str:
    return shorten(first_line(error), MESSAGE)


def _source_line(error: Exception) -> str:
    """The line of the model's own code that raised an error, as ` at "..."`."""
    own = [
        frame.line
        for frame in extract_tb(error.__traceback__)
        if not frame.filename.startswith(NOT_THE_MODEL) and frame.line
    ]
    return f' at "{shorten(own[-1], MESSAGE)}"' if own else ""


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def _is_torchs(module: nn.Module) -> bool:
    """Whether the module is a PyTorch layer that is not made of other modules' ops."""
    is_made_of_others = isinstance(module, nn.Sequential) or composition_of(type(module)) is not None
    home = type(module).__module__
    of_weights = home.startswith("torch.nn.utils.")  # parametrizations, and the layers that use them
    return home.startswith("torch.nn.") and not (is_made_of_others or of_weights)


def _begins_with_zeros(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is a recurrent layer of PyTorch's that is called without a state."""
    return (
        isinstance(m, nn.RNNBase)
        and type(m) in (nn.LSTM, nn.GRU, nn.RNN)
        and not (m.proj_size or m._forward_pre_hooks or kwargs)
        and len(args) == 1
        and isinstance(args[0], Proxy)
        and args[0].ndim == 3
    )


class _StateOf:
    """The final state that a recurrent layer returns beside its outputs: inference code drops it."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __iter__(self) -> Iterator[_StateOf]:
        return iter((_StateOf(self.where), _StateOf(self.where)))

    def __getattr__(self, name: str) -> Any:
        raise self.used()

    def __getitem__(self, index: Any) -> Any:
        raise self.used()

    def used(self) -> TraceError:
        return TraceError(
            self.where,
            "uses the state that a recurrent layer ends with, which depends on all of the map",
            f"{REGISTER} that makes the whole module one op",
        )


def _makes_weights(hook: Any) -> bool:
    """Whether a hook only computes a layer's weight from two others before each call."""
    return type(hook) is WeightNorm


def _refuse_what_it_hides(module: nn.Module, where: Callable[[], str]) -> None:
    """Raise for things that tracing would miss, or see twice."""
    if module._forward_hooks or any(not _makes_weights(hook) for hook in module._forward_pre_hooks.values()):
        raise TraceError(
            where(),
            "has forward hooks, which change what it computes and which tracing does not see",
            "Remove them, for instance with torch.nn.utils.remove_spectral_norm",
        )
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    if compiled or qualified_name(type(module)) == "torch._dynamo.eval_frame.OptimizedModule":
        raise TraceError(
            where(),
            "is compiled by torch.compile, which does not know traced values",
            "Take the model as it is before it is compiled",
        )
