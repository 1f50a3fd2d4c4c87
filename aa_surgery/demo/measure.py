"""The demo's measurements of its models, by name, the original first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aa_surgery.demo.result import Cost, Photo
from aa_surgery.demo.weights import LITE_PREPROCESS, SIZE
from aa_surgery.evaluation import (
    ConsistencyResult,
    ImageFiles,
    count_flops,
    count_parameters,
    iterate_batches,
    measure_consistency,
    measure_time_ratio,
    shift_confidence,
    staircase_path,
)
from aa_surgery.evaluation.shifts import centre
from aa_surgery.layers import canonical_form
from aa_surgery.reports import progress_bar

__all__ = ["measure_cost", "measure_files", "measure_photos", "measure_shifts"]

Models = Mapping[str, nn.Module]
_BATCH = 8  # of what a CPU's caches hold best


def measure_photos(
    models: Models, photographs: Mapping[str, Tensor], steps: int = 32
) -> dict[str, tuple[Photo, ...]]:
    """Name each photograph by each model, and follow the original's class through a walk.

    Args:
        models: In eval mode; the first is the original.
        photographs: Normalised squares `(3, 256, 256)` by name.
        steps: Length of the walk in each direction, px, at most 32.
    """
    crops = torch.stack([centre(square, SIZE) for square in photographs.values()])
    with torch.inference_mode():
        sure = {name: model(crops).softmax(1) for name, model in models.items()}
    followed = next(iter(sure.values())).argmax(1).tolist()
    return {
        name: tuple(
            _photo(model, title, square, row, index, steps)
            for (title, square), row, index in zip(
                photographs.items(), sure[name], followed, strict=True
            )
        )
        for name, model in models.items()
    }


def _photo(
    model: nn.Module, title: str, square: Tensor, sure: Tensor, followed: int, steps: int
) -> Photo:
    from timm.data import ImageNetInfo

    info, named = ImageNetInfo(), int(sure.argmax())
    walked = shift_confidence(model, square, followed, staircase_path(steps), SIZE, _BATCH)
    return Photo(
        name=title,
        followed=info.index_to_description(followed).split(",")[0],
        confidence=float(sure[followed]),
        named=info.index_to_description(named).split(",")[0],
        named_confidence=float(sure[named]),
        kept=named == followed,
        path=tuple(walked.tolist()),
    )


def measure_cost(before: nn.Module, after: nn.Module, repeats: int) -> Cost:
    """Count and time one 224 px image through both models."""
    x = torch.zeros(1, 3, SIZE, SIZE)
    with canonical_form():  # the faster forms of the blur are sums, which are not counted
        flops_before, flops_after = count_flops(before, x), count_flops(after, x)
    return Cost(
        flops_before=flops_before,
        flops_after=flops_after,
        parameters_before=count_parameters(before),
        parameters_after=count_parameters(after),
        time=measure_time_ratio(before, after, x, repeats=repeats),
    )


def measure_shifts(
    models: Models, photographs: Mapping[str, Tensor], passes: int, seed: int
) -> dict[str, ConsistencyResult]:
    """Measure each model's shift consistency on the photographs, many shifts each."""
    squares = torch.stack(list(photographs.values()))
    return {
        name: measure_consistency(model, [squares], size=SIZE, passes=passes, seed=seed)
        for name, model in models.items()
    }


def measure_files(models: Models, files: ImageFiles, seed: int) -> dict[str, ConsistencyResult]:
    """Measure each model's shift consistency, and accuracy where folders name ImageNet classes."""
    known = files.label_source in ("index", "wordnet id")
    with progress_bar("measuring", total=len(models) * len(files)) as advance:
        return {
            name: measure_consistency(
                model,
                (
                    (images, labels if known else None, indices)
                    for images, labels, indices in iterate_batches(files, LITE_PREPROCESS, _BATCH)
                ),
                size=SIZE,
                seed=seed,
                progress=advance,
            )
            for name, model in models.items()
        }
