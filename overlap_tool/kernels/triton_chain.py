"""The canonical chain as a Triton kernel. It is imported when first used: not every torch comes with Triton.

An implicit matrix product: the rows are output pixels, the columns output channels, and the depth is every
tap of every input channel. Every output is a chain of fused multiply-adds of its own that goes through the
depth in one order. Nothing may reorder it, hence:

- `tl.fma` and not `tl.dot`, whose order of summation is the compiler's affair and may use tensor cores;
- no split of the depth among programs, and no padding of it: one more `fma(0, 0, acc)` would turn -0 into 0;
- blocks that follow from the layer alone, and no tuning by shape, though they change no bit.
"""

# Triton reads annotations, and most arguments must have none.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# ruff: noqa: ANN001, ANN201
import torch
import triton
import triton.language as tl
from torch import Tensor

from overlap_tool.kernels.form import Form

PIXELS = tl.constexpr(8)
"""Outputs that a thread computes for each of its channels: they share its weights. More find no registers."""

UNROLL = tl.constexpr(4)
"""Input channels whose samples and weights are on their way at the same time. The order remains."""


# Triton would compile anew for every number that is 1 or a multiple of 16, so for many sizes of a tile.
@triton.jit(
    do_not_specialize=[
        *("x", "weight", "bias", "y"),
        *("x_image", "x_channel", "x_row", "x_column", "y_image", "y_channel", "y_row", "y_column"),
        *("stride_rows", "stride_columns", "dilation_rows", "dilation_columns"),
        *(
            "pixels",
            "height",
            "width",
            "outputs",
            "outputs_per_group",
            "depth",
            "kernel_rows",
            "kernel_columns",
        ),
    ]
)
def chain_kernel(
    x,
    weight,  # (kernel rows, kernel columns, depth, outputs), dense: one pointer runs through it in order
    bias,
    y,
    # 64 bits: an image may have more than 2**31 samples.
    x_image: tl.int64,
    x_channel: tl.int64,
    x_row: tl.int64,
    x_column: tl.int64,
    y_image: tl.int64,
    y_channel: tl.int64,
    y_row: tl.int64,
    y_column: tl.int64,
    stride_rows: tl.int64,
    stride_columns: tl.int64,
    dilation_rows: tl.int64,
    dilation_columns: tl.int64,
    pixels: tl.int64,
    height: tl.int64,
    width: tl.int64,
    outputs,
    outputs_per_group,
    depth,
    kernel_rows,
    kernel_columns,
    HAS_BIAS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACROSS_GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Neighbours in time take neighbouring pixels and the same channels: they find the weights in the cache.
    pixel_blocks = tl.cdiv(pixels, PIXELS)
    pixel = tl.program_id(0) % pixel_blocks * PIXELS + tl.arange(0, PIXELS)
    block = (tl.program_id(0) // pixel_blocks).to(tl.int32)

    if ACROSS_GROUPS:  # neighbouring channels are of different groups, and read different samples
        channel = block * CHANNELS + tl.arange(0, CHANNELS)
        channel_exists = channel < outputs
        channel = tl.where(channel_exists, channel, 0)
    else:
        blocks_per_group = tl.cdiv(outputs_per_group, CHANNELS)
        group = block // blocks_per_group
        channel = block % blocks_per_group * CHANNELS + tl.arange(0, CHANNELS)
        channel_exists = channel < outputs_per_group
        channel = group * outputs_per_group + tl.where(channel_exists, channel, 0)

    # Lanes beyond the end compute the first pixel or channel again, and do not store: no masks in the loop.
    pixel_exists = pixel < pixels
    pixel = tl.where(pixel_exists, pixel, 0)
    column = pixel % width
    row = pixel // width % height
    image = pixel // width // height

    samples = x + (image * x_image + row * stride_rows * x_row + column * stride_columns * x_column)[:, None]
    if ACROSS_GROUPS:
        samples += (channel // outputs_per_group * depth * x_channel)[None, :]
    else:
        samples += group * depth * x_channel
    # A number that the compiler knows is added for free.
    next_channel = 1 if CHANNELS_LAST else x_channel

    taps = weight + channel[None, :]
    acc = tl.zeros((PIXELS, CHANNELS), x.dtype.element_ty)
    for i in range(kernel_rows):
        for j in range(kernel_columns):
            at = samples + (i * dilation_rows * x_row + j * dilation_columns * x_column)
            for _ in tl.range(0, depth, loop_unroll_factor=UNROLL):
                sample = tl.broadcast_to(tl.load(at), (PIXELS, CHANNELS))
                tap = tl.broadcast_to(tl.load(taps), (PIXELS, CHANNELS))
                acc = tl.fma(sample, tap, acc)
                at += next_channel
                taps += outputs
    if HAS_BIAS:
        acc += tl.load(bias + channel)[None, :]

    place = (image * y_image + row * y_row + column * y_column)[:, None] + (channel * y_channel)[None, :]
    tl.store(y + place, acc, mask=pixel_exists[:, None] & channel_exists[None, :])


def run(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, out: Tensor) -> None:
    """Fill `out`, whose shape must be that of the result."""
    stride, dilation, groups = form
    images, outputs, height, width = out.shape
    _, depth, *kernel = weight.shape
    pixels = images * height * width
    if out.numel() == 0:
        return
    per_group = outputs // groups
    across_groups = groups > 1 and per_group < 16
    channels = 32 if across_groups else min(128, max(16, triton.next_power_of_2(per_group)))
    channel_blocks = (
        triton.cdiv(outputs, channels) if across_groups else groups * triton.cdiv(per_group, channels)
    )
    # Laid out like this, a program reads them in one go. Packed weights are; others are copied.
    taps = weight.permute(2, 3, 1, 0).contiguous()
    with torch.cuda.device_of(x):
        chain_kernel[(triton.cdiv(pixels, PIXELS.value) * channel_blocks,)](
            x,
            taps,
            taps if bias is None else bias.contiguous(),
            out,
            *x.stride(),
            *out.stride(),
            *stride,
            *dilation,
            pixels,
            height,
            width,
            outputs,
            per_group,
            depth,
            *kernel,
            HAS_BIAS=bias is not None,
            CHANNELS_LAST=x.stride(1) == 1,
            ACROSS_GROUPS=across_groups,
            CHANNELS=channels,
            # One warp: a thread then keeps whole columns of the block, and nothing goes through shared memory
            # inside the loop. No fusion but the one that is written down.
            num_warps=1,
            num_stages=1,
            enable_fp_fusion=False,
        )
