"""Every rule run on pieces gives what the original module gives there, from exactly the samples it reads."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from compressai.layers import GDN, GDN1, CheckerboardMaskedConv2d, MaskedConv2d
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.cases import tries
from support.pieces_of import Functional, Plan, run_on_pieces
from torch import Tensor, nn

from overlap_tool.geometry import Span
from overlap_tool.graph.trace import trace

TOLERANCE = 1e-12
"""In float64, for a library convolution has other last bits for other shapes."""

PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]
PAD_MODES = ["constant", "reflect", "replicate", "circular"]

thorough = tries(25, suppress_health_check=[HealthCheck.too_slow])
brief = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Subject(NamedTuple):
    """A module under test, its input channels, and what its input's sides are multiples of."""

    module: nn.Module
    channels: int = 4
    multiple: int = 1


sides = st.tuples(st.integers(1, 5), st.integers(1, 5))
strides = st.tuples(st.integers(1, 3), st.integers(1, 3))
dilations = st.tuples(st.integers(1, 3), st.integers(1, 3))
small = st.tuples(st.integers(0, 3), st.integers(0, 3))


@st.composite
def conv_modules(draw) -> Subject:
    stride = draw(strides)
    padding: Any = draw(st.one_of(small, st.just("valid"), st.just("same") if stride == (1, 1) else small))
    options = {
        "dilation": draw(dilations),
        "bias": draw(st.booleans()),
        "groups": draw(st.sampled_from([1, 2])),
    }
    mode = draw(st.sampled_from(PADDING_MODES))
    return Subject(nn.Conv2d(4, 6, draw(sides), stride, padding, padding_mode=mode, **options))


@st.composite
def same_conv_modules(draw) -> Subject:
    mode = draw(st.sampled_from(PADDING_MODES))
    return Subject(nn.Conv2d(4, 2, draw(sides), 1, "same", dilation=draw(dilations), padding_mode=mode))


@st.composite
def conv_functions(draw) -> Subject:
    kernel, stride, dilation, groups = (
        draw(sides),
        draw(strides),
        draw(dilations),
        draw(st.sampled_from([1, 2])),
    )
    padding: Any = draw(st.one_of(small, st.just("same") if stride == (1, 1) else st.just("valid")))
    call = draw(st.sampled_from([F.conv2d, torch.conv2d]))
    by_name = draw(st.booleans())

    def compute(module: Any, x: Tensor) -> Tensor:
        if by_name:
            options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            return call(x, bias=module.bias, weight=module.weight, **options)
        return call(x, module.weight * module.scale, module.bias, stride, padding, dilation, groups)

    weight = torch.randn(6, 4 // groups, *kernel)
    return Subject(Functional(compute, weight=weight, bias=torch.randn(6), scale=torch.rand(6, 1, 1, 1)))


def transposed_options(draw) -> dict[str, Any]:
    stride, dilation = draw(strides), draw(dilations)
    limits = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    extra = tuple(draw(st.integers(0, limit)) for limit in limits)
    groups = draw(st.sampled_from([1, 2]))
    keys = "stride", "padding", "output_padding", "groups", "dilation"
    return dict(zip(keys, (stride, draw(small), extra, groups, dilation), strict=True))


@st.composite
def conv_transpose_modules(draw) -> Subject:
    options = transposed_options(draw)
    return Subject(nn.ConvTranspose2d(4, 6, draw(sides), bias=draw(st.booleans()), **options))


@st.composite
def conv_transpose_functions(draw) -> Subject:
    options = transposed_options(draw)
    weight = torch.randn(4, 6 // options["groups"], *draw(sides))
    bias = torch.randn(6) if draw(st.booleans()) else None

    def compute(module: Any, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, module.weight, module.bias, **options)

    return Subject(Functional(compute, weight=weight, bias=bias))


@st.composite
def masked_convs(draw) -> Subject:
    kind = draw(st.sampled_from([MaskedConv2d, CheckerboardMaskedConv2d]))
    mask_type = draw(st.sampled_from("AB"))
    kernel = draw(st.sampled_from([3, 5, (3, 5), (5, 3)]))
    options = {
        "stride": draw(strides),
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 4)),
    }
    return Subject(kind(4, 6, kernel, mask_type=mask_type, **options))


