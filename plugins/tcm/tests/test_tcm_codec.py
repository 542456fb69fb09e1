"""TCM as a codec: recognised from its checkpoints, and what it compresses is what it decompresses."""

from __future__ import annotations

import numpy as np
import overlap_tool_tcm
import pytest
import torch
import torch.nn.functional as F
from compressai.ops import compute_padding
from support.photographs import as_samples, codec, photograph
from support.small_models import small_model
from support.textures import textured

from overlap_tool import checkpoint, exact_kernels, plugins
from overlap_tool.files import compress, decompress

NAME = overlap_tool_tcm.ARCHITECTURE.name


def test_the_plugin_is_found_by_its_entry_point() -> None:
    assert "tcm" in plugins.discover()


def test_it_is_recognised_as_itself_only() -> None:
    state = small_model(NAME).state_dict()
    assert [other for other in checkpoint.names() if checkpoint.find(other).detect(state)] == [NAME]


@pytest.mark.parametrize("updated", [True, False], ids=["with CDFs", "without"])
def test_a_checkpoint_as_the_authors_save_it(updated: bool, tmp_path) -> None:
    """Under `state_dict`, with `module.` before every key, and CDFs of whatever size or none."""
    model = small_model(NAME)
    state = model.state_dict()
    if not updated:
        tables = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")
        state = {key: tensor[:0] if key.endswith(tables) else tensor for key, tensor in state.items()}
    saved = {"epoch": 49, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    torch.save(saved, tmp_path / "tcm.pth.tar")
    loaded = checkpoint.load_checkpoint(tmp_path / "tcm.pth.tar")
    assert loaded.architecture == NAME
    assert loaded.arguments == overlap_tool_tcm.ARCHITECTURE.small
    found = loaded.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


def test_the_model_loads_a_state_dict_itself_with_cdfs_of_any_size() -> None:
    state = small_model(NAME).state_dict()
    assert state["gaussian_conditional._quantized_cdf"].numel() > 0
    model = overlap_tool_tcm.ARCHITECTURE.build(**overlap_tool_tcm.ARCHITECTURE.small)
    model.load_state_dict(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@torch.no_grad()
def test_what_is_decoded_is_what_forward_gives() -> None:
    model, image = small_model(NAME), textured(128, 128, images=2)
    with exact_kernels():
        coded = model.compress(image)
        decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
        forward = model(image)
        second = model.compress(image[1:])
    assert torch.equal(decoded, forward["x_hat"].clamp(0, 1))
    # one string for y and one for z of every image, which its neighbours in the batch do not touch
    assert [string[0] for string in second["strings"]] == [strings[1] for strings in coded["strings"]]
    assert sum(len(string) for strings in coded["strings"] for string in strings) > 64


@torch.no_grad()
def test_an_image_file_is_brought_up_to_whole_windows(tmp_path) -> None:
    """A hyper-latent of one window takes 128 pixels: files were brought up to 64 only, and refused."""
    coder, pixels = codec(NAME), photograph("chelsea", 50, 70)
    assert coder.multiple == 128
    np.save(tmp_path / "in.npy", pixels)
    compress(coder, tmp_path / "in.npy", tmp_path / "it.lic")
    decompress(coder, tmp_path / "it.lic", tmp_path / "out.npy")
    image = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    around, inside = compute_padding(50, 70, min_div=128)
    with exact_kernels():
        decoded = small_model(NAME).decompress(**small_model(NAME).compress(F.pad(image, around)))["x_hat"]
    expected = as_samples(F.pad(decoded, inside), pixels.dtype)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


@torch.no_grad()
def test_a_map_that_is_not_whole_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="8 rows and 6 columns are not whole windows of 4"):
        small_model(NAME)(textured(192, 256))
