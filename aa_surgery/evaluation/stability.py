"""Stability: the confidence of one class while the image moves pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aa_surgery.errors import InputError
from aa_surgery.evaluation.running import device_of, evaluating, logits_of
from aa_surgery.evaluation.shifts import Offset, centre, crop

__all__ = ["diagonal_path", "mean_step_change", "shift_confidence", "staircase_path"]


def diagonal_path(steps: int = 32) -> list[Offset]:
    """Return the offsets of a walk one px down and one right at a time, `steps + 1` positions.

    Source: Zhang 2019 (arXiv:1904.11486), section 4.2, its diagonal shifts of 0 to 32 px.

    >>> diagonal_path(2)
    [(0, 0), (1, 1), (2, 2)]
    """
    return [(t, t) for t in range(steps + 1)]


def staircase_path(steps: int = 32) -> list[Offset]:
    """Return the offsets of a walk one px right, one down alternately, `2 steps + 1` positions.

    Each step moves the image by exactly one pixel.

    >>> staircase_path(1)
    [(0, 0), (0, 1), (1, 1)]
    """
    return [(t // 2, (t + 1) // 2) for t in range(2 * steps + 1)]


def shift_confidence(
    model: nn.Module,
    image: Tensor,
    class_index: int,
    path: Sequence[Offset] | None = None,
    size: int = 224,
    batch_size: int = 32,
) -> Tensor:
    """Measure the softmax confidence of a class at every position of a walk.

    Args:
        model: Takes `(N, C, size, size)` and returns logits `(N, classes)`; run in eval mode.
        image: `(C, H, W)`, normalised; its central part is used, as large as the walk needs.
        class_index: The class to follow.
        path: Offsets `(y, x)` of the crop, px, not negative; `staircase_path()` by default.
        size: Side of the crop, px.
        batch_size: Crops to run at a time.

    Returns:
        Confidences in 0..1, `(positions,)`, on the CPU.

    Raises:
        InputError: The image is not 3-D, or smaller than the walk needs.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> shift_confidence(model, torch.ones(4, 256, 256), class_index=2)[:2]
    tensor([0.2500, 0.2500])
    """
    walk = staircase_path() if path is None else list(path)
    if image.ndim != 3:
        raise InputError(f"image of shape {tuple(image.shape)}: needs one image, (C, H, W).")
    if not walk or min(min(offset) for offset in walk) < 0:
        raise InputError("path: needs one or more offsets (y, x), none negative.")
    needed = size + max(max(offset) for offset in walk)
    if min(image.shape[-2:]) < needed:
        raise InputError(
            f"image of {image.shape[-2]}x{image.shape[-1]} px: this walk at size {size} needs "
            f"{needed} px a side. Resize the short side to {needed}, or take a shorter path."
        )
    region = centre(image, needed).to(device_of(model))
    confidences: list[Tensor] = []
    with torch.inference_mode(), evaluating(model):
        for start in range(0, len(walk), batch_size):
            crops = [crop(region, offset, size) for offset in walk[start : start + batch_size]]
            logits = logits_of(model, torch.stack(crops))
            if not 0 <= class_index < logits.shape[1]:
                raise InputError(f"class {class_index}: the model has {logits.shape[1]} classes.")
            confidences.append(logits.float().softmax(1)[:, class_index].cpu())
    return torch.cat(confidences)


def mean_step_change(confidence: Tensor) -> float:
    r"""Return $\frac{100}{T}\sum_t |c_{t+1} - c_t|$, percentage points a step.

    Args:
        confidence: In 0..1, `(positions,)`.

    Raises:
        InputError: There are fewer than two positions.

    >>> round(mean_step_change(torch.tensor([0.5, 0.7, 0.6])), 3)
    15.0
    """
    if confidence.ndim != 1 or len(confidence) < 2:
        raise InputError(
            f"confidence of shape {tuple(confidence.shape)}: needs (positions,), two or more."
        )
    return 100 * float(confidence.diff().abs().mean())
