"""From a module to a network: a torch.fx tracer that knows the rules, and refuses what it cannot follow.

Every traced op is evaluated at two trial sizes on fake tensors, which hold shapes but no data. What is the
same at both is a constant (channels), what differs follows the size of the image: so `x.size(1)` is a plain
number while tracing, and a condition on `x.size(2)` is caught.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from overlap_tool.axis import MisalignedJoin
from overlap_tool.errors import (
    DataDependenceError,
    GlobalOpError,
    OverlapToolError,
    RuleError,
    SizeDependenceError,
    TraceError,
    UnknownOpError,
    WrapAroundError,
)
from overlap_tool.network import Barrier, Constant, Input, Network, Op, Summary, leaves, operands
from overlap_tool.rules import (
    Call,
    Operand,
    Reduction,
    Rule,
    Size,
    is_quantiser,
    rule_for_function,
    rule_for_module,
)
from overlap_tool.rules.pointwise import inplace_position
from overlap_tool.rules.registry import Registered
from overlap_tool.spread import Reach, spread

TRIALS = ((2, 960, 1920), (3, 2880, 3840))
"""Batch, height and width of the trials; all differ, and all suit networks that downscale by 64, 3 or 5."""

REGISTER = "Register a rule for it with overlap_tool.rules.register, in a file given as --plugin FILE.py"

SPLITS = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}

INPLACE_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
}
"""What works in place on a tensor, and what it is on a number."""


def trace(module: nn.Module, name: str, channels: int | None = None) -> Network:
    """The network of a module that takes one map and returns one.

    `channels` is the number of input channels; left out, it is read from the module's layers.
    """
    if channels is not None:
        return _trace(module, name, channels)
    refusals: list[_TrialError] = []
    for candidate in input_channels(module):
        try:
            return _trace(module, name, candidate)
        except _TrialError as refusal:
            refusals.append(refusal)
    first = refusals[0]
    raise TraceError(first.where, first.reason, first.way_out) from first


def _trace(module: nn.Module, name: str, channels: int) -> Network:
    tracer = _Tracer(name, module, channels)
    was_training = [m for m in module.modules() if m.training]
    buffers = _Buffers(module)
    module.eval()
    try:
        graph = tracer.trace(module)
    except TraceError as error:
        raise _explained(error, tracer) from error
    finally:
        changed = buffers.restore()
        for submodule in was_training:
            submodule.training = True
    if changed:
        raise TraceError(
            tracer.dotted(changed[0]),
            "is a buffer that changes while the module runs, which tiles could not do alike",
            "Do not change it in eval mode",
        )
    try:
        _functionalise(graph, tracer)
        network = _network(graph, tracer)
    except TraceError as error:
        raise _explained(error, tracer) from error
    _check_sizes(network, tracer)
    return network


def _explained(error: TraceError, tracer: _Tracer) -> TraceError:
    """The error, or what is at the bottom of it: no rule could help a part that mixes the whole map."""
    if type(error) not in (TraceError, UnknownOpError, SizeDependenceError) or tracer.found_barrier:
        return error  # behind a barrier, every part is seen to mix the whole map
    for path in tracer.parts_around(tracer.stopped_in):
        part = tracer.root.get_submodule(path)
        seen = spread(part, tracer.parts[path])
        if seen is not None:
            break
    if seen is None or seen.reach is Reach.NEAR:
        return error
    where = f"{tracer.dotted(path)} ({type(part).__name__})"
    trial = f"in a trial on {seen.size[0]}x{seen.size[1]} samples, a change in one outermost {seen.line}"
    stopped = f"tracing stopped at {error.where}: {error.reason}"
    if seen.reach is Reach.EVERYWHERE:
        return GlobalOpError(
            where,
            f"mixes the whole map: {trial} was seen up to the opposite one, so that no finite overlap is "
            f"enough ({stopped})",
            "Analyze the parts before and after it, with --stage, or replace it by a local op",
        )
    return WrapAroundError(
        where,
        f"reads across the border of the map: {trial} was seen at the opposite one and not between, as when "
        f"a roll is not masked or a map is mirrored, so that tiles at one border need the other ({stopped})",
        f"Mask what comes from across the border and retrain, or {REGISTER[0].lower()}{REGISTER[1:]}, with a "
        "circular geometry",
    )


class _Buffers:
    """The buffers of a module as they are, since a forward may change them while it is traced."""

    def __init__(self, module: nn.Module) -> None:
        self.saved = [
            (path, owner, key, buffer, buffer.detach().clone())
            for path, owner in module.named_modules()
            for key, buffer in owner._buffers.items()
            if buffer is not None and not buffer.is_meta
        ]

    def restore(self) -> list[str]:
        """The dotted names of those that changed; all are again what they were."""
        changed = []
        for path, owner, key, buffer, value in self.saved:
            if owner._buffers.get(key) is buffer and _same_values(buffer, value):
                continue
            changed.append(f"{path}.{key}".strip("."))
            buffer.data = value
            owner._buffers[key] = buffer
        return changed


def _same_values(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    differ = (first != second) & ~(first.isnan() & second.isnan())
    return not bool(differ.any())


def input_channels(module: nn.Module) -> list[int]:
    """The input channels to try: those of the layers, in order, then of a colour and a grey image."""
    found = [getattr(m, "in_channels", None) for m in module.modules()]
    counts = [count for count in found if isinstance(count, int) and count > 0]
    return list(dict.fromkeys([*counts, 3, 1]))


class _TrialError(TraceError):
    """An op refused the trial input; perhaps the number of channels was wrong."""


class _Proxy(fx.Proxy):
    """A traced value that knows its shape: channels are numbers, what follows the image's size is traced."""

    tracer: _Tracer

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("tracer", "node"):
            object.__setattr__(self, name, value)
            return
        raise TraceError(
            self.tracer.where(),
            f"assigns to .{name} of a tensor while it runs, which tracing would silently drop",
            f"{REGISTER} that makes the whole module one op",
        )

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self._dimension(i) for i in range(self.ndim))

    @property
    def ndim(self) -> int:
        return len(self.node.meta["values"][0].shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.node.meta["values"][0].dtype

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self._dimension(dim)

    def _dimension(self, dim: int) -> Any:
        values = {int(value.shape[dim]) for value in self.node.meta["values"]}
        if len(values) == 1:
            return values.pop()
        return self.tracer.create_proxy("call_method", "size", (self, dim), {})

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
    def method(self: _Proxy, other: Any) -> Any:
        # torch.fx would trace `x += 1` as `x = x + 1`, which leaves the other names of x as they were
        tensor = isinstance(self.node.meta["values"][0], Tensor)
        return self.tracer.create_proxy("call_function", changing if tensor else plain, (self, other), {})

    return method


for _changing, _plain in INPLACE_OPERATORS.items():
    setattr(_Proxy, f"__{_changing.__name__}__", _in_place(_changing, _plain))


class _Tracer(fx.Tracer):
    def __init__(self, name: str, root: nn.Module, channels: int) -> None:
        # einops looks at the type of what it is given, so its functions are traced as they stand
        super().__init__(autowrap_functions=_einops_functions())
        self.name = name
        self.channels = channels
        self.nodes: dict[str, fx.Node] = {}
        self.evaluating = False
        self.found_barrier = False
        self.parts: dict[str, int] = {"": channels}
        """The parts that were called with one map, and its channels."""
        self.stopped_in = ""
        """The innermost part at which tracing stands, once it is refused."""
        device = next((p.device for p in root.parameters()), torch.device("cpu"))
        dtype = next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake:
            self.trials = tuple(
                torch.empty(batch, channels, height, width, device=device, dtype=dtype)
                for batch, height, width in TRIALS
            )

    def dotted(self, path: str) -> str:
        return ".".join(part for part in (self.name, path) if part) or type(self.root).__name__

    def where(self) -> str:
        scope = self.scope
        kind = scope.module_type or type(self.root)
        return f"{self.dotted(scope.module_path)} ({kind.__name__})"

    def parts_around(self, path: str) -> Iterator[str]:
        """The parts at or around this one that take one map, from the inside out to the whole stage."""
        while path:
            if path in self.parts:
                yield path
            path = path.rpartition(".")[0]
        yield path

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        # One placeholder; every other parameter of forward takes its default.
        whole = self.create_proxy("placeholder", "input", (), {})
        if self.is_leaf_module(self.root, ""):
            return lambda root, x: self.create_proxy("call_module", "", (x,), {}), [self.root, whole]
        return root_fn, [self.root, whole]

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if rule_for_module(m) is not None:
            return True
        path = f"{self.dotted(module_qualified_name)} ({type(m).__name__})"
        if is_quantiser(m):
            raise TraceError(
                path, "quantises inside a stage", "Stages end before quantisers: trace its parts"
            )
        if type(m).__module__.startswith("torch.nn.") and not isinstance(m, nn.Sequential):
            raise UnknownOpError(path, "no rule knows this op, so its overlap is not known", REGISTER)
        return False

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        _refuse_hooks(m, lambda: f"{self.dotted(self.path_of_module(m))} ({type(m).__name__})")
        try:
            self.note_part(m, args, kwargs)
            return super().call_module(m, forward, args, kwargs)
        except NameError as error:
            raise TraceError(
                self.where(), f"calls a {type(m).__name__} that is not one of its own submodules", REGISTER
            ) from error
        except Exception as error:
            self.stopped_in = self.stopped_in or self.path_of_module(m)
            if isinstance(error, OverlapToolError):
                raise
            raise self.failure(error, self.dotted(self.path_of_module(m)), type(m)) from error

    def note_part(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) == 1 and not kwargs and isinstance(args[0], _Proxy):
            value = args[0].node.meta["values"][0]
            if isinstance(value, Tensor) and value.ndim == 4:
                self.parts.setdefault(self.path_of_module(m), value.shape[1])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        _refuse_hooks(root, lambda: f"{self.dotted('') or type(root).__name__} ({type(root).__name__})")
        try:
            return super().trace(root, concrete_args)
        except OverlapToolError:
            raise
        except Exception as error:
            raise self.failure(error, self.dotted(""), type(root)) from error

    def failure(self, error: Exception, path: str, kind: type) -> TraceError:
        message = str(error).strip().split("\n")[0]
        return TraceError(
            f"{path} ({kind.__name__})", f"cannot be traced: {message}", f"{REGISTER} that makes it one op"
        )

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.refuse_use(obj.node, "decides something by")
        raise AssertionError("unreachable")

    def refuse_use(self, node: fx.Node, doing: str) -> None:
        if isinstance(node.meta["values"][0], Tensor):
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

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        self.nodes[node.name] = node
        node.meta["scope"] = self.scope.module_path
        if kind != "output":
            node.meta["values"] = tuple(self.evaluate(node, trial) for trial in range(len(TRIALS)))
        return node

    def evaluate(self, node: fx.Node, trial: int) -> Any:
        """What a node gives at a trial size."""
        if node.op == "placeholder":
            return self.trials[trial]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["values"][trial])
        self.evaluating = True
        try:
            with self.fake, torch.no_grad():
                if node.op == "get_attr":
                    value = operator.attrgetter(str(node.target))(self.root)
                    return self.fake.from_tensor(value) if isinstance(value, Tensor) else value
                if node.op == "call_module":
                    # on stand-ins for its weights, since a forward may assign to them (MaskedConv2d does)
                    module = self.root.get_submodule(str(node.target))
                    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                    fakes: dict[str, Tensor] = {k: self.fake.from_tensor(v) for k, v in state.items()}
                    return torch.func.functional_call(module, fakes, args, kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                return node.target(*args, **kwargs)  # type: ignore[operator]
        except DataDependentOutputException as error:
            raise DataDependenceError(
                self.where(),
                "reads the values of its input, so that what it computes cannot be known in advance",
                REGISTER,
            ) from error
        except Exception as error:
            shapes = [tuple(o.shape) for o in _tensors((args, kwargs))]
            raise _TrialError(
                f"{self.dotted(str(node.target) if node.op == 'call_module' else node.meta['scope'])}",
                f"{getattr(node.target, '__name__', node.target)} refuses a trial input of shape "
                f"{', '.join(map(str, shapes))}: {str(error).strip().split(chr(10))[0]}",
                "Check that the module takes one map of "
                f"{self.channels} channels, or name a stage that does with --stage",
            ) from error
        finally:
            self.evaluating = False


def _einops_functions() -> tuple[Callable[..., Any], ...]:
    """einops' functions, if the model has imported it."""
    einops = sys.modules.get("einops")
    return (einops.rearrange, einops.reduce, einops.repeat, einops.einsum) if einops is not None else ()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _refuse_hooks(module: nn.Module, where: Callable[[], str]) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise TraceError(
            where(),
            "has forward hooks, which change what it computes and which tracing does not see",
            "Remove them, for instance with torch.nn.utils.remove_spectral_norm or remove_weight_norm",
        )


def _functionalise(graph: fx.Graph, tracer: _Tracer) -> None:
    """Let whatever is read after an in-place op read that op's result, so that none need work in place."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    from_input: set[fx.Node] = set()
    for node in graph.nodes:
        tracer.stopped_in = node.meta["scope"]
        if node.op == "placeholder" or any(source in from_input for source in node.all_input_nodes):
            from_input.add(node)
        if not _works_in_place(node, tracer):
            continue
        changed = node.kwargs.get("out") or node.all_input_nodes[0]
        if changed not in from_input:
            _refuse_mutation(tracer, node, "changes its weights in place while it runs")
        for alias in _sharing_memory(changed, graph):
            later = [user for user in alias.users if order[user] > order[node]]
            if alias.op == "placeholder":
                _refuse_mutation(tracer, node, "changes the stage's own input in place")
            if later and alias is not changed and order[alias] < order[node]:
                _refuse_mutation(tracer, node, "changes a tensor in place of which a view is read later")
        for user in [user for user in changed.users if order[user] > order[node]]:
            user.replace_input_with(changed, node)


def _works_in_place(node: fx.Node, tracer: _Tracer) -> bool:
    if node.op == "call_module":
        return bool(getattr(tracer.root.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", "")
    if node.target in INPLACE_OPERATORS or node.kwargs.get("out") is not None:
        return True
    if name.endswith("_") and not name.endswith("__") and home != operator.add.__module__:
        return True  # torch.clamp_, but not operator.and_
    # F.relu(x, True), F.leaky_relu(x, 0.2, True)
    position = inplace_position(node.target)
    given = node.args[position] if position is not None and position < len(node.args) else False
    return bool(node.kwargs.get("inplace", given))


def _sharing_memory(node: fx.Node, graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose values lie in the same memory as this one's, itself among them."""
    own = _memory(node)
    return [other for other in graph.nodes if other.op != "output" and not own.isdisjoint(_memory(other))]


def _memory(node: fx.Node) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in _tensors(node.meta["values"][0])}


