"""From a traced graph to a network: every node becomes an op with its rule, a barrier, or a constant."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn

from overlap_tool.errors import (
    OverlapToolError,
    RuleError,
    SizeDependenceError,
    TraceError,
    UnknownOpError,
)
from overlap_tool.geometry.axis import MisalignedJoin
from overlap_tool.geometry.layout import COLUMNS, ROWS, Dimension, Layout, MapSize, broadcast
from overlap_tool.graph.copying import with_own_forward
from overlap_tool.graph.functional import in_type_of_first, on_copies, out_of_place, works_in_place
from overlap_tool.graph.network import (
    Barrier,
    Constant,
    Input,
    Network,
    Op,
    Summary,
    at_trial,
    leaves,
    operands,
)
from overlap_tool.graph.returned import paths
from overlap_tool.graph.rewriting import IsMap, inserted, maps_among, rewritten
from overlap_tool.graph.shifted import fill_up
from overlap_tool.graph.tracer import REGISTER, Sizes, Tracer, tensors
from overlap_tool.rules import (
    Call,
    Operand,
    Patches,
    Reduction,
    Rule,
    SizeArgument,
    rule_for_function,
    rule_for_module,
)
from overlap_tool.rules.assigning import assign, scattered
from overlap_tool.rules.borders import expanded_index
from overlap_tool.rules.layouts import image_by_image, joined
from overlap_tool.rules.placing import placed
from overlap_tool.rules.products import beside
from overlap_tool.rules.registry import NO_MAP, Registered
from overlap_tool.rules.whole_map import kept_whole

SPLITS = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}

UNBINDS = {torch.unbind, "unbind"}

OURS = {placed, joined, beside}
"""Functions that no model calls and that only networks contain."""

KEPT_WHOLE = Registered(kept_whole, accepts_sizes=True, any_layout=True)


@dataclass
class _Origins:
    """What each node seen so far depends on."""

    input: set[fx.Node] = field(default_factory=set)
    """Nodes that depend on the stage's input in any way."""
    summaries: set[fx.Node] = field(default_factory=set)
    """Those that depend on it through barriers alone, or through the number of images."""
    per_image: set[fx.Node] = field(default_factory=set)
    """Those that depend on the number of images alone, in a trace at one size."""

    def note(self, node: fx.Node, sizes: Sizes) -> None:
        sources = [source for source in node.all_input_nodes if source in self.input]
        if node.op == "placeholder" or sources:
            self.input.add(node)
        if sources and (all(source in self.summaries for source in sources) or _counts_images(node)):
            self.summaries.add(node)
        if node not in self.input and len(set(_shapes(node))) > 1 and _fixed_per_image(node, sizes):
            self.per_image.add(node)

    def is_map(self, node: fx.Node) -> bool:
        return node in self.input and node not in self.summaries


def _counts_images(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)


