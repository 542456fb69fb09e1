"""A codec whose `compress` gives a named tuple of arrays, and whose `decompress` takes it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Coded(NamedTuple):
    """What the decoder needs, and what is told beside it."""

    symbols: NDArray[np.int16]
    shape: tuple[int, ...]
    image: torch.Size
    step: Tensor
    bits: float


class NamedCodec(nn.Module):
    """Rounds its latents in code of its own, and takes apart nothing but what it gave itself."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 6, 5, 2, 2))
        self.dec = nn.Sequential(
            nn.ConvTranspose2d(6, 6, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 3, 4, 2, 1)
        )
        self.register_buffer("step", torch.tensor([0.03125]))
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(torch.round(self.enc(x) / self.step) * self.step)

    def compress(self, x: Tensor) -> object:
        symbols = torch.round(self.enc(x) / self.step)
        if self.fault == "compress":
            raise AssertionError("Torch not compiled with CUDA enabled")
        if self.fault == "gives":
            return object()
        return Coded(symbols.numpy().astype(np.int16), tuple(symbols.shape), x.shape[2:], self.step, 1.5)

    def decompress(self, coded: Coded) -> Tensor:
        if self.fault == "decompress":
            raise RuntimeError("Found no NVIDIA driver on your system")
        if self.fault == "asserts":
            raise AssertionError("not a clip of video")
        symbols = torch.from_numpy(coded.symbols.astype(np.float32)).reshape(coded.shape)
        image = self.dec(symbols * coded.step)
        return image[..., : coded.image[0], : coded.image[1]]
