"""`overlap-tool compress`, `decompress` and `run`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from support.networks import PlainCnn
from support.photographs import photograph, untouched
from support.small_models import small_model

import overlap_tool
from overlap_tool import checkpoint
from overlap_tool.files import Codec, compress, compressing

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS = photograph("coffee", 100, 130)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    arguments = checkpoint.find("mbt2018-mean").small
    tiled = overlap_tool.wrap(small_model("mbt2018-mean"), tile=64)
    overlap_tool.save(tiled, folder / "it.tiled.pt", "mbt2018-mean", arguments)
    overlap_tool.save(
        overlap_tool.wrap(PlainCnn().eval(), tile=16),
        folder / "net.tiled.pt",
        "support.networks:PlainCnn",
        {},
    )
    Image.fromarray(PIXELS).save(folder / "in.png")
    Image.fromarray(photograph("camera", 40, 60)).save(folder / "grey.png")
    compress(Codec.load(folder / "it.tiled.pt"), folder / "in.png", folder / "made.lic")
    return folder


def test_there_and_back(run, folder) -> None:
    model = ["--model", folder / "it.tiled.pt"]
    code, out, err = run("compress", *model, folder / "in.png", "--check", "--json")
    told = json.loads(out)
    assert (code, err, told["output"]) == (0, "", str(folder / "in.lic"))
    assert told["psnr"] > 0
    assert told["seconds"] > 0
    assert told["peak_memory_bytes"] > 50e6
    code, out, err = run("decompress", *model, folder / "in.lic", "-o", folder / "out.png")
    assert (code, err) == (0, "")
    assert f"{8 * told['bytes'] / PIXELS[..., 0].size:.4f} bits per pixel" in out
    _, _, expected = untouched("mbt2018-mean", PIXELS)
    with Image.open(folder / "out.png") as found:
        assert np.array_equal(np.asarray(found), expected)
    assert run("decompress", *model, folder / "in.lic", "-o", folder / "out.npy", "--quiet")[1:] == ("", "")


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu(run, folder) -> None:
    model = ["--model", folder / "it.tiled.pt", "--device", "cuda", "--quiet"]
    assert run("compress", *model, folder / "in.png", "-o", folder / "gpu.lic") == (0, "", "")
    assert run("decompress", *model, folder / "gpu.lic", "-o", folder / "gpu.npy") == (0, "", "")
    _, _, expected = untouched("mbt2018-mean", PIXELS)
    # a last bit may decide how a sample is rounded
    assert np.abs(np.load(folder / "gpu.npy").astype(int) - expected).max() <= 1


def test_a_network_on_a_file(run, folder) -> None:
    code, out, _ = run(
        "run",
        "--model",
        folder / "net.tiled.pt",
        "--trust",
        folder / "grey.png",
        "-o",
        folder / "out.zarr",
        "--dtype",
        "float32",
    )
    assert code == 0
    assert "60x40" in out
    found = zarr.open_array(store=str(folder / "out.zarr"), mode="r")
    assert (found.shape, found.dtype) == ((40, 60, 4), np.float32)


def test_a_region_of_either(run, folder) -> None:
    """By x, y, width and height."""
    for name in ("whole", "part"):
        region = ["--region", "5,7,30,20"] if name == "part" else []
        network = ["--model", folder / "net.tiled.pt", "--trust", folder / "grey.png"]
        assert run("run", *network, "-o", folder / f"run-{name}.npy", *region)[0] == 0
        codec = ["--model", folder / "it.tiled.pt"]
        assert run("compress", *codec, folder / "in.png", "-o", folder / "it.lic")[0] == 0
        assert run("decompress", *codec, folder / "it.lic", "-o", folder / f"de-{name}.npy", *region)[0] == 0
    for kind in ("run", "de"):
        whole, part = np.load(folder / f"{kind}-whole.npy"), np.load(folder / f"{kind}-part.npy")
        assert np.array_equal(part, whole[7:27, 5:35])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["decompress", "{}/made.lic", "--region", "1,2,3"], "--region 1,2,3: is not a rectangle"),
        (["decompress", "{}/made.lic", "--region", "0,0,9999,1"], "--region 0,0,9999,1: is not inside"),
        (["compress", "{}/none.png"], "no such file"),
        (["compress", "{}/in.png", "-o", "{}/no/it.lic"], "folder that exists"),
        (["compress", "{}/in.png", "--in-memory", "much"], "amount of memory"),
        (["decompress", "{}/in.png"], "no .lic file"),
        (["run", "{}/in.png", "-o", "{}/a.png"], "overlap-tool compress"),
    ],
)
def test_refusals_are_one_line(run, folder, arguments, reason) -> None:
    code, out, err = run(*[part.format(folder) for part in arguments], "--model", folder / "it.tiled.pt")
    assert (code, out) == (2, "")
    assert reason in err
    assert len(err.splitlines()) == 1
    assert [path for path in folder.iterdir() if path.name.endswith(".job")] == []


def test_a_type_that_is_none_is_refused_with_those_that_there_are(run, folder) -> None:
    image, model = folder / "in.png", folder / "net.tiled.pt"
    code, out, err = run("run", image, "-o", folder / "a.png", "--model", model, "--dtype", "int64")
    assert (code, out) == (2, "")
    assert "'int64' is not one of 'uint8'" in err


def test_a_checkpoint_that_is_not_wrapped_is_refused_with_the_command(run, folder) -> None:
    import torch

    torch.save(small_model("mbt2018-mean").state_dict(), folder / "plain.pt")
    code, _, err = run("compress", "--model", folder / "plain.pt", folder / "in.png")
    assert code == 2
    assert "overlap-tool wrap" in err


def test_stopping_by_hand_tells_how_to_go_on(run, folder, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compressing, "note_a_long_wait", interrupted)
    code, _, err = run(
        "compress", "--model", folder / "it.tiled.pt", folder / "in.png", "-o", folder / "b.lic"
    )
    assert code == 130
    assert "--resume" in err


@pytest.mark.parametrize("command", ["compress", "decompress", "run"])
def test_the_help_has_examples(run, command) -> None:
    _, out, _ = run(command, "--help")
    assert f"overlap-tool {command} --model" in out
