"""The real architectures on which the laws are tested, and inputs that they accept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torchvision
from torch import nn

__all__ = ["MODELS", "Case", "build"]


@dataclass(frozen=True)
class Case:
    """How to build a model small enough to test, and the input sizes (px) to test it at."""

    sizes: tuple[int, ...] = (64, 75)
    kwargs: dict[str, Any] = field(default_factory=dict)


MODELS: dict[str, Case] = {
    "resnet18": Case(),
    "resnet50d": Case(),
    "resnetv2_50": Case(),
    "mobilenetv2_100": Case(),
    "tf_efficientnet_lite0": Case(sizes=(64, 65, 75)),
    "efficientnetv2_rw_t": Case(),
    "convnext_atto": Case(),
    "convnextv2_atto": Case(),
    "swin_tiny_patch4_window7_224": Case(sizes=(112,), kwargs={"img_size": 112, "window_size": 7}),
    "swinv2_tiny_window8_256": Case(sizes=(64,), kwargs={"img_size": 64, "window_size": 4}),
    "maxvit_pico_rw_256": Case(sizes=(64,), kwargs={"img_size": 64}),
    "coatnet_pico_rw_224": Case(sizes=(64,), kwargs={"img_size": 64}),
    "densenet121": Case(),
    "vgg16_bn": Case(sizes=(64, 75), kwargs={"num_classes": 10}),
    "regnety_002": Case(),
    "nf_regnet_b0": Case(),
    "tresnet_m": Case(sizes=(64, 76)),
    "levit_128s": Case(sizes=(224,)),
    "poolformer_s12": Case(),
    "inception_v3": Case(sizes=(96, 107)),
    "pvt_v2_b0": Case(),
    "torchvision:resnet18": Case(),
    "torchvision:densenet121": Case(),
    "torchvision:googlenet": Case(kwargs={"init_weights": False, "aux_logits": False}),
    "torchvision:swin_t": Case(),
}


def build(name: str, **kwargs: Any) -> nn.Module:
    """Return the model with random weights, in eval mode, the same at every call."""
    torch.manual_seed(0)
    case = MODELS.get(name, Case())
    options = {**case.kwargs, **kwargs}
    source, _, rest = name.rpartition(":")
    create = torchvision.models.get_model if source else timm.create_model
    model = create(rest, **options)
    _spread_norms(model)
    _settle_statistics(model, max(case.sizes))
    return model.eval()


def _spread_norms(model: nn.Module) -> None:
    """Give norms and zero-initialised scales values, so that no path of the net is silent."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim <= 1:
            values = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.data.copy_(values if (parameter.data > 0).any() else values - 1)


def _settle_statistics(model: nn.Module, size: int) -> None:
    """Give batch norms the statistics of noise images.

    With the running mean 0 and variance 1 of a new net, activations of deep nets grow until
    rounding errors grow with them, and no law could be told from noise.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size, size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
