"""What the README and the docs tell a reader to run, runs; what they show is what comes out.

The files that they show are written to a folder of their own, beside a small codec under the name that
`make demo` gives it. There, their commands and their Python run in this process.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import skimage.data
import torch
import typer.main
from PIL import Image
from support.small_models import small_model
from torch import nn

import overlap_tool
from overlap_tool import checkpoint, cli, plugins
from overlap_tool.checkpoint import architectures as built_in
from overlap_tool.checkpoint import registry as architectures
from overlap_tool.errors import RuleError, UnknownOpError
from overlap_tool.files import Codec, compress
from overlap_tool.graph.trace import trace
from overlap_tool.plugins import GROUP
from overlap_tool.rules import registry
from overlap_tool.testing import check_rule

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SYSTEMS = ROOT / "docs" / "systems.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "plugins/README.md", "notebooks/README.md"))]
PICTURES = sorted((ROOT / "docs" / "pictures").iterdir())
BUILT_IN = {architecture.name for architecture in built_in.KNOWN}
"""Without those of plugins, which an earlier test may have imported."""

NOT_RUN = {
    "make demo": "installs an environment; test_the_demo_checkpoint_is_the_one_analyzed does the rest of it",
    "make test": "is what runs this",
    "pip install .": "test_packaging.py installs what is built",
    'pip install ".[codecs,files,dask]"': "changes the environment",
    "overlap-tool analyze zoo:mbt2018": "run by test_the_demo_checkpoint_is_the_one_analyzed",
    "overlap-tool analyze zoo:mbt2018@3": "downloads; pretrained models have tests of their own",
    "overlap-tool run --model net.tiled.pt --trust photo.tif -o out.zarr": "run by test_files_commands.py",
    "overlap-tool run --model net.tiled.pt --trust photo.tif -o crop.png --region 100,50,320,240": (
        "run by test_files_commands.py"
    ),
    "overlap-tool run --model segment.tiled.pt --trust volume.npy -o labels.zarr": (
        "run by test_volumes_and_sound.py"
    ),
    "overlap-tool run --model denoise.tiled.pt --trust speech.npy -o clean.npy": (
        "run by test_volumes_and_sound.py"
    ),
    "overlap-tool selftest --models --device cuda": "needs a GPU; test_selftest.py emulates one",
    "overlap-tool run --model net.tiled.pt --trust scene.zarr -o out.zarr --workers 4": (
        "run by test_workers.py"
    ),
    "overlap-tool compress --model mbt2018-mean.tiled.pt scene.zarr -o scene.lic --workers 4": (
        "run by tests/distributed/test_codecs.py"
    ),
    "overlap-tool decompress --model mbt2018-mean.tiled.pt scene.lic -o out.zarr --workers 4": (
        "run by tests/distributed/test_codecs.py"
    ),
    "overlap-tool run --model net.tiled.pt scene.zarr -o out.zarr --dask tcp://scheduler:8786 --resume": (
        "needs a scheduler"
    ),
}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a block shows, if its first line names one."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named[1] if named else None


def _blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page.name, text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)
    ]


BLOCKS = [block for page in PAGES for block in _blocks(page)]
FILES = {block.file: block.text for block in BLOCKS if block.file}
LINES = [(block, line) for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()]
FIRST = {line: block for block, line in reversed(LINES)}
"""Where a line is shown first."""
COMMANDS = [pytest.param(line, id=f"{FIRST[line].page}:{line}") for line in FIRST if line not in NOT_RUN]
SCRIPTS = [
    pytest.param(block.text, id=f"{block.page}:{block.line}")
    for block in BLOCKS
    if block.language == "python" and not block.file
]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "demo").mkdir()
    torch.save(small_model("mbt2018").state_dict(), folder / "demo" / "mbt2018.pt")
    mean = checkpoint.find("mbt2018-mean")
    tiled = overlap_tool.wrap(small_model("mbt2018-mean"), tile=64)
    overlap_tool.save(tiled, folder / "mean.tiled.pt", mean.name, mean.small)
    Image.fromarray(skimage.data.coffee()[:90, :120]).save(folder / "photo.png")
    Image.fromarray(skimage.data.coffee()[:90, :120]).save(folder / "photo.tif")
    compress(Codec.load(folder / "mean.tiled.pt"), folder / "photo.png", folder / "photo.lic")
    compress(Codec.load(folder / "mean.tiled.pt"), folder / "photo.tif", folder / "again.lic", blocks=64)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    rules = dict(registry._registered)
    yield folder
    registry._registered.clear()
    registry._registered.update(rules)
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


@pytest.fixture
def folder(written, monkeypatch) -> Iterator[Path]:
    """The reader's folder, as the current one.

    Rules registered by name, and architectures, are forgotten after each test, for a file may be given as
    --plugin in the next.
    Those of imported objects stay with their modules, since torch does not let go of a custom op at once.
    """
    monkeypatch.chdir(written)
    monkeypatch.setattr(sys, "path", [str(written), *sys.path])
    monkeypatch.setenv("COLUMNS", "200")
    before = set(registry._registered)
    monkeypatch.setattr(architectures, "_architectures", dict(architectures._architectures))
    yield written
    for target in [target for target in registry._registered if isinstance(target, str)]:
        if target not in before:
            del registry._registered[target]
    sys.modules.pop("median", None)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process, and give what it prints; it must succeed."""

    def go(line: str) -> str:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        assert (exit.value.code or 0, err) == (0, "")
        return out

    return go


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs(folder, run, line) -> None:
    assert line.startswith("overlap-tool "), "neither a command of ours nor on the list of what is not run"
    out = run(line)
    command, *rest = shlex.split(line)[1:]
    if command == "analyze":
        stage = rest[rest.index("--stage") + 1] if "--stage" in rest else ""
        assert stage in out
        assert len(out.splitlines()) > 5
        if "--html" in rest:
            assert (folder / rest[rest.index("--html") + 1]).stat().st_size > 0
    elif command == "verify":
        assert "holds" in out
        for option in ("--report", "--junit", "--summary", "--html"):
            if option in rest:
                assert (folder / rest[rest.index(option) + 1]).stat().st_size > 0
    elif command == "wrap":
        target = folder / out.rpartition("wrote ")[2].strip()
        assert target.is_file()
        if target.name != "mean.tiled.pt":  # the next commands read it
            target.unlink()
    elif command in ("compress", "decompress"):
        assert (folder / rest[rest.index("-o") + 1]).stat().st_size > 0
        assert "bits per pixel" in out or json.loads(out)["bits_per_pixel"] > 0


