"""Compare two runs of the same tests, and write down what differs."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Name = Callable[[str], str]
KINDS = (
    "pass both",
    "ours passes, the original not run",
    "asserts what surgery changes",
    "only ours fails",
    "only the original fails",
    "neither passes",
    "skipped",
    "not run",
)
NOT_THERE: Row = {"outcome": "not collected", "message": "the test is not there with anti-aliasing"}


def compared(
    items: Sequence[str],
    original: Mapping[str, Row],
    ours: Mapping[str, Row],
    expected: Mapping[str, str],
) -> list[Row]:
    """Return one row a test: both outcomes, their kind, and what the test built.

    A test among `expected` that fails for ours alone has the reason given there.
    """
    rows = []
    for item in items:
        a, b = original.get(item, NOT_THERE), ours.get(item, NOT_THERE)
        row = {"id": item, "kind": kind(a["outcome"], b["outcome"]), "original": a, "ours": b}
        if row["kind"] == "only ours fails" and function(item) in expected:
            row |= {"kind": "asserts what surgery changes", "why": expected[function(item)]}
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
        return "only the original fails"
    return "skipped" if original == ours == "skipped" else "neither passes"


def regressions(result: Mapping[str, Any]) -> list[str]:
    """Return the tests that pass for the original, and for ours fail, crash, hang or are lost."""
    return [row["id"] for row in result["tests"] if row["kind"] == "only ours fails"]


def document(result: Mapping[str, Any], host: str, how: str, treated: str, name: Name) -> str:
    """Return the summary in Markdown.

    Args:
        result: What a run returned, with its command, date and versions.
        host: The library whose tests ran.
        how: Which tests of it, and how models were changed for them.
        treated: Which tests count as treated.
        name: The row of the table that a test's node id belongs to.
    """
    rows: list[Row] = result["tests"]
    kinds = Counter(row["kind"] for row in rows)
    spent = [sum(row[v].get("seconds", 0.0) for row in rows) for v in ("original", "ours")]
    parts = [
        f"# {host}'s own tests, with anti-aliasing",
        f"`{result['command']}`",
        f"{result['date']}; "
        + ", ".join(f"{name} {v}" for name, v in result["versions"].items())
        + ".",
        how,
        f"{len(rows)} tests with anti-aliased models ({spent[1]:.0f} s of tests) and with the "
        f"original ones ({spent[0]:.0f} s): "
        + ", ".join(f"**{k}: {kinds[k]}**" for k in KINDS)
        + ".",
        table(rows, name),
        f"*treated*: {treated}; a test of the others passes whatever the surgery does.",
        "## Asserts what surgery changes",
        "\n".join(f"- {function(row['id'])} {row['why']}." for row in rows if "why" in row)
        or "None.",
        "## Only ours fails: the list to empty",
        reasons(rows, "only ours fails", "ours"),
        "## Neither passes, by reason",
        reasons(rows, "neither passes", "original"),
        "## Only the original fails",
        reasons(rows, "only the original fails", "original"),
        f"## Skipped by {host}'s tests, by reason",
        reasons(rows, "skipped", "original"),
    ]
    if result["uncollected"]:
        lines = [f"- `{file}`: {text}" for file, text in sorted(result["uncollected"].items())]
        parts += ["## Files that pytest could not read, for either", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def table(rows: Iterable[Row], name: Name) -> str:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[name(row["id"])].append(row)
    lines = [
        "| test | runs | treated | " + " | ".join(KINDS) + " |",
        "|---" + "|---:" * (2 + len(KINDS)) + "|",
    ]
    for label, group in sorted(groups.items()):
        kinds = Counter(row["kind"] for row in group)
        treated = sum(row["treated"] > 0 for row in group)
        counts = [len(group), treated, *(kinds[k] for k in KINDS)]
        lines.append(f"| {label} | " + " | ".join(map(str, counts)) + " |")
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
        of = [f"`{found}`" for item in ids if (found := parameters(item))]
        some = ", ".join(of[:4]) + (", ..." if len(of) > 4 else "")
        lines.append(f"- {name}: {outcome}, {len(ids)}{some and f' ({some})'}: {text}")
    return "\n".join(lines) or "None."


def function(item: str) -> str:
    """Return `test_models::test_model_forward` of a node id."""
    test = re.sub(r"\[.*", "", item, flags=re.DOTALL)
    return test.rpartition("/")[2].replace(".py::", "::")


def file(item: str) -> str:
    """Return `test_backbones/test_vgg` of a node id."""
    return "/".join(item.partition(".py::")[0].split("/")[-2:])


def parameters(item: str) -> str:
    found = re.search(r"\[(.*)\]", item, flags=re.DOTALL)
    return found[1] if found else ""


def general(message: str, length: int = 240) -> str:
    """Return what a message says on one line, without what differs from model to model."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # TorchScript's messages begin with the source, and end with the error.
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    line = " ".join(named[:1] if lines[:1] != named[:1] else lines[:2])
    line = line or " ".join(lines[:2])
    line = re.sub(r"0x[0-9a-f]+", "0x...", line.partition("(tensor(")[0])
    # A table cell or a list item of Markdown must stay one.
    line = line.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return line if len(line) <= length else line[: length - 3] + "..."
