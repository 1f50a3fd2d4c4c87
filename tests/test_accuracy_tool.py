"""`tools/accuracy.py` on a few photographs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

TOOL = Path(__file__).parents[1] / "tools" / "accuracy.py"
DOCUMENT = "# Accuracy\n<!-- accuracy -->\nold\n<!-- accuracy -->\nend\n"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Four photographs in folders that name their ImageNet classes."""
    folder = tmp_path / "photographs"
    for label, name in ((285, "chelsea"), (504, "coffee"), (657, "rocket"), (652, "astronaut")):
        (folder / f"{label}_{name}").mkdir(parents=True)
        Image.fromarray(getattr(data, name)()).save(folder / f"{label}_{name}" / "x.png")
    return folder


def accuracy(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (TOOL, "--images", tmp_path / "photographs", "--out", tmp_path / "out")
    models = ("--models", "tf_efficientnet_lite0")
    return subprocess.run(
        [sys.executable, "-W", "ignore", *command, *models, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """The cells of each row, by filter and placement."""
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    return {(line[0], line[1]): line[2:] for line in lines if line and line[1] in ("post", "pre")}


def test_the_tables_and_their_resumption(tmp_path: Path, photographs: Path) -> None:
    document = tmp_path / "accuracy.md"
    document.write_text(DOCUMENT)
    arguments = ("--filters", "tri-3", "identity", "--placements", "pre", "--write", str(document))
    accuracy(tmp_path, *arguments, "--distill-steps", "0")
    text = document.read_text()
    assert text.startswith("# Accuracy\n<!-- accuracy -->\n`python tools/accuracy.py --images")
    assert text.endswith("<!-- accuracy -->\nend\n")
    assert "Adapted on 2 photographs, measured on 2 others" in text
    assert "Empty cells were not run." in text
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(written) == 2

    second = accuracy(tmp_path, *arguments, "--distill-steps", "1", "--distill", "tri-3:pre")
    assert "1/1 tf_efficientnet_lite0-tri-3-pre-1-steps" in second.stdout
    assert all(path.stat().st_mtime_ns == was for path, was in written.items())
    before, after = rows(text), rows(document.read_text())
    blank, found = before["tri-3", "pre"], after["tri-3", "pre"]
    assert found[:7] == blank[:7]
    assert blank[7:10] == ["", "", ""]
    assert all(found)
    identity = after["identity", "pre"]
    assert identity[0] == "x 1.00"
    assert identity[2] == identity[5] == "100.0"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--filters", "gauss"], "gauss"),
        (["--filters", "tri-3", "--distill", "tri-4:post"], "tri-4:post"),
        (["--limit", "4", "4"], "--limit"),
        (["--jobs", "0"], "--jobs"),
        (["--write", "nowhere.md"], "nowhere.md"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.syspath_prepend(TOOL.parent)
    tool = importlib.import_module("accuracy")
    assert tool.main(["--images", "x", "--out", str(tmp_path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
