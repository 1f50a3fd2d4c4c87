"""The layers of the methods that are low-pass filters, made as the package makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from aa_surgery.layers.downsample import Downsample
from aa_surgery.methods import adaptive, ideal, learned, wavelet
from aa_surgery.methods.method import Method
from aa_surgery.sites import Site

METHODS = [module.METHOD for module in (learned, adaptive, ideal, wavelet)]
STRIDES = [(2, 2), (3, 3), (4, 4), (2, 1), (1, 3)]
WAVELETS = ["haar", "db2", "db4", "sym4", "coif1"]
CHANNELS = 6


def build(method: Method, **given: Any) -> Downsample:
    """Make a method's layer as the package does, from its record."""
    if method.per_channel:
        given = {"channels": CHANNELS, **given}
    return method.layer(**{**method.options, **given})


def perturb(layer: nn.Module, by: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=by)


def fits(method: Method, stride: tuple[int, ...]) -> bool:
    return not method.refuses(Site("conv", "conv", "Conv2d", "", "Net", stride=stride))
