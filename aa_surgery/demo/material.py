"""What the demo recalibrates on: never a photograph that it shows or measures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from aa_surgery.demo.photos import ADAPTED_ON, load_photographs, random_crops
from aa_surgery.demo.weights import LITE_PREPROCESS, SIZE
from aa_surgery.errors import InputError
from aa_surgery.evaluation import ImageFiles, iterate_batches
from aa_surgery.evaluation.shifts import centre

__all__ = ["Material", "crops_of_others", "halves"]

_BATCH = 20


@dataclass(frozen=True)
class Material:
    """Hold images to recalibrate on.

    Attributes:
        words: What they are.
        count: Their number.
        batches: The images, normalised, `(N, 3, 224, 224)`.
    """

    words: str
    count: int
    batches: Iterable[Tensor]


def crops_of_others(quick: bool, seed: int) -> Material:
    """Return crops of the photographs that the demo does not show, the same for one seed."""
    crops = random_crops(load_photographs(ADAPTED_ON), each=4 if quick else 12, seed=seed)
    words = f"{len(crops)} crops of {len(ADAPTED_ON)} other photographs"
    return Material(words, len(crops), crops.split(_BATCH))


def halves(files: ImageFiles) -> tuple[Material, ImageFiles]:
    """Return half of the readable images as material, and the others to measure on.

    Raises:
        InputError: There are fewer than two.
    """
    found = files.readable()
    if len(found) < 2:
        raise InputError(
            f"{found.path}: one image. Give at least two, to recalibrate on one and measure on the "
            "other; a few hundred are needed for a result that means something."
        )
    mine, others = found.split(len(found) // 2)
    words = f"{len(mine)} of the {len(found)} images in {found.path.name}"
    return Material(words, len(mine), _central_crops(mine)), others


def _central_crops(files: ImageFiles) -> Iterable[Tensor]:
    for squares, _, _ in iterate_batches(files, LITE_PREPROCESS, _BATCH):
        yield centre(squares, SIZE)
