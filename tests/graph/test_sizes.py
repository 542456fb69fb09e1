"""Code that asks for the size of its input, and computes by it, is exact in tiles at every size.

The oracle is the module itself on the whole image. The sizes have different remainders, and the tiles are
odd.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.probes import COLUMNS, ROWS, perturbation_dependence
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import SizeDependenceError, TraceError
from overlap_tool.geometry import Span
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.verification.observing import tensors_in

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = ((40, 56), (37, 61), (33, 48), (50, 31))


class Doing(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(4, 4, 5, padding=2)
        self.mixed = nn.Conv2d(256, 256, 1)
        self.compute = compute

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, self.conv(x))


def doing(compute: Callable[[Any, Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return Doing(compute).eval()


def padded_to_a_multiple(m: Any, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y = F.pad(x, (0, -w % 8, 0, -h % 8), mode="reflect")
    y = F.pixel_shuffle(m.mixed(F.pixel_unshuffle(m.wide(y), 8)), 8)
    return y[:, :, :h, :w] + x


def padded_on_both_sides(m: Any, x: Tensor) -> Tensor:
    h, w = x.size(2), x.size(3)
    new_h, new_w = (h + 15) // 16 * 16, (w + 15) // 16 * 16
    left, top = (new_w - w) // 2, (new_h - h) // 2
    y = F.pad(x, (left, new_w - w - left, top, new_h - h - top))
    y = m.down(m.down(y)).repeat_interleave(4, 1)
    return F.pad(F.pixel_shuffle(y, 2), (-(left // 2), -((new_w - w - left) // 2), -(top // 2), 0))


def same_as_tensorflow(m: Any, x: Tensor) -> Tensor:
    pads = []
    for n in (x.shape[3], x.shape[2]):
        total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), m.down.weight, m.down.bias, stride=2)


def joined_by_size(m: Any, x: Tensor) -> Tensor:
    y = m.down(m.down(x))
    y = F.interpolate(y, size=x.shape[-2:], mode="nearest")
    return torch.cat([x, y], 1)


def joined_by_linear(m: Any, x: Tensor) -> Tensor:
    y = F.avg_pool2d(m.down(x), 3, 2)
    return x + F.interpolate(y, size=(x.size(2), x.size(3)), mode="bilinear", align_corners=False)


def joined_by_corners(m: Any, x: Tensor) -> Tensor:
    up = F.interpolate(m.down(x), size=x.shape[-2:], mode="bilinear", align_corners=True)
    return x + m.wide(up)


def up_by_corners(m: Any, x: Tensor) -> Tensor:
    return m.wide(F.interpolate(m.down(x), scale_factor=2, mode="bilinear", align_corners=True))


def unet_that_pads_its_skips(m: Any, x: Tensor) -> Tensor:
    y = F.max_pool2d(x, 2)
    z = F.interpolate(m.wide(F.max_pool2d(m.wide(y), 2)), scale_factor=2, mode="bilinear", align_corners=True)
    dy, dx = y.size()[2] - z.size()[2], y.size()[3] - z.size()[3]
    z = F.pad(z, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
    return torch.cat([y, z], dim=1)


def cropped_in_the_middle(m: Any, x: Tensor) -> Tensor:
    y = F.conv2d(x, m.wide.weight)
    top, left = (x.shape[2] - y.shape[2]) // 2, (x.shape[3] - y.shape[3]) // 2
    return y + x[:, :, top : top + y.shape[2], left : left + y.shape[3]]


def asserting(m: Any, x: Tensor) -> Tensor:
    assert x.shape[2] >= 16, "too small"
    if x.shape[3] % 2:
        raise ValueError("odd")
    return m.wide(x)


def deciding(m: Any, x: Tensor) -> Tensor:
    if x.shape[2] % 3 == 0:
        return m.wide(x)
    return x.tanh()


def upscaling_by_less_than_two(m: Any, x: Tensor) -> Tensor:
    return m.wide(F.interpolate(x, scale_factor=1.7, mode="nearest"))


def shrinking_between(m: Any, x: Tensor) -> Tensor:
    return m.wide(F.interpolate(x, size=(x.shape[2] * 2 // 3, x.shape[3] // 2), mode="bilinear"))


def nearest_exact(m: Any, x: Tensor) -> Tensor:
    return m.wide(F.interpolate(x, scale_factor=0.6, mode="nearest-exact"))


def halves(m: Any, x: Tensor) -> Tensor:
    top, bottom = x[:, :, : x.shape[2] // 2], x[:, :, -(x.shape[2] // 2) :]
    return m.wide(top) + m.wide(bottom)


def chunks(m: Any, x: Tensor) -> Tensor:
    x = x[:, :, :, : x.shape[3] // 2 * 2]
    left, right = x.chunk(2, dim=3)
    return m.wide(left) * right


def narrowed(m: Any, x: Tensor) -> Tensor:
    return m.wide(x.narrow(2, 3, x.shape[2] - 5))


def pooled_by_size(m: Any, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y = F.adaptive_max_pool2d(m.wide(x), (h // 4, w // 4))
    z = F.adaptive_avg_pool2d(x, (h // 3, w // 5))
    return F.interpolate(y, size=(h, w)) * F.interpolate(z, size=(h, w)) + x


def by_its_columns(m: Any, x: Tensor) -> Tensor:
    return m.wide(x + torch.linspace(0, 1, x.shape[3]))


def with_zeros_of_its_size(m: Any, x: Tensor) -> Tensor:
    return m.wide(x) * torch.ones(x.shape[2:]) + x.new_zeros(x.shape[0], 1, x.shape[2], x.shape[3])


def with_coordinates(m: Any, x: Tensor) -> Tensor:
    """As CoordConv has them, and at half the size."""
    rows = torch.linspace(-1, 1, x.shape[2])[None, None, :, None].expand(x.shape[0], -1, -1, x.shape[3])
    columns = torch.linspace(-1, 1, x.shape[3]).expand(x.shape[0], 1, x.shape[2], -1)
    y = torch.cat([x[:, :2], rows, columns], 1)
    z = m.down(y)
    grid = torch.meshgrid(torch.arange(z.shape[2]), torch.arange(z.shape[3]), indexing="ij")
    return z + (grid[0] * 3 + grid[1]).float().cos()


def pooled_and_spread(m: Any, x: Tensor) -> Tensor:
    """As DeepLab does."""
    whole = x.mean((2, 3), keepdim=True)
    spread = F.interpolate(whole, size=x.shape[2:], mode="bilinear", align_corners=False)
    y = m.wide(torch.cat([x[:, :2], spread[:, 1:3]], 1))
    y = y * F.interpolate(F.adaptive_avg_pool2d(x, 2), size=x.shape[2:])
    return y + m.down(x).mean((1, 2, 3), keepdim=True).expand_as(x)


def by_the_time_of_each_image(m: Any, x: Tensor) -> Tensor:
    """As networks for diffusion do: what is made for each image does not follow its size."""
    steps = 0.3 * torch.ones(x.shape[0])
    return m.wide(x) + torch.sin(steps[:, None] * torch.arange(4))[:, :, None, None]


def deciding_by_how_many_numbers_there_are(m: Any, x: Tensor) -> Tensor:
    return m.wide(x.contiguous() if x.numel() * 2 > 1000 else x) * (x.shape[0] >= 64 or 0.5)


def by_a_number(m: Any, x: Tensor) -> Tensor:
    return m.wide(x) * (x.shape[2] / x.shape[3]) + x.shape[0]


def with_a_summary(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    mean = x.sum((2, 3)) / (h * w)
    return m.wide(x) * mean.view(b, c, 1, 1).sigmoid()


def without_its_last_column(m: Any, x: Tensor) -> Tensor:
    return m.wide(x[..., : x.shape[-1] - 1])[..., : x.shape[-1] - 1]


def far_less_than_the_map(m: Any, x: Tensor) -> Tensor:
    return m.wide(x)[:, :, :20, 3:30:2]


def writing_a_checkerboard(m: Any, x: Tensor) -> Tensor:
    wide, out = m.wide(x), torch.zeros_like(x)
    out[..., 0::2, 1::2] = wide[..., 0::2, 1::2]
    out[..., 1::2, 0::2] = m.wide(x[..., 1::2, 0::2])
    return m.wide(out)


def writing_inside_a_frame(m: Any, x: Tensor) -> Tensor:
    x[..., 3:-2, : x.shape[3] // 2] = m.wide(x)[..., 3:-2, : x.shape[3] // 2]
    return x


TRACED = [
    writing_a_checkerboard, writing_inside_a_frame,
    padded_to_a_multiple, padded_on_both_sides, same_as_tensorflow, joined_by_size, joined_by_linear,
    joined_by_corners, up_by_corners, unet_that_pads_its_skips, cropped_in_the_middle, asserting, deciding,
    upscaling_by_less_than_two, shrinking_between, nearest_exact, halves, chunks, narrowed, by_a_number,
    with_a_summary, without_its_last_column, far_less_than_the_map, pooled_by_size, by_the_time_of_each_image,
    by_its_columns, with_zeros_of_its_size, with_coordinates, pooled_and_spread,
    deciding_by_how_many_numbers_there_are,
]  # fmt: skip


def assert_tiles_are_right(module: nn.Module, sizes: Any = SIZES, images: int = 1) -> None:
    """Or the module refuses an image itself, and the wrapped one does so with the same words."""
    wrapped = {
        schedule: overlap_tool.wrap(module, tile=(13, 17), schedule=schedule)
        for schedule in ("stream", "tiles")
    }
    generator = torch.Generator().manual_seed(0)
    for height, width in sizes:
        image = torch.rand(images, 3, height, width, generator=generator)
        with torch.no_grad(), overlap_tool.exact_kernels():
            try:
                whole = module(image.clone())
            except Exception as error:
                for tiled in wrapped.values():
                    with pytest.raises(type(error), match=re.escape(str(error))):
                        tiled(image.clone())
                continue
            for schedule, tiled in wrapped.items():
                found, expected = tensors_in(tiled(image.clone())), tensors_in(whole)
                assert list(found) == list(expected)
                assert all(map(torch.equal, found.values(), expected.values())), (height, width, schedule)


@pytest.mark.parametrize("compute", TRACED, ids=lambda compute: compute.__name__)
def test_tiles_give_the_bits_of_the_module(compute) -> None:
    assert_tiles_are_right(doing(compute))


@pytest.mark.parametrize(
    "compute",
    [
        with_a_summary,
        padded_to_a_multiple,
        by_a_number,
        by_the_time_of_each_image,
        with_coordinates,
        pooled_and_spread,
    ],
)
def test_of_several_images_too(compute) -> None:
    assert_tiles_are_right(doing(compute), SIZES[:2], images=3)


@pytest.mark.parametrize("compute", TRACED, ids=lambda compute: compute.__name__)
def test_tiles_in_batches_give_the_bits_of_the_module(compute) -> None:
    """What is computed by its place was once computed for several tiles as for the first of them."""
    module = doing(compute)
    tiled = overlap_tool.wrap(module, tile=(13, 17), schedule="tiles", batch=4)
    image = torch.rand(1, 3, 80, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(tiled(image.clone()), module(image.clone()))


@pytest.mark.parametrize("compute", TRACED, ids=lambda compute: compute.__name__)
def test_overlaps_are_those_that_a_change_of_the_image_shows(compute) -> None:
    """Of every output line: all that it reads is claimed, and at both ends no line more than it reads."""
    module = doing(compute).double()
    network = trace(module, "", 3)
    for height, width in ((36, 24), (24, 37)):
        dim = ROWS if height > width else COLUMNS
        try:
            real = perturbation_dependence(module, torch.rand(1, 3, height, width, dtype=torch.float64), dim)
        except ValueError:
            continue  # its own
        of_size = fitted(network, 1, height, width)
        if of_size.barriers:
            continue
        axis, n = (of_size.rows, height) if dim == ROWS else (of_size.columns, width)
        assert len(real) == axis.sizes(n)[-1]
        for output, inputs in enumerate(real):
            read = inputs.nonzero().flatten().tolist()
            claimed = axis.needs({len(axis.ops) - 1: Span(output, output + 1)}, axis.sizes(n))[0]
            assert (claimed.start, claimed.stop) == (read[0], read[-1] + 1), output


def test_code_that_does_not_ask_is_traced_once() -> None:
    network = trace(doing(lambda m, x: m.wide(x)), "", 3)
    assert not network.asks
    assert fitted(network, 2, 30, 40) is network


def test_a_network_of_one_size_is_kept() -> None:
    network = trace(doing(padded_to_a_multiple), "", 3)
    assert network.asks
    first = fitted(network, 1, 30, 40)
    assert fitted(network, 1, 30, 40) is first
    assert fitted(first, 1, 30, 40) is first
    assert fitted(network, 1, 30, 41) is not first


def test_analyze_says_for_which_size_its_figures_hold() -> None:
    asks, does_not = (
        overlap_tool.analyze(doing(compute), size=(61, 37)).stages[0].holds_for
        for compute in (padded_to_a_multiple, lambda m, x: m.wide(x))
    )
    assert (asks, does_not) == ("61x37", "any size")


@pytest.mark.parametrize("compute", [padded_to_a_multiple, joined_by_size, up_by_corners, with_a_summary])
def test_verify_holds(compute) -> None:
    certificate = overlap_tool.verify(doing(compute), size=(85, 59), tiles=[16])
    assert certificate.holds, [check for check in certificate.checks if check.status == "failed"]


# --- refused -----------------------------------------------------------------------------------------------


def of_squares(m: Any, x: Tensor) -> Tensor:
    """The height is the square root of the number of positions."""
    tokens = m.wide(x).flatten(2).transpose(1, 2)
    side = int(math.sqrt(tokens.shape[1]))
    return m.down(tokens.tanh().transpose(1, 2).view(*x.shape[:2], side, side))


def test_code_that_takes_squares_alone() -> None:
    """Any other image it refuses itself, and so does the wrapped one."""
    assert_tiles_are_right(doing(of_squares), ((40, 40), (31, 31), (40, 50)), 2)
    assert overlap_tool.analyze(doing(of_squares)).image == (3840, 3840)
    with pytest.raises(TraceError, match="is invalid for input of size"):
        overlap_tool.analyze(doing(of_squares), size=(640, 480))


def test_rows_and_columns_of_squares_are_told_apart() -> None:
    """A stride on rows alone, which a square's sizes are before it and not behind."""

    def narrowed(m: Any, x: Tensor) -> Tensor:
        return of_squares(m, x)[:, :, ::3]

    network = trace(doing(narrowed), "", 3)
    assert (network.rows.scale, network.columns.scale) == (Fraction(1, 6), Fraction(1, 2))
    assert_tiles_are_right(doing(narrowed), ((40, 40), (33, 33)))


