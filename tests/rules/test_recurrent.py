"""Recurrent layers: whole between two passes, or chunk by chunk with a state; the exact engine's steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cases import tries
from torch import Tensor, nn

import overlap_tool
from overlap_tool.errors import TraceError
from overlap_tool.rules import exact_kernels
from overlap_tool.rules.sequences import _next_steps, recurrent

pytestmark = pytest.mark.usefixtures("one_thread")


class Between(nn.Module):
    """A recurrent layer between two convolutions."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.first = nn.Conv1d(2, 4, 5, stride=2, padding=2)
        self.last = nn.ConvTranspose1d(6 * (1 + layer.bidirectional), 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.layer.batch_first:
            return self.last(self.layer(y.transpose(1, 2))[0].transpose(1, 2))
        steps, _ = self.layer(y.permute(2, 0, 1))
        return self.last(steps.permute(1, 2, 0))


LAYERS = {
    "lstm": lambda: nn.LSTM(4, 6),
    "lstm both ways": lambda: nn.LSTM(4, 6, 2, bidirectional=True),
    "gru": lambda: nn.GRU(4, 6, 2),
    "gru both ways": lambda: nn.GRU(4, 6, batch_first=True, bidirectional=True, bias=False),
    "tanh": lambda: nn.RNN(4, 6, batch_first=True),
    "relu": lambda: nn.RNN(4, 6, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("schedule", ["stream", "tiles"])
@pytest.mark.parametrize("name", LAYERS)
def test_tiles_have_the_bits_of_the_whole(name: str, schedule: Any) -> None:
    torch.manual_seed(0)
    model = Between(LAYERS[name]()).eval()
    tiled = overlap_tool.wrap(model, tile=20, schedule=schedule)
    for length in (100, 64):
        sound = torch.randn(2, 2, length)
        with torch.no_grad():
            with exact_kernels():
                assert torch.equal(tiled(sound), whole := model(sound))
            assert torch.allclose(whole, model(sound), atol=1e-5), "by the library"
    (plan,) = overlap_tool.plans(tiled, (100, 1)).values()
    assert plan.passes == 2


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_goes_forward_takes_chunks(name: str) -> None:
    torch.manual_seed(0)
    model, sound = Between(LAYERS[name]()).eval(), torch.randn(1, 2, 100)
    if model.layer.bidirectional:
        with pytest.raises(TraceError, match="needs the whole of the sound"):
            list(overlap_tool.run_stream(model, sound.split(30, -1)))
        return
    made = torch.cat(list(overlap_tool.run_stream(model, sound.split(30, -1))), -1)
    with torch.no_grad(), exact_kernels():
        assert torch.equal(made, model(sound))


def test_a_state_that_is_used_is_refused() -> None:
    class Last(Between):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.layer(self.first(x).permute(2, 0, 1))[1].sum()

    with pytest.raises(TraceError, match="state that a recurrent layer ends with"):
        overlap_tool.analyze(Last(nn.GRU(4, 6)).eval())


@tries(40)
@given(
    st.sampled_from((nn.LSTM, nn.GRU, nn.RNN)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.booleans(), st.booleans()),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 2),
    st.integers(0, 1 << 30),
)
def test_any_chunks_go_on_where_those_before_them_ended(kind, form, lengths, images, seed) -> None:
    """What one step gives hangs on the steps before it alone, wherever they are cut: by the layer itself."""
    inputs, hidden, layers, bias, batch_first = form
    torch.manual_seed(seed)
    layer = kind(inputs, hidden, layers, bias=bias, batch_first=batch_first)
    x = torch.randn(images, sum(lengths), inputs)
    along = 1 if batch_first else 0
    x = x if batch_first else x.transpose(0, 1)
    how = layer._flat_weights, layer.mode, layers, bias, False, batch_first
    with torch.no_grad(), exact_kernels():
        whole, state, made = layer(x)[0], None, []
        for part in x.split(lengths, along):
            found, state = _next_steps(state, part, *how)
            made.append(found)
        assert torch.equal(torch.cat(made, along), whole)
        assert torch.equal(recurrent(x, *how), whole)
