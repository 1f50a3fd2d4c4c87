"""Every detector of `effdet` that is small enough, at the smallest image that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from aa_surgery.sweep.libraries.specimen import Library, Specimen, noise

__all__ = ["LIBRARY"]

_SIDE = 128  # the pyramid's last map is a pixel
_LEFT_OUT = {
    "tf_efficientdet_*": "TensorFlow's weights for efficientdet_*, of which the first two stand "
    "for padding and names",
    "efficientdet_d3 to d7x": "efficientdet_d0 to d2 with more channels",
}


def _names() -> Iterable[str]:
    table = import_module("effdet.config.model_config").efficientdet_model_param_dict
    more = ("efficientdet_d3", "efficientdet_d4", "efficientdet_d5")
    kept = ("tf_efficientdet_d0", "tf_efficientdet_lite0")
    return [n for n in table if n not in more and (not n.startswith("tf_") or n in kept)]


def _specimen(name: str) -> Specimen:
    host = import_module("effdet")
    config = host.get_efficientdet_config(name)
    config.image_size = (_SIDE, _SIDE)
    config.pretrained_backbone = False
    model = host.EfficientDet(config, pretrained_backbone=False)
    return Specimen(model, (noise(2, 3, _SIDE, _SIDE),))


LIBRARY = Library("effdet", "effdet", "effdet", _names, _specimen, _LEFT_OUT)
