"""What the demo finds, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aa_surgery.evaluation import ConsistencyResult, TimeRatio, mean_step_change

__all__ = ["Cost", "DemoResult", "Measured", "PhotoResult"]


@dataclass(frozen=True)
class PhotoResult:
    """Hold what both models say of one photograph.

    Attributes:
        name: Of the photograph.
        followed: The class that the original names on the central crop; both `path_*` follow it.
        confidence_before: The original's confidence in `followed`, central crop, 0..1.
        confidence_after: The anti-aliased model's confidence in `followed`, 0..1.
        named_after: The class that the anti-aliased model names.
        named_after_confidence: Its confidence in that, 0..1.
        kept: Whether that is the class that the original names.
        path_before: The original's confidence in `followed` at every step of the walk, 0..1.
        path_after: The same of the anti-aliased model.
    """

    name: str
    followed: str
    confidence_before: float
    confidence_after: float
    named_after: str
    named_after_confidence: float
    kept: bool
    path_before: tuple[float, ...]
    path_after: tuple[float, ...]

    @property
    def step_before(self) -> float:
        """Mean change of the original's confidence, percentage points a pixel."""
        return _step(self.path_before)

    @property
    def step_after(self) -> float:
        """Mean change of the anti-aliased model's confidence, percentage points a pixel."""
        return _step(self.path_after)


def _step(path: tuple[float, ...]) -> float:
    import torch

    return mean_step_change(torch.tensor(path))


@dataclass(frozen=True)
class Cost:
    """Hold the cost of both models for one 224 px image.

    Attributes:
        flops_before: 2 x multiply-accumulates.
        flops_after: The same after surgery, every blur counted as a depthwise convolution.
        parameters_before: Their number.
        parameters_after: Their number after surgery.
        time: Time of the anti-aliased model against the original's.
    """

    flops_before: int
    flops_after: int
    parameters_before: int
    parameters_after: int
    time: TimeRatio


@dataclass(frozen=True)
class Measured:
    """Hold the shift consistency of both models on one set of images."""

    source: str
    before: ConsistencyResult
    after: ConsistencyResult


@dataclass(frozen=True)
class DemoResult:
    """Hold every number of the demo, and what made it.

    Attributes:
        model: Name of the model and where its weights come from.
        filter: The low-pass filter.
        plan: The plan as a table.
        audit_before: The audit of the original as text.
        audit_after: The audit of the anti-aliased model as text.
        photos: One a photograph.
        cost: Of both models.
        photographs: Consistency on the demo's photographs.
        images: Consistency and accuracy on the images given; None without.
        picture: The PNG.
        versions: Of the software.
        command: What was run.
    """

    model: str
    filter: str
    plan: str
    audit_before: str
    audit_after: str
    photos: tuple[PhotoResult, ...]
    cost: Cost
    photographs: Measured
    images: Measured | None
    picture: Path
    versions: dict[str, str]
    command: str

    @property
    def kept(self) -> int:
        """Number of photographs whose top-1 survives the blur."""
        return sum(photo.kept for photo in self.photos)

    def mean(self, field: str) -> float:
        """Return the mean of a number over the photographs."""
        return sum(getattr(photo, field) for photo in self.photos) / len(self.photos)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        photos = [
            {
                **asdict(photo),
                "step_before": photo.step_before,
                "step_after": photo.step_after,
            }
            for photo in self.photos
        ]
        summary = {
            "kept": self.kept,
            "mean_confidence_before": self.mean("confidence_before"),
            "mean_confidence_after": self.mean("confidence_after"),
            "mean_step_before": self.mean("step_before"),
            "mean_step_after": self.mean("step_after"),
        }
        return {**asdict(self), "photos": photos, "summary": summary, "picture": str(self.picture)}
