"""Two shifted views of photographs drawn at random, as a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aa_surgery.errors import InputError

__all__ = ["Views"]


class Views:
    """Draw two crops each of a batch of photographs, both mirrored or neither.

    What step `k` gets depends on `k` and the seed alone, so that a run that goes on where it was
    interrupted sees what it would have seen. Every photograph comes once before one comes twice.

    Args:
        images: Normalised photographs `(C, H, W)` of one size, by index.
        batch_size: Photographs a step; at most their number.
        margin: By how much the photographs are larger than the crops, px.
        seed: Seed of the draws.

    Raises:
        InputError: There is no photograph, they are not 3-D or differ in size, or are no larger
            than the margin, or the batch size is below 1.

    >>> first, second = Views(torch.rand(5, 3, 40, 40), batch_size=4, margin=8)(step=0)
    >>> first.shape, second.shape
    (torch.Size([4, 3, 32, 32]), torch.Size([4, 3, 32, 32]))
    """

    def __init__(
        self, images: Sequence[Tensor] | Tensor, batch_size: int, margin: int, seed: int = 0
    ) -> None:
        if not len(images) or batch_size < 1:
            raise InputError(
                f"{len(images)} images in batches of {batch_size}: at least one image, and a "
                "batch of one, are needed."
            )
        shape = images[0].shape
        if len(shape) != 3 or not 0 <= margin < min(shape[1:]):
            raise InputError(
                f"an image of shape {tuple(shape)} with a margin of {margin} px: needs "
                "(C, H, W), larger than the margin. Crops are by the margin smaller than the image."
            )
        self.images, self.margin, self.seed = images, margin, seed
        self.batch_size = min(batch_size, len(images))
        self.size = tuple(side - margin for side in shape[1:])

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the two views of step `step`, `(N, C, H - margin, W - margin)` each."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        numbers = self._numbers(step)
        mirrored = torch.rand(len(numbers), generator=draw) < 0.5
        offsets = torch.randint(self.margin + 1, (2, len(numbers), 2), generator=draw)
        pictures = [
            self.images[i].flip(-1) if flip else self.images[i]
            for i, flip in zip(numbers, mirrored.tolist(), strict=True)
        ]
        first, second = (
            torch.stack([self._crop(p, *o) for p, o in zip(pictures, view.tolist(), strict=True)])
            for view in offsets
        )
        return first, second

    def _numbers(self, step: int) -> list[int]:
        """Return which photographs step `step` gets: the next ones of an endless reshuffling."""
        count, first = len(self.images), step * self.batch_size
        orders = {
            epoch: torch.randperm(
                count, generator=torch.Generator().manual_seed(self.seed * 7_368_787 + epoch)
            )
            for epoch in {first // count, (first + self.batch_size - 1) // count}
        }
        return [int(orders[k // count][k % count]) for k in range(first, first + self.batch_size)]

    def _crop(self, image: Tensor, top: int, left: int) -> Tensor:
        if image.shape[1:] != (self.size[0] + self.margin, self.size[1] + self.margin):
            raise InputError(
                f"an image of shape {tuple(image.shape)} among others of "
                f"{self.size[0] + self.margin}x{self.size[1] + self.margin} px: resize all alike."
            )
        return image[:, top : top + self.size[0], left : left + self.size[1]]
