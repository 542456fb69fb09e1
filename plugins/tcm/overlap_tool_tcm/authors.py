"""Rules for the authors' own blocks, by qualified name, when a user brings their code with `--model`.

Their blocks move channels to the end and back with layers that they make on the way, which tracing cannot
follow. So each block is one op, which their own code computes on a piece of whole windows, filled up with
zeros where there is less. What it rolls and masks then lies in what is filled up, or is not asked for.

Other projects may well have a `models.tcm`. A block is taken for the authors' only if it computes what ours
computes, with weights drawn at random and given to both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.geometry import Geometry, Period, Span, Window, Windows, hull
from overlap_tool.rules import Call, Operand, Patches, Rule, place, register_rule

CONVOLUTIONS = Window(kernel=5, before=2, after=2)
"""What two 3x3 convolutions in a row read."""


@dataclass(frozen=True)
class BesideWindows(Geometry):
    """Attention in windows, and convolutions beside it, which read beyond the window."""

    windows: Windows
    convolutions: Window

    @property
    def period(self) -> Period:
        return self.windows.period

    def size(self, n: int) -> int:
        return self.windows.size(n)

    def need(self, outputs: Span) -> Span:
        return hull((self.windows.need(outputs), self.convolutions.need(outputs)))

    def together(self, outputs: Span, n: int) -> Span:
        return self.windows.together(outputs, n)

    def begins(self, start: int) -> int:
        return start


@dataclass(frozen=True)
class TwoWindows(Geometry):
    """Attention in windows, twice, in an op that takes no map of a single window."""

    first: Windows
    second: Windows

    @property
    def period(self) -> Period:
        return self.second.period

    def size(self, n: int) -> int:
        return self.second.size(n) if n > self.second.window else 0

    def need(self, outputs: Span) -> Span:
        return self.first.need(self.second.need(outputs))

    def together(self, outputs: Span, n: int) -> Span:
        return self.second.together(outputs, n)

    def begins(self, start: int) -> int:
        return start


@register_rule("models.tcm.ConvTransBlock")
def conv_trans_block(call: Call, module: nn.Module, input: Operand) -> Rule:
    from overlap_tool_tcm.layers import MixedBlock  # imports CompressAI, which takes seconds

    heads, window = _heads_and_window(call, module, "trans_block.msa")
    channels = input.channels // 2

    def ours(shift: int) -> nn.Module:
        return MixedBlock(channels, channels // heads, window, shift)

    shift = _same_as(call, module, dict.fromkeys((0, window // 2), ours), input.channels, window)
    geometry = BesideWindows(Windows(window, shift, whole=True), CONVOLUTIONS)
    return _rule(module, geometry, window, least=1, attention=2 * window**2 * channels, heads=heads)


@register_rule("models.tcm.SwinBlock")
def swin_block(call: Call, module: nn.Module, input: Operand) -> Rule:
    from overlap_tool_tcm.layers import TwoSwinBlocks

    heads, window = _heads_and_window(call, module, "block_1.msa")
    channels = input.channels
    _same_as(
        call, module, {0: lambda _: TwoSwinBlocks(channels, channels // heads, window)}, channels, window
    )
    # It pads a map of one window, and does not crop it again: its own code fails on that.
    geometry = TwoWindows(Windows(window, 0, whole=True), Windows(window, window // 2, whole=True))
    return _rule(module, geometry, window, least=2, attention=4 * window**2 * channels, heads=heads)


def _heads_and_window(call: Call, module: nn.Module, attention: str) -> tuple[int, int]:
    bias = dict(module.named_parameters()).get(f"{attention}.relative_position_params")
    if bias is None or bias.ndim != 3 or 0 in bias.shape or bias.shape[1] % 2 == 0:
        call.refuse("has the name of a block of LIC-TCM, but not its parts")
    return bias.shape[0], (bias.shape[1] + 1) // 2


def _same_as(
    call: Call,
    module: nn.Module,
    ours: dict[int, Callable[[int], nn.Module]],
    channels: int,
    window: int,
) -> int:
    """For which shift of the windows our block computes what `module` does, on random weights and a map."""
    theirs = copy.deepcopy(module).to("cpu", torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 3 * window, 2 * window, dtype=torch.float64, generator=generator)
    for shift, build in ours.items():
        try:
            block = build(shift).double().eval()
            weights = {key: _drawn(tensor, generator) for key, tensor in block.state_dict().items()}
            block.load_state_dict(weights)
            theirs.load_state_dict(weights)
            with torch.no_grad():
                found, expected = theirs(x), block(x)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            call.refuse(f"has the name of a block of LIC-TCM, but not its parts ({reason})")
        if found.shape == expected.shape and (found - expected).abs().max() < 1e-9 * expected.abs().max():
            return shift
    call.refuse("has the name and the parts of a block of LIC-TCM, but computes something else")


def _drawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
    return values / max(1.0, tensor[0].numel() ** 0.5)


def _rule(
    module: nn.Module, geometry: Geometry, window: int, *, least: int, attention: int, heads: int
) -> Rule:
    def run(patches: Patches, module: nn.Module, input: Tensor) -> Tensor:
        piece, begins = _in_windows(input, patches, window, least)
        return place(module(piece), begins, patches)

    layers = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    channels = max(layer.weight.shape[1] for layer in layers if isinstance(layer, nn.Linear))
    return Rule(
        run,
        geometry,
        geometry,
        macs=sum(layer.weight.numel() for layer in layers) + attention,
        # the piece filled up, its halves, the perceptron's, the attention's, and three maps of similarities
        scratch=8 + -(-12 * heads * window**2 // channels),
        kernel=(window, window),
    )


def _in_windows(piece: Tensor, patches: Patches, window: int, least: int) -> tuple[Tensor, tuple[int, int]]:
    """The piece in whole windows, at least so many, with zeros around it; and where it begins."""
    rows, columns = (_filled(patch.have, patch.n, window, least) for patch in patches)
    (top, bottom), (left, right) = (
        (patch.have.start - span.start, span.stop - patch.have.stop)
        for patch, span in zip(patches, (rows, columns), strict=True)
    )
    return F.pad(piece, (left, right, top, bottom)), (rows.start, columns.start)


def _filled(have: Span, n: int, window: int, least: int) -> Span:
    start, stop = have.start // window * window, -(-have.stop // window) * window
    missing = max(0, least * window - (stop - start))
    after = min(missing, n - stop)
    return Span(start - (missing - after), stop + after)
