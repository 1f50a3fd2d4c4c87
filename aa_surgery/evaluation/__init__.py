"""Measurements of any classifier: shift consistency, stability, cost. Knows nothing of surgery.

`ShiftConsistency` needs torchmetrics and is imported on first use; nothing else here does.
"""

from typing import TYPE_CHECKING, Any

from aa_surgery.evaluation.consistency import ConsistencyResult, measure_consistency
from aa_surgery.evaluation.cost import (
    TimeRatio,
    count_flops,
    count_parameters,
    measure_time_ratio,
)
from aa_surgery.evaluation.images import (
    ImageFiles,
    Preprocess,
    iterate_batches,
    preprocess_of,
)
from aa_surgery.evaluation.intervals import wilson_interval
from aa_surgery.evaluation.pairs import agreement, shift_pairs
from aa_surgery.evaluation.shifts import (
    circular_shifts,
    crop,
    crop_shifts,
    roll,
)
from aa_surgery.evaluation.stability import (
    diagonal_path,
    mean_step_change,
    shift_confidence,
    staircase_path,
)

if TYPE_CHECKING:
    from aa_surgery.evaluation.metric import ShiftConsistency

__all__ = [
    "ConsistencyResult",
    "ImageFiles",
    "Preprocess",
    "ShiftConsistency",
    "TimeRatio",
    "agreement",
    "circular_shifts",
    "count_flops",
    "count_parameters",
    "crop",
    "crop_shifts",
    "diagonal_path",
    "iterate_batches",
    "mean_step_change",
    "measure_consistency",
    "measure_time_ratio",
    "preprocess_of",
    "roll",
    "shift_confidence",
    "shift_pairs",
    "staircase_path",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name == "ShiftConsistency":
        from aa_surgery.evaluation.metric import ShiftConsistency

        return ShiftConsistency
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
