"""Stages are found in any module, at the scale they run at, without touching the model."""

from __future__ import annotations

import copy
import weakref
from fractions import Fraction

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from support.foreign_blocks import (
    FrequencyAwareBlock,
    GlobalAttention,
    GlobalContextCodec,
    LinearAttentionBetween,
    PositionsOfTheWholeMap,
    SortedChannels,
    WindowAttention,
)
from support.networks import PlainCnn, ThirdPartyCodec
from support.small_models import small_model, small_survey
from torch import Tensor, nn

import overlap_tool
from overlap_tool import report
from overlap_tool.errors import OptionError, TraceError, UnknownOpError
from overlap_tool.graph import explaining
from overlap_tool.graph.network import Op
from overlap_tool.models import stages
from overlap_tool.models.stages import survey
from overlap_tool.wrapping.retrofit import untiled

CODED = {"g_a": Fraction(1), "g_s": Fraction(1, 16), "h_a": Fraction(1, 16), "h_s": Fraction(1, 64)}


def test_every_transform_of_every_zoo_model_is_a_stage(architecture: str) -> None:
    found = small_survey(architecture)
    scales = {stage.name.rpartition(".")[2]: stage.input_scale for stage in found.stages}
    expected = {name: CODED[name] for name in CODED if name[0] == "g" or "factorized" not in architecture}
    assert {name: scales[name] for name in expected} == expected
    assert found.multiple == (16 if "factorized" in architecture else 64)


def test_context_models_are_stages() -> None:
    names = [stage.name for stage in small_survey("mbt2018").stages]
    assert names[-1] == "context_prediction"
    names = [stage.name for stage in small_survey("elic2022-official").stages]
    assert "latent_codec.y.channel_context.y1" in names
    assert "latent_codec.y.latent_codec.y0.context_prediction" in names


def test_pointwise_parts_are_no_stages() -> None:
    assert "entropy_parameters" not in [stage.name for stage in small_survey("mbt2018").stages]


def test_a_plain_network_is_one_stage_with_its_own_input_channels() -> None:
    (stage,) = survey(PlainCnn()).stages
    assert stage.input_scale == 1
    assert stage.network.ops[0].channels == 1


def test_names_do_not_matter() -> None:
    found = survey(ThirdPartyCodec())
    assert [(stage.name, stage.input_scale) for stage in found.stages] == [
        ("encode", Fraction(1)),
        ("restore.up", Fraction(1, 4)),
    ]
    assert found.multiple == 4


def test_a_stage_is_chosen_by_the_last_part_of_its_name() -> None:
    (stage,) = survey(small_model("elic2022-official"), only="h_s").stages
    assert stage.name == "latent_codec.hyper.h_s"


def test_a_part_of_a_stage_can_be_chosen() -> None:
    (stage,) = survey(small_model("mbt2018"), only="g_a.2").stages
    assert (stage.name, stage.input_scale) == ("g_a.2", Fraction(1, 2))


def test_an_unknown_stage_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(OptionError, match=r"stage='g_x'.*g_[as]"):
        survey(small_model("mbt2018"), only="g_x")


def test_an_ambiguous_stage_is_refused() -> None:
    with pytest.raises(OptionError, match="several parts end in that name"):
        survey(small_model("elic2022-official"), only="context_prediction")


def test_a_model_that_fails_on_a_trial_image_is_refused_with_its_own_words() -> None:
    class Broken(ThirdPartyCodec):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("needs a licence")

    with pytest.raises(TraceError, match="needs a licence"):
        survey(Broken())


def test_a_trial_that_fails_leaves_no_copy_of_the_model(monkeypatch) -> None:
    """One was left for every number of channels among the layers and every size: a codec of 120 million
    weights took 9 GB before it was run on three channels."""

    class Broken(ThirdPartyCodec):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("needs a licence")

    made: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    alive: list[int] = []

    def noted(model: nn.Module) -> nn.Module:
        alive.append(len(made))
        copied = copy.deepcopy(model)
        made.add(copied)
        return copied

    monkeypatch.setattr(stages, "copied", noted)
    with pytest.raises(TraceError, match="needs a licence"):
        survey(Broken())
    assert len(alive) >= 4
    assert not any(alive)


def test_a_survey_changes_nothing_in_the_model() -> None:
    model = copy.deepcopy(small_model("mbt2018"))
    masked = model.get_submodule("context_prediction")
    with torch.no_grad():
        masked.weight.fill_(1.0)  # unmasked: the model's own forward would mask it in place
    before = {key: value.clone() for key, value in model.state_dict().items()}
    identities = {key: id(parameter) for key, parameter in model.named_parameters()}
    model.train()
    survey(model)
    assert model.training
    model.eval()
    assert {key: id(parameter) for key, parameter in model.named_parameters()} == identities
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(module._forward_hooks for module in model.modules())


