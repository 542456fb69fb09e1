"""`exact_kernels()`: makes any PyTorch code compute with the exact engine, without changes to it.

Every op that PyTorch dispatches while the mode is on is looked up in `exactness`: it runs as it is, or the
table's function runs instead. An op that is not there but decomposes into others is computed by these. Any
other op on floating-point or complex numbers runs by PyTorch's own kernel on whole tensors (`whole`), and
raises on pieces of maps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _pop_torch_dispatch_stack, _push_on_torch_dispatch_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import chain, compositions, scores, whole
from overlap_tool.kernels.dispatching import DispatchMode
from overlap_tool.kernels.scores import Scores
from overlap_tool.kernels.work import tensors_among
from overlap_tool.rules.exactness import OPS, Exactness

UNKNOWN = Exactness("unknown")


class _Op(NamedTuple):
    """Cached properties of an op, which are slow to query."""

    overload: str
    name: str
    """The name by which `exactness` knows it."""
    mutable: bool

    @classmethod
    @cache
    def of(cls, func: Any) -> _Op:
        overload = func._schema.name.removeprefix("aten::")
        name = overload if overload.startswith("__") or "::" in overload else overload.rstrip("_")
        return cls(overload, name, func._schema.is_mutable)


class _ExactKernels(DispatchMode):
    """Fake tensors, which have no numbers, are computed by functions that give their shapes or, in a
    rehearsal, by all the steps that real ones would take, so that their memory can be counted."""

    def __init__(self, rehearses: bool = False) -> None:
        super().__init__()
        self.prepared = chain.Prepared()
        self.rehearses = rehearses

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        overload, name, mutable = _Op.of(func)
        exact = OPS.get(name, UNKNOWN)
        if scores.are_put_off():
            given = [*tensors_among(args), *tensors_among(kwargs.values())]
            if mutable and (waiting := scores.waiting()):
                with self:
                    scores.settled(waiting)
            if any(isinstance(each, Scores) for each in given):
                with self:
                    return scores.computed(func, name, args, kwargs)
            if scores.too_large(name, given):
                with self:
                    return scores.product(func, args, kwargs)
        if mutable and args and _has_memory(args[0]):
            self.prepared.changed(args[0])
        if func.is_view or exact.how == "moves":  # the common case
            return func(*args, **kwargs)
        given = [*tensors_among(args), *tensors_among(kwargs.values())]
        if name in ("div", "floor_divide") and all(map(_has_memory, given)):
            return func.overloadpacket(*compositions.on_one_device(*args[:2]), *args[2:], **kwargs)
        if _only_shapes(given, kwargs) and not (self.rehearses and "::" not in name):
            return func(*args, **kwargs)
        if exact.how != "of ops" and any(map(torch.is_complex, given)):
            exact = UNKNOWN
        how, compute = exact
        if compute is None and how != "unknown":
            return func(*args, **kwargs)
        if how == "of numbers" and compute:
            return compute(*args, **kwargs)
        if not _with_fractions(given):
            result = func(*args, **kwargs)
            if not _with_fractions(tensors_among([result])):
                return result
        if how == "of ops" and compute:
            with self:
                result = compute(*args, **kwargs)
            return result if mutable else _in_its_own_memory(result, given)
        if compute is None and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        if "out" in kwargs or (compute is None and whole.on_pieces()):
            raise ExactnessError(
                str(func),
                "the exact engine has no kernel for it, so its bits may depend on the shape",
                f"Use {ExactnessError.STOCK}, write it with other operations, or register a function for it "
                "with overlap_tool.register_exact_op",
            )
        try:
            if compute is None:
                return whole.by_the_library(func, args, kwargs)
            if name == "convolution":
                compute = partial(compute, self.prepared)
            if name != overload and how == "number by number" and args[0].is_floating_point():
                return compute(*args, **kwargs, out=args[0])
            result = compute(*args, **kwargs)
        except ExactnessError:  # for these arguments, or on this machine
            if how == "chained" or whole.on_pieces():
                raise
            return whole.by_the_library(func, args, kwargs)
        if name != overload:
            return args[0].copy_(result)
        return _in_its_own_memory(result, given)

    def below(self, compute: Callable[..., Tensor], *args: Any) -> Tensor:
        """The result of `compute` where this mode is on top, with its own ops running below the mode."""
        _pop_torch_dispatch_stack(None)
        try:
            return compute(*args)
        finally:
            _push_on_torch_dispatch_stack(self)


_active = threading.local()


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Inside, every model computes with kernels whose bits depend on no shape, position, batch or thread.

    It holds for the current thread, and for any code, wrapped or not. An op without such a kernel runs by
    PyTorch's own if it is given whole tensors: its bits are those that a tiled model gives for the same
    tensor, and may differ from those for a tensor of another shape.

        with overlap_tool.exact_kernels():
            full = model(x)
    """
    if is_exact():
        yield
        return
    _active.on = True
    try:
        with _ExactKernels() as mode:
            yield
    finally:
        _active.on = False
        mode.prepared.clear()