def lowered(graph: fx.Graph, tracer: Tracer) -> Network:
    """The network of a graph. If tracing stopped before the output, only errors raised here matter."""
    result = nx.DiGraph()
    origins = _Origins()
    names: dict[str, int] = {}
    returned: list[fx.Node] | None = None

    def take(node: fx.Node) -> None:
        origins.note(node, tracer.sizes)
        if node.op == "placeholder":
            node.meta |= {"layout": tracer.layout, "sizes": tracer.sizes}
            result.add_node(node.name, op=Input(node.name, tracer.dotted(""), tracer.layout))
            return
        op: Constant | Op | Barrier | Summary
        if node not in origins.input:
            op = _constant(node, tracer)
        elif node in origins.summaries:
            op = _summary(node, origins, tracer)
        elif isinstance(node.meta["values"][0], Tensor):
            befores = _scattered_before, rewritten, _placed_before, _joined_before
            for made_before in befores if node.target not in OURS else ():
                for new in made_before(node, origins.is_map, tracer):
                    take(new)
            op = _op(node, origins, names, tracer)
        else:
            return  # sizes and the parts of a split are folded into the ops that take them
        if isinstance(op, Barrier):
            origins.summaries.add(node)
            tracer.found_barrier = True
        _add(op, result)

    for node in _live(graph):
        tracer.stopped_in = node.meta["scope"]
        if node.op != "output":
            take(node)
            continue
        for new in _joined_before(node, origins.is_map, tracer):
            take(new)
        for each in node.all_input_nodes:
            op = result.nodes[each.name]["op"] if each.name in result else None
            if isinstance(op, Op) and op.rule.whole:  # what is returned has to be computed by a pass
                again = inserted(joined, (each,), node, tracer)
                node.replace_input_with(each, again)
                take(again)
        returned = _returned_maps(node, origins, tracer)
    if returned is None:
        return Network(tracer.name, result, "", tracer.root)
    results = tuple(node.name for node in returned)
    for id in reversed(list(result)):
        unread = not result.out_degree(id) and id not in results
        if isinstance(result.nodes[id]["op"], Summary) and unread:
            result.remove_node(id)  # a number of images that only ops on maps used
    shifted = fill_up(result, results)
    ops = [id for id, op in result.nodes(data="op") if isinstance(op, Op)]
    # if only summaries are returned, the last map is what they are made of
    *kept, output = [id for id in ops if id in results] or ops[-1:]
    return Network(
        tracer.name,
        result,
        output,
        tracer.root,
        tuple(kept),
        results,
        tracer.returns,
        tracer.apart,
        shifted,
        tracer.of_one_size,
    )


def _add(op: Constant | Op | Barrier | Summary, graph: nx.DiGraph) -> None:
    graph.add_node(op.id, op=op)
    for operand in operands((op.args, op.kwargs)):
        graph.add_edge(operand.id, op.id)


def _placed_before(node: fx.Node, is_map: IsMap, tracer: Tracer) -> list[fx.Node]:
    """Turn a value that meets a map and is as large as it into a map: coordinates, or broadcast values.

    Such values are computed whole, for images of one size.
    """
    maps = maps_among(node.all_input_nodes, is_map)
    layout = broadcast([map.meta["layout"] for map in maps], _shapes(node)[0]) if maps else None
    if not tracer.of_one_size or layout is None:
        return []
    new: list[fx.Node] = []
    for value in node.all_input_nodes:
        if is_map(value) or (value.target is torch.empty and node.target is not assign):
            continue  # an empty value shows nothing of its layout
        own = _spread_over(layout, maps[0].meta["sizes"], _shapes(value))
        if own is None:
            continue
        lacking = {ROWS, COLUMNS} & {*own.missing}
        if lacking:
            own = own.with_ones(range(len(layout.dims) - len(own.dims)))
        beside = zip(own.dims, layout.dims[-len(own.dims) :], strict=True)
        spread = Layout(tuple(like if lacking.intersection(like) else mine for mine, like in beside))
        sizes = maps[0].meta["sizes"]
        map = inserted(placed, (value, maps[0], own, spread, sizes[0][1:]), node, tracer)
        node.replace_input_with(value, map)
        new.append(map)
    return new


def _scattered_before(node: fx.Node, is_map: IsMap, tracer: Tracer) -> list[fx.Node]:
    """Give a map that is written to some rows and columns of another as many of them as that one."""
    if node.target is not assign or not tracer.of_one_size:
        return []
    whole, key, value = node.args
    if not (isinstance(whole, fx.Node) and isinstance(value, fx.Node) and is_map(value)):
        return []
    sizes = [shape[-2:] for shape in _shapes(whole)]
    slices = expanded_index(key, len(_shapes(whole)[0]))[-2:]
    for trial, (shape, size) in enumerate(zip(_shapes(value), sizes, strict=True)):
        written = at_trial(slices, trial)
        if not all(isinstance(each, slice) for each in written):
            return []
        # with a single row, every other row is that row, yet it stands for half of the rows
        if size == shape[-2:] and not any((each.step or 1) > 1 for each in written):
            return []
        if shape[-2:] != tuple(len(range(*each.indices(n))) for each, n in zip(written, size, strict=True)):
            return []
    map = inserted(scattered, (value, *slices, SizeArgument(tuple(sizes))), node, tracer)
    node.args = (whole, key, map)
    return [map]