def _refuse_mutation(tracer: _Tracer, node: fx.Node, reason: str) -> None:
    raise TraceError(
        f"{tracer.dotted(node.meta['scope'])} ({_kind(node, tracer)})",
        reason,
        "Use the op that is not in place, which gives the same values",
    )


def _kind(node: fx.Node, tracer: _Tracer) -> str:
    if node.op == "call_module":
        return type(tracer.root.get_submodule(str(node.target))).__name__
    return str(node.target) if isinstance(node.target, str) else node.target.__name__


@dataclass
class _Origins:
    """What the nodes seen so far depend on."""

    input: set[fx.Node] = field(default_factory=set)
    """Those that depend on the stage's input in any way."""
    summaries: set[fx.Node] = field(default_factory=set)
    """Those of them that do so through barriers alone, or through the number of images."""

    def note(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self.input]
        if node.op == "placeholder" or sources:
            self.input.add(node)
        if sources and (all(source in self.summaries for source in sources) or _counts_images(node)):
            self.summaries.add(node)

    def is_map(self, node: fx.Node) -> bool:
        return node in self.input and node not in self.summaries


def _counts_images(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)


def _network(graph: fx.Graph, tracer: _Tracer) -> Network:
    result = nx.DiGraph()
    origins = _Origins()
    names: dict[str, int] = {}
    output: fx.Node | None = None
    for node in _live(graph):
        tracer.stopped_in = node.meta["scope"]
        if node.op == "output":
            output = _single_output(node, origins, tracer)
            continue
        origins.note(node)
        if node.op == "placeholder":
            result.add_node(node.name, op=Input(node.name, tracer.dotted(""), tracer.channels))
            continue
        op: Constant | Op | Barrier | Summary
        if node not in origins.input:
            op = _constant(node, tracer)
        elif node in origins.summaries:
            op = _summary(node, origins, tracer)
        elif isinstance(node.meta["values"][0], Tensor):
            op = _op(node, origins, names, tracer)
        else:
            continue  # a size, or the parts of a split: they are folded into the ops that take them
        if isinstance(op, Barrier):
            origins.summaries.add(node)
            tracer.found_barrier = True
        result.add_node(node.name, op=op)
        for operand in operands((op.args, op.kwargs)):
            result.add_edge(operand.id, node.name)
    assert output is not None
    for id in reversed(list(result)):
        if isinstance(result.nodes[id]["op"], Summary) and not result.out_degree(id):
            result.remove_node(id)  # a number of images, which only ops on maps asked for
    return Network(tracer.name, result, output.name, tracer.root)


