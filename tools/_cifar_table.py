"""The table of `tools/cifar10.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from aa_surgery.errors import InputError
from aa_surgery.evaluation import wilson_interval

MARKER = "<!-- cifar10 -->"
MEASURES = {"top1": "top-1 %", "crops": "consistency, crops %", "rolls": "consistency, rolls %"}
Result = Mapping[str, Any]


def table(results: Sequence[Result], kind: str = "filter") -> str:
    """Return a row for each model and filter: mean over seeds, interval, and each seed's gain.

    Args:
        results: The runs.
        kind: The head of the column that says what the networks differ by.
    """
    head = ["model", kind, "seeds"]
    for title in MEASURES.values():
        head += [title, "over the baseline"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["model"], result["filter"]), []).append(result)
    order = list(dict.fromkeys(model for model, _ in groups))
    for (model, taps), runs in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
        base = {run["seed"]: run for run in groups.get((model, "none"), [])}
        cells = [model, taps, str(len(runs))]
        for name in MEASURES:
            cells += [_value(runs, name), "" if taps == "none" else _gain(runs, base, name)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _value(runs: Sequence[Result], name: str) -> str:
    """Return the mean over the seeds, with the interval that so many images give."""
    images = runs[0]["images"]
    middle = mean(run[name] for run in runs)
    low, high = wilson_interval(middle / 100 * images, images)
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


def _gain(runs: Sequence[Result], base: Mapping[int, Result], name: str) -> str:
    """Return the mean gain over the baseline of the same seed, and each seed's."""
    gains = [run[name] - base[run["seed"]][name] for run in runs if run["seed"] in base]
    if not gains:
        return ""
    each = ", ".join(f"{gain:+.1f}" for gain in gains)
    return f"**{mean(gains):+.1f}** ({each})" if len(gains) > 1 else f"**{each}**"


def inserted(document: str, text: str, marker: str = MARKER) -> str:
    """Return `document` with `text` between its two markers."""
    parts = document.split(marker)
    if len(parts) != 3:
        raise InputError(f"--write: the file has no pair of {marker} lines. Add them.")
    return marker.join([parts[0], f"\n{text}\n", parts[2]])
