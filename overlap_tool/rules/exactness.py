"""How PyTorch's ops are computed exactly: a table in which the exact engine looks up every op.

A rule says what an op reads; this table says why its bits depend on no shape. `register_rule` and
`register_exact_op` add entries for ops of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from overlap_tool.errors import ExactnessError, PluginError
from overlap_tool.kernels import chain, compositions, scores
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS

How = Literal[
    "moves", "compares", "rounds", "draws",
    "number by number", "composed", "chained", "of numbers", "of ops", "unknown",
]  # fmt: skip
"""Ops of the first line run as they are: an op

- moves numbers, or makes them of none;
- compares numbers, and selects among them;
- rounds once for each result, as IEEE 754 defines it to the last bit;
- draws random numbers, as many and in the same order whatever becomes of them.

For the others something else runs instead: an op is

- computed number by number, into `out`, which may be an input;
- composed of correctly rounded operations;
- a chain: what the exact engine refuses of these, it refuses on whole maps, too;
- a tensor made of numbers alone;
- a function of other ops, which are looked up in turn.

An op that is not in the table is computed by PyTorch's own kernel, on whole tensors only.
"""


class Exactness(NamedTuple):
    how: How
    compute: Callable[..., Any] | None = None
    """The function that computes it in place of PyTorch's kernel."""


def _added(
    product: Callable[..., Tensor], c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """`beta * c + alpha * (a @ b)`"""
    found = product(a, b)
    if alpha != 1:
        found.mul_(alpha)
    return found if beta == 0 else found.add_(c if beta == 1 else c * beta)


RUN_AS_THEY_ARE: dict[How, str] = {
    "moves": """
        _local_scalar_dense _pin_memory _to_copy _unsafe_view alias as_strided cat channel_shuffle clone
        constant_pad_nd copy detach diag_embed embedding empty empty_like empty_permuted empty_strided equal
        expand eye fill flip full full_like gather im2col index index_fill index_select is_nonzero is_pinned
        item lift lift_fresh masked_fill masked_scatter masked_select native_channel_shuffle new_empty
        new_empty_strided new_full new_ones new_zeros one_hot ones ones_like permute pin_memory pixel_shuffle
        pixel_unshuffle record_stream reflection_pad1d reflection_pad2d reflection_pad3d repeat
        repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize roll scalar_tensor
        scatter select_scatter set slice_scatter split_with_sizes_copy stack transpose tril triu unbind unfold
        unsafe_split view where zero zeros zeros_like
    """,
    "compares": """
        _assert_async adaptive_max_pool2d all amax amin aminmax any argmax argmin argsort bitwise_and
        bitwise_not bitwise_or bitwise_xor bucketize clamp clamp_max clamp_min cummax cummin eq ge gt
        hardshrink hardtanh isfinite isinf isnan kthvalue le logical_and logical_not logical_or logical_xor lt
        max max_pool2d_with_indices max_pool3d_with_indices maximum median min minimum nan_to_num nanmedian ne
        nonzero searchsorted sort threshold topk unique_consecutive
    """,
    "rounds": """
        abs ceil copysign div floor floor_divide frac leaky_relu mul neg reciprocal round sgn sign signbit
        softshrink trunc
    """,
    "draws": "bernoulli normal rand rand_like randint randn randn_like uniform",
}

COMPUTED: dict[How, dict[str, Callable[..., Any]]] = {
    "number by number": {
        **{name: partial(compositions.function, name) for name in (*FUNCTIONS, "sigmoid", "silu", "mish")},
        "relu": compositions.relu,
        "gelu": compositions.gelu,
        "elu": compositions.elu,
        "celu": compositions.celu,
    },
    "composed": {
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
    },
    "chained": {
        "convolution": chain.convolution,
        "mm": chain.matmul,
        "bmm": chain.batched_matmul,
        "addmm": partial(_added, chain.matmul),
        "baddbmm": partial(_added, chain.batched_matmul),
    },
    "of numbers": {"linspace": compositions.linspace, "arange": compositions.arange},
}

OPS: dict[str, Exactness] = {
    **{name: Exactness(how) for how, names in RUN_AS_THEY_ARE.items() for name in names.split()},
    **{
        name: Exactness(how, compute)
        for how, functions in COMPUTED.items()
        for name, compute in functions.items()
    },
}
"""By an op's name: PyTorch's own without namespace, and in-place ones without the trailing underscore."""

AnyKernel = TypeVar("AnyKernel", bound=Callable[..., Any])


def register_exact_op(op: str) -> Callable[[AnyKernel], AnyKernel]:
    """Register the function that computes an op of your own, `namespace::op`, under the exact engine.

    It is called with the op's arguments, and its own ops are computed exactly in turn. For an op with a rule,
    `register_rule(..., exact=...)` does the same.
    """

    def add(function: AnyKernel) -> AnyKernel:
        name = op.removeprefix("aten::")
        if name in OPS:
            raise PluginError(op, "an exact function is already registered", "Register each op once")
        OPS[name] = Exactness("of ops", function)
        return function

    return add


@register_exact_op("aten::_safe_softmax")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros where a mask excludes everything."""
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
    """PyTorch chooses this function or its plain one by shapes and strides, so both have to give the same
    bits.

    The second result serves only gradients.
    """
    groups = query.shape[-3] != key.shape[-3]
    with scores.in_blocks():
        found = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=groups
        )[0]  # the other result has all the scores
        return scores.settled(found), query.new_empty(0)


LSTM = 2
"""The value by which oneDNN's function for recurrent layers is told that one is an LSTM."""


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
    """A layer of an LSTM, step by step, as in PyTorch's own function where it does not call oneDNN.

    The last result serves only gradients.
    """
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
