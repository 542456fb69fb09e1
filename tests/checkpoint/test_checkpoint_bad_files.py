"""Bad files are refused with a typed error that names the file, the reason and the way out; none is run."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.small_models import small_model

from overlap_tool import checkpoint
from overlap_tool.checkpoint.blank import OverBudgetError, blank_weights
from overlap_tool.errors import CheckpointError, UnknownArchitectureError, UntrustedPickleError, WeightsError


class Malice:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def refused(path, kind=CheckpointError, **options):
    with pytest.raises(kind) as error:
        checkpoint.load_checkpoint(path, **options)
    assert type(error.value) is kind
    assert str(path) in error.value.where
    assert error.value.way_out
    return str(error.value)


def forged(path: Path, old: bytes, new: bytes) -> Path:
    """Another zip checkpoint, with something replaced in its pickle."""
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w") as target:
        for entry in source.namelist():
            data = source.read(entry)
            if entry.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            target.writestr(entry, data)
    return path


def test_a_missing_file(tmp_path):
    assert "there is no such file" in refused(tmp_path / "none.pth")


def test_a_directory(tmp_path):
    assert "it is a directory" in refused(tmp_path)


def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["empty.pth", "empty.safetensors"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    assert "the file is empty" in refused(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_a_truncated_file(weights, saved, zipped, kept):
    path = saved(weights, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert "truncated or damaged" in refused(path)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.99])
def test_a_truncated_safetensors(weights, tmp_path, kept):
    from safetensors.torch import save

    data = save(weights)
    path = tmp_path / "model.safetensors"
    path.write_bytes(data[: int(len(data) * kept)])
    assert "damaged or no safetensors file" in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"weights": [1, 2]}',
        b"hello world",
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        bytes(64),
        pickle.dumps({"a": 1}),
    ],
)
def test_what_is_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    assert "not a checkpoint" in refused(path)


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_with_our_error(tmp_path, content):
    path = tmp_path / "bytes.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.load_checkpoint(path)


@cache
def tiny_checkpoint(zipped: bool) -> bytes:
    """Made once: torch writes memory addresses into its older format, so that no two files are alike."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_with_our_error(tmp_path, zipped, data):
    content = bytearray(tiny_checkpoint(zipped))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.load_checkpoint(path)


def test_a_tar_around_a_checkpoint(weights, saved, tmp_path):
    path = tmp_path / "model.pth.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(saved(weights), "model.pth")
    assert "it is a tar archive" in refused(path)


def test_a_zip_whose_directory_names_no_text(weights, saved):
    path = saved(weights)
    content = path.read_bytes()
    where = content.rindex(b"data.pkl")  # In the directory at the end; Python's zipfile does not expect this.
    path.write_bytes(content[:where] + b"\xff" + content[where + 1 :])
    assert "truncated or damaged" in refused(path)


def test_another_zip(tmp_path):
    path = tmp_path / "document.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    refused(path)


@pytest.mark.parametrize(
    "payload", [3, [1, 2], {}, {"epoch": 3, "state_dict": {}}, {"best": 0.1, "name": "x"}]
)
def test_no_weights_inside(saved, payload):
    assert "it holds no weights" in refused(saved(payload))


def test_the_entries_of_a_dict_without_weights_are_named(saved):
    assert "epoch; best" in refused(saved({"epoch": 3, "best": 0.1}))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_not_run(tmp_path, protocol):
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    path.write_bytes(pickle.dumps({"state_dict": Malice(marker)}, protocol=protocol))
    text = refused(path, UntrustedPickleError)
    assert "trust=True" in text
    assert "posix.mkdir" in text
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_does_not_run(tmp_path, saved, weights, zipped):
    marker = tmp_path / "marker"
    path = saved({"state_dict": weights, "x": Malice(marker)}, _use_new_zipfile_serialization=zipped)
    assert "trust=True" in refused(path, UntrustedPickleError)
    assert not marker.exists()
    checkpoint.load_checkpoint(path, trust=True)
    assert marker.exists(), "the pickle was harmless, and the test would prove nothing"


def test_a_trusted_module_whose_code_is_gone(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"cmissing_package.models\nCodec\n.")
    assert "missing_package.models.Codec" in refused(path, UntrustedPickleError)
    assert "No module named 'missing_package'" in refused(path, trust=True)


def test_a_trusted_module_of_a_compressai_that_has_no_registry(tmp_path, monkeypatch):
    torch.save(small_model("mbt2018-mean"), tmp_path / "model.pth")
    assert checkpoint.load_checkpoint(tmp_path / "model.pth", trust=True).architecture == "mbt2018-mean"
    monkeypatch.setitem(sys.modules, "compressai.registry", None)
    loaded = checkpoint.load_checkpoint(tmp_path / "model.pth", trust=True)
    assert loaded.architecture == "compressai.models.google.MeanScaleHyperprior"


