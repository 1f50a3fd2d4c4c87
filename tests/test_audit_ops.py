"""The audit on one op at a time: what samples, what filters, and what does neither."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from auditing import BLUR, CONV, IMAGE, Apply, sites, sites_of, verdicts_of
from torch import Tensor, nn

from aa_surgery.audit import audit
from aa_surgery.layers import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d, MaxBlurPool2d


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("filter", ["tri-3", "tri-4", "binomial-5", "halfband-7"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_our_blur_is_a_lowpass_at_every_stride(ndim, filter, stride):
    x = torch.randn((2, 3, 13, 12, 9)[: 2 + ndim])
    (row,) = audit(BlurPool(filter, (stride,) * ndim), x).rows
    assert (row.verdict, row.op, row.stride) == ("treated", "conv", (stride,) * ndim)
    assert row.gain == pytest.approx(0, abs=1e-6)


def test_gain_is_that_of_the_stride():
    fixed = BlurPool2d([0.25, 0.5, 0.25], stride=4)
    assert audit(fixed, IMAGE).rows[0].gain == pytest.approx(0.5)
    weak = BlurPool2d([0.1, 0.8, 0.1], stride=2)
    (row,) = audit(weak, IMAGE).rows
    assert (row.verdict, row.gain) == ("untreated", pytest.approx(0.6))


def test_identity_filter_is_untreated():
    (row,) = audit(BlurPool2d("identity"), IMAGE).rows
    assert (row.verdict, row.stride) == ("untreated", (2, 2))
    one_tap = Apply(lambda m, x: F.conv2d(x, torch.ones(3, 1, 1, 1), stride=2, groups=3))
    (row,) = audit(one_tap, IMAGE).rows
    assert (row.verdict, row.gain) == ("untreated", pytest.approx(1.0))
    assert not audit(MaxBlurPool2d(3, 2, 1, filter="identity"), IMAGE).ok


def test_post_placement_has_one_site_the_blur():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), BlurPool2d())
    report = audit(model, IMAGE)
    assert sites(report) == ["3 conv 2x2"]
    assert report.ok


BEFORE = {
    "conv": (lambda m, x: m.conv(m.blur(x)), BLUR | {"conv": nn.Conv2d(3, 4, 3, 2)}),
    "padded conv": (
        lambda m, x: m.conv(F.pad(m.blur(x), (0, 1, 0, 1))),
        BLUR | {"conv": nn.Conv2d(3, 4, 3, 2)},
    ),
    "circular conv": (lambda m, x: m.conv(m.blur(x)), BLUR | CONV),
    "max pool": (lambda m, x: F.max_pool2d(m.blur(x), 3, 2, 1), BLUR),
    "average pool": (lambda m, x: F.avg_pool2d(m.blur(x), 2), BLUR),
    "slice": (lambda m, x: m.blur(x)[:, :, ::2, 1::2] + 1, BLUR),
    "nearest": (lambda m, x: F.interpolate(m.blur(x), scale_factor=0.5), BLUR),
    "unfold": (lambda m, x: F.unfold(m.blur(x), 2, stride=2).relu(), BLUR),
    "pixel unshuffle": (lambda m, x: F.pixel_unshuffle(m.blur(x), 2).relu(), BLUR),
    "channels last": (
        lambda m, x: m.blur(x.permute(0, 2, 3, 1))[:, ::2, ::2] + 1,
        {"blur": BlurPool("tri-3", (1, 1), rate=(2, 2), channels_last=True)},
    ),
    "tokens": (lambda m, x: m.blur(x).flatten(2).mT.reshape(1, 64, 64, 3)[:, ::2, ::2] + 1, BLUR),
    "merge": (
        lambda m, x: F.layer_norm(
            torch.cat([m.blur(x)[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1), (32,)
        ),
        BLUR,
    ),
    "cast": (lambda m, x: F.max_pool2d(m.blur(x).double(), 2), BLUR),
    "two filters": (
        lambda m, x: F.max_pool2d(m.rows(m.columns(x)), 2),
        {
            "rows": BlurPool("tri-3", (1, 1), rate=(2, 1)),
            "columns": BlurPool("tri-3", (1, 1), rate=(1, 2)),
        },
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_filter_before_the_op_treats_it(name):
    function, children = BEFORE[name]
    assert verdicts_of(function, **children) == ["treated"]


@pytest.mark.parametrize("name", BEFORE)
def test_the_same_without_the_filter_is_untreated(name):
    function, children = BEFORE[name]
    blurs = ("blur", "rows", "columns")
    bare = {k: nn.Identity() if k in blurs else child for k, child in children.items()}
    assert verdicts_of(function, **bare) == ["untreated"]


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.relu(),
        lambda x: torch.relu_(x),
        lambda x: x + x,
        lambda x: x * 2,
        lambda x: torch.cat([x, x.relu()], 1),
        lambda x: F.layer_norm(x, x.shape[1:]),
        lambda x: F.conv2d(x, torch.randn(5, 3, 3, 3)),
        lambda x: F.max_pool2d(x, 3, 1),
    ],
)
def test_arithmetic_between_undoes_the_filter(between):
    assert verdicts_of(lambda m, x: F.max_pool2d(between(m.blur(x)), 2), **BLUR) == ["untreated"]


def test_filter_for_one_axis_treats_no_other():
    rows = {"blur": BlurPool("tri-3", (1, 1), rate=(2, 1))}
    assert verdicts_of(lambda m, x: F.max_pool2d(m.blur(x), (2, 1)), **rows) == ["treated"]
    assert verdicts_of(lambda m, x: F.max_pool2d(m.blur(x), (1, 2)), **rows) == ["untreated"]
    turned = lambda m, x: F.max_pool2d(m.blur(x).mT, (1, 2))  # noqa: E731
    assert verdicts_of(turned, **rows) == ["treated"]


def test_a_learned_depthwise_conv_is_no_filter():
    assert verdicts_of(lambda m, x: m.c(x), c=nn.Conv2d(3, 3, 3, 2, groups=3)) == ["untreated"]
    biased = nn.Conv2d(3, 3, 2, 2, groups=3)
    nn.init.constant_(biased.weight, 0.25)
    assert verdicts_of(lambda m, x: m.c(x), c=biased) == ["untreated"]


FUNCTIONAL = {
    "conv 1x1": (lambda m, x: F.conv2d(x, torch.randn(2, 3, 1, 1), stride=2), " conv 2x2"),
    "conv one axis": (
        lambda m, x: F.conv2d(x, torch.randn(2, 3, 3, 3), stride=(1, 2)),
        " conv 1x2",
    ),
    "conv same": (lambda m, x: m.c(x), "c conv 2x2"),
    "max pool": (lambda m, x: F.max_pool2d(x, 2), " max_pool 2x2"),
    "max pool of 1": (lambda m, x: F.max_pool2d(x, 1, 2), " max_pool 2x2"),
    "average pool": (lambda m, x: F.avg_pool2d(x, 3, 2, 1), " avg_pool 2x2"),
    "lp pool": (lambda m, x: F.lp_pool2d(x, 2, 2), " avg_pool 2x2"),
    "slice": (lambda m, x: x[:, :, ::2, ::3].relu(), " slice 2x3"),
    "slice returned": (lambda m, x: x[:, :, ::2, ::2], " slice 2x2"),
    "slice, two consumers": (
        lambda m, x: (y := x[:, :, ::2, ::2]).relu() + y.exp(),
        " slice 2x2",
    ),
    "select of phases": (
        lambda m, x: x.view(1, 3, 32, 2, 32, 2)[:, :, :, 0, :, 0].relu(),
        " slice 2x2",
    ),
    "token slice": (
        lambda m, x: x.flatten(2).mT.view(1, 64, 64, 3)[:, ::2, ::2].reshape(1, -1, 3).relu(),
        " slice 2x2",
    ),
    "slices, four": (
        lambda m, x: torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),
        " slice 2x2",
    ),
    "slice behind a class token": (
        lambda m, x: (
            torch.cat([torch.zeros(1, 1, 3), x.flatten(2).mT], 1)[:, 1:]
            .reshape(1, 64, 64, 3)[:, ::2, ::2]
            .relu()
        ),
        " slice 2x2",
    ),
    "nn.Unfold": (lambda m, x: F.unfold(x, 4, stride=4).relu(), " unfold 4x4"),
    "pixel unshuffle": (lambda m, x: F.pixel_unshuffle(x, 2).relu(), " space_to_depth 2x2"),
    "space to depth": (
        lambda m, x: (
            x.view(1, 3, 16, 4, 16, 4).permute(0, 3, 5, 1, 2, 4).reshape(1, 48, 16, 16).relu()
        ),
        " space_to_depth 4x4",
    ),
    "patches": (
        lambda m, x: (
            x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(1, 64, 192).relu()
        ),
        " space_to_depth 8x8",
    ),
    "max over phases": (
        lambda m, x: x.view(1, 3, 32, 2, 32, 2).amax((3, 5)),
        " max_pool 2x2",
    ),
    "mean over phases": (lambda m, x: x.view(1, 3, 16, 4, 64).mean(3), " avg_pool 4x1"),
    "nearest": (lambda m, x: F.interpolate(x, scale_factor=0.5), " interpolate 2x2"),
    "bilinear": (
        lambda m, x: F.interpolate(x, size=(40, 64), mode="bilinear"),
        " interpolate 1.6x1",
    ),
    "area": (lambda m, x: F.interpolate(x, scale_factor=0.5, mode="area"), " adaptive_pool 2x2"),
    "adaptive": (lambda m, x: F.adaptive_max_pool2d(x, (8, 1)), " adaptive_pool 8x1"),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_ops_are_seen(name):
    function, expected = FUNCTIONAL[name]
    children = {"c": nn.Conv2d(3, 2, 3, 2, padding=1)} if name == "conv same" else {}
    assert sites_of(function, **children) == [expected]


def windows(x: Tensor, size: int) -> Tensor:
    b, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).reshape(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def unwindows(x: Tensor, size: int, shape: torch.Size) -> Tensor:
    b, c, h, w = shape
    x = x.view(b, h // size, w // size, size, size, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(shape)


def attend(x: Tensor, heads: int) -> Tensor:
    q = x.view(*x.shape[:2], heads, -1).transpose(1, 2)
    return (q @ q.mT).softmax(-1).matmul(q).transpose(1, 2).reshape(x.shape)


CLEAN = {
    "stride 1": lambda m, x: F.max_pool2d(F.conv2d(x, torch.randn(2, 3, 3, 3)), 3, 1),
    "transposed": lambda m, x: F.conv_transpose2d(x, torch.randn(3, 2, 2, 2), stride=2),
    "global": lambda m, x: F.adaptive_avg_pool2d(x, 1) + x.amax((2, 3), keepdim=True),
    "window as large as the map": lambda m, x: F.avg_pool2d(x, 64),
    "gate": lambda m, x: x * x.mean((2, 3)).view(1, 3, 1, 1).sigmoid().expand_as(x),
    "channel slice": lambda m, x: x[:, ::2] + 1,
    "rotary": lambda m, x: torch.stack(
        [-x.permute(0, 2, 3, 1).flatten(1, 2)[..., 1::2], x.flatten(2).mT[..., :2:2]], -1
    ),
    "crop": lambda m, x: x[:, :, 8:-8, 8:-8].relu(),
    "class token": lambda m, x: x.flatten(2).mT[:, 0].relu(),
    "windows": lambda m, x: unwindows(attend(windows(x, 8), 3), 8, x.shape),
    "windows, batch of 2": lambda m, x: windows(torch.cat([x, x]), 8).relu().sum(2),
    "folding back": lambda m, x: F.fold(F.unfold(x, 2, stride=2), (64, 64), 2, stride=2),
    "shuffled back": lambda m, x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    "overlapping windows": lambda m, x: (
        F.unfold(x, 3, stride=2, padding=1).view(1, 3, 9, -1).permute(0, 3, 2, 1).relu()
    ),
    "attention made to sum to 1": lambda m, x: (a := x.flatten(2).mT @ x.flatten(2)) / a.sum(2),
    "skewed": lambda m, x: (
        F.pad(x.reshape(-1, 8, 8, 64).flatten(2), (0, 56)).reshape(-1, 71, 8).relu()
    ),
    "depth to space": lambda m, x: F.pixel_shuffle(torch.cat([x] * 4, 1), 2),
    "upsampled": lambda m, x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "classifier": lambda m, x: F.linear(x.flatten(1), torch.randn(5, 3 * 64 * 64)),
    "position table": lambda m, x: x + F.interpolate(torch.randn(1, 3, 128, 128), size=64),
    "position slices": lambda m, x: x + torch.arange(128.0)[::2],
    "shape only": lambda m, x: x.sum() + F.avg_pool2d(torch.ones_like(x), 2).sum(),
}


@pytest.mark.parametrize("name", CLEAN)
def test_what_samples_nothing_is_not_reported(name):
    assert sites_of(CLEAN[name]) == []


def test_antialiased_resize_is_treated():
    resize = Apply(lambda m, x: F.interpolate(x, size=20, mode="bilinear", antialias=True))
    (row,) = audit(resize, IMAGE).rows
    assert (row.verdict, row.reason, row.stride) == ("treated", "antialias=True", (3.2, 3.2))


def test_one_and_three_dimensions():
    sequence, volume = torch.randn(2, 4, 32), torch.randn(2, 4, 8, 16, 16)
    assert sites_of(lambda m, x: F.max_pool1d(x, 2), sequence) == [" max_pool 2"]
    assert sites_of(lambda m, x: x[:, :, ::4].relu(), sequence) == [" slice 4"]
    assert sites_of(lambda m, x: F.max_pool3d(x, (1, 2, 2)), volume) == [" max_pool 1x2x2"]
    conv = nn.Conv3d(4, 4, 3, stride=(2, 1, 2))
    assert sites_of(lambda m, x: m.conv(x), volume, conv=conv) == ["conv conv 2x1x2"]
    for blur, x in ((BlurPool1d(), sequence), (BlurPool3d(stride=(1, 2, 2)), volume)):
        assert audit(blur, x).ok
