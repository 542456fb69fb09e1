"""Code that moves axes about: tokens, windows, blocks as channels, attention between channels.

Each module is written as published networks write it, with plain ops, and held to its own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from support.foreign_blocks import AfterConv, LinearAttention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.swin_transformer import SwinTransformerBlock, SwinTransformerBlockV2

import overlap_tool
from overlap_tool.errors import GlobalOpError, TraceError
from overlap_tool.geometry import Span
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.kernels.compositions import tree_sum
from overlap_tool.rules.barriers import Tree
from overlap_tool.runtime.execute import evaluate_constants

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS = 8


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor], channels: int = CHANNELS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.norm = nn.LayerNorm(CHANNELS)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.inside = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.temperature = nn.Parameter(torch.rand(2, 1, 1) + 0.5)
        self.tail = nn.Conv2d(channels, 3, 3, padding=1)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.compute(self, self.head(x)))


def partition(x: Tensor, rows: int, columns: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // rows, rows, w // columns, columns, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, c)


def reverse(windows: Tensor, rows: int, columns: int, h: int, w: int) -> Tensor:
    b = windows.shape[0] // (h // rows * (w // columns))
    x = windows.view(b, h // rows, w // columns, rows, columns, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)


def mask(h: int, w: int, size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    regions = torch.zeros(1, h, w, 1)
    number = 0
    for down in (slice(0, -size[0]), slice(-size[0], -shift[0]), slice(-shift[0], None)):
        for across in (slice(0, -size[1]), slice(-size[1], -shift[1]), slice(-shift[1], None)):
            regions[:, down, across, :] = number
            number += 1
    tokens = partition(regions, *size).squeeze(-1)
    apart = tokens.unsqueeze(1) - tokens.unsqueeze(2)
    return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)


def attend(m: Any, windows: Tensor, closed: Tensor | None = None) -> Tensor:
    count, tokens, c = windows.shape
    q, k, v = m.qkv(windows).reshape(count, tokens, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    scores = (q * (c // 2) ** -0.5) @ k.transpose(-2, -1)
    if closed is not None:
        n = closed.shape[0]
        scores = scores.view(count // n, n, 2, tokens, tokens) + closed.unsqueeze(1).unsqueeze(0)
        scores = scores.view(-1, 2, tokens, tokens)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, tokens, c)


def windows(size: tuple[int, int], shift: tuple[int, int] = (0, 0), masked: bool = True) -> Any:
    def compute(m: Any, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        tokens = m.norm(x.permute(0, 2, 3, 1))
        closed = None
        if any(shift):
            tokens = torch.roll(tokens, (-shift[0], -shift[1]), (1, 2))
            closed = mask(h, w, size, shift) if masked else None
        found = reverse(attend(m, partition(tokens, *size), closed), *size, h, w)
        if any(shift):
            found = torch.roll(found, shift, (1, 2))
        return x + found.permute(0, 3, 1, 2)

    return compute


def tokens_and_back(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    tokens = m.norm(x.flatten(2).transpose(1, 2))
    q, k, v = m.qkv(tokens).chunk(3, dim=-1)
    return (q * k.sigmoid() + v).transpose(1, 2).view(b, c, h, w)


def blocks_as_channels(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
    return F.avg_pool2d(x, 3, 1, 1)


def channels_as_blocks(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = x.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
    return F.avg_pool2d(x, 3, 1, 1)


def convolved_inside_windows(m: Any, x: Tensor) -> Tensor:
    _, c, h, w = x.shape
    tokens = x.permute(0, 2, 3, 1)
    tiles = partition(tokens, 4, 8).transpose(1, 2).reshape(-1, c, 4, 8)
    tiles = m.inside(tiles) + tiles.amax((2, 3), keepdim=True)
    return reverse(tiles.flatten(2).transpose(1, 2), 4, 8, h, w).permute(0, 3, 1, 2)


def between_channels(m: Any, x: Tensor) -> Tensor:
    _, _, h, w = x.shape
    q, k, v = (rearrange(part, "b (head c) h w -> b head c (h w)", head=2) for part in (x, x.tanh(), x.sin()))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    scores = (q @ k.transpose(-2, -1)) * m.temperature
    return rearrange(scores.softmax(-1) @ v, "b head c (h w) -> b (head c) h w", h=h, w=w)


def global_context(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    weights = x.mean(1, keepdim=True).view(b, 1, h * w).softmax(-1).unsqueeze(-1)
    context = torch.matmul(x.view(b, c, h * w).unsqueeze(1), weights)
    return x + context.view(b, c, 1, 1)


def linear_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (rearrange(part, "b (n d) h w -> b n d (h w)", n=2) for part in (x, x.sin(), x.tanh()))
    found = torch.einsum("bnde,bndl->bnel", k.softmax(-1) @ v.transpose(-1, -2), q.softmax(2))
    return rearrange(found, "b n e (h w) -> b (n e) h w", h=x.shape[2])


def mean_of_tokens(m: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    tokens = tokens - tokens.mean(1, keepdim=True) + tokens.amax(1, keepdim=True)
    tokens = tokens / tokens.std(1, keepdim=True)
    return tokens.transpose(1, 2).view(x.shape)


def overlapping_windows(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    q = partition(x.permute(0, 2, 3, 1), 4, 4)
    k = F.unfold(x, 8, stride=4, padding=2)
    k = k.view(b, c, 64, -1).permute(0, 3, 2, 1).reshape(-1, 64, c)
    scores = torch.einsum("nqc,nkc->nqk", q, k).softmax(-1)
    found = torch.einsum("nqk,nkc->nqc", scores, k)
    return reverse(found, 4, 4, h, w).permute(0, 3, 1, 2)


def folded(m: Any, x: Tensor) -> Tensor:
    patches = F.unfold(x, 5, stride=3, padding=1)
    return F.fold(patches * patches.sigmoid(), x.shape[2:], 5, stride=3, padding=1)


def by_torchs_attention(m: Any, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    parts = m.qkv(partition(x.permute(0, 2, 3, 1), 4, 4)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)
    found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return reverse(found, 4, 4, h, w).permute(0, 3, 1, 2)


def by_unfolding_rows_and_columns(m: Any, x: Tensor) -> Tensor:
    patches = x.unfold(2, 4, 2).unfold(3, 4, 2)
    return patches.mean((-2, -1)) - patches.amax((4, 5))


ANY_SIZE = (tokens_and_back, between_channels, global_context, linear_attention, mean_of_tokens)

EVEN = {
    "windows": windows((4, 4)),
    "rectangular windows": windows((4, 8)),
    "shifted windows": windows((4, 4), (2, 2)),
    "shifted on one axis, and other windows": windows((8, 4), (3, 1)),
    "blocks as channels": blocks_as_channels,
    "channels as blocks": channels_as_blocks,
    "convolved inside windows": convolved_inside_windows,
    "overlapping windows": overlapping_windows,
    "folded": folded,
    "torch's attention": by_torchs_attention,
    "unfolded": by_unfolding_rows_and_columns,
}

WIDTHS = {"blocks as channels": 32, "channels as blocks": 2}


def assert_equal(module: nn.Module, *sizes: tuple[int, int]) -> None:
    module.eval()
    for options in ({"schedule": "stream"}, {"schedule": "tiles"}, {"schedule": "tiles", "batch": 3}):
        tiled = overlap_tool.wrap(module, tile=(16, 24), **options)
        for height, width in sizes:
            image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
            with torch.no_grad(), overlap_tool.exact_kernels():
                assert torch.equal(tiled(image), module(image)), (options, height, width)


@pytest.mark.parametrize("compute", ANY_SIZE, ids=lambda compute: compute.__name__)
def test_tokens_and_channels(compute: Any) -> None:
    assert_equal(Between(compute), (48, 64), (37, 45))


def test_the_context_of_mlic() -> None:
    """It was refused, and kept whole."""
    assert_equal(AfterConv(LinearAttention(4)), (48, 64), (37, 45))


@pytest.mark.parametrize("name", EVEN)
def test_windows_and_blocks(name: str) -> None:
    sizes = [(48, 64), (32, 96)]
    assert_equal(Between(EVEN[name], WIDTHS.get(name, CHANNELS)), *sizes)


@pytest.mark.parametrize("version", [SwinTransformerBlock, SwinTransformerBlockV2])
def test_the_blocks_of_torchvision(version: Any) -> None:
    """Their function is given to `torch.fx.wrap`; the second writes into a part of its bias."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Conv2d(3, 8, 2, 2)
            self.blocks = nn.Sequential(*(version(8, 2, [4, 4], [shift, shift]) for shift in (0, 2)))

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(self.head(x).permute(0, 2, 3, 1))

    assert_equal(Blocks(), (48, 64), (54, 44))


