"""Resizing: a blur before it, and what torch's own antialiased one lacks."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor

from aa_surgery.layers import functional as AF
from aa_surgery.layers.pools import BlurPool

__all__ = ["BlurBeforeResize", "low_passed", "resizable"]


class BlurBeforeResize(BlurPool):
    """`BlurPool` of stride 1 before a resizing, whose maps have as many axes as come.

    One scale factor serves 1-D, 2-D and 3-D maps; the op says no number of axes before it runs.

    >>> BlurBeforeResize("tri-3", (1, 1), (2, 2))(torch.ones(1, 2, 9)).shape
    torch.Size([1, 2, 9])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered map, `(N, C, *spatial)`."""
        return low_passed(x, self._kernel_for(x), self.taps, self.padding_mode)


def low_passed(x: Tensor, kernel: Tensor, taps: AF.Filters, padding_mode: str) -> Tensor:
    """Filter `(N, C, *spatial)`; of another number of axes than the kernel's, each by its first."""
    axes = x.ndim - 2
    if axes != kernel.ndim - 2:
        line = kernel.flatten(3).sum(-1) if kernel.ndim > 3 else kernel
        kernel = line
        for _ in range(axes - 1):
            kernel = kernel.unsqueeze(-1) * line
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            taps = (taps[0],) * axes
    return AF.blur(x, kernel, taps, [1] * axes, padding_mode)


def resizable(x: Tensor) -> Tensor:
    """Return `x`, in float32 where `F.interpolate(x, antialias=True)` has no kernel for its dtype.

    On the CPU there is none for the half precisions.

    >>> resizable(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    if x.device.type == "cpu" and (x.dtype == torch.bfloat16 or x.dtype == torch.float16):
        return x.float()
    return x


# A symbolic trace (torch.fx) records one call, not the question about the device.
torch.fx.wrap("resizable")
torch.fx.wrap("low_passed")