def test_what_is_not_run_is_still_shown() -> None:
    assert NOT_RUN.keys() <= {line for _, line in LINES}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs(folder, script) -> None:
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(script, "README", "exec"), names)
    if "again" in names:
        _check_wrapping(names)


def _check_wrapping(names: dict) -> None:
    """What the script that loads, wraps, saves and loads again says of its own results."""
    first, *_ = names["report"].stages
    assert (first.name, first.left, first.right) == ("g_a", 30, 15)
    assert names["difference"] < 1e-4
    assert names["decoded"].shape == names["image"].shape
    with torch.no_grad():
        assert torch.equal(names["again"](names["image"])["x_hat"], names["tiled"](names["image"])["x_hat"])
    assert overlap_tool.plans(names["tiled"], (3840, 2160))["g_a"].tile == (64, 64)
    plain = overlap_tool.unwrap(names["tiled"])
    assert "forward" in vars(names["tiled"].g_a)
    assert "forward" not in vars(plain.g_a)


def test_a_page_has_a_script_that_wraps() -> None:
    assert any("again" in param.values[0] for param in SCRIPTS)


def test_the_network_with_medians_needs_its_rule(folder) -> None:
    from mynet import Net

    model = Net().eval()
    with pytest.raises(UnknownOpError, match="median"):
        overlap_tool.analyze(model)


@pytest.mark.parametrize(
    ("module", "name", "overlap"), [("median", "Net", 1 + 1 + 2), ("smooth", "Smoother", 1 + 1)]
)
@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_the_rules_shown_are_right(folder, module, name, overlap, schedule) -> None:
    rule = __import__(module)
    torch.manual_seed(0)
    model = getattr(rule, name, None) or getattr(__import__("mynet"), name)
    model = model().double().eval()
    report = overlap_tool.analyze(model, size=(101, 67))
    assert (report.stages[0].left, report.stages[0].bottom) == (overlap, overlap)
    tiled = overlap_tool.wrap(model, tile=(29, 17), schedule=schedule)
    image = torch.rand(2, 3, 67, 101, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tiled(image), model(image), rtol=0, atol=1e-12)


def test_the_check_shown_passes_and_one_that_is_wrong_does_not(folder) -> None:
    __import__("check_smooth")
    text = FILES["smooth.py"]
    assert "1:-1, 1:-1" in text
    (folder / "wrong_smooth.py").write_text(text.replace("kernel=3", "kernel=5").replace("example", "wrong"))
    wrong = __import__("wrong_smooth")
    with pytest.raises(RuleError, match="geometry"):
        check_rule(wrong.smooth, torch.rand(2, 3, 17, 22), torch.rand(3, 1, 3, 3))