def test_masks_that_are_made_alike_are_made_once_and_nothing_else_is_kept() -> None:
    """Every block of a network makes its own: of many blocks they would fill the memory."""
    block = windows((4, 4), (2, 2))
    network = fitted(trace(Between(lambda m, x: block(m, block(m, x))).eval(), ""), 1, 48, 64)
    values = [value for value in evaluate_constants(network).values() if isinstance(value, Tensor)]
    of_the_map = [value for value in values if value.numel() >= 48 * 64]
    assert len(of_the_map) == 2
    assert len({value.data_ptr() for value in of_the_map}) == 1


def test_a_roll_without_a_mask_is_refused_by_name() -> None:
    with pytest.raises(GlobalOpError, match="opposite border") as caught:
        trace(Between(windows((4, 4), (2, 2), masked=False)).eval(), "stage")
    assert "roll" in caught.value.where


def test_a_circular_pad_is_no_roll() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        x = F.pad(x, (2, 2, 2, 2), "circular")
        h, w = x.shape[2:]
        found = reverse(attend(m, partition(x.permute(0, 2, 3, 1), 4, 4)), 4, 4, h, w)
        return torch.roll(found, (-2, -2), (1, 2)).permute(0, 3, 1, 2)

    module = Between(compute).eval()
    assert trace(module, "").shifted == ()
    assert_equal(module, (32, 40))


