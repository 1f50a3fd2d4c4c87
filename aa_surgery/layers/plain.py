"""The blur as TorchScript reads it: pad, then one depthwise convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from aa_surgery.layers.padding import pad_to
from aa_surgery.layers.windows import Ints

__all__ = ["plain_blur"]


def plain_blur(
    x: Tensor,
    kernel: Tensor,
    stride: Ints,
    padding_mode: str,
    before: Ints | None = None,
    size: Ints | None = None,
) -> Tensor:
    """Return `functional.blur` of `x`, `(N, C, *spatial)`; the kernel's shape gives the lengths."""
    left: list[int] = []
    right: list[int] = []
    for i, s in enumerate(stride):
        length = kernel.shape[2 + i]
        b = (length - 1) // 2 if before is None else before[i]
        a = length - 1 - b
        if size is not None:
            a = (size[i] - 1) * s + length - b - x.shape[2 + i]
            if -s < a and a < 0:
                a = 0  # fewer samples than a stride need no cropping
        left.append(b)
        right.append(a)
    x = pad_to(x, left, right, padding_mode)
    channels = x.shape[1]
    shape = list(kernel.shape)
    shape[0] = channels
    weight = kernel.to(x.dtype).expand(shape)
    if len(stride) == 1:
        return F.conv1d(x, weight, None, stride, 0, 1, channels)
    if len(stride) == 3:
        return F.conv3d(x, weight, None, stride, 0, 1, channels)
    return F.conv2d(x, weight, None, stride, 0, 1, channels)
