"""Layers for maps of one axis, such as sound: those for images, on a map of one row; and recurrent layers.

The exact engine uses these functions, too, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from overlap_tool.errors import ExactnessError
from overlap_tool.geometry import Everything
from overlap_tool.geometry.layout import COLUMNS, IMAGES
from overlap_tool.rules.exactness import register_exact_op
from overlap_tool.rules.registry import Call, Operand, Rule, compose, register_rule

One = int | Sequence[int]
"""A number for the only axis, perhaps in a tuple."""


def _behind(first: int, of_axis: One) -> tuple[int, int]:
    """The numbers for both axes."""
    return first, of_axis if isinstance(of_axis, int) else of_axis[0]


@compose(F.conv1d, torch.conv1d, nn.Conv1d)
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: One = 1,
    padding: One | str = 0,
    dilation: One = 1,
    groups: int = 1,
) -> Tensor:
    return F.conv2d(
        input.unsqueeze(2),
        weight.unsqueeze(2),
        bias,
        _behind(1, stride),
        padding if isinstance(padding, str) else _behind(0, padding),
        _behind(1, dilation),
        groups,
    ).squeeze(2)


@compose(F.conv_transpose1d, torch.conv_transpose1d, nn.ConvTranspose1d)
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: One = 1,
    padding: One = 0,
    output_padding: One = 0,
    groups: int = 1,
    dilation: One = 1,
) -> Tensor:
    return F.conv_transpose2d(
        input.unsqueeze(2),
        weight.unsqueeze(2),
        bias,
        _behind(1, stride),
        _behind(0, padding),
        _behind(0, output_padding),
        groups,
        _behind(1, dilation),
    ).squeeze(2)


@compose(F.max_pool1d, torch.max_pool1d, nn.MaxPool1d)
def max_pool1d(
    input: Tensor,
    kernel_size: One,
    stride: One | None = None,
    padding: One = 0,
    dilation: One = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    pool: Callable[..., Any] = F.max_pool2d
    made = pool(
        input.unsqueeze(2),
        _behind(1, kernel_size),
        _behind(1, kernel_size if stride is None else stride),
        _behind(0, padding),
        _behind(1, dilation),
        ceil_mode,
        return_indices,
    )
    return made if return_indices else made.squeeze(2)


@compose(F.avg_pool1d, torch.avg_pool1d, nn.AvgPool1d)
def avg_pool1d(
    input: Tensor,
    kernel_size: One,
    stride: One | None = None,
    padding: One = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    return F.avg_pool2d(
        input.unsqueeze(2),
        _behind(1, kernel_size),
        _behind(1, kernel_size if stride is None else stride),
        _behind(0, padding),
        ceil_mode,
        count_include_pad,
    ).squeeze(2)


@compose(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, nn.AdaptiveAvgPool1d)
def adaptive_avg_pool1d(input: Tensor, output_size: One) -> Tensor:
    return F.adaptive_avg_pool2d(input.unsqueeze(2), _behind(1, output_size)).squeeze(2)


@compose(F.adaptive_max_pool1d, nn.AdaptiveMaxPool1d)
def adaptive_max_pool1d(input: Tensor, output_size: One, return_indices: bool = False) -> Any:
    pool: Callable[..., Any] = F.adaptive_max_pool2d
    made = pool(input.unsqueeze(2), _behind(1, output_size), return_indices)
    return made if return_indices else made.squeeze(2)


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


def recurrent(input: Tensor, weights: Sequence[Tensor], kind: str, *how: Any) -> Tensor:
    """The outputs of a recurrent layer at every step, from a state of zeros."""
    if has_torch_function_unary(input):  # so that it can be traced as one op
        return handle_torch_function(recurrent, (input,), input, weights, kind, *how)
    if isinstance(input, FakeTensor):  # thousands of steps, and only the shape is needed
        return input.new_empty((*input.shape[:2], weights[1].shape[1] * (1 + how[2])))
    return _next_steps(None, input, weights, kind, *how)[0]


def _next_steps(
    state: Any,
    input: Tensor,
    weights: Sequence[Tensor],
    kind: str,
    layers: int,
    has_bias: bool,
    both_ways: bool,
    batch_first: bool,
) -> tuple[Tensor, Any]:
    if state is None:
        images = input.shape[0 if batch_first else 1]
        zeros = input.new_zeros(layers * (1 + both_ways), images, weights[1].shape[1])
        state = (zeros, zeros) if kind == "LSTM" else zeros
    step = getattr(torch._VF, kind.lower())
    made, *state = step(input, state, list(weights), has_bias, layers, 0.0, False, both_ways, batch_first)
    return made, state if kind == "LSTM" else state[0]


@register_rule(recurrent, any_layout=True)
def recurrent_layer(
    call: Call,
    input: Operand,
    weights: Sequence[Operand],
    kind: str,
    layers: int,
    has_bias: bool,
    both_ways: bool,
    batch_first: bool,
) -> Rule:
    """Every output depends on all earlier steps: runs on the whole map or, unless it depends on later steps,
    too, step by step with a state."""
    steps = (IMAGES,), (COLUMNS,)
    if input.layout.dims[:2] != (steps if batch_first else steps[::-1]):
        call.refuse("steps through something else than the columns of a map of one row")
    layout = input.layout.with_lengths({2: weights[1].shape[1] * (1 + both_ways)})
    scan = None if both_ways else _next_steps
    return Rule(lambda patches, *args: recurrent(*args), Everything(), Everything(), layout=layout, scan=scan)
