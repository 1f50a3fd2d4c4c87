"""What the demo finds, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from aa_surgery.evaluation import ConsistencyResult, TimeRatio, mean_step_change

__all__ = ["Cost", "DemoResult", "Measured", "Photo"]


@dataclass(frozen=True)
class Photo:
    """Hold what one model says of one photograph.

    Attributes:
        name: Of the photograph.
        followed: The class that the original names on the central crop.
        confidence: In `followed`, on the central crop, 0..1.
        named: The class that this model names on the central crop.
        named_confidence: Its confidence in that, 0..1.
        kept: Whether both classes are one.
        path: Confidence in `followed` at every step of the walk, 0..1.
    """

    name: str
    followed: str
    confidence: float
    named: str
    named_confidence: float
    kept: bool
    path: tuple[float, ...]

    @property
    def step(self) -> float:
        """Mean change of the confidence in `followed`, percentage points a pixel."""
        return mean_step_change(torch.tensor(self.path))


@dataclass(frozen=True)
class Measured:
    """Hold what was measured of one model.

    Attributes:
        name: `"original"`, `"blurred"` (nothing adapted) or `"recalibrated"`.
        photos: One a photograph.
        photographs: Shift consistency on the demo's photographs.
        images: Consistency and accuracy on the images given; None without.
    """

    name: str
    photos: tuple[Photo, ...]
    photographs: ConsistencyResult
    images: ConsistencyResult | None

    @property
    def kept(self) -> int:
        """Number of photographs that have the original's top-1 class."""
        return sum(photo.kept for photo in self.photos)

    @property
    def confidence(self) -> float:
        """Mean confidence in the original's classes, 0..1."""
        return sum(photo.confidence for photo in self.photos) / len(self.photos)

    @property
    def step(self) -> float:
        """Mean change of the confidence in the original's classes, percentage points a pixel."""
        return sum(photo.step for photo in self.photos) / len(self.photos)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        summary = {"kept": self.kept, "confidence": self.confidence, "step": self.step}
        photos = [{**asdict(photo), "step": photo.step} for photo in self.photos]
        return {**asdict(self), "photos": photos, "summary": summary}


@dataclass(frozen=True)
class Cost:
    """Hold the cost of one 224 px image before and after the surgery.

    Attributes:
        flops_before: 2 x multiply-accumulates.
        flops_after: The same after surgery, every blur counted as a depthwise convolution.
        parameters_before: Their number.
        parameters_after: Their number after surgery.
        time: Time of an anti-aliased model against the original's.
    """

    flops_before: int
    flops_after: int
    parameters_before: int
    parameters_after: int
    time: TimeRatio


@dataclass(frozen=True)
class DemoResult:
    """Hold every number of the demo, and what made it.

    Attributes:
        model: Name of the model and where its weights come from.
        filter: The low-pass filter.
        plan: The plan as a table.
        audit_before: The audit of the original as text.
        audit_after: The audit of the anti-aliased model as text.
        adapted_on: What the model was recalibrated on.
        recalibration: What was corrected.
        original: The untouched model.
        blurred: The same weights and statistics, anti-aliased.
        recalibrated: The same, its norms' statistics corrected.
        cost: Of the original and of either anti-aliased model.
        images: Name of the images given; None without.
        picture: The PNG.
        versions: Of the software.
        command: What was run.
    """

    model: str
    filter: str
    plan: str
    audit_before: str
    audit_after: str
    adapted_on: str
    recalibration: str
    original: Measured
    blurred: Measured
    recalibrated: Measured
    cost: Cost
    images: str | None
    picture: Path
    versions: dict[str, str]
    command: str

    @property
    def models(self) -> tuple[Measured, Measured, Measured]:
        """The three models, in the order in which they were made."""
        return self.original, self.blurred, self.recalibrated

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        models = {model.name: model.to_dict() for model in self.models}
        return {**asdict(self), **models, "picture": str(self.picture)}
