"""The models of `pytorchcv`: of each of its modules the first by name, which is a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import import_module
from typing import Any

from aa_surgery.sweep.libraries.specimen import Library, Specimen, first_that_runs, noise

__all__ = ["LIBRARY"]

_SIZES = ((224, 224), (64, 64), (32, 32), (299, 299), (256, 192), (480, 480), (512, 1024))
_SIDES = {"scnet50": 320, "tresnet_m": 224, "fastscnn_cityscapes": 256}
"""px; on a smaller image a pool of theirs covers the map, or has more bins than it."""

_LEFT_OUT = {
    "jasper, jasperdr, quartznet": "speech: their maps have one axis, of time",
    "voca, nvpattexp, visemenet": "they take speech, or numbers",
    "propainter, propainter_rfc, propainter_ip": "they take videos with masks and flows",
    "wrn1bit_cifar": "weights of one bit, which a layer packs as it runs",
}


@cache
def _builders() -> dict[str, Callable[..., Any]]:
    """Return one builder a module, whatever number of sizes it has."""
    left_out = {name for names in _LEFT_OUT for name in names.split(", ")}
    chosen: dict[str, Callable[..., Any]] = {}
    modules: set[str] = set()
    for name, make in import_module("pytorchcv.model_provider")._models.items():
        module = make.__module__.rpartition(".")[2]
        if module not in modules | left_out:
            modules.add(module)
            chosen[name] = make
    return chosen


def _names() -> Iterable[str]:
    return _builders()


def _specimen(name: str) -> Specimen:
    make = _builders()[name]
    size = getattr(make(), "in_size", None)
    sizes = [s for s in _SIZES if "cifar" not in name] if size is None else []
    side = _SIDES.get(name, 64)
    small = [(side, side)] if size and max(size) > 64 and min(size) >= 224 else []
    tried = [*small, *([tuple(size)] if size else []), *sizes, (32, 32)]
    return first_that_runs([partial(_at, make, size) for size in dict.fromkeys(tried)])


def _at(make: Callable[..., Any], size: tuple[int, int]) -> Specimen:
    """Return the model made for a size, where its builder takes one."""
    try:
        model = make(in_size=size)
    except (TypeError, AssertionError, ValueError):
        model = make()
    channels = getattr(model, "in_channels", 3)
    return Specimen(model, (noise(2, channels, *size),))


LIBRARY = Library("pytorchcv", "pytorchcv", "pytorchcv", _names, _specimen, _LEFT_OUT)
