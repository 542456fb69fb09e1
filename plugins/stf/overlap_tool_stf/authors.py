"""STF by the authors' own class: their code is a fork called compressai, too.

It hands tokens from layer to layer, (images, positions, channels), with their height and width, inline in all
of its methods. So each transform is a module here, which calls their parts as the methods do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from overlap_tool.models import inline
from overlap_tool.models.inline import InlineStage, twin


class Analysis(nn.Module):
    """From an image to y."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.patch_embed, self.layers = twin(model.patch_embed), twin(model.layers)

    def forward(self, image: Tensor) -> Tensor:
        map: Tensor = self.patch_embed(image)
        return _through(self.layers, map)


class Synthesis(nn.Module):
    """From y to an image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.syn_layers, self.end_conv = twin(model.syn_layers), twin(model.end_conv)

    def forward(self, y: Tensor) -> Tensor:
        image: Tensor = self.end_conv(_through(self.syn_layers, y))
        return image


def _through(layers: Any, map: Tensor) -> Tensor:
    tokens, (height, width) = map.flatten(2).transpose(1, 2), map.shape[2:]
    for layer in layers:
        tokens, height, width = layer(tokens, height, width)
    return _as_map(tokens, height, width)


@inline.register_inline_stages("compressai.models.stf.SymmetricalTransFormer")
def symmetrical_transformer(model: Any) -> tuple[InlineStage, ...]:
    """The first part computes all of y from the image, and the layers hand on its tokens. From y back, the
    layers hand its tokens on to the last part, which computes the image."""
    y = model.embed_dim << len(model.layers) - 1
    return (
        InlineStage(
            "g_a",
            Analysis(model).eval(),
            begins=(model.patch_embed, lambda image: image),
            ends=(model.layers[-1], lambda output: _as_map(*output)),
            forwards={model.patch_embed: _compute, **dict.fromkeys(model.layers, _hand_on)},
        ),
        InlineStage(
            "g_s",
            Synthesis(model).eval(),
            begins=(model.syn_layers[0], _as_map),
            ends=(model.end_conv, lambda image: image),
            forwards={
                **dict.fromkeys(model.syn_layers, _hand_on),
                model.end_conv: partial(_compute_from_tokens, channels=y),
            },
        ),
    )


def _as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _compute(stage: nn.Module, map: Tensor) -> Tensor:
    found: Tensor = stage(map)
    return found


def _hand_on(stage: nn.Module, tokens: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
    return tokens, height, width


def _compute_from_tokens(stage: nn.Module, map: Tensor, channels: int) -> Tensor:
    """The class takes the tokens for those of the last layer, of fewer channels, and makes a map of them as
    if of more images. Their numbers and their order are still those of y."""
    tokens = map.permute(0, 2, 3, 1)
    return _compute(stage, tokens.reshape(-1, *map.shape[2:], channels).permute(0, 3, 1, 2))
