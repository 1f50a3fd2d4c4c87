"""What the tables of `tools/methods.py` compare, and where its measurements are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aa_surgery.cli.files import replacing
from aa_surgery.methods import list_methods

UNTOUCHED = "none"
# a polyphase method takes a blur in front of it
VARIANTS = tuple(
    variant
    for method in list_methods()
    for variant in ((method, f"{method}+tri-3") if method == "aps" else (method,))
)
PENALISED = "learned+penalty"  # trained with `alias_penalty` in the loss
PENALTY = 10.0  # its weight there
MISSING = "not run"


def surgery_of(taps: str) -> dict[str, Any]:
    """Return the keywords of `apply_antialias` for FILTER, METHOD, METHOD+FILTER or PENALISED."""
    if taps == PENALISED:
        return {"method": "learned"}
    method, _, behind = taps.partition("+")
    if method not in list_methods():
        return {"filter": taps}
    return {"method": method, "filter": behind} if behind else {"method": method}


def keep(folder: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """Return the file of a measurement: another one where the settings are others."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    return folder / f"{name}-{digest}.json"


def read(path: Path) -> dict[str, Any] | None:
    """Return a measurement, None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def measured(path: Path, measure: Callable[[], dict[str, Any]]) -> bool:
    """Measure what is not there yet; tell whether that was so."""
    if path.is_file():
        return False
    found = json.dumps(measure())
    with replacing(path) as place:
        place.write_text(found)
    return True


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; a row that is too short says that it was not run."""
    filled = [[*row, *[MISSING] * (len(head) - len(row))] for row in rows]
    lines = [head, ["---"] * len(head), *filled]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
