"""Dense average pooling of tensors `(N, C, *spatial)`, 1-D to 3-D."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.layers.padding import pad_axes
from aa_surgery.layers.windows import Ints, border_of_pool, pairs

__all__ = ["dense_avg_pool"]


def dense_avg_pool(
    x: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average-pool `x` at stride 1, over the positions that sampling by `stride` reaches.

    As `dense_max_pool`, for `F.avg_pool*d`: every `stride`-th sample is the original's.

    Returns:
        `(N, C, *dense)`.
    """
    ones = [1] * len(kernel_size)
    after = border_of_pool(x, kernel_size, stride, padding, ones, ceil_mode)
    if divisor_override is None and after == list(padding):
        return _average(x, kernel_size, padding, count_include_pad)
    sums = _window_sums(pad_axes(x, pairs(padding, after), "constant"), kernel_size)
    if divisor_override is not None:
        return sums / divisor_override
    for axis, k in enumerate(kernel_size):
        dim = x.ndim - len(kernel_size) + axis
        n, p = x.shape[dim], padding[axis]
        start = torch.arange(sums.shape[dim], device=x.device) - p
        end = (start + k).clamp(max=n + p)
        if not count_include_pad:
            start, end = start.clamp(min=0), end.clamp(max=n)
        shape = [1] * sums.ndim
        shape[dim] = -1
        sums = sums / (end - start).to(x.dtype).view(shape)
    return sums


def _average(x: Tensor, kernel: Ints, padding: Ints, count_include_pad: bool = True) -> Tensor:
    """Average at stride 1 over one to three axes."""
    if len(kernel) == 1:
        return F.avg_pool1d(x, kernel, 1, padding, False, count_include_pad)
    if len(kernel) == 3:
        return F.avg_pool3d(x, kernel, 1, padding, False, count_include_pad)
    return F.avg_pool2d(x, kernel, 1, padding, False, count_include_pad)


def _window_sums(x: Tensor, kernel: Ints) -> Tensor:
    count = 1
    for k in kernel:
        count *= k
    return _average(x, kernel, [0] * len(kernel)) * count