def _spread_over(
    layout: Layout, sizes: tuple[MapSize, ...], shapes: tuple[tuple[int, ...], ...]
) -> Layout | None:
    """The layout of a value that meets a map; None if it has neither rows nor columns, or follows the size
    otherwise."""
    ndim = len(shapes[0])
    if len(set(shapes)) == 1 or ndim > len(layout.dims):
        return None
    dims: list[Dimension] = []
    of_map = list(zip(*map(layout.shape, sizes), strict=True))[-ndim:]
    for own, like, dimension in zip(zip(*shapes, strict=True), of_map, layout.dims[-ndim:], strict=True):
        if len(set(own)) > 1 and own != like:
            return None
        dims.append(dimension if own == like else (own[0],))
    made = Layout(tuple(dims))
    return made if {ROWS, COLUMNS} & {*made.flat} else None


def _joined_before(node: fx.Node, is_map: IsMap, tracer: Tracer) -> list[fx.Node]:
    """Join the blocks of a map to rows and columns where an op needs that."""
    reader = _taken_from(node)
    registered = None if node.op == "output" else _registered(reader, tracer)
    any_layout = registered is not None and registered.any_layout
    maps = maps_among(reader.all_input_nodes, is_map)
    layouts = [map.meta["layout"] for map in maps]
    largest = max((_shapes(map)[0] for map in maps), key=len, default=())
    if any_layout and (len(maps) < 2 or broadcast(layouts, largest) is not None):
        return []
    new: list[fx.Node] = []
    for each, layout in zip(maps, layouts, strict=True):
        if layout == layout.joined().layout or not (any_layout or layout.joined().layout.is_kept):
            continue
        map = inserted(joined, (each,), reader, tracer)
        reader.replace_input_with(each, map)
        new.append(map)
    return new


