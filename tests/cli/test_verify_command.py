"""`overlap-tool verify` for people and for CI: exit codes, reports, images; and the GitHub Action."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
import torch
import yaml
from PIL import Image
from support.browser import Strict
from support.small_models import small_model

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/verify-action.sh"

WRONG = """
import torch.nn.functional as F
from torch import nn
from overlap_tool.geometry import Padding
from overlap_tool.rules import Rule, extend, register_rule
from overlap_tool.rules.convolution import windows


@register_rule(nn.Conv2d, override=True)
def one_column_less(call, module, input):
    rows, columns = windows(module.kernel_size, module.stride, module.padding, module.dilation)
    if module.kernel_size == (3, 3):
        columns = columns.masked([1, 2])

    def run(patches, module, input):
        piece = extend(input, patches, Padding.CONSTANT)
        if module.kernel_size == (3, 3):
            piece = F.pad(piece, (1, 0))
        return F.conv2d(piece, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)

    return Rule(run, rows, columns)
"""


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "mean.pt"
    torch.save(small_model("mbt2018-mean").state_dict(), path)
    return path


@pytest.fixture
def wrong_rule(own_rules, tmp_path) -> Path:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    return path


def _picture(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    pixels = numpy.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=numpy.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


def test_all_holds_and_every_report_says_so(run, checkpoint_path, tmp_path) -> None:
    report, junit, summary = tmp_path / "report.json", tmp_path / "junit.xml", tmp_path / "summary.md"
    html = tmp_path / "report.html"
    files = ("--report", report, "--junit", junit, "--summary", summary, "--html", html)
    code, out, err = run("verify", checkpoint_path, "--tile", "64,96x64", "--ablate", *files)
    assert (code, err) == (0, "")
    assert "holds: tiles give the untouched model's bits" in out
    assert "FAILS" not in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("junit.xml", "report.html", "report.json", "summary.md")
    ]
    page = Strict(html.read_text())
    assert "tiles give the untouched model's bits" in page.text
    assert "svg" not in page.tags
    assert {check["where"] for check in json.loads(report.read_text())["checks"]} == {None}

    told = json.loads(report.read_text())
    assert (told["schema"], told["verdict"], told["architecture"]) == (1, "holds", "mbt2018-mean")
    assert [tuple(plan["tile"]) for plan in told["plans"][:3]] == [(64, 64), (64, 64), (96, 64)]
    documented = set(re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "schema.md").read_text(), flags=re.M))
    figures = {key for check in told["checks"] for key in check["figures"]}
    names = {check["name"] for check in told["checks"]}
    check, plan, image = told["checks"][0], told["plans"][0], told["images"][0]
    for keys in (told, told["machine"], check, plan, image, figures, names):
        assert set(keys) <= documented, set(keys) - documented

    suite = ElementTree.parse(junit).getroot()
    assert (suite.tag, suite.get("failures"), suite.get("errors")) == ("testsuite", "0", "0")
    assert int(suite.get("tests", 0)) == len(suite) == len(told["checks"])
    assert len({(case.get("classname"), case.get("name")) for case in suite}) == len(suite)
    assert summary.read_text().startswith("# overlap-tool verify: holds")
    assert "| g_a | minimality | passed | 8 |" in summary.read_text()


def test_a_wrong_rule_is_exit_code_1_and_blamed(run, checkpoint_path, wrong_rule, tmp_path) -> None:
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    report, html = tmp_path / "report.json", tmp_path / "report.html"
    files = ("--junit", junit, "--summary", summary, "--report", report, "--html", html)
    code, out, err = run("verify", checkpoint_path, "--tile", "64", "--plugin", wrong_rule, *files)
    assert (code, err) == (1, "")
    assert "FAILS" in out
    assert re.search(r"first to differ: .* of h_a\.0 \(Conv2d\) depend on inputs outside", out)
    assert "the overlap is too small" in out
    suite = ElementTree.parse(junit).getroot()
    failed = {case.get("classname") for case in suite if case.find("failure") is not None}
    assert failed == {"mbt2018-mean.h_a", "mbt2018-mean.h_s", "mbt2018-mean.model"}
    assert int(suite.get("failures", 0)) > 0
    assert "FAILS" in summary.read_text()
    assert "h_a.0" in summary.read_text()
    _check_where(json.loads(report.read_text()), html.read_text())


def _check_where(told: dict, page: str) -> None:
    """Every difference has its place, and the page shows the places."""
    placed = [check for check in told["checks"] if check["where"] is not None]
    assert {check["name"] for check in placed} >= {"stage-equality", "model-equality"}
    assert all(check["status"] == "failed" for check in placed)
    for check in placed:
        counts = check["where"]["counts"]
        if check["name"] != "decoding":
            assert sum(map(sum, counts)) == check["figures"]["differing"]
        assert max(len(counts), len(counts[0])) <= 32
    documented = set(re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "schema.md").read_text(), flags=re.M))
    assert set(placed[0]["where"]) <= documented
    drawn = page.count('class="differs"')
    assert drawn == sum(
        count > 0 for check in placed[:12] for row in check["where"]["counts"] for count in row
    )
    seen = Strict(page)
    assert "FAILS" in seen.text
    assert "h_a.0 (Conv2d)" in seen.text
    assert seen.tags.count("svg") == min(len(placed), 12)


def test_pictures(run, checkpoint_path, tmp_path) -> None:
    """Colour, grey and transparent ones, of sizes that the model cannot take as they are."""
    report = tmp_path / "report.json"
    pictures = [
        _picture(tmp_path / "color.png", 141, 133),
        _picture(tmp_path / "grey.jpg", 129, 64, "L"),
        _picture(tmp_path / "clear.png", 64, 130, "RGBA"),
    ]
    options = [word for picture in pictures for word in ("--image", picture)]
    code, _, err = run(
        "verify", checkpoint_path, "--tile", "64", "--schedule", "stream", "--report", report, *options
    )
    assert (code, err) == (0, "")
    images = json.loads(report.read_text())["images"]
    assert [image["name"] for image in images] == ["color.png", "grey.jpg", "clear.png"]
    assert [image["size"] for image in images] == [[141, 133], [129, 64], [64, 130]]
    assert [image["padded"] for image in images] == [[192, 192], [192, 64], [64, 192]]
    assert len({image["sha256"] for image in images}) == 3


def test_a_wrapped_model_is_verified_as_it_was_wrapped(run, checkpoint_path, tmp_path) -> None:
    tiled, report = tmp_path / "own.tiled.pt", tmp_path / "report.json"
    assert run("wrap", checkpoint_path, "--tile", "96x64", "--schedule", "tiles", "-o", tiled)[0] == 0
    ways = {}
    for name, options in {"own": (), "tile": ("--tile", "64"), "both": ("--schedule", "both")}.items():
        assert run("verify", tiled, "--stage", "h_s", "--report", report, *options)[0] == 0
        plans = json.loads(report.read_text())["plans"]
        ways[name] = [("x".join(map(str, plan["tile"])), plan["schedule"]) for plan in plans]
    assert ways == {
        "own": [("96x64", "tiles")],
        "tile": [("64x64", "stream"), ("64x64", "tiles")],
        "both": [("96x64", "stream"), ("96x64", "tiles")],
    }


def test_a_model_wrapped_for_other_kernels_is_refused(run, checkpoint_path, tmp_path) -> None:
    tiled = tmp_path / "stock.tiled.pt"
    assert run("wrap", checkpoint_path, "--engine", "stock", "-o", tiled)[0] == 0
    code, out, err = run("verify", tiled)
    assert (code, out) == (2, "")
    assert "--engine stock" in err


def test_a_budget_of_memory_is_verified(run, checkpoint_path, tmp_path) -> None:
    tiled, report = tmp_path / "small.tiled.pt", tmp_path / "report.json"
    assert run("wrap", checkpoint_path, "--memory", "2MB", "--size", "256x256", "-o", tiled)[0] == 0
    assert run("verify", tiled, "--size", "320x256", "--report", report)[0] == 0
    plans = json.loads(report.read_text())["plans"]
    assert all(plan["peak_bytes"] <= 2_000_000 for plan in plans)
    assert max(plan["tiles"] for plan in plans) > 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tile", "0"], "--tile 0:"),
        (["--tile", "64,,32"], "--tile"),
        (["--tile", "4096", "--size", "64x64"], "smaller --tile"),
        (["--size", "0x64"], "--size 0x64"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", __file__], "PNG or JPEG"),
        (["--image", "nowhere.png", "--size", "64x64"], "--size"),
        (["--report", "nowhere/report.json"], "its folder does not exist"),
        (["--summary", "."], "is a folder"),
        (["--stage", "g_x"], "g_a"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run, checkpoint_path, tmp_path, monkeypatch, options, named
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("verify", checkpoint_path, "--junit", "junit.xml", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert named in err
    assert list(tmp_path.iterdir()) == []


def test_a_choice_that_is_none_is_refused_with_those_that_there_are(run, checkpoint_path) -> None:
    code, out, err = run("verify", checkpoint_path, "--schedule", "spiral")
    assert (code, out) == (2, "")
    assert "'spiral' is not one of 'stream', 'tiles'" in err
    assert "'both'" in err


# --- the GitHub Action ------------------------------------------------------------------------------------


def test_the_example_workflow_uses_what_the_action_has() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    text = (ROOT / "docs" / "verify-checkpoint.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["verify"]["steps"]
    (ours,) = (step for step in steps if step.get("uses", "").partition("@")[0] == "OWNER/overlap-tool")
    assert set(ours["with"]) <= set(action["inputs"])
    required = {name for name, of in action["inputs"].items() if of.get("required")}
    assert required <= set(ours["with"])
    read = set(re.findall(rf"steps\.{ours['id']}\.outputs\.([\w-]+)", text))
    assert read
    assert read <= set(action["outputs"])


def test_the_action_runs_the_script_and_tells_its_outputs() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    step, _ = action["runs"]["steps"]
    assert f'"$GITHUB_ACTION_PATH/{SCRIPT}"' in step["run"]
    assert (ROOT / SCRIPT).is_file()
    given = {value[len("${{ inputs.") : -len(" }}")] for value in step["env"].values()}
    assert given == set(action["inputs"]) - {"artifact"}
    assert {name.lower() for name in step["env"]} == given
    script = (ROOT / SCRIPT).read_text()
    for name in step["env"]:
        assert f"${name}" in script or f"${{{name}:-}}" in script
    for name, output in action["outputs"].items():
        if name != "artifact-url":
            assert output["value"] == f"${{{{ steps.{step['id']}.outputs.{name} }}}}"
            assert f'echo "{name}=' in script


def test_the_action_attaches_what_the_script_wrote() -> None:
    """Whatever the verdict, but not on bad input, where there is nothing to attach."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    step, attach = action["runs"]["steps"]
    assert attach["uses"].startswith("actions/upload-artifact@v")
    assert attach["with"]["name"] == "${{ inputs.artifact }}"
    outputs = f"steps.{step['id']}.outputs"
    assert attach["with"]["path"].split("\n")[:-1] == [
        f"${{{{ {outputs}.{name} }}}}" for name in ("report", "junit", "html")
    ]
    assert attach["if"] == f"always() && inputs.artifact != '' && {outputs}.html != ''"
    url = action["outputs"]["artifact-url"]["value"]
    assert url == f"${{{{ steps.{attach['id']}.outputs.artifact-url }}}}"


