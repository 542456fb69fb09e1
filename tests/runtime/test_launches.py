"""What a tile asks of a GPU: how many kernels it launches, and that it waits for none. On an emulated one."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from support.emulated_gpu import can_emulate, emulated_gpu
from support.small_models import small_model

import overlap_tool

if torch.cuda.is_available() or not can_emulate():
    pytest.skip("a GPU cannot, or need not, be emulated", allow_module_level=True)

KERNELS = {"g_a": {"tiled": 7, "rsqrt": 3}, "g_s": {"tiled": 7, "sqrt": 3}}
"""Of ours, for a tile of a narrow mbt2018: four convolutions, and in each of three GDNs one and a function.
Of transposed convolutions this narrow, all phases come together."""

MOST = {"g_a": 33, "g_s": 34}
"""Of PyTorch's: 21 of a tile's are what GDNs make of their weights, every time, and pack."""


@pytest.mark.parametrize("stage", KERNELS)
def test_a_tile_waits_for_nothing_and_its_launches_are_known(monkeypatch, stage: str) -> None:
    found = []
    with emulated_gpu(monkeypatch) as gpu, torch.no_grad():
        model = copy.deepcopy(small_model("mbt2018")).cuda()
        run = getattr(overlap_tool.wrap(model, tile=64, schedule="tiles"), stage)
        for tiles in (4, 4, 6):  # at first, layers are tried
            image = torch.rand(1, 3, 64, 64 * tiles, device="cuda")
            x = image if stage == "g_a" else model.g_a(image)
            for seen in (gpu.waits, gpu.launched, gpu.driver.launches):
                seen.clear()
            run(x)
            found.append((Counter(launch.name for launch in gpu.driver.launches), Counter(gpu.launched)))
        assert gpu.waits == []
    (_, _), (ours, others), (more, further) = found
    assert more - ours == Counter({name: 2 * count for name, count in KERNELS[stage].items()})
    assert (further - others).total() <= 2 * MOST[stage], further - others
