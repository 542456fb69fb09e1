"""LLIC: its blocks against the paper's equations, its models in tiles against themselves, whole."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from overlap_tool_llic.blocks import (
    ChannelTransform,
    OwnKernels,
    SpatialTransform,
    TransformBlock,
    own_kernels,
    transforms,
)
from torch import Tensor, nn
from typer.testing import CliRunner

import overlap_tool
from overlap_tool import analyze, checkpoint, cli, exact_kernels
from overlap_tool.errors import UnknownOpError
from overlap_tool.files import Codec, compress, decompress
from overlap_tool.graph.segments import cut
from overlap_tool.models.stages import survey
from overlap_tool.rules import Call, Operand
from overlap_tool.settings import Settings
from overlap_tool.wrapping import rewrap

NAMES = ["llic-elic", "llic-stf", "llic-tcm"]


@cache
def small(name: str) -> nn.Module:
    """Treat it as read-only."""
    known = checkpoint.find(name)
    model = checkpoint.seeded_model(known, dict(known.small)).eval()
    model.update()
    return model


def pooled(x: Tensor) -> Tensor:
    """To 3x3, by the definition of adaptive pooling."""
    height, width = x.shape[-2:]
    cells = [
        x[..., i * height // 3 : -(-(i + 1) * height // 3), j * width // 3 : -(-(j + 1) * width // 3)]
        for i in range(3)
        for j in range(3)
    ]
    return torch.stack([cell.mean((-2, -1)) for cell in cells], -1).unflatten(-1, (3, 3))


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias)


def by_own_kernels(x: Tensor, kernels: Tensor) -> Tensor:
    """Window by window, zeros outside the map."""
    side = kernels.shape[-1]
    windows = F.unfold(x, side, padding=side // 2).unflatten(1, (x.shape[1], side * side))
    return torch.einsum("bckp,bck->bcp", windows, kernels.flatten(2)).view_as(x)


def condition(transform: nn.Module, x: Tensor) -> Tensor:
    return conv(transform.condition.numbers, conv(transform.condition.down, pooled(x)))


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["spatial", "channel"])
def test_a_block_computes_the_papers_equations(kind):
    """Eqs. 5, 7 and 9; 10 and 11 for channels."""
    torch.manual_seed(1)
    transform = SpatialTransform(4, 5) if kind == "spatial" else ChannelTransform(4)
    block = TransformBlock(4, transform).double()
    for norm in (block.norm, block.gate_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias)
    x = torch.randn(2, 4, 11, 8, dtype=torch.double)

    embedded = block.embedding(normalised(block.norm, x))
    made = condition(transform, embedded)
    main = conv(transform.main, embedded)
    changed = by_own_kernels(main, made.view(2, 4, 5, 5)) if kind == "spatial" else made * main
    skip = conv(block.mix, changed) + x
    gated = normalised(block.gate_norm, skip)
    first, second = conv(block.gate.widen, gated).split(4, 1)
    expected = conv(block.gate.mix, first * second) + gated + skip

    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_embedding_is_a_depth_wise_residual_block():
    torch.manual_seed(2)
    layers = TransformBlock(3, nn.Identity()).double().embedding
    first, _, second, _, third = layers.layers
    x = torch.randn(1, 3, 6, 7, dtype=torch.double)
    wide = F.leaky_relu(conv(first, x), 0.01)
    deep = by_own_kernels(wide, second.weight[None, :, 0]) + second.bias[:, None, None]
    expected = x + conv(third, F.leaky_relu(deep, 0.01))
    torch.testing.assert_close(layers(x), expected, rtol=1e-12, atol=1e-12)
    assert first.out_channels == 6


def test_each_image_is_convolved_by_its_own_kernels():
    torch.manual_seed(3)
    x, kernels = torch.randn(3, 4, 9, 10).double(), torch.randn(3, 4, 5, 5).double()
    found = OwnKernels()(x, kernels)
    torch.testing.assert_close(found, by_own_kernels(x, kernels), rtol=1e-12, atol=1e-12)
    assert not torch.equal(found[:1], OwnKernels()(x[:1], kernels[1:2]))


def test_kernels_that_are_made_from_the_map_itself_are_refused():
    x = Operand("x", (2, 3, 9, 9), spatial=True)
    with pytest.raises(UnknownOpError, match="kernels made from a whole one"):
        own_kernels(Call("g_a.convolve", "OwnKernels", None, (), ()), OwnKernels(), x, x)


def test_the_kernels_are_11_11_9_and_9_and_the_synthesis_goes_the_other_way():
    g_a, g_s = transforms(4, 6)
    assert [stage.block[0].transform.side for stage in g_a] == [11, 11, 9, 9]
    assert [stage.block[1].transform.side for stage in g_s] == [9, 9, 11, 11]
    x = torch.zeros(1, 3, 32, 48)
    with torch.no_grad():
        y = g_a(x)
        assert y.shape == (1, 6, 2, 3)
        assert g_s(y).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_recognised_and_loads(name, tmp_path):
    model = small(name)
    torch.save(model.state_dict(), tmp_path / "llic.pt")
    loaded = checkpoint.load_checkpoint(tmp_path / "llic.pt")
    assert loaded.architecture == name
    assert loaded.arguments == dict(checkpoint.find(name).small)
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("name", ["llic-elic", "llic-stf", pytest.param("llic-tcm", marks=pytest.mark.slow)])
@torch.no_grad()
def test_tiles_give_the_whole_images_bits_and_bytes(name):
    model = small(name)
    side = 128 if name == "llic-tcm" else 64  # TCM's latents are whole windows on multiples of 128
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(4))
    with exact_kernels():
        full, stream = model(x), model.compress(x[:1])
        decoded = model.decompress(**stream)["x_hat"]
    assert full["x_hat"].isfinite().all()
    assert sum(len(string) for strings in stream["strings"] for string in strings) > 64
    tiled = overlap_tool.wrap(model)
    for schedule, tile in (("stream", (48, 32)), ("tiles", (32, 48))):
        rewrap(tiled, Settings(tile=tile, schedule=schedule))
        assert torch.equal(tiled(x)["x_hat"], full["x_hat"]), schedule
        assert tiled.compress(x[:1])["strings"] == stream["strings"], schedule
        assert torch.equal(tiled.decompress(**stream)["x_hat"], decoded), schedule


@torch.no_grad()
def test_files_with_nothing_in_memory_but_a_band(tmp_path):
    """Kernels from whole maps, pass by pass, and ELIC's groups and checkerboards: all maps lie in files."""
    model = small("llic-elic")
    pixels = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
    np.save(tmp_path / "in.npy", pixels)
    image = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with exact_kernels():
        decoded = model.decompress(**model.compress(image))["x_hat"]
    wrapped = Codec(overlap_tool.wrap(model, tile=32), "llic-elic", "", "llic")
    notes: list[str] = []
    told = compress(wrapped, tmp_path / "in.npy", tmp_path / "it.lic", in_memory=200, notify=notes.append)
    decompress(wrapped, tmp_path / "it.lic", tmp_path / "out.npy", in_memory=200, notify=notes.append)
    expected = torch.round(decoded[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    assert (told.bands or 0) > 1
    assert notes == []


def test_a_transform_takes_a_pass_more_for_every_block():
    """Two blocks at each of four scales. Between passes lie the two maps that a block starts from."""
    model = small("llic-elic")
    stages = {stage.name: stage for stage in survey(model).stages}
    report = {stage.name: stage for stage in analyze(model, size=(256, 192), tiles=[64]).stages}
    for name in ("g_a", "g_s"):
        segments = cut(stages[name].network)
        assert report[name].passes == len(segments) == 9
        # but for the first map of g_s, which the stage is given
        assert [len(segment.stored) for segment in segments] == [2 - (name == "g_s"), *[2] * 7, 0]
        assert report[name].left is None
    # pass 0: 3x3 with stride 2, then 3x3 twice at half size; pass 1: 11x11, then the 3x3 that embeds
    reads = [{(read.left, read.right) for read in part.reads} for part in report["g_a"].segments]
    assert reads[0] == {(4 + 1, 4)}
    assert reads[1] == {(5 + 1, 5 + 1), (1, 1)}
    # 8 channels at half of 256x192, twice
    assert report["g_a"].store_bytes == 4 * 8 * 128 * 96 * 4
    assert report["g_a"].segments[0].store_bytes == 4 * 8 * 128 * 96 * 2


@pytest.mark.parametrize("stage", ["g_a", "g_s"])
def test_verify_holds_on_the_command_line(stage, tmp_path):
    """Whole tiles equal the untouched stage, and in each pass every side of each overlap is needed."""
    source, report = tmp_path / "llic.pt", tmp_path / "report.json"
    torch.save(small("llic-elic").state_dict(), source)
    told = CliRunner().invoke(
        cli.app, ["verify", str(source), "--tile", "64", "--stage", stage, "--report", str(report)]
    )
    assert told.exit_code == 0, told.output
    checks = [check for check in json.loads(report.read_text())["checks"] if check["name"] == "minimality"]
    shown = {check["figures"]["segment"] for check in checks if check["status"] == "passed"}
    # what g_a computes after its last barrier reads single positions
    assert shown == set(range(8 if stage == "g_a" else 9))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_at_full_width_it_holds(name):
    certificate = overlap_tool.verify(f"zoo:{name}", tiles=[256], schedules=["stream"], size=(384, 320))
    assert certificate.holds, [check.message for check in certificate.of("failed")]
