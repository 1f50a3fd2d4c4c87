"""Find and rewrite on small nets with one hazard each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import (
    ZOO,
    FlagArgument,
    NothingToDo,
    ReshapeMerge,
    SizeInControlFlow,
    SliceMerge,
    TrainingBranch,
    Zoo,
)

from aa_surgery import apply_antialias, audit, find_sites, plan_antialias, remove_antialias
from aa_surgery.errors import NoEffectWarning


@pytest.fixture(params=ZOO, ids=lambda cls: cls.__name__)
def net(request: pytest.FixtureRequest) -> Zoo:
    torch.manual_seed(0)
    return request.param().eval()


def test_find_gives_the_expected_sites(net: Zoo) -> None:
    assert {site.name: site.op for site in find_sites(net)} == net.expected


def test_find_leaves_the_net_as_it_was(net: Zoo) -> None:
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    find_sites(net)
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == before


@pytest.mark.parametrize("placement", ["auto", "pre", "post"])
@pytest.mark.parametrize("training", [False, True])
def test_identity_filter_changes_nothing(net: Zoo, placement: str, training: bool) -> None:
    net.double().train(training)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # batch statistics of a dense map are those of all its samples
    x = torch.randn(net.size, dtype=torch.float64)
    expected = net(x)
    apply_antialias(net, filter="identity", placement=placement)
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


def test_a_constant_map_is_not_changed_by_the_filter(net: Zoo) -> None:
    net.double()
    x = torch.ones(net.size, dtype=torch.float64)
    for parameter in net.parameters():
        if parameter.ndim > 2:  # a sum over a window is what zero padding changes at the border
            centre = tuple((n - 1) // 2 for n in parameter.shape[2:])
            kept = parameter.data[(slice(None), slice(None), *centre)].clone()
            parameter.data.zero_()[(slice(None), slice(None), *centre)] = kept
    expected = net(x)
    apply_antialias(net)
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


def test_the_audit_agrees(net: Zoo) -> None:
    x = torch.randn(net.size)
    assert len(audit(net, x).untreated) > 0
    apply_antialias(net)
    assert audit(net, x).untreated == ()


def test_undo_is_exact(net: Zoo) -> None:
    x = torch.randn(net.size)
    expected, classes = net(x), {n: type(m) for n, m in net.named_modules()}
    remove_antialias(apply_antialias(net))
    assert {n: type(m) for n, m in net.named_modules()} == classes
    assert torch.equal(net(x), expected)


def test_the_filter_is_in_the_path_of_every_site(net: Zoo) -> None:
    x = torch.randn(net.size)
    for name in net.expected:
        expected = net(x)
        apply_antialias(net, include=name)
        assert not torch.allclose(net(x), expected, rtol=1e-3), name
        remove_antialias(net)


@pytest.mark.parametrize("net", [ReshapeMerge, SliceMerge])
def test_patch_merging_has_a_dense_form(net: type[Zoo]) -> None:
    """At stride 1 the norm and the linear see every patch; the blur stands behind them."""
    merging = net().double()
    (edit,) = plan_antialias(merging, placement="post").edits
    assert (edit.placement, str(edit.anchor)) == ("post", "after reduction")
    x = torch.randn(net.size, dtype=torch.float64)
    outputs = [merging(F.pad(x, (-a, a, -b, b), "circular")) for a in (0, 1) for b in (0, 1)]
    apply_antialias(merging, placement="post", filter=[0.5, 0.5])
    blurred = merging(x)  # the mean of the four phases, away from the right border
    mean = sum(outputs) / 4
    torch.testing.assert_close(blurred[:, :-1, :-1], mean[:, :-1, :-1])


def test_training_branches_stay_two() -> None:
    net = apply_antialias(TrainingBranch().double().eval())
    x = torch.randn(net.size, dtype=torch.float64)
    evaluated = net(x)
    torch.testing.assert_close(net.train()(x), evaluated * 2)
    torch.testing.assert_close(net.eval()(x), evaluated)


def test_what_cannot_be_read_is_blurred_before_and_said() -> None:
    plan = plan_antialias(SizeInControlFlow())
    edit = next(e for e in plan.edits if e.site.name == "conv")
    assert edit.placement == "pre"
    assert "SizeInControlFlow.forward cannot be traced" in edit.note


def test_an_argument_that_the_trace_fixed_is_followed_whatever_it_is() -> None:
    net = apply_antialias(FlagArgument())
    x = torch.randn(net.size)
    torch.testing.assert_close(net(x, double=True), net(x, double=False) * 2)


def test_nothing_to_do_warns() -> None:
    net = NothingToDo()
    with pytest.warns(NoEffectWarning, match="nothing to anti-alias"):
        assert apply_antialias(net) is net
    assert find_sites(net) == ()
    with pytest.warns(NoEffectWarning, match="no anti-aliasing to remove"):
        remove_antialias(net)


def test_a_plan_per_axis_filters_only_the_sampled_axis() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, (2, 1), 1, bias=False), nn.ReLU()).double()
    net[0].weight.data.zero_()[0, 0, 1, 1] = 1.0
    apply_antialias(net)
    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    x[0, 0, 4, 4] = 1.0
    y = net(x)[0, 0]
    assert torch.equal(y[2], x[0, 0, 4] * 0.5)
    assert y[1].abs().sum() == 0
