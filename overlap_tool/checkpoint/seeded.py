"""Seeded weights for an untrained model: the same on every machine, and varied enough to test with.

PyTorch's own random weights give latents that round to zero everywhere. Here every layer keeps the variance
of its input, the latents y and z spread over several symbols, the predicted scales fit them, and the
reconstruction is about mid-grey. All values come from `torch.rand` by operations of the exact engine, and
nothing is measured on data, so the bits do not depend on threads or instruction sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from overlap_tool.rules import exact_kernels

_STAGE_ENDS = {
    # name of a stage: gain of its last layer, bias of its last layer
    "g_a": (5.0, 0.0),
    "h_a": (2.5, 0.0),
    "g_s": (0.07, 0.5),
    "h_s": (0.2, 1.5),
    "entropy_parameters": (0.2, 1.5),
}
_BRANCH_GAIN = 0.5
"""For layers inside residual and attention blocks: the sum with the identity must not grow block by block."""
_HE_GAIN = math.sqrt(2)
"""For layers before a rectifier, which lets half of the variance pass."""
_ATTENTION_GAIN = 0.125
"""For queries, keys and values: similarities grow with the square of this gain and of the input's variance,
and have to stay small beside a mask of -100."""
_IDENTITY_PATHS = ("skip", "upsample")


Draw = Callable[[Sequence[int]], Tensor]
"""Returns numbers from 0 to 1 in the given shape."""


@torch.no_grad()
@exact_kernels()
def seed_weights(model: nn.Module, seed: int = 0, draw: Draw | None = None) -> nn.Module:
    """Fill the model in place; layers of unknown kinds keep what their constructor gave them."""
    draw = draw or partial(torch.rand, generator=torch.Generator().manual_seed(seed))
    branches, rectified = _branch_layers(model), _rectified_layers(model)
    for path, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            gain = (_BRANCH_GAIN if module in branches else 1.0) * (_HE_GAIN if module in rectified else 1.0)
            gain = _ATTENTION_GAIN if path.endswith(".qkv") else gain
            _seed_layer(module, gain, draw)
        elif _is_gdn(module):
            _seed_gdn(module, draw)
        elif _is_bottleneck(module):
            _seed_bottleneck(module, draw)
    for name, stage in _stages(model):
        gain, bias = _ends(model)[name]
        last = _last_layer(stage)
        if last is not None:
            last.weight.mul_(gain)
            if last.bias is not None:
                last.bias.add_(bias)
    return model


def _stages(model: nn.Module) -> Iterator[tuple[str, nn.Sequential]]:
    names = _ends(model)
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name in names and isinstance(module, nn.Sequential):
            yield name, module


def _ends(model: nn.Module) -> dict[str, tuple[float, float]]:
    """The gains and biases of the stages' last layers; a model with other stage names provides its own."""
    return {**_STAGE_ENDS, **getattr(model, "stage_ends", {})}


def _branch_layers(model: nn.Module) -> set[nn.Module]:
    return {
        layer
        for _, stage in _stages(model)
        for block in stage
        if not isinstance(block, (_ConvNd, nn.Sequential))
        for path, layer in block.named_modules()
        if path.partition(".")[0] not in _IDENTITY_PATHS
    }


def _uniform(target: Tensor, bound: float, draw: Draw) -> None:
    drawn = draw(target.shape)
    target.copy_(drawn.sub_(0.5).mul_(2 * bound))


def _rectified_layers(model: nn.Module) -> set[nn.Module]:
    return {
        layer
        for sequence in model.modules()
        if isinstance(sequence, nn.Sequential)
        for layer, rectifier in pairwise(sequence)
        if isinstance(rectifier, (nn.ReLU, nn.LeakyReLU))
    }


def _seed_layer(layer: _ConvNd | nn.Linear, gain: float, draw: Draw) -> None:
    inputs = layer.weight[0].numel()
    if isinstance(layer, _ConvTransposeNd):
        # each output of a transposed convolution reads only every stride-th tap
        taps = layer.weight[0, 0].numel()
        inputs = max(1, layer.in_channels // layer.groups * taps // int(torch.tensor(layer.stride).prod()))
    _uniform(layer.weight, gain * math.sqrt(3.0 / inputs), draw)
    if layer.bias is not None:
        _uniform(layer.bias, 0.1, draw)
    mask = layer._buffers.get("mask")
    if mask is not None:
        # a masked convolution clears masked taps when it first runs; the hash must not change then
        layer.weight.mul_(mask)


def _is_gdn(module: nn.Module) -> bool:
    return {"beta", "gamma"} <= module._parameters.keys() and hasattr(module, "gamma_reparam")


def _seed_gdn(module: nn.Module, draw: Draw) -> None:
    """Weights of a GDN that mixes its channels, as trained ones do; the constructor's is diagonal."""
    beta, gamma = module._parameters["beta"], module._parameters["gamma"]
    assert beta is not None
    assert gamma is not None
    pedestal = 2.0**-36  # CompressAI's reparametrisation stores sqrt(value + pedestal)
    # an inverse GDN multiplies where a GDN divides: three in a row would blow up
    strength = 2.0**-7 if getattr(module, "inverse", False) else 2.0**-3
    mixing = draw(gamma.shape).mul_(strength / gamma.shape[0])
    gamma.copy_(mixing.add_(torch.eye(gamma.shape[0]).mul_(strength)).add_(pedestal).sqrt_())
    beta.copy_(draw(beta.shape).add_(0.5).add_(pedestal).sqrt_())


def _is_bottleneck(module: nn.Module) -> bool:
    return "quantiles" in module._parameters


def _seed_bottleneck(module: nn.Module, draw: Draw) -> None:
    """Medians off zero, as in trained models, so that an error in using them shows."""
    for name, parameter in module.named_parameters():
        if "bias" in name:
            _uniform(parameter, 0.5, draw)
        elif name == "quantiles":
            median = torch.empty(parameter.shape[0], 1, 1)
            _uniform(median, 0.5, draw)
            parameter.copy_(median + torch.tensor([-10.0, 0.0, 10.0]))


def _last_layer(stage: nn.Sequential) -> _ConvNd | None:
    """The last convolution that shapes the stage's output: not one inside a residual or attention block."""
    for child in reversed(stage):
        if isinstance(child, nn.Sequential):
            found = _last_layer(child)
            if found is not None:
                return found
        if isinstance(child, _ConvNd):
            return child
    return None
