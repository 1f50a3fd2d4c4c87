"""`tools/afterlife.py` on one small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "afterlife.py"


def afterlife(tmp_path: Path, *arguments: str) -> tuple[str, list[str]]:
    """Return the document, and the lines of progress."""
    table = tmp_path / "afterlife.md"
    command = (TOOL, "--only", "test_resnet", "--out", tmp_path / "out", "--write", table)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return table.read_text(), [line for line in done.stderr.splitlines() if line.startswith("[")]


def test_the_table_and_its_resumption(tmp_path: Path) -> None:
    operations = ("deepcopy", "state_dict", "reparameterize")
    text, progress = afterlife(tmp_path, "--operations", *operations)
    assert "| resnet | `test_resnet` | ✓ | ✓ |  |" in text
    # of the untouched model only what the verdict depends on: the count of keys, and whether it
    # has branches to merge
    assert len(progress) == len(operations) + 2
    again, progress = afterlife(tmp_path, "--operations", *operations)
    assert again == text
    assert progress == []


def test_what_takes_too_long_is_a_cell(tmp_path: Path) -> None:
    text, _ = afterlife(tmp_path, "--operations", "deepcopy", "pickle", "--timeout", "0.001")
    assert text.count("– `timeout after 0.001 s` (1): test_resnet") == 2


def test_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import _afterlife_table as table
    from _afterlife_workers import FAILED, MISSING, OK, Cell

    def mark(original: tuple[str, str], ours: tuple[str, str]) -> str:
        cells = [Cell("net", "op", t, *side, 0.0) for t, side in enumerate((original, ours))]
        return table.compare(*cells).mark

    assert mark((OK, ""), (OK, "")) == table.BOTH
    assert mark((OK, "2x7"), (OK, "2x9")) == table.OURS_FAILS
    assert mark((OK, ""), (FAILED, "E: why")) == table.OURS_FAILS
    assert mark((OK, ""), (MISSING, "gone")) == table.OURS_FAILS
    assert mark((FAILED, "E: a"), (FAILED, "E: b")) == table.NEITHER
    assert mark((FAILED, "E: a"), (OK, "")) == table.OURS_ONLY
    assert mark((MISSING, "none"), (MISSING, "none")) == table.NONE
