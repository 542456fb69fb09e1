"""What is made of chains: convolutions, transposed convolutions and matrix products, on any device.

The canonical chain of an output, one rounding per step:

    acc = 0
    for i in range(kh): for j in range(kw): for c in range(C // groups):
        acc = fma(x[c, i, j], w[o, c, i, j], acc)
    y = acc + bias

A transposed convolution is, for each of its phases, an ordinary convolution with every stride-th tap, and a
matrix product is a convolution with one tap. Taps of zeros change no value but -0, of which nothing is left
once a bias is added that is not -0: so phases may have such taps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from overlap_tool.errors import ExactnessError
from overlap_tool.kernels import unnumbered
from overlap_tool.kernels.form import NOTHING, Form, Sides
from overlap_tool.kernels.transposing import channels_first, channels_last, is_quick
from overlap_tool.kernels.trial import OWN, Kernel, Layer, kernel_for
from overlap_tool.kernels.volumes import by_planes

DTYPES = (torch.float32, torch.float64)

BAND_BYTES, FEWEST_ROWS = 4 << 20, 8
"""The bytes of a band's input and output, and its fewest rows: neighbouring bands read some rows twice."""


class _Made(NamedTuple):
    """Something computed from a weight, and the weight's version."""

    weight: ref[Tensor]
    now: tuple[Any, ...]
    made: dict[tuple[Any, ...], Any]


class Prepared:
    """Weights in the order that a kernel reads, kept while the weights live and do not change."""

    def __init__(self) -> None:
        self._known: dict[int, _Made] = {}
        """By the ids of living weights: a dictionary of tensors would be slower to look up."""
        self._memory: set[int] = set()
        """The addresses of all weights so far. Few ops write there; the others need no further check."""

    def clear(self) -> None:
        self._known.clear()
        self._memory.clear()

    def changed(self, tensor: Tensor) -> None:
        """Forget what was made of this memory: writing to `weight.data` does not change the version."""
        storage = tensor.untyped_storage().data_ptr()
        if storage not in self._memory:
            return
        for key, known in list(self._known.items()):
            weight = known.weight()
            if weight is not None and weight.untyped_storage().data_ptr() == storage:
                del self._known[key]

    def get(self, weight: Tensor, how: tuple[Any, ...], make: Callable[[Tensor], Any]) -> Any:
        """What `make` makes of the weight; `how` is everything else that it depends on."""
        if weight.is_inference():  # an inference tensor has no version
            return make(weight)
        fake = isinstance(weight, FakeTensor)  # a fake tensor has no address
        now = weight._version, 0 if fake else weight.data_ptr(), weight.dtype
        key = id(weight)
        known = self._known.get(key)
        if known is None or known.weight() is not weight or known.now != now:
            gone = ref(weight, lambda gone: self._forget(key, gone))
            known = self._known[key] = _Made(gone, now, {})
            if not fake:
                self._memory.add(weight.untyped_storage().data_ptr())
        if how not in known.made:
            known.made[how] = make(weight.detach())
        return known.made[how]

    def _forget(self, key: int, gone: Any) -> None:
        """Remove a weight that was deleted; another one may have the same id already."""
        if key in self._known and self._known[key].weight is gone:
            del self._known[key]

    def packed(
        self, weight: Tensor, groups: int, how: tuple[Any, ...], arrange: Callable[[Tensor], Tensor]
    ) -> Callable[[Kernel], Any]:
        """The kernel's form of a weight arranged as (out, in / groups, height, width)."""
        return lambda kernel: self.get(
            weight, (kernel, groups, *how), lambda w: kernel.pack(arrange(w), groups)
        )


