"""TCM in tiles: its blocks, ours and the authors', against the untouched ones on the whole map; its codec."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from types import ModuleType

import overlap_tool_tcm
import pytest
import torch
from overlap_tool_tcm.layers import MixedBlock, TwoSwinBlocks
from support.exactness import tiled_model, whole_models
from support.probes import COLUMNS, ROWS, perturbation_dependence
from support.small_models import small_model, small_survey
from support.textures import textured
from support.ways import in_tiles, stream, tiles
from torch import nn

import overlap_tool
from overlap_tool import checkpoint, exact_kernels
from overlap_tool.errors import GlobalOpError
from overlap_tool.geometry import Span
from overlap_tool.graph.trace import fitted, trace
from overlap_tool.graph.tracer import TrialError
from overlap_tool.settings import Settings
from overlap_tool.wrapping.retrofit import rewrap

NAME = overlap_tool_tcm.ARCHITECTURE.name
WINDOW = 4
STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture
def theirs(monkeypatch) -> ModuleType:
    """What stands in for the authors' `models.tcm`."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    return importlib.import_module("models.tcm")


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for weight in module.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5
    return module.eval()


KINDS = ["plain", "shifted", "two"]


def block(kind: str, theirs: ModuleType | None) -> nn.Module:
    """A small block of four channels, ours or the authors'."""
    if kind == "two":
        return theirs.SwinBlock(4, 2, WINDOW) if theirs else TwoSwinBlocks(4, 2, WINDOW)
    if theirs:
        return theirs.ConvTransBlock(2, 1, WINDOW, "W" if kind == "plain" else "SW")
    return MixedBlock(2, 1, WINDOW, 0 if kind == "plain" else WINDOW // 2)


def beside_convolutions(block: nn.Module) -> nn.Module:
    """With a stride before it and a kernel behind it, so that tiles ask for parts of windows."""
    return randomised(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), block, nn.Conv2d(4, 2, 3, padding=1)))


