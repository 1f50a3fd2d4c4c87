"""The demo's measurements of two models, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aa_surgery.demo.result import Cost, Measured, PhotoResult
from aa_surgery.evaluation import (
    ImageFiles,
    Preprocess,
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

__all__ = ["compare_cost", "compare_files", "compare_photos", "compare_shifts"]

SIZE = 224
_BATCH = 8  # of what a CPU's caches hold best


def compare_photos(
    before: nn.Module, after: nn.Module, photographs: Mapping[str, Tensor], steps: int = 32
) -> tuple[PhotoResult, ...]:
    """Name each photograph by both models, and follow the original's class through the walk.

    Args:
        before: The original, in eval mode.
        after: The anti-aliased model, in eval mode.
        photographs: Normalised squares `(3, 256, 256)` by name.
        steps: Length of the walk in each direction, px, at most 32.
    """
    from timm.data import ImageNetInfo

    info, walk = ImageNetInfo(), staircase_path(steps)
    crops = torch.stack([centre(square, SIZE) for square in photographs.values()])
    with torch.inference_mode():
        sure, sure_after = (model(crops).softmax(1) for model in (before, after))
    results = []
    for i, (name, square) in enumerate(photographs.items()):
        followed, named = int(sure[i].argmax()), int(sure_after[i].argmax())
        path_before, path_after = (
            tuple(shift_confidence(model, square, followed, walk, SIZE, _BATCH).tolist())
            for model in (before, after)
        )
        results.append(
            PhotoResult(
                name=name,
                followed=info.index_to_description(followed).split(",")[0],
                confidence_before=float(sure[i, followed]),
                confidence_after=float(sure_after[i, followed]),
                named_after=info.index_to_description(named).split(",")[0],
                named_after_confidence=float(sure_after[i, named]),
                kept=named == followed,
                path_before=path_before,
                path_after=path_after,
            )
        )
    return tuple(results)


def compare_cost(before: nn.Module, after: nn.Module, repeats: int) -> Cost:
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


def compare_shifts(
    before: nn.Module, after: nn.Module, photographs: Mapping[str, Tensor], passes: int, seed: int
) -> Measured:
    """Measure both models' shift consistency on the photographs, many shifts each."""
    squares = torch.stack(list(photographs.values()))
    results = [
        measure_consistency(model, [squares], size=SIZE, passes=passes, seed=seed)
        for model in (before, after)
    ]
    return Measured(f"{len(squares)} photographs", *results)


def compare_files(
    before: nn.Module, after: nn.Module, files: ImageFiles, preprocess: Preprocess, seed: int
) -> Measured:
    """Measure both models' shift consistency, and accuracy where folders name ImageNet classes."""
    known = files.label_source in ("index", "wordnet id")
    with progress_bar("images", total=2 * len(files)) as advance:
        results = [
            measure_consistency(
                model,
                (
                    (images, labels if known else None, indices)
                    for images, labels, indices in iterate_batches(files, preprocess, _BATCH)
                ),
                size=SIZE,
                seed=seed,
                progress=advance,
            )
            for model in (before, after)
        ]
    return Measured(files.path.name, *results)
