"""Seeded models are lively and everywhere the same; pretrained ones are downloaded safely."""

from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
from support.small_models import small_model

from overlap_tool import checkpoint
from overlap_tool.errors import CheckpointError, OptionError


def stages(model, image):
    """What the analysis transforms give, and the likelihoods."""
    seen = {}

    def keep(name):
        return lambda _module, _inputs, output: seen.update({name: output})

    hooks = [
        module.register_forward_hook(keep(path.rpartition(".")[2]))
        for path, module in model.named_modules()
        if path.rpartition(".")[2] in ("g_a", "h_a")
    ]
    with torch.no_grad():
        seen |= model(image)
    for hook in hooks:
        hook.remove()
    return seen


def share_of_nonzero(latent):
    return (latent.round() != 0).float().mean().item()


def test_symbols_are_lively_and_likelihoods_sane(name, image):
    seen = stages(small_model(name), image)
    assert share_of_nonzero(seen["g_a"]) > 0.1
    assert share_of_nonzero(seen.get("h_a", seen["g_a"])) > 0.1
    assert seen["g_a"].abs().max() < 100
    for likelihoods in seen["likelihoods"].values():
        assert likelihoods.isfinite().all()
        # At the bound of 1e-9 a symbol is a surprise that no trained model would code.
        assert (likelihoods < 2e-9).float().mean() < 0.15
    assert seen["x_hat"].std() > 1e-3
    assert seen["x_hat"].abs().max() < 100


def test_a_seeded_model_codes_and_decodes(image):
    model = small_model("mbt2018-mean")
    coded = model.compress(image)
    decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
    with torch.no_grad():
        assert torch.equal(decoded, model(image)["x_hat"].clamp(0, 1))


def test_the_seed_decides(name):
    architecture = checkpoint.find(name)
    again = checkpoint.seeded_model(architecture, architecture.small).state_dict()
    other = checkpoint.seeded_model(architecture, architecture.small, seed=1).state_dict()
    assert checkpoint.hash_weights(again) == checkpoint.hash_weights(small_model(name).state_dict())
    assert checkpoint.hash_weights(other) != checkpoint.hash_weights(again)


def test_the_global_random_state_is_untouched(name):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    architecture = checkpoint.find(name)
    checkpoint.seeded_model(architecture, architecture.small)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeding_fills_any_module():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.Linear(4, 2))
    one = checkpoint.hash_weights(checkpoint.seed_weights(model).state_dict())
    torch.nn.init.zeros_(model[0].weight)
    assert checkpoint.hash_weights(checkpoint.seed_weights(model).state_dict()) == one
    assert model[0].weight.std() > 0.1


def test_seeded_bits_are_the_same_on_every_machine():
    model = checkpoint.seed_weights(torch.nn.Conv2d(2, 2, 3))
    assert checkpoint.hash_weights(model.state_dict()).startswith("87df212970bc9bf2")


def test_zoo_gives_the_default_widths():
    loaded = checkpoint.load_checkpoint("zoo:mbt2018")
    assert loaded.architecture == "mbt2018"
    assert loaded.arguments == {"N": 192, "M": 192}
    assert loaded.source == "zoo:mbt2018"
    assert not loaded.model.training
    assert loaded.model.g_a[6].weight.shape == (192, 192, 5, 5)
    assert loaded.model.entropy_bottleneck._quantized_cdf.numel() > 0


def test_every_default_is_of_the_kind_that_detection_reads(name):
    architecture = checkpoint.find(name)
    assert architecture.default.keys() == architecture.small.keys()


def test_an_unknown_zoo_name():
    with pytest.raises(OptionError) as error:
        checkpoint.load_checkpoint("zoo:mbt2018-means")
    assert "Did you mean zoo:mbt2018-mean?" in error.value.way_out
    assert "elic2022-chandelier" in error.value.way_out


def test_no_network(monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_checkpoint("zoo:mbt2018@3")
    assert error.value.where == "zoo:mbt2018@3"
    assert "Name or service not known" in error.value.reason
    assert "zoo:mbt2018 needs neither" in error.value.way_out


@pytest.mark.parametrize(
    "name", ["mbt2018", "cheng2020-anchor", "mbt2018-mean-vbr", "bmshj2018-hyperprior-vbr"]
)
def test_pretrained_weights_are_downloaded_safely(monkeypatch, name):
    asked = {}

    def download(url, **options):
        asked.update(options, url=url)
        return small_model(name).state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    loaded = checkpoint.load_checkpoint(f"zoo:{name}@{0 if name.endswith('vbr') else 3}")
    assert loaded.architecture == name
    assert loaded.arguments == checkpoint.find(name).small
    assert loaded.weights_sha256 == checkpoint.hash_weights(small_model(name).state_dict())
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    assert asked["url"].startswith("https://")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("zoo:mbt2018@9", "published qualities are 1, 2"),
        ("zoo:mbt2018@best", "not a number"),
        ("zoo:mbt2018@", "not a number"),
        ("zoo:elic2022-official@1", "no pretrained weights were published"),
        ("zoo:bmshj2018-factorized-relu@1", "no pretrained weights were published"),
    ],
)
def test_a_quality_that_does_not_exist(source, message):
    with pytest.raises(OptionError, match=message):
        checkpoint.load_checkpoint(source)


@pytest.mark.slow
def test_default_widths_are_lively(name, image):
    model = checkpoint.seeded_model(checkpoint.find(name))
    seen = stages(model, image)
    assert share_of_nonzero(seen["g_a"]) > 0.3
    assert share_of_nonzero(seen.get("h_a", seen["g_a"])) > 0.3
    assert all((likelihoods < 2e-9).float().mean() < 0.15 for likelihoods in seen["likelihoods"].values())
