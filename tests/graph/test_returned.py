"""Networks that return several maps, of different scales, in whatever they stand in: exact in tiles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import OptionError, OverlapToolError
from overlap_tool.files import Codec, run
from overlap_tool.graph.returned import paths, put_together, taken_apart

pytestmark = pytest.mark.usefixtures("one_thread")


class Pair(NamedTuple):
    fine: Any
    coarse: Any


@dataclass
class Output:
    sample: Any
    features: Any = None
    name: str = "output"


class Pyramid(nn.Module):
    """Maps of three scales, and one that depends on a barrier."""

    def __init__(self, returned: Callable[..., Any]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 5, padding=2)
        self.second = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.third = nn.Conv2d(5, 6, 4, stride=2)
        self.up = nn.ConvTranspose2d(5, 3, 2, stride=2)
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        a = self.first(x)
        b = self.second(a)
        c = self.third(b)
        return self.returned(x, a, b, c, self)


RETURNED: dict[str, Callable[..., Any]] = {
    "tuple": lambda x, a, b, c, m: (a, b, c),
    "list, last first": lambda x, a, b, c, m: [c, [b, a]],
    "dict": lambda x, a, b, c, m: {"out": a, "aux": c},
    "ordered dict": lambda x, a, b, c, m: OrderedDict(low=c, high=b),
    "named tuple": lambda x, a, b, c, m: Pair(a, c),
    "dataclass": lambda x, a, b, c, m: Output(b, (a, c)),
    "dataclass of one": lambda x, a, b, c, m: Output(sample=b),
    "one in a dict": lambda x, a, b, c, m: {"out": m.up(b)},
    "its input": lambda x, a, b, c, m: (x, b),
    "one twice": lambda x, a, b, c, m: (b, b, a),
    "with a barrier": lambda x, a, b, c, m: {
        "gated": b * b.mean((2, 3), keepdim=True).sigmoid(),
        "b": b,
        "a": a,
    },
    "a barrier of the last": lambda x, a, b, c, m: (a * c.mean((1, 2, 3), keepdim=True), c, b),
    "summaries": lambda x, a, b, c, m: (a, b.mean((2, 3)), {"c": c.amax((2, 3)).sigmoid()}),
    "no map": lambda x, a, b, c, m: torch.flatten(c.mean((2, 3), keepdim=True), 1) @ torch.ones(6, 2),
    "a number beside": lambda x, a, b, c, m: (a, 3, None, "text", c),
}


def pyramid(returned: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    return Pyramid(returned).eval()


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and torch.equal(found, expected)
    assert type(found) is type(expected)
    tensors, structure = taken_apart(expected, lambda value: isinstance(value, Tensor))
    others, other_structure = taken_apart(found, lambda value: isinstance(value, Tensor))
    return structure == other_structure and all(map(torch.equal, others, tensors))


@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
def test_all_maps_are_exact(returned: Callable[..., Any]) -> None:
    model = pyramid(returned)
    for options in ({"schedule": "stream"}, {"schedule": "tiles"}, {"uniform": True}, {"memory": "1MiB"}):
        tiled = overlap_tool.wrap(model, **({} if "memory" in options else {"tile": (12, 20)}), **options)
        for size in ((41, 58), (64, 33)):
            image = torch.rand(2, 3, *size)
            with torch.no_grad(), overlap_tool.exact_kernels():
                assert same(tiled(image), model(image))


@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
def test_an_analysis_says_what_it_takes(returned: Callable[..., Any]) -> None:
    """Of a map that is stored and returned, too, it once could not say how large it is."""
    (stage,) = overlap_tool.analyze(pyramid(returned), size=(640, 480)).stages
    assert stage.chosen.bounded_bytes > 4 * 3 * 640 * 480
    assert overlap_tool.report.to_html(overlap_tool.analyze(pyramid(returned), size=(64, 48)))


@pytest.mark.parametrize("returned", ["dict", "with a barrier", "dataclass", "summaries", "no map"])
def test_verify_holds_all_maps(returned: str) -> None:
    certificate = overlap_tool.verify(pyramid(RETURNED[returned]), tiles=[32], size=(96, 80), ablate=True)
    assert certificate.holds, certificate


def test_a_wrong_second_map_fails_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    from overlap_tool.runtime.passes import Results

    def wrong(self: Results) -> tuple[Tensor, ...]:
        first, *others = (sink.result() for sink in self.sinks.values())
        return first + 1, *others

    monkeypatch.setattr(Results, "maps", wrong)
    certificate = overlap_tool.verify(pyramid(RETURNED["dict"]), tiles=[32], size=(96, 80))
    assert not certificate.holds


def test_overlaps_are_those_of_the_map_that_reads_most() -> None:
    alone = overlap_tool.analyze(pyramid(lambda x, a, b, c, m: c)).stages[0]
    all_of_them = overlap_tool.analyze(pyramid(RETURNED["tuple"])).stages[0]
    assert all_of_them.overlap == alone.overlap
    assert (all_of_them.receptive_field, all_of_them.period) == (alone.receptive_field, alone.period)
    fine = overlap_tool.analyze(pyramid(lambda x, a, b, c, m: (c, a))).stages[0]
    assert fine.overlap == alone.overlap


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "a weight": (lambda x, a, b, c, m: {"out": a, "w": m.first.weight * 2}, "not depend on its input at w"),
    "nothing": (lambda x, a, b, c, m: None, "does not return a map"),
}


@pytest.mark.parametrize(("returned", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_map_is_refused_with_its_place(returned: Callable[..., Any], reason: str) -> None:
    with pytest.raises(OverlapToolError, match=reason):
        overlap_tool.analyze(pyramid(returned))


def test_files_take_one_map(tmp_path: Path) -> None:
    tiled = overlap_tool.wrap(pyramid(RETURNED["tuple"]), tile=32)
    with pytest.raises(OptionError, match="returns 0, 1, 2, and one map is to be written"):
        run(Codec(tiled, "net", "", "net"), tmp_path / "in.png", tmp_path / "out.png")


def test_a_value_is_put_together_as_it_was_taken_apart() -> None:
    value = {"a": [1.5, (2.5, None)], "b": Output(3.5, Pair(4.5, "text"))}
    results, structure = taken_apart(value, lambda inner: isinstance(inner, float))
    assert results == [1.5, 2.5, 3.5, 4.5]
    assert paths(structure) == ["a.0", "a.1.0", "b.sample", "b.features.0"]
    assert put_together(structure, results) == value