@st.composite
def pools(draw) -> Subject:
    kernel = draw(sides)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    stride = draw(st.one_of(st.none(), strides))
    ceil = draw(st.booleans())
    if draw(st.booleans()):
        dilation = draw(dilations)
        if draw(st.booleans()):
            return Subject(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil))
        return Subject(Functional(lambda m, x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil)))
    counted, divisor = draw(st.booleans()), draw(st.one_of(st.none(), st.integers(1, 9)))
    if draw(st.booleans()):
        return Subject(nn.AvgPool2d(kernel, stride, padding, ceil, counted, divisor))
    return Subject(Functional(lambda m, x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted, divisor)))


@st.composite
def shuffles(draw) -> Subject:
    factor = draw(st.integers(1, 3))
    if draw(st.booleans()):
        op = draw(
            st.sampled_from([nn.PixelShuffle(factor), Functional(lambda m, x: F.pixel_shuffle(x, factor))])
        )
        return Subject(op, 2 * factor**2)
    op = draw(
        st.sampled_from([nn.PixelUnshuffle(factor), Functional(lambda m, x: F.pixel_unshuffle(x, factor))])
    )
    return Subject(op, 2, factor)


NEAREST = [1.0, 2.0, 3.0, 0.5, (2.0, 3.0), (0.5, 4.0), (0.25, 0.5)]
BILINEAR = [1.0, 2.0, 4.0, 0.5, 0.25, (2.0, 4.0), (0.5, 2.0), (4.0, 0.25)]


@st.composite
def interpolations(draw) -> Subject:
    mode = draw(st.sampled_from(["nearest", "bilinear"]))
    factor = draw(st.sampled_from(NEAREST if mode == "nearest" else BILINEAR))
    if draw(st.booleans()):
        return Subject(nn.Upsample(scale_factor=factor, mode=mode))
    return Subject(Functional(lambda m, x: F.interpolate(x, scale_factor=factor, mode=mode)))


@st.composite
def pads(draw) -> Subject:
    mode = draw(st.sampled_from(PAD_MODES))
    amount = st.integers(0 if mode == "circular" else -3, 4)
    amounts = (
        draw(st.one_of(st.tuples(amount, amount), st.tuples(*[amount] * 4)))
        if mode == "constant"
        else draw(st.tuples(*[amount] * 4))
    )
    value = draw(st.sampled_from([0.0, 1.5])) if mode == "constant" else None
    return Subject(Functional(lambda m, x: F.pad(x, amounts, mode, value)))


@st.composite
def pad_modules(draw) -> Subject:
    amounts = draw(st.one_of(st.integers(0, 4), st.tuples(*[st.integers(0, 4)] * 4)))
    kind = draw(
        st.sampled_from(
            [nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d]
        )
    )
    return Subject(kind(amounts, 2.5) if kind is nn.ConstantPad2d else kind(amounts))


@st.composite
def crops(draw) -> Subject:
    def cut() -> slice:
        start, stop = draw(st.integers(0, 4)), draw(st.sampled_from([None, -1, -3]))
        return slice(start, stop, draw(st.sampled_from([None, 1, 2, 3])))

    channels = draw(st.sampled_from([slice(None), slice(1, 3), slice(None, None, 2)]))
    index = draw(
        st.sampled_from([(slice(None), channels, cut(), cut()), (..., cut()), (slice(None), channels, cut())])
    )
    return Subject(Functional(lambda m, x: x[index]))


@st.composite
def rolls(draw) -> Subject:
    amount = st.integers(-15, 15)
    shifts, dims = draw(st.sampled_from([((1,), (2,)), ((2, -3), (-1, 2)), ((1, 2), (2, 2))]))
    shifts = tuple(draw(amount) for _ in shifts)
    if draw(st.booleans()):
        return Subject(Functional(lambda m, x: torch.roll(x, shifts, dims)))
    return Subject(Functional(lambda m, x: x.roll(shifts=shifts[0], dims=dims[0])))


def chained(draw) -> Any:
    return draw(
        st.sampled_from(
            [
                nn.Conv2d(4, 4, 3, padding=1),
                nn.Conv2d(4, 4, 3, 2, 2, 2),
                nn.ConvTranspose2d(4, 4, 5, 2, 2, 1),
                nn.MaxPool2d(3, 2, 1),
                nn.ReflectionPad2d(2),
            ]
        )
    )


@st.composite
def chains(draw) -> Subject:
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(2, 4))):
        layers += [chained(draw), draw(st.sampled_from([nn.ReLU(inplace=True), nn.LeakyReLU(), GDN(4)]))]
    return Subject(nn.Sequential(*layers))


