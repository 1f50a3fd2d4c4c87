"""Low-pass filtering and dense pooling on tensors `(N, C, *spatial)`, 1-D to 3-D."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from aa_surgery.errors import InputError
from aa_surgery.filters import Taps
from aa_surgery.layers.average import dense_avg_pool
from aa_surgery.layers.fast_blur import (
    Axis,
    blur_slices,
    blur_with_gradient,
    convolve,
    fits_slices,
    folds,
)
from aa_surgery.layers.fast_max import max_slices, max_slices_with_gradient
from aa_surgery.layers.memory import memory_format_of
from aa_surgery.layers.padding import PADDING_MODES, PaddingMode, lowest, pad_axes, pad_to
from aa_surgery.layers.plain import plain_blur, subsample
from aa_surgery.layers.windows import Ints, border_of_pool, pairs

__all__ = [
    "PADDING_MODES",
    "PaddingMode",
    "blur",
    "by_image",
    "canonical_form",
    "dense_avg_pool",
    "dense_max_pool",
    "pad_to",
]

if TYPE_CHECKING:
    Filters = Sequence[Taps]
else:
    Filters = Any  # TorchScript reads the filters from the kernel

# Below this many samples the fixed cost of many small ops outweighs the memory traffic they save.
_PAYS_FROM = 1 << 20
# Samples of one image from which a batch is pooled image by image.
_LARGE_IMAGE = 1 << 19

_canonical: ContextVar[bool] = ContextVar("aa_surgery_canonical", default=False)


@contextmanager
def canonical_form() -> Iterator[None]:
    """Run every blur in its plainest form inside: pad, then one depthwise convolution.

    The faster forms compute the same numbers from slices and sums, in which an observer of ATen
    ops (the audit) cannot recognise the filter.
    """
    token = _canonical.set(True)
    try:
        yield
    finally:
        _canonical.reset(token)


def blur(
    x: Tensor,
    kernel: Tensor,
    taps: Filters,
    stride: Ints,
    padding_mode: str = "reflect",
    before: Ints | None = None,
    after: Ints | None = None,
) -> Tensor:
    r"""Low-pass `x` and keep every `stride`-th sample of each axis.

    $y[i] = \sum_n h_n\, x[i s + n - b]$ in each axis, `b` being `before`. Maps that are not of
    numbers to be averaged (integers, booleans) are subsampled alone.

    Args:
        x: `(N, C, *spatial)`, or one image, `(C, *spatial)`.
        kernel: The outer product of `taps`, `(1, 1, *lengths)`, any float dtype.
        taps: One filter an axis.
        stride: One stride an axis.
        padding_mode: `"reflect"`, `"replicate"`, `"zeros"` or `"circular"`; where the map is
            too small for it, the border falls back to the nearest sample.
        before: The border (px) on the left, one an axis; `(length - 1) // 2` by default, which
            keeps the grid of an odd filter. A negative one is cropped.
        after: The border on the right; by default the rest of `length - 1`, which makes the output
            `ceil(size / stride)`.

    Returns:
        `(N, C, *size)` of `floor((size + before + after - length) / stride) + 1` samples an axis,
        dtype and memory format of `x`.

    Raises:
        InputError: `x` has another number of axes, or an average of integers is asked for.
    """
    axes = len(stride)
    if x.ndim != axes + 1 and x.ndim != axes + 2:
        raise InputError(
            f"blur over {axes} spatial axes needs {axes + 2} axes in all, or {axes + 1} of one "
            f"image, got {x.ndim}. Give maps of that shape."
        )
    maps = x if x.ndim == axes + 2 else x.unsqueeze(0)
    if not (x.is_floating_point() or x.is_complex()):
        if after is not None:
            raise InputError(
                "blur in the place of an average: a map of integers or booleans has no mean. "
                "Give it as floating point: x.float()."
            )
        y = subsample(maps, stride)
    elif torch.jit.is_scripting():  # type: ignore[attr-defined]
        y = plain_blur(maps, kernel, stride, padding_mode, before, after)
    else:
        y = _blur(maps, kernel, taps, stride, padding_mode, before, after)
    return y if x.ndim == axes + 2 else y.squeeze(0)


def _blur(
    x: Tensor,
    kernel: Tensor,
    taps: Sequence[Taps],
    stride: Ints,
    padding_mode: str,
    before: Ints | None,
    after: Ints | None,
) -> Tensor:
    """Blur in the fastest form for `x`."""
    if before is None:
        before = [(len(t) - 1) // 2 for t in taps]
    if after is None:
        after = [len(t) - 1 - b for t, b in zip(taps, before, strict=True)]
    if all(t == (1.0,) for t in taps) and not any(before) and max(after) <= 0:
        return _subsample(x, stride, after)
    if not _in_eager_cpu_float(x) or kernel.requires_grad or x.numel() < _PAYS_FROM:
        return plain_blur(x, kernel, stride, padding_mode, before, after)
    axes = tuple(
        Axis(t, s, b, a, n, padding_mode)
        for t, s, b, a, n in zip(taps, stride, before, after, x.shape[2:], strict=True)
    )
    slices = _slices_pay(axes)
    if _needs_gradient(x) and _own_gradient_pays(axes):
        return blur_with_gradient(x, kernel, axes, slices)
    if _needs_gradient(x) or not slices:
        return convolve(x, kernel, axes)
    return blur_slices(x, axes)


def _in_eager_cpu_float(x: Tensor) -> bool:
    """Whether the forms of `fast_blur` and `fast_max` may stand in for the plain ones."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.ndim == 4
        and not _canonical.get()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and forward_ad.unpack_dual(x).tangent is None
    )


