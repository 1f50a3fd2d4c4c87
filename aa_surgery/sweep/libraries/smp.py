"""`segmentation_models_pytorch`: every encoder under one decoder, every decoder on one encoder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib import import_module

from aa_surgery.sweep.libraries.specimen import Library, Specimen, first_that_runs, noise

__all__ = ["LIBRARY"]

_HOST = "segmentation_models_pytorch"
_SIDE = 64
_SIDES = {"pan": 512, "upernet": 224}
"""px; on a smaller image a pool of theirs covers the map, or has more bins than it."""
_ENCODER, _DECODER = "resnet18", "fpn"
_TIMM = ("tu-convnext_atto", "tu-mobilenetv3_small_050", "tu-hrnet_w18_small")
_LEFT_OUT = {
    "encoders of more than 70 M parameters": "a smaller one of the family is in the sweep",
}


def _names() -> Iterable[str]:
    host = import_module(_HOST)
    families: dict[str, str] = {}
    for name in host.encoders.encoders:
        depth = name.rstrip("0123456789").removesuffix("-b")  # sizes that differ in depth alone
        families.setdefault(depth if not name.endswith("_bn") else name, name)
    encoders = [n for n in host.encoders.encoders if n in families.values() or _is_small(n)]
    decoders = [d for d in host.MODEL_ARCHITECTURES_MAPPING if d != _DECODER]
    return [
        *(f"{decoder}-{_ENCODER}" for decoder in decoders if decoder != "dpt"),
        "dpt-tu-vit_tiny_patch16_224",
        *(f"{_DECODER}-{encoder}" for encoder in (*encoders, *_TIMM)),
    ]


def _is_small(name: str) -> bool:
    return name.endswith(
        ("50", "_bn", "32x4d", "34", "-b1", "-b2", "-b3", "lite1", "_b1", "s1", "s2")
    )


def _specimen(name: str) -> Specimen:
    smallest = _SIDES.get(name.partition("-")[0], _SIDE)
    sides = [side for side in (_SIDE, 128, 224, 512) if side >= smallest]
    return first_that_runs([partial(_at, name, side) for side in sides])


def _at(name: str, side: int) -> Specimen:
    host = import_module(_HOST)
    decoder, _, encoder = name.partition("-")
    model = host.create_model(decoder, encoder_name=encoder, encoder_weights=None)
    return Specimen(model, (noise(2, 3, side, side),))


LIBRARY = Library(
    "smp",
    _HOST,
    _HOST,
    _names,
    _specimen,
    _LEFT_OUT,
)
