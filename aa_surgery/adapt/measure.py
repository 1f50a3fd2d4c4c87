"""What an adaptation is judged by: consistency, accuracy, and faithfulness to the original."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.errors import InputError
from aa_surgery.evaluation import ConsistencyResult, agreement, measure_consistency
from aa_surgery.evaluation.pairs import MARGIN

__all__ = ["Measured", "measure"]


@dataclass(frozen=True)
class Measured:
    """Hold one measurement.

    Attributes:
        consistency: Shift consistency; its `top1` is the accuracy where there are labels.
        agreement: Central crops that get the class which the original gives them, %; None
            without a reference.
        predicted: Class of each central crop: the reference for other models.
        minutes: Time of the measurement.
    """

    consistency: ConsistencyResult
    agreement: float | None
    predicted: tuple[int, ...]
    minutes: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields but `predicted` as plain values, for JSON."""
        return {
            **self.consistency.to_dict(),
            "agreement": self.agreement,
            "measuring_minutes": self.minutes,
        }


def measure(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Any]],
    reference: Sequence[int] | None = None,
    *,
    size: int = 224,
    passes: int = 1,
    seed: int = 0,
    margin: int = MARGIN,
    progress: Callable[[int], object] | None = None,
) -> Measured:
    """Measure a classifier in one pass over photographs: `measure_consistency` and agreement.

    Args:
        model: As for `measure_consistency`.
        batches: As for `measure_consistency`, squares of `size + margin` px.
        reference: The class that the original gives to each central crop, in the same order
            (`predicted` of its own measurement).
        size: Side of the views, px.
        passes: Pairs an image.
        seed: Seed of the draws.
        margin: Range of the shifts, px.
        progress: Called with the number of images after each batch.

    Raises:
        InputError: The reference is of other images, or as for `measure_consistency`.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = [torch.rand(4, 3, 40, 40)]
    >>> first = measure(model, images, size=32, margin=8)
    >>> measure(model, images, first.predicted, size=32, margin=8).agreement
    100.0
    """
    start = time.perf_counter()
    classes: list[Tensor] = []
    result = measure_consistency(
        model,
        batches,
        size=size,
        passes=passes,
        seed=seed,
        margin=margin,
        progress=progress,
        central=classes.append,
    )
    predicted = torch.cat(classes)
    kept: float | None = None
    if reference is not None:
        if len(reference) != len(predicted):
            raise InputError(
                f"a reference of {len(reference)} classes for {len(predicted)} images: "
                "measure the original on the same images."
            )
        same = agreement(predicted, torch.tensor(reference))
        kept = 100 * float(same.double().mean())
    minutes = (time.perf_counter() - start) / 60
    return Measured(result, kept, tuple(predicted.tolist()), minutes)
