"""Ops with a forward of their own: they keep their padding, weights and routing."""

from __future__ import annotations

import itertools

import pytest
import timm.layers
import torch
from mmpretrain.models.utils import PatchMerging as MMPatchMerging
from timm.layers.cond_conv2d import CondConv2d
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from aa_surgery import apply_antialias, audit, plan_antialias, remove_antialias

SIZES = [(9, 10), (12, 13), (16, 7)]


class Routed(nn.Module):
    """A CondConv with its routing, as EfficientNet uses it."""

    def __init__(self, padding: str) -> None:
        super().__init__()
        self.conv = CondConv2d(4, 6, 3, stride=2, padding=padding, num_experts=3)
        self.norm, self.act = nn.BatchNorm2d(6), nn.SiLU()
        self.route = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.route(x.mean((2, 3))))
        return self.act(self.norm(self.conv(x, weights)))


OPS = {
    "Conv2dSame": lambda: timm.layers.Conv2dSame(4, 6, 3, 2),
    "Conv2dSame, stride 3": lambda: timm.layers.Conv2dSame(4, 6, 5, 3),
    "StdConv2d": lambda: StdConv2d(4, 6, 3, 2, bias=True),
    "StdConv2dSame": lambda: StdConv2dSame(4, 6, 3, 2),
    "ScaledStdConv2d": lambda: ScaledStdConv2d(4, 6, 3, 2),
    "ScaledStdConv2dSame": lambda: ScaledStdConv2dSame(4, 6, 3, 2),
    "CondConv2d": lambda: Routed(""),
    "CondConv2d, same": lambda: Routed("same"),
    "MaxPool2dSame": lambda: MaxPool2dSame(3, 2),
    "AvgPool2dSame": lambda: AvgPool2dSame(2, 2),
}


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    op = OPS[kind]()
    return (op if isinstance(op, Routed) else nn.Sequential(op, nn.ReLU())).double().eval()


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("placement", ["auto", "pre", "post"])
def test_identity_filter_changes_nothing(kind: str, placement: str) -> None:
    net = make(kind)
    for size in SIZES:
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        expected = net(x)
        apply_antialias(net, filter="identity", placement=placement)
        torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)
        remove_antialias(net)


@pytest.mark.parametrize("kind", OPS)
def test_audit_agrees_and_keys_stay(kind: str) -> None:
    net, x = make(kind), torch.randn(2, 4, 12, 13, dtype=torch.float64)
    keys, shape = list(net.state_dict()), net(x).shape
    assert len(audit(net, x).untreated) == 1
    apply_antialias(net)
    assert audit(net, x).untreated == ()
    assert list(net.state_dict()) == keys
    assert net(x).shape == shape


@pytest.mark.parametrize("kind", [k for k in OPS if "Conv" in k])
def test_the_blur_follows_the_activation(kind: str) -> None:
    (edit,) = plan_antialias(make(kind)).edits
    assert edit.placement == "post"
    assert str(edit.anchor) in ("after 1", "after act")


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("filter", ["identity", "tri-3"])
def test_patch_merging_of_mmpretrain(size: tuple[int, int], filter: str) -> None:
    torch.manual_seed(0)
    merging = MMPatchMerging(in_channels=5, out_channels=8).double().eval()
    tokens = torch.randn(2, size[0] * size[1], 5, dtype=torch.float64)
    expected, expected_size = merging(tokens, size)
    keys = list(merging.state_dict())
    apply_antialias(merging, filter=filter)
    output, output_size = merging(tokens, size)
    assert output_size == expected_size
    assert list(merging.state_dict()) == keys
    assert torch.allclose(output, expected, rtol=1e-12) is (filter == "identity")


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_every_pool_that_torch_accepts_keeps_its_shape_and_identity(pool, ceil_mode) -> None:
    windows = itertools.product(range(1, 8), range(1, 5), (2, 3), range(3))
    for size, kernel, stride, padding in windows:
        if padding > kernel // 2:
            continue
        x = torch.rand(1, 2, size, size + 1)
        try:
            expected = pool(kernel, stride, padding, ceil_mode=ceil_mode)(x)
        except RuntimeError:
            continue  # too small for the untouched pool
        for filter in ("identity", "tri-3"):
            net = nn.Sequential(pool(kernel, stride, padding, ceil_mode=ceil_mode))
            got = apply_antialias(net, filter=filter)(x)
            assert got.shape == expected.shape
            if filter == "identity":
                torch.testing.assert_close(got, expected)
