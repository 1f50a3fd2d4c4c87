"""The phases of a map, and of a kernel: a strided convolution is a dense one on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["phase_kernel", "split_phases"]


def split_phases(x: Tensor, stride: Sequence[int]) -> Tensor:
    r"""Split a map into the `P = prod(stride)` maps that sampling by `stride` can give.

    $y_{c,p}[i] = x_c[s i + p]$, the offset along the last axis running fastest. `flatten(1, 2)` of
    it is interleaved by channel: all phases of the first channel, then all of the second.
    Samples that make no whole step are dropped.

    Source: Tsai et al., "Making CNN Shift Invariant Again and Again", section 3.2.

    Args:
        x: `(N, C, *spatial)`.
        stride: One number an axis.

    Returns:
        `(N, C, P, *floor(spatial / stride))`.

    >>> split_phases(torch.arange(4.0).view(1, 1, 2, 2), (2, 2)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    axes = len(stride)
    for i, step in enumerate(stride, start=2):
        if torch.compiler.is_compiling():
            x = x.unfold(i, step, step)  # exports for every size; its backward is slow
        else:
            whole = x.shape[i] - x.shape[i] % step
            x = x.narrow(i, 0, whole).unflatten(i, (-1, step)).movedim(i + 1, -1)
    x = x.movedim(tuple(range(2 + axes, 2 + 2 * axes)), tuple(range(2, 2 + axes)))
    return x.contiguous().flatten(2, 1 + axes)


def phase_kernel(weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    r"""Return the kernel with which a dense convolution on the phases is the strided one.

    Tap `t` of dilation `d` reads sample $t d = s q + p$: position `q` of phase `p`.

    Args:
        weight: `(C_out, C, *kernel)`.
        stride: One number an axis.
        dilation: One number an axis.

    Returns:
        `(C_out, C, P, *ceil(span / stride))` with `span = (kernel - 1) * dilation + 1`.

    >>> phase_kernel(torch.tensor([[[1.0, 2, 3]]]), (2,), (1,)).tolist()
    [[[[1.0, 3.0], [2.0, 0.0]]]]
    """
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    sizes = [-(-span // s) * s for span, s in zip(spans, stride, strict=True)]
    spread = weight.new_zeros(*weight.shape[:2], *sizes)
    places = tuple(slice(0, span, d) for span, d in zip(spans, dilation, strict=True))
    spread.movedim((0, 1), (-2, -1))[places] = weight.movedim((0, 1), (-2, -1))
    return split_phases(spread, stride)
