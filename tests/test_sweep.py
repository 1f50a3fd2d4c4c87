"""The sweep itself: a complete catalogue, failures as rows, resuming, the same bytes twice."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from aa_surgery.cli import main
from aa_surgery.errors import InputError, PatternError
from aa_surgery.sweep import (
    SOURCES,
    Row,
    Subject,
    coverage,
    installed_sources,
    openmmlab,
    problems,
    read_results,
    run_sweep,
    subjects,
)
from aa_surgery.sweep.build import build, inputs, outputs, run
from aa_surgery.sweep.identity import identity_law
from aa_surgery.sweep.pool import Outcome
from aa_surgery.sweep.rows import write_results
from aa_surgery.sweep.run import Task, examine

GOOD = Subject("timm", "resnet18", "resnet")
VERSIONS = {"torch": "2.15.0", "code": "0123"}


@pytest.fixture(autouse=True)
def _same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody who edits the package beside the tests make two sweeps differ."""
    monkeypatch.setattr("aa_surgery.sweep.run._code", lambda: "0123")


def misbehave(task: Task) -> Row:
    """Do what the name of the subject says."""
    name = task.subject.name
    if name == "raises":
        raise RuntimeError("a model\nof a thousand\nbugs")
    if name == "dies":
        os._exit(3)
    if name == "hangs":
        time.sleep(600)
    if name == "once":
        marker = Path(os.environ["SWEEP_MARKER"])
        marker.write_text(marker.read_text() + ".")
    return Row("timm", name, "f", task.laws, {"runs": [], "pid": 0}, ("identity",))


def in_this_process(
    work: Callable[[Task], Row], tasks: Sequence[Task], **options: object
) -> Iterator[Outcome[Task]]:
    for task in tasks:
        try:
            yield Outcome(task, work(task))
        except RuntimeError as error:
            yield Outcome(task, failure=str(error))


def named(*names: str) -> list[Subject]:
    return [replace(GOOD, name=name) for name in names]


def test_the_catalogue_is_complete() -> None:
    found = subjects()
    names = {source: {s.name for s in found if s.source == source} for source in SOURCES}
    assert names["timm"] == set(timm.list_models(exclude_filters="aa_*"))
    quantized = {n for n in torchvision.models.list_models() if n.startswith("quantized_")}
    assert names["torchvision"] == set(torchvision.models.list_models()) - quantized
    hosts = {name.partition("-")[0] for name in names["outside"]}
    assert {"transformers:swin", "transformers:pvt", "smp:unet", "smp:fpn"} <= hosts
    assert len(names["outside"]) >= 12
    assert {"LeNet5", "resnet18_8xb32_in1k", "byol_resnet50_16xb256-coslr-200e_in1k"} <= names[
        "mmpretrain"
    ]
    assert len(names["mmpretrain"]) > 300
    assert list(found) == sorted(found)


def test_a_library_that_is_missing_is_left_out_until_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert installed_sources() == SOURCES
    monkeypatch.setattr(
        "aa_surgery.sweep.catalogue.find_spec", lambda name: None if name == "mmpretrain" else name
    )
    assert "mmpretrain" not in installed_sources()
    assert {s.source for s in subjects()} == set(SOURCES) - {"mmpretrain"}
    monkeypatch.setitem(sys.modules, "mmpretrain", None)
    openmmlab._registry.cache_clear()
    openmmlab._index.cache_clear()
    openmmlab.names.cache_clear()
    with pytest.raises(InputError, match=r"aa-surgery\[mmpretrain\]"):
        subjects(["mmpretrain"])


def test_patterns_and_sources_choose() -> None:
    assert subjects(["timm"], ["resnet18"]) == (GOOD,)
    with pytest.raises(PatternError, match="no_such"):
        subjects(["timm"], ["resnet18", "no_such*"])
    with pytest.raises(InputError, match="keras"):
        subjects(["keras"])


@pytest.mark.parametrize("name", [s.name for s in subjects(["outside"])])
def test_outside_models_build_and_run_on_the_meta_device(name: str) -> None:
    subject = subjects(["outside"], [name])[0]
    model = build(subject)
    result = run(model, inputs(subject, (3, 224, 224)))
    assert result
    assert all(t.device.type == "meta" for t in result.values())