def _live(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the output depends on, in order."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(user in live for user in node.users):
            live.add(node)
    return [node for node in graph.nodes if node in live]


def _single_output(node: fx.Node, origins: _Origins, tracer: _Tracer) -> fx.Node:
    returned = node.args[0]
    if (
        isinstance(returned, fx.Node)
        and origins.is_map(returned)
        and isinstance(returned.meta["values"][0], Tensor)
    ):
        return returned
    raise TraceError(
        f"{tracer.dotted('')} ({type(tracer.root).__name__})",
        "does not return one map that depends on its input",
        "Name a part of it that does, with --stage",
    )


def _constant(node: fx.Node, tracer: _Tracer) -> Constant:
    if node.op == "get_attr":
        return Constant(node.name, source=str(node.target))
    args, kwargs = _arguments(node, _Origins())
    return Constant(node.name, None, _callable(node, tracer), args, kwargs)


def _callable(node: fx.Node, tracer: _Tracer) -> Any:
    if node.op == "call_module":
        return tracer.root.get_submodule(str(node.target))
    return getattr(Tensor, node.target) if isinstance(node.target, str) else node.target


def _summary(node: fx.Node, origins: _Origins, tracer: _Tracer) -> Summary:
    if _counts_images(node):
        # every map has as many: the stage's input is one that is always at hand
        given = next(iter(tracer.nodes.values()))
        return Summary(node.name, Tensor.size, 0, (_operand(given, origins), 0), {})

    def described(source: fx.Node) -> Any:
        return _operand(source, origins)

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), described)
    numbers = sum(tensor[:1].numel() for tensor in _tensors(node.meta["values"][0]))
    return Summary(node.name, _callable(node, tracer), numbers, tuple(args), dict(kwargs))


