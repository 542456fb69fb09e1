"""Coding position by position in generated code: strings and maps are those of CompressAI's own loops."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compressai import ans
from compressai.entropy_models import GaussianConditional
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from support.small_models import small_model
from support.textures import textured
from torch import Tensor, nn

import overlap_tool
from overlap_tool import exact_kernels
from overlap_tool.errors import ContainerError, SlowKernelWarning, WeightsError
from overlap_tool.kernels import raster as generated
from overlap_tool.kernels.codegen import Processor
from overlap_tool.models import raster
from overlap_tool.models.range_coding import MOST, decoder_of, guard
from overlap_tool.models.raster import Dense, Loops, Rate

RASTER = ("mbt2018", "cheng2020-anchor", "cheng2020-attn")
WRAPPED = (*RASTER, "mbt2018-vbr")


@pytest.fixture(params=RASTER)
def model(request: pytest.FixtureRequest) -> Any:
    return small_model(request.param)


def _maps(model: Any, height: int, width: int, spread: float = 4) -> tuple[Tensor, Tensor]:
    """A latent with padding around it, and what the hyper decoder might say of it."""
    random = torch.Generator().manual_seed(height + width)
    y = torch.randn(1, model.M, height, width, generator=random) * spread
    return F.pad(y, (2, 2, 2, 2)), torch.randn(1, 2 * model.M, height, width, generator=random) * 3


@torch.no_grad()
def _agree(model: Any, y_hat: Tensor, params: Tensor, *more: Any) -> None:
    """Both ways give the same string and the same map, and decode the string to it."""
    height, width = params.shape[2:]
    own, ours = y_hat.clone(), y_hat.clone()
    decoded, decoded_here = torch.zeros_like(y_hat), torch.zeros_like(y_hat)
    with exact_kernels():
        string = model._compress_ar(own, params, height, width, 5, 2, *more)
        model._decompress_ar(string, decoded, params, height, width, 5, 2, *more)
        loops = raster._loops(model, more)
        assert loops is not None
        assert loops.compress(ours, params) == string
        loops.decompress(string, decoded_here, params)
    assert torch.equal(ours, own)
    assert torch.equal(decoded_here, decoded)
    assert torch.equal(decoded_here, own)


@pytest.mark.parametrize("size", [(5, 7), (1, 12), (9, 1), (6, 6)])
def test_strings_and_maps_are_those_of_the_models_own_loops(model: Any, size: tuple[int, int]) -> None:
    _agree(model, *_maps(model, *size))


@pytest.mark.parametrize("vector_bytes", [16, 32])
def test_code_for_shorter_vectors(vector_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "processor", lambda: Processor(vector_bytes, 16))
    generated.coder.cache_clear()
    try:
        _agree(small_model("mbt2018"), *_maps(small_model("mbt2018"), 4, 5))
    finally:
        generated.coder.cache_clear()


def test_symbols_far_past_their_tables(model: Any) -> None:
    _agree(model, *_maps(model, 4, 5, spread=1e5))


def test_padding_may_hold_the_rows_above(model: Any) -> None:
    """As it does for all bands of a map but the first."""
    y_hat, params = _maps(model, 4, 6)
    y_hat[..., :2, :] = torch.randn(y_hat[..., :2, :].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), exact_kernels():
        own, ours = y_hat.clone(), y_hat.clone()
        string = model._compress_ar(own, params, 4, 6, 5, 2)
        loops = raster._loops(model)
        assert loops is not None
        assert loops.compress(ours, params) == string
        assert torch.equal(ours, own)
        above = F.pad(y_hat[..., :2, :], (0, 0, 0, y_hat.shape[2] - 2))
        loops.decompress(string, above, params)
        assert torch.equal(above[..., 2:-2, 2:-2], own[..., 2:-2, 2:-2])


@pytest.mark.parametrize("level", [0, 4, 7])
@pytest.mark.parametrize(
    "how",
    [{}, {"no_quantoffset": True}, {"scl2ctx": False}, {"stage": 1}],
    ids=["all of it", "no offsets", "context as it is", "first stage"],
)
def test_a_variable_rate(how: dict[str, Any], level: int) -> None:
    model: Any = copy.deepcopy(small_model("mbt2018-vbr"))
    stage = how.get("stage", 2)
    for name in how.keys() & {"no_quantoffset", "scl2ctx"}:
        setattr(model, name, how[name])
    scale = model.Gain[level].detach().abs()
    _agree(model, *_maps(model, 5, 6, spread=20), scale, torch.tensor(1.0) / scale, stage)


def test_a_rate_that_other_loops_are_for_is_coded_by_them() -> None:
    model: Any = copy.deepcopy(small_model("mbt2018-vbr"))
    scale = torch.tensor(0.5)
    assert raster._loops(model, (scale, 1 / scale, 2)) is not None
    assert raster._loops(model, (0.5, 2.0, 1)) is None
    assert raster._loops(model) is None
    assert raster._loops(small_model("mbt2018"), (scale, 1 / scale, 2)) is None
    model.ste_recursive = False
    assert raster._loops(model, (scale, 1 / scale, 2)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", RASTER)
def test_full_width_too(name: str) -> None:
    """Layers of the published width, of which no panel is filled up."""
    model: Any = overlap_tool.load_checkpoint(f"zoo:{name}").model
    _agree(model, *_maps(model, 6, 8))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "mbt2018" else pytest.mark.slow) for name in WRAPPED]
)
def test_a_wrapped_model_codes_by_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the strings and the image of the untouched model, which codes by its own loops."""
    model: Any = small_model(name)
    calls = _counted(monkeypatch)
    image = textured(192, 64)
    tiled = overlap_tool.wrap(model, tile=64)
    with torch.no_grad():
        with exact_kernels():
            coded = model.compress(image)
            decoded = model.decompress(**coded)["x_hat"]
        assert calls == []
        assert tiled.compress(image) == coded
        assert torch.equal(tiled.decompress(**coded)["x_hat"], decoded)
    assert calls == ["compress", "decompress"]


