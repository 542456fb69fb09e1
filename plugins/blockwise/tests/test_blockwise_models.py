"""The block-based codec's models: recognised, built as published, and the same in tiles, bit for bit.

Two of the four are CompressAI's own, and known to overlap_tool without a plugin; its tests hold their spans
and their bits. What is asked of all four here is what the paper is about: overlaps, and one sample less.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from functools import cache, reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import overlap_tool_blockwise.architectures  # noqa: F401  (registers them)
import pytest
import torch
from support.small_models import small_model
from support.textures import textured
from torch import Tensor, nn
from typer.testing import CliRunner

import overlap_tool
from overlap_tool import checkpoint, cli, exact_kernels, plugins
from overlap_tool.geometry import Span
from overlap_tool.models.stages import Stage, survey
from overlap_tool.settings import Schedule

OURS = ["hyperprior-nocontext", "hyperprior-checkerboard"]
MODELS = [*OURS, "cheng2020-anchor-checkerboard", "elic2022-official"]
VERIFIED = [*MODELS[:-1], pytest.param(MODELS[-1], marks=pytest.mark.slow)]
"""To verify ELIC's many stages takes as long as the other three together."""
SCHEDULES: list[Schedule] = ["stream", "tiles"]
ROWS, COLUMNS = -2, -1


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def stages(name: str) -> tuple[Stage, ...]:
    return survey(small_model(name)).stages


# --- recognised and built ---------------------------------------------------------------------------------


def test_the_plugin_is_found_by_its_entry_point() -> None:
    assert "blockwise" in plugins.discover()


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_recognised_as_itself_only(name: str) -> None:
    state = small_model(name).state_dict()
    assert [other for other in checkpoint.names() if checkpoint.find(other).detect(state)] == [name]


def test_no_other_model_is_taken_for_one_of_ours() -> None:
    for name in set(checkpoint.names()) - set(OURS):
        state = small_model(name).state_dict()
        assert not [ours for ours in OURS if checkpoint.find(ours).detect(state)], name


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("N", "M"), [(2, 4), (6, 3), (5, 5), (8, 12)])
def test_widths_are_read_from_a_checkpoint(name: str, N: int, M: int, tmp_path: Path) -> None:
    model = checkpoint.seeded_model(checkpoint.find(name), {"N": N, "M": M})
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    loaded = checkpoint.load_checkpoint(tmp_path / "model.pth")
    assert loaded.architecture == name
    assert loaded.arguments == {"N": N, "M": M}
    assert loaded.weights_sha256 == checkpoint.hash_weights(model.state_dict())