def test_a_trusted_file_that_is_broken(weights, saved):
    path = saved(weights)
    path.write_bytes(path.read_bytes()[:-500])
    assert "truncated or damaged" in refused(path, trust=True)


def test_a_header_that_promises_more_than_the_file_holds(saved):
    path = saved({"g_a.0.weight": torch.ones(100, 10)})
    huge = b"J" + (1 << 30).to_bytes(4, "little")
    assert "truncated or damaged" in refused(forged(path, b"KdK\n", huge + b"K\n"))


def test_a_view_that_claims_more_than_it_stores(saved):
    path = saved({"g_a.0.weight": torch.ones(1).expand(1 << 20, 1 << 20)})
    assert "g_a.0.weight claims the shape (1048576, 1048576)" in refused(path)


def test_a_sparse_tensor(saved):
    assert "g_a.0.weight is not an ordinary dense tensor" in refused(
        saved({"g_a.0.weight": torch.eye(3).to_sparse()})
    )


def test_widths_that_the_file_does_not_hold(weights, saved):
    weights["g_a.0.weight"] = torch.zeros(20000, 3, 5, 5)
    assert "far larger than the weights in the file" in refused(saved(weights), WeightsError)


def test_building_blank_takes_no_more_than_allowed():
    with pytest.raises(OverBudgetError), blank_weights(budget=1000):
        torch.nn.Conv2d(1 << 20, 1 << 20, 5)
    with blank_weights(budget=1000):
        assert torch.nn.Conv2d(2, 3, 5).weight.shape == (3, 2, 5, 5)


def test_building_blank_leaves_the_random_state():
    before = torch.get_rng_state()
    with blank_weights():
        torch.nn.Conv2d(3, 3, 3)
        torch.rand(9)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_widths_at_all(weights, saved):
    weights["g_a.6.weight"] = torch.zeros(0, 8, 5, 5)
    assert "its widths must be positive" in refused(saved(weights), WeightsError, architecture="mbt2018")


def test_groups_that_contradict_the_width(saved):
    state = dict(small_model("elic2022-official").state_dict())
    state["latent_codec.y.latent_codec.y2.context_prediction.weight"] = torch.zeros(12, 5, 5, 5)
    assert "'groups': [2, 4, 5]" in refused(saved(state), WeightsError)


def test_wrong_shapes_are_named(weights, saved):
    weights["h_a.2.weight"] = torch.zeros(8, 8, 3, 3)
    text = refused(saved(weights), WeightsError)
    assert "h_a.2.weight is (8, 8, 3, 3), expected (8, 8, 5, 5)" in text


def test_missing_and_unexpected_keys_are_named(weights, saved):
    weights["g_a.2.extra"] = weights.pop("g_a.2.bias")
    text = refused(saved(weights), WeightsError)
    assert "missing keys: g_a.2.bias" in text
    assert "unexpected keys: g_a.2.extra" in text


def test_a_long_list_is_shortened(weights, saved):
    kept = {
        key: tensor for key, tensor in weights.items() if not key.startswith("g_s.2") and "bound" not in key
    }
    assert "; and " in refused(saved(kept), WeightsError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(weights, saved, value):
    weights["g_s.4.weight"][1, 2, 3, 4] = value
    assert "NaN or infinite weights in g_s.4.weight" in refused(saved(weights), WeightsError)


def test_cdf_tables_that_contradict_each_other(weights, saved):
    weights["entropy_bottleneck._cdf_length"] += 1000
    assert "entropy_bottleneck: the lengths of its CDF tables are not from 3 to 23" in refused(
        saved(weights), WeightsError
    )


def test_an_unknown_architecture(saved):
    text = refused(saved({"conv1.weight": torch.ones(4, 3, 7, 7)}), UnknownArchitectureError)
    assert "fits its 1 tensors (conv1.*: 1)" in text
    assert "the nearest is" in text


@pytest.mark.parametrize("trust", [False, True])
def test_a_compressed_zip_is_told_as_such(weights, saved, trust):
    """torch.load maps the file, and would take what is compressed for weights."""
    path = saved(weights)
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    message = refused(path, trust=trust)
    assert "is compressed, as torch.save never does it" in message
    assert "zip -0" in message
    # which works
    unpacked = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w") as target:
        for entry in unpacked.namelist():
            target.writestr(entry, unpacked.read(entry))
    assert checkpoint.load_checkpoint(path).architecture


def test_links_that_lead_nowhere(tmp_path):
    os.symlink("loop.pt", tmp_path / "loop.pt")
    assert "it is a link that leads back to itself. Check the path" in refused(tmp_path / "loop.pt")
    os.symlink("gone.pt", tmp_path / "lost.pt")
    assert "it is a link to gone.pt, and there is no such file" in refused(tmp_path / "lost.pt")
    with pytest.raises(CheckpointError, match="File name too long"):
        checkpoint.load_checkpoint(tmp_path / ("x" * 300))
    assert "Not a directory" in refused(Path(__file__) / "it.pt")
