"""STF and WACNN as codecs: their checkpoints, what they decode, and all of it in tiles, bit for bit."""

from __future__ import annotations

import copy
import json

import overlap_tool_stf
import pytest
import torch
from overlap_tool_stf import slices
from overlap_tool_stf.attention import WindowAttention
from overlap_tool_stf.swin import SwinBlock
from support.exactness import tiled_model
from support.small_models import small_model
from support.textures import textured
from torch import nn
from typer.testing import CliRunner

from overlap_tool import analyze, checkpoint, exact_kernels, plugins, wrap
from overlap_tool.cli import app
from overlap_tool.models import range_coding
from overlap_tool.settings import Settings
from overlap_tool.wrapping.retrofit import load, rewrap, save, tiled_stages

both = pytest.mark.parametrize("name", ["stf", "wacnn"])


def test_the_plugin_is_found_by_its_entry_point() -> None:
    assert "stf" in plugins.discover()
    assert {overlap_tool_stf.STF.name, overlap_tool_stf.WACNN.name} <= set(checkpoint.names())


# --- checkpoints -----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("updated", [True, False], ids=["with CDFs", "without"])
def test_a_checkpoint_as_the_authors_save_it(name: str, updated: bool, tmp_path) -> None:
    """Under `state_dict`, also with `module.` before every key, and CDFs of whatever size or none."""
    state = small_model(name).state_dict()
    if not updated:
        tables = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")
        state = {key: tensor[:0] if key.endswith(tables) else tensor for key, tensor in state.items()}
    prefix = "" if updated else "module."
    torch.save({"state_dict": {prefix + key: tensor for key, tensor in state.items()}}, tmp_path / "saved.pt")
    loaded = checkpoint.load_checkpoint(tmp_path / "saved.pt")
    assert (loaded.architecture, loaded.arguments) == (name, checkpoint.find(name).small)
    found = loaded.model.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


@both
def test_arguments_are_read_from_the_shapes(name: str) -> None:
    known = checkpoint.find(name)
    others = {
        "stf": {"embed_dim": 8, "depths": [1, 3, 2, 1], "heads": [2, 1, 4, 8], "slices": 8},
        "wacnn": {"N": 8, "M": 80},
    }
    state = known.build(**others[name]).state_dict()
    assert checkpoint.detect(state) is known
    assert known.arguments(state) == others[name]


