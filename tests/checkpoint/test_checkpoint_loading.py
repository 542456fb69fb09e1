"""Checkpoints in every form that people save them, all giving back the same model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from support.small_models import small_model

from overlap_tool import checkpoint
from overlap_tool.checkpoint.reading import CONTAINERS, strip_prefixes, unwrapped_payload
from overlap_tool.errors import CheckpointError, OptionError, PluginError, UntrustedPickleError, WeightsError


def same_weights(model, other):
    return checkpoint.hash_weights(model.state_dict()) == checkpoint.hash_weights(other.state_dict())


def old_spelling(key, style):
    """A key as older CompressAI versions wrote it."""
    for new, old in (("matrices", "_matri"), ("biases", "_bia"), ("factors", "_facto")):
        if f"entropy_bottleneck.{new}." in key:
            plural = f"_{new}."
            singular = {"_matri": "_matrix", "_bia": "_bias", "_facto": "_factor"}[old]
            return key.replace(f"{new}.", plural if style == "list" else singular)
    return key.replace(".skip.", ".downsample.")


def test_a_plain_state_dict(name, saved):
    model = small_model(name)
    path = saved(model.state_dict())
    loaded = checkpoint.load_checkpoint(path)
    assert loaded.architecture == name
    assert loaded.arguments == checkpoint.find(name).small
    assert loaded.source == str(path)
    assert loaded.weights_sha256 == checkpoint.hash_weights(model.state_dict())
    assert type(loaded.model) is type(model)
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert same_weights(loaded.model, model)


def test_the_loaded_model_computes_the_same(name, saved, image):
    model = small_model(name)
    loaded = checkpoint.load_checkpoint(saved(model.state_dict()))
    with torch.no_grad():
        assert torch.equal(loaded.model(image)["x_hat"], model(image)["x_hat"])


def test_before_update_the_cdfs_stay_empty(name, saved):
    architecture = checkpoint.find(name)
    state = architecture.build(**architecture.small).state_dict()
    loaded = checkpoint.load_checkpoint(saved(state))
    buffers = dict(loaded.model.named_buffers())
    assert all(tensor.numel() == 0 for key, tensor in buffers.items() if key.endswith("_quantized_cdf"))
    assert loaded.model.update() is True


def test_cdfs_of_any_size_are_taken_as_they_are(weights, saved):
    table = torch.linspace(0, 2**16, 33).int().repeat(8, 1)
    weights["entropy_bottleneck._quantized_cdf"] = table
    weights["entropy_bottleneck._cdf_length"] = torch.full((8,), 33, dtype=torch.int32)
    model = checkpoint.load_checkpoint(saved(weights)).model
    assert torch.equal(model.entropy_bottleneck._quantized_cdf, table)


def test_cdfs_that_were_left_out_are_empty(weights, saved):
    kept = {key: tensor for key, tensor in weights.items() if "gaussian_conditional._" not in key}
    model = checkpoint.load_checkpoint(saved(kept)).model
    assert model.gaussian_conditional._quantized_cdf.numel() == 0
    assert torch.equal(model.g_a[0].weight, weights["g_a.0.weight"])


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("nested", [False, True])
def test_containers(container, nested, weights, saved):
    payload = {
        "epoch": 3,
        "lr": torch.tensor(1e-4),
        "optimizer": {"state": {0: torch.ones(2)}},
        container: weights,
    }
    if nested:
        payload = {"step": 1, "state_dict": payload} if container != "state_dict" else {"model": payload}
    assert same_weights(checkpoint.load_checkpoint(saved(payload)).model, small_model("mbt2018"))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "module.module.", "_orig_mod.", "module._orig_mod.", "net.", "model.module.", "network."],
)
def test_prefixes(prefix, weights, saved):
    path = saved({"state_dict": {prefix + key: tensor for key, tensor in weights.items()}})
    assert same_weights(checkpoint.load_checkpoint(path).model, small_model("mbt2018"))


def test_prefixes_inside_and_of_some_keys_only():
    tensors = [torch.ones(1) * k for k in range(3)]
    state = dict(zip(["module.g_a.0.weight", "g_a._orig_mod.1.weight", "net.x"], tensors, strict=True))
    assert list(strip_prefixes(state, "")) == ["g_a.0.weight", "g_a.1.weight", "net.x"]


def test_prefixes_that_hide_two_tensors_under_one_name():
    with pytest.raises(CheckpointError, match=r"two tensors are called g_a\.weight"):
        strip_prefixes({"module.g_a.weight": torch.ones(1), "g_a.weight": torch.ones(1)}, "x.pth")


@pytest.mark.parametrize("style", ["list", "numbered"])
@pytest.mark.parametrize(
    "name", ["mbt2018", "cheng2020-anchor", "cheng2020-anchor-checkerboard", "elic2022-official"]
)
def test_keys_of_older_versions(name, style, saved):
    state = small_model(name).state_dict()
    old = {old_spelling(key, style): tensor for key, tensor in state.items()}
    assert old.keys() != state.keys()
    assert same_weights(checkpoint.load_checkpoint(saved(old)).model, small_model(name))


def test_a_variable_rate_bottleneck_keeps_its_own_spelling(saved):
    state = small_model("mbt2018-mean-vbr").state_dict()
    assert "entropy_bottleneck._matrix0" in state
    new = {
        key.replace("entropy_bottleneck._matrix", "entropy_bottleneck.matrices."): t
        for key, t in state.items()
    }
    assert same_weights(checkpoint.load_checkpoint(saved(new)).model, small_model("mbt2018-mean-vbr"))


@pytest.mark.parametrize("name", ["bmshj2018-hyperprior-vbr", "mbt2018-mean-vbr", "mbt2018-vbr"])
def test_a_stale_quant_offset_is_dropped(name, saved):
    state = small_model(name).state_dict() | {"QuantOffset": torch.zeros(8)}
    assert same_weights(checkpoint.load_checkpoint(saved(state)).model, small_model(name))


@pytest.mark.parametrize("extension", ["safetensors", "bin"])
def test_safetensors(extension, weights, tmp_path):
    path = tmp_path / f"model.{extension}"
    save_file(weights, path)
    assert same_weights(checkpoint.load_checkpoint(path).model, small_model("mbt2018"))


def test_the_format_before_zip(weights, saved):
    path = saved(weights, _use_new_zipfile_serialization=False)
    assert same_weights(checkpoint.load_checkpoint(path).model, small_model("mbt2018"))


def test_half_precision_weights_become_what_the_model_computes_in(weights, saved):
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    model = checkpoint.load_checkpoint(saved(half)).model
    assert model.g_a[0].weight.dtype == torch.float32
    assert torch.equal(model.g_a[0].weight, weights["g_a.0.weight"].half().float())


def test_the_model_does_not_lean_on_the_file(weights, saved):
    path = saved(weights)
    loaded = checkpoint.load_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert checkpoint.hash_weights(loaded.model.state_dict()) == loaded.weights_sha256


def test_a_forced_architecture(weights, saved):
    path = saved(weights)
    assert checkpoint.load_checkpoint(path, architecture="mbt2018").architecture == "mbt2018"
    with pytest.raises(WeightsError, match=r"missing keys: Gain"):
        checkpoint.load_checkpoint(path, architecture="mbt2018-vbr")
    with pytest.raises(WeightsError, match=r"not a cheng2020-attn: .*missing g_a\.0\.conv1\.weight"):
        checkpoint.load_checkpoint(path, architecture="cheng2020-attn")
    with pytest.raises(OptionError, match=r"Did you mean `architecture='mbt2018'`\?"):
        checkpoint.load_checkpoint(path, architecture="mbt218")


def test_a_pickled_module_needs_trust(saved):
    path = saved(small_model("mbt2018"))
    with pytest.raises(UntrustedPickleError) as error:
        checkpoint.load_checkpoint(path)
    assert "trust=True" in error.value.way_out
    assert "compressai" in error.value.reason
    loaded = checkpoint.load_checkpoint(path, trust=True)
    assert loaded.architecture == "mbt2018"
    assert loaded.arguments == checkpoint.find("mbt2018").small
    assert same_weights(loaded.model, small_model("mbt2018"))


@pytest.mark.parametrize("wrap", [lambda m: m, torch.nn.DataParallel, lambda m: {"epoch": 1, "model": m}])
def test_a_trusted_module_of_another_class(wrap, saved):
    loaded = checkpoint.load_checkpoint(saved(wrap(torch.nn.Conv2d(3, 4, 3))), trust=True)
    assert isinstance(loaded.model, torch.nn.Conv2d)
    assert loaded.architecture == "torch.nn.modules.conv.Conv2d"
    assert not loaded.model.training


def test_trust_changes_nothing_for_plain_weights(weights, saved):
    assert same_weights(checkpoint.load_checkpoint(saved(weights), trust=True).model, small_model("mbt2018"))


def test_a_trusted_module_cannot_be_forced(saved):
    with pytest.raises(CheckpointError, match="`architecture='mbt2018'` cannot change it"):
        checkpoint.load_checkpoint(saved(torch.nn.Conv2d(3, 4, 3)), trust=True, architecture="mbt2018")


def test_unwrap_finds_nothing_in_what_holds_nothing():
    assert unwrapped_payload({"epoch": 1, "state_dict": {}}) is None
    assert unwrapped_payload([torch.ones(1)]) is None
    assert unwrapped_payload({1: torch.ones(1)}) is None


def test_the_hash_sees_keys_types_shapes_and_bits():
    ones = torch.ones(2, 3)
    hashes = [
        checkpoint.hash_weights({"a": tensor})
        for tensor in (ones, ones.reshape(3, 2), ones.half(), ones.int(), -ones, ones.clone().bfloat16())
    ] + [
        checkpoint.hash_weights({"b": ones}),
        checkpoint.hash_weights({}),
        checkpoint.hash_weights({"a": ones[0, 0]}),
    ]
    assert len(set(hashes)) == len(hashes)
    strided = torch.ones(3, 2).t()
    assert checkpoint.hash_weights({"a": strided}) == checkpoint.hash_weights({"a": ones})
    assert checkpoint.hash_weights({"a": ones, "b": -ones}) == checkpoint.hash_weights(
        {"b": -ones, "a": ones}
    )


def test_importing_does_not_pay_for_compressai():
    code = "import sys, overlap_tool.checkpoint; sys.exit('compressai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_is_loaded_and_run_exactly_without_pytorch_s_compiler(weights, tmp_path):
    torch.save(weights, tmp_path / "model.pth")
    code = """
