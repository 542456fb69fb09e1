"""Draws small networks of every kind of op, with integer weights, and an image and tiles to run them on.

Every value in them is an integer that float64 holds exactly, so a network computes the same numbers in
whatever order they are summed, and tiles can be held to the full image bit for bit.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm, prod
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from compressai import layers
from hypothesis import strategies as st
from torch import Tensor, nn

from overlap_tool.graph.tracer import TRIALS

LARGEST_SIDE = 36
MOST_CHANNELS = 6
MOST_TILES = 7
"""On one axis; more take long and show nothing new."""

EXACT = 2.0**46
"""Sums stay well below 2**53, where float64 begins to skip integers."""

MODES = ["zeros", "reflect", "replicate", "circular"]


# --- networks that can be written down --------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One op: a module class or a function by name, the values it reads (0 is the input), and its options."""

    op: str
    reads: tuple[int, ...]
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [repr(self.op), repr(self.reads)]
        parts += [repr(self.args)] if self.args or self.options else []
        parts += [repr(self.options)] if self.options else []
        return f"Layer({', '.join(parts)})"


class RandomNetwork(nn.Module):
    """Computes the layers in order and returns what the last one gives, and others if told to. All weights
    are small integers."""

    def __init__(self, channels: int, drawn: list[Layer], others: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.channels = channels
        self.drawn = drawn
        self.others = others
        self.ops = nn.ModuleList(made(layer, i) or nn.Identity() for i, layer in enumerate(drawn))

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for layer, module in zip(self.drawn, self.ops, strict=True):
            values.append(computed(layer, module, [values[i] for i in layer.reads]))
        return (values[-1], *(values[i] for i in self.others)) if self.others else values[-1]

    def __repr__(self) -> str:
        listed = "".join(f"    {layer!r},\n" for layer in self.drawn)
        others = f", {self.others}" if self.others else ""
        return f"RandomNetwork({self.channels}, [\n{listed}]{others})"


def named(op: str) -> Any:
    home, _, name = op.partition(".")
    return getattr(HOMES[home], name)


def made(layer: Layer, seed: int) -> nn.Module | None:
    """The module of a layer, with weights that depend on its place; None for a function."""
    target = named(layer.op)
    if not isinstance(target, type):
        return None
    module = target(*layer.args, **layer.options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        # never zero: every tap counts
        size = torch.randint(1, 3, parameter.shape, generator=generator)
        sign = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
        parameter.data = (size * sign).double()
    return module.eval().requires_grad_(False)


def computed(layer: Layer, module: nn.Module | None, inputs: list[Tensor]) -> Tensor:
    target = named(layer.op)
    if isinstance(target, type):
        return module(*inputs)
    if layer.op == "torch.cat":
        return torch.cat(inputs, *layer.args, **layer.options)
    if layer.op.startswith("Tensor."):
        return getattr(inputs[0], target.__name__)(*inputs[1:], *layer.args, **layer.options)
    return target(*inputs, *layer.args, **layer.options)


class FunctionalConv(nn.Module):
    """A convolution, or its transpose, called as a function on a weight that is computed first."""

    def __init__(
        self, given: int, out: int, kernel: tuple[int, int], transposed: bool, **options: Any
    ) -> None:
        super().__init__()
        shape = (given, out) if transposed else (out, given)
        self.weight = nn.Parameter(torch.empty(*shape, *kernel))
        self.scale = nn.Parameter(torch.empty(1, 1, 1, 1))
        self.bias = nn.Parameter(torch.empty(out))
        self.convolve = F.conv_transpose2d if transposed else F.conv2d
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight * self.scale, bias=self.bias, **self.options)


class ChannelsLast(nn.Module):
    """Channels put last, mixed there with a skip around it, and put back."""

    def __init__(self, given: int, out: int, moved: bool) -> None:
        super().__init__()
        self.widen = nn.Linear(given, out)
        self.mix = nn.Linear(out, out, bias=False)
        self.moved = moved

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.widen(x.movedim(1, -1) if self.moved else x.permute(0, 2, 3, 1))
        tokens = folded(tokens)
        tokens = tokens + self.mix(tokens.relu())
        return tokens.movedim(-1, 1) if self.moved else torch.permute(tokens, (0, 3, 1, 2))


class Squeezed(nn.Module):
    """A barrier: the whole map reduced, a layer on what that gives, and a join with the map or with another.

    Averages are rounded to integers: a library divides exact sums once.
    """

    def __init__(self, channels: int, kind: str, size: tuple[int, int], join: str) -> None:
        super().__init__()
        self.kind = kind
        self.size = size if kind == "pool" else (1, 1)
        self.mix = nn.Conv2d(channels, channels, self.size)
        self.join = join

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        images, channels = x.shape[:2]
        reduced = self.mix(self.reduced(x)).view(images, channels)
        reduced = folded(reduced).relu_().add(1).view(images, -1, 1, 1)
        y = x if y is None else y
        return reduced.expand_as(y) * y if self.join == "scale" else torch.where(y > 0, y, reduced)

    def reduced(self, x: Tensor) -> Tensor:
        if self.kind == "pool":
            return F.adaptive_max_pool2d(x, self.size)
        if self.kind == "mean":
            return folded(x).mean((2, 3), keepdim=True).floor()
        if self.kind == "amax":
            return x.amax((-2, -1), True)
        return folded(folded(x).sum(dim=(-1, -2)))[:, :, None, None]


def folded(x: Tensor) -> Tensor:
    """Integers between -4 and 4 that still differ where the given ones differ by less than 8."""
    return x - 8 * torch.round(x / 8)


def second_part(x: Tensor) -> Tensor:
    return x.chunk(2, 1)[1]


def regrouped(x: Tensor) -> Tensor:
    """Channels in another order, by way of five dimensions."""
    return x.view(x.size(0), 2, -1, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)


def bounded_(x: Tensor) -> Tensor:
    return x.clamp_(-3, 5)


def rectified_(x: Tensor) -> Tensor:
    return F.relu(x, True)


def augmented(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


def chosen(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x > 0, x, y)


# code that asks for sizes


def filled_up(x: Tensor, multiple: int, mode: str) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple), mode=mode)


