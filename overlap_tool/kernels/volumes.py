"""Convolutions of volumes, by those of their planes.

An output plane reads one input plane through each tap of the kernel's depth. These planes, side by side in
the channels, are the input of a convolution of images with the same chain:

    acc = 0
    for i in range(kh): for j in range(kw): for d in range(kd): for c in range(C // groups):
        acc = fma(x[c, d, i, j], w[o, c, d, i, j], acc)
    y = acc + bias

Taps that read beyond the volume are omitted, and so are those of a transposed convolution that feed other
planes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Taps = tuple[int, ...]

PART = 8
"""Planes side by side take at most one part in so many of the input's memory at once."""


def by_planes(
    of_images: Callable[..., Tensor],
    folded: Callable[[Tensor, Taps, Callable[[Tensor], Tensor]], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """`aten.convolution` of volumes. `of_images` takes its arguments, for images; `folded` caches rearranged
    weights."""
    depth, kernel = x.shape[2], weight.shape[2]
    s, p, d = stride[0], padding[0], dilation[0]
    if transposed:
        planes = (depth - 1) * s - 2 * p + d * (kernel - 1) + output_padding[0] + 1
    else:
        planes = (depth + 2 * p - d * (kernel - 1) - 1) // s + 1

    def plane_of(tap: int, output: int) -> int | None:
        """The input plane that an output plane reads through a tap, if there is one."""
        plane, rest = divmod(output + p - d * tap, s) if transposed else (output * s - p + d * tap, 0)
        return plane if rest == 0 and 0 <= plane < depth else None

    made: Tensor | None = None
    in_order = range(kernel)[:: -1 if transposed else 1]  # from the first plane read to the last
    for outputs, taps in _alike(planes, in_order, plane_of):
        # without a tap, one of zeros gives the bias alone
        weights = folded(weight, taps, partial(_folded, taps or (0,), transposed, groups))
        for part in outputs.split(max(1, depth // (PART * max(1, len(taps))))):
            read = [[plane_of(tap, int(output)) for output in part] for tap in taps]
            given = _side_by_side(x, read, groups) if taps else _nothing(x, len(part))
            found = of_images(
                given, weights, bias, stride[1:], padding[1:], dilation[1:], transposed, output_padding[1:],
                groups,
            ).unflatten(0, (len(x), -1)).transpose(1, 2)  # fmt: skip
            if made is None:
                made = found.new_empty((*found.shape[:2], planes, *found.shape[3:]))
            made[:, :, part] = found
    assert made is not None
    return made


def _alike(
    planes: int, in_order: Sequence[int], plane_of: Callable[[int, int], int | None]
) -> Iterator[tuple[Tensor, Taps]]:
    """The output planes that read through the same taps, and these taps."""
    found: dict[Taps, list[int]] = {}
    for output in range(planes):
        taps = tuple(tap for tap in in_order if plane_of(tap, output) is not None)
        found.setdefault(taps, []).append(output)
    return ((torch.tensor(outputs), taps) for taps, outputs in found.items())


def _folded(taps: Taps, transposed: bool, groups: int, weight: Tensor) -> Tensor:
    """A weight for planes side by side: its depth among its input channels."""
    weight = weight[:, :, list(taps)]
    if not transposed:
        return weight.transpose(1, 2).flatten(1, 2)
    return weight.unflatten(0, (groups, -1)).permute(0, 3, 1, 2, 4, 5).flatten(0, 2)


def _side_by_side(x: Tensor, read: Sequence[Sequence[Any]], groups: int) -> Tensor:
    """For each output plane an image, whose channels are those of all planes that it reads, channels last."""
    images, channels, _, *size = x.shape
    given = x.new_empty((images, len(read[0]), *size, groups, len(read), channels // groups))
    for tap, planes in enumerate(read):  # with the distance of the outputs that read them
        apart = planes[1] - planes[0] if len(planes) > 1 else 1
        through = x[:, :, planes[0] : planes[-1] + 1 : apart].unflatten(1, (groups, -1))
        given[..., tap, :] = through.permute(0, 3, 4, 5, 1, 2)
    return given.flatten(4).flatten(0, 1).permute(0, 3, 1, 2)


def _nothing(x: Tensor, outputs: int) -> Tensor:
    return x.new_zeros((len(x) * outputs, x.shape[1], *x.shape[3:]))
