"""Sound: maps of one axis, in chunks of any length by either schedule, with the bits of the whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from support.cases import tries
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.geometry import Span
from overlap_tool.graph.trace import fitted, trace


class Gated(nn.Module):
    """A stack as WaveNet has it, with a norm over all of the sound, strides and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 8, 7, padding=3)
        self.down = nn.Conv1d(8, 16, 8, stride=4, padding=2)
        self.norm = nn.GroupNorm(4, 16)
        self.dilated = nn.Conv1d(16, 16, 3, dilation=3, padding=3, padding_mode="reflect")
        self.up = nn.ConvTranspose1d(16, 4, 8, 4, 2)
        self.figures = nn.BatchNorm1d(4)
        self.pool = nn.MaxPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.down(F.elu(self.first(x))))
        y = self.dilated(y.tanh() * y.sigmoid())
        return F.avg_pool1d(self.pool(self.figures(self.up(y))), 3, 1, 1)


class Causal(nn.Module):
    """Pads before alone, and resamples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 8, 4), nn.Conv1d(8, 2, 3, dilation=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.pad(x, (3, 0))).relu()
        y = self.second(F.pad(y, (8, 0))) + x
        return F.interpolate(F.interpolate(y, scale_factor=2, mode="linear"), scale_factor=2)


@torch.jit.script
def snake(x, alpha):
    return x + (alpha + 1e-9).reciprocal() * torch.sin(alpha * x).pow(2)


class Codec(nn.Module):
    """As codecs for sound are written: weight norm, padding up to whole hops, a scripted activation, and a
    recurrent layer on the latents."""

    def __init__(self) -> None:
        super().__init__()
        normed = nn.utils.weight_norm
        self.layers = nn.ModuleList([normed(nn.Conv1d(2, 8, 7)), normed(nn.Conv1d(8, 16, 8, stride=4))])
        self.alpha = nn.Parameter(torch.rand(1, 8, 1) + 0.5)
        self.memory = Memory(16)
        self.last = normed(nn.ConvTranspose1d(16, 4, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        y = snake(padded(first, x), self.alpha)
        y = self.last(self.memory(padded(second, y)))
        return y[..., 2 : y.shape[-1] - 2]


def padded(layer: Any, x: Tensor) -> Tensor:
    around = layer.kernel_size[0] - layer.stride[0]
    frames = (x.shape[-1] - layer.kernel_size[0] + around) / layer.stride[0] + 1
    wanted = (math.ceil(frames) - 1) * layer.stride[0] + layer.kernel_size[0] - around
    return layer(F.pad(x, (around, wanted - x.shape[-1]), "reflect"))


class Memory(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x.permute(2, 0, 1))
        return (y + x.permute(2, 0, 1)).permute(1, 2, 0)


class OnImages(nn.Module):
    """Sound that the model itself takes for an image of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Conv1d(2, 4, 3, padding=1), nn.Conv2d(4, 2, (1, 5), padding=(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x).unsqueeze(2)).squeeze(2).softmax(1)


MODELS = {"gated": Gated, "causal": Causal, "codec": Codec, "on images": OnImages}


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_have_the_bits_of_the_whole(name: str, schedule: Any) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    tiled = overlap_tool.wrap(model, tile=100, schedule=schedule)
    for length in (1000, 777, 64):
        sound = torch.randn(2, 2, length)
        with torch.no_grad(), exact_kernels():
            assert torch.equal(tiled(sound), model(sound)), length
    (plan,) = overlap_tool.plans(tiled, (1000, 700)).values()  # it has no rows
    assert plan.tiles >= 10


