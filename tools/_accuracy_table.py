"""The tables of `tools/accuracy.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aa_surgery.errors import InputError

MARKER = "<!-- accuracy -->"
STEPS = {"surgery": "surgery alone", "recalibrated": "recalibrated", "distilled": "distilled"}
HEAD = ("filter", "placement", "FLOPs")
Result = Mapping[str, Any]


def tables(results: Sequence[Sequence[Result | None]], rows: Sequence[tuple[str, str]]) -> str:
    """Return a table for each model, one row for each filter and placement.

    Args:
        results: For each model, what each row's cell found; None where it was not run.
        rows: Filter and placement of each row.
    """
    parts = [_table(found, rows) for found in results if any(found)]
    if any(_incomplete(r) for found in results for r in found):
        parts.append("Empty cells were not run.")
    return "\n\n".join(parts)


def _incomplete(result: Result | None) -> bool:
    return result is None or not STEPS.keys() <= result["steps"].keys()


def _table(found: Sequence[Result | None], rows: Sequence[tuple[str, str]]) -> str:
    first = next(result for result in found if result is not None)
    original = first["steps"]["original"]["measured"]["consistency"]
    low, high = original["interval"]
    title = (
        f"### {first['cell']['model']}, {first['size']} px\n\n"
        f"Adapted on {first['adapted_on']} photographs, measured on {original['images']} others: "
        f"{original['protocol']}. The untouched model: top-1 {original['top1']:.1f} %, consistency "
        f"{original['consistency']:.1f} % (95 %: {low:.1f} to {high:.1f}), "
        f"{first['flops_before'] / 1e9:.2f} GFLOPs, {first['parameters_before'] / 1e6:.2f} M "
        f"parameters{_parameters(found)}."
    )
    head = list(HEAD)
    for step in STEPS.values():
        head += [f"{step}: top-1", "as the original", "consistency"]
    head.append("minutes")
    lines = [_line(head), "|---" * len(head) + "|"]
    for result, row in zip(found, rows, strict=True):
        lines.append(_line([*row, *_cells(result)]))
    return f"{title}\n\n" + "\n".join(lines)


def _parameters(found: Sequence[Result | None]) -> str:
    """Say so where every anti-aliased model has the original's parameters."""
    same = all(r["parameters_before"] == r["parameters_after"] for r in found if r is not None)
    return ", as many after surgery" if same else ""


def _cells(result: Result | None) -> list[str]:
    if result is None:
        return [""] * (2 + 3 * len(STEPS))
    cells = [f"x {result['flops_after'] / result['flops_before']:.2f}"]
    minutes = 0.0
    for name in STEPS:
        step = result["steps"].get(name)
        if step is None:
            cells += [""] * 3
            continue
        minutes += step["minutes"]
        measured = step["measured"]
        accuracy = measured["consistency"]["top1"]
        low, high = measured["consistency"]["interval"]
        cells += [
            "" if accuracy is None else f"{accuracy:.1f}",
            f"{measured['agreement']:.1f}",
            f"{measured['consistency']['consistency']:.1f} ({low:.0f}–{high:.0f})",
        ]
    return [*cells, f"{minutes:.1f}"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def inserted(document: str, text: str) -> str:
    """Return `document` with `text` between its two markers."""
    parts = document.split(MARKER)
    if len(parts) != 3:
        raise InputError(f"--write: the file has no pair of {MARKER} lines. Add them.")
    return MARKER.join([parts[0], f"\n{text}\n", parts[2]])
