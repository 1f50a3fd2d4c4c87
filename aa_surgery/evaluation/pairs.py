"""Shifted views of images in pairs, and whether a classifier agrees on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from aa_surgery.errors import InputError
from aa_surgery.evaluation.shifts import centre, circular_shifts, crop, crop_shifts, roll

__all__ = ["MARGIN", "Protocol", "agreement", "describe_protocol", "shift_pairs"]

Protocol = Literal["crop", "circular"]
MARGIN = 32


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Say for each image whether both views got the same class.

    Args:
        first: Logits `(N, classes)` of the first view, or predicted classes `(N,)`.
        second: The same of the second view.

    Returns:
        bool, `(N,)`.

    Raises:
        InputError: The shapes differ, or are neither of the two.

    >>> agreement(torch.tensor([[0.1, 0.9], [0.6, 0.4]]), torch.tensor([[0.3, 0.7], [0.1, 0.2]]))
    tensor([ True, False])
    """
    if first.shape != second.shape or first.ndim not in (1, 2):
        raise InputError(
            f"predictions of shapes {tuple(first.shape)} and {tuple(second.shape)}: "
            "give both views' logits (N, classes), or both views' classes (N,)."
        )
    if first.ndim == 2:
        if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
            raise InputError(
                "logits hold NaN or infinite values, of which an arg-max means nothing. "
                "Check the model's weights and the input's normalisation."
            )
        first, second = first.argmax(1), second.argmax(1)
    return first == second


def shift_pairs(
    images: Tensor,
    indices: Sequence[int] | Tensor,
    protocol: Protocol = "crop",
    size: int = 224,
    passes: int = 1,
    seed: int = 0,
    margin: int = MARGIN,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two shifted views of every image, once a pass.

    `"crop"`: two squares of `size` px at offsets `0 .. margin - 1` from the central square of
    `size + margin` px (224 of 256: Zhang's protocol). `"circular"`: the central square of `size`
    px, rolled by two shifts of `-margin .. margin - 1` px.

    Args:
        images: `(N, C, H, W)`.
        indices: Each image's number in its data set, `(N,)`; the draws depend on it alone.
        protocol: `"crop"` or `"circular"`.
        size: Side of the views, px.
        passes: Pairs an image.
        seed: Seed of the draws.
        margin: Range of the shifts, px.

    Yields:
        `(N, C, size, size)`, twice.

    Raises:
        InputError: The images are not 4-D or too small, the protocol is unknown, or the number
            of indices is not that of images.

    >>> a, b = next(shift_pairs(torch.rand(2, 3, 256, 256), indices=[0, 1]))
    >>> a.shape
    torch.Size([2, 3, 224, 224])
    """
    numbers = [int(i) for i in indices]
    region = centre(images, _check(images, len(numbers), protocol, size, margin))
    draw = crop_shifts if protocol == "crop" else circular_shifts
    offsets = torch.stack([draw(i, passes, seed, margin) for i in numbers], dim=1)
    for drawn in offsets.tolist():
        first, second = (
            torch.stack(
                [
                    crop(image, tuple(pair[view]), size)
                    if protocol == "crop"
                    else roll(image, tuple(pair[view]))
                    for image, pair in zip(region, drawn, strict=True)
                ]
            )
            for view in (0, 1)
        )
        yield first, second


def _check(images: Tensor, indices: int, protocol: str, size: int, margin: int) -> int:
    """Check the input of `shift_pairs` and return the side of the region that it works on."""
    if protocol not in get_args(Protocol):
        raise InputError(f"protocol {protocol!r} is unknown. Use one of {get_args(Protocol)}.")
    if images.ndim != 4:
        raise InputError(
            f"images of shape {tuple(images.shape)}: needs (N, C, H, W). "
            "Add the batch axis to a single image: image.unsqueeze(0)."
        )
    if indices != len(images) or indices == 0:
        raise InputError(f"{indices} indices for {len(images)} images: needs one an image.")
    needed = size + margin if protocol == "crop" else size
    if min(images.shape[-2:]) < needed:
        raise InputError(
            f"images of {images.shape[-2]}x{images.shape[-1]} px: the {protocol} protocol at size "
            f"{size} needs {needed} px a side. Resize the short side to {needed}, or use "
            f"size={max(1, min(images.shape[-2:]) - needed + size)}."
        )
    return needed


def describe_protocol(
    protocol: Protocol, size: int, passes: int, seed: int, margin: int = MARGIN
) -> str:
    """Return the protocol in words.

    >>> describe_protocol("crop", 224, 1, 0)
    'two 224 px crops at offsets 0..31 of 256 px, drawn per image, 1 pass, seed 0'
    """
    often = "1 pass" if passes == 1 else f"{passes} passes"
    what = (
        f"two {size} px crops at offsets 0..{margin - 1} of {size + margin} px"
        if protocol == "crop"
        else f"two circular shifts of {-margin}..{margin - 1} px at {size} px"
    )
    return f"{what}, drawn per image, {often}, seed {seed}"
