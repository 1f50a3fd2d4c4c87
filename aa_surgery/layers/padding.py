"""Borders of every length and mode, for maps of every size."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from aa_surgery.layers.windows import Ints

__all__ = ["PADDING_MODES", "PaddingMode", "pad_axes", "pad_to", "source_index"]

PaddingMode = Literal["reflect", "replicate", "zeros", "circular"]
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)


def pad_to(x: Tensor, before: Ints, after: Ints, mode: str) -> Tensor:
    """Pad (or, where negative, crop) each spatial axis of `x` by `before` and `after`.

    A mirrored border longer than the map can give (its size less one) is completed by repeating the
    outermost sample; a circular one goes around as often as needed. So no map is too small.
    """
    given: list[int] = []
    rest: list[int] = []
    crop: list[int] = []
    for i, n in enumerate(x.shape[2:]):
        around = mode == "circular" and (before[i] > n or after[i] > n)
        if around:
            x = _turned(x, i + 2, max(before[i], 0), max(after[i], 0))
        for wanted in [before[i], after[i]]:
            border = 0 if around else max(wanted, 0)
            made = _given(border, n, mode)
            given.append(made)
            rest.append(border - made)
            crop.append(min(wanted, 0))
    x = pad_axes(x, given, "constant" if mode == "zeros" else mode)
    x = pad_axes(x, rest, "replicate")
    # last, because the border of one side may repeat what is cropped on the other
    return pad_axes(x, crop, "constant")


def pad_axes(x: Tensor, pads: Ints, mode: str, value: float | None = None) -> Tensor:
    """Call `F.pad` with pads in the order of the axes, `(before, after)` each."""
    if not any(pads):
        return x
    reversed_pads: list[int] = []
    for i in range(len(pads) - 2, -1, -2):
        reversed_pads += [pads[i], pads[i + 1]]
    return F.pad(x, reversed_pads, mode=mode, value=value)


def source_index(i: int, size: int, mode: str) -> int | None:
    """Return the sample of an axis that position `i` of its padded form repeats; None for zero.

    >>> [source_index(i, 4, "reflect") for i in (-2, 0, 4)]
    [2, 0, 2]
    """
    if 0 <= i < size:
        return i
    if mode == "zeros":
        return None
    if mode == "circular":
        return i % size
    beyond = -i if i < 0 else i - size + 1
    steps = min(beyond, size - 1) if mode == "reflect" else 0
    return steps if i < 0 else size - 1 - steps


def _turned(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Extend an axis circularly by more than its size."""
    size = x.shape[dim]
    turns = [1] * x.ndim
    left = -(-before // size)
    turns[dim] = left + 1 - (-after // size)
    return x.repeat(turns).narrow(dim, left * size - before, before + size + after)


def _given(border: int, size: int, mode: str) -> int:
    """Return how much of `border` `mode` can make for an axis of `size` samples.

    Comparisons, not `min`: of a symbolic size they leave a bound behind, not an expression.
    """
    if mode == "reflect" and border >= size:
        return size - 1
    return border