@pytest.mark.parametrize("whose", ["ours", "authors"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_in_tiles_have_the_bits_of_the_whole_map(kind: str, whose: str, theirs) -> None:
    module = beside_convolutions(block(kind, theirs if whose == "authors" else None))
    x = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    network = trace(module, "stage", 3)
    with torch.no_grad(), exact_kernels():
        full = module(x)
        for tile in ((12, 20), (5, 7), (3, 8)):
            for planner in (stream, tiles):
                assert torch.equal(in_tiles(network, x, tile, planner), full), (tile, planner)


@pytest.mark.parametrize("whose", ["ours", "authors"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_what_a_window_reads_is_what_brute_force_finds(dim: int, kind: str, whose: str, theirs) -> None:
    module = randomised(block(kind, theirs if whose == "authors" else None)).double()
    network = trace(module, "stage", 4)
    axis = network.rows if dim == ROWS else network.columns
    shape = (20, 8) if dim == ROWS else (8, 20)
    x = torch.randn(1, 4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    read = perturbation_dependence(module, x, dim)
    shift = 0 if kind == "plain" else WINDOW // 2
    for start in range(shift - WINDOW, 20, WINDOW):
        window = Span(start, start + WINDOW).clip(20)
        if not window.empty:
            lines = read[window.start : window.stop].any(dim=0).nonzero().flatten().tolist()
            static = axis.needs({len(axis.ops) - 1: window}, axis.sizes(20))[0]
            assert static == Span(lines[0], lines[-1] + 1), window


def test_what_stages_ask_for() -> None:
    found = small_survey(NAME)
    assert [stage.name for stage in found.stages[:5]] == ["g_a", "g_s", "h_a", "h_mean_s", "h_scale_s"]
    assert found.multiple == 128
    periods = {stage.name: stage.network.rows.reaches()[-1].period.input for stage in found.stages}
    # windows of 8 at an eighth of the image, of 4 and of 8 at a sixteenth and a thirty-second
    assert (periods["g_a"], periods["h_a"], periods["g_s"], periods["atten_mean.0"]) == (64, 8, 4, 8)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [ROWS, COLUMNS], ids=["rows", "columns"])
@torch.no_grad()
def test_overlaps_of_whole_stages_are_tight(dim: int) -> None:
    """An aligned tile changes with the outermost lines that it is said to read, and not with those beyond."""
    for stage in small_survey(NAME).stages[:7]:
        axis = stage.network.rows if dim == ROWS else stage.network.columns
        overlap, period = axis.reaches()[-1].overlap, axis.reaches()[-1].period
        first = -(-overlap.before // period.input) + 1
        core = Span(first * period.input, (first + 1) * period.input)
        long = -(-(core.stop + overlap.after + 1) // period.input) * period.input
        shape = (long, period.input) if dim == ROWS else (period.input, long)
        channels = stage.network.ops[0].channels
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(1, channels, *shape, dtype=torch.float64, generator=generator)
        module = copy.deepcopy(stage.module).double()
        tile = Span(first * period.output, (first + 1) * period.output)
        expected = module(x).narrow(dim, tile.start, tile.length)
        low, high = core.start - overlap.before, core.stop + overlap.after - 1
        for line, read in ((low - 1, False), (low, True), (high, True), (high + 1, False)):
            other = x.clone()
            other.select(dim, line).add_(1e3)
            found = module(other).narrow(dim, tile.start, tile.length)
            assert torch.equal(found, expected) != read, (stage.name, line)


@torch.no_grad()
def test_bitstreams() -> None:
    """The strings are those of the model that was given, and each decodes what the other encodes."""
    model, image = small_model(NAME), textured(128, 128)
    tiled = tiled_model(NAME)
    rewrap(tiled, Settings(tile=(64, 64)))
    with exact_kernels():
        expected = model.compress(image)
        decoded = model.decompress(expected["strings"], expected["shape"])["x_hat"]
        y = model.g_a(image)
    assert y.round().ne(0).float().mean() > 0.05
    found = tiled.compress(image)
    assert found["strings"] == expected["strings"]
    assert torch.equal(tiled.decompress(found["strings"], found["shape"])["x_hat"], decoded)


@pytest.mark.slow
def test_whole_models() -> None:
    whole_models(NAME, 384, 256, [(64, 64), (128, 80), (512, 512)])


@pytest.mark.slow
@torch.no_grad()
def test_full_width() -> None:
    model, image = checkpoint.load_checkpoint("zoo:tcm").model, textured(256, 256)
    with exact_kernels():
        full = model(image)
    for schedule in ("stream", "tiles"):
        found = overlap_tool.wrap(model, tile=128, schedule=schedule)(image)
        assert torch.equal(found["x_hat"], full["x_hat"]), schedule
        for name, likelihoods in full["likelihoods"].items():
            assert torch.equal(found["likelihoods"][name], likelihoods), (schedule, name)


# --- the authors' classes ---------------------------------------------------------------------------------


def test_their_model_is_the_same_in_tiles(theirs) -> None:
    """The stages of a model with their blocks ask for what ours ask for."""
    ours = small_survey(NAME)
    model = theirs.TCM(**overlap_tool_tcm.ARCHITECTURE.small).eval()
    model.load_state_dict(small_model(NAME).state_dict())
    h_a = next(stage for stage in ours.stages if stage.name == "h_a")
    network = trace(model.h_a, "h_a")
    assert [op.kind for op in network.ops[1:]].count("einsum") == 4
    assert network.rows.reaches()[-1] == h_a.network.rows.reaches()[-1]
    x = textured(32, 24).repeat(1, 3, 1, 1)[:, :8]
    with torch.no_grad(), exact_kernels():
        full = model.h_a(x)
        assert torch.equal(small_model(NAME).h_a(x), full)
        for planner in (stream, tiles):
            assert torch.equal(in_tiles(network, x, (2, 3), planner), full)


def test_their_gate_takes_no_map_of_one_window(theirs) -> None:
    """Their code pads it, does not crop it again, and fails."""
    network = trace(randomised(block("two", theirs)), "stage", 4)
    assert fitted(network, 1, 2 * WINDOW, 2 * WINDOW).accepts(2 * WINDOW, 2 * WINDOW)
    with pytest.raises(TrialError, match="reshape refuses"):
        fitted(network, 1, WINDOW, 2 * WINDOW)


def test_the_command_line_takes_their_class(theirs, run, tmp_path) -> None:
    small = overlap_tool_tcm.ARCHITECTURE.small
    state = small_model(NAME).state_dict()
    torch.save(
        {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "tcm.pth"
    )
    options = [
        "--model",
        "models.tcm:TCM",
        "--kwargs",
        json.dumps(small),
        "--stage",
        "h_a",
        "--format",
        "json",
    ]
    code, out, err = run("analyze", tmp_path / "tcm.pth", *options)
    assert code == 0, err
    assert json.loads(out)["stages"][0]["name"] == "h_a"


def with_other_windows(module: nn.Module) -> None:
    module.trans_block.msa.window_size = WINDOW // 2


def with_another_layer(module: nn.Module) -> None:
    module.conv_block = nn.Sequential(module.conv_block, nn.Conv2d(2, 2, 5, padding=2))


def without_attention(module: nn.Module) -> None:
    module.trans_block = nn.Identity()


@pytest.mark.parametrize("change", [with_other_windows, with_another_layer, without_attention])
def test_another_block_of_that_name_is_what_its_code_says(change, theirs) -> None:
    module = block("shifted", theirs)
    change(module)
    x = torch.randn(1, 4, 24, 16, generator=torch.Generator().manual_seed(0))
    network = trace(randomised(module), "stage", 4)
    with torch.no_grad(), exact_kernels():
        for planner in (stream, tiles):
            assert torch.equal(in_tiles(network, x, (5, 7), planner), module(x)), planner


def test_a_block_without_its_mask_is_refused(theirs) -> None:
    module = block("shifted", theirs)
    module.trans_block.msa.mask = lambda down, across: torch.zeros(
        1, 1, down * across, WINDOW**2, WINDOW**2, dtype=torch.bool
    )
    with pytest.raises(GlobalOpError, match="opposite border"):
        trace(nn.Sequential(module), "stage", 4)
