"""Ops that treat every position alike and separately: activations, arithmetic, stored normalisation."""

from __future__ import annotations

import copy
import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.rules.pieces import Patches
from overlap_tool.rules.registry import Call, Operand, Rule, register_rule

METHODS = """
    abs absolute add addcdiv addcmul atan bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max
    clamp_min clip clone contiguous copysign cos detach div divide double elu eq erf erfc exp expm1 float
    floor floor_divide fmod frac ge gt half hardshrink hardtanh isfinite isinf isnan le leaky_relu lerp log
    log10 log1p log2 logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum mul
    multiply nan_to_num ne neg negative pow reciprocal relu remainder round rsqrt sgn sigmoid sign sin sqrt
    square sub subtract tanh to true_divide trunc type type_as where
""".split()

OPERATORS = """
    abs add and_ eq floordiv ge gt inv invert le lt mod mul ne neg or_ pos pow sub truediv xor
""".split()

ACTIVATIONS = """
    celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu relu6 selu
    sigmoid silu softplus softshrink softsign tanh tanhshrink threshold
""".split()

FUNCTIONS = (
    [getattr(torch, name) for name in METHODS + ACTIVATIONS if callable(getattr(torch, name, None))]
    + [getattr(operator, name) for name in OPERATORS]
    + [getattr(F, name) for name in ACTIVATIONS]
)

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


@register_rule(*METHODS, *dict.fromkeys(FUNCTIONS), any_layout=True)
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


@register_rule(F.batch_norm, any_layout=True)
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
