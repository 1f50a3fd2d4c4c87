"""Shift consistency: how often a classifier names the same class for two shifts of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.errors import InputError
from aa_surgery.evaluation.intervals import effective_pairs, wilson_interval
from aa_surgery.evaluation.pairs import (
    MARGIN,
    Protocol,
    agreement,
    describe_protocol,
    shift_pairs,
)
from aa_surgery.evaluation.running import device_of, evaluating, logits_of
from aa_surgery.evaluation.shifts import centre

__all__ = ["ConsistencyResult", "measure_consistency"]


@dataclass(frozen=True)
class ConsistencyResult:
    """Hold one measurement of shift consistency.

    Attributes:
        consistency: Pairs of equal arg-max, %.
        interval: 95 % Wilson interval of it, %. With more than one pass the pairs of one image
            are not independent: the interval then counts the effective number of pairs, which
            lies between the number of images and that of pairs. It speaks for images drawn like
            these ones, not for others.
        top1: Accuracy on the central crop, %; None without labels.
        images: Number of images.
        pairs: Number of pairs, `images` times the passes.
        protocol: The protocol in words, seed included.
    """

    consistency: float
    interval: tuple[float, float]
    top1: float | None
    images: int
    pairs: int
    protocol: str

    def __str__(self) -> str:
        low, high = self.interval
        top1 = "" if self.top1 is None else f", top-1 {self.top1:.1f} %"
        return (
            f"shift consistency {self.consistency:.1f} % (95 %: {low:.1f} to {high:.1f}){top1}, "
            f"{self.images} images, {self.pairs} pairs; {self.protocol}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return {**asdict(self), "interval": list(self.interval)}


def measure_consistency(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Any]],
    *,
    protocol: Protocol = "crop",
    size: int = 224,
    passes: int = 1,
    seed: int = 0,
    margin: int = MARGIN,
    device: torch.device | str | None = None,
    progress: Callable[[int], object] | None = None,
    central: Callable[[Tensor], object] | None = None,
) -> ConsistencyResult:
    """Measure the shift consistency of a classifier, and its accuracy where labels are given.

    Source: Zhang 2019 (arXiv:1904.11486), section 4.2, made deterministic (`crop_shifts`).

    Args:
        model: Takes `(N, C, size, size)` and returns logits `(N, classes)`. It is run in eval
            mode; every module's mode is restored.
        batches: Images `(N, C, H, W)`, `(images, labels)`, or `(images, labels, indices)`, labels
            None where unknown. Without indices an image's number is its place in the sequence.
        protocol: `"crop"` or `"circular"`; see `shift_pairs`.
        size: Side of the views, px.
        passes: Pairs an image.
        seed: Seed of the draws.
        margin: Range of the shifts, px.
        device: Where to run; the model is moved there and stays. Its own device by default.
        progress: Called with the number of images after each batch.
        central: Called with the predicted classes `(N,)` on the central crops of each batch.

    Returns:
        The result; `str()` of it is one line.

    Raises:
        InputError: No image came, images are too small or not 4-D, or the model does not return
            logits.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> measure_consistency(model, [torch.rand(4, 3, 40, 40)], size=32, margin=8).images
    4
    """
    if device is not None:
        model.to(device)
    agreed: list[Tensor] = []
    correct = labelled = seen = 0
    with torch.inference_mode(), evaluating(model):
        for batch in batches:
            images, labels, indices = _unpack(batch, seen)
            images = images.to(device_of(model))
            pairs = shift_pairs(images, indices, protocol, size, passes, seed, margin)
            agreed.append(
                torch.stack(
                    [agreement(logits_of(model, a), logits_of(model, b)).cpu() for a, b in pairs]
                ).sum(0)
            )
            if labels is not None or central is not None:
                predicted = logits_of(model, centre(images, size)).argmax(1).cpu()
                if labels is not None:
                    correct += int((predicted == labels.cpu()).sum())
                    labelled += len(labels)
                if central is not None:
                    central(predicted)
            seen += len(images)
            if progress is not None:
                progress(len(images))
    if not seen:
        raise InputError("no image to measure: `batches` is empty. Give at least one batch.")
    total = torch.cat(agreed)
    fraction = float(total.sum()) / (seen * passes)
    trials = effective_pairs(total, passes)
    return ConsistencyResult(
        consistency=100 * fraction,
        interval=wilson_interval(fraction * trials, trials),
        top1=100 * correct / labelled if labelled else None,
        images=seen,
        pairs=seen * passes,
        protocol=describe_protocol(protocol, size, passes, seed, margin),
    )


def _unpack(
    batch: Tensor | Sequence[Any], seen: int
) -> tuple[Tensor, Tensor | None, Sequence[int] | Tensor]:
    """Split a batch into images, labels and indices, after checking the labels."""
    parts = [batch] if isinstance(batch, Tensor) else list(batch)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], Tensor):
        raise InputError(
            f"a batch of type {type(batch).__name__}: give images, (images, labels) or "
            "(images, labels, indices), the images being one tensor (N, C, H, W)."
        )
    images = parts[0]
    labels, indices = [*parts[1:], None, None][:2]
    if labels is not None:
        labels = torch.as_tensor(labels)
        if labels.shape != (len(images),) or labels.is_floating_point():
            raise InputError(
                f"labels of shape {tuple(labels.shape)} and type {labels.dtype} for "
                f"{len(images)} images: needs one integer class an image, (N,)."
            )
    numbers = range(seen, seen + len(images)) if indices is None else indices
    return images, labels, numbers
