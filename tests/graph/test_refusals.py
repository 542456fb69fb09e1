"""What no finite overlap serves is refused with its real reason; and whatever is analysed is analysed right.

The blocks are stand-ins for published models, and a list of ways to mix positions. Each is either refused, or
its claimed dependence holds the one found by disturbing the original module, and its tiles give its output.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from einops import rearrange, reduce
from support.foreign_blocks import (
    AfterConv,
    FrequencyAwareBlock,
    FrequencyModulation,
    SelectiveScan2D,
    WindowAttention,
    from_windows,
    in_windows,
)
from support.probes import COLUMNS, ROWS, perturbation_dependence
from torch import Tensor, fx, nn

import overlap_tool
from overlap_tool.errors import (
    GlobalOpError,
    SizeDependenceError,
    TraceError,
    UnknownOpError,
)
from overlap_tool.geometry import Span
from overlap_tool.geometry.layout import Layout
from overlap_tool.graph import explaining
from overlap_tool.graph.explaining import explained
from overlap_tool.graph.spread import Extent, spread
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.graph.tracer import Tracer

pytestmark = pytest.mark.usefixtures("one_thread")


def traced_numbers() -> bool:
    """Whether PyTorch records a function that is given a traced number; 2.6 refuses it."""
    try:
        fx.symbolic_trace(lambda x: torch.arange(x.numel()))
    except TypeError:
        return False
    return True


TRACED_NUMBERS = traced_numbers()


@pytest.fixture
def enough_time(monkeypatch) -> None:
    """For a trial, on a machine that does much else."""
    monkeypatch.setattr(explaining, "SECONDS", 60)


def refusal(block: nn.Module) -> TraceError:
    with pytest.raises(TraceError) as caught:
        trace(AfterConv(block).eval(), "stage", 3)
    return caught.value


def test_a_refusal_is_one_message_and_no_log() -> None:
    """PyTorch printed a traceback beside it."""
    told: list[logging.LogRecord] = []
    listening = logging.Handler()
    listening.emit = told.append
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(listening)
    try:
        error = refusal(nn.Sequential(Doing(lambda m, x: x + m.wide(x)[..., 1:])))
    finally:
        log.removeHandler(listening)
    assert "refuses a trial input" in error.reason
    assert told == []


class Positions(nn.Module):
    """Adds an embedding of every position, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mixed = nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 8)
        self.embedding = nn.Parameter(torch.zeros(1, 196, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(self.patches(x).flatten(2).mT + self.embedding).mT.unflatten(2, (14, 14))


class Asserting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == 100, "the image has to be 100 pixels high")
        return x.narrow(2, 1, 50)


class Classifying(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 28 * 28, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).flatten(1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Positions(), r"^made: is made for images of 224x224 alone, and add refuses .*196"),
        (Asserting(), r"is made for images of 100x100 alone, and fails by itself, .*100 pixels high\. Bring"),
        (Classifying(), r"^made\.last: is made for images of 28x28 alone, and made\.last|last refuses"),
    ],
    ids=["positions", "asserting", "classifying"],
)
def test_a_network_for_one_size_is_refused_as_such(monkeypatch, model, reason) -> None:
    monkeypatch.setattr(explaining, "SECONDS_FOR_SIZES", 60)
    with pytest.raises(TraceError, match=reason):
        trace(model.eval(), "made", 3)


