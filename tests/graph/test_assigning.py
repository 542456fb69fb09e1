"""Values that code writes into a map in place are exact in tiles, held to the module on the whole image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import OverlapToolError
from overlap_tool.graph.trace import trace

pytestmark = pytest.mark.usefixtures("one_thread")


class Writing(nn.Module):
    def __init__(self, write: Callable[[Any, Tensor], Any], first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1) if first is None else first
        self.wide = nn.Conv2d(3, 3, 5, padding=2)
        self.write = write

    def forward(self, x: Tensor) -> Any:
        return self.write(self, self.first(x))


def writing(write: Callable[[Any, Tensor], Any], first: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return Writing(write, first).eval()


def a_part(m: Any, x: Tensor) -> Tensor:
    x[:, :3] = m.wide(x[:, :3])
    return x


def both_halves_of_another(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 0::2] = m.wide(x[:, :3])
    out[:, 1::2, ...] = x[:, 3:]
    return out


def a_part_by_an_op_in_place(m: Any, x: Tensor) -> Tensor:
    bias = m.wide.bias.clone()
    bias[1:].zero_()
    x[:, 1:3].mul_(2)
    x[:, :1].relu_()
    return m.wide(x[:, :3]) + bias[None, :, None, None]


def one_channel(m: Any, x: Tensor) -> Tensor:
    x[:, -1] = m.wide(x[:, 1:4])[:, 0] + x[:, -1]
    return x


def a_number(m: Any, x: Tensor) -> Tensor:
    x[:, [0, 2]] = 0.5
    return m.wide(x[:, :3])


def where_a_condition_holds(m: Any, x: Tensor) -> Tensor:
    x[x < 0] = -1.5
    return m.wide(x[:, 3:])


def added_to_a_part(m: Any, x: Tensor) -> Tensor:
    x[:, 2:5] += m.wide(x[:, :3])
    return x * 2


def a_value_of_the_whole_map(m: Any, x: Tensor) -> Tensor:
    x[:, :3] = x.mean((2, 3), keepdim=True)[:, 3:]
    return m.wide(x[:, 1:4])


def all_rows_by_their_number(m: Any, x: Tensor) -> Tensor:
    x[:, :3, : x.shape[2], 0 : x.shape[3]] = m.wide(x[:, 3:])
    return x


def checkerboard(m: Any, x: Tensor) -> Tensor:
    """As codecs with a checkerboard context write the one half of the positions and then the other."""
    anchors, out = m.wide(x[:, :3]), torch.zeros_like(x[:, :3])
    out[:, :, 0::2, 1::2] = anchors[:, :, 0::2, 1::2]
    out[:, :, 1::2, 0::2] = anchors[:, :, 1::2, 0::2]
    others = m.wide(out) + x[:, 3:]
    out[:, :, 0::2, 0::2] = others[:, :, 0::2, 0::2]
    out[:, :, 1::2, 1::2] = others[:, :, 1::2, 1::2]
    return out


def quarters_in_channels(m: Any, x: Tensor) -> Tensor:
    """Written from maps of half the size, and some of their channels."""
    quarter = m.wide(x[:, 3:, 1::2, 1::2])
    x[:, 1:4, 1::2, 1::2] = quarter
    x[:, 0, 1::2, 1::2] += quarter[:, 1]
    return x


def every_third_row(m: Any, x: Tensor) -> Tensor:
    rows = m.wide(x[:, :3, 2::3])
    x[:, 3:, 2::3] = rows
    x[..., 1 : x.shape[2] : 3, :] = rows[:, :1].mean((2, 3), keepdim=True)
    x[..., 5:-4:2] *= 2
    return x


def a_frame(m: Any, x: Tensor) -> Tensor:
    inner = m.wide(x[:, :3])[..., 2:-3, 4:-1]
    x[:, :3, 2:-3, 4:-1] = inner
    x[:, :, :2] = 0.5
    x[..., -1:] = m.wide.bias[0]
    return x


def into_a_tensor_made_by_the_size(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], 3, 2 * x.shape[2], 2 * x.shape[3])
    for i in range(4):
        out[:, :, i // 2 :: 2, i % 2 :: 2] = m.wide(x[:, :3] * i)
    return out


EXACT = (
    checkerboard,
    quarters_in_channels,
    every_third_row,
    a_frame,
    into_a_tensor_made_by_the_size,
    a_part,
    both_halves_of_another,
    a_part_by_an_op_in_place,
    one_channel,
    a_number,
    where_a_condition_holds,
    added_to_a_part,
    a_value_of_the_whole_map,
    all_rows_by_their_number,
)


def holds(model: nn.Module, *sizes: tuple[int, int]) -> None:
    for schedule in ("stream", "tiles"):
        tiled = overlap_tool.wrap(model, tile=(13, 11), schedule=schedule)
        for size in sizes:
            image = torch.rand(1, 3, *size)
            with torch.no_grad(), overlap_tool.exact_kernels():
                expected = model(image.clone())
                assert torch.equal(tiled(image.clone()), expected)


@pytest.mark.parametrize("write", EXACT, ids=lambda write: write.__name__)
def test_written_values_are_exact_in_tiles(write: Callable[[Any, Tensor], Any]) -> None:
    holds(writing(write), (40, 33), (21, 47), (22, 38))


def test_a_model_that_changes_its_image_in_place_leaves_it_as_it_was_in_tiles() -> None:
    class Scaling(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            x *= 255
            return x.repeat(1, 2, 1, 1)

    model = writing(a_part, Scaling())
    holds(model, (40, 33))
    image = torch.rand(1, 3, 40, 33)
    before = image.clone()
    with torch.no_grad():
        overlap_tool.wrap(model, tile=16)(image)
    assert torch.equal(image, before)


def test_a_stage_that_changes_the_map_that_it_is_given_is_refused_inside_a_model() -> None:
    with pytest.raises(OverlapToolError, match="changes the stage's own input in place"):
        trace(nn.Sequential(nn.ReLU(inplace=True)), "part", 3)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a row": (lambda m, x: _after(x, lambda: x.__setitem__((..., 1, slice(None)), 0)), "that are no slice"),
    "columns by numbers": (lambda m, x: _after(x, lambda: x.__setitem__((..., [1, 3]), 0)), "are no slice"),
    "a row that is repeated": (
        lambda m, x: _after(x, lambda: x.__setitem__((..., slice(2, 9), slice(None)), x[:, :, :1])),
        "repeats a map over the rows",
    ),
    "values of a row": (
        lambda m, x: _after(x, lambda: x.__setitem__((..., slice(3), slice(3)), m.first.weight[0, 0])),
        "that is not a map to some rows",
    ),
    "images by numbers": (
        lambda m, x: _after(x, lambda: x.__setitem__(x.argmax(1) * 0, 1.0)),
        "picked by numbers",
    ),
    "images": (lambda m, x: _after(x, lambda: x.__setitem__(0, 1.0)), "some images"),
    "a view of a part": (
        lambda m, x: _after(x, lambda: x[:, :3][:, :1].relu_()),
        "of which a view is read later",
    ),
}


def _after(x: Tensor, write: Callable[[], Any]) -> Tensor:
    write()
    return x


@pytest.mark.parametrize(("write", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_written_to_channels_is_refused_by_name(
    write: Callable[[Any, Tensor], Any], reason: str
) -> None:
    with pytest.raises(OverlapToolError, match=reason):
        overlap_tool.analyze(writing(write))


def test_code_may_ask_for_the_type_of_a_map() -> None:
    def in_half_or_not(m: Any, x: Tensor) -> Tensor:
        return m.wide(x[:, :3]) if "Half" in x.type() or x.type() != "torch.FloatTensor" else x

    holds(writing(in_half_or_not), (32, 40))
