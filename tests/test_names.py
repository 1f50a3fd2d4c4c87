"""Names belong to the user, and an interrupt leaves nothing half done."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Generic, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, find_sites, plan_antialias, remove_antialias
from aa_surgery.adapt.norms import find_norms
from aa_surgery.surgery.classes import Antialiased

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    """Every kind of name that begins as ours do, strided convolutions and norms among them."""

    def __init__(self) -> None:
        super().__init__()
        self.aa_conv, self.aa_norm, self.act = (
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
        )
        self.aa_blur, self.aa_before, self.aa_after = (
            nn.Conv2d(4, 4, 3, 2, 1),
            nn.ReLU(),
            nn.Identity(),
        )
        self.aa_max_pool2d, self.aa_op = nn.Conv2d(4, 2, 1), {"mine": 2.0}
        self.aa_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("aa_shift", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.aa_norm(self.aa_conv(x)))
        x = self.aa_after(self.aa_before(self.aa_blur(x)))
        return self.aa_max_pool2d(F.max_pool2d(x, 2)) * self.aa_scale + self.aa_shift


class NamedPool(nn.MaxPool2d):
    """A pool and a convolution whose own attributes have the names of ours."""

    def __init__(self) -> None:
        super().__init__(2)
        self.aa_op, self.aa_blur, self.aa_before = 3.0, nn.Identity(), nn.Identity()


class NamedConv(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 3, 3, 2, 1)
        self.aa_op, self.aa_before, self.aa_after = 3.0, nn.Identity(), nn.Identity()


NETS: dict[str, Callable[[], nn.Module]] = {
    "scope": Named,
    "pool": lambda: nn.Sequential(NamedPool()),
    "conv": lambda: nn.Sequential(NamedConv(), nn.ReLU6()),
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[kind]().eval()


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


def names(model: nn.Module) -> list[tuple[str, list[str], type]]:
    return [(name, sorted(vars(m)), type(m)) for name, m in model.named_modules()]


@pytest.mark.parametrize("placement", ["auto", "pre", "post"])
@pytest.mark.parametrize("kind", NETS)
def test_names_like_ours_stay(kind: str, placement: str) -> None:
    model = build(kind)
    expected, keys, before = run(model), list(model.state_dict()), names(model)
    apply_antialias(model, placement=placement, filter="identity")
    assert torch.equal(run(model), expected)
    assert list(model.state_dict()) == keys
    assert names(remove_antialias(model)) == before

    treated = run(apply_antialias(model, placement=placement))
    assert treated.shape == expected.shape
    assert not torch.allclose(treated, expected)
    assert audit(model, X).ok
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin), treated)
    assert torch.equal(run(remove_antialias(model)), expected)
    assert names(model) == before


def test_sites_and_norms_of_such_names_are_found() -> None:
    model = build("scope")
    assert [site.name for site in find_sites(model)] == [":max_pool2d", "aa_conv", "aa_blur"]
    apply_antialias(model)
    assert list(find_norms(model)) == ["aa_norm"]


@pytest.mark.parametrize("method", ["learned", "aps", "lps", "group-conv"])
@pytest.mark.parametrize("kind", NETS)
def test_planning_with_a_run_leaves_them(kind: str, method: str) -> None:
    model = build(kind)
    expected, before = run(model), names(model)
    assert plan_antialias(model, method=method, example=X).edits
    assert names(model) == before
    assert torch.equal(run(model), expected)
    apply_antialias(model, method=method, example=X)
    run(model)
    assert names(remove_antialias(model)) == before


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_renamed_ops_script() -> None:
    model = apply_antialias(build("conv"), placement="post")
    torch.testing.assert_close(torch.jit.script(model)(X), run(model))


T = TypeVar("T")


class Registered(nn.MaxPool2d):
    """A class that says what its subclasses must be."""

    known: list[str] = []

    def __init_subclass__(cls, *, kind: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.known.append(kind)


class Locked(Registered, Generic[T], kind="locked"):
    """A class whose instances say what may be set."""

    def __init__(self) -> None:
        super().__init__(2)
        self.locked = True

    def __setattr__(self, name: str, value: object) -> None:
        if getattr(self, "locked", False):
            raise AttributeError(f"{name}: locked")
        super().__setattr__(name, value)


def test_classes_that_watch_their_subclasses_and_attributes() -> None:
    model = nn.Sequential(Locked[int]())
    known = list(Registered.known)
    expected = run(model)
    apply_antialias(model, filter="identity")
    assert isinstance(model[0], Antialiased)
    torch.testing.assert_close(run(model), expected)
    assert Registered.known == known
    assert type(remove_antialias(model)[0]) is Locked


def interrupted_at(line: int, work: Callable[[], object]) -> bool:
    """Run `work`, with an interrupt at its `line`-th line in `surgery/`; tell whether it came."""
    count = 0

    def tracer(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if "aa_surgery/surgery" not in frame.f_code.co_filename:
            return None
        if event == "line":
            count += 1
            if count == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return tracer

    sys.settrace(tracer)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1, 2))
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("method", ["blur", "learned", "group-conv"])
def test_an_interrupt_leaves_the_model_as_it_was(method: str) -> None:
    model = small()
    plan = plan_antialias(model, method=method, example=X)
    expected, before = run(model), names(model)
    trained = [p.requires_grad for p in model.parameters()]
    line = 1
    while interrupted_at(line, lambda: apply_antialias(model, plan=plan)):
        assert names(model) == before, line
        assert [p.requires_grad for p in model.parameters()] == trained, line
        line += 3
    assert line > 100
    treated, before = run(model), names(model)
    line = 1
    while interrupted_at(line, lambda: remove_antialias(model)):
        assert names(model) == before, line
        line += 3
    assert torch.equal(run(model), expected)
    assert method == "group-conv" or not torch.equal(treated, expected)


def test_an_interrupt_while_maps_are_looked_at_leaves_no_probe() -> None:
    model = small().train()
    before, training = names(model), [m.training for m in model.modules()]
    line = 1
    while interrupted_at(line, lambda: plan_antialias(model, method="learned", example=X)):
        assert names(model) == before, line
        assert [m.training for m in model.modules()] == training
        line += 23
    assert names(model) == before
