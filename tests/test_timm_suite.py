"""`tools/run_timm_tests.py` over a folder of tests written like timm's."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "run_timm_tests.py"

SUITE = """
import os, sys, time
import pytest, torch
import timm
from timm import create_model, list_models

@pytest.mark.timeout(120)
@pytest.mark.parametrize('model_name', list_models('test_*'))
@pytest.mark.parametrize('batch_size', [1])
def test_forward(model_name, batch_size):
    model = create_model(model_name).eval()
    assert model(torch.zeros(batch_size, 3, 64, 64)).shape == (batch_size, 1000)

@pytest.mark.parametrize('model_name', ['test_resnet.r160_in1k', 'test_resnet.other'])
def test_cfg(model_name):
    assert create_model(model_name).pretrained_cfg['tag'] == model_name.partition('.')[2]

def test_pool_is_timms():
    assert type(create_model('test_resnet').maxpool) is torch.nn.MaxPool2d

def test_wrong_for_both():
    assert create_model('test_resnet').num_classes == 7

def test_weights_are_the_same():
    weight = create_model('test_resnet').conv1[0].weight
    with open(os.environ['SUMS'], 'a') as file:
        print(weight.sum().item(), file=file)

def test_builds_nothing():
    pytest.skip('no need')

def test_crashes():
    if type(create_model('test_resnet').maxpool) is not torch.nn.MaxPool2d:
        os._exit(11)

def test_hangs():
    if type(create_model('test_resnet').maxpool) is not torch.nn.MaxPool2d:
        time.sleep(60)
"""


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)],
        env={**os.environ, **{k: str(v) for k, v in environment.items()}},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm") / "tests"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "test_models.py").write_text(SUITE)
    (folder / "test_broken.py").write_text("import no_such_module\nfrom timm import create_model\n")
    (folder / "test_other.py").write_text("def test_nothing():\n    assert False\n")
    # In a checkout, timm's sources stand beside its tests; the installed ones are to be tested.
    (folder.parent / "timm").mkdir()
    (folder.parent / "timm" / "__init__.py").write_text("raise ImportError('the wrong timm')")
    return folder


@pytest.fixture(scope="module")
def outcome(suite, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    arguments = ["--tests", suite, "--models", "test_resnet", "--limit", 6, "--jobs", 2]
    done = run(*arguments, "--out", out / "all.json", "--write", out / "all.md", SUMS=out / "sums")
    return done, json.loads((out / "all.json").read_text()), out


def kinds(result):
    return {row["id"].partition("::")[2]: row["kind"] for row in result["tests"]}


def test_what_passes_for_timm_and_not_for_ours_is_the_list(outcome):
    done, result, _ = outcome
    assert done.returncode == 1, done.stderr
    assert {n for n, kind in kinds(result).items() if kind == "only ours fails"} == {
        "test_pool_is_timms",
        "test_crashes",
        "test_hangs",
    }


def test_crash_and_hang_cost_one_test_each(outcome):
    _, result, _ = outcome
    rows = {row["id"].partition("::")[2]: row for row in result["tests"]}
    assert rows["test_crashes"]["ours"]["outcome"] == "crashed"
    assert "status 11" in rows["test_crashes"]["ours"]["message"]
    assert rows["test_hangs"]["ours"]["outcome"] == "timeout"
    assert "in test_hangs" in rows["test_hangs"]["ours"]["trace"]
    assert len(rows) == 8


def test_passes_and_common_failures_are_told_apart(outcome):
    _, result, _ = outcome
    found = kinds(result)
    assert found["test_forward[1-test_resnet]"] == "pass both"
    assert found["test_wrong_for_both"] == "neither passes"
    assert found["test_builds_nothing"] == "skipped"
    assert [f for f in result["uncollected"] if "test_broken" in f]
    assert "no_such_module" in next(iter(result["uncollected"].values()))


def test_only_what_built_antialiased_models_counts_as_treated(outcome):
    _, result, _ = outcome
    treated = {row["id"].partition("::")[2]: row["treated"] for row in result["tests"]}
    assert treated["test_forward[1-test_resnet]"] == 1
    assert treated["test_builds_nothing"] == 0


def test_both_runs_draw_the_same_weights(outcome):
    _, _, out = outcome
    first, second = (out / "sums").read_text().split()
    assert first == second


def test_summary_says_what_ran_and_what_differs(outcome):
    done, result, out = outcome
    text = (out / "all.md").read_text()
    assert text.strip() == done.stdout.strip()
    assert result["command"] in text
    assert f"timm {result['versions']['timm']}" in text
    assert "**only ours fails: 3**" in text
    lines = [line for line in text.splitlines() if line.startswith("- test_models::test_hangs")]
    assert len(lines) == 1
    assert "timeout" in lines[0]


def test_list_that_was_mended_is_empty_and_the_status_zero(suite, outcome, tmp_path):
    _, result, _ = outcome
    passed = next(r for r in result["tests"] if r["id"].endswith("test_forward[1-test_resnet]"))
    (tmp_path / "before.json").write_text(
        json.dumps({"tests": [{**passed, "kind": "only ours fails"}]})
    )
    archive = tmp_path / "timm-0.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(suite.parent, "timm-0")
    done = run("--tests", archive, "--again", tmp_path / "before.json", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "**pass both: 1**" in done.stdout
    assert "**only ours fails: 0**" in done.stdout
    assert "| test_models::test_forward | 1 | 1 | 1 | 0 |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tests", "/nowhere"], "no test_*.py"),
        (["--tests", "{suite}", "--files", "nothing*"], "--files"),
        (["--models", "x", "--sample", "1"], "give one"),
        (["--antialias", "{"], "not JSON"),
    ],
)
def test_wrong_use_is_named(suite, arguments, said):
    done = run(*(a.format(suite=suite) if a != "{" else a for a in arguments))
    assert done.returncode == 2
    assert said in done.stderr
