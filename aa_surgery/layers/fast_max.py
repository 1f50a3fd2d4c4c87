"""Dense max-pooling on 4-D CPU tensors, one axis after the other, as maxima of shifted slices.

On contiguous CPU tensors `F.max_pool2d` at stride 1 walks every window sample by sample, and in
every format it writes an index of 8 bytes for each maximum; the maximum of two slices is a
vectorised pass over memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.layers.memory import memory_format_of

__all__ = ["max_slices", "max_slices_with_gradient"]


def max_slices(x: Tensor, window: int, same: bool) -> Tensor:
    """Return the maximum of every `window` by `window` square at stride 1.

    Args:
        x: `(N, C, H, W)`.
        window: 2 or 3.
        same: Whether a border of -inf, one sample wide, keeps the size (of a window of 3).

    Returns:
        `(N, C, H, W)` where `same`, else `window - 1` less in the last two axes.
    """
    for dim in (2, 3):
        x = torch.maximum(*_neighbours(x, dim))
        if window == 3:
            x = _join(x, dim, same)
    return x


def max_slices_with_gradient(x: Tensor, window: int, same: bool) -> Tensor:
    """Return `max_slices`, saving one boolean a comparison instead of the input and indices."""
    return _MaxSlices.apply(x, window, same)


def _neighbours(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    n = x.shape[dim] - 1
    return x.narrow(dim, 0, n), x.narrow(dim, 1, n)


def _join(pairs: Tensor, dim: int, same: bool) -> Tensor:
    """Return the maxima of neighbouring pairs; at a border of -inf a pair stands alone."""
    if not same:
        return torch.maximum(*_neighbours(pairs, dim))
    shape = list(pairs.shape)
    shape[dim] += 1
    last = shape[dim] - 1
    out = torch.empty(
        shape, dtype=pairs.dtype, device=pairs.device, memory_format=memory_format_of(pairs)
    )
    torch.maximum(*_neighbours(pairs, dim), out=out.narrow(dim, 1, last - 1))
    out.select(dim, 0).copy_(pairs.select(dim, 0))
    out.select(dim, last).copy_(pairs.select(dim, last - 1))
    return out


def _divide(g: Tensor, first_wins: Tensor, dim: int) -> Tensor:
    """Return the gradient of a maximum of neighbours: all of it to the one that won."""
    to_first = g * first_wins
    pads = [0, 1] if dim == 3 else [0, 0, 0, 1]
    out = F.pad(to_first, pads)
    out.narrow(dim, 1, g.shape[dim]).add_(g - to_first)
    return out


class _MaxSlices(torch.autograd.Function):
    """`max_slices`; of equal samples the first in memory gets the gradient, as in `max_pool2d`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: int, same: bool) -> Tensor:
        """Return the maxima, and save which neighbour won each comparison."""
        wins = []
        for dim in (3, 2):
            first, second = _neighbours(x, dim)
            wins.append(first >= second)
            x = torch.maximum(first, second)
            if window == 3:
                first, second = _neighbours(x, dim)
                wins.append(first >= second)
                x = _join(x, dim, same)
        ctx.save_for_backward(*wins)
        ctx.window, ctx.same = window, same
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Send the gradient of each maximum to the sample that it came from."""
        g = gradients[0]
        wins = list(ctx.saved_tensors)
        for dim in (2, 3):
            if ctx.window == 3:
                g = _divide_joined(g, wins.pop(), dim, ctx.same)
            g = _divide(g, wins.pop(), dim)
        return g, None, None


def _divide_joined(g: Tensor, first_wins: Tensor, dim: int, same: bool) -> Tensor:
    """Return the gradient of `_join`."""
    if not same:
        return _divide(g, first_wins, dim)
    last = g.shape[dim] - 1
    pairs = _divide(g.narrow(dim, 1, last - 1), first_wins, dim)
    pairs.select(dim, 0).add_(g.select(dim, 0))
    pairs.select(dim, last - 1).add_(g.select(dim, last))
    return pairs
