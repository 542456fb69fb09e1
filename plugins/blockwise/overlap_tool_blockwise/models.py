"""Two hyperprior models that share all transforms, and differ in how y is coded.

The transforms are those of Minnen et al. 2018 (arXiv 1809.02736), which CompressAI's mbt2018 has, too: four
strided 5x5 convolutions with GDN between them, and a hyperprior that predicts means and scales. The classes
are made of CompressAI's latent codecs, as its own checkerboard models are.
"""

from __future__ import annotations

from compressai.entropy_models import EntropyBottleneck
from compressai.latent_codecs import (
    CheckerboardLatentCodec,
    GaussianConditionalLatentCodec,
    HyperLatentCodec,
    HyperpriorLatentCodec,
    LatentCodec,
)
from compressai.layers import GDN, CheckerboardMaskedConv2d
from compressai.models import SimpleVAECompressionModel
from compressai.models.utils import conv, deconv
from torch import nn


class Hyperprior(SimpleVAECompressionModel):
    """What both models are: transforms, a hyperprior, and the codec of y that they bring.

    N is the width of the transforms, M that of y.
    """

    def __init__(self, N: int, M: int, codec_of_y: LatentCodec) -> None:
        super().__init__()
        self.g_a = nn.Sequential(
            conv(3, N, kernel_size=5, stride=2),
            GDN(N),
            conv(N, N, kernel_size=5, stride=2),
            GDN(N),
            conv(N, N, kernel_size=5, stride=2),
            GDN(N),
            conv(N, M, kernel_size=5, stride=2),
        )
        self.g_s = nn.Sequential(
            deconv(M, N, kernel_size=5, stride=2),
            GDN(N, inverse=True),
            deconv(N, N, kernel_size=5, stride=2),
            GDN(N, inverse=True),
            deconv(N, N, kernel_size=5, stride=2),
            GDN(N, inverse=True),
            deconv(N, 3, kernel_size=5, stride=2),
        )
        h_a = nn.Sequential(
            conv(M, N, kernel_size=3, stride=1),
            nn.LeakyReLU(inplace=True),
            conv(N, N, kernel_size=5, stride=2),
            nn.LeakyReLU(inplace=True),
            conv(N, N, kernel_size=5, stride=2),
        )
        h_s = nn.Sequential(
            deconv(N, M, kernel_size=5, stride=2),
            nn.LeakyReLU(inplace=True),
            deconv(M, M * 3 // 2, kernel_size=5, stride=2),
            nn.LeakyReLU(inplace=True),
            conv(M * 3 // 2, M * 2, kernel_size=3, stride=1),
        )
        # "ste" rounds what the decoder gets, so that forward gives the image that decompress gives.
        hyper = HyperLatentCodec(entropy_bottleneck=EntropyBottleneck(N), h_a=h_a, h_s=h_s, quantizer="ste")
        self.latent_codec = HyperpriorLatentCodec(latent_codec={"y": codec_of_y, "hyper": hyper})


class HyperpriorWithoutContext(Hyperprior):
    """h_s alone gives the means and scales of y, so all of y is coded at once: Minnen's mean-scale model."""

    def __init__(self, N: int = 192, M: int = 192) -> None:
        super().__init__(N, M, GaussianConditionalLatentCodec(quantizer="ste"))


class HyperpriorWithCheckerboard(Hyperprior):
    """Half of y is coded first; what surrounds each place of the other half is context for it.

    He et al. 2021 (arXiv 2103.15306): Minnen's serial context model with another mask. Widths are Minnen's.
    """

    def __init__(self, N: int = 192, M: int = 192) -> None:
        entropy_parameters = nn.Sequential(
            nn.Conv2d(M * 4, M * 10 // 3, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(M * 10 // 3, M * 8 // 3, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(M * 8 // 3, M * 2, 1),
        )
        codec_of_y = CheckerboardLatentCodec(
            latent_codec={"y": GaussianConditionalLatentCodec(quantizer="ste")},
            entropy_parameters=entropy_parameters,
            context_prediction=CheckerboardMaskedConv2d(M, M * 2, kernel_size=5, padding=2),
        )
        super().__init__(N, M, codec_of_y)