def _slices_pay(axes: Sequence[Axis]) -> bool:
    """Whether sums of slices are faster than the convolution, as measured in performance.md."""
    return (
        all(len(a.taps) <= 3 for a in axes)
        and any(a.stride > 1 for a in axes)
        and axes[0].mode != "zeros"
        and fits_slices(axes)
    )


def _own_gradient_pays(axes: Sequence[Axis]) -> bool:
    """Whether the gradient that needs nothing saved is faster: one border output a side."""
    return folds(axes) and axes[0].mode != "zeros" and all(0 < a.before <= a.stride for a in axes)


def _subsample(x: Tensor, stride: Ints, after: Ints) -> Tensor:
    """Keep every `stride`-th sample but those that `after` crops: the blur of one tap."""
    if not any(after) and all(s == 1 for s in stride):
        return x
    memory_format = memory_format_of(x)
    x = subsample(pad_axes(x, pairs([0] * len(after), after), "constant"), stride)
    return x.contiguous(memory_format=memory_format)


def dense_max_pool(
    x: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool = False,
) -> Tensor:
    """Max-pool `x` at stride 1, over the positions that sampling by `stride` reaches.

    Every `stride`-th sample of the result is `F.max_pool*d` with these arguments, whatever
    `ceil_mode` says, so that subsampling it gives the original's shape and values.

    Args:
        x: `(N, C, *spatial)`, or one image, `(C, *spatial)`.
        kernel_size: Window, one an axis; so are `stride`, `padding` and `dilation`.
        stride: The stride of the pool that this one makes dense.
        padding: Border of -inf on both sides.
        dilation: Distance between the window's samples.
        ceil_mode: Whether the last window may reach past the border.

    Returns:
        `(N, C, *dense)`.
    """
    after = border_of_pool(x, kernel_size, stride, padding, dilation, ceil_mode)
    cut = [0] * len(kernel_size)
    for i, a in enumerate(after):
        cut[i] = a - padding[i]
    if max(cut) > 0:
        if max(dilation) == 1 and all([2 * a < k for a, k in zip(after, kernel_size)]):  # noqa: B905, C419
            padding = after  # on both sides, which spares a padded copy; then the left is cut
        else:
            x = pad_axes(x, pairs(padding, after), "constant", lowest(x))
            padding, cut = [0] * len(cut), [0] * len(cut)
    y = _max_pool(x, kernel_size, padding, dilation)
    for i, width in enumerate(cut):
        if width > 0:
            dim = y.ndim - len(cut) + i
            y = y.narrow(dim, width, y.shape[dim] - width)
    return y


def _max_pool(x: Tensor, kernel_size: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """Max-pool at stride 1, in the fastest form for `x`."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if _in_eager_cpu_float(x) and _max_slices_pay(x, kernel_size, padding, dilation):
            form = max_slices_with_gradient if _needs_gradient(x) else max_slices
            return form(x, kernel_size[0], padding[0] == 1)
    if len(kernel_size) == 1:
        return F.max_pool1d(x, kernel_size, 1, padding, dilation)
    if len(kernel_size) == 3:
        return F.max_pool3d(x, kernel_size, 1, padding, dilation)
    return F.max_pool2d(x, kernel_size, 1, padding, dilation)


def by_image(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `function(x)`, computed image by image where that is faster.

    Args:
        function: Pooling of `(N, C, H, W)`, each image by itself.
        x: `(N, C, H, W)`.

    What lies between a dense maximum and its blur is as large as the map. Of one image it stays
    in the cache, and the allocator hands it out again without fresh pages.
    """
    if not _in_eager_cpu_float(x) or _needs_gradient(x):
        return function(x)
    if len(x) <= 1 or x[0].numel() < _LARGE_IMAGE:
        return function(x)
    first = function(x[:1])
    shape = (len(x), *first.shape[1:])
    out = torch.empty(shape, dtype=first.dtype, memory_format=memory_format_of(x))
    out[:1] = first
    for n in range(1, len(x)):
        out[n : n + 1] = function(x[n : n + 1])
    return out


def _max_slices_pay(
    x: Tensor, kernel_size: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> bool:
    """Whether maxima of slices can stand in for `F.max_pool2d`, and are faster."""
    window = (*kernel_size, *padding)
    fits = window in ((2, 2, 0, 0), (3, 3, 0, 0), (3, 3, 1, 1)) and tuple(dilation) == (1, 1)
    if not fits or min(x.shape[2:]) < kernel_size[0]:
        return False
    return x.is_contiguous() or not _needs_gradient(x)


def _needs_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


# A symbolic trace (torch.fx) records one call to each of these, not the arithmetic on sizes inside.
torch.fx.wrap("blur")
torch.fx.wrap("dense_max_pool")
torch.fx.wrap("dense_avg_pool")
