"""What an overlap of one sample less costs: which outputs are lost, and what trained weights make of it."""

from __future__ import annotations

import pytest
import torch
from support.small_models import small_survey
from torch import Tensor

import overlap_tool
from benchmarks.ablation import losses
from benchmarks.training import held_out, trained
from overlap_tool import Certificate, exact_kernels
from overlap_tool.models.stages import Stage
from overlap_tool.settings import Settings
from overlap_tool.verification.ablation import short_of_overlap

TILE = 64


def _stage(name: str) -> tuple[Stage, Tensor]:
    """A stage of a small mbt2018-mean, and an input for it, of an image of 208x160."""
    stage = next(each for each in small_survey("mbt2018-mean").stages if each.name == name)
    channels = stage.network.ops[0].channels
    height, width = (int(side * stage.input_scale) for side in (160, 208))
    generator = torch.Generator().manual_seed(0)
    return stage, torch.rand(1, channels, height, width, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize(("name", "overlap", "scale"), [("g_a", (30, 15), 1 / 16), ("g_s", (1, 2), 16)])
def test_what_reads_a_missing_sample_is_lost(name, overlap, scale) -> None:
    """Against the stage's own forward on the whole map, with NaN in place of the sample."""
    stage, whole = _stage(name)
    with exact_kernels():
        expected = stage.module(whole)
        lost = torch.zeros_like(expected, dtype=torch.bool)
        tile = int(TILE * stage.input_scale)
        for axis in (-2, -1):
            for start in range(0, whole.shape[axis], tile):
                own = slice(int(start * scale), int((start + tile) * scale))
                for missing in (start - overlap[0], start + tile + overlap[1] - 1):
                    if 0 <= missing < whole.shape[axis]:
                        blind = whole.clone()
                        blind.transpose(axis, 0)[missing] = torch.nan
                        unknown = stage.module(blind).isnan().transpose(axis, 0)[own]
                        lost.transpose(axis, 0)[own] |= unknown
        with short_of_overlap([stage], "output", Settings(tile=(TILE, TILE), schedule="tiles")):
            found = stage.module(whole)
        assert torch.equal(stage.module(whole), expected), "and nothing of it stays"
    assert 0.1 < float(lost.float().mean()) < 0.9
    assert torch.equal(found, expected.masked_fill(lost, 0.0))


@pytest.fixture(scope="module")
def certificate(one_thread) -> Certificate:
    model = trained("hyperprior-nocontext", {"N": 16, "M": 24}, steps=300)
    return overlap_tool.verify(model, tiles=[256], schedules=["tiles"], images=held_out()[:1], ablate=True)


@pytest.mark.slow
def test_trained_weights_rank_the_stages_as_published(certificate) -> None:
    """Slide "Minimal Overlap Validation", where g_s is the worst, then g_a, and rates rise for want of h_s.

    That h_a costs rate takes a longer training, and is no part of this.
    """
    assert certificate.holds, certificate.of("failed")
    found = losses(certificate, "output")
    assert list(found)[:4] == ["h_a", "h_s", "g_a", "g_s"]
    assert found["g_s"].rate == 0
    assert found["h_s"].rate > 0.1
    assert found["g_a"].psnr < -1
    assert found["g_s"].psnr < found["g_a"].psnr
    assert found["g_s"].cost > found["g_a"].cost > max(found["h_a"].cost, found["h_s"].cost) > 0


@pytest.mark.slow
def test_tiles_that_pad_suffer_far_less(certificate) -> None:
    lost, padded = losses(certificate, "output"), losses(certificate, "input")
    for stage in ("g_a", "g_s"):
        assert abs(padded[stage].psnr) < -lost[stage].psnr / 4
    assert padded["g_s"].psnr < 0
