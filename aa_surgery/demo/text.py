"""The demo's words: one function a part, numbers in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from aa_surgery.demo.result import Cost, DemoResult, Measured, PhotoResult
from aa_surgery.reports import text_table

__all__ = ["cost", "files", "photos", "section", "shifts", "truth"]


def section(title: str, body: str) -> str:
    """Return a part under its heading.

    >>> print(section("Cost", "nothing"))
    <BLANKLINE>
    Cost
    ----
    nothing
    """
    return f"\n{title}\n{'-' * len(title)}\n{body}"


def photos(results: Sequence[PhotoResult]) -> str:
    """Return both models' top-1 of each photograph, and how much a pixel moves them."""
    rows = [
        [
            p.name,
            f"{p.followed} {100 * p.confidence_before:.0f} %",
            f"{p.named_after} {100 * p.named_after_confidence:.0f} %",
            "kept" if p.kept else "lost",
            f"{p.step_before:.2f}",
            f"{p.step_after:.2f}",
        ]
        for p in results
    ]
    columns = ["photograph", "original", "anti-aliased", "top-1", "pt/px", "pt/px, aa"]
    table = text_table(columns, rows, ["left", "left", "left", "left", "right", "right"])
    return (
        f"{table}\npt/px: mean change, in percentage points, of the confidence in the original's "
        "top-1\nas the photograph moves one pixel right, one down, in turn "
        f"({len(results[0].path_before) - 1} px)."
    )


def cost(result: Cost) -> str:
    """Return FLOPs, parameters and time of both models."""
    before, after, time = result.flops_before, result.flops_after, result.time
    parameters = result.parameters_before, result.parameters_after
    rows = [
        ["GFLOPs (2 x MACs)", f"{before / 1e9:.3f}", f"{after / 1e9:.3f}", f"{after / before:.2f}"],
        ["parameters", *(f"{n:,}" for n in parameters), f"{parameters[1] / parameters[0]:.2f}"],
        [
            f"ms, medians of {time.repeats} in turns, {time.threads} threads",
            f"{time.first_ms:.1f}",
            f"{time.second_ms:.1f}",
            f"{time.ratio:.2f}",
        ],
    ]
    columns = ["one 224 px image", "original", "anti-aliased", "ratio"]
    return text_table(columns, rows, ["left", "right", "right", "right"])


def shifts(measured: Measured) -> str:
    """Return the consistency on the photographs, and what it is worth."""
    return f"{_measured(measured)}\nFew photographs, many shifts: it speaks for these alone."


def files(measured: Measured) -> str:
    """Return consistency, and accuracy where labels are known, on the images that were given."""
    if measured.before.top1 is not None:
        return _measured(measured)
    hint = "No accuracy: folders name no ImageNet class, as <index>_<name> or a WordNet id would."
    return f"{_measured(measured)}\n{hint}"


def _measured(measured: Measured) -> str:
    both = (measured.before, measured.after)
    rows = [
        ["shift consistency, %", *(f"{r.consistency:.1f}" for r in both)],
        ["95 % interval", *("{:.1f} to {:.1f}".format(*r.interval) for r in both)],
    ]
    if measured.before.top1 is not None:
        rows.append(["top-1 accuracy, %", *(f"{r.top1:.1f}" for r in both)])
    table = text_table(
        [measured.source, "original", "anti-aliased"], rows, ["left", "right", "right"]
    )
    return f"{table}\n{measured.before.images} images; {measured.before.protocol}"


def truth(result: DemoResult) -> str:
    """Return what the surgery has cost in accuracy, in plain words."""
    confidence, step = _means(result, "confidence", 100), _means(result, "step", 1)
    lines = [
        f"No fine-tuning was done. Of {len(result.photos)} photographs {result.kept} keep their "
        "top-1 class.",
        f"Mean confidence in the original's class goes {_from_to(*confidence)} %,",
        f"its mean change {_from_to(*step)} points a pixel,",
        f"their shift consistency {_from_to(*_consistencies(result.photographs))} %.",
    ]
    measured, images = result.photographs, result.images
    if images:
        measured = images
        top1 = (images.before.top1, images.after.top1)
        if top1[0] is not None and top1[1] is not None:
            lines.append(f"On {images.source} top-1 accuracy goes {_from_to(top1[0], top1[1])} %,")
        lines.append(f"shift consistency there goes {_from_to(*_consistencies(images))} %.")
    if measured.after.consistency < measured.before.consistency:
        lines.append("So without fine-tuning even shift consistency falls here.")
    lines += [
        "A steady line near zero is no virtue: weights trained without the blur must be fine-tuned",
        "with it before their steadiness is worth having.",
    ]
    return "\n".join(lines)


def _from_to(before: float, after: float) -> str:
    return f"from {before:.1f} to {after:.1f}"


def _means(result: DemoResult, field: str, scale: float) -> tuple[float, float]:
    return scale * result.mean(f"{field}_before"), scale * result.mean(f"{field}_after")


def _consistencies(measured: Measured) -> tuple[float, float]:
    return measured.before.consistency, measured.after.consistency
