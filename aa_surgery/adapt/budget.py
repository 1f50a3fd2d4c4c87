"""How long to train: in steps, or in minutes."""

from __future__ import annotations

import math
import time

from aa_surgery.errors import InputError

__all__ = ["Budget"]


class Budget:
    """Count what was used of a budget.

    Args:
        steps: Number of steps; the same weights come out whatever the machine's speed.
        minutes: Time; give one of the two.

    Raises:
        InputError: None or both are given, or one that is not positive.

    >>> budget = Budget(steps=4)
    >>> budget.step()
    >>> budget.used
    0.25
    """

    def __init__(self, steps: int | None = None, minutes: float | None = None) -> None:
        given = [v for v in (steps, minutes) if v is not None]
        if len(given) != 1 or not (math.isfinite(given[0]) and given[0] > 0):
            raise InputError(
                f"steps={steps}, minutes={minutes}: give one of the two, above 0, as the budget."
            )
        self._unit = "steps" if minutes is None else "minutes"
        self._limit = given[0]
        self.done = 0
        self._before = 0.0  # seconds, in runs that were interrupted
        self._start = time.monotonic()

    @property
    def minutes(self) -> float:
        """Time used, interrupted runs included."""
        return (self._before + time.monotonic() - self._start) / 60

    @property
    def used(self) -> float:
        """Share of the budget that is used, 0..1."""
        spent = self.done if self._unit == "steps" else self.minutes
        return min(1.0, spent / self._limit)

    def step(self) -> None:
        """Count a step."""
        self.done += 1

    def state_dict(self) -> dict[str, float]:
        """Return what was used, to go on from."""
        return {"done": self.done, "minutes": self.minutes}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what an interrupted run had used."""
        self.done = int(state["done"])
        self._before, self._start = 60 * state["minutes"], time.monotonic()
