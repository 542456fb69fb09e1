"""Models that take more than an image: other maps, and parameters that may change from call to call."""

from __future__ import annotations

import copy
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import networks
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import (
    CheckpointError,
    OptionError,
    OverlapToolError,
    TraceError,
    UntrustedClassError,
)
from overlap_tool.graph.standing_in import stands_in
from overlap_tool.models.closed_loop import ClosedLoop
from overlap_tool.wrapping.retrofit import tiled_stages

pytestmark = pytest.mark.usefixtures("one_thread")


class Rated(nn.Module):
    """With a rate index, as variable-rate encoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.Conv2d(6, 4, 3, padding=1)
        self.gains = nn.Parameter(torch.rand(3, 6, 1, 1) + 0.5)

    def forward(self, x: Tensor, qp: int, *, scale: float | Tensor = 1.0, deep: bool = False) -> Any:
        y = self.first(x) * self.gains[qp]
        for _ in range(qp):
            y = y.relu() + y
        return self.last(y * scale) if not deep else {"y": y, "z": self.last(y)}


class Masked(nn.Module):
    """With a mask, as inpainting has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, image: Tensor, mask: Tensor, strength: float = 0.5) -> Tensor:
        h, w = image.shape[-2:]
        both = F.pad(torch.cat([image * (1 - mask), mask], 1), (0, -w % 8, 0, -h % 8), mode="reflect")
        return image * (1 - mask) + self.last(self.first(both))[..., :h, :w] * mask * strength


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def assert_same(tiled: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad(), overlap_tool.exact_kernels():
        found, expected = tiled(*args, **kwargs), model(*args, **kwargs)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    else:
        assert torch.equal(found, expected)


def no_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from overlap_tool.wrapping.retrofit import TiledForward

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model's own code ran, untiled")

    monkeypatch.setattr(TiledForward, "original", refuse)


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize(
    "example", [(torch.rand(1, 3, 64, 64), 1), {"qp": 1}], ids=["arguments", "by keyword"]
)
def test_parameters_change_from_call_to_call(monkeypatch, schedule, example) -> None:
    model, image = made(Rated), torch.rand(2, 3, 61, 83)
    tiled = overlap_tool.wrap(model, tile=16, schedule=schedule, example=example)
    no_code_of_its_own(monkeypatch)
    for qp in (1, 0, 2, 1):
        assert_same(tiled, model, image, qp)
        assert_same(tiled, model, image, qp=qp, scale=0.5)
    assert_same(tiled, model, image, 2, scale=torch.tensor([2.0]))
    assert_same(tiled, model, image, 2, scale=torch.tensor([3.0]))
    assert_same(tiled, model, image, 0, deep=True)
    assert_same(copy.deepcopy(tiled), model, image, 2)


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_several_maps(monkeypatch, schedule) -> None:
    model = made(Masked)
    example = torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32)
    tiled = overlap_tool.wrap(model, tile=(24, 16), schedule=schedule, example=example)
    no_code_of_its_own(monkeypatch)
    for size in ((61, 83), (64, 40)):
        image, mask = torch.rand(1, 3, *size), (torch.rand(1, 1, *size) > 0.5).float()
        assert_same(tiled, model, image, mask)
        assert_same(tiled, model, image, mask=mask, strength=0.25)


def test_weights_and_parts_that_change_are_noticed_for_every_parameter() -> None:
    model, image = made(Rated), torch.rand(1, 3, 40, 48)
    tiled = overlap_tool.wrap(model, tile=16, example={"qp": 0})
    assert_same(tiled, model, image, 2)
    for each in (model, tiled):
        with torch.no_grad():
            each.gains.mul_(2)
        each.last = nn.Conv2d(6, 4, 1)
    tiled.last.load_state_dict(model.last.state_dict())
    assert_same(tiled, model, image, 2)
    assert_same(tiled, model, image, 0)


def test_calls_that_tiles_do_not_cover_run_the_models_own_code() -> None:
    model = made(Masked)
    tiled = overlap_tool.wrap(model, tile=16, example=(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)))
    image = torch.rand(1, 3, 40, 48)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'mask'"):
        tiled(image)


def test_analyze_with_an_example() -> None:
    stage = overlap_tool.analyze(made(Rated), example={"qp": 2}, size=(640, 480)).stages[0]
    assert (stage.left, stage.right, stage.receptive_field) == (4, 3, 9)
    stage = overlap_tool.analyze(
        made(Masked), example=(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))
    ).stages[0]
    assert stage.layers[0].inputs == ("Masked",)
    assert (stage.left, stage.right) == (2, 2)


