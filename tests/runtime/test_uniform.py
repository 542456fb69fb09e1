"""Tiles of one shape: every op sees the same shape in every tile, and the image is the untouched model's."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.exactness import tiled_model
from support.networks import PlainCnn
from support.small_models import small_model
from torch import Tensor, nn

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.errors import OptionError
from overlap_tool.geometry import Padding, Window
from overlap_tool.geometry.plan import AxisPlan, Step, alike, uniform
from overlap_tool.graph.network import Input, Network
from overlap_tool.graph.trace import trace
from overlap_tool.planning.choose import Shape
from overlap_tool.rules import Operand, Patches, Rule, extend, register_rule
from overlap_tool.runtime import execute
from overlap_tool.settings import Settings
from overlap_tool.verification.blame import find_fault
from overlap_tool.wrapping.retrofit import TiledForward, rewrap, tiled_stages

pytestmark = pytest.mark.usefixtures("one_thread")

Shapes = dict[str, set[tuple[Any, ...]]]


@pytest.fixture
def shapes(monkeypatch) -> Shapes:
    """Of every op that runs: the shapes that its rule is given, and that of what it gives."""
    seen: Shapes = defaultdict(set)
    compute = execute.compute_piece

    def recorded(op: Any, patches: Patches, value: Callable[[Operand], Any], *engine: Any) -> Tensor:
        given = []

        def noted(operand: Operand) -> Any:
            found = value(operand)
            given.append(tuple(found.shape))
            return found

        result = compute(op, patches, noted, *engine)
        seen[op.name].add((*given, tuple(result.shape)))
        return result

    monkeypatch.setattr(execute, "compute_piece", recorded)
    return seen


def image(height: int, width: int, channels: int = 3, images: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.rand(images, channels, height, width, generator=generator)


def largest(of: TiledForward) -> int:
    """How many samples of the stage's input a tile of 64 pixels takes on a side, halo aside."""
    return max(1, int(64 * of.input_scale))


# --- one shape, and the right bits ------------------------------------------------------------------------


