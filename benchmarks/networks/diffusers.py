"""diffusers' autoencoders, and a U-Net, in small configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import nn

from benchmarks.networks import Foreign, Part, picked

NETWORKS: dict[str, Foreign] = {}


def _add(name: str, build: Callable[[], nn.Module], channels: int = 3, **what: Any) -> None:
    NETWORKS[name] = Foreign(build, channels, small=channels > 3, **what)


def _kl(attention: bool = True) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=attention,
    )


def _tiny() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )


def _asymmetric() -> Any:
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(16, 32),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(16, 32),
        norm_num_groups=8,
        sample_size=64,
    )


def _vq(attention: bool = True) -> Any:
    return diffusers.VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        num_vq_embeddings=16,
        sample_size=64,
        mid_block_add_attention=attention,
    )


def _dc(blocks: tuple[str, ...], **arguments: Any) -> Any:
    n = len(blocks)
    return diffusers.AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(16, 32, 32)[:n],
        decoder_block_out_channels=(16, 32, 32)[:n],
        encoder_layers_per_block=(1,) * n,
        decoder_layers_per_block=(1,) * n,
        encoder_qkv_multiscales=((), (), (5,))[:n],
        decoder_qkv_multiscales=((), (), (5,))[:n],
        **arguments,
    )


def _unet() -> Any:
    return diffusers.UNet2DModel(
        sample_size=64,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        add_attention=False,
    )


def _adapter() -> Any:
    return diffusers.T2IAdapter(in_channels=3, channels=[16] * 4, num_res_blocks=1)


_add("AutoencoderKL", _kl)
_add("AutoencoderKL .sample", lambda: Part(_kl(), lambda model, x: model(x).sample))
_add("AutoencoderKL.encoder", lambda: _kl().encoder)
_add("AutoencoderKL.decoder", lambda: _kl().decoder, 4)
_add("AutoencoderKL, no attention", lambda: _kl(False))
_add("AutoencoderKL.encoder, no attention", lambda: _kl(False).encoder)
_add("AutoencoderKL.decoder, no attention", lambda: _kl(False).decoder, 4)
_add(
    "AutoencoderKL encode, no attention", lambda: Part(_kl(False), lambda m, x: m.encode(x).latent_dist.mean)
)
_add("AutoencoderTiny", _tiny)
_add("AutoencoderTiny .sample", lambda: Part(_tiny(), lambda model, x: model(x).sample))
_add("AutoencoderTiny.encoder", lambda: _tiny().encoder)
_add("AutoencoderTiny.decoder", lambda: _tiny().decoder, 4)
_add("AsymmetricAutoencoderKL.encoder", lambda: _asymmetric().encoder)
_add("AsymmetricAutoencoderKL.decoder", lambda: _asymmetric().decoder, 4)
_add("VQModel.encoder", lambda: _vq().encoder)
_add("VQModel.decoder", lambda: _vq().decoder)
_add("VQModel.encoder, no attention", lambda: _vq(False).encoder)
_add("VQModel.decoder, no attention", lambda: _vq(False).decoder)
_add("AutoencoderDC.encoder", lambda: _dc(("ResBlock",) * 2).encoder)
_add(
    "AutoencoderDC.decoder, batch norm",
    lambda: _dc(("ResBlock",) * 2, decoder_norm_types="batch_norm", decoder_act_fns="relu").decoder,
    8,
)
_add("AutoencoderDC.decoder", lambda: _dc(("ResBlock",) * 2).decoder, 8)
_add(
    "AutoencoderDC.encoder, EfficientViT", lambda: _dc(("ResBlock", "ResBlock", "EfficientViTBlock")).encoder
)
_add("UNet2DModel", _unet, example=(torch.rand(1, 3, 64, 64), 10))
_add("UNet2DModel at a step", lambda: Part(_unet(), lambda model, x: model(x, 10).sample))
_add(
    "ControlNetConditioningEmbedding",
    lambda: ControlNetConditioningEmbedding(16, block_out_channels=(8, 8, 16, 16)),
)
_add("T2IAdapter", _adapter)
_add("T2IAdapter [-1]", lambda: picked(_adapter(), -1))
