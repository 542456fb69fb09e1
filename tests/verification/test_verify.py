"""`verify` finds that tiles are exact, and finds fault, and whose fault, where they are not."""

from __future__ import annotations

import ast
import importlib.util
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from PIL import Image
from support.coding import NamedCodec
from support.counting import products_of_convolutions
from support.networks import PlainCnn, ThirdPartyCodec
from support.small_models import small_model, small_survey
from torch import Tensor, nn

import overlap_tool
from overlap_tool import Certificate, report
from overlap_tool.errors import CodingError, OptionError, SlowKernelWarning
from overlap_tool.geometry import Padding, Window
from overlap_tool.geometry.layout import Layout
from overlap_tool.geometry.walk import Turn
from overlap_tool.kernels import cpu
from overlap_tool.kernels.form import Form
from overlap_tool.planning.choose import Shape, plan_stage
from overlap_tool.rules import Rule, extend, register_rule
from overlap_tool.rules.convolution import windows
from overlap_tool.runtime.execute import Execution
from overlap_tool.settings import Settings, Size
from overlap_tool.verification import Check, equality
from overlap_tool.verification.images import seeded, telling_size
from overlap_tool.verification.pieces import halo

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = ("left", "right", "top", "bottom")


@pytest.fixture(scope="module")
def certificate(one_thread) -> Certificate:
    return overlap_tool.verify(small_model("mbt2018-mean"), tiles=[64, 96], ablate=True)


def _of(certificate: Certificate, name: str, stage: str | None = None) -> list[Check]:
    return [c for c in certificate.checks if c.name == name and stage in (None, c.stage)]


# --- what holds -------------------------------------------------------------------------------------------


def test_a_codec_holds(certificate) -> None:
    assert certificate.holds, certificate.of("failed")
    assert certificate.architecture == "MeanScaleHyperprior"
    ways = [((side, side), schedule) for side in (64, 96) for schedule in ("stream", "tiles")]
    for stage in ("g_a", "g_s", "h_a", "h_s"):
        checks = _of(certificate, "stage-equality", stage)
        assert [(check.tile, check.schedule, check.status) for check in checks] == [
            (*way, "passed") for way in ways
        ]
        assert all(check.figures["tiles"] > 1 for check in checks)
    for name in ("bitstream", "decoding"):
        checks = _of(certificate, name)
        assert [(check.tile, check.schedule, check.status) for check in checks] == [
            (*way, "passed") for way in ways
        ]
        assert all(check.figures.get("bytes", 100) > 50 for check in checks)
    outputs = [check.figures["output"] for check in _of(certificate, "model-equality")]
    assert outputs == ["x_hat", "likelihoods.y", "likelihoods.z"] * len(ways)


def test_every_side_is_minimal_or_has_no_overlap(certificate) -> None:
    for stage in small_survey("mbt2018-mean").stages:
        rows, columns = stage.network.rows.reaches()[-1].overlap, stage.network.columns.reaches()[-1].overlap
        overlaps = dict(zip(SIDES, (*columns, *rows), strict=True))
        checks = _of(certificate, "minimality", stage.name)
        assert len(checks) == 2 * len(SIDES)
        for check in checks:
            side = str(check.figures["side"])
            assert check.figures["overlap"] == overlaps[side]
            assert check.status == "passed"
            assert check.figures["overlap_of_tile"] == overlaps[side] > 0
            assert check.figures["lost_outputs"] >= check.figures["changed_by_zeros"] > 0


def test_a_side_without_overlap_is_skipped() -> None:
    """What is causal reads nothing below."""
    certificate = overlap_tool.verify(
        small_model("mbt2018"), tiles=[64], schedules=["tiles"], stage="context_prediction"
    )
    results = {str(check.figures["side"]): check.status for check in _of(certificate, "minimality")}
    assert results == dict.fromkeys(SIDES, "passed") | {"bottom": "skipped"}


