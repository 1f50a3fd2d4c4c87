"""Every model configuration that `ultralytics` ships, smallest scale, and its `fuse()`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from aa_surgery.sweep.libraries.specimen import Library, Specimen, first_that_runs, noise

__all__ = ["LIBRARY"]

_LEFT_OUT = {
    "weights, trackers, the SAM and FastSAM models": "they have no configuration; they begin with "
    "weights from the network",
}


@cache
def _configs() -> dict[str, Path]:
    # Asked before the first import, which else looks for the network.
    os.environ.setdefault("YOLO_OFFLINE", "true")
    root = Path(str(import_module("ultralytics").__file__)).parent / "cfg" / "models"
    return {path.stem: path for path in sorted(root.rglob("*.yaml"))}


def _names() -> Iterable[str]:
    return _configs()


def _specimen(name: str) -> Specimen:
    return first_that_runs([partial(_at, name, side) for side in (64, 128, 256)])


def _at(name: str, side: int) -> Specimen:
    model = _kind(name)(str(_configs()[name]), verbose=False)
    return Specimen(model, (noise(2, 3, side, side),), merge=_fuse)


def _fuse(model: nn.Module) -> None:
    fuse: Any = getattr(model, "fuse")  # noqa: B009 - not of nn.Module
    fuse(verbose=False)


def _kind(name: str) -> Any:
    """Return the class that the configuration's task asks for."""
    tasks = import_module("ultralytics.nn.tasks")
    if "rtdetr" in name and not name.startswith("yolov8"):
        return tasks.RTDETRDetectionModel
    if name.startswith("yoloe"):
        return tasks.YOLOESegModel if "seg" in name else tasks.YOLOEModel
    for word, kind in _TASKS.items():
        if f"-{word}" in name:
            return getattr(tasks, kind)
    return tasks.DetectionModel


_TASKS = {
    "seg": "SegmentationModel",
    "cls": "ClassificationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
    "world": "WorldModel",
    "rtdetr": "RTDETRDetectionModel",
    "sem": "SemanticSegmentationModel",
    "depth": "DepthModel",
}

LIBRARY = Library("ultralytics", "ultralytics", "ultralytics", _names, _specimen, _LEFT_OUT)
