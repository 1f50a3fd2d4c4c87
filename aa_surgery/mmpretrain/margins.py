"""Keep what surrounds the centre crop, so that shifted crops can be cut from it later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import Compose
from mmpretrain.datasets import CenterCrop, PackInputs

from aa_surgery.errors import InputError
from aa_surgery.evaluation.shifts import centre

__all__ = ["REGION", "KeepMargin", "keep_margins"]

REGION = "shift_region"


class KeepMargin:
    """Keep the central square of `size + margin` px beside the image, which stays as it is.

    **Required Keys:** `img`, `sample_idx`. **Added Keys:** `shift_region`, `(C, H, W)`.

    Args:
        size: Side of the views to be cut from the square, px.
        margin: Number of their offsets an axis, px.

    Raises:
        InputError: The image is smaller than the square, or has no index.

    >>> import numpy as np
    >>> results = dict(img=np.zeros((300, 256, 3), np.uint8), sample_idx=0)
    >>> KeepMargin(size=224, margin=32)(results)["shift_region"].shape
    torch.Size([3, 256, 256])
    """

    def __init__(self, size: int, margin: int) -> None:
        self.size = size
        self.margin = margin

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the square to `results`."""
        height, width = results["img"].shape[:2]
        image, needed = results.get("img_path", "an image"), self.size + self.margin
        if min(height, width) < needed:
            room = min(height, width) - self.size
            smaller = f", or give the hook margin={room}" if room > 0 else ""
            raise InputError(
                f"{image} is {height}x{width} px before CenterCrop: crops of {self.size} px at "
                f"{self.margin} offsets need {needed} px a side. Resize it larger in the test "
                f"pipeline (ResizeEdge with scale={needed}){smaller}."
            )
        if "sample_idx" not in results:
            raise InputError(
                f"{image} comes without `sample_idx`, on which the drawn shifts depend. Let the "
                "data set inherit mmengine's BaseDataset, which gives it."
            )
        results[REGION] = centre(PackInputs.format_input(results["img"]), needed)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, margin={self.margin})"


def keep_margins(dataset: Any, margin: int) -> None:
    """Put a `KeepMargin` before the centre crop of every pipeline; again is harmless.

    Args:
        dataset: A data set with a pipeline, or one that wraps others.
        margin: Number of offsets an axis, px.

    Raises:
        InputError: A pipeline does not end in `CenterCrop` and `PackInputs`, or crops no square.
    """
    for owner, pipeline in _pipelines(dataset):
        steps = pipeline.transforms
        if any(isinstance(step, KeepMargin) for step in steps):
            continue
        crop, pack = steps[-2:] if len(steps) > 1 else (None, None)
        if not (isinstance(crop, CenterCrop) and isinstance(pack, PackInputs)):
            raise InputError(
                f"the pipeline of {owner} is {', '.join(type(s).__name__ for s in steps)}: shift "
                "consistency needs one that ends in CenterCrop, PackInputs, whose margin the "
                "crops are shifted in. For crops of 224 px, end it in dict(type='ResizeEdge', "
                f"scale={224 + margin}), dict(type='CenterCrop', crop_size=224), "
                "dict(type='PackInputs'), and use no test-time augmentation (--tta)."
            )
        width, height = crop.crop_size
        if width != height:
            raise InputError(
                f"CenterCrop in the pipeline of {owner} cuts {width}x{height} px: shift "
                "consistency is measured on squares. Give it an integer crop_size."
            )
        steps.insert(-2, KeepMargin(width, margin))
        pack.algorithm_keys = (*pack.algorithm_keys, REGION)
        pack.meta_keys = tuple(dict.fromkeys((*pack.meta_keys, "sample_idx")))


def _pipelines(dataset: Any) -> Iterator[tuple[str, Compose]]:
    """Yield each pipeline with the name of its data set; wrappers hold `datasets` or `dataset`."""
    if isinstance(getattr(dataset, "pipeline", None), Compose):
        yield type(dataset).__name__, dataset.pipeline
        return
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for part in inner:
        if part is None:
            raise InputError(
                f"{type(dataset).__name__} has no `pipeline`, and wraps no data set: shift "
                "consistency cannot reach its images. Use a data set of mmpretrain."
            )
        yield from _pipelines(part)
