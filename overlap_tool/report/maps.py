"""A stage as a tile sees it: what every map holds beyond the tile's own part, and what every join crops."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from overlap_tool.analysis import Edges, LayerReport, StageReport

NOTHING = Edges(0, 0, 0, 0)


@dataclass(frozen=True)
class Map:
    """The stage's input, or the output of an op with the pointwise ops that only pass it on.

    `overlap` is in the map's own samples, for an aligned tile. `scale` is its samples per sample of the
    stage's input. `crops` has, for each of `inputs`, what it holds and this op does not read: more than
    nothing where branches of different reach meet.
    """

    name: str
    what: str
    layers: tuple[str, ...]
    scale: Fraction
    overlap: Edges
    inputs: tuple[int, ...]
    crops: tuple[Edges, ...]

    @property
    def is_join(self) -> bool:
        return len(self.inputs) > 1


def maps(stage: StageReport) -> tuple[Map, ...]:
    """The maps of a stage in the order in which they are computed: the input first, the output last."""
    sources = _sources(stage)
    held = _held(stage, sources)
    row_of: dict[int, int] = {0: 0}  # from a layer, counted from 1, to the map that it is part of
    found = [Map(stage.name, "input", (), Fraction(1), held[0], (), ())]
    for number, layer in enumerate(stage.layers, 1):
        inputs = sources[number]
        if layer.pointwise and len(inputs) == 1 and inputs[0] and _readers(sources, inputs[0]) == 1:
            row_of[number] = row_of[inputs[0]]
            found[row_of[number]] = _followed(found[row_of[number]], layer)
            continue
        row_of[number] = len(found)
        found.append(
            Map(
                layer.name,
                _described(layer),
                (layer.name,),
                layer.scale,
                held[number],
                tuple(row_of[source] for source in inputs),
                tuple(_less(held[source], layer.exact) for source in inputs),
            )
        )
    return tuple(found)


def _sources(stage: StageReport) -> list[tuple[int, ...]]:
    """For the stage's input (0) and every layer (from 1), which earlier of them feed it, each once."""
    numbers = {stage.name: 0}
    sources: list[tuple[int, ...]] = [()]
    for number, layer in enumerate(stage.layers, 1):
        sources.append(tuple(dict.fromkeys(numbers[name] for name in layer.inputs)))
        numbers[layer.name] = number  # a stage that is one op bears its name
    return sources


def _held(stage: StageReport, sources: list[tuple[int, ...]]) -> list[Edges]:
    """What a tile needs of every output beyond its own part: the most that any reader asks for."""
    held = [NOTHING for _ in sources]
    for layer, inputs in zip(stage.layers, sources[1:], strict=True):
        for source in inputs:
            held[source] = _most(held[source], layer.exact)
    return held


def _readers(sources: list[tuple[int, ...]], number: int) -> int:
    return sum(number in inputs for inputs in sources)


def _followed(before: Map, layer: LayerReport) -> Map:
    return Map(
        before.name,
        f"{before.what} · {layer.op}",
        (*before.layers, layer.name),
        before.scale,
        before.overlap,
        before.inputs,
        before.crops,
    )


def _described(layer: LayerReport) -> str:
    kernel = "" if layer.kernel is None else f" {layer.kernel[0]}×{layer.kernel[1]}"
    strides = layer.stride or (1, 1)
    return f"{layer.op}{kernel}" + ("" if strides == (1, 1) else f" stride {max(strides)}")


def _most(one: Edges, other: Edges) -> Edges:
    return Edges(
        max(one.left, other.left),
        max(one.right, other.right),
        max(one.top, other.top),
        max(one.bottom, other.bottom),
    )


def _less(whole: Edges, part: Edges) -> Edges:
    return Edges(
        whole.left - part.left, whole.right - part.right, whole.top - part.top, whole.bottom - part.bottom
    )
