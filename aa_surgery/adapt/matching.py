"""Matching the outputs of a norm to those of its original: statistics, call by call."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aa_surgery.adapt.norms import Norm
from aa_surgery.errors import InputError, UnsupportedModelError

__all__ = ["Match", "Moments", "Pair", "on_grid"]

_FLOOR = 1e-3  # of the mean variance: channels that vary less are as good as constant
_MOST = 4.0  # the scale of a channel
_ROUNDING = 1e-4  # in standard deviations: dense and strided convolutions round differently


class Moments:
    """Mean and variance a channel, over all that was added; float64 on the CPU."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.var = torch.zeros(1, dtype=torch.float64)

    def add(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Merge in the moments of `count` further values (Chan et al. 1979)."""
        share = count / (self.count + count)
        step = mean - self.mean
        self.mean = self.mean + share * step
        self.var = self.var + share * (var - self.var) + share * (1 - share) * step**2
        self.count += count

    def see(self, norm: Norm, tap: Tensor) -> None:
        """Merge in a tap of `norm`."""
        values = tap if tap.dtype == torch.float64 else tap.float()
        axes = norm.other_axes(tap)
        var, mean = torch.var_mean(values, axes, correction=0)
        count = math.prod(tap.shape[axis] for axis in axes)
        self.add(mean.flatten().cpu().double(), var.flatten().cpu().double(), count)


@dataclass(frozen=True)
class Match:
    """The scale and shift of an output that give it the original's moments."""

    scale: Tensor
    shift: Tensor
    drift: float  # of a channel's mean, at most, in standard deviations

    @property
    def changes(self) -> bool:
        """Whether it is not the identity."""
        return bool((self.scale != 1).any() or (self.shift != 0).any())


class Pair:
    """A norm of the model and that of the original, and what they have seen, call by call."""

    def __init__(self, mine: Norm, theirs: Norm) -> None:
        self.mine, self.theirs = mine, theirs
        self.own: list[Moments] = []
        self.reference: list[Moments] = []
        self.begin()

    def begin(self) -> None:
        """Expect the first call of a forward."""
        self.shapes: list[torch.Size] = []
        self.calls = 0

    def watch(self, tap: Tensor) -> None:
        """Take the statistics of one call in the original."""
        _nth(self.reference, len(self.shapes)).see(self.theirs, tap)
        self.shapes.append(tap.shape)

    def match(self, tap: Tensor) -> Tensor | None:
        """Take those of one call in the model, and return its tap, matched to the original's."""
        call, self.calls = self.calls, self.calls + 1
        if call >= len(self.shapes):
            return None  # `ran` will tell
        own = _nth(self.own, call)
        own.see(self.mine, on_grid(tap, self.shapes[call]))
        found = self._matched(own, self.reference[call])
        scale, shift = self.mine.on_tap(found.scale, found.shift)
        return tap * self.mine.spread(scale, tap) + self.mine.spread(shift, tap)

    def ran(self) -> bool:
        """Tell whether the norms were used, and refuse them if they were used differently."""
        if self.calls != len(self.shapes):
            raise UnsupportedModelError(
                f"{self.mine.name}: ran {self.calls} times in the model and {len(self.shapes)} "
                "times in the original, for one batch. Give the untouched model of the same "
                "architecture, and both of them eager: compile after recalibrating."
            )
        return self.calls > 0

    def total(self) -> Match:
        """Return the match over all calls.

        Raises:
            InputError: An output is not finite.
        """
        own, reference = Moments(), Moments()
        for whole, parts in ((own, self.own), (reference, self.reference)):
            for part in parts:
                whole.add(part.mean, part.var, part.count)
        found = self._matched(own, reference)
        if not (found.scale.isfinite().all() and found.shift.isfinite().all()):
            raise InputError(
                f"{self.mine.name}: its statistics on these images are not finite. "
                "Look for NaN or infinity in the images, the weights or half precision."
            )
        return found

    def _matched(self, own: Moments, reference: Moments) -> Match:
        mean, var = self.mine.output_moments(own.mean, own.var)
        mean_o, var_o = self.theirs.output_moments(reference.mean, reference.var)
        floor = (_FLOOR * var_o.mean()).clamp_min(torch.finfo(torch.float64).tiny)
        std_o = (var_o + floor).sqrt()
        most = self.mine.largest_scale().clamp_max(_MOST)
        scale = torch.minimum((std_o / (var + floor).sqrt()).clamp_min(1 / _MOST), most)
        shift = mean_o - scale * mean
        drift = (mean - mean_o).abs() / std_o
        same = (drift < _ROUNDING) & ((scale - 1).abs() < _ROUNDING)
        ones, zeros = torch.ones_like(scale), torch.zeros_like(shift)
        return Match(
            torch.where(same, ones, scale), torch.where(same, zeros, shift), float(drift.max())
        )


def _nth(moments: list[Moments], call: int) -> Moments:
    if call == len(moments):
        moments.append(Moments())
    return moments[call]


def on_grid(tap: Tensor, shape: torch.Size) -> Tensor:
    """Return the samples of a dense map that a strided op would have computed.

    A convolution whose blur stands behind its norm runs at stride 1; every `stride`-th sample of
    its output is the original's, and the others are not to be compared with it.
    """
    if tap.shape == shape or tap.ndim != len(shape) or tap.ndim < 4:
        return tap
    steps = [-(-mine // theirs) for mine, theirs in zip(tap.shape, shape, strict=True)]
    sampled = tap[tuple(slice(None, None, step) for step in steps)]
    return sampled if sampled.shape == shape else tap
