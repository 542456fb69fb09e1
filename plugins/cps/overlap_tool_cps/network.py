"""The network of Continuous Patch Stitching: no layer of its transforms pads.

Z. Zhang, S. Li, H. Liu, M. Xu, C. Zhu, "Continuous Patch Stitching for Block-wise Image Compression".
"""

from __future__ import annotations

from compressai.models import JointAutoregressiveHierarchicalPriors
from torch import Tensor, nn


class Downsampling(nn.Module):
    """EDRB, the even-sized down-sampling residual block: each output reads its own cell of 2x2 inputs.

    So patches of even size need no overlap for it.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels_in, channels_out, kernel_size=2, stride=2)
        self.activation = nn.LeakyReLU()
        self.mix = nn.Conv2d(channels_out, channels_out, kernel_size=1)
        self.skip = nn.Conv2d(channels_in, channels_out, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.activation(self.down(x))) + self.skip(x)


class Upsampling(nn.Module):
    """EURB, the even-sized up-sampling residual block: each input feeds a cell of 2x2 outputs of its own."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels_in, channels_in, kernel_size=1)
        self.activation = nn.LeakyReLU()
        self.up = nn.ConvTranspose2d(channels_in, channels_out, kernel_size=2, stride=2)
        self.skip = nn.ConvTranspose2d(channels_in, channels_out, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.mix(x))) + self.skip(x)


class Bottleneck(nn.Module):
    """BRB, the bottleneck residual block: the map shrinks by a sample on each side and grows back.

    Neither layer pads. The convolution loses the outermost samples, and the transposed one restores the size,
    so that each output reads two samples on either side of its own.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(channels, channels, kernel_size=3)
        self.activation = nn.LeakyReLU()
        self.grow = nn.ConvTranspose2d(channels, channels, kernel_size=3)
        self.skip = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.grow(self.activation(self.shrink(x))) + self.skip(x)


class ContinuousPatchStitching(JointAutoregressiveHierarchicalPriors):
    """The codec of Fig. 4: three pairs of EDRB and EURB, six BRBs, and the entropy model of mbt2018.

    The paper's receptive field, 72 at a scale of 16, leaves one place for the encoder's BRBs: at 1/2, 1/4 and
    1/8 of the image, for 16 + 4 * (2 + 4 + 8) = 72. Three EDRBs make 1/8; an even convolution makes the rest.
    """

    def __init__(self, N: int = 192, M: int = 192) -> None:
        super().__init__(N=N, M=M)
        self.g_a = nn.Sequential(
            Downsampling(3, N),
            Bottleneck(N),
            Downsampling(N, N),
            Bottleneck(N),
            Downsampling(N, N),
            Bottleneck(N),
            nn.Conv2d(N, M, kernel_size=2, stride=2),
        )
        self.g_s = nn.Sequential(
            nn.ConvTranspose2d(M, N, kernel_size=2, stride=2),
            Bottleneck(N),
            Upsampling(N, N),
            Bottleneck(N),
            Upsampling(N, N),
            Bottleneck(N),
            Upsampling(N, 3),
        )