def convolution(
    prepared: Prepared,
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
    """`aten.convolution` by chains; the output has the memory layout of the library's."""
    rest = transposed, output_padding, groups
    if not _fits(x, weight, bias, weight.shape[0 if transposed else 1] * (1 if transposed else groups)):
        return _own_error(torch.convolution, x, weight, bias, stride, padding, dilation, *rest)
    if x.ndim == 3:  # one-dimensional input is a map of one row
        y = convolution(
            prepared, x.unsqueeze(2), weight.unsqueeze(2), bias, (1, *stride), (0, *padding), (1, *dilation),
            transposed, (0, *output_padding), groups,
        )  # fmt: skip
        return y.squeeze(2)
    _check(x, "a convolution")
    axes = tuple(stride), tuple(padding), tuple(dilation), tuple(output_padding)
    if _is_empty(x.shape[2:], weight.shape[2:], *axes, transposed):
        return _own_error(torch.convolution, x, weight, bias, stride, padding, dilation, *rest)
    if x.ndim == 5:
        return by_planes(
            partial(convolution, prepared),
            lambda weight, taps, fold: prepared.get(weight, ("taps", taps, transposed, groups), fold),
            x, weight, bias, stride, padding, dilation, *rest,
        )  # fmt: skip
    form = Form(_pair(stride), _pair(dilation), groups)
    if transposed:
        read = x if _channels_last(x) else channels_last(x)  # once for all phases
        y = _transposed(read, weight, bias, form, _pair(padding), output_padding, prepared)
    else:
        packed = prepared.packed(weight, groups, (), lambda w: w)
        down, across = padding
        form = Form(form.stride, form.dilation, groups, ((down, down), (across, across)))
        if not _channels_last(x) and is_quick(x) and down <= dilation[0] * (weight.shape[2] - 1):
            return _by_bands(x, weight.shape, packed, bias, form)
        y = _convolve(x, weight.shape, packed, bias, form)
    return y if _channels_last(x) else channels_first(y)


@lru_cache(1024)
def _is_empty(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    output_padding: tuple[int, ...],
    transposed: bool,
) -> bool:
    """Whether there are no outputs."""
    axes = zip(sizes, kernel, stride, padding, dilation, output_padding, strict=True)
    return any(
        (n - 1) * s - 2 * p + d * (k - 1) + o < 0 if transposed else n + 2 * p <= d * (k - 1)
        for n, k, s, p, d, o in axes
    )


class Phase(NamedTuple):
    """Every stride-th output of a transposed convolution on one axis, counted without padding.

    Output stride * q + r reads inputs q + offset, q + offset + step, ... through the taps in `indices`.
    """

    r: int
    indices: tuple[int, ...]
    offset: int
    step: int

    @property
    def last(self) -> int:
        return self.offset + (len(self.indices) - 1) * self.step


def phases(kernel: int, stride: int, dilation: int) -> list[Phase]:
    """Output stride * q + r is fed by input q + e through tap i, where stride * e = r - dilation * i."""
    found = []
    for r in range(stride):
        fed = [(divmod(r - dilation * i, stride), i) for i in range(kernel)]
        taps = sorted((e, i) for (e, rest), i in fed if rest == 0)
        step = taps[1][0] - taps[0][0] if len(taps) > 1 else 1
        found.append(Phase(r, tuple(i for _, i in taps), taps[0][0] if taps else 0, step))
    return found


class TransposedForm(NamedTuple):
    """A transposed convolution, by the phases of its rows and columns."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    rows: list[Phase]
    columns: list[Phase]
    groups: int
    prepared: Prepared


def _transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: Form,
    padding: tuple[int, int],
    output_padding: Sequence[int],
    prepared: Prepared,
) -> Tensor:
    kernel = weight.shape[-2:]
    stride, dilation, groups = form.stride, form.dilation, form.groups
    sizes = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, s, p, d, k, o in zip(
            x.shape[-2:], stride, padding, dilation, kernel, output_padding, strict=True
        )
    ]
    y = torch.empty(
        (x.shape[0], weight.shape[1] * groups, *sizes),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    rows, columns = (phases(k, s, d) for k, s, d in zip(kernel, stride, dilation, strict=True))
    if bias is not None:  # a bias of -0 would reveal whether zeros were added, which depends on the device
        bias = prepared.get(bias, ("of +0",), lambda b: b + 0)
    layer = TransposedForm(weight, bias, stride, padding, rows, columns, groups, prepared)
    together = groups == 1 and dilation == (1, 1) and _together(x, y.shape[1], rows, columns)
    (_phases_together if together else _phases_apart)(layer, x, y)
    return y


def _phases_apart(layer: TransposedForm, x: Tensor, y: Tensor) -> None:
    """One convolution for every phase, directly into its place in `y`."""
    weight, bias, stride, padding, rows, columns, groups, prepared = layer
    todo = []
    for vertical in rows:
        for horizontal in columns:
            both = vertical, horizontal
            # the first q of the phase with an output in y, and that output
            firsts = [-((phase.r - p) // s) for phase, p, s in zip(both, padding, stride, strict=True)]
            starts = [
                s * q + phase.r - p for s, q, phase, p in zip(stride, firsts, both, padding, strict=True)
            ]
            part = y[..., starts[0] :: stride[0], starts[1] :: stride[1]]
            if part.numel() == 0:
                continue
            if not (vertical.indices and horizontal.indices):  # no input feeds this phase
                part.copy_(torch.zeros_like(part) if bias is None else bias[:, None, None].expand_as(part))
                continue

            def arrange(w: Tensor, both: tuple[Phase, Phase] = both) -> Tensor:
                taps = w[:, :, list(both[0].indices)][..., list(both[1].indices)]
                return taps.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)

            packed = prepared.packed(weight, groups, ("phase", stride, both), arrange)
            shape = y.shape[1], weight.shape[0] // groups, len(vertical.indices), len(horizontal.indices)
            around = _around(x, firsts, part.shape[-2:], *((phase.offset, phase.last) for phase in both))
            form = Form(dilation=(vertical.step, horizontal.step), groups=groups, padding=around)
            todo.append((shape, packed, form, part))
    widest = _widest([form.padding for _, _, form, _ in todo]) if todo and x.device.type == "cpu" else NOTHING
    x, _ = Form(padding=widest).padded(x)  # padded once, if the kernel does not pad itself
    for shape, packed, form, part in todo:
        _convolve(x, shape, packed, bias, form._replace(padding=_less(form.padding, widest)), part)


def _widest(paddings: Sequence[Sides]) -> Sides:
    """The largest padding on each side."""
    down, across = (
        (max(0, *(before for before, _ in axis)), max(0, *(after for _, after in axis)))
        for axis in zip(*paddings, strict=True)
    )
    return down, across


def _less(padding: Sides, there: Sides) -> Sides:
    """The difference to padding that is already there; negative if it is too much."""
    down, across = ((a - c, b - d) for (a, b), (c, d) in zip(padding, there, strict=True))
    return down, across


def _together(x: Tensor, channels: int, rows: list[Phase], columns: list[Phase]) -> bool:
    """Whether a single convolution of all phases, with zeros for missing taps, is less work.

    Work is counted in whole vectors or blocks of output channels. The choice depends on the layer, never on
    the size.
    """
    filled = OWN[x.device.type].filled
    apart = sum(len(v.indices) * len(h.indices) for v in rows for h in columns) * filled(channels, x.dtype)
    (top, bottom), (left, right) = _span(rows), _span(columns)
    area = (bottom - top + 1) * (right - left + 1)
    return area * filled(channels * len(rows) * len(columns), x.dtype) < apart


def _span(axis: list[Phase]) -> tuple[int, int]:
    fed = [phase for phase in axis if phase.indices]
    return min(phase.offset for phase in fed), max(phase.last for phase in fed)


def _phases_together(layer: TransposedForm, x: Tensor, y: Tensor) -> None:
    """One convolution whose channels are the phases, which are then moved to their places."""
    weight, bias, stride, padding, rows, columns, _, prepared = layer
    channels = y.shape[1]
    (top, bottom), (left, right) = _span(rows), _span(columns)
    shape = stride[0] * stride[1] * channels, weight.shape[0], bottom - top + 1, right - left + 1

    def arrange(w: Tensor) -> Tensor:
        taps = w.new_zeros(*stride, channels, *shape[1:])
        for vertical in rows:
            for horizontal in columns:
                for m, i in enumerate(vertical.indices, vertical.offset - top):
                    for n, j in enumerate(horizontal.indices, horizontal.offset - left):
                        taps[vertical.r, horizontal.r, :, :, m, n] = w[:, :, i, j].T
        return taps.flatten(0, 2)

    packed = prepared.packed(weight, 1, ("phases", *stride), arrange)
    firsts = [p // s for p, s in zip(padding, stride, strict=True)]
    counts = [
        -(-(p + n) // s) - first for n, p, s, first in zip(y.shape[-2:], padding, stride, firsts, strict=True)
    ]
    times = stride[0] * stride[1]
    repeated = None if bias is None else prepared.get(bias, ("repeated", times), lambda b: b.repeat(times))
    around = _around(x, firsts, counts, (top, bottom), (left, right))
    found = _convolve(x, shape, packed, repeated, Form(padding=around))
    # (images, rows of phases, columns of phases, channels, q, q) to (images, channels, q and r, q and r)
    found = found.unflatten(1, (*stride, channels)).permute(0, 4, 1, 5, 2, 3).flatten(3, 4).flatten(1, 2)
    cut = [p - s * first for p, s, first in zip(padding, stride, firsts, strict=True)]
    inside = found[:, cut[0] : cut[0] + y.shape[2], cut[1] : cut[1] + y.shape[3]]
    y.copy_(inside.permute(0, 3, 1, 2))


def _around(
    x: Tensor, firsts: Sequence[int], counts: Sequence[int], rows: tuple[int, int], columns: tuple[int, int]
) -> Sides:
    """The padding with which `counts` outputs from `firsts` on read taps within these offsets."""
    down, across = (
        (-(q + first), q + n - 1 + last - (have - 1))
        for q, n, (first, last), have in zip(firsts, counts, (rows, columns), x.shape[-2:], strict=True)
    )
    return down, across


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` for matrices: every row of `a` is a pixel, every column of `b` a channel."""
    if not _fits(a, b, None, b.shape[0]):
        return _own_error(torch.mm, a, b)
    _check(a, "a matrix product")
    x = a.contiguous().T[None, :, None]
    y = a.new_empty(a.shape[0], b.shape[1])
    weight = b.T[..., None, None].detach()
    _convolve(x, weight.shape, lambda kernel: kernel.pack(weight, 1), None, Form(), y.T[None, :, None])
    return y


def batched_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` for batches of matrices: a grouped convolution, one group per matrix."""
    if not _fits(a.transpose(1, 2), b, None, b.shape[1]) or a.shape[0] != b.shape[0]:
        return _own_error(torch.bmm, a, b)
    _check(a, "a matrix product")
    batch, m, k = a.shape
    n = b.shape[2]
    x = a.transpose(0, 1).reshape(m, batch * k).T[None, :, None]
    y = a.new_empty(m, batch * n)
    weight, out = b.transpose(1, 2).reshape(batch * n, k, 1, 1).detach(), y.T[None, :, None]
    _convolve(x, weight.shape, lambda kernel: kernel.pack(weight, batch), None, Form(groups=batch), out)
    return y.view(m, batch, n).transpose(0, 1).contiguous()


def _convolve(
    x: Tensor,
    shape: Sequence[int],
    packed: Callable[[Kernel], Any],
    bias: Tensor | None,
    form: Form,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve with weights of this shape, packed for the kernel that is chosen for the layer."""
    kernel = unnumbered if isinstance(x, FakeTensor) else kernel_for(Layer.of(x, shape, form))
    return kernel.convolve(x, packed(kernel), bias, form, out)


def _by_bands(
    x: Tensor, shape: Sequence[int], packed: Callable[[Kernel], Any], bias: Tensor | None, form: Form
) -> Tensor:
    """Convolve a whole channels-first map in bands of rows, each converted to the kernel's layout, so that
    intermediate results stay in the cache."""
    (top, _), across = form.padding
    step, reach = form.stride[0], form.dilation[0] * (shape[2] - 1)
    images, channels, rows, columns = x.shape
    y = x.new_empty(form.shape(x, shape))
    row = images * x.element_size() * (step * channels * columns + y.shape[1] * y.shape[3])
    band = max(FEWEST_ROWS, BAND_BYTES // row)
    kernel = kernel_for(Layer.of(x, shape, form))
    weights = packed(kernel)
    for start in range(0, y.shape[2], band):
        stop = min(start + band, y.shape[2])
        first, end = start * step - top, (stop - 1) * step + reach + 1 - top
        missing = max(0, -first), max(0, end - rows)
        read = channels_last(x[:, :, max(0, first) : min(end, rows)])
        made = kernel.convolve(read, weights, bias, form._replace(padding=(missing, across)))
        channels_first(made, y[:, :, start:stop])
    return y


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> bool:
    """Whether the operands match, and there is something to compute."""
    return (
        x.ndim == weight.ndim
        and x.shape[1] == channels
        and x.numel() > 0
        and weight.numel() > 0
        and weight.dtype == x.dtype
        and weight.device == x.device
        and (bias is None or (bias.dtype == x.dtype and bias.device == x.device))
    )


def _own_error(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """The library's own error for operands that do not match; its result, if that is empty or integer."""
    result = function(*args)
    if result.numel() > 0 and result.is_floating_point() and all(0 not in t.shape for t in args[:2]):
        raise ExactnessError(
            f"{function.__name__} of {', '.join(str(tuple(t.shape)) for t in args[:2])}",
            "there is no exact kernel for these operands",
            f"Use {ExactnessError.STOCK}",
        )
    return result


def _check(x: Tensor, what: str) -> None:
    if x.dtype not in DTYPES:
        raise ExactnessError(
            f"{what} of {str(x.dtype).removeprefix('torch.')}",
            "the exact kernels compute in float32 and float64 only",
            f"Convert the model with .float(), or use {ExactnessError.STOCK}",
        )
    if x.device.type not in ("cpu", "cuda"):
        raise ExactnessError(
            f"{what} on {x.device.type}",
            "the exact kernels run on CPU and CUDA",
            f"Use {ExactnessError.STOCK}",
        )


def _channels_last(x: Tensor) -> bool:
    """Whether channels are adjacent in memory, also in a piece of a larger map."""
    return x.stride(1) == 1 and x.stride(3) >= x.shape[1]


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second
