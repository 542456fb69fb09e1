"""`analyze`, `wrap` and `verify` of a codec that is a closed loop."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from overlap_tool_kamisli.blockwise import History
from overlap_tool_kamisli.causality import Reach
from overlap_tool_kamisli.codec import BlockCodec
from support.small_models import small_model
from support.textures import textured
from typer.testing import CliRunner

import overlap_tool
from overlap_tool import cli, exact_kernels
from overlap_tool.errors import OptionError, TrainingModeError
from overlap_tool.models.closed_loop import CausalReach
from overlap_tool.planning.live_bytes import LiveBytes
from overlap_tool.settings import ORDERS

NAMES = ["kamisli", "kamisli-hps2"]
names = pytest.mark.parametrize("name", NAMES)
orders = pytest.mark.parametrize("order", ORDERS)


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def saved(name: str, folder: Path) -> Path:
    path = folder / f"{name}.pth.tar"
    torch.save({"state_dict0": small_model(name).state_dict()}, path)
    return path


@names
def test_analyze_tells_the_causal_reach(name: str, tmp_path) -> None:
    wide = 2 if name == "kamisli-hps2" else 1
    expected = (
        CausalReach("analysis", 8, 1, 1, 1, 2),
        CausalReach("mean_scale", 8, wide, wide, wide, 2),
        CausalReach("synthesis", 8, 1, 1, 1, 2),
    )
    report = overlap_tool.analyze(small_model(name), size=(100, 60))
    assert report.causal == expected
    assert report.padded == (104, 64)
    # the layers' own rules, which know of no reach, say the same
    for stage, reach in zip(report.stages, expected, strict=True):
        assert (stage.name, stage.input_scale * reach.block) == (reach.network, 1)
        assert (stage.left, stage.right, stage.top, stage.bottom) == (reach.left, reach.right, reach.up, 0)
    path = saved(name, tmp_path)
    code, printed = command("analyze", path, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert code == 0
    assert all(f"{8 * wide}, {8 * wide}, {8 * wide}" in text for text in (printed, page))
    assert page.count("A sample is a block of 8x8 pixels. wrap goes block by block") == 3
    assert "what wrap does" not in page
    code, printed = command("analyze", path, "--format", "json", "--stage", "mean_scale")
    told = json.loads(printed)
    assert told["causal"][1] == {
        "network": "mean_scale", "block": 8, "left": wide, "right": wide, "up": wide, "behind": 2
    }  # fmt: skip
    assert [stage["name"] for stage in told["stages"]] == ["mean_scale"]


@names
@orders
@torch.no_grad()
def test_a_wrapped_loop_gives_the_bits_of_the_untouched_one(name: str, order: str) -> None:
    codec, image = small_model(name), textured(56, 40)
    tiled = overlap_tool.wrap(codec, schedule=order)
    with exact_kernels():
        expected, coded = codec(image), codec.compress(image)
    assert torch.equal(tiled(image)["x_hat"], expected["x_hat"])
    assert tiled.compress(image) == coded
    for model in (tiled, copy.deepcopy(tiled)):
        assert torch.equal(model.decompress(**coded)["x_hat"], expected["x_hat"])
    plain = overlap_tool.unwrap(tiled)
    assert "forward" in vars(tiled)
    assert not {"forward", "compress", "decompress"} & vars(plain).keys()
    assert tiled.state_dict().keys() == codec.state_dict().keys()


@names
@torch.no_grad()
def test_a_wrapped_loop_in_a_file(name: str, tmp_path) -> None:
    target = tmp_path / "codec.tiled.pt"
    code, printed = command("wrap", saved(name, tmp_path), "--output", target, "--size", "96x64")
    assert (code, "wavefront" in printed) == (0, True)
    image = textured(32, 24)
    with exact_kernels():
        expected = small_model(name)(image)
    assert torch.equal(overlap_tool.load(target)(image)["x_hat"], expected["x_hat"])
    certificate = overlap_tool.verify(target, tiles=[16])
    assert certificate.holds
    assert {check.schedule for check in certificate.checks if check.name == "bitstream"} == {"wavefront"}


@names
@orders
@torch.no_grad()
def test_the_memory_told_is_the_memory_taken(name: str, order: str) -> None:
    codec, image = small_model(name), textured(96, 48)
    tiled = overlap_tool.wrap(codec, schedule=order)
    (plan,) = overlap_tool.plans(tiled, (96, 48)).values()
    assert (plan.schedule, plan.tiles, plan.tile) == (order, 12 * 6, (8, 8))
    layers = sum(stage.full_macs for stage in overlap_tool.analyze(codec, size=(96, 48)).stages)
    assert plan.macs == layers
    tiled.compress(image[..., :8, :8])  # the first use of a layer's kernel tries it, on maps of its own
    with LiveBytes(image, *tiled.parameters(), *tiled.buffers()) as live:
        tiled.compress(image)
    assert 0.5 * plan.working_bytes < live.peak <= plan.working_bytes


def test_what_cannot_be_chosen_is_refused() -> None:
    codec = small_model("kamisli")
    for options in ({"tile": 64}, {"memory": "2GiB"}, {"store": "disk"}):
        with pytest.raises(OptionError, match="goes block by block"):
            overlap_tool.wrap(codec, **options)
    with pytest.raises(OptionError, match="cannot be cut in tiles"):
        overlap_tool.wrap(codec, schedule="stream")
    with pytest.raises(OptionError, match="wrapped already"):
        overlap_tool.wrap(overlap_tool.wrap(codec))
    with pytest.raises(OptionError, match="no such network"):
        overlap_tool.analyze(codec, stage="g_a")
    training = overlap_tool.wrap(copy.deepcopy(codec)).train()
    with pytest.raises(TrainingModeError):
        training(torch.rand(1, 3, 16, 16))
    other = overlap_tool.wrap(small_model("mbt2018-mean"), tile=64, schedule="raster")
    with pytest.raises(OptionError, match="closed loops"):
        other(torch.rand(1, 3, 64, 64))


@names
def test_verify_holds(name: str, tmp_path) -> None:
    report = tmp_path / "report.json"
    code, printed = command(
        "verify", saved(name, tmp_path), "--tile", "16", "--schedule", "both", "--report", report
    )
    assert (code, "holds" in printed) == (0, True), printed
    checks = json.loads(report.read_text())["checks"]
    held = {(check["name"], check["stage"]) for check in checks if check["status"] == "passed"}
    networks = ("analysis", "mean_scale", "synthesis")
    assert held >= {(kind, network) for kind in ("stage-equality", "minimality") for network in networks}
    sides = {c["figures"]["side"] for c in checks if (c["name"], c["status"]) == ("minimality", "passed")}
    assert sides == {"left", "right", "top"}
    for kind in ("model-equality", "bitstream", "decoding"):
        orders = {c["schedule"] for c in checks if (c["name"], c["status"]) == (kind, "passed")}
        assert orders == set(ORDERS), kind


def test_verify_finds_a_history_that_forgets(monkeypatch) -> None:
    around = History.around

    def forgetful(self: History, front: object) -> torch.Tensor:
        read = around(self, front)  # type: ignore[arg-type]
        read[:, :, self.taps.index((-1, 1))] = 0
        return read

    monkeypatch.setattr(History, "around", forgetful)
    certificate = overlap_tool.verify(small_model("kamisli"), tiles=[16], schedules=["wavefront"])
    failed = {check.name for check in certificate.of("failed")}
    assert {"model-equality", "bitstream"} <= failed


def test_verify_finds_rows_that_are_too_close(monkeypatch) -> None:
    """A row that is one block behind finds its neighbour to the right missing."""
    monkeypatch.setattr(Reach, "slope", 1)
    certificate = overlap_tool.verify(small_model("kamisli"), tiles=[16], schedules=["wavefront"])
    assert not certificate.holds


@pytest.mark.slow
@names
def test_verify_at_full_width(name: str) -> None:
    assert overlap_tool.verify(f"zoo:{name}", size=(72, 72), tiles=[32]).holds


def test_a_model_is_a_closed_loop_by_what_it_brings() -> None:
    from overlap_tool.models.closed_loop import ClosedLoop

    assert isinstance(small_model("kamisli"), ClosedLoop)
    assert not isinstance(small_model("mbt2018"), ClosedLoop)
    assert BlockCodec.colours == 3
