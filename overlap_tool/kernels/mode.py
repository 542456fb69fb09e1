"""`exact_kernels()`: makes any PyTorch code compute with the exact engine, without knowing of it.

Every op that PyTorch dispatches while the mode is on is treated in one of these ways:

- it moves data, rounds correctly or does not depend on an order: it runs as it is;
- it is a chain (`chain`) or composed (`compositions`): that runs instead;
- it is a function of one number: `arithmetic` computes it;
- a function was registered for it, or it is made of other ops: those are looked at;
- anything else on floating-point numbers, or on complex ones, runs by PyTorch's own kernel on whole tensors
  (`whole`), and is refused by name on pieces of maps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._C import _pop_torch_dispatch_stack, _push_on_torch_dispatch_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only

from overlap_tool.errors import ExactnessError, PluginError
from overlap_tool.kernels import chain, compositions, scores, whole
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS
from overlap_tool.kernels.scores import Scores
from overlap_tool.kernels.work import tensors_among

MOVES = """
    _local_scalar_dense _pin_memory _to_copy _unsafe_view alias as_strided cat channel_shuffle clone
    constant_pad_nd copy detach diag_embed embedding empty empty_like empty_permuted empty_strided equal
    expand eye fill flip full full_like gather im2col index index_fill index_select is_nonzero is_pinned
    item lift lift_fresh masked_fill masked_scatter masked_select native_channel_shuffle new_empty
    new_empty_strided new_full new_ones new_zeros one_hot ones ones_like permute pin_memory pixel_shuffle
    pixel_unshuffle record_stream reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize roll scalar_tensor
    scatter select_scatter set slice_scatter split_with_sizes_copy stack transpose tril triu unbind unfold
    unsafe_split view where zero zeros zeros_like
"""
"""Move numbers, or make them of none."""

COMPARES = """
    _assert_async adaptive_max_pool2d all amax amin aminmax any argmax argmin argsort bitwise_and
    bitwise_not bitwise_or bitwise_xor bucketize clamp clamp_max clamp_min cummax cummin eq ge gt
    hardshrink hardtanh isfinite isinf isnan kthvalue le logical_and logical_not logical_or logical_xor lt
    max max_pool2d_with_indices max_pool3d_with_indices maximum median min minimum nan_to_num nanmedian ne
    nonzero searchsorted sort threshold topk unique_consecutive
"""
"""Compare numbers, and choose among them."""

ROUNDS = """
    abs ceil copysign div floor floor_divide frac leaky_relu mul neg reciprocal round sgn sign signbit
    softshrink trunc