def engine(name: str) -> AbstractContextManager[None]:
    """The context in which the named engine computes."""
    return exact_kernels() if name == "exact" else nullcontext()


@contextmanager
def rehearsal() -> Iterator[None]:
    """Inside, fake tensors go through the steps of the exact engine, as far as these take memory."""
    mode = _ExactKernels(rehearses=True)
    with mode:
        yield
    mode.prepared.clear()


def is_exact() -> bool:
    """Whether this thread computes with the exact engine."""
    return getattr(_active, "on", False)


def computes_first() -> bool:
    """Whether the exact engine is the topmost mode."""
    return isinstance(_get_current_dispatch_mode(), _ExactKernels)


class SetAside:
    """The exact engine, if it is the topmost mode, and the mode `beneath` it, set aside.

    Inside `aside`, calls bypass both modes: for code that only moves numbers. Inside this block itself they
    do not.
    """

    def __init__(self, beneath: TorchDispatchMode | None = None) -> None:
        exact = _get_current_dispatch_mode() if computes_first() else None
        self._modes: list[Any] = [mode for mode in (beneath, exact) if mode is not None]

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def __enter__(self) -> None:
        for each in self._modes:
            _push_on_torch_dispatch_stack(each)

    def __exit__(self, *_: object) -> None:
        for _ in self._modes:
            _pop_torch_dispatch_stack(None)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """PyTorch's function; under the exact engine, the engine is called directly, in half the time."""
    if (mode := _asked_straight(x, weight, bias)) is None:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    how = stride, padding, dilation, False, (0, 0), groups
    return mode.below(chain.convolution, mode.prepared, x, weight, bias, *how)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Tensor:
    if (mode := _asked_straight(x, weight, bias)) is None:
        return torch.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    how = stride, padding, dilation, True, output_padding, groups
    return mode.below(chain.convolution, mode.prepared, x, weight, bias, *how)


def _asked_straight(x: Tensor, weight: Tensor, bias: Tensor | None) -> _ExactKernels | None:
    """The exact engine, if PyTorch would only pass such tensors on to it.

    PyTorch has errors of its own for tensors of different types.
    """
    mode = _get_current_dispatch_mode()
    if (
        isinstance(mode, _ExactKernels)
        and type(x) is Tensor
        and type(weight) in (Tensor, Parameter)
        and all(
            x.dtype == each.dtype and x.device == each.device for each in (weight, bias) if each is not None
        )
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and not scores.are_put_off()
    ):
        return mode
    return None


def _has_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and not (isinstance(value, FakeTensor) or value.is_meta)


def _only_shapes(given: Iterable[Tensor], kwargs: dict[str, Any]) -> bool:
    """Whether there are no numbers: fake tensors, or a request for them."""
    return not all(map(_has_memory, given)) or kwargs.get("device") == torch.device("meta")


def _with_fractions(tensors: Iterable[Tensor]) -> bool:
    """Whether any tensor has numbers that need not be integers: integers are exact."""
    return any(each.is_floating_point() or each.is_complex() for each in tensors)


def _in_its_own_memory(result: Any, given: Sequence[Tensor]) -> Any:
    """A copy if the result shares memory with an argument, as a sum of a single number may.

    The op itself would return a new tensor, which the model's code may change in place.
    """
    if not isinstance(result, Tensor):
        return tree_map_only(Tensor, lambda part: _in_its_own_memory(part, given), result)
    if isinstance(result, FakeTensor):
        return result
    memory = result.untyped_storage().data_ptr()
    return result.clone() if any(each.untyped_storage().data_ptr() == memory for each in given) else result
