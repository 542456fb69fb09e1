"""CompressAI's coding position by position: the same strings and maps as the models' own loops, in less time.

Every position is predicted from those above it and to its left, so positions are coded in sequence, by
generated code. The contributions of the rows above and of the hyperprior are computed for a whole row at
once.

Under the exact engine the bits do not depend on how they are computed; under any other engine, and for models
that differ from CompressAI's, the models' own loops run. All others are tried first, on a corner of their
map, and again when a part of theirs has changed.
"""

from __future__ import annotations

import ctypes
import inspect
import operator
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overlap_tool.errors import OverlapToolError, SlowKernelWarning
from overlap_tool.graph.snapshot import Snapshot
from overlap_tool.kernels.form import Form
from overlap_tool.kernels.raster import MOST_HIDDEN, CodedRow, PositionLayer, coder, panel
from overlap_tool.kernels.threads import run_on_threads
from overlap_tool.kernels.trial import Kernel, Layer, kernel_for
from overlap_tool.models.coding_tables import refuse_broken, tables_of
from overlap_tool.models.range_coding import MOST, altered, encoded
from overlap_tool.rules import is_exact

ARGUMENTS = ["y_hat", "params", "height", "width", "kernel_size", "padding"]
"""Of both loops, the string aside; those of a variable-rate model follow."""

PARTS = ("gaussian_conditional", "context_prediction", "entropy_parameters")

_held: WeakKeyDictionary[nn.Module, tuple[list[nn.Module], Snapshot]] = WeakKeyDictionary()
"""Parts of models whose loops gave the same when they were tried, as they were then."""

CORNER = (3, 3)
"""Rows and columns that the model's own loop codes first, to compare with."""


def is_raster(module: nn.Module) -> bool:
    """Whether a model has coding loops of these names and arguments."""
    return all(_arguments(getattr(type(module), name, None))[:6] == ARGUMENTS for name in LOOPS)


def _arguments(method: Callable[..., Any] | None) -> list[str]:
    if method is None:
        return []
    return [name for name in inspect.signature(method).parameters if name not in ("self", "y_string")]


def compress(model: Any, y_hat: Tensor, params: Tensor, *how: Any) -> bytes:
    """The string of a padded map, which afterwards holds the decoded numbers."""
    found = _quick(model, y_hat, params, *how)
    if found is not None:
        return found.compress(y_hat, params)
    string: bytes = type(model)._compress_ar(model, y_hat, params, *how)
    return string


def decompress(model: Any, y_string: bytes, y_hat: Tensor, params: Tensor, *how: Any) -> None:
    """Decode a string into a padded map."""
    found = _quick(model, y_hat, params, *how)
    if found is not None:
        return found.decompress(y_string, y_hat, params)
    type(model)._decompress_ar(model, y_string, y_hat, params, *how)


LOOPS: dict[str, Callable[..., Any]] = {"_compress_ar": compress, "_decompress_ar": decompress}
"""Replacements of a model's own loops, by name."""


class Dense(NamedTuple):
    """A 1x1 convolution, and the factor for its outputs that are not above 0."""

    weight: Tensor
    """(outputs, inputs)"""
    bias: Tensor
    slope: float


class Rate(NamedTuple):
    """The quantisation of a variable-rate model; the defaults are those of every other model."""

    gain: float = 1
    """Factor of scales."""
    stretch: float = 1
    """Factor of numbers before they are rounded."""
    step: float = 1
    """Factor of symbols when they are decoded."""
    net: tuple[Tensor, ...] = ()
    """Weights and biases of the network that moves symbols towards 0 before that: three layers."""


