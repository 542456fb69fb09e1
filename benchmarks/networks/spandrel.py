"""Networks of spandrel and spandrel-extra-arches for restoration and super-resolution, in small sizes."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from benchmarks.networks import Foreign

NETWORKS: dict[str, Foreign] = {}


def _of(
    arch: str,
    cls: str | None = None,
    extra: bool = False,
    image: int = 3,
    example: tuple[Any, ...] | None = None,
    **arguments: Any,
) -> Foreign:
    def build() -> Any:
        package = "spandrel_extra_arches" if extra else "spandrel"
        module = importlib.import_module(f"{package}.architectures.{arch}")
        return getattr(module, cls or arch)(**arguments)

    return Foreign(build, image, example=example)


NETWORKS["ESRGAN x4"] = _of("ESRGAN", in_nc=3, out_nc=3, num_filters=8, num_blocks=2, scale=4)
NETWORKS["ESRGAN x2"] = _of("ESRGAN", in_nc=3, out_nc=3, num_filters=8, num_blocks=2, scale=2)
NETWORKS["ESRGAN x1"] = _of("ESRGAN", in_nc=3, out_nc=3, num_filters=8, num_blocks=2, scale=1)
NETWORKS["ESRGAN plus"] = _of("ESRGAN", num_filters=8, num_blocks=2, scale=4, plus=True)
NETWORKS["ESRGAN shuffle(RealESRGAN x2)"] = _of(
    "ESRGAN", in_nc=12, out_nc=3, num_filters=8, num_blocks=2, scale=2, shuffle_factor=2
)
NETWORKS["ESRGAN pixelshuffle"] = _of(
    "ESRGAN", num_filters=8, num_blocks=2, scale=4, upsampler="pixel_shuffle"
)
NETWORKS["Compact(SRVGG)"] = _of("Compact", num_feat=8, num_conv=3, upscale=4)
NETWORKS["DnCNN"] = _of("DnCNN", in_nc=3, out_nc=3, nc=8, nb=5, act_mode="BR")
NETWORKS["FDnCNN"] = _of("DnCNN", in_nc=4, out_nc=3, nc=8, nb=5, act_mode="R", mode="FDnCNN", image=4)
NETWORKS["DRUNet"] = _of("DRUNet", in_nc=4, out_nc=3, nc=[8, 8, 16, 16], nb=1, image=4)
NETWORKS["DRUNet avgpool upconv"] = _of(
    "DRUNet",
    in_nc=4,
    out_nc=3,
    nc=[8, 8, 16, 16],
    nb=1,
    downsample_mode="avgpool",
    upsample_mode="upconv",
    image=4,
)
NETWORKS["DRUNet pixelshuffle"] = _of(
    "DRUNet", in_nc=4, out_nc=3, nc=[8, 8, 16, 16], nb=1, upsample_mode="pixelshuffle", image=4
)
NETWORKS["FBCNN"] = _of("FBCNN", nc=[8, 8, 16, 512], nb=1)
NETWORKS["NAFNet"] = _of(
    "NAFNet", img_channel=3, width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]
)
NETWORKS["RCAN"] = _of("RCAN", n_resgroups=2, n_resblocks=2, n_feats=16, reduction=4)
NETWORKS["RCAN unshuffle x1"] = _of(
    "RCAN", scale=1, n_resgroups=1, n_resblocks=1, n_feats=16, reduction=4, unshuffle_mod=True
)
NETWORKS["RealCUGAN 2x"] = _of("RealCUGAN", "UpCunet2x")
NETWORKS["RealCUGAN 2x pro"] = _of("RealCUGAN", "UpCunet2x", pro=True)
NETWORKS["RealCUGAN 3x"] = _of("RealCUGAN", "UpCunet3x")
NETWORKS["RealCUGAN 4x"] = _of("RealCUGAN", "UpCunet4x")
NETWORKS["RealCUGAN 2x fast"] = _of("RealCUGAN", "UpCunet2x_fast")
NETWORKS["SPAN"] = _of("SPAN", num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2)
NETWORKS["SPAN nonorm"] = _of("SPAN", num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=4, norm=False)
NETWORKS["SwiftSRGAN"] = _of("SwiftSRGAN", num_channels=16, num_blocks=2, upscale_factor=2)
NETWORKS["SAFMN"] = _of("SAFMN", dim=16, n_blocks=2, upscaling_factor=2)
NETWORKS["SAFMNBCIE"] = _of("SAFMNBCIE", dim=16, n_blocks=2, num_layers=1, upscaling_factor=2)
NETWORKS["PLKSR"] = _of("PLKSR", dim=16, n_blocks=2, upscaling_factor=2)
NETWORKS["PLKSR DCCM sparse"] = _of(
    "PLKSR", dim=16, n_blocks=2, upscaling_factor=2, ccm_type="DCCM", lk_type="SparsePLK"
)
NETWORKS["PLKSR rect"] = _of(
    "PLKSR", dim=16, n_blocks=2, upscaling_factor=2, ccm_type="ICCM", lk_type="RectSparsePLK"
)
NETWORKS["RealPLKSR"] = _of("PLKSR", "RealPLKSR", dim=16, n_blocks=2, upscaling_factor=2)
NETWORKS["RealPLKSR dysample"] = _of(
    "PLKSR", "RealPLKSR", dim=16, n_blocks=2, upscaling_factor=2, dysample=True
)
NETWORKS["RealPLKSR layernorm"] = _of(
    "PLKSR", "RealPLKSR", dim=16, n_blocks=2, upscaling_factor=2, layer_norm=True
)
NETWORKS["MoSR"] = _of("MoSR", n_block=2, dim=16, upscale=2)
NETWORKS["MoSR dys"] = _of("MoSR", n_block=2, dim=16, upscale=2, upsampler="dys")
NETWORKS["MoSR gps"] = _of("MoSR", n_block=2, dim=16, upscale=2, upsampler="gps")
NETWORKS["MoESR"] = _of("MoESR", dim=16, n_blocks=2, n_block=1, scale=2, upsample_dim=16)
NETWORKS["MoESR pixelshuffle"] = _of(
    "MoESR", dim=16, n_blocks=2, n_block=1, scale=2, upsample_dim=16, upsampler="pixelshuffle"
)
NETWORKS["MixDehazeNet"] = _of("MixDehazeNet", embed_dims=[8, 16, 32, 16, 8], depths=[1, 1, 1, 1, 1])
NETWORKS["MMRealSR"] = _of(
    "MMRealSR",
    num_block=1,
    num_in_ch=3,
    num_out_ch=3,
    num_feat=16,
    num_grow_ch=8,
    num_feats=[16, 16, 16, 16],
    num_blocks=[1, 1, 1, 1],
)
NETWORKS["SeemoRe"] = _of("SeemoRe", scale=2, num_experts=3, num_layers=2, embedding_dim=16)
NETWORKS["LaMa"] = _of("LaMa", in_nc=4, example=(torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)))
NETWORKS["KBNet_s"] = _of(
    "KBNet", "KBNet_s", width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]
)
NETWORKS["KBNet_l"] = _of("KBNet", "KBNet_l", dim=24, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1)
NETWORKS["HVICIDNet"] = _of("HVICIDNet", channels=[8, 8, 16, 16], heads=[1, 2, 2, 2])
NETWORKS["RetinexFormer"] = _of("RetinexFormer", n_feat=8, stage=1)
NETWORKS["Restormer"] = _of("Restormer", extra=True, dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1)
NETWORKS["Restormer BiasFree"] = _of(
    "Restormer",
    extra=True,
    dim=8,
    num_blocks=[1, 1, 1, 1],
    num_refinement_blocks=1,
    LayerNorm_type="BiasFree",
)
NETWORKS["MPRNet"] = _of("MPRNet", extra=True, n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1)
NETWORKS["MIRNet2"] = _of("MIRNet2", extra=True, n_feat=16, n_MRB=1)
NETWORKS["M3SNet"] = _of("M3SNet", extra=True, width=8, enc_blk_nums=[1, 1, 1, 1], dec_blk_nums=[1, 1, 1, 1])
NETWORKS["DITN"] = _of("DITN", dim=8, ITL_blocks=1, SAL_blocks=1, upscale=2)
NETWORKS["DCTLSA"] = _of("DCTLSA", in_nc=3, nf=20, num_modules=2, out_nc=3, upscale=2)
NETWORKS["FFTformer"] = _of("FFTformer", dim=8, num_blocks=[1, 1, 1], num_refinement_blocks=1)
NETWORKS["OmniSR"] = _of("OmniSR", num_feat=16, up_scale=2)
NETWORKS["OmniSR nope"] = _of("OmniSR", num_feat=16, up_scale=2, pe=False)
NETWORKS["SwinIR pixelshuffle"] = _of(
    "SwinIR", window_size=8, embed_dim=24, depths=[2], num_heads=[2], upscale=2, upsampler="pixelshuffle"
)
NETWORKS["SwinIR denoise"] = _of("SwinIR", window_size=8, embed_dim=24, depths=[2], num_heads=[2], upscale=1)
NETWORKS["SwinIR direct"] = _of(
    "SwinIR",
    window_size=8,
    embed_dim=24,
    depths=[2],
    num_heads=[2],
    upscale=2,
    upsampler="pixelshuffledirect",
)
NETWORKS["SwinIR nearest+conv 3conv"] = _of(
    "SwinIR",
    window_size=8,
    embed_dim=24,
    depths=[2],
    num_heads=[2],
    upscale=4,
    upsampler="nearest+conv",
    resi_connection="3conv",
)
NETWORKS["Swin2SR"] = _of(
    "Swin2SR", window_size=8, embed_dim=24, depths=[2], num_heads=[2], upscale=2, upsampler="pixelshuffle"
)
NETWORKS["HAT"] = _of(
    "HAT",
    window_size=8,
    embed_dim=24,
    depths=[2],
    num_heads=[2],
    upscale=2,
    upsampler="pixelshuffle",
    num_feat=16,
    squeeze_factor=6,
)
NETWORKS["DRCT"] = _of(
    "DRCT", window_size=8, embed_dim=24, depths=[2], num_heads=[2], upscale=2, upsampler="pixelshuffle", gc=8
)
NETWORKS["DAT"] = _of("DAT", embed_dim=24, depth=[2], num_heads=[2], split_size=[4, 8], upscale=2)
NETWORKS["DAT light"] = _of(
    "DAT",
    embed_dim=24,
    depth=[2],
    num_heads=[2],
    split_size=[4, 8],
    upscale=2,
    upsampler="pixelshuffledirect",
)
NETWORKS["RGT"] = _of("RGT", embed_dim=24, depth=[2], num_heads=[2], split_size=[8, 8], upscale=2)
NETWORKS["ATD"] = _of(
    "ATD",
    embed_dim=24,
    depths=(2,),
    num_heads=(2,),
    window_size=8,
    category_size=32,
    num_tokens=8,
    upscale=2,
    upsampler="pixelshuffle",
)
NETWORKS["CRAFT"] = _of("CRAFT", embed_dim=24, depths=[2], num_heads=[2], upscale=2)
NETWORKS["GRL"] = _of(
    "GRL",
    embed_dim=16,
    upsampler="pixelshuffle",
    upscale=2,
    depths=[2],
    num_heads_window=[2],
    num_heads_stripe=[2],
)
NETWORKS["SRFormer"] = _of(
    "SRFormer",
    extra=True,
    window_size=8,
    embed_dim=24,
    depths=(2,),
    num_heads=(2,),
    upscale=2,
    upsampler="pixelshuffle",
)
NETWORKS["SCUNet"] = _of("SCUNet", config=[1, 1, 1, 1, 1, 1, 1], dim=64)
NETWORKS["Uformer"] = _of("Uformer", embed_dim=4)
NETWORKS["FDAT"] = _of(
    "FDAT",
    scale=2,
    embed_dim=24,
    num_groups=1,
    depth_per_group=2,
    num_heads=2,
    mid_dim=16,
    upsampler_type="pixelshuffle",
)
NETWORKS["IPT"] = _of("IPT", patch_size=24, n_feats=8, num_layers=1)
NETWORKS["AdaCode"] = _of("AdaCode", extra=True, gt_resolution=128, codebook_params=[[32, 32, 32]])
NETWORKS["FeMaSR"] = _of("FeMaSR", extra=True, gt_resolution=128, codebook_params=[[32, 32, 32]])
NETWORKS["RestoreFormer"] = _of("RestoreFormer", n_embed=32, embed_dim=32, ch=32, z_channels=32)
NETWORKS["CodeFormer"] = _of(
    "CodeFormer", extra=True, dim_embd=64, n_layers=1, codebook_size=32, latent_size=256
)
NETWORKS["DDColor"] = _of(
    "DDColor",
    extra=True,
    nf=64,
    num_queries=8,
    input_size=(64, 64),
    encoder_name="convnext-t",
    num_output_channels=2,
    dec_layers=3,
)
NETWORKS["GFPGAN"] = _of("GFPGAN")