def test_what_an_example_has_to_be() -> None:
    with pytest.raises(OptionError, match="has no map"):
        overlap_tool.analyze(made(Rated), example=(3,))
    with pytest.raises(OverlapToolError, match="missing 1 required positional argument: 'image'"):
        overlap_tool.analyze(made(Masked), example={"mask": torch.rand(1, 1, 8, 8)})
    with pytest.raises(OverlapToolError, match="qp"):
        overlap_tool.analyze(made(Rated))


def rated(tmp_path: Path, **example: Any) -> tuple[nn.Module, nn.Module]:
    """A wrapped model as it comes out of a file, and the one that it was made of."""
    model = made(networks.Rated)
    tiled = overlap_tool.wrap(model, tile=16, **example)
    overlap_tool.save(tiled, tmp_path / "rated.pt", "support.networks:Rated")
    with pytest.raises(UntrustedClassError):
        overlap_tool.load(tmp_path / "rated.pt")
    return overlap_tool.load(tmp_path / "rated.pt", trust=True), model


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_a_method_in_place_of_forward(monkeypatch, schedule) -> None:
    model, image = made(networks.Rated), torch.rand(1, 3, 61, 84)
    tiled = overlap_tool.wrap(model, tile=16, schedule=schedule, example=(image, 1), method="encode")
    no_code_of_its_own(monkeypatch)
    with overlap_tool.exact_kernels(), torch.no_grad():
        for qp in (1, 0):
            assert torch.equal(tiled.encode(image, qp), model.encode(image, qp))
        assert torch.equal(tiled.encode(image, qp=2, deep=True), model.encode(image, qp=2, deep=True))
        assert torch.equal(copy.deepcopy(tiled).encode(image, 1), model.encode(image, 1))
        assert torch.equal(tiled(image, 1), model(image, 1))  # by its own code, which calls encode
    plain = overlap_tool.unwrap(tiled)
    assert not stands_in(plain)


def test_a_method_that_takes_an_image_alone() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 5, padding=2)

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("is not asked for")

        def transform(self, x: Tensor) -> Tensor:
            return self.conv(x)

    model, image = made(Ends), torch.rand(1, 3, 40, 50)
    tiled = overlap_tool.wrap(model, tile=16, method="transform")
    with overlap_tool.exact_kernels(), torch.no_grad():
        assert torch.equal(tiled.transform(image), model.transform(image))
    assert overlap_tool.analyze(model, method="transform").stages[0].left == 2
    with overlap_tool.tiled(model, tile=16, method="transform"):
        assert len(tiled_stages(model)) == 1
    assert not stands_in(model)


def test_a_method_that_calls_the_model() -> None:
    """Whose forward is its own then, and no call of the example."""

    class Encoder(Masked):
        def encode(self, image: Tensor, qp: int) -> Tensor:
            return self(image, image[:, :1], strength=qp)

    model, image = made(Encoder), torch.rand(1, 3, 40, 48)
    tiled = overlap_tool.wrap(model, tile=16, example={"qp": 3}, method="encode")
    with overlap_tool.exact_kernels(), torch.no_grad():
        assert torch.equal(tiled.encode(image, 3), model.encode(image, 3))


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_a_step_for_each_channel_is_a_parameter(monkeypatch, tmp_path, schedule) -> None:
    """As DCVC's encoders take it: a tensor of four dimensions, of one row and one column. It was taken for a
    map, and since that has another size than the image, the model's own code ran."""
    model, image = made(networks.Stepped), torch.rand(1, 3, 41, 50)
    steps = torch.rand(1, 6, 1, 1), torch.rand(1, 6, 1, 1)
    tiled = overlap_tool.wrap(model, tile=16, schedule=schedule, example=(image, steps[0]))
    no_code_of_its_own(monkeypatch)
    overlap_tool.save(tiled, tmp_path / "stepped.pt", "support.networks:Stepped")
    for each in (tiled, overlap_tool.load(tmp_path / "stepped.pt", trust=True)):
        for step in steps:
            assert_same(each, model, image, step)


def test_all_arguments_by_keyword() -> None:
    model, image, mask = made(Masked), torch.rand(1, 3, 40, 48), torch.rand(1, 1, 40, 48)
    tiled = overlap_tool.wrap(model, tile=16, example={"image": image, "mask": mask, "strength": 1.0})
    assert_same(tiled, model, image=image, mask=mask, strength=1.0)
    assert_same(tiled, model, image, mask)


@pytest.mark.parametrize("method", ["train", "halved", "_apply", "nothing", "gains"])
def test_what_a_method_has_to_be(method) -> None:
    with pytest.raises(OptionError, match=r"is no method of Rated that takes maps.*forward, encode, weigh"):
        overlap_tool.wrap(made(networks.Rated), method=method)


