"""Bad input: one clear error with the remedy, and the model untouched."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from zoo import NothingToDo, SharedReLU

from aa_surgery import Plan, apply_antialias, plan_antialias, remove_antialias
from aa_surgery.errors import (
    FilterError,
    InputError,
    NoEffectWarning,
    PatternError,
    PlanError,
    SurgeryError,
    UnsupportedModelError,
)


def compiled_in_place() -> nn.Module:
    model = SharedReLU()
    model.compile(backend="eager")
    return model


def wrapped() -> nn.Module:
    return nn.DataParallel(SharedReLU())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(SharedReLU()), "eager model, then script"),
        (lambda: torch.compile(SharedReLU(), backend="eager"), "original, then compile"),
        (compiled_in_place, "fresh model, then compile"),
        (wrapped, "before wrapping"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3, 2)), "Run the model once"),
        (lambda: "resnet50", "By name"),
    ],
)
def test_models_that_cannot_be_changed(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        apply_antialias(make())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"filter": "tri-5"}, FilterError, "3 or 4"),
        ({"filter": "gauss"}, FilterError, "unknown. Use one of identity"),
        ({"filter": [1, 2, 1]}, FilterError, "sum to 4"),
        ({"filter": [0.5, float("nan"), 0.5]}, FilterError, "finite"),
        ({"filter": 3}, FilterError, "neither a name"),
        ({"padding_mode": "mirror"}, FilterError, "reflect"),
        ({"placement": "after"}, SurgeryError, "'auto', 'post', 'pre'"),
        ({"max_stride": 0}, SurgeryError, "whole number or None"),
        ({"max_stride": "4"}, SurgeryError, "whole number or None"),
        ({"preset": "zhang"}, SurgeryError, "zhang2019"),
        ({"include": "layer9.*"}, PatternError, "matches no site. Sites are: conv1, maxpool"),
        ({"exclude": ["conv1", "stem"]}, PatternError, "'stem'"),
        ({"overrides": {"nothing": False}}, PatternError, "'nothing'"),
        ({"overrides": {"conv1": {"filtre": "tri-3"}}}, SurgeryError, "unknown option 'filtre'"),
        ({"overrides": {"conv1": {"filter": "x"}}}, FilterError, "unknown"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = torchvision.models.resnet18()
    classes = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        apply_antialias(model, **options)
    assert [type(m) for m in model.modules()] == classes
    assert "_antialias_plan" not in vars(model)


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="filtr"):
        apply_antialias(SharedReLU(), filtr="tri-3")


def test_pools_that_return_indices() -> None:
    net = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    with pytest.warns(NoEffectWarning, match="return_indices=True"):
        apply_antialias(net)
    assert type(net[0]) is nn.MaxPool2d


def test_a_map_without_batch_or_channels() -> None:
    net = apply_antialias(SharedReLU())
    with pytest.raises((InputError, RuntimeError)):
        net(torch.randn(16, 16))
    pool = apply_antialias(nn.Sequential(nn.MaxPool2d(2)))
    assert pool(torch.randn(3, 16, 16)).shape == (3, 8, 8)  # one image, as torch's pools take it
    with pytest.raises(InputError, match="axes"):
        pool(torch.randn(16, 16))


def test_plans_that_do_not_fit(tmp_path: Path) -> None:
    plan = plan_antialias(torchvision.models.resnet18())
    model = torchvision.models.vgg11()
    with pytest.raises(PlanError, match="treats conv1, which VGG does not have"):
        apply_antialias(model, plan=plan)
    changed = torchvision.models.resnet18()
    changed.conv1 = nn.Conv2d(3, 64, 3, 2, 1)
    with pytest.raises(PlanError, match=r"conv1: the plan was made for"):
        apply_antialias(changed, plan=plan)
    with pytest.raises(SurgeryError, match="mutually exclusive"):
        apply_antialias(torchvision.models.resnet18(), plan=plan, filter="tri-4")
    assert type(changed.maxpool) is nn.MaxPool2d


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "not a plan"),
        (b'{"format": 99}', "reads format 1"),
        (json.dumps({"format": 1, "model": "X", "sites": [{}]}).encode(), "not a plan"),
    ],
)
def test_plan_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        Plan.load(path)


def test_a_class_changed_after_the_surgery_is_not_lost() -> None:
    model = apply_antialias(torchvision.models.resnet18())
    treated = type(model.conv1)
    model.conv1.__class__ = type("Changed", (treated,), {})
    with pytest.raises(UnsupportedModelError, match="conv1: its class was changed again"):
        remove_antialias(model)
    model.conv1.__class__ = treated
    remove_antialias(model)
    assert type(model.conv1) is nn.Conv2d


def test_nothing_to_do_only_warns() -> None:
    with pytest.warns(NoEffectWarning, match="no strided conv"):
        apply_antialias(NothingToDo())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_antialias(SharedReLU())


def test_a_checkpoint_that_does_not_fit() -> None:
    model = apply_antialias(torchvision.models.resnet18())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(torchvision.models.vgg11().state_dict())