def _operand(node: fx.Node, origins: _Origins) -> Operand:
    value = node.meta["values"][0]
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    return Operand(node.name, shape, origins.is_map(node), node in origins.summaries)


def _arguments(node: fx.Node, origins: _Origins) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def described(source: fx.Node) -> Any:
        values = source.meta["values"]
        if source in origins.input and not isinstance(values[0], Tensor):
            return Size(values)
        return _operand(source, origins)

    return fx.node.map_arg(node.args, described), dict(fx.node.map_arg(node.kwargs, described))


def _op(node: fx.Node, origins: _Origins, names: dict[str, int], tracer: _Tracer) -> Op | Barrier:
    kind = _kind(node, tracer)
    module = tracer.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    path = str(node.target) if module is not None else f"{node.meta['scope']}.{kind.strip('_')}".strip(".")
    name = tracer.dotted(path)
    names[name] = names.get(name, 0) + 1
    if names[name] > 1:
        name = f"{name}#{names[name]}"

    args, kwargs = _arguments(node, origins)
    target: Any = module if module is not None else node.target
    if target is operator.getitem and not isinstance(args[0], Operand):
        target, kind, args = _part_of_split(node, origins, name)
    registered = rule_for_module(module) if module is not None else rule_for_function(target)
    inputs = tuple(operand for operand in operands((args, kwargs)) if operand.spatial)
    if not inputs:
        doing = "mixes a value of the whole map with" if _summaries(args, kwargs) else "makes a tensor by"
        raise SizeDependenceError(
            f"{name} ({kind})",
            f"{doing} the size of its input alone, so that a piece would be given another one",
            f"Make it of the values of the map, or {REGISTER[0].lower()}{REGISTER[1:]} that makes the whole "
            "module one op",
        )
    call = Call(name, kind, target, _shapes(node), _shapes(tracer.nodes[inputs[0].id]))
    for operand in _summaries(args, kwargs):
        if not _fixed_per_image(tracer.nodes[operand.id]):
            call.refuse("takes a value of the whole map that mixes the images of a batch")
    rule = _rule(call, registered, (module, *args) if module is not None else args, kwargs)
    sources = tuple(operand.id for operand in inputs)
    shape = tuple(node.meta["values"][0].shape)
    if isinstance(rule, Reduction):
        if len(sources) > 1 or not _fixed_per_image(node):
            call.refuse("reduces several maps at once, or to a value whose size follows the image")
        numbers = prod(shape[1:])
        return Barrier(node.name, name, kind, target, rule, sources[0], numbers, module, args, kwargs)
    channels = Operand("", shape, True).channels
    in_place = _works_in_place(node, tracer)
    return Op(node.name, name, kind, target, rule, channels, sources, in_place, module, args, kwargs)


