"""The executor announces what it reads next, and stores hold what was written."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from support.emulated_gpu import Stream, stand_in_for_streams
from support.one_pass import execute
from support.small_models import small_survey
from torch import Tensor

from overlap_tool.geometry import Span
from overlap_tool.geometry.plan import cut, stream, tiles
from overlap_tool.runtime import stores
from overlap_tool.runtime.stores import TensorSink, TensorSource

CPU = torch.device("cpu")


class _Announced(TensorSource):
    """Keeps what was announced and what was then read."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__(whole, CPU)
        self.expected: list[tuple[Span, Span]] = []
        self.done: list[tuple[Span, Span]] = []

    def expect(self, rows: Span, columns: Span) -> None:
        self.expected.append((rows, columns))

    def read(self, rows: Span, columns: Span) -> Tensor:
        self.done.append((rows, columns))
        return super().read(rows, columns)


@pytest.mark.parametrize("planner", [stream, tiles])
def test_every_tile_but_the_first_is_announced(planner) -> None:
    network = small_survey("mbt2018-mean").stages[0].network
    image = torch.rand(1, 3, 128, 192)
    rows, columns = (
        planner(axis, n, cut(axis.sizes(n)[-1], 2))
        for axis, n in ((network.rows, 128), (network.columns, 192))
    )
    source, sink = _Announced(image), TensorSink(rows.sizes[-1], columns.sizes[-1])
    execute(network, rows, columns, source, sink)
    corner, _first, *later = source.done
    assert corner == (Span(0, 1), Span(0, 1))
    announced = [(r, c) for r, c in source.expected if not (r.empty or c.empty)]
    assert announced == later


@pytest.mark.parametrize("store", ["auto", "device", "host", "disk"])
def test_a_sink_holds_what_was_written(store: str) -> None:
    whole = torch.rand(2, 3, 7, 9)
    sink = TensorSink(7, 9, store)
    for rows in cut(7, 3):
        for columns in cut(9, 4):
            sink.write(rows, columns, whole[..., slice(*rows), slice(*columns)])
    assert torch.equal(sink.result(), whole)


class _Late(Tensor):
    """Pinned memory as a device sees it: what is copied there arrives when somebody waits for it."""

    def copy_(self, values: Tensor, non_blocking: bool = False) -> Tensor:
        assert non_blocking
        assert values.is_contiguous()
        _LateStream.under_way.append((self, values.clone()))
        return self


class _LateStream(Stream):
    under_way: ClassVar[list[tuple[Tensor, Tensor]]] = []
    last: Tensor
    """Of an event: the piece before it."""

    def record_event(self) -> _LateStream:
        event = _LateStream()
        event.last = self.under_way[-1][0]
        return event

    def synchronize(self) -> None:
        arrived = any(piece is self.last for piece, _ in self.under_way)
        while arrived:
            piece, values = self.under_way.pop(0)
            piece.as_subclass(Tensor).copy_(values)
            arrived = piece is not self.last


@pytest.mark.parametrize("pieces", [1, 4, 9])
def test_a_piece_from_a_device_is_put_in_its_place_when_it_has_arrived(monkeypatch, pieces: int) -> None:
    """The order of things, without a GPU; `tests/test_cuda.py` runs it on one. If one piece alone were under
    way, the host would wait for each of those that are computed together."""
    stand_in_for_streams(monkeypatch)
    monkeypatch.setattr(stores, "_copy_stream", lambda device: _LateStream())
    monkeypatch.setattr(
        stores, "_pinned", lambda like: torch.full(like.shape, float("nan")).as_subclass(_Late)
    )
    whole = torch.rand(2, 3, 7, 9).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(stores, "UNDER_WAY", pieces * whole[..., :3, :4].nbytes)
    sink, written = TensorSink(7, 9, "host"), 0
    for rows in cut(7, 3):
        for columns in cut(9, 4):
            sink.write(rows, columns, whole[..., slice(*rows), slice(*columns)])
            written += 1
            least = min(pieces, written)
            assert len(_LateStream.under_way) >= least, (
                "the device is not waited for before it has more to do"
            )
            assert sum(each.nbytes for each, _ in _LateStream.under_way) <= stores.UNDER_WAY
    assert torch.equal(sink.result(), whole)


def test_a_file_store_leaves_no_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sink = TensorSink(4, 4, "disk")
    sink.write(Span(0, 4), Span(0, 4), torch.ones(1, 1, 4, 4))
    assert list(tmp_path.iterdir()) == []
    assert bool((sink.result() == 1).all())
