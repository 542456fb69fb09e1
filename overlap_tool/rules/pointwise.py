"""Ops that treat every position alike and separately: activations, arithmetic, stored normalisation."""

from __future__ import annotations

import copy
import inspect
import operator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.kernels import compositions
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS as ELEMENTARY
from overlap_tool.rules.exactness import compares, composed, moves, number_by_number, rounds
from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule

EXACT = {
    **moves("_to_copy clone detach masked_fill where"),
    **compares("""
        bitwise_and bitwise_not bitwise_or bitwise_xor clamp clamp_max clamp_min eq ge gt hardshrink hardtanh
        isfinite isinf isnan le logical_and logical_not logical_or logical_xor lt maximum minimum nan_to_num
        ne threshold
    """),
    **rounds("""
        abs ceil copysign div floor floor_divide frac leaky_relu mul neg reciprocal round sgn sign signbit
        softshrink trunc
    """),
    **number_by_number(
        **{name: partial(compositions.function, name) for name in (*ELEMENTARY, "sigmoid", "silu", "mish")},
        relu=compositions.relu,
        gelu=compositions.gelu,
        elu=compositions.elu,
        celu=compositions.celu,
    ),
    **composed(
        add=compositions.add,
        sub=compositions.subtract,
        rsub=compositions.reverse_subtract,
        addcmul=compositions.addcmul,
        addcdiv=compositions.addcdiv,
        lerp=compositions.lerp,
        fmod=compositions.fmod,
        remainder=compositions.remainder,
        pow=compositions.power,
        softplus=compositions.softplus,
        log_sigmoid_forward=compositions.log_sigmoid,
        hardsigmoid=compositions.hardsigmoid,
        hardswish=compositions.hardswish,
        _prelu_kernel=compositions.prelu,
    ),
}
"""PyTorch's ops at every position: functions and methods of these names have the rule below, too."""

OTHERS = """
    absolute clip contiguous divide double float half logsigmoid multiply negative prelu relu6 selu softsign
    square subtract tanhshrink to true_divide type type_as
""".split()
"""Functions and methods that consist of these."""

OPERATORS = """
    abs add and_ eq floordiv ge gt inv invert le lt mod mul ne neg or_ pos pow sub truediv xor
""".split()

NAMES = [name for name in (*EXACT, *OTHERS) if not name.startswith("_")]

METHODS = [name for name in NAMES if hasattr(Tensor, name)]

FUNCTIONS = [getattr(operator, name) for name in OPERATORS] + [
    found for name in NAMES for place in (torch, F) if callable(found := getattr(place, name, None))
]

MODULES = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)


@register_rule(*METHODS, *dict.fromkeys(FUNCTIONS), any_layout=True, exact=EXACT)
def between_positions(call: Call, *args: Any, **kwargs: Any) -> Rule:
    """The rule of a function or method that is computed at every position, into a new tensor."""
    if kwargs.get("out") is not None:
        call.refuse("writes into a given tensor")
    _refuse_misaligned(call, args, kwargs)
    compute = getattr(Tensor, call.target) if isinstance(call.target, str) else call.target
    inplace_at = inplace_position(call.target)

    def run(patches: Patches, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("inplace", None)
        return compute(*args[:inplace_at], **kwargs)

    return Rule(run)


def _refuse_misaligned(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise if a summary, whose first dimension is that of images, would align with the map's channels."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Operand) and value.summary and len(value.shape) != len(call.output_shapes[0]):
            call.refuse("broadcasts a value of the whole map that has other dimensions than the map")


@register_rule(*MODULES, any_layout=True)
def module(call: Call, module: nn.Module, input: Operand) -> Rule:
    if not getattr(module, "inplace", False):
        return Rule(lambda patches, module, input: module(input))
    apart: Any = copy.copy(module)  # no such layer has weights
    apart.inplace = False
    return Rule(lambda patches, module, input: apart(input))


@register_rule(
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    "torchvision.ops.stochastic_depth.StochasticDepth",
    any_layout=True,
)
def dropout(call: Call, module: nn.Module, input: Operand) -> Rule:
    """In eval mode it drops nothing."""
    return Rule(lambda patches, module, input: input)


@register_rule(
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    any_layout=True,
)
def dropout_function(call: Call, *args: Any, **kwargs: Any) -> Rule:
    given = inspect.signature(call.target).bind(*args, **kwargs)
    given.apply_defaults()
    if given.arguments["training"]:
        call.refuse("drops at random in eval mode, too, since it is not told of the mode")
    return Rule(lambda patches, *args, **kwargs: args[0] if args else kwargs["input"])


BY_THE_BATCH = "normalises by the mean and variance of all maps of the batch"


@register_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, any_layout=True)
def batch_norm(call: Call, module: Any, input: Operand) -> Rule:
    if module.running_mean is None:
        call.refuse_global(BY_THE_BATCH)
    _refuse_no_channels(call, input)

    def run(patches: Patches, module: Any, input: Tensor) -> Tensor:
        # by the stored statistics, whatever the module's mode, and without updating them
        mean, variance = module.running_mean, module.running_var
        return F.batch_norm(input, mean, variance, module.weight, module.bias, eps=module.eps)

    return Rule(run)


def _refuse_no_channels(call: Call, input: Operand) -> None:
    if input.layout.following([1]):
        call.refuse("normalises along rows, columns or images instead of channels")


@register_rule(
    F.batch_norm,
    any_layout=True,
    exact=composed(
        native_batch_norm=compositions.batch_norm,
        _native_batch_norm_legit=compositions.batch_norm,
        _native_batch_norm_legit_no_training=compositions.batch_norm,
        cudnn_batch_norm=compositions.cudnn_batch_norm,
    ),
)
def batch_norm_function(
    call: Call,
    input: Operand,
    running_mean: Operand | None,
    running_var: Operand | None,
    weight: Operand | None = None,
    bias: Operand | None = None,
    training: bool = False,
    *_: Any,
    **__: Any,
) -> Rule:
    if training or running_mean is None:
        call.refuse_global(BY_THE_BATCH)
    _refuse_no_channels(call, input)
    return Rule(lambda patches, *args, **kwargs: F.batch_norm(*args, **kwargs))


@register_rule(
    "compressai.layers.gdn.GDN",
    "compressai.layers.gdn.GDN1",
)
def gdn(call: Call, module: Any, input: Operand) -> Rule:
    """Generalised divisive normalisation, at every position.

    It counts as no multiply-accumulates, as is the custom for normalisations, although it mixes channels.
    """
    return Rule(lambda patches, module, input: module(input), scratch=1)


def inplace_position(target: Any) -> int | None:
    """The position of `inplace` among the arguments of F.relu(x, True) or F.elu(x, 1.0, True): the last."""
    if getattr(target, "__module__", "") != F.__name__:
        return None
    names = list(inspect.signature(target).parameters) if inspect.isfunction(target) else []
    return names.index("inplace") if "inplace" in names else None