def _summaries(args: Any, kwargs: Any) -> list[Operand]:
    return [operand for operand in operands((args, kwargs)) if operand.summary]


def _fixed_per_image(node: fx.Node) -> bool:
    """Whether its first dimension is that of the images, and the others do not follow the image's size."""
    shapes = _shapes(node)
    return len({shape[1:] for shape in shapes}) == 1 and all(
        shape[:1] == (images,) for shape, (images, *_) in zip(shapes, TRIALS, strict=True)
    )


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(value.shape) for value in node.meta["values"])


def _part_of_split(node: fx.Node, origins: _Origins, name: str) -> tuple[Any, str, tuple[Any, ...]]:
    """`x.chunk(2, 1)[i]` as one op: the channels from where part `i` starts."""
    split, index = node.args
    assert isinstance(split, fx.Node)
    kind = split.target if isinstance(split.target, str) else getattr(split.target, "__name__", "")
    if split.target not in SPLITS:
        raise UnknownOpError(
            f"{name} ({kind})", "no rule knows this op, so its overlap is not known", REGISTER
        )
    whole = split.args[0]
    assert isinstance(whole, fx.Node)
    assert isinstance(index, int)
    parts, total = split.meta["values"][0], whole.meta["values"][0]
    dim = next((d for d in range(total.ndim) if parts[0].shape[d] != total.shape[d]), 1)
    start = sum(part.shape[dim] for part in parts[:index])
    return torch.narrow, str(kind), (_operand(whole, origins), dim, start, parts[index].shape[dim])


