"""A stage as a tile sees it: what each map holds beyond the tile's own part, and what each join crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

from overlap_tool.planning.analysis import Edges, LayerReport, StageReport

NOTHING = Edges(0, 0, 0, 0)


@dataclass(frozen=True)
class Map:
    """An input of a pass, or the output of an op together with the pointwise ops that follow it.

    `overlap` is in the map's own samples, for an aligned tile. `scale` is its samples per sample of the
    stage's input. `crops` has, for each of `inputs`, what that map holds and this op does not read: nonzero
    where branches of different reach meet. A stored map that a later pass reads appears once more.
    """

    name: str
    what: str
    segment: int
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
    found: list[Map] = []
    for number in range(len(stage.segments)):
        _add_segment(found, stage, number)
    return tuple(found)


def _add_segment(found: list[Map], stage: StageReport, number: int) -> None:
    """Append the maps of one pass: those that it reads, then those that it computes."""
    layers = [layer for layer in stage.layers if layer.segment == number]
    held = _held(layers)
    computed = {name: row for row, map in enumerate(found) for name in (map.name, *map.layers)}
    rows: dict[str, int] = {}
    for read in stage.segments[number].reads:
        rows[read.name] = len(found)
        overlap = Edges(read.left, read.right, read.top, read.bottom)
        source = (computed[read.name],) if read.name in computed else ()
        what = "from its store" if source else "made whole" if number else "input"
        found.append(Map(read.name, what, number, (), read.scale, overlap, source, (NOTHING,) * len(source)))
    for place, layer in enumerate(layers):
        inputs = tuple(dict.fromkeys(layer.inputs))
        row = rows[inputs[0]]
        if layer.pointwise and len(inputs) == 1 and found[row].layers and _readers(layers, inputs[0]) == 1:
            found[row] = _followed(found[row], layer)
            rows[layer.name] = row
            continue
        sources = tuple(rows[name] for name in inputs)
        rows[layer.name] = len(found)  # a stage of one op has the op's name
        found.append(
            Map(
                layer.name,
                _described(layer),
                number,
                (layer.name,),
                layer.scale,
                held[place],
                sources,
                tuple(_less(found[source].overlap, layer.exact) for source in sources),
            )
        )


def _held(layers: Sequence[LayerReport]) -> list[Edges]:
    """What a tile needs of every output beyond its own part: the most that any later reader needs."""
    return [
        reduce(
            _most, (reader.exact for reader in layers[place + 1 :] if layer.name in reader.inputs), NOTHING
        )
        for place, layer in enumerate(layers)
    ]


def _readers(layers: Sequence[LayerReport], name: str) -> int:
    return sum(name in layer.inputs for layer in layers)


def _followed(before: Map, layer: LayerReport) -> Map:
    return Map(
        before.name,
        f"{before.what} · {layer.op}",
        before.segment,
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
