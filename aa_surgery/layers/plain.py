"""The blur in its plainest form, as graphs have it: pad, then one depthwise convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from aa_surgery.layers.padding import pad_to
from aa_surgery.layers.windows import Ints, channels_of, known_sizes

__all__ = ["plain_blur", "subsample"]


def plain_blur(
    x: Tensor,
    kernel: Tensor,
    stride: Ints,
    padding_mode: str,
    before: Ints | None = None,
    after: Ints | None = None,
) -> Tensor:
    """Return `functional.blur` of `x`, `(N, C, *spatial)`; the kernel's shape gives the lengths.

    Neither borders nor kernel depend on the map's size, so that a graph of this is for every size.
    """
    left: list[int] = []
    right: list[int] = []
    for i in range(len(stride)):
        length = kernel.shape[2 + i]
        left.append((length - 1) // 2 if before is None else before[i])
        right.append(length - 1 - left[i] if after is None else after[i])
    padding = [0] * len(stride)
    if padding_mode == "zeros" and left == right and min(left) >= 0:
        padding = left  # a border of zeros is left to the convolution
    else:
        x = pad_to(x, left, right, padding_mode)
    channels = channels_of(x)
    if kernel.dtype != x.dtype:
        kernel = kernel.to(x.dtype)
    shape = [channels, 1]
    shape += known_sizes(kernel, len(stride))
    weight = kernel.expand(shape)
    if len(stride) == 1:
        return F.conv1d(x, weight, None, stride, padding, 1, channels)
    if len(stride) == 3:
        return F.conv3d(x, weight, None, stride, padding, 1, channels)
    return F.conv2d(x, weight, None, stride, padding, 1, channels)


def subsample(x: Tensor, stride: Ints) -> Tensor:
    """Keep every `stride`-th sample of each axis of `(N, C, *spatial)`."""
    if len(stride) == 1:
        return x[:, :, :: stride[0]]
    if len(stride) == 3:
        return x[:, :, :: stride[0], :: stride[1], :: stride[2]]
    return x[:, :, :: stride[0], :: stride[1]]
