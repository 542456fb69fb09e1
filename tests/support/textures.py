"""Images without a file."""

from __future__ import annotations

import torch
from torch import Tensor


def textured(width: int, height: int, images: int = 1) -> Tensor:
    """Something with flat parts, edges and texture, of any size."""
    generator = torch.Generator().manual_seed(width + height)
    coarse = torch.rand(images, 3, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth + 0.1 * torch.rand(images, 3, height, width, generator=generator)).clamp(0, 1)
