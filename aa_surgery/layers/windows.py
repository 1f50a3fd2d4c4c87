"""Where the windows of a pool stand along an axis."""

from __future__ import annotations

from collections.abc import Sequence

from aa_surgery.errors import InputError

__all__ = ["pooled_size", "reach_of_pool"]


def pooled_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Return the number of windows that a pool of torch takes along an axis of `size` samples."""
    last = size + 2 * padding - kernel
    windows = (-(-last // stride) if ceil_mode else last // stride) + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1  # torch drops a window that would start behind the map
    return windows


def reach_of_pool(
    spatial: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
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
    after = []
    for n, k, s, p, d in zip(spatial, kernel_size, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        if n + 2 * p < span:
            raise InputError(
                f"pool of {span} samples on a map of {n} with padding {p}: the map is too small. "
                "Give the model a larger input."
            )
        last = (pooled_size(n, span, s, p, ceil_mode) - 1) * s
        after.append(max(p, last + span - p - n))
    return after
