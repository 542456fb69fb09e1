"""Volumes and sound through `run`: arrays in bands of rows or of samples, with the bits of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from support.axes import Network
from support.cases import tries
from support.photographs import LiveMemory
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import ImageFileError, OptionError
from overlap_tool.files import Codec, run
from overlap_tool.files.formats import outputs
from overlap_tool.files.formats.arrays import ArrayFile, ArrayForm
from overlap_tool.files.formats.pictures import glance, open_picture
from overlap_tool.files.job import Job
from overlap_tool.geometry import Span
from overlap_tool.planning.choose import SegmentPlan, Shape
from overlap_tool.planning.cost import op_costs, working_bytes

pytestmark = pytest.mark.usefixtures("one_thread")


def _wrapped(model: nn.Module, **options: Any) -> Codec:
    return Codec(overlap_tool.wrap(model.eval(), **options), "mine:Net", "", "net")


@torch.no_grad()
def _whole(model: nn.Module, array: Any, channels: int = 1) -> Any:
    with overlap_tool.exact_kernels():
        values = torch.from_numpy(np.asarray(array, np.float32)) / (255 if array.dtype == np.uint8 else 1)
        return model(values.reshape(1, channels, *array.shape[array.shape[0] == channels :]))[0].numpy()


def _saved(path: Any, array: Any, chunks: Any = None) -> Any:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        zarr.open_array(store=str(path), mode="w", shape=array.shape, chunks=chunks, dtype=array.dtype)[:] = (
            array
        )
    return path


def _read(path: Any) -> Any:
    return np.load(path) if path.suffix == ".npy" else zarr.open_array(store=str(path), mode="r")[:]


RANDOM = np.random.default_rng(0)
VOLUME = RANDOM.standard_normal((5, 37, 43), dtype=np.float32)
SOUND = RANDOM.standard_normal((2, 777), dtype=np.float32)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("how", [{"tile": 16}, {"tile": 11, "schedule": "tiles"}, {"memory": "8MiB"}])
def test_a_volume_has_the_bits_of_the_whole(tmp_path, how, normed) -> None:
    model = Network(3, normed=normed).eval()
    expected = _whole(model, VOLUME)
    codec = _wrapped(model, **how)
    for name, made, array in (
        ("in.npy", "out.npy", VOLUME),
        ("in.npy", "out.zarr", VOLUME[None]),
        ("in.zarr", "out.npy", VOLUME),
    ):
        source = _saved(tmp_path / name, array, (2, 16, 16))
        told = run(codec, source, tmp_path / made)
        assert np.array_equal(_read(tmp_path / made), expected)
        assert _read(tmp_path / made).dtype == np.float32
    assert (told.width, told.height, told.depth, told.channels) == (43, 37, 5, 2)
    assert ": 43x37x5, " in told.to_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("how", [{"tile": 50}, {"tile": 64, "schedule": "tiles"}, {"memory": "8MiB"}])
def test_sound_has_the_bits_of_the_whole(tmp_path, how, normed) -> None:
    model = Network(1, channels=2, out=3, normed=normed).eval()
    expected = _whole(model, SOUND, 2)
    codec = _wrapped(model, **how)
    for name, made, array in (
        ("in.npy", "out.npy", SOUND),
        ("in.npy", "out.zarr", np.asfortranarray(SOUND)),
        ("in.zarr", "out.npy", SOUND),
    ):
        told = run(codec, _saved(tmp_path / name, array, (1, 100)), tmp_path / made)
        assert np.array_equal(_read(tmp_path / made), expected)
    assert (told.width, told.height, told.channels) == (777, 1, 3)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_arrays_without_channels_give_arrays_without_channels(tmp_path) -> None:
    for axes, array in ((3, VOLUME), (1, SOUND[0])):
        codec = _wrapped(Network(axes, out=1), tile=16)
        for values in (array, array[None]):
            run(codec, _saved(tmp_path / "in.npy", values), tmp_path / "out.npy")
            assert np.load(tmp_path / "out.npy").shape == values.shape


def test_whole_numbers_span_0_to_1(tmp_path) -> None:
    model = Network(3).eval()
    grey = RANDOM.integers(0, 256, (3, 20, 24), dtype=np.uint8)
    _saved(tmp_path / "in.npy", grey)
    run(_wrapped(model, tile=16), tmp_path / "in.npy", tmp_path / "out.npy")
    expected = _whole(model, grey)
    rounded = np.rint(expected.clip(0, 1) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(np.load(tmp_path / "out.npy"), rounded)
    run(_wrapped(model, tile=16), tmp_path / "in.npy", tmp_path / "out.npy", dtype="float32")
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def test_sound_with_a_sign_spans_minus_1_to_1(tmp_path) -> None:
    model, run_on = nn.Conv1d(1, 1, 3, padding=1).eval(), np.array([-32768, -1, 0, 1, 32767] * 40, np.int16)
    _saved(tmp_path / "in.npy", run_on)
    codec = _wrapped(model, tile=64)
    run(codec, tmp_path / "in.npy", tmp_path / "numbers.npy", dtype="float32")
    expected = _whole(model, run_on.astype(np.float32)[None] / 32768)[0]
    assert np.array_equal(np.load(tmp_path / "numbers.npy"), expected)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[[0.0, 1.0, 0.0]]]))
        model.bias.zero_()
    told = run(_wrapped(model, tile=64), tmp_path / "in.npy", tmp_path / "same.npy")
    assert np.load(tmp_path / "same.npy").dtype == np.int16
    assert np.array_equal(np.load(tmp_path / "same.npy"), run_on)
    assert (told.kind, told.width, told.height, told.sample_bits) == ("sound", 200, 1, 16)
    assert ": 200 samples, " in told.to_text()
    with torch.no_grad():
        model.weight.mul_(2)
    run(_wrapped(model, tile=64), tmp_path / "in.npy", tmp_path / "loud.npy")
    assert np.array_equal(np.load(tmp_path / "loud.npy"), np.clip(2 * run_on.astype(int), -32768, 32767))


def test_numbers_with_a_sign_are_for_sound(tmp_path) -> None:
    _saved(tmp_path / "in.npy", VOLUME)
    with pytest.raises(OptionError, match=r'dtype=.int16.*is for sound.*a volume.*dtype="uint16"'):
        run(_wrapped(Network(3), tile=16), tmp_path / "in.npy", tmp_path / "out.npy", dtype="int16")


def test_a_rectangle_of_a_volume_has_all_of_its_depth(tmp_path) -> None:
    model = Network(3).eval()
    _saved(tmp_path / "in.npy", VOLUME)
    run(_wrapped(model, tile=16), tmp_path / "in.npy", tmp_path / "out.npy", region=(9, 5, 17, 20))
    assert np.array_equal(np.load(tmp_path / "out.npy"), _whole(model, VOLUME)[..., 5:25, 9:26])


class Stopped(BaseException):
    """As a process is stopped."""


@pytest.mark.parametrize("name", ["out.npy", "out.zarr"])
@pytest.mark.parametrize(("axes", "array", "channels"), [(3, VOLUME, 1), (1, SOUND, 2)])
def test_stopped_after_every_band(tmp_path, monkeypatch, axes, array, channels, name) -> None:
    monkeypatch.setattr(outputs, "CHUNK", (5, 10))
    monkeypatch.setattr(outputs, "CUBE", 5)
    model = Network(axes, channels).eval()
    codec = _wrapped(model, tile=6 if axes == 3 else 60)
    source, mark, stops = _saved(tmp_path / "in.npy", array), Job.mark, []
    read: list[int] = []

    def stop(job: Job, *what: Any) -> None:
        mark(job, *what)
        stops.append(what)
        raise Stopped

    picture = type(open_picture(source, "volume" if axes == 3 else "sound"))
    own_read = picture.read

    def counted(self: Any, rows: Span, columns: Span) -> Any:
        read.append(rows.length)
        return own_read(self, rows, columns)

    monkeypatch.setattr(picture, "read", counted)
    monkeypatch.setattr(Job, "mark", stop)
    while not (tmp_path / name).exists():
        before = len(stops)
        try:
            told = run(codec, source, tmp_path / name, resume=True)
        except Stopped:
            assert len(stops) == before + 1
    assert told.resumed
    assert len(stops) > 3
    assert np.array_equal(_read(tmp_path / name), _whole(model, array, channels))
    assert max(read) < array.shape[-1 if axes == 1 else -2] / 2


def test_memory_does_not_grow_with_a_volume_or_a_sound(tmp_path) -> None:
    """Beyond the sums of rows that a norm of the whole map takes in tiles."""
    for axes, channels, shape in ((3, 1, (4, 64, 40)), (1, 2, (2, 3000))):
        codec = _wrapped(Network(axes, channels), tile=16 if axes == 3 else 200)
        peaks = []
        for times in (1, 1, 4):  # the first time, the network is traced
            longer = (*shape[:1], shape[1] * times, *shape[2:])
            _saved(tmp_path / "in.npy", np.zeros(longer, np.float32))
            with LiveMemory() as live:
                run(codec, tmp_path / "in.npy", tmp_path / "out.npy")
            peaks.append(live.peak)
        assert peaks[2] <= 1.02 * peaks[1], peaks


@pytest.mark.slow
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("axes", "shape", "tile"),
    [(3, (16, 1024, 96), 32), (1, (1, 4_000_000), 1 << 16)],
    ids=["volume", "sound"],
)
def test_a_large_array_takes_a_part_of_its_memory(tmp_path, axes, shape, tile, normed) -> None:
    """And what the plan says: a tile, and a band of every map that a pass writes."""
    codec = _wrapped(Network(axes, normed=normed), tile=tile)
    _saved(tmp_path / "in.npy", np.zeros(shape, np.float32))
    (stage,) = codec.stages
    rows, columns = shape[-2:]
    stage = stage.as_deep((1, 1, *shape)) if axes == 3 else stage
    plan = stage.plan(Shape(1, rows, columns))
    with LiveMemory(*codec.model.parameters()) as live:
        run(codec, tmp_path / "in.npy", tmp_path / "out.npy")
    output = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert live.peak < output.nbytes / 4
    predicted = max(_bytes_of_pass(part, plan.network.output, tile) for part in plan.segments)
    # channels of a sound are no neighbours in its maps: where a layer wants them so, it copies what it reads
    assert abs(live.peak - predicted) <= (0.15 if axes == 3 else 0.34) * predicted, live.peak / predicted


def _bytes_of_pass(part: SegmentPlan, output: str, tile: int) -> int:
    network = part.segment.network
    bands = 0
    for map in {*part.segment.stored, *({output} & {*network.index})}:
        place = network.index[map]
        (rows, columns), along = (part.rows, part.columns), int(len(part.rows.steps) == 1)
        sizes = [rows.sizes[place], columns.sizes[place]]
        sizes[along] = tile * sizes[along] // (rows, columns)[along].sizes[0]
        bands += 4 * network.ops[place].channels * sizes[0] * sizes[1]
    return bands + working_bytes(op_costs(network), part.rows, part.columns, packed=True)


REFUSED = [
    (3, np.zeros((2, 5, 8, 8), np.float32), "out.npy", "2 channels, and the model takes 1"),
    (3, np.zeros((5, 8, 8), np.int16), "out.npy", "int16.*float32"),
    (1, np.zeros((1, 8), np.int32), "out.npy", "int32.*16 bits a sample, unsigned or, of 16, signed"),
    (3, np.zeros((8, 8), np.float32), "out.npy", "a volume has channels, depth, rows and columns"),
    (1, np.zeros((2, 8, 8), np.float32), "out.npy", "sound has channels and samples"),
    (3, VOLUME, "out.tif", r"does not hold a volume.*\.npy or \.zarr"),
    (1, SOUND[0], "out.png", r"does not hold sound.*\.npy or \.zarr"),
]


@pytest.mark.parametrize(("axes", "array", "name", "reason"), REFUSED)
def test_what_is_refused(tmp_path, axes, array, name, reason) -> None:
    with pytest.raises(ImageFileError, match=reason):
        run(_wrapped(Network(axes), tile=16), _saved(tmp_path / "in.npy", array), tmp_path / name)


def test_numbers_are_no_image(tmp_path) -> None:
    path = _saved(tmp_path / "in.npy", np.zeros((1, 8), np.float32))
    with pytest.raises(ImageFileError, match=r"takes images, and its samples are float32.*8 or 16 bits"):
        open_picture(path)


def test_a_file_of_no_kind_leads_to_the_formats_of_all_kinds(tmp_path) -> None:
    (tmp_path / "in.wav").write_bytes(b"RIFF")
    with pytest.raises(
        ImageFileError, match=r"PNG, .* image; volumes and sound are read from Zarr and \.npy"
    ):
        glance(tmp_path / "in.wav", ("image", "volume", "sound"))


def test_files_of_images_are_refused_by_name(tmp_path) -> None:
    (tmp_path / "in.png").write_bytes(b"")
    with pytest.raises(
        ImageFileError, match=r"takes a volume, and this is a file of images.*such an array as \.npy"
    ):
        run(_wrapped(Network(3), tile=16), tmp_path / "in.png", tmp_path / "out.npy")
    _saved(tmp_path / "in.npy", SOUND[0])
    with pytest.raises(OptionError, match=r"region=\[0, 0, 1, 9\].*takes sound"):
        run(_wrapped(Network(1), tile=16), tmp_path / "in.npy", tmp_path / "out.npy", region=(0, 0, 1, 9))


def test_a_network_that_gives_something_else_is_refused(tmp_path) -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bands = nn.Conv1d(1, 8, 16, stride=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bands(x).unsqueeze(1)

    _saved(tmp_path / "in.npy", SOUND[0])
    with pytest.raises(OptionError, match="returns other axes, and one map is to be written"):
        run(_wrapped(Spectrum(), tile=16), tmp_path / "in.npy", tmp_path / "out.npy")


def test_a_depth_that_the_model_refuses_is_refused(tmp_path) -> None:
    codec = _wrapped(nn.Sequential(nn.Conv3d(1, 2, 5), nn.ReLU()), tile=16)
    with pytest.raises(ImageFileError, match="does not take a volume of 43x37x3"):
        run(codec, _saved(tmp_path / "in.npy", VOLUME[:3]), tmp_path / "out.npy")


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [("Segment", "volume.npy", "labels.zarr"), ("Denoise", "speech.npy", "clean.npy")],
)
def test_as_they_are_typed(tmp_path, monkeypatch, run, kind, source, target) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_arrays.py").write_text(
        "from torch import nn\n"
        "class Segment(nn.Conv3d):\n    def __init__(self): super().__init__(1, 2, 3, padding=1)\n"
        "class Denoise(nn.Conv1d):\n    def __init__(self): super().__init__(2, 2, 9, padding=4)\n"
    )
    model, array = f"{kind.lower()}.tiled.pt", VOLUME if kind == "Segment" else SOUND
    np.save(source, array)
    assert run("wrap", "--model", f"own_arrays:{kind}", "--tile", "16", "-o", model)[0] == 0
    code, out, err = run("run", "--model", model, "--trust", source, "-o", target)
    assert (code, err) == (0, "")
    assert f"{source} -> {target}: {'43x37x5' if kind == 'Segment' else '777 samples'}, " in out
    own = overlap_tool.unwrap(overlap_tool.load(model, trust=True))
    assert np.array_equal(_read(tmp_path / target), _whole(own, array, 1 if kind == "Segment" else 2))
    code, _, err = run("run", "--model", model, "--trust", source, "-o", "out.zarr", "--workers", "2")
    assert code == 2
    assert f"takes {'a volume' if kind == 'Segment' else 'sound'}" in err


@st.composite
def boxes(draw: Any) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    ends = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return shape, tuple(Span(*end) for end in ends)[: draw(st.integers(0, len(shape)))]


@tries(60)
@given(boxes(), st.integers(0, 3))
def test_any_box_of_an_array_in_a_file(tmp_path_factory, drawn, offset) -> None:
    shape, box = drawn
    path = tmp_path_factory.getbasetemp() / "box"
    values = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    path.write_bytes(b"head"[:offset] + values.tobytes())
    file, inside = ArrayFile(path, shape, np.uint16, offset), tuple(slice(*span) for span in box)
    assert np.array_equal(file.read(*box), values[inside])
    values[inside] += 1000
    file.write(values[inside], *box, durable=False)
    assert path.read_bytes() == b"head"[:offset] + values.tobytes()


@pytest.mark.parametrize(
    ("kind", "shape", "as_image"),
    [
        ("image", (5, 6), (5, 6, 1)),
        ("image", (5, 6, 3), (5, 6, 3)),
        ("volume", (4, 5, 6), (5, 6, 4)),
        ("volume", (2, 4, 5, 6), (5, 6, 8)),
        ("sound", (9,), (9, 1, 1)),
        ("sound", (2, 9), (9, 1, 2)),
    ],
)
def test_rows_columns_and_channels_of_every_array(kind, shape, as_image) -> None:
    form, array = ArrayForm(kind, shape), np.arange(np.prod(shape)).reshape(shape)
    assert form.as_image == as_image
    rows, columns = Span(2, 5), Span(1, 4) if as_image[1] > 1 else Span(0, 1)
    part = array[tuple(slice(*span) for span in form.box(rows, columns))]
    image = form.image_of(part, rows.length, columns.length)
    assert image.shape == (rows.length, columns.length, as_image[2])
    assert np.array_equal(form.array_of(image), part)
    first = image[1, columns.length - 1]
    assert (
        first.tolist()
        == (
            array[3, columns.stop - 1].ravel()
            if kind == "image"
            else array[..., 3, columns.stop - 1].ravel()
            if kind == "volume"
            else array[..., 3].ravel()
        ).tolist()
    )
