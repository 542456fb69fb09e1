"""Codecs that code position by position: the untouched model by PyTorch's own kernels, and the wrapped one.

The coding is all of a call but the transforms g_a, h_a, h_s and g_s. Strings of the wrapped model are held
to those of the untouched one under `exact_kernels()`, and so is the image that each decodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import overlap_tool
from benchmarks.machine import spread
from overlap_tool import checkpoint, exact_kernels

ROUNDS = 5
TRANSFORMS = ("g_a", "h_a", "h_s", "g_s")
HEADINGS = ("model", "image", "call", "untouched: coding", "wrapped: coding", "ratio", "whole call", "same")


@dataclass(frozen=True)
class Case:
    model: str
    width: int
    height: int


CASES = (
    Case("mbt2018", 1920, 1088),
    Case("cheng2020-anchor", 768, 512),
    Case("cheng2020-attn", 768, 512),
)


@dataclass(frozen=True)
class Seconds:
    coding: float
    whole: float


@contextmanager
def _transforms_timed(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Inside, tells how many seconds the model's transforms have taken so far."""
    timed = {getattr(model, name) for name in TRANSFORMS}
    spent = 0.0
    began = 0.0

    def before(module: nn.Module, _: Any) -> None:
        nonlocal began
        if module in timed:
            began = time.perf_counter()

    def after(module: nn.Module, *_: Any) -> None:
        nonlocal spent
        if module in timed:
            spent += time.perf_counter() - began

    hooks = register_module_forward_pre_hook(before), register_module_forward_hook(after)
    try:
        yield lambda: spent
    finally:
        for hook in hooks:
            hook.remove()


def _timed(model: nn.Module, call: Callable[[], Any]) -> tuple[Seconds, Any]:
    with _transforms_timed(model) as spent:
        began = time.perf_counter()
        made = call()
        whole = time.perf_counter() - began
        return Seconds(whole - spent(), whole), made


@torch.no_grad()
def _rows(case: Case) -> Iterator[tuple[str, ...]]:
    model: Any = checkpoint.seeded_model(checkpoint.find(case.model))
    wrapped: Any = overlap_tool.wrap(model, tile=256)
    image = torch.rand(1, 3, case.height, case.width, generator=torch.Generator().manual_seed(0))
    for way in (model, wrapped):  # what is made at the first call
        way.decompress(**way.compress(image[..., :128, :256]))
    with exact_kernels():
        expected = model.compress(image)
    taken: dict[tuple[str, str], list[Seconds]] = {}
    for _ in range(ROUNDS):
        for name, way in (("untouched", model), ("wrapped", wrapped)):
            seconds, coded = _timed(way, partial(way.compress, image))
            taken.setdefault((name, "compress"), []).append(seconds)
            seconds, decoded = _timed(way, partial(way.decompress, **coded))
            taken.setdefault((name, "decompress"), []).append(seconds)
    with exact_kernels():
        y_hat = model.decompress(**expected)["x_hat"]
    same = {"compress": coded == expected, "decompress": torch.equal(decoded["x_hat"], y_hat)}
    for call in ("compress", "decompress"):
        own, ours = taken["untouched", call], taken["wrapped", call]
        ratios = [a.coding / b.coding for a, b in zip(own, ours, strict=True)]
        yield (
            case.model,
            f"{case.width}x{case.height}",
            call,
            spread([one.coding for one in own]),
            spread([one.coding for one in ours]),
            f"{median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})",
            spread([one.whole for one in ours]),
            "yes" if same[call] else "NO",
        )


def main(only: str = "") -> list[Table]:
    """`only` is the name of a model."""
    cases = [case for case in CASES if only in ("", case.model)]
    if not cases:
        raise SystemExit(f"{only} is none of {', '.join(case.model for case in CASES)}")
    threads = torch.get_num_threads()
    table = Table(
        *HEADINGS, title=f"Coding position by position, tile 256, threads: {threads}, rounds: {ROUNDS}"
    )
    for case in cases:
        for cells in _rows(case):
            table.add_row(*cells)
            print(*cells, flush=True)
    return [table]