def in_mbt2018s_place(key: str) -> str:
    """What CompressAI's mbt2018 calls a tensor of ours."""
    for prefix in ("latent_codec.hyper.", "latent_codec.y.y.", "latent_codec.y."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


@torch.no_grad()
def test_without_context_it_is_the_mean_scale_hyperprior() -> None:
    """With the weights of CompressAI's mbt2018-mean it gives that model's image and likelihoods."""
    theirs = small_model("mbt2018-mean")
    weights = theirs.state_dict()
    ours = checkpoint.find(OURS[0]).build(**checkpoint.find(OURS[0]).small).eval()
    assert {in_mbt2018s_place(key) for key in ours.state_dict()} == set(weights)
    ours.load_state_dict({key: weights[in_mbt2018s_place(key)] for key in ours.state_dict()})
    image = textured(128, 64)
    with exact_kernels():
        found, expected = ours(image), theirs(image)
    assert torch.equal(found["x_hat"], expected["x_hat"])
    for part in ("y", "z"):
        assert torch.equal(found["likelihoods"][part], expected["likelihoods"][part])


def test_with_checkerboard_it_is_mbt2018_with_another_mask() -> None:
    ours, theirs = small_model(OURS[1]).state_dict(), small_model("mbt2018").state_dict()
    coding = ("quantized_cdf", "cdf_length", "offset")  # sizes follow from the weights
    shapes = {in_mbt2018s_place(key): t.shape for key, t in ours.items() if not key.endswith(coding)}
    assert shapes == {key: t.shape for key, t in theirs.items() if not key.endswith(coding)}
    mask = ours["latent_codec.y.context_prediction.mask"]
    board = torch.arange(5).add(torch.arange(5).unsqueeze(1)).remainder(2)
    assert torch.equal(mask, board.to(mask).expand_as(mask))


# --- spans and overlaps -----------------------------------------------------------------------------------


def lines_read(module: nn.Module, image: Tensor, dim: int) -> Tensor:
    """[output, input]: whether a line of outputs changes with a line of inputs, by brute force.

    NaN in a line's place shows every use of it. Where weights are masked, 0 times NaN would show uses that
    there are not, so that a large number stands there.
    """
    fill = 1e3 if hasattr(module, "mask") else float("nan")
    changed = image.repeat(image.shape[dim], 1, 1, 1)
    for line, each in enumerate(changed):
        each.select(dim, line).fill_(fill)
    with torch.no_grad():
        same = torch.isclose(module(changed), module(image), rtol=1e-9, atol=1e-9)
    across = COLUMNS if dim == ROWS else ROWS
    return same.logical_not().any(dim=across).any(dim=1).T


@pytest.mark.parametrize("dim", [ROWS, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize("name", OURS)
def test_static_spans_are_the_brute_force_spans(name: str, dim: int) -> None:
    for stage in stages(name):
        axis = stage.network.rows if dim == ROWS else stage.network.columns
        reach = axis.reaches()[-1]
        long = reach.receptive_field + 3 * reach.period.input + 1
        narrow = max(reach.period.input, 2)
        size = (long, narrow) if dim == ROWS else (narrow, long)
        generator = torch.Generator().manual_seed(0)
        channels = stage.network.ops[0].channels
        image = torch.rand(1, channels, *size, generator=generator, dtype=torch.float64)
        read = lines_read(copy.deepcopy(stage.module).double(), image, dim)
        sizes = axis.sizes(long)
        assert sizes[-1] == len(read), stage.name
        for output, inputs in enumerate(read):
            lines = inputs.nonzero().flatten().tolist()
            static = axis.needs({len(axis.ops) - 1: Span(output, output + 1)}, sizes)[0]
            assert static == Span(lines[0], lines[-1] + 1), f"{stage.name}, output {output}"


Overlap = tuple[int, int]
Step = Callable[[Overlap], Overlap]
"""From the overlap on the left and right of an op's output to that of its input."""


def convolution(k: int, s: int = 1) -> Step:
    """Slide "[Sec. 2] Minimal Overlap Calculation", first pair of formulas."""
    h = (k - 1) // 2
    return lambda o: (s * o[0] + h, s * o[1] + max(0, (k - 1 - h) - (s - 1)))


def transposed(k: int, s: int = 1) -> Step:
    """The same slide, second pair. It is stated from the input to the output; this is the way back."""
    h = (k - 1) // 2
    return lambda o: ((o[0] + h) // s, (o[1] + (k - 1 - h) + (s - 1)) // s)


def shuffled(o: Overlap) -> Overlap:
    """A pixel shuffle by 2, of which the slides say nothing."""
    return -(-o[0] // 2), -(-o[1] // 2)


BLOCK = [convolution(3), convolution(3)]
DOWN = [convolution(3, 2), convolution(3)]
UP = [convolution(3), shuffled, convolution(3)]
BOTTLENECKS = ATTENTION = [convolution(3)] * 3
HYPERPRIOR = {
    "g_a": [convolution(5, 2)] * 4,
    "g_s": [transposed(5, 2)] * 4,
    "h_a": [convolution(3), *[convolution(5, 2)] * 2],
    "h_s": [*[transposed(5, 2)] * 2, convolution(3)],
    "context_prediction": [convolution(5)],
}
CHENG = {
    "g_a": [*(DOWN + BLOCK) * 3, convolution(3, 2)],
    "g_s": [*(BLOCK + UP) * 3, *BLOCK, convolution(3), shuffled],
    "h_a": [*[convolution(3)] * 2, *DOWN, convolution(3, 2)],
    "h_s": [convolution(3), *UP, convolution(3), shuffled, convolution(3)],
    "context_prediction": [convolution(5)],
}
ELIC = {
    "g_a": [
        *[convolution(5, 2), *BOTTLENECKS] * 2,
        *[*ATTENTION, convolution(5, 2), *BOTTLENECKS],
        *[convolution(5, 2), *ATTENTION],
    ],
    "g_s": [
        *[*ATTENTION, transposed(5, 2), *BOTTLENECKS],
        *[transposed(5, 2), *ATTENTION, *BOTTLENECKS],
        *[transposed(5, 2), *BOTTLENECKS],
        transposed(5, 2),
    ],
    "h_a": [convolution(3), *[convolution(5, 2)] * 2],
    "h_s": [*[transposed(5, 2)] * 2, transposed(3)],
    "y1": [convolution(5)] * 3,
    "y2": [convolution(5)] * 3,
    "context_prediction": [convolution(5)],
}
LAYERS = dict(zip(MODELS, (HYPERPRIOR, HYPERPRIOR, CHENG, ELIC), strict=True))
"""Every stage along its longest path: at a join the other branches are cropped to it, as slide "[Sec. 3]
Handling Multi-Path Network" has it."""
OVERLAPS = {
    "hyperprior-nocontext": {"g_a": (30, 15), "g_s": (1, 2), "h_a": (7, 4), "h_s": (1, 2)},
    "hyperprior-checkerboard": {
        "g_a": (30, 15),
        "g_s": (1, 2),
        "h_a": (7, 4),
        "h_s": (1, 2),
        "context_prediction": (2, 2),
    },
}
"""The README's table. The slides print formulas, and no overlap of any model."""


@pytest.mark.parametrize("name", MODELS)
def test_overlaps_are_those_of_the_slides_formulas(name: str) -> None:
    """Slide "[Sec. 2] Minimal Overlap Calculation", from each stage's output to its input."""
    for stage in stages(name):
        layers = LAYERS[name][stage.name.rpartition(".")[2]]
        start: Overlap = (0, 0)
        expected = reduce(lambda overlap, layer: layer(overlap), reversed(layers), start)
        for axis in (stage.network.rows, stage.network.columns):
            assert tuple(axis.reaches()[-1].overlap) == expected, stage.name
            assert tuple(axis.published_overlaps()[0]) == expected, stage.name


@pytest.mark.parametrize("name", OURS)
def test_overlaps_are_those_of_the_readme(name: str) -> None:
    found = {
        stage.name.rpartition(".")[2]: tuple(stage.network.columns.reaches()[-1].overlap)
        for stage in stages(name)
    }
    assert found == OVERLAPS[name]


# --- tiles give the bits of the full image ----------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OURS)
def test_tiles_give_the_bits_of_the_full_image(name: str, schedule: Schedule) -> None:
    model = small_model(name)
    image = textured(192, 128)
    with exact_kernels():
        full = model(image)
    for tile in (64, (128, 80)):
        found = overlap_tool.wrap(model, tile=tile, schedule=schedule)(image)
        assert torch.equal(found["x_hat"], full["x_hat"]), tile
        for part in ("y", "z"):
            assert torch.equal(found["likelihoods"][part], full["likelihoods"][part]), tile


@torch.no_grad()
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OURS)
def test_tiles_write_the_same_bitstream(name: str, schedule: Schedule) -> None:
    model = small_model(name)
    image = textured(192, 128)
    with exact_kernels():
        expected = model.compress(image)
        decoded = model.decompress(expected["strings"], expected["shape"])["x_hat"]
        assert torch.equal(decoded, model(image)["x_hat"].clamp(0, 1)), "forward is what is decoded"
        share = float(model.g_a(image).round().ne(0).float().mean())
    assert share > 0.05, f"only {share:.1%} of the symbols are not zero, so that strings prove little"
    assert all(len(string) > 32 for strings in expected["strings"] for string in strings)
    for tile in (64, 48):
        tiled = overlap_tool.wrap(model, tile=tile, schedule=schedule)
        found = tiled.compress(image)
        assert found["strings"] == expected["strings"], tile
        assert torch.equal(tiled.decompress(found["strings"], found["shape"])["x_hat"], decoded), tile


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", OURS)
def test_full_width_too(name: str) -> None:
    model = checkpoint.load_checkpoint(f"zoo:{name}").model
    image = textured(256, 192)
    with exact_kernels():
        full = model(image)
    for schedule in SCHEDULES:
        found = overlap_tool.wrap(model, tile=128, schedule=schedule)(image)
        assert torch.equal(found["x_hat"], full["x_hat"]), schedule


# --- one sample less --------------------------------------------------------------------------------------


@cache
def certificate(name: str) -> dict[str, Any]:
    """What the command line writes of a checkpoint that it has to recognise."""
    with TemporaryDirectory() as folder:
        source, report = f"{folder}/model.pth", f"{folder}/report.json"
        torch.save(small_model(name).state_dict(), source)
        options = ("--tile", "64", "--schedule", "tiles", "--ablate", "--report", report)
        told = CliRunner().invoke(cli.app, ["verify", source, *options])
        assert told.exit_code == 0, told.output
        assert "Overlaps of one sample less" in told.output
        written: dict[str, Any] = json.loads(Path(report).read_text())
    assert written["architecture"] == name
    return written


def checks(name: str, kind: str) -> list[dict[str, Any]]:
    return [check for check in certificate(name)["checks"] if check["name"] == kind]


@pytest.mark.parametrize("name", VERIFIED)
def test_every_stage_needs_its_whole_overlap(name: str) -> None:
    """One tile with one sample less on one side comes out wrong, on every side of every stage."""
    assert certificate(name)["verdict"] == "holds"
    for stage in stages(name):
        of_stage = [check for check in checks(name, "minimality") if check["stage"] == stage.name]
        assert [check["status"] for check in of_stage] == ["passed"] * 4, stage.name
        # in ELIC's g_a and g_s the farthest samples weigh less than a float32 holds
        if name != "elic2022-official" or stage.name not in ("g_a", "g_s"):
            assert all(check["figures"]["changed_by_zeros"] for check in of_stage), stage.name


def ablated(name: str, zeros: str) -> dict[str, dict[str, Any]]:
    of_kind = (check for check in checks(name, "ablation") if check["figures"]["zeros"] == zeros)
    return {check["stage"]: check["figures"] for check in of_kind}


@pytest.mark.parametrize("name", VERIFIED)
def test_the_image_changes_with_one_sample_less(name: str) -> None:
    """Slide "[Sec. 4] Experiment in Various LIC Models", Minimal Overlap Validation.

    Seeded weights show that the image changes, and not that it degrades: what they decode is no picture. In
    the deeper two models they give the farthest samples of g_a so little weight that no symbol flips.
    """
    padded = ablated(name, "input")
    assert list(padded) == [*(stage.name for stage in stages(name)), "all stages"]
    assert padded["g_s"]["change_of_bits_per_pixel"] == 0, "what comes after coding costs no bits"
    unseen = {stage for stage, figures in padded.items() if not figures["differing"]}
    assert unseen == (set() if name in OURS else {"g_a"})
    if name in OURS:
        quality = {stage: figures["psnr_to_exact"] for stage, figures in padded.items()}
        del quality["all stages"]
        assert min(quality, key=lambda stage: quality[stage]) == "g_s", "the worst, as in the paper's table"


@pytest.mark.parametrize("name", VERIFIED)
def test_tiles_that_do_not_pad_lose_outputs(name: str) -> None:
    """Then it is g_a and g_s that the image suffers from most, whatever the weights."""
    lost, padded = ablated(name, "output"), ablated(name, "input")
    assert list(lost) == list(padded)
    for stage, figures in lost.items():
        assert figures["psnr_to_exact"] < padded[stage].get("psnr_to_exact", math.inf), stage
    quality = {stage: figures["psnr_to_exact"] for stage, figures in lost.items() if stage != "all stages"}
    assert set(sorted(quality, key=lambda stage: quality[stage])[:2]) == {"g_a", "g_s"}