def test_the_symbols_are_told(certificate) -> None:
    (latents,) = _of(certificate, "latents")
    width, height = certificate.images[0].padded
    arguments = overlap_tool.checkpoint.find("mbt2018-mean").small
    expected = arguments["M"] * width * height // 256 + arguments["N"] * width * height // 4096
    assert latents.figures["symbols"] == expected
    assert 0.5 < latents.figures["nonzero_share"] <= 1


def test_the_librarys_kernels_are_noted_and_never_fail(certificate) -> None:
    noted = _of(certificate, "exact-against-stock") + _of(certificate, "stock-tiles-against-stock")
    assert len(noted) == 1 + 4
    for check in noted:
        assert check.status == "noted"
        assert 0 < check.figures["largest_difference"] < 1e-4
        assert check.figures["differing"] > 0
        assert {"differing_symbols", "bitstream_identical", "image_identical_in_8_bits"} <= set(check.figures)


def test_ablation_shows_what_each_stage_needs(certificate) -> None:
    for tile, zeros in product(((64, 64), (96, 96)), ("input", "output")):
        of_tile = [check for check in _of(certificate, "ablation") if check.tile == tile]
        found = {check.stage: check.figures for check in of_tile if check.figures["zeros"] == zeros}
        assert list(found) == ["g_a", "g_s", "h_a", "h_s", "all stages"]
        assert found["g_s"]["change_of_bits_per_pixel"] == 0, "what comes after coding costs no bits"
        assert found["g_s"]["differing"] > 0
        for stage in ("g_a", "h_a", "h_s", "all stages"):
            assert found[stage]["change_of_bits_per_pixel"] != 0
        assert found["all stages"]["psnr_to_exact"] <= found["g_s"]["psnr_to_exact"]


def test_plans_have_the_tiles_and_the_products_of_what_runs(certificate) -> None:
    width, height = certificate.images[0].padded
    for side in (64, 96):
        tiles = [
            r.tiles for r in certificate.plans if (r.stage, r.schedule, r.tile[0]) == ("g_a", "tiles", side)
        ]
        assert tiles == [ceil(width / side) * ceil(height / side)]
    stages = {stage.name: stage for stage in small_survey("mbt2018-mean").stages}
    assert {record.stage for record in certificate.plans} == set(stages)
    for record in certificate.plans:
        stage = stages[record.stage]
        size = int(height * stage.input_scale), int(width * stage.input_scale)
        x = torch.empty(1, stage.network.ops[0].channels, *size, device="meta")
        products = products_of_convolutions(stage.module, x)
        assert record.macs == products if record.schedule == "stream" else record.macs > products