"""
"""One operation for each result, which IEEE 754 defines to the last bit."""

DRAWS = "bernoulli normal rand rand_like randint randn randn_like uniform"
"""Draw numbers, as many and in the same order whatever is made of them."""

MOVED = frozenset(MOVES.split())

AS_IS = frozenset(" ".join((MOVES, COMPARES, ROUNDS, DRAWS)).split())
"""What no order and no shape changes."""

IN_PLACE: dict[str, Callable[..., Tensor]] = {
    **{name: partial(compositions.function, name) for name in (*FUNCTIONS, "sigmoid", "silu", "mish")},
    "relu": compositions.relu,
    "gelu": compositions.gelu,
    "elu": compositions.elu,
    "celu": compositions.celu,
}
"""Computed number by number, and into `out`, which may be what is read."""


MADE: dict[str, Callable[..., Tensor]] = {"linspace": compositions.linspace, "arange": compositions.arange}
"""Made of numbers alone."""


COMPOSED: dict[str, Callable[..., Any]] = {
    **IN_PLACE,
    "add": compositions.add,
    "sub": compositions.subtract,
    "rsub": compositions.reverse_subtract,
    "index_put": compositions.index_put,
    "addcmul": compositions.addcmul,
    "addcdiv": compositions.addcdiv,
    "lerp": compositions.lerp,
    "fmod": compositions.fmod,
    "remainder": compositions.remainder,
    "softplus": compositions.softplus,
    "log_sigmoid_forward": compositions.log_sigmoid,
    "hardsigmoid": compositions.hardsigmoid,
    "hardswish": compositions.hardswish,
    "_prelu_kernel": compositions.prelu,
    "pow": compositions.power,
    "sum": compositions.sum,
    "mean": compositions.mean,
    "prod": compositions.prod,
    "var": compositions.var,
    "std": compositions.std,
    "linalg_vector_norm": compositions.vector_norm,
    "_softmax": compositions.softmax,
    "_log_softmax": compositions.log_softmax,
    "logsumexp": compositions.logsumexp,
    "native_layer_norm": compositions.layer_norm,
    "native_group_norm": compositions.group_norm,
    "native_batch_norm": compositions.batch_norm,
    "_native_batch_norm_legit": compositions.batch_norm,
    "_native_batch_norm_legit_no_training": compositions.batch_norm,
    "cudnn_batch_norm": compositions.cudnn_batch_norm,
    "avg_pool2d": partial(compositions.avg_pool, 2),
    "avg_pool3d": partial(compositions.avg_pool, 3),
    "_adaptive_avg_pool2d": compositions.adaptive_avg_pool2d,
    "_adaptive_avg_pool3d": compositions.adaptive_avg_pool3d,
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), compositions.upsample_linear
    ),
    **{
        name: partial(compositions.upsample_nearest, getattr(torch._C._nn, name), "exact" in name)
        for axes in (1, 2, 3)
        for name in (f"upsample_nearest{axes}d", f"_upsample_nearest_exact{axes}d")
    },
    "col2im": compositions.fold,
    "mm": chain.matmul,
    "bmm": chain.batched_matmul,
}


CHAINS = frozenset(("convolution", "mm", "bmm", "addmm", "baddbmm"))
"""What the exact engine refuses of these, other types and three dimensions, it refuses of whole maps, too."""

_registered: dict[str, Callable[..., Any]] = {}

AnyKernel = TypeVar("AnyKernel", bound=Callable[..., Any])


def register_exact_op(op: str) -> Callable[[AnyKernel], AnyKernel]:
    """Say what computes an op of your own, named as `namespace::op`, under the exact engine.

    The function is called with the op's arguments, and its own ops run exactly in turn.
    """

    def add(function: AnyKernel) -> AnyKernel:
        if op in _registered:
            raise PluginError(op, "an exact function is already registered", "Register each op once")
        _registered[op] = function
        return function

    return add


@register_exact_op("aten::_safe_softmax")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros where a mask leaves nothing."""
    nothing = (x == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(x.masked_fill(nothing, 0), dim, dtype).masked_fill(nothing, 0)


@register_exact_op("aten::glu")
def _gated(x: Tensor, dim: int = -1) -> Tensor:
    kept, gate = x.chunk(2, dim)
    return kept * gate.sigmoid()


@register_exact_op("aten::_scaled_dot_product_flash_attention_for_cpu")
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """PyTorch picks this function, or its plain one, by shapes and strides: both have to give the same bits.
    Of the second result only a gradient would be made."""
    groups = query.shape[-3] != key.shape[-3]
    with scores.in_blocks():
        found = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=groups
        )[0]  # the other is all the scores
        return scores.settled(found), query.new_empty(0)


LSTM = 2
"""How oneDNN's function for recurrent layers is told that one is an LSTM."""