@st.composite
def residuals(draw) -> Subject:
    """Branches that ask for different spans, with zeros at every border."""
    deep = nn.Sequential(
        nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 5, 1, 2, padding_mode="reflect")
    )
    shortcut = draw(
        st.sampled_from([nn.Conv2d(4, 4, 1, 2), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(2, 2, ceil_mode=True)])
    )
    return Subject(Functional(lambda m, x: m.deep(x) + m.shortcut(x), deep=deep, shortcut=shortcut))


SPATIAL = {
    "Conv2d": conv_modules(),
    "Conv2d same": same_conv_modules(),
    "conv2d": conv_functions(),
    "ConvTranspose2d": conv_transpose_modules(),
    "conv_transpose2d": conv_transpose_functions(),
    "masked convolutions": masked_convs(),
    "pools": pools(),
    "pixel shuffles": shuffles(),
    "interpolations": interpolations(),
    "F.pad": pads(),
    "pad modules": pad_modules(),
    "crops": crops(),
    "rolls": rolls(),
    "chains": chains(),
    "residuals": residuals(),
}

LOCAL_MODULES = [
    nn.CELU(), nn.ELU(inplace=True), nn.GELU(), nn.Hardsigmoid(), nn.Hardswish(inplace=True),
    nn.Hardtanh(), nn.Identity(), nn.LeakyReLU(0.2, inplace=True), nn.LogSigmoid(), nn.Mish(),
    nn.PReLU(4), nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SELU(), nn.SiLU(inplace=True),
    nn.Sigmoid(), nn.Softplus(), nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.Dropout(),
    nn.Dropout2d(0.9), GDN(4), GDN(4, inverse=True), GDN1(4), GDN1(4, inverse=True), nn.Softmax(1),
    nn.Softmax2d(), nn.ChannelShuffle(2), nn.Unflatten(1, (2, 2)), nn.BatchNorm2d(4),
]  # fmt: skip

LOCAL_FUNCTIONS: dict[str, Any] = {
    "clamp": lambda m, x: x.clamp(-0.5, 0.5),
    "torch.clamp": lambda m, x: torch.clamp(x, min=0.1),
    "arithmetic": lambda m, x: 2 * x - x**2 / (x.abs() + 1.0) + (-x),
    "reflected": lambda m, x: 1 - (2 / (x.abs() + 1)),
    "where": lambda m, x: torch.where(x > 0, x, x * 0.1),
    "method where": lambda m, x: x.where(x < 0.5, x.neg()),
    "scaled by a weight": lambda m, x: x * m.scale + torch.exp(m.scale),
    "F.relu in place": lambda m, x: F.relu(x * 1, True),
    "F.relu inplace=": lambda m, x: F.relu(x * 1, inplace=True),
    "F.leaky_relu in place": lambda m, x: F.leaky_relu(x * 1, 0.2, True),
    "F.elu in place": lambda m, x: F.elu(x * 1, 0.5, True),
    "F.hardtanh in place": lambda m, x: F.hardtanh(x * 1, -0.2, 0.3, True),
    "F.gelu": lambda m, x: F.gelu(x, approximate="tanh"),
    "F.softplus": lambda m, x: F.softplus(x, 2.0),
    "lerp": lambda m, x: torch.lerp(x, x * x, 0.3),
    "addcmul": lambda m, x: torch.addcmul(x, x, x, value=0.5),
    "cat": lambda m, x: torch.cat([x, x * 2, x[:, :1]], dim=1),
    "cat of negative dim": lambda m, x: torch.cat((x, x.neg()), -3),
    "chunk": lambda m, x: torch.sub(*x.chunk(2, 1)),
    "uneven chunk": lambda m, x: x.chunk(3, 1)[1],
    "split": lambda m, x: torch.split(x, [1, 3], dim=1)[1],
    "split method": lambda m, x: x.split(3, 1)[1],
    "last part": lambda m, x: x.chunk(2, 1)[-1],
    "tensor_split": lambda m, x: torch.tensor_split(x, 3, dim=1)[0],
    "narrow": lambda m, x: x.narrow(1, 1, 2),
    "softmax": lambda m, x: torch.softmax(x, dim=1),
    "mean": lambda m, x: x - x.mean(1, keepdim=True),
    "amax": lambda m, x: torch.amax(x, dim=(1,), keepdim=True) + x,
    "sum, no channel left": lambda m, x: torch.sum(x, 1).unsqueeze(1),
    "var": lambda m, x: x.var(dim=1, keepdim=True, unbiased=False),
    "torch.norm": lambda m, x: torch.norm(x, 2, 1, True),
    "norm": lambda m, x: x.norm(dim=1, keepdim=True),
    "view and permute": lambda m, x: (
        x.view(x.size(0), 2, 2, x.size(2), x.size(3)).permute(0, 2, 1, 3, 4).reshape(x.shape)
    ),
    "view with -1": lambda m, x: x.view(-1, 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
    "F.channel_shuffle": lambda m, x: F.channel_shuffle(x, 2),
    "squeeze": lambda m, x: x[:, :1].unsqueeze(2).squeeze(2),
    "augmented": lambda m, x: operator.iadd(x * 1, 1.0),
    "to": lambda m, x: x.to(torch.float32).double(),
}  # fmt: skip

LOCAL = {
    # times one, since what works in place may not change the stage's own input
    f"{type(op).__name__} {i}": Subject(Functional(lambda m, x: m.op(x * 1), op=op))
    for i, op in enumerate(LOCAL_MODULES)
} | {
    name: Subject(Functional(compute, scale=torch.rand(4, 1, 1))) for name, compute in LOCAL_FUNCTIONS.items()
}


def accepted_input(subject: Subject, height: int, width: int) -> tuple[Tensor, Tensor]:
    """An input of the given size, or of the next larger one that the module accepts, and its output there."""
    for more in range(40):
        shape = 2, subject.channels, (height + more) * subject.multiple, (width + more) * subject.multiple
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(more))
        try:
            with torch.no_grad():
                made = subject.module(x.clone())
        except (RuntimeError, ValueError):
            continue
        if made.numel() > 0:
            return x, made
    raise AssertionError(f"{subject.module} accepts no input")


