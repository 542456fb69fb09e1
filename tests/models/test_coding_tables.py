"""What CompressAI's coder may be given: every string guarded, every table valid, no wild symbol."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck, EntropyBottleneckVbr, GaussianConditional
from support.small_models import small_model
from torch import Tensor, nn

from overlap_tool import checkpoint
from overlap_tool.errors import ContainerError, WeightsError
from overlap_tool.models import range_coding
from overlap_tool.models.coding_tables import (
    complete_tables,
    entropy_models,
    refuse_broken,
    refuse_broken_tables,
    tables_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def entropy_model(kind: type) -> nn.Module:
    """One of this class with its tables computed."""
    made = kind(scale_table=[0.11, 1.0, 4.0]) if kind is GaussianConditional else kind(3)
    made.update()
    return made


def _decode(module: nn.Module, strings: list[bytes], side: int) -> Tensor:
    """By the class's own method."""
    if isinstance(module, GaussianConditional):
        return module.decompress(strings, torch.zeros(1, 3, side, side, dtype=torch.int32))
    return module.decompress(strings, (side, side))


CLASSES = (EntropyBottleneck, EntropyBottleneckVbr, GaussianConditional)
"""Held to be all that architectures have; the guard itself knows of no class."""


def in_a_process(work: Callable[[], object]) -> int:
    """The exit status of this done in a process of its own, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_classes_of_every_architecture_are_among_those_tested(architecture) -> None:
    found = {type(module) for _, module in entropy_models(small_model(architecture))}
    assert found
    assert found <= set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_whatever_decodes_reads_zeros_after_the_end_of_a_string(kind) -> None:
    """An empty string, for so many symbols that reading past its end leaves the memory of the process."""
    module = entropy_model(kind)
    side = 400

    def work() -> None:
        range_coding.guard()
        found = _decode(module, [b""], side)
        zeros = _decode(module, [bytes(4 * 3 * side * side + 64)], side)
        assert torch.equal(found, zeros)

    assert in_a_process(work) == 0


def test_a_loop_of_ones_own_is_guarded_too() -> None:
    from compressai.ans import RansDecoder

    range_coding.guard()
    cdf = ([[0, 60000, 65000, 65536]], [4], [-1])
    count = 1 << 20
    with range_coding.reading_at_most(count):
        decoder = RansDecoder()
        decoder.set_stream(b"")
    expected = range_coding.decoder_of(bytes(4 * count), count).decode_stream([0] * count, *cdf)
    assert decoder.decode_stream([0] * count, *cdf) == expected
    with pytest.raises(ContainerError, match="more symbols"):
        decoder.decode_stream([0], *cdf)


def test_what_is_right_is_decoded_as_before() -> None:
    from compressai.ans import BufferedRansEncoder, RansDecoder, RansEncoder

    range_coding.guard()
    cdf = ([[0, 60000, 65000, 65536]], [4], [-1])
    symbols = [0, 1, -1, 500, -70000, 0, range_coding.MOST, -range_coding.MOST]
    coded = RansEncoder().encode_with_indexes(symbols, [0] * len(symbols), *cdf)
    buffered = BufferedRansEncoder()
    buffered.encode_with_indexes(symbols, [0] * len(symbols), *cdf)
    assert buffered.flush() == coded
    assert RansDecoder().decode_with_indexes(coded, [0] * len(symbols), *cdf) == symbols
    assert range_coding.decoder_of(coded, 8).decode_stream([0] * len(symbols), *cdf) == symbols


@pytest.mark.parametrize("symbol", [range_coding.MOST + 1, -range_coding.MOST - 1, -(2**31)])
def test_a_wild_symbol_is_refused_before_it_is_written(symbol) -> None:
    from compressai.ans import BufferedRansEncoder, RansEncoder

    range_coding.guard()
    for encoder in (RansEncoder(), BufferedRansEncoder()):
        with pytest.raises(WeightsError, match="a symbol of"):
            encoder.encode_with_indexes([0, symbol], [0, 0], [[0, 60000, 65000, 65536]], [4], [-1])
    with pytest.raises(WeightsError, match="a symbol of"):
        range_coding.refuse_wild(torch.tensor([0, symbol], dtype=torch.int64), read=False)


def _row(cdf: Tensor, values: list[int]) -> None:
    cdf[0, : len(values)] = torch.tensor(values, dtype=torch.int32)


def _set(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(tables: dict[str, Tensor]) -> None:
        tables[name] = make(tables[name])

    return change


BROKEN = {
    "all 0": _set("_quantized_cdf", torch.zeros_like),
    "all 65536": _set("_quantized_cdf", lambda cdf: torch.full_like(cdf, 65536)),
    "reversed": _set("_quantized_cdf", lambda cdf: cdf.flip(1)),
    "halved": _set("_quantized_cdf", lambda cdf: cdf // 2),
    "past the end": _set("_quantized_cdf", lambda cdf: cdf * 2),
    "a plateau": lambda tables: _row(tables["_quantized_cdf"], [0, 9, 9]),
    "not from 0": lambda tables: _row(tables["_quantized_cdf"], [1, 2, 3]),
    "one column": _set("_quantized_cdf", lambda cdf: cdf[:, :1]),
    "flat": _set("_quantized_cdf", lambda cdf: cdf.reshape(-1)),
    "long": _set("_quantized_cdf", lambda cdf: cdf.long()),
    "float": _set("_quantized_cdf", lambda cdf: cdf.float()),
    "complex lengths": _set("_cdf_length", lambda length: length.to(torch.complex64)),
    "NaN lengths": _set("_cdf_length", lambda length: length * float("nan")),
    "uint64 lengths": _set("_cdf_length", lambda length: length.to(torch.uint64)),
    "float8 lengths": _set("_cdf_length", lambda length: length.to(torch.float8_e4m3fn)),
    "no lengths": _set("_cdf_length", lambda length: length[:0]),
    "long lengths": _set("_cdf_length", lambda length: length + 10_000),
    "short lengths": _set("_cdf_length", lambda length: length * 0 + 2),
    "least offsets": _set("_offset", lambda offset: torch.full_like(offset, -(2**31))),
    "most offsets": _set("_offset", lambda offset: torch.full_like(offset, 2**31 - 1)),
    "scalar offsets": _set("_offset", lambda offset: offset[0]),
    "fewer rows": lambda tables: tables.update({k: tables[k][:-1] for k in list(tables)[:3]}),
}
BROKEN_SCALES = {
    "longer": lambda scales: torch.linspace(0.1, 9, len(scales) + 1),
    "empty": lambda scales: scales[:0],
    "2-D": lambda scales: scales[None],
    "scalar": lambda scales: scales[0],
    "a million": lambda scales: torch.linspace(0.1, 9, 10**6),
    "falling": lambda scales: scales.flip(0),
    "negative": lambda scales: scales - 1,
    "NaN": lambda scales: scales * float("nan"),
    "huge": lambda scales: scales * 1e30,
    "whole": lambda scales: scales.int(),
    "complex": lambda scales: scales.to(torch.complex64),
}
BROKEN_QUANTILES = {
    "1e30": lambda quantiles: quantiles * 1e30,
    "infinite": lambda quantiles: quantiles * float("inf"),
    "one": lambda quantiles: quantiles[..., :1],
}


@pytest.mark.parametrize("kind", CLASSES)
def test_tables_as_compressai_computes_them_are_valid(kind) -> None:
    module = entropy_model(kind)
    assert set(tables_of(module)) >= {"_quantized_cdf", "_offset", "_cdf_length"}
    refuse_broken(tables_of(module), "it")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("change", BROKEN)
def test_broken_tables_are_refused(kind, change) -> None:
    tables = {name: tensor.detach().clone() for name, tensor in tables_of(entropy_model(kind)).items()}
    BROKEN[change](tables)
    with pytest.raises(WeightsError):
        refuse_broken(tables, "it")


@pytest.mark.parametrize("change", BROKEN_SCALES)
def test_broken_scales_are_refused(change) -> None:
    tables = tables_of(entropy_model(GaussianConditional))
    with pytest.raises(WeightsError):
        refuse_broken({**tables, "scale_table": BROKEN_SCALES[change](tables["scale_table"])}, "it")


@pytest.mark.parametrize("change", BROKEN_QUANTILES)
def test_broken_quantiles_are_refused(change) -> None:
    tables = tables_of(entropy_model(EntropyBottleneck))
    with pytest.raises(WeightsError, match="quantiles"):
        refuse_broken({**tables, "quantiles": BROKEN_QUANTILES[change](tables["quantiles"].detach())}, "it")


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean-vbr"])
def test_an_update_is_asked_for_no_table_that_it_cannot_end(name) -> None:
    known = checkpoint.find(name)
    model = checkpoint.seeded_model(known, known.small)
    for _, module in entropy_models(model):
        if "quantiles" in module._parameters:
            module._offset = torch.empty(0, dtype=torch.int32)
            module._quantized_cdf = module._cdf_length = module._offset
            with torch.no_grad():
                module.quantiles.mul_(1e30)
    with pytest.raises(WeightsError, match="quantiles"):
        complete_tables(model, "it")


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-vbr", "elic2022-official"])
def test_tables_are_looked_at_where_a_checkpoint_is_loaded(tmp_path, name) -> None:
    state = {key: tensor.clone() for key, tensor in small_model(name).state_dict().items()}
    key = next(key for key in state if key.endswith("_quantized_cdf"))
    torch.save({**state, key: state[key].flip(1)}, tmp_path / "it.pt")
    with pytest.raises(WeightsError, match="does not rise"):
        checkpoint.load_checkpoint(tmp_path / "it.pt")


def test_tables_are_looked_at_before_they_are_used() -> None:
    known = checkpoint.find("mbt2018-mean")
    model = checkpoint.seeded_model(known, known.small)
    refuse_broken_tables(model, "it")
    model.gaussian_conditional._quantized_cdf.zero_()
    with pytest.raises(WeightsError, match="it, gaussian_conditional: a row"):
        refuse_broken_tables(model, "it")