def counted(m: Any, x: Tensor) -> Tensor:
    return x + torch.tensor([x.shape[2] * 1.0])[:, None, None]


def listed(m: Any, x: Tensor) -> Tensor:
    return x + torch.tensor(range(x.shape[3]))


@pytest.mark.parametrize("compute", [listed], ids=lambda compute: compute.__name__)
def test_a_tensor_made_by_the_size_is_refused(compute) -> None:
    """A piece would be given the whole of it."""
    with pytest.raises(TraceError) as refused:
        trace(doing(compute), "", 3)
    assert "by the size of its input" in refused.value.reason or "other values" in refused.value.reason


def test_code_that_leaves_its_map_behind_is_refused() -> None:
    def remembering(m: Any, x: Tensor) -> Tensor:
        m.seen = {"size": [x.shape[2], x]}
        return F.pad(x, (0, -x.shape[3] % 8))

    with pytest.raises(TraceError, match="changes while the module runs"):
        trace(doing(remembering), "", 3)


def test_a_loop_over_positions_is_refused_soon() -> None:
    def looping(m: Any, x: Tensor) -> Tensor:
        for _ in range(x.shape[3]):
            x = x.tanh()
        return x

    with pytest.raises(TraceError, match="more than 10000 ops"):
        trace(doing(looping), "", 3)