class Reduced(nn.Module):
    """Sums over all samples, in every order of dimensions, and a profile of the only row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.pool = nn.Conv1d(2, 8, 3), nn.Conv1d(4, 2, 3), nn.AdaptiveAvgPool1d(1)
        self.gate, self.drop = nn.GLU(1), nn.Dropout1d()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.gate(self.first(x)))
        y = y * y.mean(-1, keepdim=True) + y.std(-1, keepdim=True)
        z = y.transpose(1, 2)
        z = (z - z.mean((1, 2), keepdim=True)).transpose(1, 2)
        return self.last(z * self.pool(z)) * x.unsqueeze(2).mean((2, 3)).unsqueeze(-1)


@pytest.mark.parametrize(("model", "bands"), [(Gated(), {True}), (Reduced(), {True, False})])
def test_what_reduces_a_sound_reads_it_in_spans_of_samples(model: nn.Module, bands: set[bool]) -> None:
    """It read all of it at once. Pools read the whole row still."""
    tiled = overlap_tool.wrap(model.eval(), tile=37)
    for length in (1000, 777, 64):
        sound = torch.randn(2, 2, length)
        with torch.no_grad(), exact_kernels():
            assert torch.equal(tiled(sound), model(sound)), length
    (plan,) = overlap_tool.plans(tiled, (1000, 1)).values()
    read = [each for part in plan.segments for each in part.bands.values()]
    assert {each.columns is not None and each.columns <= 37 for each in read} == bands


def test_padding_alone_feeds_the_last_tile() -> None:
    """A piece without samples was taken for one of another length."""
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.ConstantPad1d((0, 1), 0.5)).eval()
    sound = torch.randn(1, 1, 40)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(overlap_tool.wrap(model, tile=8, schedule="stream")(sound), model(sound))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.utils.weight_norm(nn.Conv1d(2, 2, 3)), (100,)),
        (parametrizations.weight_norm(nn.ConvTranspose1d(2, 2, 4, 2)), (100,)),
        (parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), (40, 50)),
        (parametrizations.spectral_norm(nn.Conv2d(2, 2, 3)), (40, 50)),
    ],
)
def test_weights_that_are_made_of_others_are_followed(layer: nn.Module, size: tuple[int, ...]) -> None:
    """And changes of those are noticed. Convolutions of images with parametrizations were refused by the
    exact engine, when they ran."""
    model = nn.Sequential(layer, nn.ELU()).eval()
    tiled, x = overlap_tool.wrap(model, tile=16), torch.randn(1, 2, *size)
    for _ in range(2):
        with torch.no_grad(), exact_kernels():
            assert torch.equal(tiled(x), model(x))
        for each in (*model.parameters(), *tiled.parameters()):
            each.data.mul_(1.5)


def test_the_reach_of_causal_layers_is_to_the_left() -> None:
    model = nn.Sequential(nn.ConstantPad1d((6, 0), 0.0), nn.Conv1d(1, 4, 4, dilation=2), nn.Conv1d(4, 1, 1))
    (stage,) = overlap_tool.analyze(model.eval()).stages
    assert (stage.overlap.left, stage.overlap.right, stage.overlap.top, stage.overlap.bottom) == (6, 0, 0, 0)


@st.composite
def stacks(draw: Any) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kernel, stride = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        kind = draw(st.sampled_from(["conv", "transposed", "max", "mean", "pad", "reflect", "resample"]))
        padding = draw(st.integers(0, kernel // 2))
        layers.append(
            {
                "conv": lambda k, s, p: nn.Conv1d(1, 1, k, s, p, dilation=draw(st.integers(1, 2))),
                "transposed": lambda k, s, p: nn.ConvTranspose1d(1, 1, max(k, s), s, p),
                "max": lambda k, s, p: nn.MaxPool1d(k, s, p),
                "mean": lambda k, s, p: nn.AvgPool1d(k, s, p),
                "pad": lambda k, s, p: nn.ConstantPad1d((p, k), 0.5),
                "reflect": lambda k, s, p: nn.ReflectionPad1d((p, 1)),
                "resample": lambda k, s, p: nn.Upsample(scale_factor=2, mode="linear"),
            }[kind](kernel, stride, padding)
        )
    torch.manual_seed(draw(st.integers(0, 99)))
    for layer in layers:
        if hasattr(layer, "weight"):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
    return nn.Sequential(nn.Conv1d(1, 1, 1), *layers).eval()


@tries(40)
@given(stacks(), st.integers(40, 70), st.sampled_from(["stream", "tiles"]), st.integers(7, 40))
def test_stacks_drawn_at_random(model: nn.Module, length: int, schedule: Any, tile: int) -> None:
    sound = torch.randn(1, 1, length)
    assume(trace(model, "").accepts(1, length))
    with torch.no_grad(), exact_kernels():
        whole = model(sound)
        assert torch.equal(overlap_tool.wrap(model, tile=tile, schedule=schedule)(sound), whole)


@tries(40)
@given(stacks(), st.integers(40, 60))
def test_what_a_sample_reads_is_what_reaches_it(model: nn.Module, length: int) -> None:
    """Every input that can change an output lies in its span, and both ends of the span can, away from the
    borders: a span that is cut there may end between two taps. A maximum may be deaf to one of its inputs."""
    network = fitted(trace(model, ""), 1, 1, length)
    assume(network.accepts(1, length))
    axis, model = network.columns, model.double()
    sizes = axis.sizes(length)
    found = torch.zeros(sizes[-1], length, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(3):
            sound = torch.rand(1, 1, length, dtype=torch.float64)
            whole = model(sound)
            for place in range(length):
                for amount in (-9.0, 9.0):
                    other = sound.clone()
                    other[..., place] += amount
                    found[:, place] |= (model(other) != whole)[0, 0]
    deaf = any(isinstance(layer, nn.MaxPool1d | nn.ReflectionPad1d) for layer in model)
    for output in range(sizes[-1]):
        said = axis.needs({len(axis.ops) - 1: Span(output, output + 1)}, sizes)[0]
        reached = found[output].nonzero().flatten().tolist()
        if reached:
            assert said.start <= reached[0], output
            assert reached[-1] < said.stop, output
        if reached and not deaf and said.start > 0 and said.stop < length:
            assert (said.start, said.stop) == (reached[0], reached[-1] + 1), output
