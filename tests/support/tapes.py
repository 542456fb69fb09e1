"""Code that is recorded, and replayed for other tensors: on a GPU, or on the processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from overlap_tool.kernels.recording import Recorder
from overlap_tool.kernels.tape import Tape, copied_alike, is_right, tape_of

Code = Callable[..., list[Tensor]]


def recorded(code: Code, *tensors: Tensor) -> tuple[Recorder, Tape | None]:
    code(*map(copied_alike, tensors))  # tries the kernels
    recorder, before = Recorder(), list(map(copied_alike, tensors))
    with recorder.on(), recorder.watching():
        for each in tensors:
            recorder.gives(each)
        found = code(*tensors)
        for each in found:
            recorder.returns(each)
    tape = tape_of(recorder, {})
    return recorder, tape if tape is not None and is_right(tape, before, tensors, found) else None


def normal(*shape: int, device: str = "cuda") -> Tensor:
    x = torch.randn(shape, device=device)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) for a, b in zip(one, other, strict=True))


def check(code: Code, *tensors: Tensor) -> Tape:
    """The tape, which gives what the code does for other numbers, and changes what it changes."""
    recorder, found = recorded(code, *tensors)
    assert found is not None, recorder.refused
    others = [copied_alike(each).mul_(0.5).add_(0.1) for each in tensors]
    plain = list(map(copied_alike, others))
    replayed = found.replay(others)
    assert replayed is not None
    assert same(replayed, code(*plain))
    assert same(others, plain)
    return found


def gdn(gamma: Tensor, beta: Tensor) -> Callable[[Tensor], Tensor]:
    def compute(x: Tensor) -> Tensor:
        weight = torch.max(gamma, torch.full((1,), 0.1, device=gamma.device)) ** 2 - 0.001
        return x * torch.rsqrt(F.conv2d(x**2, weight[..., None, None], beta))

    return compute


OPS = (
    "conv",
    "mix",
    "up",
    "depthwise",
    "pad",
    "add",
    "mul",
    "relu_",
    "sigmoid",
    "add_",
    "mul_",
    "part",
    "into",
    "weights",
    "clone",
    "scaled",
    "norm",
    "figures",
)


def program(steps: Sequence[tuple[str, int, int]], device: str = "cuda", channels: int = 4) -> Code:
    """Any code on maps of so many channels. Each step takes two of those before it, whatever their size."""
    generator = torch.Generator().manual_seed(0)

    def drawn(depth: int) -> Tensor:
        weight = torch.randn(channels, depth, 3, 3, generator=generator)
        return (weight / (3 * depth**0.5)).to(device)

    weights, alone = [drawn(channels) for _ in range(2)], drawn(1)
    gains = weights[0][:, 0, 0, 0], None

    def code(*maps: Tensor) -> list[Tensor]:
        known = list(maps)
        for what, first, second in steps:
            a, b = known[first % len(known)], known[second % len(known)]
            rows, columns = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
            common = b[..., :rows, :columns]
            if what == "conv":
                known.append(F.conv2d(a, weights[second % 2], padding=1))
            elif what == "mix":
                known.append(F.conv2d(a, weights[second % 2][..., :1, :1]))
            elif what == "up" and a.shape[2] < 9:
                known.append(
                    F.conv_transpose2d(a, weights[0], stride=2, padding=1, output_padding=second % 2)
                )
            elif what == "depthwise":
                known.append(F.conv2d(a, alone, padding=1, groups=channels))
            elif what == "pad" and a.shape[2] < 9:
                known.append(F.pad(a, (second % 2, 1, 0, second % 3)))
            elif what == "add":
                known.append(a[..., :rows, :columns] + common)
            elif what == "mul":
                known.append(a * a if second % 2 else a[..., :rows, :columns] * common)
            elif what == "relu_":
                a.relu_()
            elif what == "sigmoid":
                known.append(torch.sigmoid(a))
            elif what == "add_":
                a[..., :rows, :columns].add_(common)
            elif what == "mul_":
                a.mul_(F.conv2d(a, weights[second % 2], padding=1))
            elif what == "part" and a.shape[2] > 2:
                known.append(a[..., 1:, :])
            elif what == "into":
                room = torch.empty_like(a)
                room[..., :2, :] = a[..., :2, :]
                room[..., 2:, :] = a[..., 2:, :] * 2
                known.append(room)
            elif what == "weights":
                known.append(F.conv2d(a, weights[0] ** 2 - weights[1], padding=1))
            elif what == "clone":
                known.append(a.clone())
            elif what == "scaled":
                known.append(F.leaky_relu(a / 3 - 0.25, 0.1))
            elif what in ("norm", "figures"):
                tokens = a.permute(0, 2, 3, 1)
                found = torch.native_layer_norm(tokens, (channels,), gains[second % 2], gains[0], 1e-5)
                normal, centre, scale = (each.permute(0, 3, 1, 2) for each in found)
                known.append(normal if what == "norm" else normal * scale + centre)
        return known[-2:] if len(known) > len(maps) + 1 else [known[-1].clone()]

    return code


steps = st.lists(
    st.tuples(st.sampled_from(OPS), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12
)