def test_a_file_holds_the_example(tmp_path: Path) -> None:
    loaded, model = rated(tmp_path, example={"qp": 2})
    image = torch.rand(1, 3, 40, 48)
    assert_same(loaded, model, image, 2)
    assert_same(loaded, model, image, qp=1)
    analysis = overlap_tool.analyze(tmp_path / "rated.pt", trust=True)
    assert analysis.call == "forward(map, qp=2)"
    assert analysis.stages == overlap_tool.analyze(model, example={"qp": 2}).stages
    assert overlap_tool.analyze(loaded).stages == analysis.stages


def test_a_file_holds_the_method_maps_and_tensors(tmp_path: Path) -> None:
    steps = 3, torch.rand(1, 3, 1, 1, dtype=torch.float64).expand(2, 3, 1, 1)[:1]
    maps = torch.rand(1, 3, 40, 48), torch.rand(1, 1, 40, 48)
    loaded, model = rated(tmp_path, example=(*maps, (3, torch.tensor([2.0]))), method="weigh")
    (stage,) = tiled_stages(loaded).values()
    assert stage.example is not None
    assert (stage.example.method, stage.example.channels) == ("weigh", (3, 1))
    with torch.no_grad(), overlap_tool.exact_kernels():
        found, expected = (each.weigh(*maps, (3, torch.tensor([2.0])))["x"] for each in (loaded, model))
        assert torch.equal(found, expected)
    assert torch.load(tmp_path / "rated.pt", weights_only=True)["example"]["args"][2][0] == steps[0]


class Rate(IntEnum):
    LOW = 0
    HIGH = 2


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    tiled = overlap_tool.wrap(made(networks.Rated), example={"qp": Rate.HIGH})
    with pytest.raises(OptionError, match="has a Rate in it, which a file without code cannot hold"):
        overlap_tool.save(tiled, tmp_path / "rated.pt", "support.networks:Rated")


@pytest.mark.parametrize(
    "change",
    [
        {"method": 3},
        {"args": []},
        {"args": ()},
        {"args": (torch.zeros(1, 1, 1, 1).expand(1, 10**9, 10**3, 1),)},
        {"kwargs": {1: 2}},
        None,
    ],
    ids=["method", "no arguments", "no map", "hollow", "keywords", "contains itself"],
)
def test_a_file_with_a_malformed_example(tmp_path: Path, change) -> None:
    rated(tmp_path, example={"qp": 2})
    payload = torch.load(tmp_path / "rated.pt", weights_only=True)
    if change is None:
        payload["example"]["kwargs"]["qp"] = payload["example"]["kwargs"]
    else:
        payload["example"] |= change
    torch.save(payload, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"missing or malformed|more than the file holds"):
        overlap_tool.load(tmp_path / "bad.pt", trust=True)


@pytest.mark.parametrize("method", [None, "weigh"])
def test_verify_with_an_example(method) -> None:
    example: Any = {"qp": 2}
    if method == "weigh":
        example = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8), (2, 0.5)
    certificate = overlap_tool.verify(
        made(networks.Rated), tiles=[16], ablate=True, example=example, method=method
    )
    assert certificate.holds
    assert certificate.call == ("forward(map, qp=2)" if method is None else "weigh(map, map, (2, 0.5))")
    names = {check.name for check in certificate.of("passed")}
    assert names == {"stage-equality", "minimality", "model-equality"}
    assert [plan.stage for plan in certificate.plans] == ["Rated", "Rated"]
    assert all(check.figures["differing"] for check in certificate.checks if check.name == "ablation")


class Loop(networks.PlainCnn):
    """With all that a closed loop brings, though it never loops."""

    block, colours, networks = 8, 3, MappingProxyType({})

    def nothing(self, *args: Any) -> None: ...

    causal_reaches = in_order = working_bytes = compress = decompress = nothing


def test_a_closed_loop_reads_one_image() -> None:
    assert isinstance(made(Loop), ClosedLoop)
    with pytest.raises(OptionError, match="is a closed loop, which reads one image"):
        overlap_tool.wrap(made(Loop), example={"qp": 1})