def test_failures_of_every_kind_become_rows_and_the_rest_goes_on(tmp_path: Path) -> None:
    chosen = named("raises", "dies", "fine", "hangs", "fine2", "fine3")
    options = dict(laws=["identity"], jobs=2, timeout=3, work=misbehave)
    _, rows = read_results(run_sweep(chosen, tmp_path, **options))
    failures = {row.name: row.failure for row in rows}
    assert [row.name for row in rows] == sorted(failures)
    assert failures["raises"].startswith("RuntimeError: a model of a thousand bugs (test_sweep.py")
    assert failures["dies"] == "worker died with exit code 3"
    assert failures["hangs"] == "timeout: took more than 3 s"
    assert all(not failures[name] for name in ("fine", "fine2", "fine3"))
    assert len(problems(rows)) == 3


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    marker.write_text("")
    monkeypatch.setenv("SWEEP_MARKER", str(marker))
    monkeypatch.setattr("aa_surgery.sweep.run.run_tasks", in_this_process)

    def sweep(*names: str, fresh: bool = False) -> list[Row]:
        out = tmp_path / "out"
        options = dict(laws=["identity"], fresh=fresh, work=misbehave)
        return read_results(run_sweep(named(*names), out, **options))[1]

    sweep("once", "raises")
    journal = tmp_path / "out" / "rows.jsonl"
    with journal.open("a") as file:
        file.write('{"source": "timm", "na')  # interrupted while it wrote
    rows = sweep("once", "raises", "fine")
    assert marker.read_text() == "."
    assert [row.name for row in rows] == ["fine", "once", "raises"]
    sweep("once", fresh=True)
    assert marker.read_text() == ".."

    lines = journal.read_text().splitlines()
    other = json.loads(lines[0])
    other["versions"]["timm"] = "0.0"
    journal.write_text("\n".join([json.dumps(other), *lines[1:]]) + "\n")
    sweep("once")
    assert marker.read_text() == "..."


def test_two_sweeps_write_the_same_bytes(tmp_path: Path) -> None:
    names = ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"]
    written = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        argv = ["sweep", "--source", "timm", "--only", *names, "--jobs", str(jobs)]
        assert main([*argv, "--out", str(out)]) == 0
        written.append([(out / n).read_bytes() for n in ("results.json", "coverage.md")])
    assert written[0] == written[1]
    versions, rows = read_results(tmp_path / "1" / "results.json")
    assert versions["timm"] == timm.__version__
    assert [(r.name, r.laws) for r in rows] == [
        (name, laws) for name in sorted(names) for laws in ("identity", "structural")
    ]
    assert all(row.held for row in rows)


def test_the_command_fails_where_a_law_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Row("timm", "resnet18", "resnet", "identity", {"runs": []}, (), {"identity": "1e-1"})
    results = tmp_path / "results.json"
    write_results(results, VERSIONS, [broken])
    monkeypatch.setattr("aa_surgery.sweep.run_sweep", lambda *args, **kwargs: results)
    argv = ["sweep", "--only", "resnet18", "--laws", "identity", "--out", str(tmp_path)]
    assert main(argv) == 1
    assert "timm resnet18: identity: 1e-1" in capsys.readouterr().out
    assert main([*argv, "--only", "no_such"]) == 2


def test_the_table_counts_what_the_rows_hold() -> None:
    found = {
        "edits": 5,
        "left": {"a reason": 1},
        "default_left": {"a reason": 1, "stride 16 is above max_stride=4": 2},
        "sampled": 7,
        "audit_left": {"a reason": 1, "cannot be traced": 1},
        "untreated": ["stem: conv, stride 2x2"],
        "unread": ["rpn: roi_align"],
    }
    rows = [
        Row("timm", "a", "f", "structural", found, ("keys",), {"nothing missed": "stem | conv"}),
        Row("timm", "b", "f", "structural", failure="timeout: took more than 1 s"),
    ]
    text = coverage(rows, VERSIONS, "aa-surgery sweep")
    assert "0123" not in text
    assert "| timm | `f` | 2 | 8 | 5 | 2 | 7 | 1 | 1 | 0 of 2 | - |" in text
    assert "| timm | 5 of 8 (62.5 %) | 0 of 1 (0.0 %) | 3 of 8 (37.5 %) | 0 of 1 (0.0 %) |" in text
    assert "| cannot be traced | 1 | 1 |" in text
    assert "| stride 16 is above max_stride=4 | 0 | 2 | `apply_antialias(model, max" in text
    assert "| timm | `f` | `roi_align` | 1 |" in text
    assert "nothing missed: stem / conv" in text
    assert "timeout: took more than 1 s" in text


def test_the_identity_law_can_break(monkeypatch: pytest.MonkeyPatch) -> None:
    import aa_surgery.sweep.identity as module

    assert identity_law(GOOD).broken == []
    original = module.apply_antialias

    def shifted(model: torch.nn.Module, **options: object) -> torch.nn.Module:
        return original(model, **{**options, "filter": "rect-2"})

    monkeypatch.setattr(module, "apply_antialias", shifted)
    found = identity_law(GOOD)
    assert len(found.broken) == len(found.runs) == 3


def test_a_broken_structural_law_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import aa_surgery.sweep.laws as module

    assert set(examine(Task(GOOD, "structural")).held) == set(module.STRUCTURAL)
    monkeypatch.setattr(module, "remove_antialias", lambda model: model)
    monkeypatch.setattr(
        module, "apply_antialias", lambda model, plan=None, max_stride=None: model.train()
    )
    row = examine(Task(GOOD, "structural"))
    assert "conv1: conv, stride 2x2" in row.broken["nothing missed"]
    assert row.broken["twice"] == "no NoEffectWarning the second time"
    assert "True" in row.broken["self"]
    assert "undo" in row.broken


def test_outputs_are_named_by_their_place() -> None:
    x = torch.zeros(1)
    assert list(outputs({"out": x, "aux": [x, (x, None)]})) == [
        "output['out']",
        "output['aux'][0]",
        "output['aux'][1][0]",
    ]