def _live(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the output depends on, in order; all of them if there is no output yet."""
    if all(node.op != "output" for node in graph.nodes):
        return list(graph.nodes)
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(user in live for user in node.users):
            live.add(node)
    return [node for node in graph.nodes if node in live]


def _returned_maps(node: fx.Node, origins: _Origins, tracer: Tracer) -> list[fx.Node]:
    """The maps and summaries that the forward returns."""
    returned = [each for each in leaves(node.args) if isinstance(each, fx.Node)]
    reasons = [_why_no_map(each, origins, tracer) for each in returned]
    reason = next(filter(None, reasons), "")
    if not reason and all(each.op == "placeholder" for each in returned):
        reason = "does not return a map that depends on its input"
    if reason:
        place = f" at {paths(tracer.returns)[reasons.index(reason)]}" if len(returned) > 1 else ""
        raise TraceError(
            f"{tracer.dotted('')} ({type(tracer.root).__name__})",
            f"{reason}{place}",
            "Name a part of it that returns maps, with `stage`",
        )
    return returned


def _why_no_map(returned: fx.Node, origins: _Origins, tracer: Tracer) -> str:
    if not tracer.depends_on_input(returned):
        return "returns what does not depend on its input"
    if not isinstance(returned.meta["values"][0], Tensor):
        return "returns a number that follows the size of its input"
    of_images = tracer.name and tracer.layout.is_kept
    if of_images and origins.is_map(returned) and not returned.meta["layout"].is_kept:
        return "is a part, and returns a map whose dimensions are not images, channels, rows and columns"
    return ""


def _constant(node: fx.Node, tracer: Tracer) -> Constant:
    if node.op == "get_attr" and node.target in tracer.made:
        return Constant(node.name, None, Tensor.detach, (tracer.made[node.target],))
    if node.op == "get_attr":
        return Constant(node.name, source=str(node.target))
    args, kwargs = at_trial(_arguments(node, _Origins()))
    return Constant(node.name, None, _callable(node, tracer), args, kwargs)


def _callable(node: fx.Node, tracer: Tracer) -> Any:
    """What the model calls to compute a value without a rule; on a copy if it works in place."""
    target: Any
    if node.op == "call_module":
        target = tracer.submodule(str(node.target))
    else:
        target = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
    if not works_in_place(node, tracer) or node.kwargs.get("out") is not None:
        return target
    return _OnCopy(target)


@dataclass(frozen=True)
class _OnCopy:
    """An in-place op applied to a copy of its tensor."""

    target: Any

    def __call__(self, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.target(value.clone(), *args, **kwargs)


def _summary(node: fx.Node, origins: _Origins, tracer: Tracer) -> Summary:
    if _counts_images(node):
        # every map has as many images as the stage's input, which is always available
        given = next(iter(tracer.nodes.values()))
        return Summary(node.name, Tensor.size, 0, (_operand(given, origins), 0), {})

    def described(source: fx.Node) -> Any:
        return _operand(source, origins)

    args, kwargs = at_trial(fx.node.map_arg((node.args, node.kwargs), described))
    numbers = sum(tensor[:1].numel() for tensor in tensors(node.meta["values"][0]))
    target = _callable(node, tracer)
    if works_in_place(node, tracer):
        target = on_copies(target)
    return Summary(node.name, target, numbers, tuple(args), dict(kwargs))


def _operand(node: fx.Node, origins: _Origins) -> Operand:
    value = node.meta["values"][0]
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    summary = node in origins.summaries or node in origins.per_image
    return Operand(node.name, shape, origins.is_map(node), summary, node.meta.get("layout", NO_MAP))


def _arguments(node: fx.Node, origins: _Origins) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def described(source: fx.Node) -> Any:
        values = source.meta["values"]
        if source in origins.input and not isinstance(values[0], Tensor):
            return SizeArgument(values)
        return _operand(source, origins)

    return fx.node.map_arg(node.args, described), dict(fx.node.map_arg(node.kwargs, described))


def _op(node: fx.Node, origins: _Origins, names: dict[str, int], tracer: Tracer) -> Op | Barrier:
    kind = tracer.kind(node)
    module = _module(node, tracer) if node.op == "call_module" else None
    path = str(node.target) if module is not None else f"{node.meta['scope']}.{kind.strip('_')}".strip(".")
    name = tracer.dotted(path)
    names[name] = names.get(name, 0) + 1
    if names[name] > 1:
        name = f"{name}#{names[name]}"

    args, kwargs = _arguments(node, origins)
    target: Any = module if module is not None else node.target
    pick: Any = None
    if target is operator.getitem and not isinstance(args[0], Operand):
        target, kind, args, kwargs, pick = _part_of_several(node, origins, name)
    plain, registered = _plain_and_registered(target)
    if module is not None and str(node.target) in tracer.apart:
        registered = KEPT_WHOLE
    inputs = tuple(operand for operand in operands((args, kwargs)) if operand.spatial)
    if not inputs:
        doing = "mixes a value of the whole map with" if _summaries(args, kwargs) else "makes a tensor by"
        raise SizeDependenceError(
            f"{name} ({kind})",
            f"{doing} the size of its input alone, so that a piece would be given another one",
            f"Make it of the values of the map, or {REGISTER[0].lower()}{REGISTER[1:]} that makes the whole "
            "module one op",
        )
    shapes = _shapes(node), _shapes(tracer.nodes[inputs[0].id])
    sizes = tracer.nodes[inputs[0].id].meta["sizes"]
    call = Call(name, kind, plain, *shapes, sizes, tracer.of_one_size)
    for operand in operands((args, kwargs)) if target is not placed else ():
        if not (operand.spatial or operand.summary) and len(set(_shapes(tracer.nodes[operand.id]))) > 1:
            call.refuse_size("takes a tensor that is made by the size of its input alone")
    for operand in _summaries(args, kwargs) if target is not placed else ():
        if not _fixed_per_image(tracer.nodes[operand.id], tracer.sizes):
            call.refuse("takes a value of the whole map that mixes the images of a batch")
    rule = _rule(call, registered, (module, *args) if module is not None else args, kwargs)
    if plain is not target and isinstance(rule, Rule):
        rule = replace(rule, run=in_type_of_first(rule.run))
    if pick is not None:
        target, rule = _picked(call, rule, pick)
    if tracer.of_one_size:
        args, kwargs = at_trial((args, kwargs))
    sources = tuple(operand.id for operand in inputs)
    shape = tuple(node.meta["values"][0].shape)
    if isinstance(rule, Reduction):
        if len(sources) > 1 or not _fixed_per_image(node, tracer.sizes):
            call.refuse("reduces several maps at once, or to a value whose size follows the image")
        numbers = prod(shape[1:])
        return Barrier(node.name, name, kind, target, rule, sources[0], numbers, module, args, kwargs)
    layout = rule.layout
    if layout is None and registered is not None and registered.any_layout:
        layout = broadcast([operand.layout for operand in inputs], shape)
    elif layout is None:
        layout = Layout.of_map(*shape[1:-2])
    if layout is None:
        call.refuse("takes maps whose rows and columns are not the same dimensions")
    if not ({ROWS, COLUMNS} & {*layout.missing}) <= {*tracer.layout.missing}:
        call.refuse("has no rows or no columns in its result")
    made = tuple(_sizes(rule, layout, *each) for each in zip(sizes, _shapes(node), strict=True))
    node.meta |= {"layout": layout, "sizes": made}
    in_place = works_in_place(node, tracer)
    return Op(node.name, name, kind, target, rule, layout, sources, in_place, module, args, kwargs)


def _sizes(rule: Rule, layout: Layout, given: MapSize, shape: tuple[int, ...]) -> MapSize:
    """The images, rows and columns of a result: by its shape, or otherwise by the rule."""
    images, rows, columns = given
    by_rule = ((ROWS, rule.rows, rows), (COLUMNS, rule.columns, columns))
    rows, columns = (
        geometry.size(n) if (place := layout.place_of(axis)) is None else shape[place]
        for axis, geometry, n in by_rule
    )
    return images, rows, columns


def _plain_and_registered(target: Any) -> tuple[Any, Registered | None]:
    """The out-of-place op, and what is registered for it."""
    if isinstance(target, nn.Module):
        return target, rule_for_module(target)
    registered = rule_for_function(target)
    if registered is not None:
        return target, registered
    plain = out_of_place(target)
    return plain, rule_for_function(plain)


def _registered(node: fx.Node, tracer: Tracer) -> Registered | None:
    if node.op == "call_module":
        return KEPT_WHOLE if str(node.target) in tracer.apart else rule_for_module(_module(node, tracer))
    return _plain_and_registered(torch.narrow if node.target in SPLITS | UNBINDS else node.target)[1]


def _taken_from(node: fx.Node) -> fx.Node:
    """The op itself or, for one part of a result, the op that returns the parts."""
    several = node.args[0] if node.target is operator.getitem else None
    if isinstance(several, fx.Node) and not isinstance(several.meta["values"][0], Tensor):
        return several
    return node


def _module(node: fx.Node, tracer: Tracer) -> nn.Module:
    """The module of an op. If it is the whole stage, whose forward may be tiled and call back here, a twin
    with the class's own forward."""
    module = tracer.submodule(str(node.target))
    return with_own_forward(module) if module is tracer.root else module


def _summaries(args: Any, kwargs: Any) -> list[Operand]:
    return [operand for operand in operands((args, kwargs)) if operand.summary]


def _fixed_per_image(node: fx.Node, sizes: Sizes) -> bool:
    """Whether the first dimension is that of the images, and no other follows the image's size."""
    shapes = _shapes(node)
    return len({shape[1:] for shape in shapes}) == 1 and all(
        shape[:1] == (images,) for shape, (images, *_) in zip(shapes, sizes, strict=True)
    )


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(getattr(value, "shape", ())) for value in node.meta["values"])