def test_what_is_no_string_is_refused_and_gradients_are_not_in_the_way() -> None:
    image = textured(192, 64)
    tiled: Any = overlap_tool.wrap(small_model("mbt2018"), tile=64)
    with torch.no_grad():
        expected = tiled.compress(image)
    coded = tiled.compress(image)
    assert coded == expected
    assert tiled.decompress(**coded)["x_hat"].shape == image.shape
    with pytest.raises(TypeError, match="bytes"):
        tiled.decompress([[7], coded["strings"][1]], coded["shape"])


def test_a_copy_of_a_wrapped_model_codes_by_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    image = textured(192, 64)
    tiled = overlap_tool.wrap(small_model("mbt2018"), tile=64)
    other: Any = copy.deepcopy(tiled)
    with torch.no_grad():
        other.context_prediction.weight.mul_(0.5)
        calls = _counted(monkeypatch)
        coded = other.compress(image)
        assert calls == ["compress"]
        with exact_kernels():
            assert overlap_tool.unwrap(other).compress(image) == coded != tiled.compress(image)


def test_weights_written_by_way_of_data_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    image = textured(192, 64)
    tiled: Any = overlap_tool.wrap(small_model("mbt2018"), tile=64)
    with torch.no_grad():
        before = tiled.compress(image)
        tiled.entropy_parameters[0].weight.data.mul_(0.5)
        calls = _counted(monkeypatch)
        after = tiled.compress(image)
        assert calls == ["compress"]
        with exact_kernels():
            assert overlap_tool.unwrap(tiled).compress(image) == after != before


def test_other_engines_run_the_models_own_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    with torch.no_grad():
        overlap_tool.wrap(small_model("mbt2018"), tile=64, engine="stock").compress(textured(192, 64))
    assert calls == []


