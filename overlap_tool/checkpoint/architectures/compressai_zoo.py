"""What all CompressAI models share: how to find their classes and published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from overlap_tool.checkpoint.conditions import Condition, StateDict
from overlap_tool.checkpoint.registry import Architecture, unchanged
from overlap_tool.errors import MissingExtraError
from overlap_tool.plugins import importing


def of_compressai(
    name: str,
    detect: Condition,
    arguments: Callable[[StateDict], dict[str, Any]],
    small: Mapping[str, Any],
    default: Mapping[str, Any],
    *,
    rename: Callable[[StateDict], StateDict] = unchanged,
    published: bool = True,
) -> Architecture:
    """An architecture whose class CompressAI registers under this name, and whose weights may be `published`.

    The class, not the zoo function: `compressai.zoo.bmshj2018_factorized_relu()` returns the GDN model.
    """
    pretrained = partial(_download, name) if published else None
    return Architecture(name, detect, arguments, partial(_build, name), small, default, rename, pretrained)


def _build(name: str, **arguments: Any) -> nn.Module:
    # Importing CompressAI takes seconds, so it waits until a model is wanted.
    with _wanted_by(name):
        import compressai.models  # noqa: F401  (fills the registry)
        from compressai.registry import MODELS

    return MODELS[name](**arguments)


@contextmanager
def _wanted_by(name: str) -> Iterator[None]:
    try:
        with importing():
            yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            name,
            f"its layers are those of CompressAI, and {error.name} is not installed",
            'Run pip install "overlap-tool[codecs]"',
        ) from error


def _download(name: str, quality: int) -> nn.Module:
    with _wanted_by(name):
        from compressai.zoo import image, image_vbr

    from overlap_tool.checkpoint.fitting import assemble
    from overlap_tool.checkpoint.registry import find

    if name in image_vbr.model_urls:
        urls = {0: image_vbr.model_urls[name]["mse"]}  # one model for all rates
    else:
        urls = image.model_urls[name]["mse"]
    if quality not in urls:
        raise ValueError(f"the published qualities are {', '.join(map(str, urls))}, not {quality}")
    # not by CompressAI's own loader, which unpickles whatever the network sends
    state = torch.hub.load_state_dict_from_url(
        urls[quality], map_location="cpu", weights_only=True, check_hash=True
    )
    model, _ = assemble(find(name), dict(state), f"zoo:{name}@{quality}")
    return model