def _part_of_several(
    node: fx.Node, origins: _Origins, name: str
) -> tuple[Any, str, tuple[Any, ...], dict[str, Any], int | None]:
    """`x.chunk(2, 1)[i]` as one op: the channels from the start of part `i`.

    For `x.max(1)[0]`, it is `x.max(1)` together with the number of the picked result.
    """
    several, index = node.args
    assert isinstance(several, fx.Node)
    assert isinstance(index, int)
    kind = several.target if isinstance(several.target, str) else getattr(several.target, "__name__", "")
    if several.target in SPLITS:
        whole = several.args[0]
        assert isinstance(whole, fx.Node)
        parts, total = several.meta["values"][0], whole.meta["values"][0]
        dim = next((d for d in range(total.ndim) if parts[0].shape[d] != total.shape[d]), 1)
        start = sum(part.shape[dim] for part in parts[:index])
        operand = _operand(whole, origins)
        return torch.narrow, str(kind), (operand, dim, start, parts[index].shape[dim]), {}, None
    if several.target in UNBINDS:
        (whole, *rest), named = _arguments(several, origins)
        return "select", str(kind), (whole, *(rest or [named.get("dim", 0)]), index), {}, None
    if several.op == "call_module" or rule_for_function(several.target) is None:
        raise UnknownOpError(
            f"{name} ({kind})", "no rule knows this op, so its overlap is not known", REGISTER
        )
    return several.target, str(kind), *_arguments(several, origins), index