class _OwnLoop(type(small_model("mbt2018"))):  # type: ignore[misc]
    """A class whose loop is its own."""

    def _compress_ar(
        self, y_hat: Any, params: Any, height: int, width: int, kernel_size: int, padding: int
    ) -> bytes:
        return super()._compress_ar(y_hat * 2, params, height, width, kernel_size, padding)


class _OwnScales(GaussianConditional):
    def build_indexes(self, scales: Tensor) -> Tensor:
        return super().build_indexes(scales * 2)


def _with_other_weights(model: Any) -> None:
    with torch.no_grad():
        model.entropy_parameters[0].weight.mul_(1.5)


def _with_a_hook(model: Any) -> None:
    model.context_prediction.register_forward_hook(lambda *_: None)


def _with_another_part(model: Any) -> None:
    model.entropy_parameters = copy.deepcopy(model.entropy_parameters)


@pytest.mark.parametrize("change", [_with_other_weights, _with_a_hook, _with_another_part])
def test_loops_are_tried_once_and_again_after_a_change(
    change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries_made: list[Any] = []
    holds = raster._holds
    monkeypatch.setattr(raster, "_holds", lambda *args: tries_made.append(args) or holds(*args))
    model: Any = copy.deepcopy(small_model("mbt2018"))
    y_hat, params = _maps(model, 6, 7)
    counts = []
    with torch.no_grad(), exact_kernels():
        for changed in (False, False, True, False):
            if changed:
                change(model)
            own = model._compress_ar(y_hat.clone(), params, 6, 7, 5, 2)
            assert raster.compress(model, y_hat.clone(), params, 6, 7, 5, 2) == own
            counts.append(len(tries_made))
    assert counts == [1, 1, 2, 2]


def _of_another_class(model: Any) -> Any:
    model.__class__ = _OwnLoop
    return model


def _with_other_scales(model: Any) -> Any:
    model.gaussian_conditional.__class__ = _OwnScales
    return model


def _with_a_rectifier(model: Any) -> Any:
    model.entropy_parameters[1] = nn.ReLU()
    return model


def _that_sees_more(model: Any) -> Any:
    model.context_prediction.mask[:, :, 2, 2] = 1
    return model


@pytest.mark.parametrize(
    "changed", [_of_another_class, _with_other_scales, _with_a_rectifier, _that_sees_more]
)
def test_models_that_differ_run_their_own_loops(changed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    model = changed(copy.deepcopy(small_model("mbt2018")))
    y_hat, params = _maps(model, 6, 7)
    own = y_hat.clone()
    with torch.no_grad(), exact_kernels():
        string = type(model)._compress_ar(model, own, params, 6, 7, 5, 2)
        assert raster.compress(model, y_hat, params, 6, 7, 5, 2) == string
    assert torch.equal(y_hat, own)
    assert calls == []


def test_what_nobody_can_see_from_its_parts_is_found_by_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that changes what a layer gives; the model's own loop codes, and a warning says so."""
    model: Any = copy.deepcopy(small_model("mbt2018"))
    model.entropy_parameters[2].register_forward_hook(lambda *_: _[2] * 1.5)
    y_hat, params = _maps(model, 6, 7)
    with torch.no_grad(), exact_kernels():
        string = model._compress_ar(y_hat.clone(), params, 6, 7, 5, 2)
        with pytest.warns(SlowKernelWarning, match="other symbols than its own loops"):
            assert raster.compress(model, y_hat.clone(), params, 6, 7, 5, 2) == string
        decoded = torch.zeros_like(y_hat)
        with pytest.warns(SlowKernelWarning):
            raster.decompress(model, string, decoded, params, 6, 7, 5, 2)
        own = torch.zeros_like(y_hat)
        model._decompress_ar(string, own, params, 6, 7, 5, 2)
    assert torch.equal(decoded, own)


@pytest.mark.parametrize("wild", [float("inf"), float("nan"), 1e12])
def test_latents_that_no_coder_can_write_are_refused(wild: float) -> None:
    model = small_model("mbt2018")
    y_hat, params = _maps(model, 6, 7)
    y_hat[0, 3, 4, 4] = wild
    with torch.no_grad(), exact_kernels(), pytest.raises(WeightsError, match="which the coder cannot write"):
        raster.compress(model, y_hat, params, 6, 7, 5, 2)


def test_tables_that_lead_out_of_memory_are_refused() -> None:
    model: Any = copy.deepcopy(small_model("mbt2018"))
    y_hat, params = _maps(model, 6, 7)
    model.gaussian_conditional._cdf_length[3] = 1 << 20
    for code in (raster.compress, lambda model, *args: raster.decompress(model, b"", *args)):
        with torch.no_grad(), exact_kernels(), pytest.raises(WeightsError, match="gaussian_conditional"):
            code(model, y_hat, params, 6, 7, 5, 2)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of loops, but for those that only try them."""
    calls: list[str] = []
    trying: list[bool] = []
    holds = raster._holds

    def tried(*args: Any) -> bool:
        trying.append(True)
        try:
            return holds(*args)
        finally:
            trying.pop()

    monkeypatch.setattr(raster, "_holds", tried)
    for name in ("compress", "decompress"):
        own = getattr(Loops, name)

        def called(self: Loops, *args: Any, name: str = name, own: Any = own) -> Any:
            if not trying:
                calls.append(name)
            return own(self, *args)

        monkeypatch.setattr(Loops, name, called)
    return calls


CHANNELS = 5


def _plain(tables: list[list[int]], offsets: list[int]) -> Loops:
    """Loops whose hyperprior says scales and means, so that any symbols can be given any tables."""
    scales = [float(1 + i) for i in range(len(tables))]
    gaussian = GaussianConditional(scales)
    longest = max(map(len, tables))
    gaussian._quantized_cdf = torch.tensor(
        [[*row, *[0] * (longest - len(row))] for row in tables], dtype=torch.int32
    )
    gaussian._cdf_length = torch.tensor([len(row) for row in tables], dtype=torch.int32)
    gaussian._offset = torch.tensor(offsets, dtype=torch.int32)
    seen = torch.cat((torch.eye(2 * CHANNELS), torch.zeros(2 * CHANNELS, 2 * CHANNELS)), 1)
    context = torch.zeros(2 * CHANNELS, 3, 5, CHANNELS)
    nothing = torch.zeros(2 * CHANNELS)
    return Loops(context, nothing, [Dense(seen, nothing, 1)], gaussian, Rate(), None)


@st.composite
def _tables(draw: Any) -> tuple[list[list[int]], list[int]]:
    """Up to four rows that rise from 0 to 65536."""
    rows, offsets = [], []
    for _ in range(draw(st.integers(1, 4))):
        inner = draw(st.sets(st.integers(1, 65535), min_size=1, max_size=40))
        rows.append([0, *sorted(inner), 65536])
        offsets.append(-draw(st.integers(0, len(inner))))
    return rows, offsets


def _symbols() -> Any:
    near, far = st.integers(-60, 60), st.integers(-MOST, MOST)
    # a number of single precision is the symbol
    return st.one_of(near, far.map(lambda n: int(np.float32(n)))).filter(lambda n: abs(n) <= MOST)


@tries(60)
@given(_tables(), st.data())
def test_symbols_of_any_size_by_any_tables(
    given_tables: tuple[list[list[int]], list[int]], data: Any
) -> None:
    """The string is that of CompressAI's encoder, and is decoded to the same symbols."""
    tables, offsets = given_tables
    height, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    count = height * width * CHANNELS
    symbols = data.draw(st.lists(_symbols(), min_size=count, max_size=count))
    indexes = data.draw(st.lists(st.integers(0, len(tables) - 1), min_size=count, max_size=count))
    string = ans.RansEncoder().encode_with_indexes(symbols, indexes, tables, list(map(len, tables)), offsets)
    y = torch.tensor(symbols, dtype=torch.float32).view(height, width, CHANNELS).permute(2, 0, 1)[None]
    scales = (
        torch.tensor(indexes, dtype=torch.float32).view(height, width, CHANNELS).permute(2, 0, 1)[None] + 1
    )
    params = torch.cat((scales, torch.zeros_like(scales)), 1)
    loops, y_hat = _plain(tables, offsets), F.pad(y, (2, 2, 2, 2))
    with torch.no_grad(), exact_kernels():
        assert loops.compress(y_hat.clone(), params) == string
        decoded = torch.zeros_like(y_hat)
        loops.decompress(string, decoded, params)
    assert torch.equal(decoded, y_hat)


@tries(60)
@given(_tables(), st.binary(max_size=60), st.data())
def test_any_string_is_decoded_as_by_compressai_or_refused(
    given_tables: tuple[list[list[int]], list[int]], string: bytes, data: Any
) -> None:
    """Nothing is read behind its end, where it goes on with zeros."""
    tables, offsets = given_tables
    count = 4 * CHANNELS
    indexes = data.draw(st.lists(st.integers(0, len(tables) - 1), min_size=count, max_size=count))
    scales = torch.tensor(indexes, dtype=torch.float32).view(1, 4, CHANNELS).permute(2, 0, 1)[None] + 1
    params = torch.cat((scales, torch.zeros_like(scales)), 1)
    decoded = torch.zeros(1, CHANNELS, 5, 8)
    lengths = list(map(len, tables))
    expected = decoder_of(string, count).decode_stream(indexes, tables, lengths, offsets)
    with torch.no_grad(), exact_kernels():
        try:
            _plain(tables, offsets).decompress(string, decoded, params)
        except ContainerError:
            return
    found = decoded[0, :, 2, 2:-2].T.flatten()
    assert max(map(abs, expected)) <= MOST
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float32))


