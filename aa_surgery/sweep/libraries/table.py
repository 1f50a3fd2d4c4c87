"""The table of the libraries' models, for people: `docs/outside.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from aa_surgery.sweep.advice import advice
from aa_surgery.sweep.coverage import table
from aa_surgery.sweep.libraries.findings import LAWS
from aa_surgery.sweep.libraries.registry import LIBRARIES
from aa_surgery.sweep.libraries.run import CANNOT
from aa_surgery.sweep.rows import Row

__all__ = ["document", "is_whole"]

_INTRO = """\
# Models of other libraries

The models of libraries that people use beside timm, torchvision and MMPretrain: of each the
smallest of its kind, with random weights and few layers, on small inputs, anti-aliased with
`max_stride=None`. A model is *wholly treated* where no sampling op is left, untreated, or beyond
what the audit can read."""

_LAWS_TEXT = "\n".join(f"- **{law}**: {text}." for law, text in LAWS.items())


def document(rows: Iterable[Row], versions: Mapping[str, str], command: str) -> str:
    """Return the Markdown of a sweep.

    Args:
        rows: The sweep's rows.
        versions: Versions of the libraries, by name.
        command: What was typed.
    """
    order = list(LIBRARIES)
    ordered = sorted(rows, key=lambda row: (order.index(row.family), row.name))
    shown = [f"{name} {version}" for name, version in versions.items() if name != "code"]
    ran = [row for row in ordered if not row.failure]
    parts = [
        f"{_INTRO}\n\nMade by `{command}`, with {', '.join(shown)}.",
        "## Totals\n\n" + _totals(ordered),
        f"## Laws\n\n{_LAWS_TEXT}\n\n" + _laws(ordered),
        "## What breaks\n\n" + _broken(ordered),
        "## What is left, and why\n\n" + _reasons(ran),
        "## What the audit cannot read\n\n"
        + _counted_lines(
            (row.family, entry.rpartition(": ")[2])
            for row in ran
            for entry in row.found["unjudged"]
        ),
        "## Not tested\n\n" + _not_tested(ran),
        "## Models that do not run untouched\n\n"
        + table(
            ("model", "why"),
            [(f"`{r.name}`", r.failure.removeprefix(CANNOT)) for r in ordered if _cannot(r)],
        ),
        "## Not in the sweep\n\n"
        + table(
            ("library", "what", "why"),
            [(n, what, why) for n, lib in LIBRARIES.items() for what, why in lib.left_out.items()],
        ),
        "## Every model\n\n" + _models(ran),
    ]
    return "\n\n".join(parts) + "\n"


def is_whole(row: Row) -> bool:
    """Return whether nothing that the model samples is left, untreated or unread."""
    f = row.found
    return not row.failure and not (f["left"] or f["untreated"] or f["unjudged"])


def _cannot(row: Row) -> bool:
    return row.failure.startswith(CANNOT)


def _crashes(row: Row) -> int:
    lost = bool(row.failure) and not _cannot(row)
    return lost + sum(what.startswith("crash: ") for what in row.broken.values())


_HEAD = (
    "library",
    "models",
    "do not run untouched",
    "wholly treated",
    "sites treated",
    "left",
    "untreated without reason",
    "unread by the audit",
    "false blurs",
    "crashes",
    "all laws hold",
)


def _totals(rows: Sequence[Row]) -> str:
    groups = {name: [r for r in rows if r.family == name] for name in LIBRARIES}
    lines = [(name, *_counts(group)) for name, group in groups.items() if group]
    return table(_HEAD, [*lines, ("**all**", *_counts(rows))])


def _counts(rows: Sequence[Row]) -> tuple[object, ...]:
    """Return the numbers under `_HEAD`."""
    able = [r for r in rows if not _cannot(r)]
    found = [r.found for r in able if not r.failure]
    return (
        len(rows),
        len(rows) - len(able),
        f"{sum(map(is_whole, able))} of {len(able)}",
        sum(f["edits"] for f in found),
        sum(sum(f["left"].values()) for f in found),
        sum(len(f["untreated"]) for f in found),
        sum(len(f["unjudged"]) for f in found),
        sum(len(f["false_blurs"]) for f in found),
        sum(map(_crashes, able)),
        f"{sum(not r.problems for r in able)} of {len(able)}",
    )


def _laws(rows: Sequence[Row]) -> str:
    lines = []
    for name in LIBRARIES:
        group = [r for r in rows if r.family == name and not r.failure]
        if group:
            tested = {law: [r for r in group if law in (*r.held, *r.broken)] for law in LAWS}
            cells = [
                f"{sum(law in r.held for r in those)} of {len(those)}" if those else "-"
                for law, those in tested.items()
            ]
            lines.append((name, *cells))
    return table(("library", *LAWS), lines)


def _broken(rows: Sequence[Row]) -> str:
    lines = [(f"`{row.name}`", law, what) for row in rows for law, what in row.broken.items()]
    lines += [(f"`{r.name}`", "", r.failure) for r in rows if r.failure and not _cannot(r)]
    return table(("model", "law", "what"), lines)


def _reasons(rows: Sequence[Row]) -> str:
    """Return the reasons of sites left, with and without a limit of the stride."""
    left: Counter[str] = Counter()
    default: Counter[str] = Counter()
    for row in rows:
        left += Counter(row.found["left"])
        default += Counter(row.found["default_left"])
    head = ("reason", "`max_stride=None`", "default", "what you can do")
    lines = [(reason, left[reason], default[reason], advice(reason)) for reason in left | default]
    return table(head, sorted(lines))


def _counted_lines(entries: Iterable[tuple[str, str]]) -> str:
    counted = sorted(Counter(entries).items())
    return table(("library", "op", "count"), [(lib, f"`{op}`", n) for (lib, op), n in counted])


def _not_tested(rows: Sequence[Row]) -> str:
    notes = sorted((f"`{row.name}`", note) for row in rows for note in row.found["notes"])
    return table(("model", "why"), notes)


def _models(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        f = row.found
        left = sum(f["left"].values())
        cells = (f["edits"], left, len(f["untreated"]), len(f["unjudged"]))
        lines.append((f"`{row.name}`", f"{f['parameters'] / 1e6:.1f}", *cells, len(row.broken)))
    head = ("model", "M parameters", "treated", "left", "untreated", "unread", "laws broken")
    return table(head, lines)
