"""Where the windows of a pool stand along an axis.

This file, `padding.py`, `plain.py`, `average.py` and `dense_max_pool` keep to the part of Python
that `torch.jit.script` reads, so that one writing serves both.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aa_surgery.errors import InputError

__all__ = [
    "Ints",
    "border_of_pool",
    "channels_of",
    "extra_places",
    "known_sizes",
    "lacking",
    "pairs",
    "pooled_size",
    "pooled_sizes",
]

if TYPE_CHECKING:
    Ints = list[int] | tuple[int, ...]
else:
    Ints = list[int]  # TorchScript turns tuples of numbers into lists at the call


def pooled_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Return the number of windows that a pool of torch takes along an axis of `size` samples."""
    last = size + 2 * padding - kernel
    windows = (-(-last // stride) if ceil_mode else last // stride) + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1  # torch drops a window that would start behind the map
    return windows


def pooled_sizes(
    spatial: Ints, kernel_size: Ints, stride: Ints, padding: Ints, ceil_mode: bool
) -> list[int]:
    """Return `pooled_size` of each axis."""
    sizes: list[int] = []
    for i, n in enumerate(spatial):
        sizes.append(pooled_size(n, kernel_size[i], stride[i], padding[i], ceil_mode))
    return sizes


def border_of_pool(
    x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> list[int]:
    """Return the right border, one an axis, with which a pool of stride 1 reaches far enough.

    Every `stride`-th of its windows is one of the strided pool's, and no more of them are. That
    takes the same border for a map of every size: with `ceil_mode`, a stride less one more than
    the padding, but no window that would lie behind the map.

    Raises:
        InputError: The map has another number of axes, or is smaller than the window.
    """
    axes = len(kernel_size)
    if x.ndim != axes + 1 and x.ndim != axes + 2:
        raise InputError(
            f"pool over {axes} spatial axes needs {axes + 2} axes in all, or {axes + 1} of one "
            f"image, got {x.ndim}. Give maps of that shape."
        )
    after: list[int] = []
    for i, n in enumerate(known_sizes(x, axes)):
        span = dilation[i] * (kernel_size[i] - 1) + 1
        places = extra_places(span, stride[i], padding[i], ceil_mode)
        after.append(places + span - 1 - padding[i])
        if n + padding[i] + after[i] < span:
            raise InputError(
                f"pool of {span} samples on a map of {n} with padding {padding[i]}: the map is too "
                "small. Give the model a larger input."
            )
    return after


def extra_places(span: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Return at how many more places than an axis has samples a pool's window may begin.

    The windows begin at every `stride`-th of those places, for a map of every size. The first lies
    `padding` before the map; with `ceil_mode` the last is the last sample's, at most.
    """
    if ceil_mode:
        return min(2 * padding + stride - span, padding)
    return 2 * padding + 1 - span


def lacking(number: int, most: int, stride: int) -> int:
    """Return `most - number % stride`, and no less than 0.

    So many samples an axis lacks for a last window that depends on its size.
    """
    rest = most - number % stride
    if most >= stride - 1:
        return rest  # known without asking, where a graph leaves the size open
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return max(rest, 0)
    if isinstance(rest, Tensor):  # as sizes are while `torch.jit.trace` runs
        return rest.clamp(min=0)
    larger: int = torch.sym_max(rest, 0)  # type: ignore[assignment]
    return larger


def known_sizes(x: Tensor, axes: int) -> Ints:
    """Return the sizes of the last `axes` axes, to decide on.

    While `torch.jit.trace` runs, sizes are tensors, and a decision on one warns that it may not
    hold for others; here they are numbers. What is decided on them must hold for others.
    """
    if torch.jit.is_scripting() or not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return x.shape[-axes:]
    return _numbers(x.shape[-axes:])


def channels_of(x: Tensor) -> int:
    """Return the number of channels of `(N, C, *spatial)`, which a trace may keep."""
    if torch.jit.is_scripting() or not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return x.shape[1]
    return _numbers(x.shape[1:2])[0]


@torch.jit.unused
def _numbers(sizes: Ints) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [int(n) for n in sizes]


def pairs(before: Ints, after: Ints) -> list[int]:
    """Return the pads in the order of the axes, `(before, after)` each."""
    pads: list[int] = []
    for i, b in enumerate(before):
        pads += [b, after[i]]
    return pads
