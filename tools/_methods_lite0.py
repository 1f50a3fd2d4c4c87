"""What is left of a trained network's accuracy behind each method, and what recalibration gives."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import _accuracy_cells
from _accuracy_cells import Cell
from _accuracy_weights import MODELS
from _methods_variants import UNTOUCHED, markdown, surgery_of

ARGUMENTS = ("images", "limit", "adapt_images", "weights_dir")
MODEL = MODELS[0]
STEPS = {"surgery": "surgery alone", "recalibrated": "recalibrated"}
NOTES = {"lps": "starts at random"}


def work(options: argparse.Namespace) -> Iterator[str]:
    """Run the cells that were not run; say what each found."""
    for variant in options.methods:
        cell = cell_of(options, variant)
        if _accuracy_cells.read(options.out, cell) is None:
            yield _accuracy_cells.run(cell, options.out, options.weights_dir)


def cell_of(options: argparse.Namespace, variant: str) -> Cell:
    surgery = surgery_of(variant)
    return Cell(
        model=MODEL,
        method=surgery["method"],
        filter=surgery.get("filter", ""),
        placement="auto",
        images=str(options.images.resolve()),
        limit=options.limit,
        adapt_images=options.adapt_images,
        passes=1,
        seed=0,
        device="cpu",
    )


def table(options: argparse.Namespace) -> str:
    """Return the table, the untouched network first."""
    found = {v: _accuracy_cells.read(options.out, cell_of(options, v)) for v in options.methods}
    first = next((result for result in found.values() if result), None)
    if first is None:
        return f"{MODEL}: not run."
    original = first["steps"]["original"]["measured"]["consistency"]
    title = (
        f"{MODEL}, {first['size']} px. Adapted on {first['adapted_on']} photographs, measured on "
        f"{original['images']} others: {original['protocol']}."
    )
    head = ["method"]
    for step in STEPS.values():
        head += [f"{step}: top-1", "as the original", "consistency"]
    rows = [[UNTOUCHED, *_cells(first, "original"), *[""] * 3]]
    for variant, result in found.items():
        label = f"{variant} ({NOTES[variant]})" if variant in NOTES else variant
        cells = [c for step in STEPS for c in _cells(result, step)] if result else []
        rows.append([label, *cells])
    return f"{title}\n\n{markdown(head, rows)}"


def _cells(result: dict[str, Any], step: str) -> list[str]:
    measured = result["steps"][step]["measured"]
    accuracy, agreement = measured["consistency"]["top1"], measured["agreement"]
    low, high = measured["consistency"]["interval"]
    return [
        "" if accuracy is None else f"{accuracy:.1f}",
        "" if agreement is None else f"{agreement:.1f}",
        f"{measured['consistency']['consistency']:.1f} ({low:.0f}–{high:.0f})",
    ]