def test_code_of_which_nothing_is_alike_at_another_size_is_refused() -> None:
    def choosing(m: Any, x: Tensor) -> Tensor:
        return [x.tanh, x.sigmoid, x.relu, x.abs, x.exp, x.sin, x.cos][x.shape[2] * 5 // 7 % 7]()

    with pytest.raises(SizeDependenceError, match="is another op, or takes other values"):
        _ = [fitted(trace(doing(choosing), "", 3), 1, height, 30) for height in range(20, 40)]


# --- drawn at random ---------------------------------------------------------------------------------------


def drawn(draw: random.Random) -> Callable[[Any, Tensor], Tensor]:
    """A U-Net of random depth that brings its input to a multiple, or its skips to one size, in one of the
    ways that people write."""
    depth, kind = draw.randint(1, 3), draw.choice(["pad", "resize", "crop", "skips"])
    mode = draw.choice(["reflect", "constant", "replicate"])
    interpolation: dict[str, Any] = draw.choice(
        [
            {"mode": "nearest"},
            {"mode": "bilinear", "align_corners": False},
            {"mode": "bilinear", "align_corners": True},
            {"mode": "nearest-exact"},
        ]
    )
    pool = draw.choice(
        [lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: x[..., ::2, ::2]]
    )
    both_sides, ahead, several = (draw.random() < 0.5 for _ in range(3))
    touch = draw.choice(TOUCHES)

    def compute(m: Any, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        multiple = 2**depth
        if kind in ("pad", "crop"):
            down, across = -h % multiple, -w % multiple
            if kind == "crop":
                x = x[:, :, : h - h % multiple, w % multiple :]
            elif both_sides:
                x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2), mode=mode)
            else:
                x = F.pad(x, (0, across, 0, down), mode=mode)
        skips = []
        y = x
        for _ in range(depth):
            y = touch(m, y)
            skips.append(y)
            y = pool(m.wide(y) if ahead else y.relu())
        for skip in reversed(skips):
            if kind == "skips":
                y = F.interpolate(y, scale_factor=2)
                y = F.pad(y, (0, skip.shape[3] - y.shape[3], 0, skip.shape[2] - y.shape[2]))
            else:
                y = F.interpolate(y, size=skip.shape[2:], **interpolation)
            y = m.wide(y) + skip
        y = y[:, :, :h, :w]
        return {"out": y, "skips": skips[1:]} if several else y

    return compute