def filled_up_around(x: Tensor, multiple: int) -> Tensor:
    high, wide = (-n % multiple for n in x.shape[2:])
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


def cut_to_a_multiple(x: Tensor, multiple: int) -> Tensor:
    high, wide = x.shape[-2:]
    return x[..., : high - high % multiple, wide % multiple :]


def sized_as(x: Tensor, like: Tensor, mode: str) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode=mode)


def cut_or_filled_up_to(x: Tensor, like: Tensor) -> Tensor:
    (high, wide), (rows, columns) = x.shape[2:], like.size()[2:]
    return F.pad(x, (0, columns - wide, (rows - high) // 2, rows - high - (rows - high) // 2))


def overwritten(x: Tensor, y: Tensor, step: int) -> Tensor:
    """`y`, of the size of `x`, in some rows and columns of its first channel."""
    rows, columns = slice(None, None, step), slice((x.shape[3] + 1) // 2)
    x = x.clone()
    x[:, 0, rows, columns] = y[:, 0, rows, columns]
    x[:, -1:, x.shape[2] // 2 :] += 3
    return x


def by_the_longer_side(x: Tensor, image: Tensor) -> Tensor:
    return x + 1 if image.shape[2] > image.shape[3] else x.relu()


def by_a_remainder(x: Tensor, multiple: int) -> Tensor:
    return x.abs() if x.shape[-1] % multiple else x * 2


OWN = SimpleNamespace(
    FunctionalConv=FunctionalConv, ChannelsLast=ChannelsLast, Squeezed=Squeezed, folded=folded,
    second_part=second_part, regrouped=regrouped, bounded_=bounded_, rectified_=rectified_,
    augmented=augmented, chosen=chosen, filled_up=filled_up, filled_up_around=filled_up_around,
    cut_to_a_multiple=cut_to_a_multiple, sized_as=sized_as, cut_or_filled_up_to=cut_or_filled_up_to,
    overwritten=overwritten, by_the_longer_side=by_the_longer_side, by_a_remainder=by_a_remainder,
)  # fmt: skip

HOMES: dict[str, Any] = {
    "nn": nn,
    "F": F,
    "torch": torch,
    "Tensor": Tensor,
    "operator": operator,
    "layers": layers,
    "own": OWN,
}


# --- drawing them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network, the shape and layout of an image, and the tile to run it with."""

    network: RandomNetwork
    shape: tuple[int, int, int, int]
    tile: tuple[int, int]
    layout: str = "contiguous"

    def image(self) -> Tensor:
        generator = torch.Generator().manual_seed(prod(self.shape))
        x = torch.randint(-4, 5, self.shape, generator=generator).double()
        if self.layout == "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        return x.transpose(2, 3).contiguous().transpose(2, 3) if self.layout == "transposed" else x


@dataclass(frozen=True)
class Value:
    """What is known of a value while drawing: its shape on the image and on the tracer's trial images, a
    bound on its numbers, and whose memory it lies in."""

    shapes: tuple[tuple[int, ...], ...]
    bound: float
    memory: int

    @property
    def channels(self) -> int:
        return self.shapes[0][1]

    @property
    def size(self) -> tuple[int, int]:
        return self.shapes[0][2], self.shapes[0][3]

    @property
    def narrowest(self) -> int:
        return min(self.size)


class Refused(Exception):
    """The op refuses the image or a trial image, or gives a map too large for these tests."""


class Drawing:
    """A network in the making. Ops are run while they are drawn, so that every one of them fits."""

    def __init__(self, draw: Any, channels: int, size: tuple[int, int]) -> None:
        self.draw = draw
        self.layers: list[Layer] = []
        shapes = [(1, channels, *size), *((1, channels, *trial[1:]) for trial in TRIALS)]
        self.values = [Value(tuple(shapes), 4.0, 0)]
        self.viewed = {0}
        """The memory in which nothing may be changed in place: the input's, and what a view was made of."""

    # what is drawn

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, max(low, high)))

    def one_of(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def two(self, low: int, high: int) -> tuple[int, int]:
        return self.number(low, high), self.number(low, high)

    def source(self) -> int:
        """Mostly the last value, so that networks grow deep."""
        last = len(self.layers)
        return last if self.number(0, 2) else self.number(0, last)

    # what is built

    def add(
        self,
        op: str,
        *reads: int,
        args: tuple[Any, ...] = (),
        gain: float = 1.0,
        memory: str = "own",
        **options: Any,
    ) -> int:
        """Append a layer. `gain` bounds what it, or a sum within it, makes of ones; `memory` says whether its
        result has memory of its own, is a "view" of what it reads, or "changes" that in place."""
        layer = Layer(op, reads, args, options)
        inputs = [self.values[i] for i in reads]
        module = made(layer, len(self.layers))
        if module is not None and any(True for _ in module.parameters()):
            gain = prod(float(p.abs().max()) * max(1, p[0].numel()) for p in module.parameters()) * 8
        bound = max(1.0, sum(value.bound for value in inputs) * gain)
        if bound > EXACT:
            return self.add(
                op, *[self.add_folded(i) for i in reads], args=args, gain=gain, memory="own", **options
            )
        meta = copy.deepcopy(module).to("meta") if module is not None else None
        shapes = []
        for of_image in zip(*(value.shapes for value in inputs), strict=True):
            try:
                result = computed(
                    layer, meta, [torch.zeros(s, dtype=torch.double, device="meta") for s in of_image]
                )
            except (RuntimeError, ValueError) as error:
                raise Refused from error
            shapes.append(tuple(result.shape))
        if min(min(shape) for shape in shapes) < 1 or max(shapes[0][2:]) > LARGEST_SIDE:
            raise Refused
        self.layers.append(layer)
        place = len(self.layers)
        lies_in = place if memory == "own" else inputs[0].memory
        if memory == "view":
            self.viewed.add(lies_in)
        self.values.append(Value(tuple(shapes), bound, lies_in))
        return place

    def add_folded(self, source: int) -> int:
        place = self.add("own.folded", source)
        self.values[place] = Value(self.values[place].shapes, 4.0, place)
        return place

    def may_change(self, source: int) -> bool:
        return self.values[source].memory not in self.viewed

    # families of ops

    def convolution(self, source: int) -> int:
        value = self.values[source]
        mode, stride, dilation = self.one_of(*MODES), self.two(1, 3), self.two(1, 2)
        kernel = self.fitting_kernel(value.size, dilation)
        # torch refuses to reflect more than all samples but one
        reach = 3 if mode == "zeros" else min(3, value.narrowest - 1)
        padding: Any = self.two(0, reach)
        reaches = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if self.flag() and (mode == "zeros" or max(reaches) - min(r // 2 for r in reaches) <= reach):
            stride, padding = (1, 1), "same"
        groups = self.one_of(1, value.channels)
        out = groups * self.number(1, max(1, 3 // groups))
        args = value.channels, out, kernel, stride, padding, dilation, groups, self.flag(), mode
        return self.add("nn.Conv2d", source, args=args)

    def fitting_kernel(self, size: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
        high, wide = (min(4, 1 + (n + 1) // d) for n, d in zip(size, dilation, strict=True))
        return self.number(1, high), self.number(1, wide)

    def kept_size(self, source: int) -> int:
        """A convolution whose output is as large as its input."""
        value = self.values[source]
        mode = self.one_of(*MODES) if value.narrowest > 2 else "zeros"
        kernel = self.one_of(1, 3, 5) if value.narrowest > 2 else self.one_of(1, 3)
        args = value.channels, self.number(1, 3), kernel, 1, kernel // 2, 1, 1, self.flag(), mode
        return self.add("nn.Conv2d", source, args=args)

    def masked_convolution(self, source: int) -> int:
        kind = self.one_of("MaskedConv2d", "CheckerboardMaskedConv2d")
        kernel = self.one_of(3, 5)
        args = self.values[source].channels, self.number(1, 3), kernel, self.one_of(1, 1, 2), kernel // 2
        return self.add(f"layers.{kind}", source, args=args, mask_type=self.one_of("A", "B"))

    def transposed_convolution(self, source: int) -> int:
        value = self.values[source]
        stride, dilation = self.two(1, 3), self.two(1, 2)
        extra = tuple(self.number(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        kernel = self.two(1, 4)
        # a trim that leaves something of what a single sample gives
        padding = tuple(
            self.number(0, min(3, ((n - 1) * s + d * (k - 1) + e) // 2))
            for n, s, d, k, e in zip(value.size, stride, dilation, kernel, extra, strict=True)
        )
        groups = self.one_of(1, value.channels)
        out = groups * self.number(1, max(1, 3 // groups))
        args = value.channels, out, kernel, stride, padding, extra, groups, self.flag(), dilation
        return self.add("nn.ConvTranspose2d", source, args=args)

    def functional_convolution(self, source: int) -> int:
        value = self.values[source]
        dilation, transposed = self.two(1, 2), self.flag()
        kernel = self.fitting_kernel(value.size, dilation)
        options = {"stride": self.two(1, 2), "padding": (0, 0), "dilation": dilation}
        args = value.channels, self.number(1, 3), kernel, transposed
        return self.add("own.FunctionalConv", source, args=args, **options)

    def max_pool(self, source: int) -> int:
        size = self.values[source].size
        dilation = self.one_of((1, 1), (1, 1), (1, 2), (2, 1))
        kernel = tuple(
            min(k, 1 + (n - 1) // d) for k, n, d in zip(self.two(1, 3), size, dilation, strict=True)
        )
        # a window that saw nothing but padding would give minus infinity
        padding = (0, 0) if max(dilation) > 1 else tuple(self.number(0, k // 2) for k in kernel)
        stride = self.one_of(None, self.two(1, 3))
        if self.flag():
            return self.add(
                "nn.MaxPool2d", source, args=(kernel, stride, padding, dilation), ceil_mode=self.flag()
            )
        return self.add("F.max_pool2d", source, args=(kernel, stride, padding, dilation, self.flag()))

    def average_pool(self, source: int) -> int:
        kernel = tuple(min(k, n) for k, n in zip(self.two(1, 4), self.values[source].size, strict=True))
        padding = tuple(self.number(0, k // 2) for k in kernel)
        stride = self.one_of(None, self.two(1, 3))
        divisor = self.one_of(None, None, 3, 5)
        # multiplied by whatever it may divide by, so that it gives integers
        factor = divisor or prod(lcm(*range(1, k + 1)) for k in kernel)
        if self.values[source].bound * factor * prod(kernel) > EXACT:  # in between would be no multiple
            source = self.add_folded(source)
        source = self.add("operator.mul", source, args=(factor,), gain=factor)
        options = {"ceil_mode": self.flag(), "count_include_pad": self.flag(), "divisor_override": divisor}
        name = self.one_of("nn.AvgPool2d", "F.avg_pool2d")
        return self.add(name, source, args=(kernel, stride, padding), gain=prod(kernel), **options)

    def shuffle(self, source: int) -> int:
        channels, factor = self.values[source].channels, self.one_of(2, 2, 3)
        if channels % factor**2:
            wider = factor**2 * self.number(1, 1)
            source = self.add("nn.Conv2d", source, args=(channels, wider, 1))
        if self.flag():
            return self.add("nn.PixelShuffle", source, args=(factor,))
        return self.add("F.pixel_shuffle", source, args=(factor,))

    def unshuffle(self, source: int) -> int:
        value = self.values[source]
        factors = [f for f in (3, 2) if not any(n % f for shape in value.shapes for n in shape[2:])]
        if not factors:
            return self.shuffle(source)
        if value.channels > 1:
            source = self.add("nn.Conv2d", source, args=(value.channels, 1, 1))
        name = self.one_of("nn.PixelUnshuffle", "F.pixel_unshuffle")
        return self.add(name, source, args=(self.one_of(*factors),))

    def nearest(self, source: int) -> int:
        factor = self.one_of(2.0, 3.0, 0.5, (2.0, 1.0), (0.5, 2.0), (1.0, 0.25))
        if self.flag():
            return self.add("nn.Upsample", source, scale_factor=factor, mode="nearest")
        return self.add("F.interpolate", source, scale_factor=factor, mode="nearest")

    def bilinear(self, source: int) -> int:
        factor = self.one_of(2.0, 4.0, 0.5, 0.25, (2.0, 4.0), (0.5, 2.0))
        # its weights are eighths on either axis
        source = self.add("operator.mul", source, args=(64,), gain=64)
        if self.flag():
            return self.add("nn.Upsample", source, scale_factor=factor, mode="bilinear")
        return self.add("F.interpolate", source, scale_factor=factor, mode="bilinear", align_corners=False)

    def pad(self, source: int) -> int:
        size = self.values[source].size
        mode = self.one_of("constant", "reflect", "replicate", "circular")
        low = 0 if mode == "circular" else -1
        amounts = []
        for n in (size[1], size[0]):
            high = {"reflect": min(3, n - 1), "circular": min(4, n)}.get(mode, 4)
            amounts += [self.number(low if n > 2 else 0, high), self.number(low if n > 2 else 0, high)]
        if mode == "constant":
            return self.add("F.pad", source, args=(tuple(amounts), mode, float(self.number(-1, 2))))
        return self.add("F.pad", source, args=(tuple(amounts), mode))

    def pad_module(self, source: int) -> int:
        name = self.one_of("Zero", "Constant", "Reflection", "Replication", "Circular")
        size = self.values[source].size
        amounts = []
        for n in (size[1], size[0]):
            high = {"Reflection": min(2, n - 1), "Circular": min(3, n)}.get(name, 3)
            amounts += [self.number(0, high), self.number(0, high)]
        value = (3.0,) if name == "Constant" else ()
        return self.add(f"nn.{name}Pad2d", source, args=(tuple(amounts), *value))

    def crop(self, source: int) -> int:
        def cut(n: int) -> slice:
            start = self.number(0, min(6, (n - 1) // 2))
            end = self.number(0, min(6, (n - 1) // 2))
            return slice(start, -end or None, self.one_of(None, None, 2, 3))

        rows, columns = (cut(n) for n in self.values[source].size)
        return self.add("operator.getitem", source, args=((..., rows, columns),), memory="view")

    def roll(self, source: int) -> int:
        return self.add("torch.roll", source, args=(self.two(-9, 9), self.one_of((2, 3), (-1, -2))))

    def between_channels(self, source: int) -> int:
        channels = self.values[source].channels
        choices = ["sum", "largest", "one", "mixed", "behind"]
        choices += ["part"] if channels > 1 else []
        choices += ["regrouped", "shuffled"] if channels % 2 == 0 else []
        choice = self.one_of(*choices)
        if choice == "sum":
            return self.add("torch.sum", source, dim=1, keepdim=True, gain=channels)
        if choice == "largest":
            return self.add("torch.amax", source, args=((1,), True))
        if choice == "one":
            start = self.number(0, channels - 1)
            return self.add("Tensor.narrow", source, args=(1, start, 1), memory="view")
        if choice == "mixed":
            return self.add("nn.Conv2d", source, args=(channels, self.number(1, 4), 1))
        if choice == "behind":
            return self.add("own.ChannelsLast", source, args=(channels, self.number(1, 4), self.flag()))
        if choice == "part":
            return self.add("own.second_part", source, memory="view")
        if choice == "regrouped":
            return self.add("own.regrouped", self.add("Tensor.mul", source, args=(1,)), memory="view")
        return self.add("nn.ChannelShuffle", source, args=(2,), memory="view")  # of two channels, it is one

    def activation(self, source: int) -> int:
        if self.may_change(source) and self.number(0, 3):
            name = self.one_of("nn.ReLU", "nn.LeakyReLU", "nn.Hardtanh", "bounded_", "rectified_")
            args = {"nn.LeakyReLU": (2.0,), "nn.Hardtanh": (-9.0, 9.0)}.get(name, ())
            if name.startswith("nn."):
                return self.add(name, source, args=args, gain=2, memory="changes", inplace=True)
            return self.add(f"own.{name}", source, memory="changes")
        name = self.one_of("nn.PReLU", "nn.ReLU6", "torch.abs", "operator.neg", "nn.Identity", "Tensor.relu")
        if name == "nn.PReLU":
            return self.add(name, source, args=(self.values[source].channels,))
        return self.add(name, source, memory="view" if name == "nn.Identity" else "own")

    def join(self, first: int) -> int:
        """Two branches of one scale, the second padded or cropped to the size of the first."""
        others = [i for i in range(len(self.values)) if i != first and self.shortfall(first, i) is not None]
        second = self.one_of(*others) if others else self.kept_size(first)
        missing = self.shortfall(first, second)
        assert missing is not None
        if missing != (0, 0):
            amounts = []
            for total in reversed(missing):
                before = self.number(min(0, total), max(0, total))
                amounts += [before, total - before]
            second = self.add("F.pad", second, args=(tuple(amounts),))
        if (
            self.values[first].channels + self.values[second].channels <= MOST_CHANNELS
            and self.number(0, 2) == 0
        ):
            order = (first, second) if self.flag() else (second, first)
            return self.add("torch.cat", *order, args=(1,))
        if 1 != self.values[second].channels != self.values[first].channels:
            args = self.values[second].channels, self.values[first].channels, 1
            second = self.add("nn.Conv2d", second, args=args)
        if self.may_change(first) and self.values[first].memory != self.values[second].memory and self.flag():
            name = self.one_of("own.augmented", "Tensor.add_", "operator.iadd", "operator.isub")
            return self.add(name, first, second, memory="changes")
        name = self.one_of("operator.add", "operator.sub", "torch.maximum", "own.chosen")
        return self.add(name, first, second)

    def shortfall(self, first: int, second: int) -> tuple[int, int] | None:
        """How many samples the second value lacks on either axis, if that is the same on every image."""
        mine, other = self.values[first].shapes, self.values[second].shapes
        missing = {(a[2] - b[2], a[3] - b[3]) for a, b in zip(mine, other, strict=True)}
        if len(missing) > 1 or max(abs(n) for n in min(missing)) > 8:
            return None
        # with the sizes of two images the same apart from a constant, the scales are too
        return missing.pop()

    def squeezed(self, source: int) -> int:
        """A barrier, whose value meets the map that it is made of or any other of as many channels."""
        channels = self.values[source].channels
        others = [i for i, value in enumerate(self.values) if value.channels == channels and i != source]
        reads = (source, self.one_of(*others)) if others and self.flag() else (source,)
        kind = self.one_of("pool", "mean", "amax", "sum")
        args = channels, kind, self.two(1, 3), self.one_of("scale", "choose")
        return self.add("own.Squeezed", *reads, args=args)

    # code that asks for sizes

    def to_a_multiple(self, source: int) -> int:
        multiple = self.number(2, 5)
        way = self.one_of("filled_up", "filled_up_around", "cut_to_a_multiple")
        if way == "cut_to_a_multiple":
            return self.add(f"own.{way}", source, args=(multiple,), memory="view")
        if way == "filled_up_around":
            return self.add(f"own.{way}", source, args=(multiple,))
        mode = self.one_of("constant", "replicate", "reflect")
        return self.add("own.filled_up", source, args=(multiple, mode))

    def to_the_size_of_another(self, source: int) -> int:
        like = self.number(0, len(self.layers))
        missing = [
            abs(a - b)
            for mine, other in zip(self.values[source].shapes, self.values[like].shapes, strict=True)
            for a, b in zip(mine[2:], other[2:], strict=True)
        ]
        if max(missing) <= 8 and self.flag():  # of one scale
            return self.add("own.cut_or_filled_up_to", source, like)
        return self.add("own.sized_as", source, like, args=(self.one_of("nearest", "nearest-exact"),))

    def with_a_skip(self, source: int) -> int:
        """Two branches joined as a U-Net joins them, whatever their sizes are."""
        other = self.number(0, len(self.layers))
        if self.values[source].channels != self.values[other].channels:
            args = self.values[source].channels, self.values[other].channels, 1
            source = self.add("nn.Conv2d", source, args=args)
        source = self.add("own.sized_as", source, other, args=("nearest",))
        return self.add(self.one_of("operator.add", "torch.maximum"), source, other)

    def overwriting(self, source: int) -> int:
        other = self.kept_size(source)
        return self.add("own.overwritten", source, other, args=(self.number(1, 3),))

    def deciding(self, source: int) -> int:
        if self.flag():
            return self.add("own.by_the_longer_side", source, 0)
        return self.add("own.by_a_remainder", source, args=(self.number(2, 4),))

    @property
    def scale(self) -> tuple[Fraction, Fraction]:
        given, last = self.values[0].shapes[-1], self.values[-1].shapes[-1]
        return Fraction(last[2], given[2]), Fraction(last[3], given[3])


FAMILIES = [
    Drawing.convolution, Drawing.kept_size, Drawing.masked_convolution, Drawing.transposed_convolution,
    Drawing.functional_convolution, Drawing.max_pool, Drawing.average_pool, Drawing.shuffle,
    Drawing.unshuffle, Drawing.nearest, Drawing.bilinear, Drawing.pad, Drawing.pad_module, Drawing.crop,
    Drawing.roll, Drawing.between_channels, Drawing.activation, Drawing.activation, Drawing.join,
    Drawing.join, Drawing.join,
]  # fmt: skip

ASKING = [
    Drawing.to_a_multiple, Drawing.to_the_size_of_another, Drawing.with_a_skip, Drawing.overwriting,
    Drawing.deciding,
]  # fmt: skip

sides = st.one_of(st.integers(1, 24), st.sampled_from([1, 2, 3, 9, 12, 17, 18, 24]))


@st.composite
def cases(draw: Any, barriers: bool = False, sizes: bool = False) -> Case:
    """With `barriers`, at least one; else none. With `sizes`, code asks for them, and results are several."""
    families = [*FAMILIES, *[Drawing.squeezed] * 4 * barriers, *ASKING * 3 * sizes]
    channels, size = draw(st.integers(1, 3)), (draw(sides), draw(sides))
    drawing = Drawing(draw, channels, size)
    if sizes:  # a wrapped model takes as many channels as its first layer says
        drawing.kept_size(0)
    for _ in range(draw(st.integers(2, 12))):
        source = drawing.source()
        family = draw(st.sampled_from(families))
        try:
            family(drawing, source)
        except Refused:
            drawing.activation(source)
    if barriers:
        drawing.squeezed(len(drawing.layers))
    height, width = drawing.values[-1].size
    tile = tuple(draw(st.integers(-(-n // MOST_TILES), n + 2)) for n in (height, width))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "transposed"]))
    shape = (draw(st.integers(1, 2)), channels, *size)
    others = draw(st.sets(st.integers(1, len(drawing.layers) - 1), max_size=2)) if sizes else ()
    return Case(RandomNetwork(channels, drawing.layers, tuple(others)), shape, tile, layout)
