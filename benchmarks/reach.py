"""How many networks that others wrote run exactly in tiles, unedited, and why the others are refused.

Each is built with seeded weights, analysed, wrapped by both schedules, and compared with itself, untouched,
under `exact_kernels()`, by `torch.equal`, at an even and an odd size that it takes. All of that is done in a
process of its own, within a limit of time.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import overlap_tool
from benchmarks.networks import LISTS, Foreign
from overlap_tool.errors import OverlapToolError
from overlap_tool.verification.observing import tensors_in

SECONDS = 180
"""For all that is done with one network."""

SIZES = ((128, 160), (128, 128), (224, 224)), ((101, 139), (102, 138), (100, 140), (96, 160))
"""Heights and widths, even and odd; of each, the first that the network takes is tried."""

OF_LATENTS = ((32, 48), (64, 64)), ((25, 37), (26, 38))


@dataclass(frozen=True)
class Outcome:
    status: str
    seconds: float = 0.0
    """Until it was analysed, or refused."""
    reason: str = ""


def main(chosen: str = "") -> list[Table]:
    """`chosen` is one list, or one of its networks, as `spandrel/NAFNet`."""
    counts, refusals = Table(title="Networks that others wrote"), Table(title="What is refused, and why")
    for heading in ("library", "tried", "exact", "wrong", "refused", "failed", "slowest refusal"):
        counts.add_column(heading)
    for heading in ("network", "seconds", "reason"):
        refusals.add_column(heading)
    only, _, name = chosen.partition("/")
    for library in LISTS if not only else [only]:
        if find_spec(library) is None:
            counts.add_row(library, "not installed", *[""] * 5)
            continue
        outcomes = dict(_outcomes(library, name))
        slowest = max((each.seconds for each in outcomes.values() if each.status == "refused"), default=0.0)
        of = [sum(o.status == status for o in outcomes.values()) for status in ("exact", "wrong", "refused")]
        failed = len(outcomes) - sum(of)
        counts.add_row(library, str(len(outcomes)), *map(str, of), str(failed), f"{slowest:.1f} s")
        for network, outcome in outcomes.items():
            if outcome.status != "exact":
                told = (
                    outcome.reason if outcome.status == "refused" else f"{outcome.status}: {outcome.reason}"
                )
                refusals.add_row(f"{library}/{network}", f"{outcome.seconds:.1f}", told.replace("|", "/"))
    return [counts, refusals]


def _outcomes(library: str, only: str) -> Iterator[tuple[str, Outcome]]:
    networks: dict[str, Foreign] = importlib.import_module(f"benchmarks.networks.{library}").NETWORKS
    chosen = {name: network for name, network in networks.items() if only in name}
    for name, network in track(chosen.items(), description=library):
        yield name, _in_a_process(network)


def _in_a_process(network: Foreign) -> Outcome:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            outcome = tried(network)
        except BaseException as error:
            outcome = Outcome("failed", reason=f"{type(error).__name__}: {error}".split("\n")[0])
        os.write(writer, json.dumps(asdict(outcome)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        answer = told.read()
    os.waitpid(child, 0)
    return (
        Outcome(**json.loads(answer)) if answer else Outcome("failed", reason=f"ended, or took {SECONDS} s")
    )


def tried(network: Foreign) -> Outcome:
    """What becomes of a network in tiles."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = settled(network.build())
    start = perf_counter()
    try:
        overlap_tool.analyze(model, example=network.example)
    except OverlapToolError as refusal:
        return Outcome("refused", perf_counter() - start, f"{refusal.where}: {refusal.reason}")
    seconds = perf_counter() - start
    calls = [
        call for sizes in (OF_LATENTS if network.small else SIZES) for call in _first(model, network, sizes)
    ]
    if not calls:
        return Outcome("failed", seconds, "takes no map of the sizes that are tried")
    for schedule in ("stream", "tiles"):
        side = 32 if network.small else 64
        try:
            tiled = overlap_tool.wrap(model, tile=side, schedule=schedule, example=network.example)
            for call in calls:
                if not _same(tiled, model, call):
                    size = "x".join(map(str, call[0].shape[2:]))
                    return Outcome("wrong", seconds, f"differs by {schedule} at {size}")
        except OverlapToolError as refusal:
            return Outcome("refused", seconds, f"{refusal.where}: {refusal.reason}")
    return Outcome("exact", seconds)


def _first(model: nn.Module, network: Foreign, sizes: Any) -> Iterator[tuple[Any, ...]]:
    """A call at the first of these sizes that the model takes."""
    for size in sizes:
        generator = torch.Generator().manual_seed(size[0])
        example = network.example or (torch.empty(1, network.channels, 1, 1),)
        call = tuple(
            torch.rand(1, value.shape[1], *size, generator=generator) if isinstance(value, Tensor) else value
            for value in example
        )
        try:
            with torch.no_grad():
                model(*_copied(call))
        except Exception:
            continue
        yield call
        return


@torch.no_grad()
def _same(tiled: nn.Module, model: nn.Module, call: tuple[Any, ...]) -> bool:
    with overlap_tool.exact_kernels():
        expected = tensors_in(model(*_copied(call)))
    found = tensors_in(tiled(*_copied(call)))
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def _copied(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """For a model may change what it is given."""
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in call)


def settled(model: nn.Module) -> nn.Module:
    """In eval mode, with weights that vary: no branch is multiplied by nothing, or shifted by it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if not (weight.is_floating_point() and weight.numel()):
                continue
            if weight.numel() == 1 or float(weight.std()) == 0 or float(weight.abs().max()) < 1e-3:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        for name, figures in model.named_buffers():
            if name.endswith("running_mean"):
                figures.copy_(0.1 * torch.randn(figures.shape, generator=generator))
            if name.endswith("running_var"):
                figures.copy_(0.5 + torch.rand(figures.shape, generator=generator))
    return model.eval()