def drawn_span(data: st.DataObject, size: int) -> Span:
    start = data.draw(st.integers(0, size - 1))
    return Span(start, data.draw(st.integers(start + 1, size)))


def check(subject: Subject, data: st.DataObject) -> None:
    subject.module.double().eval()
    x, whole = accepted_input(subject, data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12)))
    network = trace(subject.module, "stage", subject.channels)
    assert network.rows.sizes(x.shape[2])[-1] == whole.shape[-2]
    assert network.columns.sizes(x.shape[3])[-1] == whole.shape[-1]
    rows, columns = drawn_span(data, whole.shape[-2]), drawn_span(data, whole.shape[-1])
    layout = data.draw(st.sampled_from(["view", "copy", "channels_last"]))
    with torch.no_grad():
        piece = run_on_pieces(network, x, rows, columns, layout)
    wanted = whole[..., rows.start : rows.stop, columns.start : columns.stop]
    assert not wanted.isnan().any()
    torch.testing.assert_close(piece, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", SPATIAL)
@given(data=st.data())
@thorough
def test_pieces_of_spatial_ops(family, data):
    torch.manual_seed(0)
    check(data.draw(SPATIAL[family]), data)


@pytest.mark.parametrize("name", LOCAL)
@given(data=st.data())
@brief
def test_pieces_of_local_ops(name, data):
    check(LOCAL[name], data)


# --- minimality, seen from the original module -----------------------------------------------------------

PROBED = [
    name for name in SPATIAL if name not in ("masked convolutions", "interpolations", "chains", "residuals")
]


def reads_of(subject: Subject, data: st.DataObject, width: int = 1) -> tuple[Tensor, Span, Span]:
    """An input, some rows of the output, and the input rows that the one op is said to read for them."""
    subject.module.double().eval()
    height, width = data.draw(st.integers(1, 14)), data.draw(st.integers(width, width + 4))
    x, whole = accepted_input(subject, height, width)
    network = trace(subject.module, "stage", subject.channels)
    rows = drawn_span(data, whole.shape[-2])
    reads = Plan.of(network.rows, x.shape[-2], rows).spans[0]
    beside = Plan.of(network.columns, x.shape[-1], Span(0, whole.shape[-1])).spans[0]
    assume(not beside.empty)  # else padding alone feeds these rows
    return x, rows, reads


def output_with(subject: Subject, x: Tensor, rows: Span, changed: Span | list[Span], value: float) -> Tensor:
    x = x.clone()
    for span in changed if isinstance(changed, list) else [changed]:
        x[:, :, span.start : span.stop] = value
    with torch.no_grad():
        return subject.module(x)[..., rows.start : rows.stop, :]


@pytest.mark.parametrize("family", PROBED)
@given(data=st.data())
@thorough
def test_no_sample_outside_reads_matters_and_its_ends_do(family, data):
    torch.manual_seed(0)
    subject = data.draw(SPATIAL[family])
    x, rows, reads = reads_of(subject, data)
    outside = [Span(0, reads.start), Span(reads.stop, x.shape[-2])]
    assert not output_with(subject, x, rows, outside, torch.nan).isnan().any()
    if not reads.empty:
        for end in (Span(reads.start, reads.start + 1), Span(reads.stop - 1, reads.stop)):
            assert output_with(subject, x, rows, end, torch.nan).isnan().any()


@given(data=st.data())
@thorough
def test_masked_convolutions_read_exactly_their_open_taps(data):
    # zero weights times NaN are NaN, so these are probed with other numbers
    torch.manual_seed(0)
    subject = data.draw(masked_convs())
    # in a narrow image, the open taps of a row may all lie beyond its columns
    x, rows, reads = reads_of(subject, data, width=12)
    usual = output_with(subject, x, rows, [], 0.0)
    outside = [Span(0, reads.start), Span(reads.stop, x.shape[-2])]
    torch.testing.assert_close(output_with(subject, x, rows, outside, 9.0), usual, rtol=0, atol=TOLERANCE)
    if not reads.empty:
        for end in (Span(reads.start, reads.start + 1), Span(reads.stop - 1, reads.stop)):
            assert (output_with(subject, x, rows, end, 9.0) - usual).abs().max() > 1e-6


# --- regressions -----------------------------------------------------------------------------------------


def whole_and_pieces(module: nn.Module, x: Tensor, rows: Span, columns: Span) -> tuple[Tensor, Tensor]:
    module.double().eval()
    with torch.no_grad():
        whole = module(x.clone())
        piece = run_on_pieces(trace(module, "stage", x.shape[1]), x, rows, columns)
    return whole[..., rows.start : rows.stop, columns.start : columns.stop], piece


def ramp(channels: int, height: int, width: int) -> Tensor:
    return torch.arange(2.0 * channels * height * width, dtype=torch.float64).reshape(
        2, channels, height, width
    )


def test_a_reflecting_pad_whose_subclass_only_sets_options_still_reflects():
    class Framed(nn.ReflectionPad2d):
        def __init__(self) -> None:
            super().__init__(2)

    torch.testing.assert_close(*whole_and_pieces(Framed(), ramp(1, 5, 6), Span(0, 3), Span(1, 10)))


def test_two_rolls_of_the_same_rows_add_up():
    module = Functional(lambda m, x: torch.roll(x, (1, 3), (2, -2)))
    torch.testing.assert_close(*whole_and_pieces(module, ramp(1, 7, 3), Span(0, 2), Span(0, 3)))


def test_a_roll_further_than_the_image():
    module = Functional(lambda m, x: torch.roll(x, 17, 2))
    torch.testing.assert_close(*whole_and_pieces(module, ramp(1, 7, 3), Span(0, 2), Span(0, 3)))


def test_a_dilated_reflecting_convolution_whose_border_lies_between_its_taps():
    torch.manual_seed(0)
    module = nn.Conv2d(1, 1, 2, 4, 1, 2, padding_mode="reflect")
    x = torch.randn(2, 1, 11, 11, dtype=torch.float64)
    torch.testing.assert_close(*whole_and_pieces(module, x, Span(0, 2), Span(1, 3)))


def test_batch_normalisation_uses_its_stored_figures_in_training_mode_too():
    module = nn.BatchNorm2d(3).double()
    module.running_mean.uniform_()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    network = trace(module.train(), "stage", 3)
    before = module.running_mean.clone()
    piece = run_on_pieces(network, x, Span(0, 4), Span(0, 2))
    assert torch.equal(module.running_mean, before)
    torch.testing.assert_close(piece, module.eval()(x)[..., :2])


def test_outputs_of_a_transposed_convolution_that_no_input_feeds_are_its_bias():
    module = nn.ConvTranspose2d(2, 3, 1, 4, 0, 3)
    rows, columns = Span(1, 4), Span(5, 8)
    whole, piece = whole_and_pieces(module, ramp(2, 3, 3), rows, columns)
    torch.testing.assert_close(whole, piece)
    assert torch.equal(piece, module.bias[:, None, None].expand_as(piece))