def test_the_plugin_shown_is_recognised_and_its_tiles_are_exact(folder, tmp_path) -> None:
    plugins.load_file(folder / "tiny.py")
    torch.save(checkpoint.seeded_model(checkpoint.find("tiny"), {"N": 8}).state_dict(), tmp_path / "mine.pt")
    loaded = checkpoint.load_checkpoint(tmp_path / "mine.pt")
    assert (loaded.architecture, loaded.arguments) == ("tiny", {"N": 8})
    g_a = overlap_tool.analyze(loaded.model).stages[0]
    assert (g_a.name, g_a.left, g_a.right) == ("g_a", 30 + 1, 15 + 1)
    image = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with overlap_tool.exact_kernels():
            whole = loaded.model(image)["x_hat"]
        assert torch.equal(overlap_tool.wrap(loaded.model, tile=32)(image)["x_hat"], whole)


def test_the_plugin_shown_is_the_only_one_to_recognise_its_checkpoints(folder, architecture) -> None:
    plugins.load_file(folder / "tiny.py")
    known = checkpoint.find("tiny")
    assert not known.detect(small_model(architecture).state_dict())
    tiny = checkpoint.seeded_model(known, {"N": 8}).state_dict()
    assert not checkpoint.find(architecture).detect(tiny)


def test_the_rules_shown_are_as_short_as_promised() -> None:
    assert len(FILES["tiny.py"].splitlines()) < 40
    assert len(FILES["median.py"].splitlines()) < 20
    assert len(FILES["smooth.py"].splitlines()) < 45


def test_the_demo_checkpoint_is_the_one_analyzed(run, monkeypatch, tmp_path) -> None:
    """`make demo` writes the weights of zoo:mbt2018, so excerpt and pictures are of its report."""
    monkeypatch.setenv("COLUMNS", "200")
    out = run(f"overlap-tool analyze zoo:mbt2018 --svg {tmp_path}")
    for picture in PICTURES:
        assert picture.read_bytes() == (tmp_path / picture.name).read_bytes(), "see docs/contributing.md"
    printed = {line.rstrip() for line in out.splitlines()}
    printed |= {line.partition(" (")[0] if line.startswith("g_a: tiles") else line for line in printed}
    excerpts = [block for block in BLOCKS if block.language == "text"]
    assert excerpts
    for block in excerpts:
        missing = [line for line in block.text.splitlines() if line.rstrip() not in printed]
        assert missing == []


def test_every_picture_is_shown() -> None:
    shown = {(page.parent / path).resolve() for page in ALL_PAGES for path in _pictures(page)}
    assert shown == set(PICTURES)


def _pictures(page: Path) -> list[str]:
    return re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())


def _rows(page: Path) -> dict[str, tuple[str, ...]]:
    """The rows of the tables whose first cell is one `name`, by that name."""
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \|$", page.read_text(), flags=re.M)
    return {name: tuple(cells.split(" | ")) for name, cells in rows}


def test_the_table_names_every_architecture() -> None:
    assert set(_rows(SYSTEMS)) == BUILT_IN


def _overlaps(stage: nn.Module, name: str) -> set[str]:
    network = trace(stage, name)
    return {
        f"{before}/{after}" for before, after in (network.rows.overlaps()[0], network.columns.overlaps()[0])
    }


def test_the_table_gives_the_overlaps(architecture) -> None:
    model = small_model(architecture)
    for stage, told in zip(("g_a", "g_s"), _rows(SYSTEMS)[architecture], strict=True):
        assert _overlaps(getattr(model, stage), stage) == {told}


def test_every_option_exists() -> None:
    command = typer.main.get_command(cli.app)
    known = {
        option
        for part in (command, *command.commands.values())
        for parameter in part.params
        for option in parameter.opts
    } | {"--help"}
    for script in ("benchmarks/__main__.py", "scripts/on_a_gpu.py"):
        known |= set(re.findall(r'add_argument\("(--[\w-]+)"', (ROOT / script).read_text()))
    known |= {
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--only-binary",
        "--platform",
        "--python-version",
        "--target",
    }  # of pip
    for page in ALL_PAGES:
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text()))
        assert shown <= known, page.name


def test_every_public_name_that_is_shown_exists() -> None:
    names = [
        name for page in ALL_PAGES for name in re.findall(r"overlap_tool\.(\w+(?:\.\w+)*)", page.read_text())
    ]
    assert "wrap" in names
    for name in names:
        if f"overlap_tool.{name}".startswith(GROUP):
            continue  # the name of the entry point group
        home, _, last = f"overlap_tool.{name}".rpartition(".")
        module = __import__(home, fromlist=[last])
        assert hasattr(module, last) or __import__(f"{home}.{last}")


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_named_in_the_text_exist(page) -> None:
    for name in re.findall(r"`((?:overlap_tool|tests|docs|plugins|notebooks)/[\w./-]+)`", page.read_text()):
        if "NAME" not in name:
            assert (ROOT / name).exists(), name


def test_the_entry_point_group_is_the_one_told() -> None:
    assert f'entry-points."{GROUP}"' in (ROOT / "docs" / "rules.md").read_text()
