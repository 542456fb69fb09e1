"""Replacements of methods of `nn.Module` and of some functions while a module is traced.

They are shared by all threads, and `torch.fx`'s own would trace in every thread. These check whether their
own thread is tracing, and call the original if not.
"""

from __future__ import annotations

import builtins
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial, wraps
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch as given_to_fx_wrap

from overlap_tool.graph.network import leaves
from overlap_tool.rules import rule_for_function

ONE_AT_A_TIME = threading.RLock()
"""Held while a module is traced: it is in eval mode then, and some of its weights are set aside."""

_call, _getattr = nn.Module.__call__, nn.Module.__getattr__

_call_script: Callable[..., Any] = torch.jit.ScriptFunction.__call__

_MISSING = object()

DRAWN = (torch.rand, torch.randn, torch.randint, torch.randperm)

MAKERS = (torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.linspace, torch.eye, *DRAWN)
"""Functions that make tensors of numbers alone. `torch.zeros(rows, columns)` refuses traced sizes, and with
plain ones it would make a tensor as large as the trial map."""

NOT_THE_MODELS = frozenset({"torch", "overlap_tool"} | sys.stdlib_module_names)
"""Packages whose code does not belong to a model."""

EINOPS = ("rearrange", "reduce", "repeat", "einsum")


class _Tracing(threading.local):
    """The tracer of the current thread, if it traces."""

    tracer: Any = None
    parameters: dict[str, Any]


_tracing = _Tracing()


@contextmanager
def tracing_with(tracer: fx.Tracer, root: nn.Module) -> Iterator[None]:
    """Inside, this thread's calls of modules and parameters go to the tracer, and functions that would
    inspect a traced value are recorded as calls."""
    before = vars(_tracing).copy()
    with ExitStack() as stack:
        for function in MAKERS:
            stack.enter_context(_replaced(vars(torch), function.__name__, _recorded(function, always=True)))
        stack.enter_context(_replaced(vars(torch), "as_tensor", _as_tensor))
        stack.enter_context(_replaced(vars(torch.jit), "isinstance", _is_scripted_instance))
        stack.enter_context(_replaced(vars(torch), "is_tensor", _is_tensor))
        for frame in _frames_of_its_packages(root):
            stack.enter_context(_replaced(frame, "isinstance", _is_instance))
        for frame, name, function in _functions_around(root):
            stack.enter_context(_replaced(frame, name, _recorded(function)))
        for kind, name, method in (
            (nn.Module, "__call__", _traced_call),
            (nn.Module, "__getattr__", _traced_getattr),
            (torch.jit.ScriptFunction, "__call__", _traced_script),
        ):
            stack.enter_context(_replaced_method(kind, name, method))
        _tracing.tracer, _tracing.parameters = tracer, {}
        try:
            yield
        finally:
            vars(_tracing).clear()
            vars(_tracing).update(before)


@wraps(_call)
def _traced_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if _tracing.tracer is None:
        return _call(module, *args, **kwargs)
    return _tracing.tracer.call_module(module, partial(_call, module), args, kwargs)


@wraps(_getattr)
def _traced_getattr(module: nn.Module, name: str) -> Any:
    value = _getattr(module, name)
    if _tracing.tracer is None:
        return value
    return _tracing.tracer.getattr(name, value, _tracing.parameters)


