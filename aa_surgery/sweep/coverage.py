"""The table of a sweep, for people: `docs/coverage.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from aa_surgery.sweep.advice import advice
from aa_surgery.sweep.catalogue import EXCLUDED, SOURCES
from aa_surgery.sweep.identity import TOLERANCE
from aa_surgery.sweep.rows import Row

__all__ = ["coverage", "problems", "summary", "table"]

_INTRO = """\
# Coverage

Every architecture of the installed libraries, anti-aliased with `max_stride=None` (no stride is too
large), then audited. A site is an op that `find_sites` names, in a branch that runs or not, or one
that only the audit, which shares no code with it, saw run. The **structural laws** (shape, keys,
self, nothing missed, twice, undo; `docs/design.md`) are tested on the meta device, or with values
where the model needs them. The **identity law** is tested with values: under `filter="identity"`
the outputs are the original's, in placements `auto` and `post`, at the smallest even size that the
model accepts and at an odd one, for architectures of up to 60 M parameters."""


def coverage(rows: Iterable[Row], versions: Mapping[str, str], command: str) -> str:
    """Return the Markdown of a sweep.

    Args:
        rows: The sweep's rows.
        versions: Versions of the libraries, by name.
        command: What was typed.
    """
    ordered = sorted(rows, key=lambda row: (SOURCES.index(row.source), row.family, row.key))
    shown = [f"{name} {version}" for name, version in versions.items() if name != "code"]
    parts = [
        f"{_INTRO}\n\nMade by `{command}`, with {', '.join(shown)}.",
        "## Totals\n\n" + _totals(ordered),
        "## What is left, and why\n\n" + _reasons(ordered),
        "## What the audit cannot read\n\n" + _unread(ordered),
        "## The identity law\n\n" + _identity(ordered),
        "## Failures\n\n" + _failures(ordered),
        "## Not in the sweep\n\n" + table(("what", "why"), EXCLUDED.items()),
        "## By family\n\n" + _families(ordered),
    ]
    return "\n\n".join(parts) + "\n"


def problems(rows: Iterable[Row]) -> list[str]:
    """Return every failure and broken law, as `"source name: what"`."""
    return [f"{r.source} {r.name}: {problem}" for r in rows for problem in r.problems]


def summary(rows: Sequence[Row]) -> str:
    """Return what a terminal should show at the end of a sweep."""
    wrong = problems(rows)
    lines = [f"{len(rows)} examinations, {len(wrong)} problems", *wrong]
    return "\n".join(lines)


_HEAD = (
    "architectures",
    "sites",
    "treated",
    "left",
    "ops seen by the audit",
    "untreated",
    "unread",
    "structural laws",
    "identity law",
)


def _totals(rows: Sequence[Row]) -> str:
    groups = [(source, [r for r in rows if r.source == source]) for source in SOURCES]
    groups = [(name, group) for name, group in groups if group]
    totals = table(("source", *_HEAD), [(name, *_counts(group)) for name, group in groups])
    wide = [
        (name, *_wholly(group, "left"), *_wholly(group, "default_left")) for name, group in groups
    ]
    head = (
        "source",
        "sites treated, `max_stride=None`",
        "architectures wholly",
        "sites treated, default `max_stride=4`",
        "architectures wholly",
    )
    return f"{totals}\n\n{table(head, wide)}"


def _wholly(rows: Sequence[Row], left: str) -> tuple[str, str]:
    """Return the sites treated, and the architectures of which nothing is left or missed."""
    found = [r.found for r in rows if r.laws == "structural" and not r.failure]
    sites = sum(map(_sites, found))
    missed = [sum(_left(f, left).values()) + len(f["untreated"]) for f in found]
    whole = sum(not n and not f["unread"] for n, f in zip(missed, found, strict=True))
    return _share(sites - sum(missed), sites), _share(whole, len(found))


def _left(found: Mapping[str, Any], left: str = "left") -> Counter[str]:
    """Return the reasons of what is left, those included that excuse what only the audit saw."""
    unnamed = {k: n for k, n in found["audit_left"].items() if k not in found["left"]}
    return Counter(found[left]) + Counter(unnamed)


def _sites(found: Mapping[str, Any]) -> int:
    """Return the number of sites: those that find named, and those that only the audit saw."""
    return int(found["edits"]) + sum(_left(found).values()) + len(found["untreated"])


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "-"


def _families(rows: Sequence[Row]) -> str:
    lines = [
        (source, f"`{family}`", *_counts(list(group)))
        for (source, family), group in groupby(rows, key=lambda r: (r.source, r.family))
    ]
    return table(("source", "family", *_HEAD), lines)


def _counts(rows: Sequence[Row]) -> tuple[object, ...]:
    """Return the numbers under `_HEAD`."""
    structural = [r for r in rows if r.laws == "structural"]
    found = [r.found for r in structural if not r.failure]
    identity = [r for r in rows if r.laws == "identity" and (r.failure or r.found["runs"])]
    return (
        len({r.name for r in rows}),
        sum(map(_sites, found)),
        sum(f["edits"] for f in found),
        sum(sum(_left(f).values()) for f in found),
        sum(f["sampled"] for f in found),
        sum(len(f["untreated"]) for f in found),
        sum(len(f["unread"]) for f in found),
        _held(structural),
        _held(identity),
    )


def _held(rows: Sequence[Row]) -> str:
    return f"{sum(not r.problems for r in rows)} of {len(rows)}" if rows else "-"


def _reasons(rows: Sequence[Row]) -> str:
    """Return the reasons of sites left, with and without a limit of the stride."""
    left: Counter[str] = Counter()
    default: Counter[str] = Counter()
    for row in rows:
        if row.laws == "structural" and not row.failure:
            left += _left(row.found)
            default += _left(row.found, "default_left")
    lines = [(reason, left[reason], default[reason], advice(reason)) for reason in left | default]
    head = ("reason", "`max_stride=None`", "default", "what you can do")
    return table(head, sorted(lines))


def _unread(rows: Sequence[Row]) -> str:
    ops: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        for entry in row.found.get("unread", ()):
            ops[row.source, row.family, entry.rpartition(": ")[2]] += 1
    lines = [(source, f"`{family}`", f"`{op}`", n) for (source, family, op), n in ops.items()]
    return table(("source", "family", "op", "count"), sorted(lines))


def _identity(rows: Sequence[Row]) -> str:
    identity = [r for r in rows if r.laws == "identity"]
    ran = [r for r in identity if not r.failure and r.found["runs"]]
    if not ran:
        return "Not tested."
    parts = []
    for dtype, tolerance in TOLERANCE.items():
        those = [r for r in ran if r.found["dtype"] == dtype]
        if those:
            runs = sum(len(r.found["runs"]) for r in those)
            worst = max(r.found["error_below"] for r in those)
            parts.append(
                f"{runs} comparisons of {len(those)} architectures in {dtype}, within a relative "
                f"difference of {tolerance:.0e}; what is within is below {worst:.0e}."
            )
    text = "\n\n".join(parts)
    why = Counter(reason for r in identity for reason in r.found.get("not_run", ()))
    return f"{text}\n\n" + table(("not run", "architectures"), sorted(why.items()))


def _failures(rows: Sequence[Row]) -> str:
    lines = [(r.source, f"`{r.name}`", r.laws, problem) for r in rows for problem in r.problems]
    return table(("source", "architecture", "laws", "what"), lines)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, or `None.` without rows."""
    lines = [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    if not lines:
        return "None."
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])