@dataclass(frozen=True)
class Loops:
    """What a model computes at every position, and both loops."""

    context: Tensor
    """(outputs, rows, columns, channels): the unmasked taps, and the rest of their last row."""
    context_bias: Tensor
    parameters: list[Dense]
    gaussian: Any
    rate: Rate
    shift: Tensor | None
    """Added to the output of the context."""

    @property
    def reach(self) -> int:
        """How far a position reads up, and to either side."""
        return self.context.shape[1] - 1

    def compress(self, y_hat: Tensor, params: Tensor) -> bytes:
        shape = (params.shape[2], params.shape[3] * y_hat.shape[1])
        symbols, indexes = torch.empty(shape, dtype=torch.int32), torch.empty(shape, dtype=torch.int16)
        rows = _Coder(self, y_hat)
        for at in self._rows(rows, y_hat, params):
            symbols[at], indexes[at] = rows.symbols, rows.indexes
        return encoded(symbols.view(-1), indexes.view(-1), *rows.tables)

    def decompress(self, string: bytes, y_hat: Tensor, params: Tensor) -> None:
        rows = _Coder(self, y_hat, string)
        for _ in self._rows(rows, y_hat, params):
            if rows.row.wild:
                raise altered(f"a symbol past {MOST}")

    def _rows(self, rows: _Coder, y_hat: Tensor, params: Tensor) -> Iterator[int]:
        """Code row after row, and put the decoded numbers into the padded map."""
        first, *others = self.parameters
        reach, told = self.reach, params.shape[1]
        map = y_hat[0].permute(1, 2, 0).contiguous()
        above = _Begun(self.context[:, :-1].permute(0, 3, 1, 2))
        beside = _Begun(first.weight[:, :told, None, None])
        layers = [
            _Layer(Dense(self.context[:, -1, :reach].flatten(1), self.context_bias, 1), self.shift),
            _Layer(first._replace(weight=first.weight[:, told:])),
            *(_Layer(layer) for layer in others),
        ]
        for at in range(params.shape[2]):
            begun = above(map[at : at + reach].permute(2, 0, 1)[None]), beside(params[:, :, at : at + 1])
            rows.code(map[at + reach, reach : map.shape[1] - reach], layers, begun)
            yield at
        y_hat[0].copy_(map.permute(2, 0, 1))


class _Begun:
    """The first steps of a layer's chains, for a whole row, its outputs filled up to whole panels."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = _whole_panels(weight)
        self.kernel: Kernel | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernel is None:
            self.kernel = kernel_for(Layer.of(x, self.weight.shape, Form()))
            self.packed = self.kernel.pack(self.weight, 1)
        return self.kernel.convolve(x, self.packed, None, Form())


class _Layer:
    """A layer in the form that the generated code reads."""

    def __init__(self, layer: Dense, shift: Tensor | None = None) -> None:
        weight = _whole_panels(layer.weight)
        self.weight = weight.unflatten(0, (-1, panel())).transpose(1, 2).contiguous()
        self.bias = _whole_panels(layer.bias)
        self.slope = layer.slope
        self.y, self.zeros = torch.zeros_like(self.bias), torch.zeros_like(self.bias)
        self.shift = self.zeros if shift is None else _whole_panels(shift)

    def step(self, begun: Tensor | None) -> PositionLayer:
        """The layer with chains that begin at 0, or that were begun for all positions of a row."""
        panels, inputs, _ = self.weight.shape
        return PositionLayer(
            inputs=inputs,
            panels=panels,
            w=self.weight.data_ptr(),
            start=(self.zeros if begun is None else begun).data_ptr(),
            start_step=0 if begun is None else len(self.bias),
            bias=self.bias.data_ptr(),
            shift=self.shift.data_ptr(),
            y=self.y.data_ptr(),
            slope=_bits(self.slope),
        )


class _Coder:
    """Codes a map row by row: rounds its numbers, or decodes them from a string."""

    def __init__(self, loops: Loops, y_hat: Tensor, string: bytes | None = None) -> None:
        gaussian, rate = loops.gaussian, loops.rate
        given = memoryview(string or b"")  # raises unless it is bytes
        words = bytearray(given) + bytes(8 + -len(given) % 4)
        self.words = torch.frombuffer(words, dtype=torch.int32)
        self.thresholds = gaussian.scale_table.contiguous()
        self.tables = [t.contiguous() for t in (gaussian.quantized_cdf, gaussian.cdf_length, gaussian.offset)]
        channels, _, width = y_hat.shape[1:]
        self.kept = torch.zeros(2, channels * width + panel(), dtype=torch.int32)
        cdf, lengths, offsets = self.tables
        self.net = torch.cat([torch.zeros(0), *(part.flatten() for part in rate.net)])
        self.row = CodedRow(
            channels=channels,
            thresholds=self.thresholds.data_ptr(),
            last=len(self.thresholds) - 1,
            bound=_bits(float(gaussian.lower_bound_scale.bound)),
            gain=_bits(rate.gain),
            stretch=_bits(rate.stretch),
            step=_bits(rate.step),
            net=self.net.data_ptr(),
            hidden=len(rate.net[0]) if rate.net else 0,
            symbols=self.kept[0].data_ptr(),
            indexes=self.kept[1].data_ptr(),
            decodes=string is not None,
            most=MOST,
            tables=cdf.data_ptr(),
            table_step=cdf.shape[1],
            lengths=lengths.data_ptr(),
            offsets=offsets.data_ptr(),
            words=self.words.data_ptr(),
            count=len(self.words),
            at=2,
            state=int.from_bytes(words[:8], "little"),
        )

    def code(self, map: Tensor, layers: list[_Layer], begun: Sequence[Tensor]) -> None:
        """Code one row of a map, without its padding; the first layers' chains were begun."""
        steps = [layer.step(start) for layer, start in zip_longest(layers, begun)]
        listed = (PositionLayer * len(steps))(*steps)
        row = self.row
        row.columns, row.map, row.scales = len(map), map.data_ptr(), layers[-1].y.data_ptr()
        row.layers, row.layer = len(steps), ctypes.addressof(listed)
        run_on_threads(coder(), ctypes.addressof(row), 1)
        self.symbols, self.indexes = self.kept[:, : len(map) * row.channels]


