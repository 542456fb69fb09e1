"""Attention in blocks of its queries has the bits of attention at once, and holds few blocks at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from overlap_tool import exact_kernels
from overlap_tool.kernels import scores
from overlap_tool.planning.live_bytes import LiveBytes

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


Q, K, V = normal(2, 4, 70, 8), normal(2, 4, 90, 8), normal(2, 4, 90, 5)
OPEN = torch.rand(70, 90, generator=torch.Generator().manual_seed(0)) < 0.7
OPEN[3] = False  # nothing is left of one query
attend = F.scaled_dot_product_attention

TORCHS: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: attend(Q, K, K),
    "values of another width": lambda: attend(Q, K, V),
    "mask": lambda: attend(Q, K, V, attn_mask=OPEN),
    "mask, by one function": lambda: attend(Q, K, K, attn_mask=OPEN),
    "numbers added": lambda: attend(Q, K, V, attn_mask=normal(2, 1, 70, 90)),
    "one row added": lambda: attend(Q, K, K, attn_mask=normal(2, 1, 1, 90)),
    "causal": lambda: attend(Q, K, V, is_causal=True),
    "causal, scaled": lambda: attend(Q, K, K, is_causal=True, scale=0.3),
    "groups of queries": lambda: attend(Q, K[:, :2], V[:, :2], enable_gqa=True),
    "groups of queries, by one function": lambda: attend(Q, K[:, :2], K[:, 2:], enable_gqa=True),
    "no heads": lambda: attend(Q[0], K[0], V[0], scale=0.2),
    "no heads, causal": lambda: attend(Q[0], K[0], K[0], is_causal=True),
    "one image": lambda: attend(Q[:1], K[:1], V[:1]),
    "one key for all": lambda: attend(Q, K[:1, :1].expand(2, 4, 90, 8), V),
    "float64": lambda: attend(Q.double(), K.double(), V.double()),
}

OWN: dict[str, Callable[[], Tensor]] = {
    "products": lambda: ((Q * 8**-0.5) @ K.mT).softmax(-1) @ V,
    "scaled afterwards": lambda: torch.softmax(Q @ K.mT / 3, dim=-1) @ V,
    "bias and mask": lambda: (Q @ K.mT * 0.3 + normal(4, 70, 90)).masked_fill(~OPEN, -100.0).softmax(-1) @ V,
    "transposed, bmm": lambda: torch.bmm(
        V[0].mT, F.softmax(torch.bmm(Q[0], K[0].mT) * 8**-0.5, dim=2).permute(0, 2, 1)
    ),
    "transposed, heads": lambda: V.mT @ F.softmax(Q @ K.mT * 8**-0.5, dim=3).permute(0, 1, 3, 2),
    "keys first": lambda: V.mT @ (K @ Q.mT).transpose(-1, -2).softmax(-1).mT,
    "einsum": lambda: torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", Q, K).softmax(-1), V),
    "baddbmm": lambda: (
        torch.baddbmm(torch.empty(4, 70, 90), Q[0], K[0].mT, beta=0, alpha=0.3).softmax(-1).bmm(V[0])
    ),
    "baddbmm with a bias": lambda: torch.baddbmm(normal(4, 70, 90), Q[0], K[0].mT).softmax(-1).bmm(V[0]),
    "windows masked": lambda: (
        ((Q @ K.mT).view(1, 2, 4, 70, 90) + normal(2, 1, 70, 90)).view(-1, 4, 70, 90).softmax(-1) @ V
    ),
    "of two products": lambda: ((Q @ K.mT) * (K.mT.mT[:, :, :70] @ K.mT)).softmax(-1) @ V,
}

GIVEN_WHOLE: dict[str, Callable[[], Any]] = {
    "returned": lambda: (Q @ K.mT).softmax(-1),
    "both": lambda: (lambda a: [a @ V, a])((Q @ K.mT).softmax(-1)),
    "softmax over queries": lambda: (Q @ K.mT).softmax(-2) @ V,
    "sum over queries": lambda: (Q @ K.mT).softmax(-1).mT @ normal(2, 4, 70, 3),
    "another op": lambda: (Q @ K.mT).topk(5).values,
    "rows joined": lambda: (Q @ K.mT).flatten(2).softmax(-1),
    "heads moved": lambda: (Q @ K.mT).permute(0, 2, 1, 3).softmax(-1),
    "a part": lambda: (Q @ K.mT)[..., :60, :].softmax(-1) @ V,
    "numbers read": lambda: torch.tensor((Q[0] @ K[0].mT).max().item()),
}


def written_to(what: str) -> Tensor:
    """In place, after the product and before its rows are made."""
    q, k, added = Q.clone(), K.clone(), normal(2, 4, 70, 90)
    first = q @ k.mT
    view = first.view(8, 70, 90)
    second = first + added
    {"q": q, "k": k, "added": added, "scores": first, "view": view}[what].mul_(3)
    read = first, view.view(2, 4, 70, 90), second
    return torch.cat([(each * 0.5).softmax(-1) @ V for each in read])


WRITTEN = {what: (lambda what=what: written_to(what)) for what in ("q", "k", "added", "scores", "view")}
CASES = TORCHS | OWN | GIVEN_WHOLE | WRITTEN


def in_blocks(make: Callable[[], Any], size: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(scores, "BLOCK", size)
    with torch.no_grad(), exact_kernels(), scores.in_blocks():
        return scores.settled(make())


@pytest.mark.parametrize("size", [1, 5000, 60_000])
@pytest.mark.parametrize("case", CASES)
def test_blocks_have_the_bits_of_the_whole(case: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad(), exact_kernels():
        expected = CASES[case]()
    found = in_blocks(CASES[case], size, monkeypatch)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", TORCHS)
def test_the_bits_are_those_of_the_plain_composition(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad(), exact_kernels(), sdpa_kernel(SDPBackend.MATH):
        expected = TORCHS[case]()
    assert torch.equal(in_blocks(TORCHS[case], 5000, monkeypatch), expected)


BIG = [normal(1, 2, 1500, 16), normal(1, 2, 1500, 16), normal(1, 2, 1500, 16)]
BLOCK = 1 << 20

LARGE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "torch's": attend,
    "torch's, masked": lambda q, k, v: attend(q, k, v, is_causal=True),
    "no heads": lambda q, k, v: attend(q[0], k[0], v[0]),
    "products": lambda q, k, v: (q @ k.mT * 0.25).softmax(-1) @ v,
    "transposed": lambda q, k, v: v.mT @ (q @ k.mT * 0.25).softmax(-1).mT,
    "einsum": lambda q, k, v: torch.einsum(
        "bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_no_more_than_a_few_blocks_are_alive(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without blocks, all scores are: the count sees them."""
    scores_bytes = 4 * 2 * 1500 * 1500
    peaks = []
    for size in (BLOCK, 1 << 40):
        in_blocks(lambda: LARGE[case](*BIG), size, monkeypatch)  # the kernels are tried
        with LiveBytes(*BIG) as live:
            in_blocks(lambda: LARGE[case](*BIG), size, monkeypatch)
        peaks.append(live.peak)
    mask = 5 * 1500 * 1500 if "masked" in case else 0
    assert peaks[0] <= 4 * BLOCK + 6 * BIG[0].nbytes + mask, peaks[0] / BLOCK
    assert peaks[1] > 2 * scores_bytes


def test_torchs_own_is_in_blocks_wherever_the_exact_engine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "BLOCK", BLOCK)
    with torch.no_grad(), exact_kernels():
        attend(*BIG)  # the kernels are tried
    with torch.no_grad(), LiveBytes(*BIG) as live, exact_kernels():
        attend(*BIG)
    assert live.peak <= 4 * BLOCK + 6 * BIG[0].nbytes


def test_a_stand_in_that_the_code_keeps_is_a_tensor_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def attention() -> Tensor:
        kept.append((Q @ K.mT).softmax(-1))
        return kept[0] @ V

    found = in_blocks(attention, 5000, monkeypatch)
    assert isinstance(kept[0], scores.Scores)
    assert torch.equal(kept[0] * 1, in_blocks(lambda: (Q @ K.mT).softmax(-1), 1 << 40, monkeypatch))
    with torch.no_grad(), exact_kernels():
        assert torch.equal(kept[0] @ V, found)
