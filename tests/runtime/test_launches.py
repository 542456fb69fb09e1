"""What a tile asks of a GPU: how many kernels it launches, and that it waits for none. On an emulated one."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from support import host_time
from support.emulated_driver import Stream
from support.emulated_gpu import can_emulate, emulated_gpu
from support.small_models import small_model

import overlap_tool
from overlap_tool.planning.choose import Shape
from overlap_tool.wrapping.retrofit import tiled_stages

if torch.cuda.is_available() or not can_emulate():
    pytest.skip("a GPU cannot, or need not, be emulated", allow_module_level=True)

OURS = {
    ("g_a", "tiles"): {"few_inputs": 1, "tiled": 6},
    ("g_s", "tiles"): {"tiled": 7, "copied": 4},
    ("g_a", "stream"): {"few_inputs": 1, "tiled": 6, "copied": 3},
    ("g_s", "stream"): {"tiled": 7, "copied": 7},
}
"""For a tile of a narrow mbt2018: four convolutions, and in each of three GDNs one that squares what it reads
and has root and product along. Of transposed convolutions this narrow, all phases come together, and go to
their places then. A stream joins what it computes with what it kept: one launch for what comes before a layer
and what is kept after another, in one band and in several."""

OTHERS = {
    ("g_a", "tiles"): {"clone": 1, "copy_": 1},
    ("g_s", "tiles"): {"clone": 5, "copy_": 1},
    ("g_a", "stream"): {"clone": 1, "copy_": 1},
    ("g_s", "stream"): {"clone": 5, "copy_": 1},
}
"""Of PyTorch's: the tile is read, its result put in its place, and channels that are phases spread out."""


@pytest.mark.parametrize(
    ("stage", "schedule", "bands", "batch"),
    [
        *((*each, 1, 1) for each in OTHERS),
        ("g_a", "stream", 4, 1),
        ("g_s", "stream", 4, 1),
        ("g_a", "tiles", 1, 4),
    ],
)
def test_a_tile_waits_for_nothing_and_its_launches_are_known(
    monkeypatch, stage: str, schedule: str, bands: int, batch: int
) -> None:
    """In streams of several bands a tile of `g_a` once took 13 launches. Twelve are the most. Of tiles that
    are computed together, each is read and put in its place by itself."""
    few, many = 3 + 4 * batch, 3 + 6 * batch
    found = []
    with emulated_gpu(monkeypatch) as gpu, torch.no_grad():
        model = copy.deepcopy(small_model("mbt2018")).cuda()
        run = tiled_stages(overlap_tool.wrap(model, tile=64, schedule=schedule, batch=batch))[stage]
        for tiles in (few, few, many, many):  # at first, layers are tried, and what was recorded
            image = torch.rand(1, 3, 64 * bands - 32, 64 * tiles, device="cuda")
            x = image if stage == "g_a" else model.g_a(image)
            gpu.launched.clear()
            gpu.driver.launches.clear()
            run(x)
            assert run.plan(Shape(1, *x.shape[2:])).segments[0].rows.count == bands
            names = (launch.told for launch in gpu.driver.launches)
            found.append((Counter(names), Counter(gpu.launched), tuple(gpu.waits)))
            gpu.waits.clear()
    _, (ours, others, waits), _, (more, further, later) = found
    assert waits == later == ()
    assert more - ours == Counter({name: 2 * bands * count for name, count in OURS[stage, schedule].items()})
    each = Counter(OTHERS[stage, schedule])
    if batch > 1:
        each += Counter(clone=batch - 1, cat=1, copy_=batch - 1)
    expected = {f"aten::{name}": 2 * bands * count for name, count in each.items()}
    assert further - others == Counter(expected)
    replayed = sum(OURS[stage, schedule].values()) + sum(OTHERS[stage, schedule].values())
    assert stage != "g_a" or replayed <= 12


@pytest.mark.parametrize(
    ("schedule", "how"), [("stream", {}), ("tiles", {"batch": 4}), ("tiles", {"uniform": True})]
)
def test_tiles_of_maps_in_host_memory_are_not_waited_for(
    monkeypatch, schedule: str, how: dict[str, Any]
) -> None:
    """The host waits for what the first tile reads, and when all is launched. Other pieces are copied ahead,
    from pinned memory, and results are put in their places at the end."""
    with emulated_gpu(monkeypatch) as gpu, torch.no_grad():
        monkeypatch.setattr(Stream, "synchronize", lambda self: gpu.waits.append("synchronize"))
        model = copy.deepcopy(small_model("mbt2018")).cuda()
        run = tiled_stages(overlap_tool.wrap(model, tile=64, schedule=schedule, store="host", **how))["g_a"]
        image = torch.rand(1, 3, 64 * 2, 64 * 7)
        run(image)  # kernels are tried, and what was recorded
        gpu.waits.clear()
        found, waits = run(image), tuple(gpu.waits)
        with overlap_tool.exact_kernels():
            expected = model.g_a(image.cuda()).cpu()
    assert torch.equal(found, expected)
    tiles = run.plan(Shape(1, *image.shape[2:])).tiles
    assert waits == ("aten::_to_copy",) * 2 + ("synchronize",) * tiles


def test_weights_that_change_between_calls_are_seen(monkeypatch) -> None:
    """They are prepared once for a call, however they were written."""
    with emulated_gpu(monkeypatch), torch.no_grad():
        model = copy.deepcopy(small_model("mbt2018")).cuda()
        tiled = overlap_tool.wrap(model, tile=64, schedule="tiles")
        image = torch.rand(1, 3, 64, 64 * 7, device="cuda")
        for _ in range(2):
            tiled.g_a[1].gamma.data.mul_(1.5)
            tiled.g_a[2].weight.data.mul_(1.5)
            found = tiled.g_a(image)
            with overlap_tool.exact_kernels():
                assert torch.equal(found, type(model.g_a).forward(tiled.g_a, image))


def test_the_time_of_the_host_can_still_be_taken(monkeypatch) -> None:
    """It was not, for as long as what it reaches into had another name."""
    monkeypatch.setattr(host_time, "TILES", 6)
    replayed, median = host_time.microseconds("g_a", "tiles")
    assert replayed == 4  # all but the first and the last, by what the pass before has recorded
    assert median > 0
