r"""The blur of `functional.blur` on 4-D CPU tensors, without a padded copy of the map.

A blur is separable, and linear: $y = Z x + B x$, `Z` being the blur with a border of zeros and `B`
the few output rows and columns that any other border changes. Two consequences are used here:

- one axis after the other, as sums of shifted strided slices (`blur_slices`): for short filters
  the cheapest form where nothing is padded, and memory traffic is the whole cost;
- the adjoint is a transposed convolution plus the adjoint of `B` on thin strips, and needs nothing
  saved from the forward, where autograd of pad and convolution saves the padded map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.filters import Taps
from aa_surgery.layers.padding import source_index
from aa_surgery.layers.plain import plain_blur

__all__ = [
    "Axis",
    "blur_slices",
    "blur_with_gradient",
    "convolve",
    "fits_slices",
    "folds",
]


@dataclass(frozen=True)
class Axis:
    """One axis of a blur of `length` samples, with borders of `before` and `after`.

    Output `i` is the sum over `n` of `taps[n]` times sample `i * stride + n - before`. A negative
    border is cropped.
    """

    taps: Taps
    stride: int
    before: int
    after: int
    length: int
    mode: str

    @property
    def size(self) -> int:
        """Number of outputs."""
        return (self.length + self.before + self.after - len(self.taps)) // self.stride + 1

    @property
    def reach(self) -> int:
        """Samples that the last window reads beyond the map; negative where it ends inside."""
        return (self.size - 1) * self.stride + len(self.taps) - self.before - self.length

    @property
    def is_plain(self) -> bool:
        """Whether output and input are the same."""
        return self.taps == (1.0,) and self.stride == 1 and self.before == self.after == 0


def folds(axes: Sequence[Axis]) -> bool:
    """Whether a convolution's own zero padding, equal on both sides, gives these windows."""
    return all(a.before < len(a.taps) and a.before - a.stride < a.reach <= a.before for a in axes)


def fits_slices(axes: Sequence[Axis]) -> bool:
    """Whether `blur_slices` can run: every output's own sample lies in the map and counts."""
    return all(
        a.before < len(a.taps)
        and (a.size - 1) * a.stride < a.length
        and abs(a.taps[a.before]) >= max(map(abs, a.taps)) / 4
        for a in axes
    )