def test_a_string_that_was_altered_is_refused() -> None:
    """A symbol past its table that would take more than eight parts."""
    tables, offsets = [[0, 1, 65536]], [0]
    string = (0xFFFF | 0xFFFF_FFFF << 16 | 1 << 62).to_bytes(8, "little") + b"\xff" * 40
    params = torch.cat((torch.ones(1, CHANNELS, 1, 4), torch.zeros(1, CHANNELS, 1, 4)), 1)
    with torch.no_grad(), exact_kernels(), pytest.raises(ContainerError, match="it was altered"):
        _plain(tables, offsets).decompress(string, torch.zeros(1, CHANNELS, 5, 8), params)


@pytest.mark.parametrize("symbol", [MOST, -MOST])
@pytest.mark.parametrize("offset", [0, -1, -2])
def test_the_largest_symbols_are_coded_whatever_their_table(symbol: int, offset: int) -> None:
    """At 2^27 CompressAI's encoder never ended, where a table lay wholly below 0."""
    guard()
    table = [[0, 1, 65536]], [3], [offset]
    string = ans.RansEncoder().encode_with_indexes([symbol], [0], *table)
    assert ans.RansDecoder().decode_with_indexes(string, [0], *table) == [symbol]
    with pytest.raises(WeightsError, match="which the coder cannot write"):
        ans.RansEncoder().encode_with_indexes([2 * symbol], [0], *table)


def test_nothing_warns_of_ordinary_models(model: Any) -> None:
    with warnings.catch_warnings(), torch.no_grad(), exact_kernels():
        warnings.simplefilter("error", SlowKernelWarning)
        y_hat, params = _maps(model, 6, 7)
        raster.compress(model, y_hat, params, 6, 7, 5, 2)