def test_ops_have_unique_dotted_names(architecture: str) -> None:
    for stage in small_survey(architecture).stages:
        names = [op.name for op in stage.network.ops if isinstance(op, Op)]
        assert len(set(names)) == len(names)
        assert all(name.startswith(stage.name) for name in names)


def test_a_module_used_twice_is_two_ops() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    (stage,) = survey(Twice()).stages
    assert [op.name for op in stage.network.ops[1:]] == ["conv", "conv#2"]
    assert stage.network.rows.reaches()[-1].overlap == (2, 2)


class ChannelsLastCodec(nn.Module):
    """Its transforms end in layers on channels-last tensors, which have more channels than columns."""

    def __init__(self, width: int = 400) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, width, 8, 8)
        self.encode = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.latent = EntropyBottleneck(width)
        self.decode = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.up = nn.ConvTranspose2d(width, 3, 10, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encode(self.down(x).permute(0, 2, 3, 1))
        latent, _ = self.latent(tokens.permute(0, 3, 1, 2))
        return self.up(self.decode(latent.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("width", [25, 72, 400])
def test_channels_last_are_no_columns(width: int) -> None:
    """72 channels of 8x24 positions are in the proportions of the image, too."""
    found = survey(ChannelsLastCodec(width))
    assert [stage.name for stage in found.stages] == ["down", "up"]
    assert found.untiled == ()
    assert found.multiple == 8


# --- parts that no finite overlap serves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (GlobalAttention(4), "every position with every other"),
        (WindowAttention(4, shift=2), "opposite border"),
        (LinearAttentionBetween(4), "several maps"),
        (PositionsOfTheWholeMap(4), "changes while the module runs"),
        (SortedChannels(4), "no rule knows this op"),
    ],
    ids=["one map", "unmasked roll", "two maps", "its size", "no rule"],
)
def test_a_context_model_over_the_whole_latent_stays_whole_and_is_named(context, reason, monkeypatch) -> None:
    monkeypatch.setattr(explaining, "SECONDS", 60)  # or a slow machine may tell less the second time
    codec = GlobalContextCodec(context).eval()
    found = survey(codec)
    assert {"g_a", "g_s"} <= {stage.name for stage in found.stages}
    (part,) = found.untiled
    assert part.name == "context"
    assert reason in part.reason

    told = overlap_tool.analyze(codec, size=(128, 128))
    assert [untiled.name for untiled in told.untiled] == ["context"]
    for written in (report.FORMATS["json"], report.FORMATS["markdown"], report.to_html):
        assert reason in written(told)

    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with overlap_tool.exact_kernels():
            whole = codec(image)
        wrapped = overlap_tool.wrap(codec, tile=32)
        tiled = wrapped(image)
    assert all(torch.equal(tiled[key], whole[key]) for key in whole)
    assert untiled(wrapped) == found.untiled
    assert untiled(overlap_tool.unwrap(wrapped)) == ()


def test_wrap_and_verify_name_what_stays_whole(run, tmp_path) -> None:
    codec = ("--model", "support.foreign_blocks:GlobalContextCodec")
    written = {name: tmp_path / name for name in ("report", "summary", "html")}
    files = [word for name, path in written.items() for word in (f"--{name}", path)]
    code, out, err = run("wrap", *codec, "--tile", "32", "-o", tmp_path / "whole.tiled.pt")
    assert (code, err) == (0, "")
    assert "context.matmul (matmul) multiplies every position with every other" in out
    _, out, err = run("verify", *codec, "--tile", "32", *files)
    assert err == ""
    for told in (out, *(path.read_text() for path in written.values())):
        assert "context.matmul (matmul) multiplies every position with every other" in told


def test_the_parts_of_what_takes_several_maps_are_stages() -> None:
    names = [stage.name for stage in survey(GlobalContextCodec(LinearAttentionBetween(4))).stages]
    assert names == ["g_a", "context.keys", "context.queries", "context.values", "g_s"]


class Mirrored(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(3)


def test_what_works_on_maps_as_fine_as_the_image_does_not_stay_whole() -> None:
    codec = GlobalContextCodec(nn.Identity())
    codec.g_a.insert(0, Mirrored())
    with pytest.raises(UnknownOpError, match=r"g_a\.0.*flip"):
        survey(codec)


@pytest.mark.parametrize(
    "part", [GlobalAttention(4), FrequencyAwareBlock(4)], ids=lambda part: type(part).__name__
)
def test_a_part_of_a_transform_stays_whole_if_its_maps_are_coarser_than_the_image(part: nn.Module) -> None:
    codec = GlobalContextCodec(nn.Identity())
    codec.g_a.insert(2, part)
    (g_a, _) = survey(codec).stages
    assert g_a.network.wholes
    assert all(op.name.startswith("g_a.2") for op in g_a.network.wholes)


def test_every_part_of_the_zoo_models_is_in_a_stage_or_pointwise(architecture: str) -> None:
    assert small_survey(architecture).untiled == ()
