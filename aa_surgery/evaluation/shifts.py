"""Deterministic image shifts, drawn for each image by itself.

The draws come from a counter-based generator whose counter *is* (image index, pass): they do not
depend on batch size, order, number of workers or of devices, nor on any global random state.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aa_surgery.errors import InputError

__all__ = ["centre", "circular_shifts", "crop", "crop_shifts", "roll"]

Offset = tuple[int, int]


def crop_shifts(index: int, passes: int = 1, seed: int = 0, margin: int = 32) -> Tensor:
    """Draw two crop offsets an image and pass, uniform in `0 .. margin - 1` px.

    Philox4x64-10 with key `(seed, 0)` and counter `(1, index, pass, 0)`: its four words are the
    pair's `(y, x)` offsets, so a draw is a pure function of these numbers.

    Source: Zhang 2019 (arXiv:1904.11486), section 4.2, which draws a batch at a time, unseeded;
    the generator is Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.

    Args:
        index: The image's number in its data set.
        passes: Pairs to draw for the image.
        seed: Any number of 0 .. 2^64 - 1.
        margin: Number of different offsets an axis.

    Returns:
        int64, `(passes, 2, 2)`: pass, view, `(y, x)`.

    Raises:
        InputError: `index`, `passes`, `seed` or `margin` is out of range.

    >>> crop_shifts(index=7, passes=2).shape
    torch.Size([2, 2, 2])
    >>> bool((crop_shifts(index=7, passes=2)[1] == crop_shifts(index=7, passes=5)[1]).all())
    True
    """
    if margin < 1:
        raise InputError(f"margin {margin}: at least 1 px is needed.")
    return _draw(index, passes, seed, margin)


def circular_shifts(index: int, passes: int = 1, seed: int = 0, margin: int = 32) -> Tensor:
    """Draw two circular shifts an image and pass, uniform in `-margin .. margin - 1` px.

    Source: Chaman and Dokmanic 2021 (arXiv:2011.14214), section 4; generator as `crop_shifts`.

    Returns:
        int64, `(passes, 2, 2)`: pass, view, `(y, x)`.

    Raises:
        InputError: `index`, `passes`, `seed` or `margin` is out of range.

    >>> int(circular_shifts(index=7).abs().max()) <= 32
    True
    """
    if margin < 1:
        raise InputError(f"margin {margin}: at least 1 px is needed.")
    return _draw(index, passes, seed, 2 * margin) - margin


def _draw(index: int, passes: int, seed: int, modulus: int) -> Tensor:
    for name, value, least in (("index", index, 0), ("passes", passes, 1), ("seed", seed, 0)):
        if not least <= value < 2**64:
            raise InputError(f"{name} {value}: must be at least {least} and below 2^64.")
    key = np.array([seed, 0], dtype=np.uint64)
    # Raw words: unlike numpy's distributions, the bit stream is promised never to change.
    words = [
        np.random.Philox(counter=np.array([0, index, p, 0], dtype=np.uint64), key=key).random_raw(4)
        for p in range(passes)
    ]
    offsets = (np.stack(words) % np.uint64(modulus)).astype(np.int64)
    return torch.from_numpy(offsets).view(passes, 2, 2)


def crop(image: Tensor, offset: Offset, size: int) -> Tensor:
    """Cut the square of `size` px whose top left corner lies at `offset`.

    Args:
        image: `(..., H, W)`.
        offset: `(y, x)`, px.
        size: Side of the square, px.

    Returns:
        `(..., size, size)`, a view.

    Raises:
        InputError: The square reaches past the image.

    >>> crop(torch.arange(16).view(1, 4, 4), (1, 2), 2).tolist()
    [[[6, 7], [10, 11]]]
    """
    y, x = offset
    height, width = image.shape[-2:]
    if min(y, x) < 0 or y + size > height or x + size > width:
        raise InputError(
            f"crop of {size} px at (y, x) = ({y}, {x}) reaches past an image of {height}x{width}. "
            "Use a larger image, a smaller size, or smaller offsets."
        )
    return image[..., y : y + size, x : x + size]


def centre(image: Tensor, size: int) -> Tensor:
    """Cut the central square of `size` px; the upper left one of two equally central.

    Raises:
        InputError: The image is smaller than that.

    >>> centre(torch.arange(5).expand(1, 5, 5), 2)[0, 0].tolist()
    [1, 2]
    """
    height, width = image.shape[-2:]
    return crop(image, ((height - size) // 2, (width - size) // 2), size)


def roll(image: Tensor, offset: Offset) -> Tensor:
    """Shift circularly by `offset`: what leaves on one side comes back on the other.

    Args:
        image: `(..., H, W)`.
        offset: `(y, x)`, px; positive moves the content down and to the right.

    Returns:
        `(..., H, W)`.

    >>> roll(torch.arange(4).view(1, 1, 4), (0, 1)).tolist()
    [[[3, 0, 1, 2]]]
    """
    return torch.roll(image, shifts=offset, dims=(-2, -1))