def test_a_mask_for_one_axis_alone_is_not_enough() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        tokens = torch.roll(x.permute(0, 2, 3, 1), (-2, -2), (1, 2))
        closed = mask(h, w, (4, 4), (2, 2))
        closed = closed.view(h // 4, w // 4, 16, 16)[:, :1].expand(-1, w // 4, -1, -1).reshape(-1, 16, 16)
        found = reverse(attend(m, partition(tokens, 4, 4), closed), 4, 4, h, w)
        return torch.roll(found, (2, 2), (1, 2)).permute(0, 3, 1, 2)

    with pytest.raises(GlobalOpError, match="opposite border"):
        trace(Between(compute).eval(), "stage")


def test_the_last_part_may_be_one_that_is_kept_whole() -> None:
    """What nobody reads but the caller was not found among what is read."""

    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(2)[0]

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 3, 3, padding=1), Sorted())
    assert trace(module.eval(), "").parts_whole == {"2"}
    assert_equal(module, (48, 64))


def test_a_matrix_transposed_by_its_attribute() -> None:
    assert_equal(Between(lambda m, x: 2 * x.mT.mT), (48, 64))


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (
            lambda m, x: attend(m, x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape),
            "every position",
        ),
        (lambda m, x: x.view(*x.shape[:2], 4, x.shape[2] // 4, x.shape[3]).sum(2), "a fixed number of parts"),
        (lambda m, x: x.permute(0, 1, 3, 2), "dimensions are not images"),
    ],
)
def test_what_mixes_all_positions_is_refused(compute: Any, reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        trace(Between(compute).eval(), "stage")


@tries(200)
@given(st.data())
def test_a_tree_does_not_depend_on_where_parts_end(data: Any) -> None:
    length = data.draw(st.integers(1, 70))
    ends = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=8))) if length > 1 else []
    values = torch.rand(2, length, 3, generator=torch.Generator().manual_seed(length))
    tree = Tree("sum", 1)
    for part in values.tensor_split(ends, 1):
        tree.add(part)
    assert torch.equal(tree.total(), tree_sum(values, [1]))


def test_attention_has_the_same_bits_by_either_of_pytorchs_functions() -> None:
    q, k, v = (torch.randn(3, 2, 20, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    closed = torch.rand(20, 20, generator=torch.Generator().manual_seed(3)) < 0.3
    closed[:, 5] = True  # nothing is left of one column
    for mask in (None, torch.zeros(20, 20).masked_fill(closed, -torch.inf), ~closed):
        with torch.no_grad(), overlap_tool.exact_kernels():
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            with sdpa_kernel(SDPBackend.MATH):
                assert torch.equal(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), found)
            part = F.scaled_dot_product_attention(q[1:], k[1:], v[1:], attn_mask=mask)
            assert torch.equal(part, found[1:])


@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (3, 1)])
def test_the_reach_of_masked_windows_is_what_a_change_reaches(shift: tuple[int, int]) -> None:
    """By brute force: every row and column of the input is changed alone, in double precision."""
    module = Between(windows((4, 4), shift)).eval().double()
    height, width = 24, 20
    image = torch.rand(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    network = fitted(trace(module, ""), 1, height, width)
    with torch.no_grad():
        own = module(image)
        for dim, axis, n in ((2, network.rows, height), (3, network.columns, width)):
            sizes = axis.sizes(n)
            last = len(axis.ops) - 1
            reached: list[list[int]] = [[] for _ in range(n)]
            for i in range(n):
                changed = image.clone()
                changed.select(dim, i).add_(torch.rand(1, generator=torch.Generator().manual_seed(i)).item())
                differs = (module(changed) - own).abs().amax([d for d in range(4) if d != dim]) > 1e-12
                for output in differs.nonzero().flatten().tolist():
                    reached[output].append(i)
            for output, inputs in enumerate(reached):
                said = axis.needs({last: Span(output, output + 1)}, sizes)[0]
                assert said == Span(min(inputs), max(inputs) + 1), (dim, output)