import sys, torch
from overlap_tool import checkpoint, exact_kernels
from overlap_tool.cli.deferred import defer
defer()
model = checkpoint.load_checkpoint(sys.argv[1]).model
with torch.no_grad(), exact_kernels():
    model(torch.rand(1, 3, 64, 64))
sys.exit("torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "model.pth")]
    assert subprocess.run(command, check=False).returncode == 0


class TestWriting:
    def test_a_failure_leaves_the_old_file_and_nothing_else(self, weights, tmp_path):
        path = tmp_path / "model.pth"
        checkpoint.save_atomically(weights, path)
        before = path.read_bytes()
        with pytest.raises((TypeError, AttributeError, RuntimeError)):
            checkpoint.save_atomically({"weights": weights, "handle": path.open("rb")}, path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_what_is_written_loads(self, weights, tmp_path):
        checkpoint.save_atomically({"state_dict": weights}, tmp_path / "model.pth")
        assert same_weights(checkpoint.load_checkpoint(tmp_path / "model.pth").model, small_model("mbt2018"))


THEIRS = """
import torch
from torch import nn
from compressai.models import MeanScaleHyperprior

class Tiny(nn.Module):
    def __init__(self, width, kernel=3):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, kernel))

class Renaming(Tiny):
    def load_state_dict(self, state_dict, strict=True, assign=False):
        renamed = {key.replace("old", "net"): tensor for key, tensor in state_dict.items()}
        return super().load_state_dict(renamed, strict, assign)

class Codec(MeanScaleHyperprior):
    pass

class Projecting(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        torch.manual_seed(7)
        self.register_buffer("directions", torch.randn(3), persistent=False)
        self.order = torch.randperm(5)

def factory():
    return 3
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A third party's module in the current folder."""
    (tmp_path / "their_codecs.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "their_codecs"
    sys.modules.pop("their_codecs", None)


class TestThirdParty:
    def test_without_weights_it_is_always_the_same(self, theirs):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        one = checkpoint.load_checkpoint(model_class=f"{theirs}:Tiny", kwargs={"width": 4})
        two = checkpoint.load_checkpoint("", model_class=f"{theirs}:Tiny", kwargs={"width": 4})
        assert one.architecture == "their_codecs:Tiny"
        assert one.arguments == {"width": 4}
        assert one.source == ""
        assert one.weights_sha256 == two.weights_sha256
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_seed_of_its_own_counts(self, theirs, saved):
        """Buffers that are in no state dict would have had other numbers, unnoticed."""
        torch.manual_seed(7)  # the seed that the class sets, too
        path = saved({"weight": torch.zeros(3)})
        model = checkpoint.load_checkpoint(path, model_class=f"{theirs}:Projecting").model
        assert torch.equal(model.directions, torch.randn(3))
        assert torch.equal(model.order, torch.randperm(5))

    @pytest.mark.parametrize("prefix", ["", "module.", "model."])
    def test_its_weights_are_loaded_under_its_own_prefix(self, theirs, prefix, saved):
        state = {"net.0.weight": torch.rand(4, 3, 3, 3), "net.0.bias": torch.rand(4)}
        path = saved({"state_dict": {prefix + key: tensor for key, tensor in state.items()}})
        loaded = checkpoint.load_checkpoint(path, model_class=f"{theirs}:Tiny", kwargs={"width": 4})
        assert torch.equal(loaded.model.net[0].weight, state["net.0.weight"])

    def test_cdfs_of_a_codec_are_resized(self, theirs, saved):
        state = small_model("mbt2018-mean").state_dict()
        loaded = checkpoint.load_checkpoint(
            saved(state), model_class=f"{theirs}:Codec", kwargs={"N": 8, "M": 12}
        )
        assert loaded.weights_sha256 == checkpoint.hash_weights(state)

    def test_its_own_renaming_is_used(self, theirs, saved):
        state = {"old.0.weight": torch.rand(4, 3, 3, 3), "old.0.bias": torch.rand(4)}
        loaded = checkpoint.load_checkpoint(
            saved(state), model_class=f"{theirs}:Renaming", kwargs={"width": 4}
        )
        assert torch.equal(loaded.model.net[0].bias, state["old.0.bias"])

    @pytest.mark.parametrize(
        ("spec", "kwargs", "kind", "message"),
        [
            ("nowhere_at_all:Class", {}, PluginError, "No module named 'nowhere_at_all'"),
            ("their_codecs:Missing", {}, PluginError, "has no Missing"),
            ("their_codecs", {}, OptionError, "pkg.module:Class"),
            ("their_codecs:Tiny", {"height": 3}, PluginError, "unexpected keyword argument 'height'"),
            ("their_codecs:factory", {}, PluginError, "made a int, not a torch.nn.Module"),
        ],
    )
    def test_what_cannot_be_built(self, theirs, spec, kwargs, kind, message):
        with pytest.raises(kind, match=message):
            checkpoint.load_checkpoint(model_class=spec, kwargs=kwargs)

    def test_weights_that_do_not_fit(self, theirs, weights, saved):
        path = saved(weights)
        with pytest.raises(WeightsError, match=r"missing keys: net\.0\.weight"):
            checkpoint.load_checkpoint(path, model_class=f"{theirs}:Tiny", kwargs={"width": 4})
        with pytest.raises(WeightsError, match=r"missing keys: net\.0\.weight"):
            checkpoint.load_checkpoint(path, model_class=f"{theirs}:Renaming", kwargs={"width": 4})


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (None, {}),
        ("x.pth", {"architecture": "mbt2018", "model_class": "a:B"}),
        ("zoo:mbt2018", {"architecture": "mbt2018"}),
        ("zoo:mbt2018", {"model_class": "a:B"}),
        ("x.pth", {"kwargs": {"N": 3}}),
    ],
)
def test_contradicting_options(source, options):
    with pytest.raises(OptionError):
        checkpoint.load_checkpoint(source, **options)