def test_the_machine_is_named_with_every_library_that_kernels_use(certificate) -> None:
    machine = certificate.machine
    assert machine.device
    assert machine.threads == 1
    libraries = {"python": platform.python_version()}
    for source in Path(overlap_tool.kernels.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            else:
                named = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for package in {name.partition(".")[0] for name in named} - sys.stdlib_module_names:
                found = importlib.util.find_spec(package)
                version = importlib.import_module(package).__version__ if found else "not installed"
                libraries[package.replace("_", "-")] = version
    assert {"torch", "llvmlite", "overlap-tool"} <= set(libraries)
    assert libraries.items() <= machine.libraries.items()


def test_the_model_is_left_as_it_was() -> None:
    model = small_model("mbt2018-mean")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    overlap_tool.verify(model, tiles=[64], schedules=["tiles"], stage="h_a", ablate=True)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("model", [PlainCnn, ThirdPartyCodec])
def test_networks_that_code_nothing(model) -> None:
    network = model().eval()
    for parameter in network.parameters():
        parameter.data.mul_(4)  # so that the symbols of made-up weights are not all 0
    certificate = overlap_tool.verify(network, tiles=[32], ablate=True)
    assert certificate.holds, certificate.of("failed")
    assert {check.status for check in _of(certificate, "bitstream")} == {"skipped"}
    assert {check.status for check in _of(certificate, "decoding")} == {"skipped"}
    assert {check.message for check in _of(certificate, "bitstream")} == {"the model has no compress"}
    assert _of(certificate, "ablation")


def test_a_codec_whose_compress_gives_more_than_strings() -> None:
    certificate = overlap_tool.verify(small_model("elic2022-official"), tiles=[32], schedules=["tiles"])
    assert certificate.holds, certificate.of("failed")
    assert {check.status for check in _of(certificate, "decoding")} == {"passed"}


@pytest.mark.slow
def test_every_architecture_holds(architecture) -> None:
    certificate = overlap_tool.verify(small_model(architecture), tiles=[64])
    assert certificate.holds, certificate.of("failed")
    assert all(check.status == "passed" for check in _of(certificate, "decoding"))


def test_one_stage_is_verified_alone() -> None:
    certificate = overlap_tool.verify(small_model("mbt2018-mean"), tiles=[64], stage="h_s")
    assert {check.stage for check in certificate.checks} == {"h_s"}
    assert certificate.holds


def test_a_tile_with_two_sides_and_one_schedule() -> None:
    certificate = overlap_tool.verify(PlainCnn().eval(), tiles=[(16, 24)], schedules=["stream"])
    assert {(c.tile, c.schedule) for c in _of(certificate, "stage-equality")} == {((16, 24), "stream")}
    assert {c.schedule for c in _of(certificate, "minimality")} == {"tiles"}


# --- what does not ----------------------------------------------------------------------------------------


def _register_conv(
    narrower: Callable[[Window, Window, int], tuple[Window, Window]], only: tuple = ()
) -> None:
    """A convolution whose rule names other inputs than it reads, and makes up zeros for those it lacks."""

    @register_rule(nn.Conv2d, override=True)
    def conv(call, module: nn.Conv2d, input) -> Rule:
        wanted = windows(module.kernel_size, module.stride, module.padding, module.dilation)
        kernel = module.kernel_size[0]
        claimed = narrower(*wanted, kernel) if not only or module.kernel_size == only else wanted

        def run(patches, module, input) -> Tensor:
            piece = extend(input, patches, Padding.CONSTANT)
            missing = []
            for patch, own in zip(reversed(patches), reversed(wanted), strict=True):
                need = own.need(patch.out)
                missing += [patch.need.start - need.start, need.stop - patch.need.stop]
            piece = nn.functional.pad(piece, missing)
            return nn.functional.conv2d(piece, module.weight, module.bias, module.stride, 0, module.dilation)

        return Rule(run, *claimed)


NARROWER = {
    "left": lambda rows, columns, kernel: (rows, columns.masked(range(1, kernel))),
    "right": lambda rows, columns, kernel: (rows, columns.masked(range(kernel - 1))),
    "top": lambda rows, columns, kernel: (rows.masked(range(1, kernel)), columns),
    "bottom": lambda rows, columns, kernel: (rows.masked(range(kernel - 1)), columns),
}


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize("side", SIDES)
def test_a_rule_that_claims_too_little_is_blamed_on_the_overlap(own_rules, side, schedule) -> None:
    _register_conv(NARROWER[side], only=(4, 4))
    certificate = overlap_tool.verify(PlainCnn().eval(), tiles=[16], schedules=[schedule])
    assert not certificate.holds
    (check,) = _of(certificate, "stage-equality")
    assert (check.status, check.figures["fault"], check.figures["op"]) == ("failed", "overlap", "down")
    assert "down (Conv2d)" in check.message
    assert "overlap" in check.message
    assert check.figures["differing"] > 0
    assert "failed" in {check.status for check in _of(certificate, "model-equality")}


def test_a_rule_that_claims_too_much_is_not_minimal(own_rules) -> None:
    def wider(rows: Window, columns: Window, kernel: int) -> tuple[Window, Window]:
        return rows, replace(columns, kernel=columns.kernel + 1, before=columns.before + 1)

    _register_conv(wider)
    certificate = overlap_tool.verify(PlainCnn().eval(), tiles=[16])
    assert {check.status for check in _of(certificate, "stage-equality")} == {"passed"}
    results = {check.figures["side"]: check.status for check in _of(certificate, "minimality")}
    assert results == {"left": "failed", "right": "passed", "top": "passed", "bottom": "passed"}
    assert not certificate.holds


def test_a_kernel_that_depends_on_the_shape_is_blamed(monkeypatch) -> None:
    exact = cpu.convolve

    def uneven(x: Tensor, weight: Any, bias: Tensor | None, form: Form, *out: Any) -> Tensor:
        result = exact(x, weight, bias, form, *out)
        strided = form.stride != (1, 1)
        # the trial of a layer is on fewer rows, and sees nothing
        return result.mul_(1 + 2**-20) if strided and 8 < x.shape[-2] < 30 else result

    monkeypatch.setattr(cpu, "convolve", uneven)
    certificate = overlap_tool.verify(PlainCnn().eval(), tiles=[16])
    checks = _of(certificate, "stage-equality")
    assert [check.status for check in checks] == ["failed", "failed"]
    for check in checks:
        assert (check.figures["fault"], check.figures["op"]) == ("kernel", "down")
        assert "kernel is at fault" in check.message
        assert 0 < check.figures["largest_difference"] < 1e-4


@pytest.mark.usefixtures("_untried")
def test_a_layer_that_ran_by_another_kernel_is_in_every_report(monkeypatch) -> None:
    exact = cpu.convolve

    def wrong(x: Tensor, weight: Any, bias: Tensor | None, form: Form, *out: Any) -> Tensor:
        result = exact(x, weight, bias, form, *out)
        return result if form.stride == (1, 1) else result.mul_(1 + 2**-20)

    monkeypatch.setattr(cpu, "convolve", wrong)
    with pytest.warns(SlowKernelWarning, match="the exact chain"):
        first = overlap_tool.verify(PlainCnn().eval(), tiles=[16])
    again = overlap_tool.verify(PlainCnn().eval(), tiles=[16])
    for certificate in (first, again):  # also when the trial was before
        assert certificate.holds
        (fallback,) = certificate.fallbacks
        assert "stride (2, 2)" in fallback.layer
        assert "exact chain" in fallback.reason
        told = json.loads(report.certificate_to_json(certificate))["fallbacks"]
        assert told == [{"layer": fallback.layer, "reason": fallback.reason}]
        for text in (report.certificate_to_markdown(certificate), report.certificate_to_html(certificate)):
            assert fallback.layer in text
            assert fallback.reason in text


def test_a_schedule_that_hands_on_the_wrong_samples_is_blamed(monkeypatch) -> None:
    right = Execution.put_together

    def wrong(self: Execution, turn: Turn, new: Tensor | None) -> Tensor:
        block = right(self, turn, new)
        return block.roll(1, -1) if turn.joins else block

    monkeypatch.setattr(Execution, "put_together", wrong)
    certificate = overlap_tool.verify(PlainCnn().eval(), tiles=[16])
    found = {check.schedule: check for check in _of(certificate, "stage-equality")}
    assert found["stream"].figures["fault"] == "schedule"
    assert found["tiles"].status == "passed"


def test_a_rule_whose_run_raises_does_not_hold(own_rules) -> None:
    @register_rule(nn.Conv2d, override=True)
    def conv(call, module: nn.Conv2d, input) -> Rule:
        def run(patches, module, input) -> Tensor:
            raise ZeroDivisionError("in the rule")

        return Rule(run, *windows(module.kernel_size, module.stride, module.padding, module.dilation))

    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).eval()
    certificate = overlap_tool.verify(model, tiles=[16], stage="0")
    (check, _) = _of(certificate, "stage-equality")
    assert check.status == "failed"
    assert "ZeroDivisionError: in the rule" in check.message