@torch.no_grad()
def test_every_stage_of_every_architecture_has_one_shape_whatever_the_image(architecture, shapes) -> None:
    """Odd sizes, remainders, and images smaller than a tile."""
    tiled = tiled_model(architecture)
    rewrap(tiled, Settings(tile=(64, 64), schedule="tiles", uniform=True))
    for stage in tiled_stages(tiled).values():
        shapes.clear()
        side = largest(stage)
        channels = stage.network.ops[0].channels
        ran = 0
        for height, width in ((2 * side + 1, side + side // 2 + 1), (side, 3 * side), (side // 2 + 3, side)):
            if not stage.network.accepts(height, width):
                continue
            given = image(height, width, channels)
            with exact_kernels():
                full = stage.original(given)
            assert torch.equal(stage(given), full), (stage.name, height, width)
            ran += stage.plan(Shape(1, height, width)).tiles
        assert ran > 3, stage.name
        assert shapes
        for name, seen in shapes.items():
            assert len(seen) == 1, (stage.name, name, seen)


@torch.no_grad()
def test_the_schedule_tiles_has_several_shapes(shapes) -> None:
    """What the shapes above are held to would be seen."""
    overlap_tool.wrap(small_model("mbt2018"), tile=64, schedule="tiles")(image(192, 192))
    assert max(len(seen) for seen in shapes.values()) > 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["mbt2018", "cheng2020-anchor-checkerboard"])
def test_a_codec_writes_and_reads_the_untouched_models_bytes(name) -> None:
    model = small_model(name)
    given = image(192, 128)
    with exact_kernels():
        full, coded = model(given), model.compress(given)
        decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
    tiled = overlap_tool.wrap(model, tile=64, uniform=True)
    assert torch.equal(tiled(given)["x_hat"], full["x_hat"])
    found = tiled.compress(given)
    assert found["strings"] == coded["strings"]
    assert torch.equal(tiled.decompress(found["strings"], found["shape"])["x_hat"], decoded)


class Borders(nn.Module):
    """Every kind of padding, each after a bias, which would turn what stands outside into signal."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = nn.Conv2d(1, 4, 5, stride=2, padding=2)
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.replicate = nn.Conv2d(4, 4, 5, padding=2, padding_mode="replicate")
        self.largest = nn.MaxPool2d(3, stride=1, padding=1)
        self.mean = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.up = nn.ConvTranspose2d(8, 4, 5, stride=2, padding=2, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.replicate(self.reflect(self.zeros(x)))
        return self.up(torch.cat([self.largest(-x.abs() - 1), self.mean(x.abs())], 1))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (33, 51), (5, 90), (4, 4)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_border_is_that_of_the_next_op(size, batch, shapes) -> None:
    """Maxima are below zero, so that zeros outside would win."""
    model = Borders().eval()
    given = image(*size, channels=1, images=2)
    with exact_kernels():
        full = model(given)
    found = overlap_tool.wrap(model, tile=16, uniform=True, batch=batch)(given)
    assert full.isfinite().all()
    assert torch.equal(found, full)
    for name, seen in shapes.items():
        of_a_tile = {tuple(shape[1:] for shape in of_batch) for of_batch in seen}
        assert len(of_a_tile) == 1, (name, of_a_tile)


# --- what is refused --------------------------------------------------------------------------------------


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")[..., 1:-1, 2:]


def _register_own(**options: Any) -> None:
    @register_rule(Own)
    def own(call: Any, module: Any, x: Operand) -> Rule:
        window = Window(kernel=2, stride=1, before=0, after=1, outside=Padding.REPLICATE)

        def run(patches: Patches, module: Any, x: Tensor) -> Tensor:
            return extend(x, patches, Padding.REPLICATE)[..., :-1, 1:]

        return Rule(run, rows=window, columns=window, **options)


def test_a_stream_is_refused() -> None:
    with pytest.raises(OptionError, match=r'^uniform=True: .*stream.*schedule="tiles"'):
        overlap_tool.wrap(PlainCnn().eval(), schedule="stream", uniform=True)


@pytest.mark.parametrize(
    "circular",
    [nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), nn.CircularPad2d(1)],
    ids=["convolution", "pad"],
)
def test_an_op_that_takes_from_the_other_end_is_refused_by_name(circular) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), circular).eval()
    with pytest.raises(OptionError, match=r"`uniform=True` at 1 \(.*other end"):
        overlap_tool.wrap(model, uniform=True)
    overlap_tool.wrap(model)


def test_a_rule_that_does_not_say_that_it_can_is_refused_by_name(own_rules) -> None:
    _register_own()
    model = nn.Sequential(nn.Conv2d(1, 1, 3), Own()).eval()
    with pytest.raises(OptionError, match=r"`uniform=True` at 1 \(Own\).*beyond the image"):
        overlap_tool.wrap(model, uniform=True)


@torch.no_grad()
def test_a_rule_that_says_that_it_can_is_taken(own_rules) -> None:
    _register_own(uniform=True)
    model = nn.Sequential(nn.Conv2d(1, 1, 3), Own()).eval()
    given = image(37, 41, channels=1)
    with exact_kernels():
        assert torch.equal(overlap_tool.wrap(model, tile=16, uniform=True)(given), model(given))


# --- where it shows ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_it_is_kept_in_the_file_and_shown(run, tmp_path) -> None:
    checkpoint, wrapped, report = tmp_path / "model.pt", tmp_path / "model.tiled.pt", tmp_path / "report.json"
    model = small_model("mbt2018-mean")
    torch.save(model.state_dict(), checkpoint)
    code, out, _ = run("wrap", checkpoint, "--tile", 64, "--uniform", "--size", "256x192")
    assert code == 0
    assert "tiles, uniform" in out
    tiled = overlap_tool.load(wrapped)
    assert all(stage.settings.uniform for stage in tiled_stages(tiled).values())
    plans = overlap_tool.plans(tiled, (256, 192))
    assert {plan.uniform for plan in plans.values()} == {True}
    (part,) = plans["g_a"].segments
    assert {span.length for step in part.rows.steps for span in step.hold[:1]} == {64 + 30 + 15}
    code, out, _ = run("verify", wrapped, "--report", report)
    assert code == 0, out
    written = json.loads(report.read_text())
    assert {(plan["schedule"], plan["uniform"]) for plan in written["plans"]} == {("tiles", True)}
    kinds = {check["name"] for check in written["checks"] if check["status"] == "passed"}
    assert {"stage-equality", "model-equality", "bitstream", "decoding", "minimality"} <= kinds


def test_verify_takes_it_and_refuses_a_stream(run, tmp_path) -> None:
    options = "verify", "--model", "support.networks:PlainCnn", "--tile", 16, "--size", "40x33"
    code, out, _ = run(*options, "--uniform", "--report", tmp_path / "report.json")
    assert code == 0, out
    plans = json.loads((tmp_path / "report.json").read_text())["plans"]
    assert [(plan["schedule"], plan["uniform"]) for plan in plans] == [("tiles", True)]
    code, _, err = run(*options, "--uniform", "--schedule", "stream")
    assert code == 2
    assert "--schedule tiles" in err


def test_a_budget_of_memory_chooses_a_uniform_tile() -> None:
    tiled = overlap_tool.wrap(small_model("mbt2018-mean"), memory="8MiB", uniform=True)
    for plan in overlap_tool.plans(tiled, (512, 512)).values():
        assert plan.uniform
        assert plan.peak_bytes <= 8 << 20


def test_a_fault_is_found_in_uniform_tiles_too(own_rules) -> None:
    """The rule names one row and column too few, on the side where it adds padding."""

    @register_rule(Own)
    def own(call: Any, module: Any, x: Operand) -> Rule:
        def run(patches: Patches, module: Any, x: Tensor) -> Tensor:
            piece = extend(x, patches, Padding.REPLICATE)
            return nn.functional.pad(piece, (0, 1, 0, 1), mode="replicate")[..., :-1, 1:]

        return Rule(run, rows=Window(1), columns=Window(1), uniform=True)

    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), Own()).eval()
    given = image(40, 40, channels=1)
    plan = tiled_stages(overlap_tool.wrap(model, tile=16, uniform=True))[""].plan(Shape(1, 40, 40))
    with torch.no_grad():
        blame = find_fault(plan, given)
    assert (blame.fault, blame.op) == ("overlap", "1")


# --- what one shape is for --------------------------------------------------------------------------------


class TileFunction(nn.Module):
    """What a stage does in one tile, as a module of its own: a function of the piece that the tile reads."""

    def __init__(self, network: Network, row: Step, column: Step) -> None:
        super().__init__()
        self.root = network.root
        self.network = network
        self.row = row
        self.column = column

    def forward(self, piece: Tensor) -> Tensor:
        held: dict[str, Tensor] = {}
        spans = {}
        for op, rows, columns in zip(self.network.ops, self.row.hold, self.column.hold, strict=True):
            spans[op.id] = rows, columns
            if isinstance(op, Input):
                held[op.id] = piece
                continue
            patches = self.row.patches[len(spans) - 1], self.column.patches[len(spans) - 1]

            def value(operand: Operand, patches: Any = patches) -> Tensor:
                parts = [
                    slice(patch.have.start - span.start, patch.have.stop - span.start)
                    for patch, span in zip(patches, spans[operand.id], strict=True)
                ]
                return held[operand.id][..., parts[0], parts[1]]

            held[op.id] = execute.compute_piece(op, patches, value)
        return held[self.network.ops[-1].id]


def _classes(plan: AxisPlan, network: Network, along: str) -> list[list[Step]]:
    """Tiles that do the very same: the first, those in the middle, the last."""
    return alike(getattr(network, along), plan.steps, len(plan.steps))


@torch.no_grad()
def test_nine_exported_functions_of_one_shape_serve_all_tiles_of_an_image() -> None:
    """One for the middle, and one for each side and corner, by torch.export; the exported graphs of ATen ops
    run by the exact engine, and give the bits of the model's own forward."""
    model = PlainCnn().eval()
    network = trace(model, "net", 1)
    given = image(90, 76, channels=1)
    rows, columns = uniform(network.rows, 90, 16), uniform(network.columns, 76, 16)
    row_classes, column_classes = _classes(rows, network, "rows"), _classes(columns, network, "columns")
    assert (len(row_classes), len(column_classes)) == (3, 3)
    source = execute.EndlessSource(_Tensor(given), 90, 76)
    output = torch.full((1, 4, 96, 80), float("nan"))
    piece_shapes = set()
    for some_rows in row_classes:
        for some_columns in column_classes:
            example = source.read(some_rows[0].hold[0], some_columns[0].hold[0])
            function = TileFunction(network, some_rows[0], some_columns[0])
            exported = torch.export.export(function, (example,)).module()
            for row in some_rows:
                for column in some_columns:
                    piece = source.read(row.hold[0], column.hold[0])
                    piece_shapes.add(piece.shape)
                    with exact_kernels():
                        part = exported(piece)
                    output[..., slice(*row.compute[-1]), slice(*column.compute[-1])] = part
    assert len(rows.steps) * len(columns.steps) > 9
    assert len(piece_shapes) == 1
    with exact_kernels():
        assert torch.equal(output[..., :90, :76], model(given)[..., :90, :76])


class _Tensor:
    """A source in its simplest form."""

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole

    def read(self, rows: Any, columns: Any) -> Tensor:
        return self.whole[..., slice(*rows), slice(*columns)]
