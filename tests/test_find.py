"""Find: what it cannot read is named, what is alike is read once, taps keep their rate."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import EvoNorm2dS0, GroupNormAct
from torch import Tensor, nn

from aa_surgery import Plan, apply_antialias, audit, plan_antialias
from aa_surgery.sites import find_sites
from aa_surgery.sites.flow import Flow


class PooledToSixteen(nn.Module):
    """Pools by a factor that its input's size decides."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 16:
            x = F.avg_pool2d(x, x.shape[-1] // 16)
        return x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pool = PooledToSixteen()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.conv(x)))


def test_unread_forward_is_named_and_excuses_what_it_ran() -> None:
    plan = plan_antialias(Net())
    assert [(u.scope, u.kind) for u in plan.unread] == [("pool", "PooledToSixteen")]
    assert "decides on the sizes" in plan.unread[0].reason
    assert "PooledToSixteen" in str(plan)
    net = apply_antialias(Net(), plan=plan)
    x = torch.rand(1, 3, 64, 64)
    report = audit(net, x)
    assert report.ok
    assert [row.name for row in report.left] == ["pool"]
    without = audit(net, x, plan=plan_antialias(nn.ReLU()))
    assert [row.name for row in without.untreated] == ["pool"]


def test_unread_survives_saving(tmp_path) -> None:
    plan = plan_antialias(Net())
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_function_that_resizes_on_its_own_terms_is_named() -> None:
    with torch.device("meta"):
        model = timm.create_model("crossvit_tiny_240")
    plan = plan_antialias(model, max_stride=None)
    assert any("scale_image()" in u.reason for u in plan.unread)
    apply_antialias(model, plan=plan)
    report = audit(model, torch.empty(1, 3, 240, 240, device="meta"))
    assert report.ok
    assert [row.op for row in report.left] == ["interpolate"]


@pytest.mark.parametrize("name", ["naflexvit_base_patch16_gap", "gemma4_vit_167m"])
def test_patch_embedding_of_an_unread_forward_is_blurred_before(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"]
    apply_antialias(model, max_stride=None)
    report = audit(model, torch.empty(1, *size, device="meta"))
    assert report.ok
    assert [row.op for row in report.treated] == ["space_to_depth"]


def test_tokens_in_window_order_are_left_with_a_reason() -> None:
    with torch.device("meta"):
        model = timm.create_model("hiera_tiny_224").eval()
    apply_antialias(model)
    report = audit(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert report.ok
    assert {row.op for row in report.left} == {"max_pool"}
    assert all("window order" in row.reason for row in report.left)


def test_activation_of_a_norm_that_is_written_out_is_found() -> None:
    with torch.device("meta"):
        model = timm.create_model("mobilenetv5_300m_enc")
    stem = next(edit for edit in plan_antialias(model).edits if edit.site.name == "conv_stem.conv")
    assert str(stem.anchor) == "after conv_stem.bn.act"


def test_scopes_alike_share_a_graph_and_others_do_not() -> None:
    class Block(nn.Module):
        def __init__(self, stride: int, width: int) -> None:
            super().__init__()
            self.stride = stride
            self.width = width  # read by nobody
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(self.conv(x), 3, self.stride, 1)

    net = nn.Sequential(Block(2, 1), Block(2, 2), Block(3, 1), Block(1, 1))
    graphs = Flow(net).graphs
    assert graphs["0"] is graphs["1"]
    assert graphs["0"] is not graphs["2"]
    assert [site.stride for site in find_sites(net)] == [(2, 2), (2, 2), (3, 3)]


def test_a_trace_leaves_no_trace() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cache: dict[str, object] = {}
            self.log: list[object] = []
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.cache["x"] = x
            self.log.append(x)
            self.last = x
            self.count.add_(1)
            return x[:, :, ::2, ::2]

    net = Caching()
    assert len(find_sites(net)) == 1
    assert (net.cache, net.log, hasattr(net, "last")) == ({}, [], False)
    assert net.count.item() == 0
    assert "__getattribute__" not in nn.Module.__dict__


@pytest.mark.parametrize("name", ["repghostnet_050", "mobilenetv3_small_050", "resnet18"])
def test_features_that_a_model_taps_keep_the_rate_it_declares(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    apply_antialias(model)
    features = model.forward_intermediates(
        torch.empty(1, 3, 96, 96, device="meta"), intermediates_only=True
    )
    rates = [96 // feature.shape[-1] for feature in features]
    assert rates == [entry["reduction"] for entry in model.feature_info]


class Scaled(nn.Module):
    """Decides on a plain argument, as drop rates are decided on."""

    def forward(self, x: Tensor, rate: float | None = None) -> Tensor:
        if rate:
            x = x * (1 - rate)
        return x[:, :, ::2, ::2]


class PassesARate(nn.Module):
    def __init__(self, *rates: float) -> None:
        super().__init__()
        self.rates = rates
        self.scaled = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        for rate in self.rates:
            x = self.scaled(x, rate=rate)
        return x


def test_constant_that_callers_pass_is_the_one_traced() -> None:
    x = torch.rand(1, 2, 9, 9)
    net = PassesARate(0.25)
    want = net(x)
    plan = plan_antialias(net, filter="identity")
    assert Plan.from_dict(plan.to_dict()) == plan
    assert torch.equal(apply_antialias(net, plan=plan)(x), want)
    net.rates = (0.5,)  # the user's own source runs, on whatever it is called with
    assert torch.equal(net(x), PassesARate(0.5)(x))


def test_constants_that_differ_leave_the_decision_unread() -> None:
    plan = plan_antialias(PassesARate(0.25, 0.5))
    assert [u.kind for u in plan.unread] == ["Scaled"]


@pytest.mark.parametrize("norm", [GroupNormAct(8, 2), EvoNorm2dS0(8)], ids=type)
def test_norm_with_activation_over_the_map_ends_the_walk(norm: nn.Module) -> None:
    plan = plan_antialias(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm))
    assert [(edit.placement, str(edit.anchor)) for edit in plan.edits] == [("pre", "before 0")]
