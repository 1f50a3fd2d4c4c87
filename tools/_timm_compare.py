"""Compare two runs of the same tests, and write down what differs."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
KINDS = (
    "pass both",
    "ours passes, timm's not run",
    "only ours fails",
    "only timm's fails",
    "neither passes",
    "skipped",
    "not run",
)
NOT_THERE: Row = {"outcome": "not collected", "message": "the test is not there with aa_* models"}


def compared(
    items: Sequence[str], original: Mapping[str, Row], ours: Mapping[str, Row]
) -> list[Row]:
    """Return one row a test: both outcomes, their kind, and what the test built."""
    rows = []
    for item in items:
        a, b = original.get(item, NOT_THERE), ours.get(item, NOT_THERE)
        row = {"id": item, "kind": kind(a["outcome"], b["outcome"]), "original": a, "ours": b}
        row["built"] = b.get("models", 0)
        row["treated"] = b.get("treated", 0)
        rows.append(row)
    return rows


def kind(original: str, ours: str) -> str:
    """Return which of KINDS two outcomes are: "failed" is all that is not a pass or a skip."""
    if original == "not run" or ours == "not run":
        return KINDS[1] if ours == "passed" else "not run"
    if original == "passed":
        return "pass both" if ours == "passed" else "only ours fails"
    if ours == "passed":
        return "only timm's fails"
    return "skipped" if original == ours == "skipped" else "neither passes"


def regressions(result: Mapping[str, Any]) -> list[str]:
    """Return the tests that pass for the original, and for ours fail, crash, hang or are lost."""
    return [row["id"] for row in result["tests"] if row["kind"] == "only ours fails"]


def document(result: Mapping[str, Any]) -> str:
    """Return the summary in Markdown."""
    rows: list[Row] = result["tests"]
    kinds = Counter(row["kind"] for row in rows)
    spent = [sum(row[v].get("seconds", 0.0) for row in rows) for v in ("original", "ours")]
    parts = [
        "# timm's own tests, with `aa_*` models",
        f"`{result['command']}`",
        ", ".join(f"{name} {v}" for name, v in result["versions"].items()) + ".",
        f"{len(rows)} tests with `aa_*` models ({spent[1]:.0f} s of tests) and with timm's "
        f"({spent[0]:.0f} s): " + ", ".join(f"**{k}: {kinds[k]}**" for k in KINDS) + ".",
        table(rows),
        "*treated*: tests in which `timm.create_model` gave at least one model with "
        "anti-aliasing; a test of the others passes whatever the surgery does.",
        "## Only ours fails: the list to empty",
        reasons(rows, "only ours fails", "ours"),
        "## Neither passes, by reason",
        reasons(rows, "neither passes", "original"),
        "## Only timm's fails",
        reasons(rows, "only timm's fails", "original"),
        "## Skipped by timm's tests, by reason",
        reasons(rows, "skipped", "original"),
    ]
    if result["uncollected"]:
        lines = [f"- `{file}`: {text}" for file, text in sorted(result["uncollected"].items())]
        parts += ["## Files that pytest could not read, for either", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def table(rows: Iterable[Row]) -> str:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[function(row["id"])].append(row)
    lines = [
        "| test | runs | treated | " + " | ".join(KINDS) + " |",
        "|---" + "|---:" * (2 + len(KINDS)) + "|",
    ]
    for name, group in sorted(groups.items()):
        kinds = Counter(row["kind"] for row in group)
        treated = sum(row["treated"] > 0 for row in group)
        counts = [len(group), treated, *(kinds[k] for k in KINDS)]
        lines.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def reasons(rows: Iterable[Row], wanted: str, variant: str) -> str:
    """Return the tests of a kind, those of one function and one reason on a line."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["kind"] == wanted:
            result = row[variant]
            key = function(row["id"]), result["outcome"], general(result["message"])
            groups[key].append(row["id"])
    lines = []
    for (name, outcome, text), ids in sorted(groups.items()):
        some = ", ".join(parameters(i) for i in ids[:4]) + (", ..." if len(ids) > 4 else "")
        lines.append(f"- {name}: {outcome}, {len(ids)} ({some}): {text}")
    return "\n".join(lines) or "None."


def function(item: str) -> str:
    """Return `test_models::test_model_forward` of a node id."""
    return re.sub(r"\[.*", "", item.rpartition("/")[2], flags=re.DOTALL).replace(".py::", "::")


def parameters(item: str) -> str:
    found = re.search(r"\[(.*)\]", item, flags=re.DOTALL)
    return f"`{found[1]}`" if found else "no parameters"


def general(message: str, length: int = 240) -> str:
    """Return what a message says on one line, without what differs from model to model."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # TorchScript's messages begin with the source, and end with the error.
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    line = " ".join(named[:1] if lines[:1] != named[:1] else lines[:2])
    line = line or " ".join(lines[:2])
    line = re.sub(r"0x[0-9a-f]+", "0x...", line)
    # A table cell or a list item of Markdown must stay one.
    line = line.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return line if len(line) <= length else line[: length - 3] + "..."
