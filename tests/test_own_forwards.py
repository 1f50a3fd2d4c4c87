"""A treated model is the user's model: forwards as people write them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import own_calls
import own_helpers as helpers
import own_states
import pytest
import torch
from behaviour import X, observed, seeded, shapes
from own_calls import LEFT, TREATED, Net
from own_states import CHANGES, STATES
from torch import nn

from aa_surgery import apply_antialias, audit, plan_antialias, remove_antialias
from aa_surgery.errors import HalfTreatedError

OWN = (*TREATED, *STATES)


@pytest.fixture(autouse=True)
def fresh() -> Any:
    helpers.reset()
    yield
    helpers.SCALE = 1.0


def run(model: nn.Module) -> Any:
    x = X.double() if next(model.parameters()).dtype is torch.float64 else X
    return model(x)


def anew(model: nn.Module) -> list[Any]:
    """Return what is observed of a model, all that is counted outside of it aside."""
    helpers.reset()
    own_states.Counts.calls = 0
    own_states.Counts.names.clear()
    return observed(model, run)


def identity(cls: type[nn.Module]) -> nn.Module:
    return apply_antialias(seeded(cls), filter="identity")


@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_outputs_gradients_and_all_that_is_left_behind_are_the_models(
    cls: type[nn.Module],
) -> None:
    treated = identity(cls)
    expected = anew(seeded(cls))
    for model in (copy.deepcopy(treated), pickle.loads(pickle.dumps(treated)), treated):
        assert anew(model) == expected


@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_what_samples_is_treated_and_shapes_stay(cls: type[nn.Module]) -> None:
    model = seeded(cls)
    before = anew(model)
    plan = plan_antialias(model)
    assert plan.edits, plan
    if cls in TREATED:
        assert not plan.left, plan
        assert not plan.unread
    treated = apply_antialias(seeded(cls))
    assert shapes(run(treated)) == shapes(run(seeded(cls)))
    if cls in TREATED:
        assert audit(treated, X).ok
    assert type(remove_antialias(treated)) is cls
    assert anew(seeded(cls)) == before


@pytest.mark.parametrize("cls", LEFT, ids=lambda cls: cls.__name__)
def test_what_cannot_be_reached_is_left_with_a_reason_and_stops_nothing(
    cls: type[nn.Module],
) -> None:
    def pair() -> nn.Module:
        return nn.Sequential(cls(), nn.ReLU(), nn.MaxPool2d(2))

    plan = plan_antialias(seeded(pair))
    assert [edit.site.name for edit in plan.edits] == ["2"]
    assert all(left.reason for left in plan.left)
    assert {left.site.scope for left in plan.left} == {"0"}
    assert anew(apply_antialias(seeded(pair), filter="identity")) == anew(seeded(pair))


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_later_counts(change: str) -> None:
    cls, make = CHANGES[change]
    plain, treated = seeded(cls), identity(cls)
    for model in (plain, treated):
        model(X)
        make(model)
    assert anew(treated) == anew(plain)


@pytest.mark.parametrize(
    ("holder", "name", "cls"),
    [
        (own_calls.AliasOfAForward, "forward", own_calls.AliasOfAForward),
        (Net, "_down", own_calls.KeptMethod),
        (helpers, "pool", own_calls.OfAModule),
    ],
    ids=["forward", "method", "helper"],
)
def test_a_function_that_is_replaced_later_is_refused(
    holder: Any, name: str, cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    treated = identity(cls)
    expected = treated(X)
    with monkeypatch.context() as patched:
        patched.setattr(holder, name, lambda *given: given[-1])
        with pytest.raises(HalfTreatedError, match=f"{name} of .* was replaced"):
            treated(X)
    assert torch.equal(treated(X), expected)


def test_copies_run_in_another_process(tmp_path: Path) -> None:
    models = [apply_antialias(seeded(cls)) for cls in TREATED]
    expected = [run(model) for model in models]
    torch.save((models, expected, X), tmp_path / "models.pt")
    code = (
        "import torch\n"
        f"models, expected, x = torch.load({str(tmp_path / 'models.pt')!r}, weights_only=False)\n"
        "for model, wanted in zip(models, expected):\n"
        "    torch.testing.assert_close(model(x), wanted)\n"
    )
    path = f"{Path(__file__).parent}:{Path(__file__).parent.parent}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "cls",
    [own_calls.OfAModule, own_calls.Super, own_calls.Nested, own_calls.Partial, own_states.Asks],
    ids=lambda cls: cls.__name__,
)
def test_compiles_without_a_break_more(cls: type[nn.Module]) -> None:
    breaks = []
    for model in (seeded(cls), identity(cls)):
        torch._dynamo.reset()
        breaks.append(torch._dynamo.explain(model)(X).graph_break_count)
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(X), model(X))
    assert breaks[0] == breaks[1]
