"""Every detector of `effdet` that is small enough, at an image whose last map is one still."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from aa_surgery.sweep.libraries.specimen import Library, Specimen, noise

__all__ = ["LIBRARY"]

_SIDE = 256  # px; the pyramid's last map has two pixels a side
_SIDES = {"efficientdet_q0": 512, "efficientdet_q2": 512}  # one level more
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
    side = _SIDES.get(name, _SIDE)
    config.image_size = (side, side)
    config.pretrained_backbone = False
    config.fpn_cell_repeats = config.box_class_repeats = 1
    model = host.EfficientDet(config, pretrained_backbone=False)
    return Specimen(model, (noise(2, 3, side, side),))


LIBRARY = Library("effdet", "effdet", "effdet", _names, _specimen, _LEFT_OUT)
