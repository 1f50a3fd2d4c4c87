"""Memory formats of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["memory_format_of"]


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return the channels-last format of `x`, or the contiguous one."""
    for ndim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.ndim == ndim and not x.is_contiguous():
            if x.is_contiguous(memory_format=memory_format):
                return memory_format
    return torch.contiguous_format
