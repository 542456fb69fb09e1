"""An analysis as a graph in Graphviz's DOT: the layers of every stage, the overlap on each edge."""

from __future__ import annotations

import json

from overlap_tool.legible import legible
from overlap_tool.planning.analysis import Analysis


def to_dot(analysis: Analysis) -> str:
    lines = [f"digraph {_quoted(analysis.architecture)} {{", "  node [shape=box];"]
    for number, stage in enumerate(analysis.stages):
        lines += [
            f"  subgraph cluster_{number} {{",
            f"    label={_quoted(stage.name)};",
            f"    {_quoted(stage.name)} [shape=oval];",
        ]
        for layer in stage.layers:
            lines.append(f"    {_quoted(layer.name)} [label={_quoted(f'{layer.name}: {layer.op}')}];")
            overlap = _quoted(f"{layer.left}/{layer.right}, {layer.top}/{layer.bottom}")
            lines += [
                f"    {_quoted(source)} -> {_quoted(layer.name)} [label={overlap}];"
                for source in layer.inputs
            ]
        lines.append("  }")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return json.dumps(legible(text), ensure_ascii=False)
