"""Every argument of every public function: a wrong one gets one clear error and no effect."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aa_surgery import (
    Plan,
    apply_antialias,
    frequency_response,
    plan_antialias,
    remove_antialias,
)
from aa_surgery.errors import SurgeryError
from aa_surgery.filters import Filter, alias_gain, resolve_filter
from aa_surgery.layers import BlurPool2d, MaxBlurPool2d
from aa_surgery.layers.strength import get_strength, set_strength
from aa_surgery.methods import list_methods, resolve_method
from aa_surgery.surgery.arguments import DEFAULTS

NOTHING = object()
# one value of each kind that Python code holds, right for hardly any argument
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 3, 10**400, 2.0, 1e30, math.nan, math.inf, 1j, NOTHING, int, len),
    *("", "x", "2", "nan", "tri-0", "tri-003", "tri-" + "9" * 5000, "a\nb", b"1", bytearray(b"1")),
    *([], [[]], [[1.0]], ["0.5", "0.5"], [True], [math.nan, 1], [1e30, -1e30, 1], [0.5, 1], [None]),
    *((), {}, {"name": []}, {"name": "x"}, {1.0: 2}, {1.0}, range(0), slice(2), Fraction(1, 2)),
    *(np.zeros(2), np.array([[1.0]]), np.array(True), np.float32(0.5), np.int64(2), np.array("x")),
    *(torch.zeros(3), torch.zeros(2, 2, dtype=torch.bool), nn.ReLU(), Filter("nope"), Filter("x")),
]
OVERRIDES = [
    *({"0": value} for value in STRANGE),
    *({"0": {name: value}} for name in ("filter", "placement", "max_stride") for value in STRANGE),
    *({"0": {name: value}} for name in ("padding_mode", "method") for value in STRANGE),
    *({key: False} for key in (3, None, b"0", ("0",), "nothing")),
    {"0": {"filtre": "tri-3"}, "1": {}},
    {"0": {3: "tri-3"}},
    {"0": False, "1": {"placement": "mid"}},  # checked though the first matches first
]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))


def refused(call: Callable[[], Any]) -> str | None:
    """The message of the one error that is allowed; None where the call worked."""
    try:
        call()
    except SurgeryError as error:
        message = str(error)
        assert message
        return message
    return None


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        *((name, STRANGE) for name in DEFAULTS),
        ("overrides", OVERRIDES),
        ("plan", [v for v in STRANGE if v is not None]),
    ],
)
@pytest.mark.filterwarnings("ignore::aa_surgery.NoEffectWarning")
def test_an_argument_is_refused_or_works(argument: str, values: list[Any]) -> None:
    x = torch.rand(1, 3, 16, 16)
    for value in values:
        model = small()
        classes, expected = [type(m) for m in model.modules()], model(x)
        said = refused(lambda m=model, v=value: apply_antialias(m, **{argument: v}))
        if said is None:
            assert model(x).shape == expected.shape, value
            assert torch.isfinite(model(x)).all(), value
        else:
            assert [type(m) for m in model.modules()] == classes, value
            assert torch.equal(model(x), expected), value
            assert len(said) < 600, value
        if argument != "plan":
            planned = refused(lambda v=value: plan_antialias(small(), **{argument: v}))
            assert (planned is None) == (said is None), value


WRONG: dict[str, list[Any]] = {
    "filter": [None, [], 3, True, [True], ["1"], b"1", {1.0: 1}, [1e30, -1e30, 1], "tri-0"],
    "placement": [None, ["pre"], "mid", 3],
    "padding_mode": [None, 0, "constant", ["reflect"]],
    "max_stride": [-1, 0, True, "2", 2.0],
    "include": [None, 3, [3], {"0": 1}, "nothing"],
    "exclude": [None, 3, [None], b"0", "nothing"],
    "preset": ["zhang", 3, ["zhang2019"]],
    "overrides": ["conv", 3, [("0", False)], {"0": "pre"}, {"0": None}, {3: False}, {"x": False}],
    "method": [None, 3, "x", ["blur"], {}, {"name": ["blur"]}, {"nam": "blur"}],
    "circular": [None, 0, 1, "no", [True]],
    "example": ["image", 3, torch.zeros(3), torch.zeros(2, 2), np.zeros((1, 3, 8, 8))],
    "plan": ["plan.json", 3, {}, [], plan_antialias(small()).to_dict(), Plan],
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_argument_is_named(argument: str) -> None:
    for value in WRONG[argument]:
        said = refused(lambda v=value: apply_antialias(small(), **{argument: v}))
        assert said is not None, value
        assert argument in said or argument in ("example", "filter"), said


@pytest.mark.parametrize("argument", ["filter", "placement", "padding_mode", "max_stride"])
def test_an_override_is_checked_as_the_argument_is(argument: str) -> None:
    for value in WRONG[argument]:
        said = refused(lambda v=value: plan_antialias(small(), overrides={"0": {argument: v}}))
        assert said is not None, value


def test_the_first_override_that_matches_counts() -> None:
    plan = plan_antialias(small(), overrides={"0": {"filter": "tri-4"}, "*": False})
    assert [(e.site.name, e.filter.name) for e in plan.edits] == [("0", "tri-4")]
    kept = plan_antialias(small(), overrides={"0": True, "*": False})
    assert [e.site.name for e in kept.edits] == ["0"]


def test_numbers_of_numpy_are_numbers() -> None:
    taps = np.array([0.25, 0.5, 0.25], dtype=np.float32)
    plan = plan_antialias(small(), filter=taps, max_stride=np.int64(2))
    assert {e.filter.taps(2) for e in plan.edits} == {(0.25, 0.5, 0.25)}
    assert plan_antialias(small(), filter=torch.tensor(taps)) == plan_antialias(
        small(), filter=[0.25, 0.5, 0.25]
    )


def test_the_defaults_are_those_of_both_functions() -> None:
    for function in (plan_antialias, apply_antialias):
        parameters = inspect.signature(function).parameters.values()
        said = {p.name: p.default for p in parameters if p.name not in ("model", "plan")}
        assert said == DEFAULTS


@pytest.mark.parametrize(
    "function", [apply_antialias, plan_antialias, remove_antialias, set_strength, get_strength]
)
def test_what_is_no_model(function: Callable[..., Any]) -> None:
    more = (0.5,) if function is set_strength else ()
    for value in (None, "resnet18", {}, [], 3, nn.Module, torch.zeros(3)):
        assert refused(lambda v=value: function(v, *more)) is not None, value


def test_strengths() -> None:
    model = apply_antialias(small())
    worked = [v for v in STRANGE if refused(lambda v=v: set_strength(model, v)) is None]
    assert [float(v) for v in worked] == [0.0, 0.5, 0.5]
    assert not any(isinstance(v, bool) for v in worked)
    for value in (math.nan, "x", True, None, -0.1, 1.1, [0.5]):
        assert refused(lambda v=value: set_strength(model, v)) is not None, value
    set_strength(model, 1)
    assert get_strength(model) == 1


@pytest.mark.parametrize("method", list_methods())
def test_options_of_a_method(method: str) -> None:
    known = resolve_method(method).options
    for option in (*known, "nothing", 3):
        for value in STRANGE:
            given = {"name": method, option: value}
            said = refused(lambda g=given: plan_antialias(small(), method=g))
            if option not in known:
                assert said is not None, given


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "resolve_filter": resolve_filter,
    "resolve_method": resolve_method,
    "frequency_response": frequency_response,
    "omega": lambda v: frequency_response([0.5, 0.5], v),
    "alias_gain": lambda v: alias_gain([0.5, 0.5], v),
    "alias_gain taps": lambda v: alias_gain(v, 2),
    "taps": lambda v: resolve_filter("tri-3").taps(v),
    "BlurPool2d filter": lambda v: BlurPool2d(filter=v),
    "BlurPool2d padding_mode": lambda v: BlurPool2d(padding_mode=v),
    "MaxBlurPool2d filter": lambda v: MaxBlurPool2d(2, filter=v),
    "MaxBlurPool2d padding_mode": lambda v: MaxBlurPool2d(2, padding_mode=v),
    "Plan.from_dict": Plan.from_dict,
    "Plan.load": Plan.load,
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_functions(function: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = [refused(lambda v=value: FUNCTIONS[function](v)) for value in STRANGE]
    assert sum(said is not None for said in outcomes) > len(STRANGE) / 2


def test_where_a_plan_cannot_be_saved(tmp_path: Any) -> None:
    plan = plan_antialias(small())
    for path in (None, 3, [], tmp_path, tmp_path / "no" / "plan.json", "a\0b", "x" * 5000):
        assert refused(lambda p=path: plan.save(p)) is not None, path
    assert not list(tmp_path.iterdir())