def convolve(x: Tensor, kernel: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Blur in the plainest form."""
    strides, before, after = zip(*((a.stride, a.before, a.after) for a in axes), strict=True)
    return plain_blur(x, kernel, strides, axes[0].mode, before, after)


def blur_slices(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Blur one axis after the other by sums of strided slices."""
    scale = 1.0
    for dim, axis in enumerate(axes, start=2):
        if not axis.is_plain:
            x = _blur_axis(x, dim, axis)
            scale *= axis.taps[axis.before]
    return x.mul_(scale)


def _blur_axis(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """Return the blur of one axis, divided by the tap of the output's own sample."""
    own = _every(x, dim, 0, axis.stride, axis.size)
    y = torch.empty_like(own)
    weights = [t / axis.taps[axis.before] for t in axis.taps]
    filled = False
    for n, weight in enumerate(weights):
        if n == axis.before:
            continue
        first, count, start = _valid(axis, n)
        if count <= 0:
            continue
        part, term = y.narrow(dim, first, count), _every(x, dim, start, axis.stride, count)
        if filled:
            part.add_(term, alpha=weight)
            continue
        torch.add(own.narrow(dim, first, count), term, alpha=weight, out=part)
        for edge, width in ((0, first), (first + count, axis.size - first - count)):
            if width:
                y.narrow(dim, edge, width).copy_(own.narrow(dim, edge, width))
        filled = True
    if not filled:
        y.copy_(own)
    for i, terms in _border(replace(axis, taps=tuple(weights))):
        for j, weight in terms:
            y.select(dim, i).add_(x.select(dim, j), alpha=weight)
    return y


def _spread_axis(g: Tensor, dim: int, axis: Axis) -> Tensor:
    """Return the adjoint of blurring one axis."""
    shape = list(g.shape)
    shape[dim] = axis.length
    out = g.new_zeros(shape)
    for n, weight in enumerate(axis.taps):
        first, count, start = _valid(axis, n)
        if count > 0:
            part = _every(out, dim, start, axis.stride, count)
            part.add_(g.narrow(dim, first, count), alpha=weight)
    for i, terms in _border(axis):
        for j, weight in terms:
            out.select(dim, j).add_(g.select(dim, i), alpha=weight)
    return out


def _spread(g: Tensor, kernel: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Return the adjoint of the whole blur: `Z` by a transposed convolution, `B` by strips."""
    rows, columns = axes
    out = F.conv_transpose2d(
        g,
        _depthwise(kernel, g),
        stride=tuple(a.stride for a in axes),
        padding=tuple(a.before for a in axes),
        output_padding=tuple(a.before - a.reach for a in axes),
        groups=g.shape[1],
    )
    for i, terms in _border(rows):
        strip = _spread_axis(g.select(2, i), 2, columns)
        for j, weight in terms:
            out.select(2, j).add_(strip, alpha=weight)
    zero_rows = replace(rows, mode="zeros")
    for i, terms in _border(columns):
        strip = _spread_axis(g.select(3, i), 2, zero_rows)
        for j, weight in terms:
            out.select(3, j).add_(strip, alpha=weight)
    return out


def _every(x: Tensor, dim: int, start: int, step: int, count: int) -> Tensor:
    """Return `count` samples of `dim`, from `start`, `step` apart."""
    index = (slice(None),) * dim + (slice(start, start + (count - 1) * step + 1, step),)
    return x[index]


def _valid(axis: Axis, n: int) -> tuple[int, int, int]:
    """Return for tap `n`: the first output that it reads the map for, how many, from where."""
    offset = n - axis.before
    first = max(0, -(offset // axis.stride))
    last = min(axis.size - 1, (axis.length - 1 - offset) // axis.stride)
    return first, last - first + 1, first * axis.stride + offset


@lru_cache(maxsize=1024)
def _border(axis: Axis) -> tuple[tuple[int, tuple[tuple[int, float], ...]], ...]:
    """Return `B`: for each output that reads beyond the map, the samples and weights it adds."""
    table: dict[int, dict[int, float]] = {}
    for i in range(axis.size):
        for n, weight in enumerate(axis.taps):
            position = i * axis.stride + n - axis.before
            source = source_index(position, axis.length, axis.mode)
            if source is not None and source != position:
                row = table.setdefault(i, {})
                row[source] = row.get(source, 0.0) + weight
    return tuple((i, tuple(row.items())) for i, row in table.items())


def _depthwise(kernel: Tensor, x: Tensor) -> Tensor:
    return kernel.to(x.dtype).expand(x.shape[1], 1, *kernel.shape[2:])


def blur_with_gradient(x: Tensor, kernel: Tensor, axes: tuple[Axis, ...], slices: bool) -> Tensor:
    """Blur, by slices or by the plain form, with a gradient that saves no map."""
    return _Blur.apply(x, kernel, axes, slices)


class _Blur(torch.autograd.Function):
    """The blur, whose gradient is `_Spread`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, axes: tuple[Axis, ...], slices: bool
    ) -> Tensor:
        """Blur `x`."""
        ctx.save_for_backward(kernel)
        ctx.axes, ctx.slices = axes, slices
        return blur_slices(x, axes) if slices else convolve(x, kernel, axes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Spread the gradient of the output over the input."""
        (kernel,) = ctx.saved_tensors
        return _Spread.apply(gradients[0], kernel, ctx.axes, ctx.slices), None, None, None


class _Spread(torch.autograd.Function):
    """The adjoint of the blur, whose gradient is `_Blur` again."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, kernel: Tensor, axes: tuple[Axis, ...], slices: bool
    ) -> Tensor:
        """Spread `g`."""
        ctx.save_for_backward(kernel)
        ctx.axes, ctx.slices = axes, slices
        return _spread(g, kernel, axes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Blur the gradient of the spread gradient."""
        (kernel,) = ctx.saved_tensors
        return _Blur.apply(gradients[0], kernel, ctx.axes, ctx.slices), None, None, None