def _picked(call: Call, rule: Rule | Reduction, index: int) -> tuple[Any, Rule]:
    """The rule for one result of an op that returns several."""
    if not isinstance(rule, Rule):
        call.refuse("picks one of several values of the whole map")
    every = getattr(Tensor, call.target) if isinstance(call.target, str) else call.target

    def compute(*args: Any, **kwargs: Any) -> Any:
        return every(*args, **kwargs)[index]

    def run(patches: Patches, *args: Any, **kwargs: Any) -> Any:
        return rule.run(patches, *args, **kwargs)[index]

    return compute, replace(rule, run=run)


def _rule(
    call: Call, registered: Registered | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Rule | Reduction:
    where = f"{call.name} ({call.kind})"
    if registered is None:
        raise UnknownOpError(where, "no rule knows this op, so its overlap is not known", REGISTER)
    if not registered.accepts_sizes:
        if call.of_one_size:
            args, kwargs = at_trial((args, kwargs))
        elif any(isinstance(leaf, SizeArgument) for leaf in leaves((args, kwargs))):
            call.refuse_size("takes an argument that follows the size of its input")
    maps = [operand for operand in operands((args, kwargs)) if operand.spatial]
    try:
        if not registered.any_layout and not all(operand.layout.is_kept for operand in maps):
            return image_by_image(call, registered.build, maps, args, kwargs)
        return registered.build(call, *args, **kwargs)
    except OverlapToolError:
        raise
    except Exception as error:
        raise RuleError(
            where, f"its rule does not take these arguments ({type(error).__name__}: {error})", REGISTER
        ) from error


def check_sizes(network: Network, tracer: Tracer) -> None:
    """Compare every rule's size with the op's real output, and require one scale at every join."""
    for axis, dim in ((network.rows, 0), (network.columns, 1)):
        try:
            axis.reaches()
        except MisalignedJoin as error:
            op = network.ops[error.index]
            raise TraceError(
                op.name,
                f"joins branches of different scale ({', '.join(map(str, error.scales))} of the input)",
                "Such a join broadcasts or depends on the size; register a rule for the block as one op",
            ) from error
        on_rolled = {id for pair in network.shifted for id in pair.inside}
        for trial, extents in enumerate(tracer.sizes[:1] if tracer.of_one_size else tracer.sizes):
            for op, size in zip(network.ops, axis.sizes(extents[1 + dim]), strict=True):
                if op.id in on_rolled:
                    continue
                meta = tracer.nodes[op.id].meta
                layout: Layout = meta["layout"]
                real = meta["sizes"][trial]
                if size != real[1 + dim] or layout.shape(real) != meta["values"][trial].shape:
                    raise RuleError(
                        op.name,
                        f"its rule says {size} outputs, the op gave {real[1 + dim]}",
                        "Correct the rule",
                    )
