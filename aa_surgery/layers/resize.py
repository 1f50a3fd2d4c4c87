"""What torch's own antialiased resizing lacks."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor

__all__ = ["resizable"]


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