@register_exact_op("aten::mkldnn_rnn_layer")
def _recurrent_layer(
    x: Tensor,
    of_input: Tensor,
    of_hidden: Tensor,
    bias_of_input: Tensor | None,
    bias_of_hidden: Tensor | None,
    hidden: Tensor,
    cell: Tensor,
    reverse: bool,
    batch_sizes: Sequence[int],
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A layer of an LSTM, step by step, as PyTorch's own function has it where it does not call oneDNN. The
    last result is what a gradient would read."""
    if mode != LSTM or batch_sizes:
        raise ExactnessError(
            "a recurrent layer", "there is an exact one for an LSTM alone", f"Use {ExactnessError.STOCK}"
        )
    if not has_biases:
        bias_of_input = bias_of_hidden = None
    linear = torch.nn.functional.linear
    gates = linear(x, of_input, bias_of_input)
    outputs = []
    for of_step in reversed(gates.unbind()) if reverse else gates.unbind():
        taken, kept, new, shown = (linear(hidden, of_hidden, bias_of_hidden) + of_step).chunk(4, -1)
        cell = kept.sigmoid() * cell + taken.sigmoid() * new.tanh()
        hidden = shown.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if reverse else outputs), hidden, cell, x.new_empty(0)


class _Op(NamedTuple):
    """What an op says of itself: asking it takes long."""

    written: str
    """With its namespace, as functions are registered for it."""
    overload: str
    name: str
    """Without the line that ops in place have at their end."""
    mutable: bool

    @classmethod
    @cache
    def of(cls, func: Any) -> _Op:
        written = func._schema.name
        overload = written.removeprefix("aten::")
        name = overload if overload.startswith("__") else overload.rstrip("_")
        return cls(written, overload, name, func._schema.is_mutable)


class _ExactKernels(TorchDispatchMode):
    """Fake tensors, which have no numbers, are computed with by functions that give their shapes, or, in a
    rehearsal, by all the steps that others would take, so that these can be counted."""

    def __init__(self, rehearses: bool = False) -> None:
        super().__init__()
        self.prepared = chain.Prepared()
        self.rehearses = rehearses

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written, overload, name, mutable = _Op.of(func)
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
        if func.is_view or name in MOVED:  # most calls
            return func(*args, **kwargs)
        given = [*tensors_among(args), *tensors_among(kwargs.values())]
        if name in ("div", "floor_divide") and all(map(_has_memory, given)):
            return func.overloadpacket(*compositions.on_one_device(*args[:2]), *args[2:], **kwargs)
        rehearses = self.rehearses and written.startswith("aten::")
        if _only_shapes(given, kwargs) and not rehearses:
            return func(*args, **kwargs)
        known = not any(map(torch.is_complex, given))
        if known and name in AS_IS:
            return func(*args, **kwargs)
        if name in MADE:
            return MADE[name](*args, **kwargs)
        if not _with_fractions(given):
            result = func(*args, **kwargs)
            if not _with_fractions(tensors_among([result])):
                return result
        if written in _registered:
            with self:
                result = _registered[written](*args, **kwargs)
            return result if mutable else _in_its_own_memory(result, given)
        exact = self._exact(name) if known else None
        if exact is None and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        if "out" in kwargs or (exact is None and whole.on_pieces()):
            raise ExactnessError(
                str(func),
                "the exact engine has no kernel for it, so its bits may depend on the shape",
                f"Use {ExactnessError.STOCK}, write it with other operations, or register a function for it "
                "with overlap_tool.register_exact_op",
            )
        try:
            if exact is None:
                return whole.by_the_library(func, args, kwargs)
            if name != overload and name in IN_PLACE and args[0].is_floating_point():
                return exact(*args, **kwargs, out=args[0])
            result = exact(*args, **kwargs)
        except ExactnessError:  # of these arguments, or on this machine
            if name in CHAINS or whole.on_pieces():
                raise
            return whole.by_the_library(func, args, kwargs)
        if name != overload:
            return args[0].copy_(result)
        return _in_its_own_memory(result, given)

    def below(self, compute: Callable[..., Tensor], *args: Any) -> Tensor:
        """What this gives where it stands first, its own ops going past it."""
        _pop_torch_dispatch_stack(None)
        try:
            return compute(*args)
        finally:
            _push_on_torch_dispatch_stack(self)

    def _exact(self, name: str) -> Callable[..., Any] | None:
        """What computes an op in a way that no shape changes."""
        if name == "convolution":
            return partial(chain.convolution, self.prepared)
        if name in ("addmm", "baddbmm"):
            return _added(COMPOSED[name[-3:] if name == "baddbmm" else "mm"])
        return COMPOSED.get(name)


_active = threading.local()


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Inside, every model computes with kernels whose bits depend on no shape, position, batch or thread.

    It holds for the current thread, in code that knows nothing of it, wrapped or not. An op for which there
    is no such kernel runs by PyTorch's own where it is given whole tensors: then its bits are those that it
    gives in a tiled model for the same tensor, and may be others for one of another shape.

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


@contextmanager
def rehearsal() -> Iterator[None]:
    """Inside, fake tensors go through the steps of the exact engine, as far as these take memory."""
    mode = _ExactKernels(rehearses=True)
    with mode:
        yield
    mode.prepared.clear()


def is_exact() -> bool:
    """Whether this thread computes by the exact engine."""
    return getattr(_active, "on", False)


def computes_first() -> bool:
    """Whether nothing stands between the code that runs and the exact engine."""
    return isinstance(_get_current_dispatch_mode(), _ExactKernels)


class SetAside:
    """The exact engine, if it computes first, and what is `beneath` it.

    In the block `aside` what is called goes past both, which is for code that moves numbers and makes none.
    In a block of this one it does not, as everywhere else.
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
    """PyTorch's; where the exact engine computes it, that is asked straight, which takes half the time."""
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
    """The exact engine, if PyTorch would do no more with such tensors than to hand them to it: it has errors
    of its own for those of several types."""
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


def _added(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`beta * c + alpha * (a @ b)`"""

    def compute(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        found = product(a, b)
        if alpha != 1:
            found.mul_(alpha)
        return found if beta == 0 else found.add_(c if beta == 1 else c * beta)

    return compute


def _has_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and not (isinstance(value, FakeTensor) or value.is_meta)


def _only_shapes(given: Iterable[Tensor], kwargs: dict[str, Any]) -> bool:
    """Whether there is nothing to compute with: tensors that have no memory, or are asked to make none."""
    return not all(map(_has_memory, given)) or kwargs.get("device") == torch.device("meta")


def _with_fractions(tensors: Iterable[Tensor]) -> bool:
    """Whether there are numbers among them that need not be whole: those of integers are exact."""
    return any(each.is_floating_point() or each.is_complex() for each in tensors)


def _in_its_own_memory(result: Any, given: Sequence[Tensor]) -> Any:
    """Copied where it lies where an argument does, as a sum of one number may: the op itself would give a
    tensor of its own, which the model's code may change in place."""
    if not isinstance(result, Tensor):
        return tree_map_only(Tensor, lambda part: _in_its_own_memory(part, given), result)
    if isinstance(result, FakeTensor):
        return result
    memory = result.untyped_storage().data_ptr()
    return result.clone() if any(each.untyped_storage().data_ptr() == memory for each in given) else result
