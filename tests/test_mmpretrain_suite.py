"""`tools/run_mmpretrain_tests.py` over a folder of tests written like mmpretrain's."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

FILES = ["--files", "test_models/test_backbones/test_*.py"]
TOOL = Path(__file__).parents[1] / "tools" / "run_mmpretrain_tests.py"

SUITE = """
import os, tempfile
from unittest import TestCase

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.models.backbones import LeNet5, ResNet, SEResNet
from mmpretrain.models.backbones.resnet import BasicBlock

from .utils import SIZE

def noted(text):
    with open(os.environ['NOTES'], 'a') as file:
        print(text, file=file)

class TestBackbones(TestCase):
    def test_subclass(self):
        model = SEResNet(50)
        self.assertEqual(model(torch.rand(2, 3, SIZE, SIZE))[-1].shape, (2, 2048, 1, 1))

    def test_backbone_of_a_classifier(self):
        model = ImageClassifier(backbone=dict(type='ResNet', depth=18))
        features = model.extract_feat(torch.rand(2, 3, SIZE, SIZE))
        self.assertEqual(features[-1].shape, (2, 512, 1, 1))

    def test_block_alone(self):
        self.assertIs(type(BasicBlock(4, 4, stride=1).conv1), torch.nn.Conv2d)

    def test_pool_is_torchs(self):
        self.assertIs(type(ResNet(18).maxpool), torch.nn.MaxPool2d)

def test_wrong_for_both():
    assert ResNet(18).depth == 7

def test_weights_are_the_same():
    noted(f'sum {LeNet5().features[0].weight.sum().item()}')

def test_temporary_folder():
    noted(f'folder {tempfile.gettempdir()}')

def test_crashes():
    if type(ResNet(18).maxpool) is not torch.nn.MaxPool2d:
        os._exit(11)
"""


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)],
        env={**os.environ, **{k: str(v) for k, v in environment.items()}},
        capture_output=True,
        text=True,
        check=False,
    )


# The name of a test that the tool knows to assert what surgery changes.
KNOWN = """
import torch
from mmpretrain.models.backbones import Res2Net

def test_resnet_cifar():
    assert Res2Net(depth=50, deep_stem=False).conv1(torch.zeros(1, 3, 8, 8)).shape[2] == 4
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    tests = tmp_path_factory.mktemp("mmpretrain") / "tests"
    folder = tests / "test_models" / "test_backbones"
    folder.mkdir(parents=True)
    for package in (tests, folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "utils.py").write_text("SIZE = 32\n")
    (folder / "test_nets.py").write_text(SUITE)
    (folder / "test_res2net.py").write_text(KNOWN)
    (tests / "test_other.py").write_text("def test_nothing():\n    assert False\n")
    # In a checkout, mmpretrain's sources stand beside its tests; the installed ones are to be run.
    (tests.parent / "mmpretrain").mkdir()
    (tests.parent / "mmpretrain" / "__init__.py").write_text("raise ImportError('wrong')")
    return tests


@pytest.fixture(scope="module")
def outcome(suite, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    arguments = [*FILES, "--tests", suite.parent, "--keep", out / "keep", "--jobs", 2]
    files = ["--out", out / "all.json", "--write", out / "all.md"]
    done = run(*arguments, *files, NOTES=out / "notes")
    notes = (out / "notes").read_text().split("\n")
    return done, json.loads((out / "all.json").read_text()), notes, out


def rows(result):
    return {row["id"].rpartition("::")[2]: row for row in result["tests"]}


def test_what_passes_for_mmpretrain_and_not_for_ours_is_the_list(outcome):
    done, result, _, out = outcome
    assert done.returncode == 1, done.stderr
    kinds = {name: row["kind"] for name, row in rows(result).items()}
    assert kinds == {
        "test_subclass": "pass both",
        "test_backbone_of_a_classifier": "pass both",
        "test_block_alone": "pass both",
        "test_pool_is_torchs": "only ours fails",
        "test_wrong_for_both": "neither passes",
        "test_weights_are_the_same": "pass both",
        "test_temporary_folder": "pass both",
        "test_crashes": "only ours fails",
        "test_resnet_cifar": "asserts what surgery changes",
    }
    text = (out / "all.md").read_text()
    assert text.strip() == done.stdout.strip()
    assert "**only ours fails: 2**" in text
    assert "| test_backbones/test_nets | 8 | 5 | 5 |" in text
    assert "- test_res2net::test_resnet_cifar calls `model.conv1` by itself" in text


def test_every_backbone_is_treated_once_and_no_block(outcome):
    found = {name: (row["built"], row["treated"]) for name, row in rows(outcome[1]).items()}
    assert found["test_subclass"] == (1, 1)
    assert found["test_backbone_of_a_classifier"] == (1, 1)
    assert found["test_block_alone"] == (0, 0)


def test_both_runs_draw_the_same_weights_in_folders_of_their_own(outcome):
    notes = outcome[2]
    assert len({note for note in notes if note.startswith("sum")}) == 1
    assert len({note for note in notes if note.startswith("folder")}) == 2


def test_kept_results_are_not_made_again(suite, outcome, tmp_path):
    _, before, _, out = outcome
    for log in (out / "keep").glob("antialiased-*.log"):
        log.unlink()
    archive = tmp_path / "mmpretrain-0.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(suite.parent, "mmpretrain-0")
    arguments = [*FILES, "--tests", archive, "--keep", out / "keep", "--out", tmp_path / "all.json"]
    done = run(*arguments, NOTES=tmp_path / "notes")
    assert done.returncode == 1, done.stderr
    after = json.loads((tmp_path / "all.json").read_text())
    assert {n: r["kind"] for n, r in rows(after).items()} == {
        n: r["kind"] for n, r in rows(before).items()
    }
    assert len((tmp_path / "notes").read_text().splitlines()) == 2  # by ours alone

    done = run(*arguments, "--antialias", '{"filter": "tri-4"}', NOTES=tmp_path / "notes")
    assert done.returncode == 2
    assert "tri-4" in done.stderr
    assert str(out / "keep") in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tests", "/nowhere"], "no test_*.py"),
        (["--tests", "{suite}", "--files", "nothing*"], "--files"),
        (["--antialias", "{"], "not JSON"),
    ],
)
def test_wrong_use_is_named(suite, arguments, said):
    done = run(*(a.format(suite=suite) if a != "{" else a for a in arguments))
    assert done.returncode == 2
    assert said in done.stderr