def _bits(number: float) -> int:
    """The bits of a number in single precision."""
    (bits,) = struct.unpack("I", struct.pack("f", number))
    return int(bits)


def _whole_panels(x: Tensor) -> Tensor:
    """The tensor with zeros after its last output, up to a whole panel."""
    return torch.cat((x, x.new_zeros(-len(x) % panel(), *x.shape[1:])))


def _quick(
    model: Any, y_hat: Tensor, params: Tensor, height: int, width: int, kernel: int, padding: int, *more: Any
) -> Loops | None:
    """Loops that give the same results as the model's own, if there are any."""
    rows, columns = CORNER
    if not is_exact() or height * width <= 2 * rows * columns:
        return None
    loops = _loops(model, more)
    if loops is None or not _are_for(loops, y_hat, params, height, width, kernel, padding):
        return None
    refuse_broken(tables_of(loops.gaussian), f"{type(model).__name__}, gaussian_conditional")
    if not more and _held_before(model):
        return loops
    corner = params[:, :, :rows, :columns]
    try:
        held = _holds(loops, model, corner, kernel, padding, more)
    except OverlapToolError:  # the model's own loop will refuse these numbers, too, of the whole map
        return None
    if not held:
        warnings.warn(
            f"{type(model).__name__}: generated code gives other symbols than its own loops. They code it: "
            "with the right bits, and slowly",
            SlowKernelWarning,
            stacklevel=3,
        )
        return None
    if not more:
        parts = _parts(model)
        _held[model] = parts, Snapshot(nn.ModuleList(parts))
    return loops


def _held_before(model: nn.Module) -> bool:
    """Whether the loops gave the same as the model's own when they were tried, and would now."""
    parts, then = _held.get(model, ([], None))
    return then is not None and all(map(operator.is_, parts, _parts(model))) and then.holds()


def _parts(model: nn.Module) -> list[nn.Module]:
    """What it computes with at every position."""
    return [model.get_submodule(part) for part in PARTS]


def _loops(model: Any, more: tuple[Any, ...] = ()) -> Loops | None:
    """The loops of a model that is made of the parts that CompressAI's loops were written for.

    `more` are the arguments that tell the rate.
    """
    from compressai.entropy_models import GaussianConditional
    from compressai.layers import MaskedConv2d

    gaussian: Any = getattr(model, "gaussian_conditional", None)
    context: Any = getattr(model, "context_prediction", None)
    layers = _dense(getattr(model, "entropy_parameters", None))
    told = _rate(model, more)
    if told is None or type(gaussian) is not GaussianConditional or layers is None:
        return None
    if type(context) is not MaskedConv2d or context.groups != 1 or context.bias is None:
        return None
    height, width = context.kernel_size
    if height != width or height % 2 == 0 or height == 1:
        return None
    reach = height // 2
    seen = torch.ones(height, width)
    seen[reach, reach:] = 0
    seen[reach + 1 :] = 0
    if not torch.equal(context.mask, seen.expand_as(context.mask)) or not context.weight.isfinite().all():
        return None
    taps = context.weight.detach()[:, :, : reach + 1].permute(0, 2, 3, 1)
    return Loops(taps, context.bias.detach(), layers, gaussian, *told)


