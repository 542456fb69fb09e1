"""The tile and the size where nobody gives one: of images, volumes and sound."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.axes import Network
from support.cases import tries
from torch import Tensor, nn

import overlap_tool
from overlap_tool import report
from overlap_tool.errors import OptionError
from overlap_tool.geometry import Geometry, Span, Transposed, Window
from overlap_tool.geometry.axis import Axis, AxisOp
from overlap_tool.planning.usual import square, usual_size, usual_tile
from overlap_tool.settings import Samples, Size
from overlap_tool.wrapping.retrofit import settings_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Encoder(nn.Sequential):
    """24,000 samples a second in, 75 frames out."""

    def __init__(self) -> None:
        layers = [nn.Conv1d(n, 4, 2 * s, s, s // 2) for n, s in ((1, 2), (4, 4), (4, 5), (4, 8))]
        super().__init__(*layers)


class Vocoder(nn.Sequential):
    """Frames in, 256 samples out of each."""

    def __init__(self) -> None:
        super().__init__(*(nn.ConvTranspose1d(4, 4, 2 * s, s, s // 2) for s in (8, 8, 4)), nn.Conv1d(4, 1, 7))


class Slow(nn.Conv1d):
    """Reads three seconds."""

    def __init__(self) -> None:
        super().__init__(1, 1, 3, dilation=1 << 15)


@pytest.mark.parametrize(
    ("model", "tile", "size"),
    [
        (nn.Conv2d(3, 3, 3), Size(256, 256), Size(3840, 2160)),
        (Network(3), Size(64, 64), Size(512, 512)),
        (Network(1), Samples(65536, 1), Samples(1 << 20, 1)),
        (Encoder(), Samples(65600, 1), Samples(1049600, 1)),
        (Vocoder(), Samples(256, 1), Samples(4096, 1)),
        (Slow(), Samples(1 << 18, 1), Samples(1 << 22, 1)),
    ],
    ids=["image", "volume", "sound", "encoder", "vocoder", "slow"],
)
def test_of_models(model, tile, size) -> None:
    analysis = overlap_tool.analyze(model.eval())
    (stage,) = analysis.stages
    assert (analysis.image, type(analysis.image)) == (size, type(size))
    assert [each.tile for each in stage.tiles] == [tile.width * n // 2 for n in (1, 2, 4, 8)]
    assert stage.chosen.cost.tile == tile.width
    wrapped = overlap_tool.wrap(model)
    settings = settings_of(wrapped)
    assert settings is not None
    assert (settings.tile, type(settings.tile)) == (tile, type(tile))
    assert f"in tiles of {tile}" in repr(wrapped)
    with overlap_tool.tiled(model) as inside:
        assert settings_of(inside) == settings


def test_a_norm_over_the_whole_sound_asks_for_no_longer_tile() -> None:
    settings = settings_of(overlap_tool.wrap(Network(1, normed=True).eval()))
    assert settings is not None
    assert settings.tile == Samples(65536, 1)


def test_sound_and_volumes_are_told_as_such(tmp_path) -> None:
    sound, volume = (overlap_tool.wrap(Network(axes).eval()) for axes in (1, 3))
    plans = overlap_tool.plans(sound, (50000, 7))
    assert plans["Network"].tile == Samples(65536, 1)
    assert "tile by tile, for sound of 50000 samples" in report.fragment(plans)
    assert "for a volume of 200x100x" in report.fragment(overlap_tool.plans(volume, (200, 100)))
    told = report.to_markdown(overlap_tool.analyze(Network(1).eval(), size=(50000, 9), tiles=[500]))
    assert "sound of 50000 samples" in told
    assert "50000x" not in told
    tight = overlap_tool.wrap(Network(1).eval(), memory="1KiB")
    with pytest.raises(OptionError, match="bytes for sound of 50000 samples, its input and output included"):
        overlap_tool.plans(tight, (50000, 1))
    certificate = overlap_tool.verify(Network(1).eval(), tiles=[64], size=(300, 9))
    for write in (report.certificate_to_markdown, report.certificate_to_html, report.certificate_to_junit):
        assert "tile 64 samples" in write(certificate) or "stream 64 samples" in write(certificate)
        assert "seeded 300 samples" in write(certificate)
        assert "64x" not in write(certificate)
    overlap_tool.save(sound, tmp_path / "sound.tiled.pt", "support.axes:Network", {"axes": 1})
    again = overlap_tool.load(tmp_path / "sound.tiled.pt", trust=True)
    assert settings_of(again) == settings_of(sound)
    assert "in tiles of 65536 samples" in repr(again)


def test_code_that_asks_how_long_a_sound_is_holds_for_one_length() -> None:
    class Asks(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[-1] % 2 else super().forward(x) * 2

    (stage,) = overlap_tool.analyze(Asks(1, 1, 3, padding=1).eval(), size=(4001, 1)).stages
    assert stage.holds_for == "4001 samples"


def test_the_command_line_takes_the_same(tmp_path, monkeypatch, run) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_sound.py").write_text(
        "from torch import nn\n"
        "class Denoise(nn.Conv1d):\n    def __init__(self): super().__init__(1, 1, 9, padding=4)\n"
    )
    code, out, _ = run("analyze", "--model", "own_sound:Denoise")
    assert code == 0
    assert "sound of 1048576 samples" in out
    code, out, _ = run("wrap", "--model", "own_sound:Denoise")
    assert code == 0
    assert "65536 samples" in out
    assert "sound of 1048576 samples" in out


@st.composite
def chains(draw: Any) -> list[Geometry]:
    def op() -> Geometry:
        stride = draw(st.integers(1, 8))
        kernel = stride + draw(st.integers(0, 20)) if draw(st.booleans()) else stride
        dilation = draw(st.sampled_from((1, 1, 3, 500)))
        if draw(st.booleans()):
            return Window(kernel, stride, kernel // 2, kernel // 2, dilation)
        return Transposed(kernel, stride)

    return [op() for _ in range(draw(st.integers(1, 5)))]


@tries(100)
@given(chains(), st.sampled_from((Fraction(1), Fraction(1, 2), Fraction(1, 320))))
def test_of_chains(ops, input_scale) -> None:
    """What the tile reads, and how fine its maps are, op by op, by the geometries alone."""
    axis = Axis((AxisOp(None), *(AxisOp(op, (i,)) for i, op in enumerate(ops))))
    network: Any = SimpleNamespace(
        columns=axis, takes_sound=True, depth=None, of_squares=False, need_whole_maps=()
    )
    network.network = network
    stages = [(network, input_scale)]
    tile = usual_tile(stages)
    own = tile.width * input_scale  # in samples of the stage's input
    assert own.denominator == 1
    scale, scales = Fraction(1), [Fraction(1)]
    for op in ops:
        scale *= Fraction(op.period.output, op.period.input)
        scales.append(scale)
    assert all((own * each).denominator == 1 for each in scales), "whole periods"
    span = Span(0, int(own * scale))
    for op in reversed(ops):
        span = op.need(span)
    reads = max(0, -span.start) + max(0, span.stop - int(own))
    assert 4 * reads <= own
    finest = input_scale * max(scales)
    period = max((each.denominator for each in scales), default=1)
    shortest = max(Fraction(65536) / finest, 4 * reads / input_scale, 8 * period / input_scale)
    assert tile.width >= int(shortest)
    assert usual_size(stages) == Samples(16 * tile.width, 1)
    assert square(256, stages).width == max(1, int(65536 / finest))
