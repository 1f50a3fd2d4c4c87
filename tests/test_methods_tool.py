"""`tools/methods.py`, and the methods in the tools that it runs, on a few photographs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from skimage import data

from aa_surgery.methods import list_methods

TOOLS = Path(__file__).parents[1] / "tools"
PARTS = ("cost", "law", "lite0", "cifar")
DOCUMENT = "# Methods\n" + "".join(
    f"<!-- methods: {part} -->\nold {part}\n<!-- methods: {part} -->\n" for part in PARTS
)
CLASSES = {"chelsea": 285, "coffee": 504, "rocket": 657, "astronaut": 652}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a tool; on one thread, as its runs are."""
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "methods.md"
    path.write_text(DOCUMENT)
    return path


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row by its first one."""
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line}


def test_every_method_has_a_row(load: Callable[[str], ModuleType]) -> None:
    variants = load("_methods_variants").VARIANTS
    assert set(list_methods()) <= set(variants)
    assert "aps+tri-3" in variants


def test_the_law_and_the_cost(
    tmp_path: Path, document: Path, load: Callable[[str], ModuleType]
) -> None:
    methods = ("--methods", "blur", "learned", "aps", "ideal")
    small = ("--cost-models", "test_resnet", "--rounds", "3")
    command = ["--parts", "cost", "law", *methods, *small, "--out", str(tmp_path / "out")]
    tool = load("methods")
    assert tool.main([*command, "--write", str(document)]) == 0
    text = document.read_text()
    assert "old cost" not in text
    assert "old law" not in text
    assert "old lite0" in text, "the other parts are left"
    assert "`python tools/methods.py --parts law --methods blur learned aps ideal" in text

    cost, law = (rows(part) for part in text.split("<!-- methods: cost -->\n")[1:])
    assert cost["none"][0].endswith(" M")
    assert cost["aps"][0] == cost["blur"][0] == "x 1.000"
    assert float(cost["learned"][0].removeprefix("x ")) > 1
    assert float(cost["ideal"][1].removeprefix("x ")) > 1
    changes = {name: [float(cell) for cell in law[name]] for name in ("none", "blur", "aps")}
    assert changes["aps"][0] < 1e-5 < changes["blur"][0] < changes["none"][0]
    assert all(whole < 1e-5 for _, whole, _ in changes.values())
    assert changes["aps"][2] > 1e-3, "with borders of zeros, nothing is exact"

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert tool.main([*command, "--write", str(document)]) == 0
    assert document.read_text() == text
    assert all(path.stat().st_mtime_ns == was for path, was in written.items())


def test_a_trained_network(
    tmp_path: Path, document: Path, load: Callable[[str], ModuleType]
) -> None:
    folder = tmp_path / "photographs"
    for name, label in CLASSES.items():
        (folder / f"{label}_{name}").mkdir(parents=True)
        Image.fromarray(getattr(data, name)()).save(folder / f"{label}_{name}" / "x.png")
    command = ["--parts", "lite0", "--images", str(folder), "--out", str(tmp_path / "out")]
    command += ["--write", str(document), "--methods", "group-conv"]
    tool = load("methods")
    assert tool.main(command) == 0
    assert tool.main([*command, "lps", "--report-only"]) == 0
    text = document.read_text()
    assert "Adapted on 2 photographs, measured on 2 others" in text
    found = rows(text)
    assert found["group-conv"][1] == found["group-conv"][4] == "100.0", "it starts as the original"
    assert found["none"][0] == found["group-conv"][0]
    assert found["lps (starts at random)"] == ["not run"] * 6


def test_cells_of_the_blur_keep_their_names(load: Callable[[str], ModuleType]) -> None:
    cell = load("_accuracy_cells").Cell
    common = dict(model="lite0", images="/x.zip", limit=500, adapt_images=250, passes=1, seed=0)
    plain = cell(filter="tri-3", placement="pre", device="cpu", **common)
    assert plain.name == "lite0-tri-3-pre-3c46173742.json"
    assert cell(**plain.settings) == plain
    other = cell(filter="", placement="auto", device="cpu", method="aps", **common)
    assert other.name.startswith("lite0-aps-auto-")
    assert cell(**other.settings) == other


def test_a_short_training(
    tmp_path: Path, document: Path, load: Callable[[str], ModuleType]
) -> None:
    for split, count in (("train", 8), ("test", 4)):
        for name in CLASSES:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            photograph = Image.fromarray(getattr(data, name)())
            for i in range(count):
                crop = photograph.crop((20 * i, 10, 20 * i + 96, 106)).resize((32, 32))
                crop.save(tmp_path / "images" / split / name / f"{i}.png")
    small = ("--images", "24", "--held-out", "8", "--batch-size", "12", "--epochs", "2")
    small += ("--models", "resnet", "--width", "8", "--seeds", "0", "--threads", "1")
    methods = ("none", *(name for name in list_methods() if name != "blur"), "aps+tri-3")
    methods += ("learned+penalty",)
    command = [str(tmp_path / "images"), "--out", str(tmp_path / "cifar"), *small, "--filters"]
    tool = load("cifar10")
    assert tool.main([*command, *methods]) == 0
    results = tool.found(tool.parse([*command, *methods]))
    assert [result["filter"] for result in results] == list(methods)
    assert all(result["images"] == 16 for result in results)

    command = ["--parts", "cifar", "--cifar", str(tmp_path / "images"), "--report-only"]
    command += ["--out", str(tmp_path / "nothing"), "--methods", "aps", "--write", str(document)]
    assert load("methods").main(command) == 0
    assert "Not run: none, aps." in document.read_text()


def test_the_methods_weights_are_trained(tmp_path: Path, load: Callable[[str], ModuleType]) -> None:
    load("finetune")
    options = load("_finetune_options").parse(
        ["x", "--output", "x", "--model", "test_resnet", "--method", "learned", "--filter", "tri-4"]
    )
    models = load("_finetune_model").build_models(options, 10)
    new = set(models.student._antialias_plan.new_keys)
    trained = {n for n, p in models.student.named_parameters() if p.requires_grad}
    assert new
    assert new <= trained
    assert {e.filter.name for e in models.student._antialias_plan.edits} == {"tri-4"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "lite0"], "--images"),
        (["--parts", "cifar"], "--cifar"),
        (["--parts", "law", "--methods", "gauss"], "gauss"),
        (["--parts", "law", "--methods", "aps+gauss"], "gauss"),
        (["--parts", "law", "--write", "nowhere.md"], "nowhere.md"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    load: Callable[[str], ModuleType],
    arguments: list[str],
    said: str,
) -> None:
    assert load("methods").main(["--out", str(tmp_path / "out"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()