class Between(nn.Module):
    """A codec that does something else, outside of its stages, once its stages are tiled."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.encode = nn.Conv2d(3, 4, 5, 2, 2)
        self.latent = EntropyBottleneck(4)
        self.restore = nn.ConvTranspose2d(4, 3, 5, 2, 2, 1)
        self.gain = 6.0

    def changed(self, what: str) -> bool:
        return what == self.what and "forward" in vars(self.encode)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y_hat, likelihoods = self.latent(self.encode(x) * self.gain)
        bias = 1e-6 if self.changed("forward") else 0.0
        return {"x_hat": self.restore(y_hat / 2), "likelihoods": {"y": likelihoods + bias}}

    def compress(self, x: Tensor) -> dict[str, Any]:
        y = self.encode(x) * self.gain
        strings = self.latent.compress(y)
        strings = [string + b"!" for string in strings] if self.changed("compress") else strings
        return {"strings": [strings], "shape": y.shape[-2:]}

    def decompress(self, strings: Any, shape: Any) -> dict[str, Tensor]:
        y_hat = self.latent.decompress(strings[0], shape)
        return {"x_hat": self.restore(y_hat / 2) + self.changed("decompress")}

    def update(self) -> None:
        self.latent.update()


@pytest.mark.parametrize(
    ("what", "failing"),
    [
        ("forward", {"model-equality"}),
        ("compress", {"bitstream"}),
        ("decompress", {"decoding"}),
        ("nothing", set()),
    ],
)
def test_each_part_of_the_model_can_fail(what, failing) -> None:
    torch.manual_seed(0)
    certificate = overlap_tool.verify(Between(what).eval(), tiles=[32], schedules=["stream"])
    assert {check.name for check in certificate.of("failed")} == failing
    if what == "forward":
        (check,) = certificate.of("failed")
        assert check.figures["output"] == "likelihoods.y"
        assert "every stage by itself holds" in check.message
    if what == "compress":
        (decoding,) = _of(certificate, "decoding")
        assert decoding.figures["streams"] == 2, "what tiles wrote is decoded by both, too"


def test_symbols_that_are_all_zero_prove_nothing() -> None:
    model = Between("nothing").eval()
    model.gain = 0.0
    certificate = overlap_tool.verify(model, tiles=[32], schedules=["stream"])
    (latents,) = _of(certificate, "latents")
    assert (latents.status, latents.figures["nonzero_share"]) == ("failed", 0)
    assert "Give an image" in latents.message


def test_few_symbols_of_a_given_image_are_noted_and_no_image_is_asked_for(tmp_path, monkeypatch) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((96, 128, 3), 128, np.uint8)).save(path)
    model = Between("nothing").eval()
    model.gain = 0.0
    (none,) = _of(_verified(model, path), "latents")
    assert (none.status, none.figures["nonzero_share"]) == ("failed", 0)
    model.gain = 20.0
    monkeypatch.setattr(equality, "LEAST_SHARE", 1.1)
    certificate = _verified(model, path)
    (few,) = _of(certificate, "latents")
    assert (few.status, certificate.holds) == ("noted", True)
    for message in (none.message, few.message):
        assert "--image" not in message
        assert "more detail" in message


def _verified(model, path):
    return overlap_tool.verify(model, tiles=[32], schedules=["stream"], images=[path])


def test_a_decompress_that_refuses_is_skipped_with_its_reason() -> None:
    model = Between("nothing").eval()
    model.decompress = lambda strings, shape: (_ for _ in ()).throw(NotImplementedError("not for tests"))
    certificate = overlap_tool.verify(model, tiles=[32], schedules=["stream"])
    (check,) = _of(certificate, "decoding")
    assert (check.status, certificate.holds) == ("skipped", True)
    assert "its decompress refuses: NotImplementedError: not for tests" in check.message


def test_an_update_that_wants_arguments_is_refused_by_name() -> None:
    model = Between("nothing").eval()
    model.update = lambda scale_table: None
    with pytest.raises(CodingError, match=r"update cannot be called without arguments.*scale_table"):
        overlap_tool.verify(model, tiles=[32], schedules=["stream"])


def test_a_codec_that_codes_to_a_named_tuple_of_arrays() -> None:
    certificate = overlap_tool.verify(NamedCodec().eval(), tiles=[32], schedules=["stream"])
    assert certificate.holds
    statuses = [check.status for name in ("bitstream", "decoding") for check in _of(certificate, name)]
    assert statuses == ["passed", "passed"]


class Rounding(nn.Module):
    """A codec that quantises by code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.g_a = nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.g_s = nn.ConvTranspose2d(4, 3, 5, stride=2, padding=2, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.g_s(self.g_a(x).mul(9).round() / 9)

    def compress(self, x: Tensor) -> dict[str, Any]:
        symbols = self.g_a(x).mul(9).round().to(torch.int8)
        return {"strings": [[symbols.numpy().tobytes()]], "shape": symbols.shape}

    def decompress(self, strings: Any, shape: Any) -> dict[str, Tensor]:
        symbols = torch.frombuffer(bytearray(strings[0][0]), dtype=torch.int8).reshape(shape)
        return {"x_hat": self.g_s(symbols / 9)}


def test_symbols_that_nobody_saw_are_not_said_to_be_none() -> None:
    """ "The model codes no symbols", it was told."""
    certificate = overlap_tool.verify(Rounding().eval(), tiles=[32], schedules=["stream"])
    assert certificate.holds, certificate.of("failed")
    (check,) = _of(certificate, "latents")
    assert check.status == "skipped"
    assert "are not seen" in check.message
    assert "register_quantiser" in check.message
    assert [check.status for check in _of(certificate, "bitstream")] == ["passed"]


def test_a_compress_that_refuses_is_skipped_with_its_reason() -> None:
    model = Between("nothing").eval()
    model.compress = lambda x: (_ for _ in ()).throw(NotImplementedError("not for tests"))
    certificate = overlap_tool.verify(model, tiles=[32], schedules=["stream"])
    (check,) = _of(certificate, "bitstream")
    assert check.status == "skipped"
    assert "not for tests" in check.message


# --- what is refused --------------------------------------------------------------------------------------


def test_one_tile_leaves_nothing_to_verify() -> None:
    with pytest.raises(OptionError, match="whole image"):
        overlap_tool.verify(PlainCnn().eval(), tiles=[64], size=(48, 48))


def test_a_wrapped_model_is_refused() -> None:
    with pytest.raises(OptionError, match="unwrap"):
        overlap_tool.verify(overlap_tool.wrap(PlainCnn().eval(), tile=16))


@pytest.mark.parametrize("device", ["abacus", "cpu:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device) -> None:
    with pytest.raises(OptionError, match=f"device={device!r}"):
        overlap_tool.verify(PlainCnn().eval(), device=device)


# --- images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [64, 256, (128, 320)])
def test_the_made_up_image_shows_every_overlap_whole(architecture, tile) -> None:
    """On every side of every stage, some tile's overlap lies inside the image."""
    found = small_survey(architecture)
    sides = tile if isinstance(tile, tuple) else (tile, tile)
    width, height = telling_size(found.stages, [sides], found.multiple)
    assert (width % found.multiple, height % found.multiple) == (0, 0)
    assert width != height or isinstance(tile, tuple)
    for stage in found.stages:
        shape = Shape(1, int(height * stage.input_scale), int(width * stage.input_scale))
        settings = Settings(tile=sides, schedule="tiles")
        plan = plan_stage(stage.name, stage.network, stage.input_scale, shape, settings)
        (part,) = plan.segments
        for axis, of_axis in ((stage.network.rows, part.rows), (stage.network.columns, part.columns)):
            halos = [halo(axis, step, of_axis.sizes) for step in of_axis.steps]
            overlap = axis.reaches()[-1].overlap
            assert len(halos) >= 2
            assert not overlap.before or any(h.whole_before and h.before >= overlap.before for h in halos)
            assert not overlap.after or any(h.whole_after and h.after >= overlap.after for h in halos)


def test_the_made_up_image_is_the_same_everywhere() -> None:
    image = seeded(Size(37, 21), Layout.of_map(3), multiple=16)
    assert image.record.sha256.startswith("e908f5b2fadc")
    assert image.record.size == (37, 21)
    assert image.record.padded == (48, 32)
    assert image.values.shape == (1, 3, 32, 48)
    inside = image.values[..., 5:26, 5:42]
    assert torch.equal(inside * 255, (inside * 255).round())
    assert image.values.count_nonzero() == inside.count_nonzero(), (
        "black all around, as CompressAI's evaluation pads"
    )
