"""Figures known beforehand: the design's table of overlaps, and the price of recomputed halos."""

from __future__ import annotations

import pytest
import torch
from support.counting import products_of_convolutions
from support.small_models import small_survey

from overlap_tool import analyze, checkpoint
from overlap_tool.models.stages import survey

MBT_LIKE = {"g_a": (30, 15), "g_s": (1, 2), "h_a": (7, 4), "h_s": (1, 2)}
CHENG_LIKE = {"g_a": (57, 42), "g_s": (7, 7), "h_a": (7, 4), "h_s": (4, 4)}


@pytest.mark.parametrize(
    ("architecture", "known"),
    [
        ("bmshj2018-hyperprior", MBT_LIKE),
        ("mbt2018-mean", MBT_LIKE),
        ("mbt2018", MBT_LIKE),
        ("cheng2020-anchor", CHENG_LIKE),
    ],
)
def test_overlaps_of_the_published_models(architecture: str, known: dict[str, tuple[int, int]]) -> None:
    found = {}
    for stage in small_survey(architecture).stages:
        for axis in (stage.network.rows, stage.network.columns):
            if stage.name in known:
                # three ways to the same figure: reaching forward, the exact recursion, the published one
                assert axis.overlaps()[0] == axis.reaches()[-1].overlap
                assert axis.published_overlaps()[0] == axis.reaches()[-1].overlap
                found[stage.name] = tuple(axis.reaches()[-1].overlap)
    assert found == known


@pytest.mark.parametrize(
    ("source", "stage", "overhead"),
    [
        ("zoo:mbt2018", "g_a", 1.25),
        ("zoo:mbt2018", "g_s", 1.05),
        ("zoo:cheng2020-anchor", "g_a", 1.69),
        ("zoo:cheng2020-anchor", "g_s", 1.17),
    ],
)
def test_overhead_of_recomputed_halos_at_4k(source: str, stage: str, overhead: float) -> None:
    """At full width, 192 channels: sum over tiles of 256 against the full image of 3840x2176."""
    model = checkpoint.load_checkpoint(source).model
    report = analyze(model, size=(3840, 2176), tiles=[256], stage=stage).stages[0]
    assert round(report.tiles[0].overhead, 2) == overhead
    assert report.tiles[0].count == (15 * 9)
    network = survey(model, only=stage).stages[0].network
    size = (2176, 3840) if stage == "g_a" else (2176 // 16, 3840 // 16)
    x = torch.empty(1, network.ops[0].channels, *size, device="meta")
    assert report.full_macs == products_of_convolutions(model.get_submodule(stage), x)


def test_one_layer_counted_by_hand() -> None:
    report = analyze("zoo:mbt2018", size=(3840, 2176), tiles=[256], stage="g_a").stages[0]
    first = report.layers[0]
    assert first.macs == (3840 // 2) * (2176 // 2) * 192 * 3 * 5 * 5
