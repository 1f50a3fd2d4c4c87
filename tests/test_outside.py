"""The suite of outside models: catalogues, laws that can break, the sweep and its table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aa_surgery
from aa_surgery.errors import InputError, PatternError
from aa_surgery.surgery.classes import Antialiased
from aa_surgery.sweep import Row, libraries, read_results
from aa_surgery.sweep.libraries import LAWS, LIBRARIES, Specimen, examine_specimen
from aa_surgery.sweep.libraries.comparing import error_of
from aa_surgery.sweep.libraries.run import CANNOT, examine
from aa_surgery.sweep.libraries.specimen import LIMIT, filled, first_that_runs, noise

TOOL = Path(__file__).parents[1] / "tools" / "sweep.py"


def small() -> Specimen:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    return Specimen(model, (noise(2, 3, 32, 32),))


def test_the_laws_hold_on_a_small_network_and_leave_it_as_it_was() -> None:
    specimen = small()
    classes = [type(m) for m in specimen.model.modules()]
    found, held, broken = examine_specimen(specimen)
    assert broken == {}
    assert set(held) == set(LAWS) - {"merge"}
    assert (found.edits, found.untreated, found.false_blurs) == (2, [], [])
    assert [type(m) for m in specimen.model.modules()] == classes


def break_it(monkeypatch: pytest.MonkeyPatch, change: Callable[[nn.Module], object]) -> set[str]:
    """Return the laws that break where surgery does `change` too."""
    import aa_surgery.sweep.libraries.examination as module

    original = module.apply_antialias

    def wrong(model: nn.Module, **options: object) -> nn.Module:
        original(model, **options)
        change(model)
        return model

    monkeypatch.setattr(module, "apply_antialias", wrong)
    return set(examine_specimen(small())[2])


def test_laws_of_outputs_can_break(monkeypatch: pytest.MonkeyPatch) -> None:
    def louder(model: nn.Module) -> None:
        model[6].bias.data.add_(1.0)

    assert {"identity", "identity, post", "undo"} <= break_it(monkeypatch, louder)


def test_laws_of_the_state_can_break(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(model: nn.Module) -> None:
        model.register_buffer(f"more{len(model._buffers)}", torch.zeros(1))

    assert {"keys", "undo"} <= break_it(monkeypatch, more)


def remove_with_hooks(model: nn.Module) -> nn.Module:
    model[0]._forward_hooks.clear()
    return aa_surgery.remove_antialias(model)


def test_the_laws_of_training_and_pickling_can_break(monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(model: nn.Module) -> None:
        model[0].register_forward_hook(lambda module, args, out: out.detach())

    import aa_surgery.sweep.libraries.examination as module

    monkeypatch.setattr(module, "remove_antialias", remove_with_hooks)
    assert {"pickle", "training step"} <= break_it(monkeypatch, frozen)


def test_the_audit_law_and_the_law_of_false_blurs_can_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import aa_surgery.sweep.libraries.examination as module

    monkeypatch.setattr(module, "apply_antialias", lambda model, **options: model)
    monkeypatch.setattr(module, "remove_antialias", lambda model: model)
    found, _, broken = examine_specimen(small())
    assert "0: conv, stride 2x2" in broken["audit"]
    original = module.audit

    def blind(model: nn.Module, *inputs: Tensor, **options: object) -> object:
        return replace(original(model, *inputs), rows=())

    monkeypatch.setattr(module, "audit", blind)
    found, _, broken = examine_specimen(small())
    assert found.false_blurs == ["0: conv (Conv2d)", "3: conv (Conv2d)"]
    assert "no false blur" in broken


def test_merging_is_compared() -> None:
    def merge(model: Any) -> None:
        if any(isinstance(part, Antialiased) for part in model.modules()):
            model[6].bias.data.add_(1.0)

    specimen = small()
    specimen.merge = merge
    assert "merged after surgery" in examine_specimen(specimen)[2]["merge"]


def test_a_merge_that_changes_the_untouched_model_is_not_asked_of_ours() -> None:
    specimen = small()
    specimen.merge = lambda model: model[6].bias.data.add_(1.0)
    found, held, broken = examine_specimen(specimen)
    assert "merge" not in (*held, *broken)
    assert any("merging the untouched model" in note for note in found.notes)


def test_a_model_that_does_not_run_is_a_row_and_no_failure_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> Specimen:
        raise RuntimeError(f"no\nsuch {name}")

    # a limit is for a worker, not for the tests that come after this one
    monkeypatch.setattr("aa_surgery.sweep.libraries.run.resource.setrlimit", lambda *limits: None)
    monkeypatch.setitem(
        LIBRARIES, "smp", libraries.Library("smp", "torch", "torch", lambda: ["a"], broken)
    )
    assert examine("smp:a").failure == f"{CANNOT}RuntimeError: no such a"


def test_errors_are_relative_and_shapes_count() -> None:
    x = torch.tensor([1.0, -4.0, float("nan")])
    assert error_of([x], [x]) == 0.0
    assert error_of([x + torch.tensor([1.0, 0, 0])], [x]) == 0.25
    assert error_of([x[:2]], [x]) == float("inf")
    assert error_of([torch.zeros(3)], [x]) == float("inf")


def test_the_first_candidate_that_runs_is_taken() -> None:
    def heavy() -> Specimen:
        with torch.device("meta"):
            return Specimen(nn.Linear(LIMIT, 1))

    def wrong() -> Specimen:
        return Specimen(nn.Conv2d(1, 1, 1), (noise(2, 3, 8, 8),))

    assert first_that_runs([heavy, wrong, small]).model[0].stride == (2, 2)
    with pytest.raises(RuntimeError, match="channels"):
        first_that_runs([heavy, wrong])
    assert filled(lambda a, b=2: (a, b), {"a": 1, "c": 3}, b=4) == (1, 4)


@pytest.mark.parametrize(
    "name",
    [
        "vit-pytorch:cct",
        "vit-pytorch:simple_vit_3d",
        "smp:fpn-mobilenet_v2",
        "transformers:ConvNextForImageClassification",
        "transformers:Dinov2ForImageClassification",
    ],
)
def test_catalogues_build_small_models_that_run(name: str) -> None:
    assert name.partition(":")[0] in libraries.installed()
    specimen = libraries.specimen(name)
    assert sum(p.numel() for p in specimen.model.parameters()) < LIMIT
    with torch.no_grad():
        first = specimen.model.eval() and specimen.run()
    again = libraries.specimen(name)
    for a, b in zip(specimen.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first is not None


def test_names_are_complete_unique_and_chosen_by_patterns() -> None:
    found = libraries.names(["vit-pytorch", "smp"])
    assert len(found) == len(set(found))
    import segmentation_models_pytorch as smp

    decoders = {name.split(":")[1].partition("-")[0] for name in found if name.startswith("smp:")}
    assert decoders == set(smp.MODEL_ARCHITECTURES_MAPPING)
    assert libraries.names(["smp"], ["*:unet-*"]) == ("smp:unet-resnet18",)
    with pytest.raises(PatternError, match="no_such"):
        libraries.names(["smp"], ["no_such*"])
    with pytest.raises(InputError, match="keras"):
        libraries.names(["keras"])


def test_a_library_that_is_missing_is_left_out_until_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "aa_surgery.sweep.libraries.registry.find_spec",
        lambda name: None if name == "monai" else find_spec("torch"),
    )
    assert libraries.installed() == tuple(name for name in LIBRARIES if name != "monai")
    with pytest.raises(InputError, match="pip install monai"):
        libraries.names(["monai"])


def work(name: str) -> Row:
    """Do what the name says; a worker imports it."""
    if name.endswith("dies"):
        raise SystemExit(3)
    found = dict(parameters=2_000_000, edits=3, left={"a reason": 1}, default_left={}, sampled=4)
    found |= dict(
        unread=[], untreated=[], false_blurs=[], unjudged=["stem: roi"], notes=["pickle: n"]
    )
    broken = {"merge": "crash: E: why"} if name.endswith("breaks") else {}
    return Row("outside", name, name.partition(":")[0], "outside", found, ("plan",), broken)


def test_the_sweep_goes_on_and_its_table_counts(tmp_path: Path) -> None:
    chosen = [f"smp:{what}" for what in ("breaks", "dies", "fine")]
    results = libraries.sweep_libraries(chosen, tmp_path, work=work)
    versions, rows = read_results(results)
    assert "segmentation_models_pytorch" in versions
    assert [bool(row.failure) for row in rows] == [False, True, False]
    text = libraries.document(rows, versions, "typed")
    assert "| smp | 3 | 0 | 0 of 3 | 6 | 2 | 0 | 2 | 0 | 2 | 1 of 3 |" in text
    assert "| `smp:breaks` | merge | crash: E: why |" in text
    assert "Made by `typed`" in text
    # only what died is tried again
    before = (tmp_path / "rows.jsonl").read_text().count("\n")
    libraries.sweep_libraries(chosen, tmp_path, work=work)
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == before + 1


def test_the_tool_sweeps_one_model(tmp_path: Path) -> None:
    report = tmp_path / "outside.md"
    command = ("--suite", "outside", "--libraries", "vit-pytorch", "--only", "vit-pytorch:cct")
    done = subprocess.run(
        [sys.executable, TOOL, *command, "--out", tmp_path / "out", "--report", report],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(aa_surgery.__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| `vit-pytorch:cct` |" in report.read_text()
