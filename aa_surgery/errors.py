"""Errors and warnings. Every message says where, what, why and the way out."""

from __future__ import annotations

from typing import Any

__all__ = [
    "CheckpointMismatchError",
    "FilterError",
    "HalfTreatedError",
    "InputError",
    "MethodError",
    "NoEffectWarning",
    "NotTraceableError",
    "PatternError",
    "PlanError",
    "SurgeryError",
    "UnsupportedModelError",
    "UnsupportedSiteError",
    "shown",
]


class SurgeryError(ValueError):
    """Base of every error that this package raises on purpose; the model is left untouched."""


class FilterError(SurgeryError):
    """The filter's name is unknown, or its taps are not those of a low-pass filter."""


class MethodError(SurgeryError):
    """The anti-aliasing method is unknown, has no such option, or cannot be used here."""


class InputError(SurgeryError):
    """A tensor, image or file is not what the operation needs."""


class UnsupportedModelError(SurgeryError):
    """The model cannot be edited in place: it is scripted, compiled or wrapped."""


class UnsupportedSiteError(SurgeryError):
    """A downsampling op cannot be treated as asked."""


class HalfTreatedError(SurgeryError):
    """One half of a treatment was replaced, converted or taken out of the model."""


class NotTraceableError(SurgeryError):
    """The forward of a scope cannot be traced by torch.fx, and the edit needs its graph."""


class PatternError(SurgeryError):
    """A name pattern (`include`, `exclude`, `overrides`) matches no site."""


class PlanError(SurgeryError):
    """A plan does not fit the model that it is applied to."""


class CheckpointMismatchError(SurgeryError):
    """A checkpoint does not fit the model."""


class NoEffectWarning(UserWarning):
    """Nothing was changed: the model has no site to treat, or was treated before."""


def shown(value: Any) -> str:
    """Return how a message shows what was given: its `repr`, on one line and not long.

    >>> shown([0.5] * 99)
    '[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0...'
    """
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # of a whole number with thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