def _rate(model: Any, more: tuple[Any, ...]) -> tuple[Rate, Tensor | None] | None:
    """The quantisation, and what it adds to the context; None if the loops are of another kind."""
    from compressai.models import JointAutoregressiveHierarchicalPriors
    from compressai.models.vbr import JointAutoregressiveHierarchicalPriorsVbr

    def has_loops_of(kind: type[nn.Module]) -> bool:
        return all(getattr(type(model), name) is getattr(kind, name) for name in LOOPS)

    if has_loops_of(JointAutoregressiveHierarchicalPriors):
        return (Rate(), None) if not more else None
    if not has_loops_of(JointAutoregressiveHierarchicalPriorsVbr) or len(more) != 3:
        return None
    scale, rescale, stage = more
    if not all(isinstance(one, Tensor) and one.numel() == 1 for one in (scale, rescale)):
        return None
    rate = Rate(gain=scale.item())
    if stage == 1:
        return rate, None
    net = () if model.no_quantoffset else _net(model.QuantABCD)
    if net is None or not (model.no_quantoffset or model.ste_recursive):
        return None
    rate = rate._replace(stretch=scale.item(), step=rescale.item(), net=net)
    return rate, model.scale_to_context(scale.view(1, 1))[0].detach() if model.scl2ctx else None


def _net(part: Any) -> tuple[Tensor, ...] | None:
    """Weights and biases of three linear layers with rectifiers between them, from two numbers to one."""
    if type(part) is not nn.Sequential:
        return None
    if [type(layer) for layer in part] != [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]:
        return None
    found = tuple(tensor.detach() for tensor in part.parameters())
    hidden = len(found[0])
    shapes = [(hidden, 2), (hidden,), (hidden, hidden), (hidden,), (1, hidden), (1,)]
    fits = [tuple(tensor.shape) for tensor in found] == shapes and hidden <= MOST_HIDDEN
    return found if fits else None


def _dense(part: Any) -> list[Dense] | None:
    """The layers of a part that consists of such layers, or none."""
    if type(part) is not nn.Sequential:
        return None
    found: list[Dense] = []
    for layer in part:
        if type(layer) is nn.LeakyReLU and found and found[-1].slope == 1:
            found[-1] = found[-1]._replace(slope=layer.negative_slope)
        elif type(layer) is nn.Conv2d and _has_one_tap(layer) and layer.bias is not None:
            found.append(Dense(layer.weight.detach()[..., 0, 0], layer.bias.detach(), 1))
        else:
            return None
    return found or None


def _has_one_tap(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1


def _are_for(
    loops: Loops, y_hat: Tensor, params: Tensor, height: int, width: int, kernel: int, padding: int
) -> bool:
    """Whether all operands fit together, and are what the generated code takes."""
    channels, told = y_hat.shape[1], params.shape[1]
    ends = [loops.context.shape[0] + told, *(len(layer.weight) for layer in loops.parameters)]
    starts = [*(layer.weight.shape[1] for layer in loops.parameters), 2 * channels]
    tensors = (
        y_hat,
        params,
        loops.context,
        loops.gaussian.scale_table,
        *(x.weight for x in loops.parameters),
    )
    return (
        ends == starts
        and loops.context.shape[3] == channels
        and (kernel, padding) == (2 * loops.reach + 1, loops.reach)
        and y_hat.shape == (1, channels, height + 2 * padding, width + 2 * padding)
        and params.shape == (1, told, height, width)
        and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
    )


def _holds(
    loops: Loops, model: Any, params: Tensor, kernel: int, padding: int, more: tuple[Any, ...]
) -> bool:
    """Whether a small map gets the same string from the model's own loop, and decodes to the same numbers."""
    height, width = params.shape[2:]
    channels = loops.context.shape[3]
    random = torch.Generator().manual_seed(0)
    y = torch.randn(1, channels, height, width, generator=random) * 4
    own, ours = (F.pad(y, (padding,) * 4) for _ in range(2))
    decoded = torch.zeros_like(own)
    string = type(model)._compress_ar(model, own, params, height, width, kernel, padding, *more)
    if loops.compress(ours, params) != string:
        return False
    loops.decompress(string, decoded, params)
    return torch.equal(own, ours) and torch.equal(own, decoded)