class RatedCodec(nn.Module):
    """With a rate index in all that is called, steps beside the maps, and coding of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encode_map = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 4, 5, 2, 2))
        self.decode_map = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.ConvTranspose2d(6, 3, 4, 2, 1))
        self.steps = nn.Parameter(torch.tensor([4.0, 8.0, 16.0]))

    def reconstruct(self, image: Tensor, qp: int) -> dict[str, Tensor]:
        symbols = torch.round(self.encode_map(image) * self.steps[qp])
        return {"x_hat": self.decode_map(symbols / self.steps[qp]), "symbols": symbols}

    def compress(self, image: Tensor, qp: int) -> bytes:
        symbols = self.reconstruct(image, qp)["symbols"]
        return bytes([*symbols.shape[2:]]) + symbols.to(torch.int8).numpy().tobytes()

    def decompress(self, string: bytes, qp: int) -> Tensor:
        symbols = torch.frombuffer(bytearray(string[2:]), dtype=torch.int8).view(1, 4, *string[:2])
        return self.decode_map(symbols.float() / self.steps[qp])


CALL: Any = {"example": {"qp": 1}, "method": "reconstruct"}


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
def test_a_codec_that_is_called_with_a_rate_has_the_stages_of_a_codec(schedule) -> None:
    """It was one stage, and so refused for its rounding."""
    model = made(RatedCodec)
    tiled = overlap_tool.wrap(model, tile=16, schedule=schedule, **CALL)
    assert list(tiled_stages(tiled)) == ["encode_map", "decode_map"]
    image = torch.rand(1, 3, 44, 52)
    for qp in (1, 2):
        with torch.no_grad(), overlap_tool.exact_kernels():
            made_of, string = model.reconstruct(image, qp), model.compress(image, qp)
            decoded = model.decompress(string, qp)
        assert made_of["symbols"].any()
        with torch.no_grad():
            assert all(map(torch.equal, tiled.reconstruct(image, qp=qp).values(), made_of.values()))
            assert tiled.compress(image, qp) == string
            assert torch.equal(tiled.decompress(string, qp), decoded)
    assert not stands_in(overlap_tool.unwrap(tiled))


def test_a_codec_that_is_called_with_a_rate_in_reports_and_files(tmp_path: Path) -> None:
    model = made(RatedCodec)
    analysis = overlap_tool.analyze(model, **CALL)
    assert [stage.name for stage in analysis.stages] == ["encode_map", "decode_map"]
    certificate = overlap_tool.verify(model, tiles=[16], ablate=True, **CALL)
    assert certificate.holds
    assert {check.name for check in certificate.of("passed")} >= {"stage-equality", "model-equality"}
    tiled = overlap_tool.wrap(model, tile=16, **CALL)
    overlap_tool.save(tiled, tmp_path / "rated.pt", f"{RatedCodec.__module__}:RatedCodec")
    loaded = overlap_tool.load(tmp_path / "rated.pt", trust=True)
    image = torch.rand(1, 3, 44, 52)
    assert loaded.compress(image, 2) == tiled.compress(image, 2)
    assert overlap_tool.analyze(loaded).call == analysis.call == "reconstruct(map, qp=1)"


class NoiseLevel(nn.Module):
    """As FFDNet: a level for each image is repeated to a map beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        level = level.expand(-1, -1, x.size(-2), x.size(-1))
        return self.conv(torch.cat((x, level), 1))


def test_a_tensor_for_each_image_is_told_of_two_images() -> None:
    """The error said that the module was given one map, and that it was at fault."""
    model, image = NoiseLevel().eval(), torch.rand(1, 3, 64, 80)
    level = torch.full((1, 1, 1, 1), 0.1)
    with pytest.raises(TraceError, match=r"other tensors as given. Let .* pass them as maps, with the rows"):
        overlap_tool.wrap(model, tile=32, example=(image, level))
    as_a_map = level.expand(1, 1, 64, 80)
    tiled = overlap_tool.wrap(model, tile=32, example=(image, as_a_map))
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(tiled(image, as_a_map), model(image, as_a_map))


def test_a_tensor_that_is_repeated_to_a_map_beyond_memory_is_refused() -> None:
    """PyTorch's own message told of 1.4 TB, which nobody had asked for."""

    class Repeated(NoiseLevel):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            rows, columns = x.shape[-2:]
            if (
                rows * columns > 1 << 30
            ):  # as `repeat` does, on machines that do not promise more than they have
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1398 GB"
                )
            return self.conv(torch.cat((x, level.repeat(len(x), 1, rows, columns)), 1))

    model, image, level = Repeated().eval(), torch.rand(1, 3, 64, 80), torch.full((1, 1, 1, 1), 0.1)
    with pytest.raises(TraceError, match=r"runs out of memory. Make it from the map, as by `torch.ones_like"):
        overlap_tool.wrap(model, tile=32, example=(image, level))


def test_a_level_may_be_made_a_map_by_the_map() -> None:
    """As that refusal proposes."""

    class FromTheMap(NoiseLevel):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return self.conv(torch.cat([x, torch.ones_like(x[:, :1]) * level], 1))

    model, image, level = FromTheMap().eval(), torch.rand(1, 3, 64, 80), torch.full((1, 1, 1, 1), 0.1)
    tiled = overlap_tool.wrap(model, tile=32, example=(image, level))
    with torch.no_grad(), overlap_tool.exact_kernels():
        assert torch.equal(tiled(image, level), model(image, level))