@both
def test_the_model_loads_a_state_dict_itself_with_cdfs_of_any_size(name: str) -> None:
    known, state = checkpoint.find(name), small_model(name).state_dict()
    assert state["gaussian_conditional._quantized_cdf"].numel() > 0
    model = known.build(**known.small)
    model.load_state_dict(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_names_of_stages_are_in_no_key_also_of_copies_and_parts() -> None:
    model = small_model("stf")
    for one in (model, copy.deepcopy(model)):
        assert not any(key.startswith(("g_a.", "g_s.")) for key in one.state_dict())
        outer = nn.ModuleDict({"codec": one})
        state = outer.state_dict()
        assert "codec.patch_embed.proj.weight" in state
        assert list(state) == [f"codec.{key}" for key in model.state_dict()]
        outer.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*g_s\.end_conv\.0\.weight"):
        copy.deepcopy(model).load_state_dict(
            {key: tensor for key, tensor in model.state_dict().items() if key != "end_conv.0.weight"}
        )


# --- the codec, whole and in tiles -----------------------------------------------------------------------


@both
@torch.no_grad()
def test_in_tiles_it_gives_the_same_bits_bytes_and_image(name: str, tmp_path) -> None:
    model, image = small_model(name), textured(128, 64)
    with exact_kernels():
        forward, coded = model(image), model.compress(image)
        decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
    assert torch.equal(decoded, forward["x_hat"].clamp(0, 1))
    tiled = tiled_model(name)
    for schedule in ("stream", "tiles"):
        rewrap(tiled, Settings(tile=(48, 40), schedule=schedule))
        assert torch.equal(tiled(image)["x_hat"], forward["x_hat"]), schedule
        assert tiled.compress(image)["strings"] == coded["strings"], schedule
        assert torch.equal(tiled.decompress(**coded)["x_hat"], decoded), schedule
    save(tiled, tmp_path / "tiled.pt", name, checkpoint.find(name).small)
    assert torch.equal(load(tmp_path / "tiled.pt")(image)["x_hat"], forward["x_hat"])


@both
@torch.no_grad()
def test_a_string_that_was_cut_short_goes_on_with_zeros(name: str) -> None:
    """CompressAI's decoder looks for no end, and would read what happens to lie behind."""
    model = small_model(name)
    written = model.compress(textured(128, 128))
    [whole], of_z = written["strings"]
    short = whole[: len(whole) // 8 * 4]
    found = model.decompress([[short], of_z], written["shape"])
    expected = model.decompress([[short + bytes(1 << 16)], of_z], written["shape"])
    assert torch.equal(found["x_hat"], expected["x_hat"])
    with pytest.raises(ValueError, match="2 strings for y"):
        model.decompress([[whole, whole], of_z], written["shape"])


@torch.no_grad()
def test_no_more_symbols_are_a_list_than_go_to_the_coder_at_once(monkeypatch) -> None:
    model = small_model("wacnn")
    written = model.compress(textured(128, 128))
    decoded = model.decompress(written["strings"], written["shape"])["x_hat"]
    monkeypatch.setattr(range_coding, "SYMBOLS_AT_ONCE", 7)
    lengths: list[int] = []

    class Watched(slices.BufferedRansEncoder):
        def encode_with_indexes(self, symbols, indexes, *tables):
            lengths.extend((len(symbols), len(indexes)))
            super().encode_with_indexes(symbols, indexes, *tables)

    monkeypatch.setattr(slices, "BufferedRansEncoder", Watched)
    assert model.compress(textured(128, 128)) == written
    assert max(lengths) == 7
    assert torch.equal(model.decompress(written["strings"], written["shape"])["x_hat"], decoded)


def test_the_phase_is_the_larger_window_at_its_scale() -> None:
    """WACNN: windows of 8 at a quarter, and of 4 at a sixteenth; STF: windows of 4 at a sixteenth."""
    for name in ("wacnn", "stf"):
        report = analyze(small_model(name), size=(256, 256), tiles=[128], stage="g_a").stages[0]
        assert (report.period, report.period_rows) == (64, 64)
        assert report.status == "proved"


@both
@torch.no_grad()
def test_analysis_is_exact_for_images_of_any_size_or_left_to_the_model(name: str) -> None:
    tiled, odd = tiled_model(name), textured(75, 101)
    assert "g_a" in tiled_stages(tiled)
    if name == "wacnn":
        with pytest.raises(ValueError, match="26 rows and 19 columns are not whole windows of 8"):
            tiled.g_a(odd)
        return
    with exact_kernels():
        expected = small_model(name).g_a(odd)
    for schedule in ("stream", "tiles"):
        rewrap(tiled, Settings(tile=(48, 48), schedule=schedule))
        assert torch.equal(tiled.g_a(odd), expected)


@torch.no_grad()
def test_attention_is_what_the_definition_says_place_by_place() -> None:
    """By loops over places: whom each may see, and what it makes of it."""
    torch.manual_seed(0)
    attn = WindowAttention(4, 2, window=3, shift=1, fills=True).double()
    nn.init.normal_(attn.relative_position_bias_table)
    x = torch.randn(1, 4, 7, 5, dtype=torch.float64)
    filled = torch.zeros(4, 9, 6, dtype=torch.float64)
    filled[:, :7, :5] = x[0]
    q, k, v = attn.qkv(filled.permute(1, 2, 0)).unflatten(-1, (3, 2, 2)).unbind(2)
    found = torch.zeros(7, 5, 2, 2, dtype=torch.float64)

    def seen(at: int, n: int) -> list[int]:
        first = (at - 1) // 3 * 3 + 1
        return [i for i in range(first, first + 3) if 0 <= i < n]

    for row in range(7):
        for column in range(5):
            places = [(i, j) for i in seen(row, 9) for j in seen(column, 6)]
            for head in range(2):
                scores = [
                    q[row, column, head] @ k[i, j, head] / 2**0.5
                    + attn.relative_position_bias_table[(row - i + 2) * 5 + column - j + 2, head]
                    for i, j in places
                ]
                weights = torch.softmax(torch.stack(scores), 0)
                found[row, column, head] = sum(
                    w * v[i, j, head] for w, (i, j) in zip(weights, places, strict=True)
                )
    expected = attn.proj(found.flatten(2)).permute(2, 0, 1)[None]
    torch.testing.assert_close(attn(x), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_block_makes_its_windows_whole_after_the_norm() -> None:
    """Zeros after the norm: before it, they would become the norm's bias."""
    block = SwinBlock(4, 2, shift=2)
    nn.init.normal_(block.norm1.bias)
    x = torch.randn(1, 4, 6, 7)
    y = x + block.attn(nn.functional.pad(block.norm1(x), (0, 1, 0, 2)))[..., :6, :7]
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


# --- the command line ------------------------------------------------------------------------------------


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


@both
def test_the_commands(name: str, tmp_path) -> None:
    saved, made = tmp_path / "small.pth.tar", tmp_path / "tiled.pt"
    torch.save({"state_dict": small_model(name).state_dict()}, saved)
    told = json.loads(run("analyze", saved, "--size", "256x192", "--stage", "g_a", "--format", "json"))
    assert (told["architecture"], told["stages"][0]["period"]) == (name, 64)
    run("wrap", saved, "--size", "256x192", "--tile", 128, "--output", made)
    found = checkpoint.load_checkpoint(made)
    assert found.architecture == name
    assert torch.equal(found.model.h_a[0].bias, small_model(name).h_a[0].bias)


@pytest.mark.slow
@both
def test_verify_finds_every_stage_and_the_bitstream_equal(name: str, tmp_path) -> None:
    saved, report = tmp_path / "small.pth.tar", tmp_path / "certificate.json"
    torch.save({"state_dict": small_model(name).state_dict()}, saved)
    run("verify", saved, "--tile", 64, "--report", report)
    told = json.loads(report.read_text())
    stages = {check["stage"] for check in told["checks"] if check["status"] == "passed"}
    assert {"g_a", "g_s", "h_a", "h_mean_s", "h_scale_s"} <= stages
    assert {check["name"] for check in told["checks"] if check["status"] == "passed"} >= {"bitstream"}


# --- full width ------------------------------------------------------------------------------------------


@pytest.mark.slow
@both
@torch.no_grad()
def test_at_full_width(name: str) -> None:
    model, image = checkpoint.seeded_model(checkpoint.find(name)), textured(256, 192)
    with exact_kernels():
        forward, coded = model(image), model.compress(image)
    for schedule in ("stream", "tiles"):
        tiled = wrap(model, tile=128, schedule=schedule)
        assert torch.equal(tiled(image)["x_hat"], forward["x_hat"])
        assert tiled.compress(image)["strings"] == coded["strings"]
