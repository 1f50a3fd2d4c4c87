"""Warm-up of the blurs: from the untouched network to the whole filter, over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from torch import nn

from aa_surgery.errors import InputError, UnsupportedModelError
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.strength import set_strength

__all__ = ["AntialiasWarmup", "Schedule", "ramp"]

Schedule = Literal["linear", "cosine"]


def ramp(done: int, steps: int, start: float = 0.0, schedule: Schedule = "linear") -> float:
    r"""Return the strength of the blurs after `done` steps of a warm-up of `steps`.

    $a = a_0 + (1 - a_0)\, p(t)$, $t = \mathrm{done} / (\mathrm{steps} - 1)$ clipped to 0..1, with
    $p(t) = t$ (linear) or $(1 - \cos \pi t) / 2$ (cosine). The first step is done at the start
    $a_0$, the last one and all behind it at exactly 1.

    >>> [ramp(done, steps=5) for done in (0, 1, 4, 99)]
    [0.0, 0.25, 1.0, 1.0]
    """
    if done >= steps - 1:
        return 1.0
    progress = max(done, 0) / (steps - 1)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (1 - start) * progress


class AntialiasWarmup:
    """Strengthen the blurs of a model step by step, so that pretrained weights can follow.

    Used as a scheduler of the learning rate is: made before the first step, `step()` called after
    each `optimizer.step()`. `ramp` has the formula; what a strength does to a blur is told by
    `aa_surgery.layers.strength`. The strength follows from the number of steps alone, so a
    resumed training goes on as if never stopped.

    Args:
        model: An anti-aliased model; compiled or wrapped too. Its blurs get the start at once.
        steps: Optimizer steps of the warm-up; the last of them is done at strength 1.
        start: The strength of the first step, from 0 (the untouched network) to 1.
        schedule: `"linear"` or `"cosine"`.
        also: Further copies of the model to set with it, such as timm's `ModelEmaV3`.

    Raises:
        InputError: `steps`, `start` or `schedule` is wrong.
        UnsupportedModelError: The model or a copy has no blur. No strength was changed.

    >>> from aa_surgery.layers import BlurPool
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), BlurPool("tri-3"))
    >>> warmup, seen = AntialiasWarmup(model, steps=3), []
    >>> for _ in range(4):
    ...     seen.append(warmup.strength)  # forward, backward, optimizer.step(), and then
    ...     warmup.step()
    >>> seen
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        start: float = 0.0,
        schedule: Schedule = "linear",
        also: Iterable[nn.Module] = (),
    ) -> None:
        if not isinstance(steps, int) or steps < 1:
            raise InputError(f"AntialiasWarmup: steps = {steps!r} must be a whole number from 1.")
        if not 0 <= start <= 1:
            raise InputError(f"AntialiasWarmup: start = {start!r} must be from 0 to 1.")
        if schedule not in get_args(Schedule):
            raise InputError(
                f"AntialiasWarmup: schedule {schedule!r} is unknown. Use 'linear' or 'cosine'."
            )
        self.steps = steps
        self.start = start
        self.schedule = schedule
        self.done = 0
        self._models = (model, *also)
        for part in self._models:
            if not any(isinstance(m, Downsample) for m in part.modules()):
                raise UnsupportedModelError(
                    f"AntialiasWarmup: {type(part).__name__} has no blur to strengthen. "
                    "Anti-alias it first: apply_antialias(model)."
                )
        self._apply()

    @property
    def strength(self) -> float:
        """The strength of the blurs in the step that comes next."""
        return ramp(self.done, self.steps, self.start, self.schedule)

    def step(self) -> None:
        """Count one optimizer step, and set the strength of the next."""
        before = self.strength
        self.done += 1
        if self.strength != before:
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs, as plain values."""
        return {
            "done": self.done,
            "steps": self.steps,
            "start": self.start,
            "schedule": self.schedule,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the warm-up that was saved, its length and start included.

        Raises:
            InputError: The state is not that of a warm-up; nothing was changed.
        """
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise InputError(
                f"AntialiasWarmup: the state has the keys {sorted(state)}, and that of a warm-up "
                f"has {sorted(expected)}. Give what AntialiasWarmup.state_dict() returned."
            )
        self.done, self.steps = state["done"], state["steps"]
        self.start, self.schedule = state["start"], state["schedule"]
        self._apply()

    def _apply(self) -> None:
        for part in self._models:
            set_strength(part, self.strength)
