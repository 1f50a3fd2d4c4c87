"""What the laws of outside models compare: outputs, states, and how an error is told."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from aa_surgery.sweep.libraries.specimen import Specimen

__all__ = [
    "BrokenError",
    "NotTestedError",
    "counted",
    "double",
    "error_of",
    "place_of",
    "require_same",
    "state_of",
    "tensors",
]


class NotTestedError(Exception):
    """The untouched model cannot do it."""


class BrokenError(Exception):
    """A law does not hold."""


def tensors(result: Any) -> list[Tensor]:
    """Return every floating-point tensor of a forward's result, dataclasses included."""
    if not isinstance(result, (Tensor, list, tuple, dict)) and hasattr(result, "__dict__"):
        result = {k: v for k, v in vars(result).items() if not k.startswith("_")}
    leaves = list(tree_leaves(dict(result) if isinstance(result, dict) else result))
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def double(specimen: Specimen) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a specimen's arguments and options in float64."""

    def widen(x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    arguments, options = tree_map(widen, (specimen.arguments, specimen.options))
    return arguments, options


def error_of(result: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest relative difference; infinite where a shape differs."""
    if [r.shape for r in result] != [e.shape for e in expected]:
        return math.inf
    worst = 0.0
    for got, reference in zip(result, expected, strict=True):
        same = (got == reference) | (got.isnan() & reference.isnan())
        if bool(same.all()):
            continue
        finite = reference[reference.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 1.0
        error = float((got - reference)[~same].abs().max()) / (scale or 1.0)
        worst = max(worst, error) if error == error else math.inf
    return worst


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return the keys of the state_dict, with their shapes."""
    return {k: tuple(getattr(v, "shape", ())) for k, v in model.state_dict().items()}


def require_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise unless two states have the same keys, in the same order, and the same shapes.

    Raises:
        BrokenError: They have not.
    """
    if list(before.items()) != list(after.items()):
        changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        raise BrokenError(f"keys differ: {sorted(changed)[:5] or 'their order'}")


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """Return how often each reason comes, sorted."""
    return dict(sorted(Counter(reasons).items()))


def place_of(error: Exception) -> str:
    """Return an error's name, its first line, and the last place in our own code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "aa_surgery" in f.filename and "sweep" not in f.filename]
    frame = ours[-1] if ours else frames[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:250] + f" ({where})"
