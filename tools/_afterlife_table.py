"""The after-life table: what the cells of both sides say together, as Markdown."""

from __future__ import annotations

import hashlib
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from _afterlife_models import Sample
from _afterlife_workers import MISSING, OK, Cell

from aa_surgery.reports.versions import installed_version

BOTH, OURS_ONLY, OURS_FAILS, NEITHER, NONE, UNKNOWN = "✓", "+", "✗", "–", "", "?"
LEGEND = {
    BOTH: "works on the anti-aliased model, and gives what its eager forward gives",
    OURS_ONLY: "works on the anti-aliased model, and fails on the untouched one",
    OURS_FAILS: "works on the untouched model, and fails on the anti-aliased one",
    NEITHER: "fails on the untouched model too",
    NONE: "the model has no such operation",
    UNKNOWN: "not run",
}
VERSIONS = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "segmentation_models_pytorch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "peft",
    "torchao",
)

_INTRODUCTION = """Of each module of timm the architecture with the fewest
parameters, more where a module holds several kinds, and some of other libraries. Random weights,
the smallest input that the model trains at, the default options of `apply_antialias`, or
`max_stride=None` where those leave every site of the model. The untouched model is tried wherever
the verdict depends on it."""

_SURGERY = ("integrations", "layers", "rules", "sites", "surgery")

Cells = Mapping[tuple[str, str, bool], Cell]


class Verdict(NamedTuple):
    """One cell of the table, and why it is not a ✓."""

    mark: str
    reason: str = ""


def matters(ours: Cell) -> bool:
    """Tell whether the verdict depends on what the untouched model does."""
    return ours.status != OK or bool(ours.detail)


def compare(original: Cell | None, ours: Cell | None) -> Verdict:
    """Return what the two sides of an operation say together."""
    if ours is None or (original is None and matters(ours)):
        return Verdict(UNKNOWN)
    if original is None:
        return Verdict(BOTH)
    if ours.status == OK:
        if original.status != OK:
            return Verdict(OURS_ONLY, original.detail)
        if original.detail != ours.detail:
            return Verdict(OURS_FAILS, f"“{ours.detail}” instead of “{original.detail}”")
        return Verdict(BOTH)
    if original.status == OK:
        return Verdict(OURS_FAILS, ours.detail)
    return Verdict(NONE if original.status == MISSING else NEITHER, original.detail)


def document(
    samples: Sequence[Sample],
    operations: Mapping[str, str],
    cells: Cells,
    arguments: Sequence[str],
) -> str:
    """Return the Markdown file.

    Args:
        samples: The rows.
        operations: The columns, with what each does.
        cells: Those of both sides.
        arguments: The command line's, for the header.
    """
    verdicts = {
        (s, o): compare(cells.get((s.name, o, False)), cells.get((s.name, o, True)))
        for s in samples
        for o in operations
    }
    counts = Counter(v.mark for v in verdicts.values())
    families = len({s.family for s in samples})
    return (
        "\n".join(
            [
                "# After-life: what worked on the model works after the surgery",
                "",
                f"Written by `python tools/afterlife.py {' '.join(arguments)}`".rstrip() + ", on",
                f"{_versions()}.",
                "",
                f"{len(samples)} models of {families} families. {_INTRODUCTION}",
                "",
                *(
                    f"- `{mark or ' '}` {text}: {counts[mark]} cells"
                    for mark, text in LEGEND.items()
                ),
                "",
                *_table(samples, operations, verdicts),
                "",
                "## The operations",
                "",
                *(f"- **{name}**: {text}" for name, text in operations.items()),
                "",
                "## Cells that are no ✓",
                "",
                *_reasons(operations, verdicts),
            ]
        ).rstrip()
        + "\n"
    )


def _table(
    samples: Sequence[Sample],
    operations: Mapping[str, str],
    verdicts: Mapping[tuple[Sample, str], Verdict],
) -> list[str]:
    head = " | ".join(name.replace("_", " ") for name in operations)
    lines = [f"| family | model | {head} |", "|---|---|" + ":-:|" * len(operations)]
    for s in samples:
        marks = " | ".join(verdicts[s, o].mark for o in operations)
        lines.append(f"| {s.family} | `{s.name}` | {marks} |")
    return lines


def _reasons(
    operations: Mapping[str, str], verdicts: Mapping[tuple[Sample, str], Verdict]
) -> list[str]:
    """Return a list for each operation: mark, reason, and the models that share both."""
    lines = []
    for operation in operations:
        groups: dict[Verdict, list[str]] = {}
        for (sample, name), verdict in verdicts.items():
            if name == operation and verdict.mark in (OURS_ONLY, OURS_FAILS, NEITHER):
                reason = Verdict(verdict.mark, _plain(verdict.reason))
                groups.setdefault(reason, []).append(sample.name)
        if not groups:
            continue
        lines += [f"### {operation}", ""]
        for (mark, reason), names in sorted(groups.items()):
            lines.append(f"- {mark} `{reason}` ({len(names)}): {', '.join(names)}")
        lines.append("")
    return lines or ["None."]


def _plain(reason: str) -> str:
    """Return a reason without what differs from run to run, or would end the line's code."""
    reason = re.sub(r"\b0x[0-9a-f]{6,}", "0x…", reason).replace("`", "'")
    reason = re.sub(r"\x1b\[\d*m", "", reason)
    reason = re.sub(r"/\S*/(site-packages|tmp)/", "", reason)
    return reason if len(reason) <= 200 else reason[:199] + "…"


def fingerprint(treated: bool) -> str:
    """Return the name of what a side's cells depend on: versions, this tool, and our source."""
    root = Path(__file__).parent
    sources = [p for p in root.glob("_afterlife_*.py") if p != Path(__file__)]
    if treated:
        package = root.parent / "aa_surgery"
        sources += [p for part in _SURGERY for p in (package / part).rglob("*.py")]
    state = hashlib.sha256(_versions().encode())
    for path in sorted(sources):
        state.update(path.read_bytes())
    return f"{'ours' if treated else 'original'}-{state.hexdigest()[:12]}"


def _versions() -> str:
    named = ", ".join(f"{package} {installed_version(package)}" for package in VERSIONS)
    return f"Python {platform.python_version()}, {named}"