def _traced_script(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A scripted function takes no traced value, so the Python function that it was made from is traced."""
    traced = any(isinstance(leaf, fx.Proxy) for leaf in leaves((args, kwargs)))
    if _tracing.tracer is None or not traced or not hasattr(function, "_torchdynamo_inline"):
        return _call_script(function, *args, **kwargs)
    return function._torchdynamo_inline(*args, **kwargs)


_is_instance_of, _tensor_of = torch.jit.isinstance, torch.as_tensor


def _stood_for(value: Any) -> Any:
    """The tensor or number that a traced value stands for."""
    return value.node.meta["values"][0] if isinstance(value, fx.Proxy) and _tracing.tracer else value


@wraps(_is_instance_of)
def _is_scripted_instance(value: Any, kind: Any) -> Any:
    return _is_instance_of(_stood_for(value), kind)


@wraps(isinstance)
def _is_instance(value: Any, kind: Any) -> bool:
    """Make a traced value an instance of what it stands for, for the model's code only.

    PyTorch itself would read the memory of what it takes for a tensor.
    """
    return isinstance(value, kind) or isinstance(_stood_for(value), kind)


@wraps(torch.is_tensor)
def _is_tensor(value: Any) -> bool:
    return isinstance(_stood_for(value), torch.Tensor)


@wraps(_tensor_of)
def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
    """A traced value is a tensor already."""
    if not isinstance(data, fx.Proxy):
        return _tensor_of(data, dtype=dtype, device=device)
    return data if dtype is None else data.to(dtype)


def _recorded(function: Callable[..., Any], always: bool = False) -> Callable[..., Any]:
    """A function that records calls with a traced value or, if `always`, all calls in a trace at one size."""

    @wraps(function)
    def record(*args: Any, **kwargs: Any) -> Any:
        tracer = _tracing.tracer
        if always and tracer is not None and tracer.of_one_size and not tracer.evaluating:
            return tracer.create_proxy("call_function", function, args, kwargs)
        traced = next((leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)), None)
        if traced is None:
            return function(*args, **kwargs)
        return traced.tracer.create_proxy("call_function", function, args, kwargs)

    return record


def _functions_around(root: nn.Module) -> Iterator[tuple[dict[str, Any], str, Callable[..., Any]]]:
    """The functions to record among the model's global names.

    These are functions of `math`, and some of PyTorch's, which take plain numbers; einops' functions, which
    inspect the type of their arguments; and functions given to `torch.fx.wrap` that have a rule (those
    without are traced).
    """
    as_they_stand = {id(function) for function in (*_public(math), *_einops_functions())}
    forwards = [type(root).forward, *(part.forward for part in root.modules())]
    frames = [vars(math), *(getattr(forward, "__globals__", {}) for forward in forwards)]
    frames += _holders_of_einops(_imported())
    for frame in {id(frame): frame for frame in frames}.values():
        for name, value in frame.copy().items():
            if not name.startswith("_") and id(value) in as_they_stand:
                yield frame, name, value
    for (_, name), frame in given_to_fx_wrap.copy().items():
        function = frame[name] if name in frame else getattr(builtins, name)
        if frame is vars(builtins) or rule_for_function(function) is not None:
            yield frame, name, function


def _frames_of_its_packages(root: nn.Module) -> list[dict[str, Any]]:
    """The global names of the model's own code: of all modules in its classes' packages.

    Modules with a name `isinstance` of their own are left out.
    """
    homes = {kind.__module__.partition(".")[0] for part in root.modules() for kind in type(part).__mro__}
    frames = _frames_of(frozenset(homes) - NOT_THE_MODELS, _imported())
    return [frame for frame in frames if "isinstance" not in frame]


def _imported() -> tuple[int, ...]:
    """Identifies the set of imported modules: searching thousands takes as long as tracing a few layers, so
    results are cached."""
    return tuple(map(id, sys.modules.copy().values()))


@lru_cache(maxsize=8)
def _frames_of(packages: frozenset[str], imported: tuple[int, ...]) -> list[dict[str, Any]]:
    modules = (module for name, module in sys.modules.copy().items() if name.partition(".")[0] in packages)
    return [vars(module) for module in modules if isinstance(module, ModuleType)]


def _public(module: Any) -> list[Callable[..., Any]]:
    return [value for name, value in vars(module).items() if not name.startswith("_") and callable(value)]


def _einops_functions() -> tuple[Callable[..., Any], ...]:
    """einops' functions, if the model has imported it."""
    einops = sys.modules.get("einops")
    return () if einops is None else tuple(getattr(einops, name) for name in EINOPS)


@lru_cache(maxsize=1)
def _holders_of_einops(imported: tuple[int, ...]) -> list[dict[str, Any]]:
    """The namespaces of all modules that have one of them under its own name: einops itself, and helpers."""
    functions = dict(zip(EINOPS, _einops_functions(), strict=False))
    frames = (getattr(module, "__dict__", {}) for module in sys.modules.copy().values())
    return [frame for frame in frames if any(frame.get(name) is each for name, each in functions.items())]


@contextmanager
def _replaced(frame: dict[str, Any], name: str, new: Callable[..., Any]) -> Iterator[None]:
    before = frame.get(name, _MISSING)
    frame[name] = new
    try:
        yield
    finally:
        if frame.get(name) is new:  # otherwise torch.fx has replaced it in another thread
            if before is _MISSING:
                del frame[name]
            else:
                frame[name] = before


@contextmanager
def _replaced_method(kind: type, name: str, new: Callable[..., Any]) -> Iterator[None]:
    before = getattr(kind, name)
    setattr(kind, name, new)
    try:
        yield
    finally:
        if getattr(kind, name) is new:
            setattr(kind, name, before)
