"""Small codecs, trained on photographs: for what weights that nobody trained cannot show.

They are kept as checkpoints in `benchmarks/trained`, beside photographs that they have not seen; remove that
folder to train anew. Seeds are fixed, but sums in training depend on the machine, and so do the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn

from overlap_tool import checkpoint, plugins

FOLDER = Path(__file__).parent / "trained"

CODECS: dict[str, dict[str, Any]] = {
    "hyperprior-nocontext": {"N": 24, "M": 32},
    "hyperprior-checkerboard": {"N": 24, "M": 32},
    "cheng2020-anchor-checkerboard": {"N": 16},
    "elic2022-official": {"N": 16, "M": 24, "groups": [4, 8, 12]},
}
"""The block-based codec's four models, at widths that can be trained in minutes."""

SEEN = ("astronaut", "chelsea", "rocket", "hubble_deep_field", "retina", "camera")
"""Photographs that come with scikit-image, to train on."""
HELD_OUT = ("coffee", "stereo_motorcycle")

STEPS = 4000
BATCH = 4
SIDE = 128
"""Of a patch, in pixels."""
DISTORTION = 0.0130
"""The price of a mean squared error of one grey level, in bits per pixel: that of CompressAI's quality 3."""


def checkpoint_of(name: str) -> Path:
    """The file of a trained codec; it is trained if there is none yet."""
    path = FOLDER / f"{name}.pt"
    if not path.exists():
        FOLDER.mkdir(exist_ok=True)
        checkpoint.save_atomically(trained(name, CODECS[name]).state_dict(), path)
    return path


def trained(name: str, widths: dict[str, Any], steps: int = STEPS) -> nn.Module:
    """A codec whose rate and distortion were minimised on patches of the photographs."""
    plugins.discover()
    photographs = [photograph(each) for each in SEEN]
    # seeded weights keep the variance of what goes through, which spares the first hundred steps
    model: Any = checkpoint.seeded_model(checkpoint.find(name), widths).train()
    quantiles = [value for key, value in model.named_parameters() if key.endswith(".quantiles")]
    weights = [value for key, value in model.named_parameters() if not key.endswith(".quantiles")]
    optimizer = torch.optim.Adam(weights, lr=2e-3)
    auxiliary = torch.optim.Adam(quantiles, lr=1e-2)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            images = torch.stack([_patch(photographs) for _ in range(BATCH)])
            optimizer.zero_grad()
            _loss(model(images), images).backward()
            nn.utils.clip_grad_norm_(weights, max_norm=1.0)
            optimizer.step()
            auxiliary.zero_grad()
            model.aux_loss().backward()
            auxiliary.step()
            slower.step()
    model.eval().update(force=True)
    return model


def photograph(name: str) -> Tensor:
    """From 0 to 1, in colour, of a size that a codec takes without padding."""
    pixels = getattr(skimage.data, name)()
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # of two that make a stereo picture
    pixels = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
    height, width = (side // 64 * 64 for side in pixels.shape[:2])
    return torch.from_numpy(np.ascontiguousarray(pixels[:height, :width])).permute(2, 0, 1).float() / 255


def _patch(photographs: Sequence[Tensor]) -> Tensor:
    image = photographs[_below(len(photographs))]
    top, left = (_below(side - SIDE + 1) for side in image.shape[1:])
    patch = image[:, top : top + SIDE, left : left + SIDE]
    return patch.flip(-1) if _below(2) else patch


def _below(count: int) -> int:
    return int(torch.randint(count, ()))


def _loss(found: dict[str, Any], images: Tensor) -> Tensor:
    pixels = images[:, 0].numel()
    rate = sum(-torch.log2(likelihoods).sum() / pixels for likelihoods in found["likelihoods"].values())
    error = (found["x_hat"] - images).square().mean() * 255**2
    return rate + DISTORTION * error


def held_out() -> list[Path]:
    """Files of photographs that no codec was trained on."""
    FOLDER.mkdir(exist_ok=True)
    paths = [FOLDER / f"{name}.png" for name in HELD_OUT]
    for path in paths:
        pixels = (photograph(path.stem) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(path)
    return paths