def _rule(
    call: Call, registered: Registered | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Rule | Reduction:
    where = f"{call.name} ({call.kind})"
    if registered is None:
        raise UnknownOpError(where, "no rule knows this op, so its overlap is not known", REGISTER)
    if not registered.accepts_sizes and any(isinstance(leaf, Size) for leaf in leaves((args, kwargs))):
        call.refuse_size("takes an argument that follows the size of its input")
    try:
        return registered.build(call, *args, **kwargs)
    except OverlapToolError:
        raise
    except Exception as error:
        raise RuleError(
            where, f"its rule does not take these arguments ({type(error).__name__}: {error})", REGISTER
        ) from error


def _check_sizes(network: Network, tracer: _Tracer) -> None:
    """Hold every rule's size to what the op really gave, and every join to one scale."""
    for axis, dim in ((network.rows, 1), (network.columns, 2)):
        try:
            axis.reaches()
        except MisalignedJoin as error:
            op = network.ops[error.index]
            raise TraceError(
                op.name,
                f"joins branches of different scale ({', '.join(map(str, error.scales))} of the input)",
                "Such a join broadcasts or depends on the size; register a rule for the block as one op",
            ) from error
        for trial, extents in enumerate(TRIALS):
            for op, size in zip(network.ops, axis.sizes(extents[dim]), strict=True):
                real = tracer.nodes[op.id].meta["values"][trial].shape[dim - 3]
                if size != real:
                    raise RuleError(
                        op.name, f"its rule says {size} outputs, the op gave {real}", "Correct the rule"
                    )
