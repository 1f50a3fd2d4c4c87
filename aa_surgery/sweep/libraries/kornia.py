"""The networks of `kornia`, without weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from aa_surgery.sweep.libraries.specimen import Library, Specimen, noise

__all__ = ["LIBRARY"]


def _patches(side: int) -> tuple[Any, ...]:
    return (noise(2, 1, side, side),)


def _grey(side: int) -> tuple[Any, ...]:
    return (noise(1, 1, side, side),)


def _colour(side: int) -> tuple[Any, ...]:
    return (noise(2, 3, side, side),)


def _regions(side: int) -> tuple[Any, ...]:
    frames = torch.tensor([[[[8.0, 0.0, 32.0], [0.0, 8.0, 32.0]]]]).repeat(1, 2, 1, 1)
    return frames, noise(1, 1, side, side)


def _pair(side: int) -> tuple[Any, ...]:
    image = noise(2, 1, side, side)
    return ({"image0": image, "image1": image.flip(3)},)


_MODELS: dict[str, tuple[str, dict[str, Any], Callable[[int], tuple[Any, ...]], int]] = {
    "ALIKED": ("kornia.feature", {}, _colour, 64),
    "DeDoDe": (
        "kornia.feature",
        dict(detector_model="L", descriptor_model="B", amp_dtype=torch.float32),
        _colour,
        56,
    ),
    "DeFMO": ("kornia.feature", dict(pretrained=False), lambda s: (noise(1, 6, s, s),), 64),
    "DISK": ("kornia.feature", {}, _colour, 64),
    "HardNet": ("kornia.feature", dict(pretrained=False), _patches, 32),
    "HardNet8": ("kornia.feature", dict(pretrained=False), _patches, 32),
    "HyNet": ("kornia.feature", dict(pretrained=False), _patches, 32),
    "KeyNet": ("kornia.feature", dict(pretrained=False), _grey, 64),
    "LAFAffNetShapeEstimator": ("kornia.feature", dict(pretrained=False), _regions, 64),
    "LoFTR": ("kornia.feature", dict(pretrained=None), _pair, 64),
    "MKDDescriptor": ("kornia.feature", dict(whitening=None), _patches, 32),
    "OriNet": ("kornia.feature", dict(pretrained=False), _patches, 32),
    "RRDBNet": (
        "kornia.models",
        dict(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1, scale=2),
        _colour,
        32,
    ),
    "SOLD2": ("kornia.feature", dict(pretrained=False), _patches, 64),
    "SOLD2_detector": ("kornia.feature", dict(pretrained=False), _patches, 64),
    "SOSNet": ("kornia.feature", dict(pretrained=False), _patches, 32),
    "TFeat": ("kornia.feature", dict(pretrained=False), _patches, 32),
    "TinyViT": ("kornia.contrib", dict(img_size=64, depths=[1, 1, 2, 1]), _colour, 64),
    "XFeatModel": ("kornia.feature", {}, _colour, 64),
}

_LEFT_OUT = {
    "matchers, estimators, detectors of blobs and corners": "no convolution with weights; their "
    "pyramids blur themselves",
    "LightGlue": "it takes points, not maps",
}


def _specimen(name: str) -> Specimen:
    module, options, arguments, side = _MODELS[name]
    model = getattr(importlib.import_module(module), name)(**options)
    return Specimen(model, arguments(side))


LIBRARY = Library("kornia", "kornia", "kornia", lambda: _MODELS, _specimen, _LEFT_OUT)