def _act(folder: Path, **inputs: str) -> tuple[int, dict[str, str], str]:
    """Run the script as GitHub would: its exit code, outputs, and what it adds to the job's page."""
    output, page = folder / "output", folder / "page"
    page.write_text("before\n")
    done = subprocess.run(
        ["bash", ROOT / SCRIPT],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RUNNER_TEMP": str(folder),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(page),
            **inputs,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return done.returncode, told, page.read_text()


def test_the_action_holds(checkpoint_path, tmp_path) -> None:
    picture = _picture(tmp_path / "with a space.png", 130, 100)
    code, told, page = _act(
        tmp_path,
        CHECKPOINT=str(checkpoint_path),
        TILE="64",
        SCHEDULE="stream",
        IMAGE=f"{picture}\n",
        ARGUMENTS="--stage h_s",
    )
    assert (code, told["verdict"]) == (0, "holds")
    report = json.loads(Path(told["report"]).read_text())
    assert [image["name"] for image in report["images"]] == [picture.name]
    assert {plan["schedule"] for plan in report["plans"]} == {"stream"}
    assert ElementTree.parse(told["junit"]).getroot().get("failures") == "0"
    assert "tiles give the untouched model's bits" in Strict(Path(told["html"]).read_text()).text
    assert page.startswith("before\n# overlap-tool verify: holds")


def test_the_action_fails(checkpoint_path, wrong_rule, tmp_path) -> None:
    code, told, page = _act(
        tmp_path, CHECKPOINT=str(checkpoint_path), TILE="64", ARGUMENTS=f"--stage h_a --plugin {wrong_rule}"
    )
    assert (code, told["verdict"]) == (1, "fails")
    assert json.loads(Path(told["report"]).read_text())["verdict"] == "fails"
    assert "svg" in Strict(Path(told["html"]).read_text()).tags
    assert "h_a.0" in page


def test_the_action_says_what_is_bad_input(tmp_path) -> None:
    code, told, page = _act(tmp_path, CHECKPOINT="nowhere.pt")
    assert (code, told) == (2, {"report": "", "junit": "", "html": "", "verdict": "error"})
    assert page == "before\n"
