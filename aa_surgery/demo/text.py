"""The demo's words: one function a part, numbers in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aa_surgery.demo.result import Cost, DemoResult, Photo
from aa_surgery.evaluation import ConsistencyResult
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


def photos(seen: Mapping[str, Sequence[Photo]]) -> str:
    """Return each model's top-1 of each photograph, and how much a pixel moves it."""
    rows = [
        [
            views[0].name,
            *(f"{v.named} {100 * v.named_confidence:.0f} %" for v in views),
            " / ".join(f"{v.step:.2f}" for v in views),
        ]
        for views in zip(*seen.values(), strict=True)
    ]
    table = text_table(["photograph", *seen, "pt/px, in that order"], rows)
    walked = len(next(iter(seen.values()))[0].path) - 1
    return (
        f"{table}\npt/px: mean change, in percentage points, of the confidence in the original's "
        f"top-1\nas the photograph moves one pixel right, one down, in turn ({walked} px)."
    )


def cost(result: Cost) -> str:
    """Return FLOPs, parameters and time before and after the surgery."""
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


def shifts(measured: Mapping[str, ConsistencyResult]) -> str:
    """Return the consistency on the photographs, and what it is worth."""
    images = next(iter(measured.values())).images
    table = _measured(f"{images} photographs", measured)
    return f"{table}\nFew photographs, many shifts: it speaks for these alone."


def files(measured: Mapping[str, ConsistencyResult], source: str) -> str:
    """Return consistency, and accuracy where labels are known, on the images that were given."""
    table = f"\n{_measured(f'{source}, the others', measured)}"
    if next(iter(measured.values())).top1 is not None:
        return table
    return (
        f"{table}\nNo accuracy: folders name no ImageNet class, as <index>_<name> or a WordNet id "
        "would."
    )


def _measured(source: str, measured: Mapping[str, ConsistencyResult]) -> str:
    first, all_of_them = next(iter(measured.values())), measured.values()
    rows = [
        ["shift consistency, %", *(f"{r.consistency:.1f}" for r in all_of_them)],
        ["95 % interval", *("{:.1f} to {:.1f}".format(*r.interval) for r in all_of_them)],
    ]
    if first.top1 is not None:
        rows.append(["top-1 accuracy, %", *(f"{r.top1:.1f}" for r in all_of_them)])
    return f"{_table(source, measured, rows)}\n{first.images} images; {first.protocol}"


def _table(title: str, models: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    return text_table([title, *models], rows, ["left", "right", "right", "right"])


def truth(result: DemoResult) -> str:
    """Return what the surgery has cost in accuracy and what came back, in plain words."""
    models, count = result.models, len(result.original.photos)
    rows = [
        [f"top-1 class kept, of {count} photographs", *(str(m.kept) for m in models)],
        ["mean confidence in that class, %", *(f"{100 * m.confidence:.1f}" for m in models)],
        ["its mean change, points a pixel", *(f"{m.step:.2f}" for m in models)],
        ["shift consistency there, %", *(f"{m.photographs.consistency:.1f}" for m in models)],
    ]
    given = [m.images for m in models if m.images is not None]
    if given:
        others = f"{given[0].images} images of {result.images}"
        rows.append([f"shift consistency, {others}, %", *(f"{r.consistency:.1f}" for r in given)])
        if given[0].top1 is not None:
            rows.append([f"top-1 accuracy, {others}, %", *(f"{r.top1:.1f}" for r in given)])
    return "\n".join(
        [
            _table(f"{result.filter} blur", (m.name for m in models), rows),
            f"Recalibrated on {result.adapted_on}, without labels and without training:",
            "statistics of the norms were corrected, and every weight is the original's.",
            "The gains in consistency that were published are those of networks trained with the",
            "blur: aa-surgery adapt distills one, tools/finetune.py fine-tunes one.",
        ]
    )
