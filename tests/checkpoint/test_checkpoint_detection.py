"""Each architecture, and no other, is recognised by its keys and shapes, with its hyper-parameters."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import small_model

from overlap_tool import checkpoint
from overlap_tool.checkpoint import has_key, has_prefix, registry, shape, size
from overlap_tool.checkpoint.architectures import KNOWN
from overlap_tool.checkpoint.blank import blank_weights
from overlap_tool.errors import OptionError, PluginError, UnknownArchitectureError

BUILT_IN = [architecture.name for architecture in KNOWN]  # without those of plugins
CODECS = [name for name in BUILT_IN if not name.startswith(("cheng", "elic"))]
CHENGS = [name for name in BUILT_IN if name.startswith("cheng")]
ELICS = [name for name in BUILT_IN if name.startswith("elic")]


def matches(state):
    return [name for name in checkpoint.names() if checkpoint.find(name).detect(state)]


def blank_state(name, **arguments):
    with blank_weights():
        return checkpoint.find(name).build(**arguments).state_dict()


def test_every_image_model_of_compressai_is_known():
    import compressai.models
    from compressai.models.base import CompressionModel
    from compressai.registry import MODELS

    images = {
        name
        for name, kind in MODELS.items()
        if issubclass(kind, CompressionModel)
        and kind.__module__.startswith(compressai.models.__name__)
        and ".pointcloud." not in kind.__module__
        and ".video." not in kind.__module__
    }
    assert images == set(BUILT_IN)


def test_exactly_one_matches_before_and_after_update(name):
    architecture = checkpoint.find(name)
    before = blank_state(name, **architecture.small)
    after = small_model(name).state_dict()
    assert not any(tensor.numel() for key, tensor in before.items() if key.endswith("_quantized_cdf"))
    assert all(tensor.numel() for key, tensor in after.items() if key.endswith("_quantized_cdf"))
    for state in (before, after):
        assert matches(state) == [name]
        assert checkpoint.detect(state) is architecture
        assert architecture.arguments(state) == architecture.small


@pytest.mark.parametrize(("N", "M"), [(2, 2), (2, 7), (7, 2), (3, 6), (6, 3), (16, 24)])
def test_narrow_widths_are_not_ambiguous(name, N, M):
    small = checkpoint.find(name).small
    arguments = dict(small) | {"N": N} | ({"M": M} if "M" in small else {})
    if "groups" in small:
        arguments["groups"] = [1, M - 1]
    state = blank_state(name, **arguments)
    assert matches(state) == [name]
    assert checkpoint.find(name).arguments(state) == arguments


@given(st.sampled_from(CODECS), st.integers(1, 24), st.integers(1, 24))
@settings(max_examples=25, deadline=None)
def test_widths_are_read_from_shapes(name, N, M):
    state = blank_state(name, N=N, M=M)
    read = checkpoint.detect(state).arguments(state)
    assert checkpoint.detect(state).name == name
    assert (read["N"], read["M"]) == (N, M)


@given(st.sampled_from(CHENGS), st.integers(2, 24))
@settings(max_examples=12, deadline=None)
def test_the_width_of_cheng_is_read_from_shapes(name, N):
    state = blank_state(name, N=N)
    assert checkpoint.detect(state).name == name
    assert checkpoint.detect(state).arguments(state) == {"N": N}


@given(st.sampled_from(ELICS), st.integers(2, 16), st.lists(st.integers(1, 9), min_size=2, max_size=6))
@settings(max_examples=12, deadline=None)
def test_the_groups_of_elic_are_read_from_shapes(name, N, groups):
    state = blank_state(name, N=N, M=sum(groups), groups=groups)
    assert checkpoint.detect(state).name == name
    assert checkpoint.detect(state).arguments(state) == {"N": N, "M": sum(groups), "groups": groups}


@pytest.mark.parametrize("name", ["bmshj2018-hyperprior-vbr", "mbt2018-mean-vbr"])
@pytest.mark.parametrize("variable_bottleneck", [False, True])
def test_the_bottleneck_of_vbr_is_read_from_keys(name, variable_bottleneck):
    state = blank_state(name, N=4, M=6, vr_entbttlnck=variable_bottleneck)
    assert matches(state) == [name]
    assert checkpoint.find(name).arguments(state)["vr_entbttlnck"] is variable_bottleneck


def test_factorized_relu_builds_the_relu_model():
    model = small_model("bmshj2018-factorized-relu")
    assert type(model).__name__ == "FactorizedPriorReLU"
    assert any(isinstance(layer, torch.nn.ReLU) for layer in model.g_a)


def test_detection_does_not_change_the_state(name):
    state = small_model(name).state_dict()
    before = checkpoint.hash_weights(state)
    checkpoint.detect(state)
    assert checkpoint.hash_weights(state) == before


def test_an_unknown_architecture_tells_what_it_saw_and_what_came_nearest():
    state = blank_state("mbt2018", N=4, M=6)
    del state["context_prediction.weight"]
    state["Gain"] = torch.ones(3)
    with pytest.raises(UnknownArchitectureError) as error:
        checkpoint.detect(state, "odd.pth")
    text = str(error.value)
    assert text.startswith(f"odd.pth: no known architecture fits its {len(state)} tensors (")
    assert re.search(r"g_a\.\*: \d+", text)
    assert "the nearest is mbt2018" in text
    assert "missing context_prediction.weight" in text
    assert "model_class=" in error.value.way_out


def test_a_foreign_network_is_refused():
    with pytest.raises(UnknownArchitectureError, match=r"conv1\.\*: 2"):
        checkpoint.detect({"conv1.weight": torch.ones(4, 3, 7, 7), "conv1.bias": torch.ones(4)})


def test_an_ambiguous_state_dict_names_both(monkeypatch):
    twin = checkpoint.Architecture("twin", has_key("g_a.0.weight"), lambda state: {}, torch.nn.Identity)
    monkeypatch.setattr(registry, "_architectures", dict(registry._architectures))
    checkpoint.register_architecture(twin)
    with pytest.raises(UnknownArchitectureError, match="mbt2018, twin"):
        checkpoint.detect(small_model("mbt2018").state_dict())


def test_a_duplicate_is_rejected_and_leaves_the_registry_alone():
    before = {name: checkpoint.find(name) for name in checkpoint.names()}
    twin = checkpoint.Architecture("mbt2018", has_key("x"), lambda state: {}, torch.nn.Identity)
    with pytest.raises(PluginError, match="registered already"):
        checkpoint.register_architecture(twin)
    assert {name: checkpoint.find(name) for name in checkpoint.names()} == before


def test_what_is_not_an_architecture_is_rejected():
    before = checkpoint.names()
    with pytest.raises(PluginError, match="not an Architecture"):
        checkpoint.register_architecture(torch.nn.Identity)
    assert checkpoint.names() == before


def test_an_unknown_name_suggests_the_nearest_and_lists_all():
    with pytest.raises(OptionError) as error:
        checkpoint.find("mbt2081")
    assert "Did you mean `architecture='mbt2018'`?" in error.value.way_out
    assert all(name in error.value.way_out for name in checkpoint.names())


STATE = {"a.weight": torch.zeros(4, 3, 5, 5), "a.bias": torch.zeros(4), "b.weight": torch.zeros(8, 4)}


class TestConditions:
    @pytest.mark.parametrize(
        ("condition", "missed"),
        [
            (has_key("a.weight"), ()),
            (has_key("c", "a.bias", "d"), ("missing c", "missing d")),
            (~has_key("a.bias"), ("unexpected a.bias",)),
            (~~has_key("c"), ("missing c",)),
            (has_prefix("c."), ("missing c.*",)),
            (~has_prefix("a."), ("unexpected a.*",)),
            (shape("a.weight", None, 3, 5, 5), ()),
            (shape("a.weight", None, 3, 3, 3), ("a.weight is 4x3x5x5, expected ?x3x3x3",)),
            (shape("c", 1), ("missing c",)),
            (size("b.weight").matches(2 * size("a.bias")), ()),
            (
                size("b.weight").matches(size("a.bias")),
                ("size 0 of b.weight is 8, expected 4 (size 0 of a.bias)",),
            ),
            (size("b.weight", 7).matches(size("a.bias")), ("missing b.weight",)),
            (has_key("c") | has_key("a.bias"), ()),
            (has_key("c", "d") | has_key("e"), ("missing e",)),
            (~(has_key("c") | has_key("a.bias")), ("unexpected a.bias",)),
            (~(has_key("c") & has_key("a.bias")), ()),
        ],
    )
    def test_it_holds_exactly_if_nothing_is_missed(self, condition, missed):
        assert condition.missed(STATE) == missed
        assert condition(STATE) is (not missed)
        assert (~condition)(STATE) is bool(missed)
