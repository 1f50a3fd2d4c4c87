"""Where the windows of a pool stand along an axis.

This file, `padding.py`, `plain.py`, `average.py` and `dense_max_pool` keep to the part of Python
that `torch.jit.script` reads, so that one writing serves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aa_surgery.errors import InputError

__all__ = ["Ints", "pairs", "pooled_size", "pooled_sizes", "reach_of_pool", "reaches_beyond"]

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


def reach_of_pool(
    spatial: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
) -> list[int]:
    """Return the right border, one an axis, that the last window of the strided pool needs.

    Raises:
        InputError: The map has another number of axes, or is smaller than the window.
    """
    if len(spatial) != len(kernel_size):
        raise InputError(
            f"pool over {len(kernel_size)} spatial axes needs {len(kernel_size) + 2} axes in all, "
            f"got {len(spatial) + 2}. Add the batch axis: x.unsqueeze(0)."
        )
    after: list[int] = []
    for i, n in enumerate(spatial):
        s, p = stride[i], padding[i]
        span = dilation[i] * (kernel_size[i] - 1) + 1
        windows = pooled_size(n, span, s, p, ceil_mode)
        if windows < 1:
            raise InputError(
                f"pool of {span} samples on a map of {n} with padding {p}: the map is too small. "
                "Give the model a larger input."
            )
        after.append(max(p, (windows - 1) * s + span - p - n))
    return after


def reaches_beyond(after: Ints, padding: Ints) -> bool:
    """Whether the last window needs a wider border than the padding."""
    for i, a in enumerate(after):
        if a > padding[i]:
            return True
    return False


def pairs(before: Ints, after: Ints) -> list[int]:
    """Return the pads in the order of the axes, `(before, after)` each."""
    pads: list[int] = []
    for i, b in enumerate(before):
        pads += [b, after[i]]
    return pads
