"""Forwards of one instance: set by hooks or by hand, or made from a graph."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, fx, nn

from aa_surgery import apply_antialias, plan_antialias, remove_antialias, verify
from aa_surgery.errors import HalfTreatedError
from aa_surgery.surgery.classes import Antialiased

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PLACEMENTS = ["auto", "pre", "post"]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU6(), nn.MaxPool2d(2)),
    ).eval()


def hook(model: nn.Module) -> nn.Module:
    for module in list(model.children()):
        add_hook_to_module(module, ModelHook())
    return model


def unhook(model: nn.Module) -> nn.Module:
    for module in list(model.children()):
        remove_hook_from_module(module)
    return model


def run(model: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        return model(X)


def classes(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules()]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_hooks_that_set_forwards_come_and_go(placement: str) -> None:
    plain, expected = run(build()), run(apply_antialias(build(), placement=placement))
    before = apply_antialias(hook(build()), placement=placement)
    after = hook(apply_antialias(build(), placement=placement))
    for model in (before, after):
        assert torch.equal(run(model), expected)
        assert torch.equal(run(copy.deepcopy(model)), expected)
        assert torch.equal(run(unhook(copy.deepcopy(model))), expected)
        remove_antialias(model)
        assert classes(model) == classes(build())
        assert torch.equal(run(model), plain)
        assert torch.equal(run(unhook(model)), plain)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_forward_set_before_is_the_one_that_runs(placement: str) -> None:
    model = build()

    def doubled(self: nn.Conv2d, x: Tensor) -> Tensor:
        return 2 * F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    model[0].forward = types.MethodType(doubled, model[0])
    relu = model[4].forward
    model[4].forward = lambda x: relu(x) + 1
    expected, own = run(model), model[4].forward
    reasons = {e.site.name: e.note for e in plan_antialias(model, placement=placement).edits}
    assert "set on the instance" in reasons["0"]
    apply_antialias(model, placement=placement, filter="identity")
    assert torch.equal(run(model), expected)
    remove_antialias(model)
    assert model[4].forward is own
    apply_antialias(model, placement=placement)
    assert run(model).shape == expected.shape
    assert not torch.allclose(run(model), expected)
    assert torch.equal(run(remove_antialias(model)), expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_forward_set_after_leads_to_ours_or_is_refused(placement: str) -> None:
    expected = run(apply_antialias(build(), placement=placement))
    for wrap in (
        lambda forward: lambda x: forward(x),
        lambda forward: types.MethodType(lambda self, x: forward(x), nn.Identity()),
    ):
        model = apply_antialias(build(), placement=placement)
        for module in model:
            module.forward = wrap(module.forward)
        assert torch.equal(run(model), expected)
    model = apply_antialias(build(), placement=placement)
    pool = model[5]
    pool.forward = types.MethodType(lambda self, x: F.max_pool2d(x, 2), pool)
    with pytest.raises(HalfTreatedError, match="another forward after the surgery"):
        run(model)
    own = pool.forward
    remove_antialias(model)
    assert pool.forward is own
    assert torch.equal(run(model), run(build()))


class InForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.norm = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.norm(self.act(self.conv(x))), 2)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("make", [InForward, build])
def test_graph_modules_copy_pickle_and_recompile(make: type[nn.Module], placement: str) -> None:
    torch.manual_seed(0)
    model = fx.symbolic_trace(make().eval())
    plain, before = run(model), classes(model)
    expected = run(apply_antialias(model, placement=placement))
    assert not torch.equal(expected, plain)
    model.recompile()
    assert torch.equal(run(model), expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert verify(twin).ok
        assert torch.equal(run(twin), expected)
        twin.recompile()
        assert torch.equal(run(twin), expected)
        remove_antialias(twin)
        assert not any(isinstance(m, Antialiased) for m in twin.modules())
        assert torch.equal(run(twin), plain)
    assert torch.equal(run(model), expected)
    assert classes(remove_antialias(model)) == before
    assert torch.equal(run(model), plain)