class Misjoining(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


@pytest.mark.parametrize("model", [nn.Conv2d(4, 3, 3), Misjoining(3, 3, 3)])
def test_one_that_refuses_every_size_is_not(monkeypatch, model) -> None:
    monkeypatch.setattr(explaining, "SECONDS_FOR_SIZES", 60)
    with pytest.raises(TraceError, match=r"refuses a trial input|fails by itself") as caught:
        trace(model.eval(), "made", 3)
    assert "made for images" not in str(caught.value)


def test_there_is_a_limit_to_the_time_that_is_spent_on_sizes(monkeypatch) -> None:
    monkeypatch.setattr(explaining, "SECONDS_FOR_SIZES", 0)
    with pytest.raises(TraceError, match=r"^made: add refuses a trial input"):
        trace(Positions().eval(), "made", 3)


# --- published models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "kind", "where", "reasons"),
    [
        (
            FrequencyAwareBlock(4),
            UnknownOpError,
            "stage.block.modulation.fft_rfft2 (fft_rfft2)",
            ["takes a map whose dimensions are not images, channels, rows and columns"],
        ),
        pytest.param(
            SelectiveScan2D(4),
            SizeDependenceError,
            "stage.block.assign (assign)",
            ["made by the size of its input alone", "up to the opposite one", "is not known"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["FTIC", "MambaVC"],
)  # fmt: skip
def test_published_blocks_are_refused_for_the_first_obstacle(block, kind, where, reasons, enough_time):
    error = refusal(block)
    assert type(error) is kind
    assert error.where == where
    for reason in reasons:
        assert reason in error.reason
    assert "no finite overlap" not in str(error)
    assert error.way_out


def test_of_windows_that_do_not_wrap_a_trial_tells_nothing() -> None:
    error = refusal(FrequencyModulation(4))
    assert type(error) is UnknownOpError
    assert "opposite" not in error.reason


def test_a_part_that_is_given_several_maps_is_judged_by_the_one_around_it(enough_time) -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x * torch.sort(y.flatten(2), -1)[0].view(y.shape)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate()

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(x, x + 1)

    error = refusal(Block())
    assert (type(error), error.where) == (UnknownOpError, "stage.block.gate.getitem (sort)")
    assert "stage.block (Block) takes was seen up to the opposite one" in error.reason


# --- the first obstacle, and no guess behind it ------------------------------------------------------------


class LacksOneRule(nn.Module):
    """A network that only its first op keeps from being tiled."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.special.bessel_j0(x))


class Squeezed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


@pytest.mark.parametrize(
    "body",
    [
        nn.Sequential(*(nn.Conv2d(4, 4, 63, padding=31, groups=4) for _ in range(8))),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Squeezed()),
    ],
    ids=["reaches past the trial", "has a barrier that is known"],
)
def test_the_first_obstacle_is_the_reason_and_not_what_comes_after_it(body, enough_time) -> None:
    """Both were said to mix the whole map, so that no finite overlap were enough."""
    trace(AfterConv(body).eval(), "stage", 3)
    error = refusal(LacksOneRule(body))
    where = "stage.block.special_bessel_j0 (special_bessel_j0)"
    assert (type(error), error.where) == (UnknownOpError, where)
    assert error.reason.startswith("no rule knows this op")
    assert "is not known" in error.reason
    assert "no finite overlap" not in str(error)


@pytest.mark.parametrize("slow", ["forward", "copy", "gradient"])
def test_an_explanation_is_over_within_a_second(slow) -> None:
    """It took as long as the part does on a small map: minutes, for some."""

    class Slow(nn.Module):
        def __deepcopy__(self, memo: Any) -> nn.Module:
            if slow == "copy":
                _take_long(torch.ones(4))
            return Slow()

        def forward(self, x: Tensor) -> Tensor:
            if slow == "forward":
                _take_long(x)
            return _Slowly.apply(x) if slow == "gradient" else x

    class _Slowly(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return _take_long(gradient)

    tracer = Tracer("stage", Slow(), Layout.of_map(3))
    tracer.root = Slow()
    began = time.monotonic()
    error = explained(UnknownOpError("stage", "lacks a rule", ""), tracer)
    assert time.monotonic() - began < 1.5
    assert "is not known: a trial was stopped after" in error.reason


def _take_long(x: Tensor) -> Tensor:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        x = x + 0
    return x


# --- the probe itself --------------------------------------------------------------------------------------


class Doing(nn.Module):
    """One function of a map, with three 1x1 convolutions at hand."""

    def __init__(self, compute: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.offsets = nn.Conv2d(4, 18, 1)
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.norm = nn.LayerNorm(4)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.wide = nn.Conv2d(4, 4, (1, 63), padding=(0, 31))
        self.compute = compute

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


def test_a_scan_that_forgets_is_seen_by_its_gradient() -> None:
    def forgetting(m: Any, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[..., 0]), []
        for column in x.unbind(-1):
            state = 0.1 * state + column
            states.append(state)
        return torch.stack(states, dim=-1)

    found = spread(Doing(forgetting), 4)
    assert found is not None
    assert (found.reach, found.line) == (Extent.EVERYWHERE, "column")


@pytest.mark.parametrize(
    ("compute", "reach"),
    [
        (lambda m, x: m.wide(m.wide(x)), Extent.NEAR),
        (lambda m, x: torch.roll(x, 3, 3), Extent.OPPOSITE_BORDER),
        (lambda m, x: torch.roll(x, 3, 2), Extent.OPPOSITE_BORDER),
        (lambda m, x: x.flip(3), Extent.OPPOSITE_BORDER),
        (lambda m, x: m.wide(x.flip(3)).flip(3), Extent.NEAR),
        (lambda m, x: x.transpose(2, 3), None),
        (lambda m, x: x.mean((2, 3)), None),
        (lambda m, x: x + torch.rand_like(x), None),
        (lambda m, x: 1 / 0, None),
        (lambda m, x: x - x.mean(3, keepdim=True), Extent.EVERYWHERE),
        (lambda m, x: x - x.mean(2, keepdim=True), Extent.EVERYWHERE),
    ],
)  # fmt: skip
def test_how_far_a_change_is_seen(compute, reach) -> None:
    found = spread(Doing(compute), 4)
    assert (None if found is None else found.reach) is reach


def test_a_masked_shift_does_not_wrap() -> None:
    """Swin's mask of -100 lets next to nothing through, and that is what it is taken for."""

    class Masked(WindowAttention):
        def forward(self, x: Tensor) -> Tensor:
            b, _, h, w = x.shape
            region = torch.zeros(1, 1, h, w, dtype=x.dtype)
            cuts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
            for i, rows in enumerate(cuts):
                for j, columns in enumerate(cuts):
                    region[..., rows, columns] = 3 * i + j
            of = in_windows(region, self.window)
            mask = ((of != of.transpose(1, 2)) * -100.0).repeat(b, 1, 1)
            rolled = torch.roll(x, (-self.shift, -self.shift), (2, 3))
            q, k, v = self.qkv(in_windows(rolled, self.window)).chunk(3, dim=-1)
            mixed = (q @ k.transpose(-2, -1) + mask).softmax(dim=-1) @ v
            return torch.roll(from_windows(mixed, self.window, x), (self.shift, self.shift), (2, 3))

    torch.manual_seed(0)
    masked, unmasked = spread(Masked(4, shift=2), 4), spread(WindowAttention(4, shift=2), 4)
    assert masked is not None
    assert unmasked is not None
    assert (masked.reach, unmasked.reach) == (Extent.NEAR, Extent.OPPOSITE_BORDER)


# --- ways to mix positions: refused, or right --------------------------------------------------------------


def scan_rows(m: Any, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, :, 0]), []
    for i in range(x.shape[2]):
        state = 0.9 * state + x[:, :, i]
        states.append(state)
    return torch.stack(states, 2)


def attend(m: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).view(x.shape)


def recur(m: Any, x: Tensor) -> Tensor:
    return m.rnn(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)


def linear_by_einsum(m: Any, x: Tensor) -> Tensor:
    context = torch.einsum("bchw,bdhw->bcd", m.k(x), m.v(x))
    return torch.einsum("bcd,bchw->bdhw", context, m.q(x))


def filtered(m: Any, x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[-2:])


def clamped_neighbours(m: Any, x: Tensor) -> Tensor:
    return x[:, :, (torch.arange(x.shape[2]) - 1).clamp(0)]


def to_the_size_of(m: Any, x: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(x, 2), size=x.shape[-2:])


def deformed(m: Any, x: Tensor) -> Tensor:
    return torchvision.ops.deform_conv2d(x, m.offsets(x), m.weight, padding=1)


def looked_up(m: Any, x: Tensor) -> Tensor:
    return F.grid_sample(x, m.q(x).permute(0, 2, 3, 1)[..., :2], align_corners=False)


def space_to_depth(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


GLOBAL = {
    "scan over rows": scan_rows,
    "attention": attend,
    "recurrent": recur,
    "linear attention, einsum": linear_by_einsum,
    "fft of the map": filtered,
    "inverse fft": lambda m, x: torch.fft.irfft(x, n=8, dim=-1),
    "matmul of maps": lambda m, x: m.q(x) @ m.k(x).transpose(2, 3) @ m.v(x),
    "cumsum": lambda m, x: x.cumsum(3),
    "cummax": lambda m, x: x.cummax(2)[0],
    "logcumsumexp": lambda m, x: torch.logcumsumexp(x, 3),
    "argsort of columns": lambda m, x: torch.gather(x, 3, x.argsort(-1)),
    "argsort of positions": lambda m, x: torch.gather(
        x.flatten(2), -1, x.flatten(2).argsort(-1)
    ).view(x.shape),
    "topk of positions": lambda m, x: x * x.flatten(2).topk(4, -1)[0][..., -1:, None],
    "maximum of rows": lambda m, x: x / x.max(3, keepdim=True)[0],
    "maximum": lambda m, x: x / x.max(),
    "median": lambda m, x: x - x.median(),
    "normalised rows": lambda m, x: F.normalize(x, dim=-1),
    "largest number": lambda m, x: x / torch.linalg.vector_norm(x, torch.inf, (2, 3), True),
    "figures of the batch": lambda m, x: F.batch_norm(x, None, None, training=True),
    "LayerNorm of the map": lambda m, x: F.layer_norm(x, x.shape[1:]),
    "mean": lambda m, x: x - x.mean(),
    "reduce": lambda m, x: x - reduce(x, "b c h w -> b c 1 1", "mean"),
}  # fmt: skip

KNOWN = {
    "linear attention, einsum", "fft of the map", "inverse fft", "cumsum", "logcumsumexp", "largest number",
    "figures of the batch", "mean", "maximum of rows", "maximum", "LayerNorm of the map", "attention",
    "matmul of maps", "normalised rows",
}  # fmt: skip
"""Those whose op a rule knows, and refuses for that. Of the others, a trial sees how far they read."""

OTHERS = {
    "unfold": lambda m, x: F.unfold(x, 3, padding=1).view(x.shape[0], 4, 9, *x.shape[2:]).sum(2),
    "fold": lambda m, x: F.fold(F.unfold(x, 4, stride=4), x.shape[-2:], 4, stride=4),
    "clamped neighbours": clamped_neighbours,
    "LayerNorm of channels last": lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "linear of channels last": lambda m, x: F.linear(x.movedim(1, -1), m.q.weight[:, :, 0, 0]).movedim(-1, 1),
    "channels last, einops": lambda m, x: rearrange(
        torch.tanh(m.norm(rearrange(x, "b c h w -> b h w c"))), "b h w c -> b c h w"
    ),
    "heads behind the map": lambda m, x: F.layer_norm(
        rearrange(x, "b (n d) h w -> b n h w d", n=2), (2,)
    ).permute(0, 1, 4, 2, 3).flatten(1, 2),
    "channels between rows and columns": lambda m, x: x.permute(0, 2, 1, 3).tanh().permute(0, 2, 1, 3),
    "columns before rows": lambda m, x: m.norm(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1),
    "columns before rows, einops": lambda m, x: rearrange(
        m.norm(rearrange(x, "b c h w -> b w h c")), "b w h c -> b c h w"
    ),
    "slice of channels last": lambda m, x: x.permute(0, 2, 3, 1)[..., :4].permute(0, 3, 1, 2),
    "softmax of channels last": lambda m, x: x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2),
    "interpolation to a size": to_the_size_of,
    "deformable": deformed,
    "grid_sample": looked_up,
    "space to depth": space_to_depth,
    "space to depth, einops": lambda m, x: rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2),
    "rows in another order, einops": lambda m, x: rearrange(x, "b c (p h) w -> b c (h p) w", p=2),
    "roll": lambda m, x: torch.roll(x, (2, -3), (2, 3)),
    "roll, masked by hand": lambda m, x: torch.roll(F.pad(x, (2, 0, 0, 0)), -1, 3),
    "rolled there and back": lambda m, x: torch.roll(m.wide(torch.roll(x, 5, 3)), -5, 3),
    "roll by half": lambda m, x: torch.roll(x, x.shape[2] // 2, 2),
    "roll of the flattened": lambda m, x: torch.roll(x, 1),
    "mirrored": lambda m, x: m.wide(x.flip(3)).flip(3),
    "turned": lambda m, x: m.wide(x.transpose(2, 3)).transpose(2, 3),
    "checkerboard": lambda m, x: x * torch.ones_like(x).tril(),
    "positions": lambda m, x: x + torch.linspace(0, 1, x.shape[3]),
    "prefix sums": lambda m, x: x + F.pad(x, (1, 0))[..., :-1] + F.pad(x, (5, 0))[..., :-5],
    "heads": lambda m, x: (rearrange(x, "b (n d) h w -> b n d h w", n=2) ** 2).sum(1),
    "heads moved": lambda m, x: rearrange(x, "b (n d) h w -> b (d n) h w", n=2, h=x.shape[2]),
    "cumsum of channels": lambda m, x: x.cumsum(1),
    "strided": lambda m, x: x[..., ::2, 1::3],
    "cropped": lambda m, x: m.wide(x[..., 2:-3]),
    "maximum of channels": lambda m, x: x - x.amax(1, keepdim=True),
    "columns beside columns": lambda m, x: torch.cat([x[..., ::2], x[..., 1::2]], 3),
    "fft of channels": lambda m, x: torch.fft.fft(x, dim=1).real,
}  # fmt: skip

ANALYSED = {
    "roll", "roll, masked by hand", "rolled there and back", "prefix sums", "heads", "heads moved",
    "cumsum of channels", "strided", "cropped", "maximum of channels", "LayerNorm of channels last",
    "linear of channels last", "channels last, einops", "heads behind the map", "interpolation to a size",
    "roll by half", "slice of channels last", "softmax of channels last", "positions", "unfold", "fold",
    "channels between rows and columns", "columns before rows", "columns before rows, einops",
    "space to depth", "space to depth, einops",
}  # fmt: skip

IN_BLOCKS = {"fold", "space to depth", "space to depth, einops"}

CHANGE_CHANNELS = {"heads", "space to depth", "space to depth, einops"}


@pytest.mark.parametrize("name", GLOBAL)
def test_whatever_mixes_the_whole_map_is_refused(name, enough_time) -> None:
    error = refusal(Doing(GLOBAL[name]))
    assert error.where.startswith("stage.block")
    if name in KNOWN:
        assert type(error) is GlobalOpError, error
        assert "no finite overlap is enough" in error.reason
    else:
        assert type(error) is not GlobalOpError, error
        assert "up to the opposite one: whether a finite overlap is enough is not known" in error.reason


@pytest.mark.parametrize("name", OTHERS)
def test_other_ways_to_mix_positions_are_refused_or_right(name) -> None:
    torch.manual_seed(0)
    stage = AfterConv(Doing(OTHERS[name])).double().eval()
    if name not in ANALYSED:
        with pytest.raises(TraceError) as caught:
            trace(stage, "stage", 3)
        telling = UnknownOpError, SizeDependenceError
        assert type(caught.value) in (telling if TRACED_NUMBERS else (*telling, TraceError))
        return
    network = trace(stage, "stage", 3)
    height, width = (40, 76) if name in IN_BLOCKS else (41, 77)
    for dim, n in ((ROWS, height), (COLUMNS, width)):
        shape = (n, 20) if dim == ROWS else (20, n)
        of_size = fitted(network, 1, *shape)
        axis = of_size.rows if dim == ROWS else of_size.columns
        real = perturbation_dependence(stage, torch.rand(1, 3, *shape, dtype=torch.float64), dim)
        assert len(real) == axis.sizes(n)[-1]
        for output, inputs in enumerate(real):
            claimed = axis.needs({len(axis.ops) - 1: Span(output, output + 1)}, axis.sizes(n))[0]
            missed = [i for i in inputs.nonzero().flatten().tolist() if not claimed.start <= i < claimed.stop]
            assert missed == [], f"output {output}"
    assert_tiles_are_right(stage, height, width)


def assert_tiles_are_right(stage: nn.Module, height: int = 41, width: int = 77) -> None:
    image = torch.rand(1, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        whole = stage(image.clone())
        for schedule in ("stream", "tiles"):
            tiled = overlap_tool.wrap(stage, tile=(17, 13), schedule=schedule, engine="stock")
            torch.testing.assert_close(tiled(image.clone()), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 500))]
)
def test_chains_drawn_at_random_are_refused_or_right(seed) -> None:
    """Every fourth one may have an op in it that no rule knows: refused, or kept whole if coarser."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    pool = {**GLOBAL, **OTHERS} if seed % 4 == 0 else {name: OTHERS[name] for name in ANALYSED}
    four = sorted(pool.keys() - CHANGE_CHANNELS - IN_BLOCKS)
    chosen = [draw.choice(four) for _ in range(draw.randint(1, 4))]
    stage = AfterConv(nn.Sequential(*(Doing(pool[name]) for name in chosen))).double().eval()
    try:
        network = trace(stage, "stage", 3)
    except TraceError:
        assert not ANALYSED.issuperset(chosen)
    else:
        assert ANALYSED.issuperset(chosen) or network.parts_whole
        assert_tiles_are_right(stage)


class Beside(nn.Module):
    """A map, and something made beside it."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self.conv(x))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "takes a tensor that is made by the size of its input alone"),
        ("rand", "draws random numbers"),
        ("randn", "draws random numbers"),
    ],
)
def test_sizes_given_one_by_one_are_no_wrong_number_of_arguments(name, reason) -> None:
    """The reason was "zeros() takes 1 positional argument but 2 were given"."""
    make = getattr(torch, name)
    with pytest.raises(TraceError, match=reason):
        trace(Beside(lambda x: x + getattr(torch, name)(x.shape[2], x.shape[3])).eval(), "it", 3)
    assert getattr(torch, name) is make
