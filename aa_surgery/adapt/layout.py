"""The layout of weights and images in memory that trains fastest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aa_surgery.evaluation.running import device_of

__all__ = ["channels_last", "to_model"]


def to_model(model: nn.Module, images: Tensor) -> Tensor:
    """Return images on the model's device, laid out as weights are inside `channels_last`."""
    device = device_of(model)
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    return images.to(device).contiguous(memory_format=layout)


@contextmanager
def channels_last(*models: nn.Module) -> Iterator[None]:
    """Lay out the weights as `(N, H, W, C)` inside: on CPUs, several times faster to train."""
    weights = [
        p
        for model in models
        for p in model.parameters()
        if p.ndim == 4 and p.is_contiguous() and p.device.type == "cpu"
    ]
    for p in weights:
        p.data = p.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for p in weights:
            p.data = p.data.contiguous()
