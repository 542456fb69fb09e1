"""CPS: the paper's figures, its checkpoints recognised, and all that holds for the built-in architectures."""

from __future__ import annotations

from fractions import Fraction

import overlap_tool_cps
import pytest
import torch
from support.dependence import (
    one_sample_less_on_either_side_loses_a_dependency,
    static_spans_are_the_brute_force_spans,
    static_spans_cover_what_gradients_find,
)
from support.exactness import bitstreams, stages_of_odd_sizes, whole_models
from support.probes import COLUMNS, ROWS
from support.small_models import small_model
from support.textures import textured

import overlap_tool
from overlap_tool import checkpoint, exact_kernels, plugins

NAME = overlap_tool_cps.ARCHITECTURE.name


def test_whole_models() -> None:
    whole_models(NAME, 128, 64, [(48, 48), (80, 32), (512, 512)])


def test_stages_of_odd_sizes() -> None:
    stages_of_odd_sizes(NAME)


def test_bitstreams() -> None:
    bitstreams(NAME)


@pytest.mark.slow
def test_larger_images_are_the_same_in_tiles() -> None:
    whole_models(NAME, 576, 640, [(64, 64), (128, 80), (256, 256), (512, 512)])


@pytest.mark.parametrize("dim", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_spans_are_minimal(dim: int) -> None:
    static_spans_are_the_brute_force_spans(NAME, dim)
    one_sample_less_on_either_side_loses_a_dependency(NAME, dim)


def test_spans_cover_what_gradients_find() -> None:
    static_spans_cover_what_gradients_find(NAME)


def test_the_figures_of_the_paper() -> None:
    g_a = overlap_tool.analyze(small_model(NAME), size=(512, 256), tiles=[256], stage="g_a").stages[0]
    assert (g_a.receptive_field, g_a.receptive_field_rows) == (72, 72)
    assert g_a.scale == Fraction(1, 16)
    assert g_a.padding_free_overlap == 64
    # eq. 4 bounds the overlap by whole latents; what a tile reads beyond its own pixels is r - rho
    assert (g_a.left, g_a.right, g_a.top, g_a.bottom) == (28, 28, 28, 28)


def test_transforms_without_padding() -> None:
    model = small_model(NAME)
    layers = [layer for part in (model.g_a, model.g_s) for layer in part.modules()]
    paddings = [layer.padding for layer in layers if hasattr(layer, "padding")]
    assert len(paddings) > 20
    assert set(paddings) == {(0, 0)}


@torch.no_grad()
def test_patches_that_overlap_by_64_pixels_stitch_to_the_whole() -> None:
    """The paper's own way: plain patches of 128 pixels, less the two latents on each side out of reach."""
    model, patch, overlap, scale = small_model(NAME), 128, 64, 16
    edge = overlap // scale // 2
    image = textured(320, 256)
    with exact_kernels():
        whole = model.g_a(image)
        stitched = torch.full_like(whole, float("nan"))
        for top in range(0, 256 - patch + 1, patch - overlap):
            for left in range(0, 320 - patch + 1, patch - overlap):
                latents = model.g_a(image[..., top : top + patch, left : left + patch])
                row, column = top // scale + edge, left // scale + edge
                kept = latents[..., edge:-edge, edge:-edge]
                stitched[..., row : row + kept.shape[-2], column : column + kept.shape[-1]] = kept
    inside = (..., slice(edge, -edge), slice(edge, -edge))
    assert torch.equal(stitched[inside], whole[inside])


@torch.no_grad()
def test_the_seeded_reconstruction_is_not_clipped_away() -> None:
    """Or else the decoded images that other tests compare would be all black or white."""
    decoded = small_model(NAME)(textured(128, 64))["x_hat"]
    assert ((decoded > 0) & (decoded < 1)).float().mean() > 0.25


def test_a_checkpoint_is_recognised(tmp_path) -> None:
    model = small_model(NAME)
    path = tmp_path / "cps.pth"
    torch.save(model.state_dict(), path)
    loaded = checkpoint.load_checkpoint(path)
    assert (loaded.architecture, loaded.arguments) == (NAME, {"N": 8, "M": 12})
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], tensor), key


@pytest.mark.parametrize("other", [name for name in checkpoint.names() if name != NAME])
def test_no_other_architecture_is_taken_for_it(other: str) -> None:
    known = checkpoint.find(other)
    assert not known.detect(small_model(NAME).state_dict())
    assert not overlap_tool_cps.ARCHITECTURE.detect(known.build(**known.small).state_dict())


def test_it_is_found_by_its_entry_point() -> None:
    assert NAME in plugins.discover()


@pytest.mark.slow
@torch.no_grad()
def test_full_width() -> None:
    model = checkpoint.load_checkpoint(f"zoo:{NAME}").model
    image = textured(256, 192)
    with exact_kernels():
        full = model(image)
    assert torch.equal(overlap_tool.wrap(model, tile=128, inplace=True)(image)["x_hat"], full["x_hat"])
