"""Every network of `python-doctr`: classification, detection and recognition of text."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from aa_surgery.sweep.libraries.specimen import Library, Specimen, noise

__all__ = ["LIBRARY"]

_TASKS = ("classification", "detection", "recognition")
_PAGE, _CROP, _WORD = (64, 64), (32, 32), (32, 128)
_SIZES = {"detection": (128, 128), "recognition": _WORD}
_LEFT_OUT = {
    "*_predictor": "pipelines around the networks",
}


def _names() -> Iterable[str]:
    found = []
    for task in _TASKS:
        module = importlib.import_module(f"doctr.models.{task}")
        for name, value in sorted(vars(module).items()):
            if inspect.isfunction(value) and "pretrained" in inspect.signature(value).parameters:
                if not name.endswith("predictor"):
                    found.append(f"{task}-{name}")
    return found


def _specimen(name: str) -> Specimen:
    task, _, entry = name.partition("-")
    make: Any = getattr(importlib.import_module(f"doctr.models.{task}"), entry)
    own = {} if task == "classification" else {"pretrained_backbone": False}
    model = make(pretrained=False, **own)
    size = _SIZES.get(task) or (model.cfg or {}).get("input_shape", (3, *_CROP))[1:]
    if task == "detection":
        model.exportable = True  # the map itself, without boxes found by OpenCV
    return Specimen(model, (noise(2, 3, *size),))


LIBRARY = Library("doctr", "doctr", "python-doctr", _names, _specimen, _LEFT_OUT)