def as_it_is(m: Any, x: Tensor) -> Tensor:
    return x


def writing_a_part(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] = m.wide(x)[:, :2]
    y[:, 0] += x[:, 3]
    return y


def adding_coordinates(m: Any, x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[2]) / x.shape[2]
    return x + rows[:, None] * torch.linspace(-1, 1, x.shape[3])


def spreading_a_value(m: Any, x: Tensor) -> Tensor:
    whole = F.interpolate(x.mean((2, 3), keepdim=True), size=x.shape[2:])
    return torch.cat([x[:, :2], whole[:, 2:]], 1)


def pooling_by_size(m: Any, x: Tensor) -> Tensor:
    small = F.adaptive_max_pool2d(x, (max(1, x.shape[2] // 2), max(1, x.shape[3] // 3)))
    return x * F.interpolate(small, size=x.shape[2:]).sigmoid()


def writing_some_positions(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 1::2, ::3] = m.wide(x)[:, :, 1::2, ::3]
    y[:, 2:, : x.shape[2] // 2] *= 2
    return y


TOUCHES = [
    as_it_is, writing_a_part, writing_some_positions, adding_coordinates, spreading_a_value, pooling_by_size,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(int(os.environ.get("CASES", 600)) // 60))
def test_networks_drawn_at_random(seed) -> None:
    draw = random.Random(seed)
    module = doing(drawn(draw))
    assert_tiles_are_right(module, [(draw.randint(16, 70), draw.randint(16, 70)) for _ in range(2)])
