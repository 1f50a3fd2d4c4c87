"""The audit against models whose sampling ops can be read off their definitions."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery.audit import AuditReport, audit
from aa_surgery.errors import InputError, UnsupportedModelError
from aa_surgery.layers import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d, MaxBlurPool2d

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Apply(nn.Module):
    """Run a function of the input and of a few children."""

    def __init__(self, function, **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def sites(report: AuditReport) -> list[str]:
    return [f"{r.name} {r.op} {'x'.join(f'{s:g}' for s in r.stride)}" for r in report.rows]


def sites_of(function, x: Tensor = IMAGE, **children: nn.Module) -> list[str]:
    report = audit(Apply(function, **children), x)
    assert not report.unread
    return sites(report)


def verdicts_of(function, x: Tensor = IMAGE, **children: nn.Module) -> list[str]:
    return [r.verdict for r in audit(Apply(function, **children), x).rows]


def timm_model(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options)


RESNET18 = [
    "conv1 conv 2x2",
    "maxpool max_pool 2x2",
    *(f"layer{i}.0.{conv} conv 2x2" for i in (2, 3, 4) for conv in ("conv1", "downsample.0")),
]
SWIN = [f"layers.{i}.downsample space_to_depth 2x2" for i in (1, 2, 3)]
REAL = {
    "resnet18": (64, RESNET18),
    "convnext_atto": (
        64,
        ["stem.0 conv 4x4", *(f"stages.{i}.downsample.1 conv 2x2" for i in (1, 2, 3))],
    ),
    "swin_tiny_patch4_window7_224": (224, ["patch_embed.proj conv 4x4", *SWIN]),
    "swinv2_tiny_window8_256": (256, ["patch_embed.proj conv 4x4", *SWIN]),
    "tresnet_m": (
        64,
        [
            "body.s2d space_to_depth 4x4",
            "body.layer2.0.downsample.0 avg_pool 2x2",
            "body.layer2.0.conv1.aa conv 2x2",
            "body.layer3.0.downsample.0 avg_pool 2x2",
            "body.layer3.0.conv2.aa conv 2x2",
            "body.layer4.0.downsample.0 avg_pool 2x2",
            "body.layer4.0.conv2.aa conv 2x2",
        ],
    ),
    "levit_128s": (
        224,
        [
            *(f"stem.conv{i}.linear conv 2x2" for i in (1, 2, 3, 4)),
            *(f"stages.{i}.downsample.attn_downsample.q.down slice 2x2" for i in (1, 2)),
        ],
    ),
    "densenet121": (
        64,
        [
            "features.conv0 conv 2x2",
            "features.pool0 max_pool 2x2",
            *(f"features.transition{i}.pool avg_pool 2x2" for i in (1, 2, 3)),
        ],
    ),
    "inception_v3": (
        128,
        [
            "Conv2d_1a_3x3.conv conv 2x2",
            "Pool1 max_pool 2x2",
            "Pool2 max_pool 2x2",
            "Mixed_6a.branch3x3.conv conv 2x2",
            "Mixed_6a.branch3x3dbl_3.conv conv 2x2",
            "Mixed_6a max_pool 2x2",
            "Mixed_7a.branch3x3_2.conv conv 2x2",
            "Mixed_7a.branch7x7x3_4.conv conv 2x2",
            "Mixed_7a max_pool 2x2",
        ],
    ),
    "pvt_v2_b0": (
        64,
        [
            "patch_embed.proj conv 4x4",
            *(f"stages.0.blocks.{b}.attn.sr conv 8x8" for b in (0, 1)),
            "stages.1.downsample.proj conv 2x2",
            *(f"stages.1.blocks.{b}.attn.sr conv 4x4" for b in (0, 1)),
            "stages.2.downsample.proj conv 2x2",
            *(f"stages.2.blocks.{b}.attn.sr conv 2x2" for b in (0, 1)),
            "stages.3.downsample.proj conv 2x2",
        ],
    ),
    "poolformer_s12": (
        64,
        ["stem.conv conv 4x4", *(f"stages.{i}.downsample.conv conv 2x2" for i in (1, 2, 3))],
    ),
    "mobilenetv2_100": (
        64,
        ["conv_stem conv 2x2", *(f"blocks.{i}.0.conv_dw conv 2x2" for i in (1, 2, 3, 5))],
    ),
    "maxvit_rmlp_pico_rw_256": (
        256,
        [
            "stem.conv1 conv 2x2",
            *(
                f"stages.{i}.blocks.0.conv.{site}"
                for i in range(4)
                for site in ("shortcut.pool avg_pool 2x2", "conv2_kxk conv 2x2")
            ),
        ],
    ),
    "vit_tiny_patch16_224": (224, ["patch_embed.proj conv 16x16"]),
    "vit_small_patch16_rope_224": (224, ["patch_embed.proj conv 16x16"]),
}


@pytest.mark.parametrize("name", REAL)
def test_sites_of_real_models(name):
    size, expected = REAL[name]
    report = audit(timm_model(name), torch.randn(1, 3, size, size))
    assert sites(report) == expected
    assert not report.unread


def test_every_filter_of_tresnet_is_seen_and_nothing_else():
    report = audit(timm_model("tresnet_m"), IMAGE)
    assert [r.name for r in report.treated] == [
        "body.layer2.0.conv1.aa",
        "body.layer3.0.conv2.aa",
        "body.layer4.0.conv2.aa",
    ]
    assert [r.reason for r in report.untreated if r.op == "avg_pool"] == 3 * [
        "average only: Rect-2"
    ]


def test_hrnet_runs_twenty_three_strided_convs():
    report = audit(timm_model("hrnet_w18_small"), IMAGE)
    assert {(r.op, r.stride) for r in report.rows} == {("conv", (2, 2))}
    assert len(report.rows) == 23


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18", 64, RESNET18),
        (
            "swin_t",
            64,
            ["features.0.0 conv 4x4", *(f"features.{i} slice 2x2" for i in (2, 4, 6))],
        ),
        ("vgg11_bn", 64, [f"features.{i} max_pool 2x2" for i in (3, 7, 14, 21, 28)]),
    ],
)
def test_sites_of_torchvision(name, size, expected):
    torchvision = pytest.importorskip("torchvision")
    model = getattr(torchvision.models, name)(weights=None)
    report = audit(model, torch.randn(1, 3, size, size))
    assert sites(report) == expected
    assert not report.unread


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_size_changes_no_row(batch):
    x = torch.randn(batch, 3, 64, 64)
    model = timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4)
    assert sites(audit(model, x)) == ["patch_embed.proj conv 4x4", *SWIN]


def test_timm_blur_is_a_lowpass():
    report = audit(timm_model("resnetblur18"), IMAGE)
    assert [r.name for r in report.treated] == ["maxpool.1", *(f"layer{i}.0.aa" for i in (2, 3, 4))]
    assert all(r.gain == pytest.approx(0, abs=1e-6) for r in report.treated)
    assert [r.name for r in report.untreated] == [
        "conv1",
        *(f"layer{i}.0.downsample.0" for i in (2, 3, 4)),
    ]


@pytest.mark.parametrize("layer", ["blur", "blurpc"])
def test_timm_aa_layer_is_a_lowpass(layer):
    aa = timm.layers.create_aa(layer, channels=3, stride=2)
    assert audit(nn.Sequential(aa), IMAGE).ok
    average = timm.layers.create_aa("avg", stride=2)
    assert not audit(nn.Sequential(average), IMAGE).ok


@pytest.mark.peer
def test_blurs_of_peers_are_lowpass():
    kornia = pytest.importorskip("kornia")
    peer = pytest.importorskip("antialiased_cnns")
    for blur in (
        kornia.filters.BlurPool2D(3, 2),
        kornia.filters.MaxBlurPool2D(3, 2),
        *(peer.BlurPool(3, filt_size=k, stride=2) for k in (2, 3, 4, 5, 6, 7)),
    ):
        report = audit(nn.Sequential(blur), IMAGE)
        assert len(report.treated) == 1, blur
        assert report.ok, blur


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


BLUR = {"blur": BlurPool("tri-3", (1, 1), rate=(2, 2))}
CONV = {"conv": nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular")}
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


def test_calls_of_one_module_are_one_row():
    pool = nn.MaxPool2d(2)
    (row,) = audit(Apply(lambda m, x: m.pool(m.pool(x)), pool=pool), IMAGE).rows
    assert (row.name, row.calls, row.size_in, row.size_out) == ("pool", 2, (64, 64), (32, 32))


def test_worst_call_decides():
    children = BLUR | {"pool": nn.MaxPool2d(2)}
    (row,) = audit(Apply(lambda m, x: m.pool(x) + m.pool(m.blur(x)), **children), IMAGE).rows
    assert (row.verdict, row.calls) == ("untreated", 2)


def test_indexing_is_listed_not_judged():
    report = audit(Apply(lambda m, x: x[:, :, torch.arange(0, 64, 2)]), IMAGE)
    assert not report.rows
    assert report.unread == ("(model): index",)


def left(name: str, reason: str = "stride 4 > max_stride") -> SimpleNamespace:
    return SimpleNamespace(site=SimpleNamespace(name=name), reason=reason)


def test_plan_gives_the_reason():
    model = timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4)
    plan = SimpleNamespace(left=(left("patch_embed.proj"), left("layers.1.downsample:reshape")))
    report = audit(model, IMAGE, plan=plan)
    assert [r.name for r in report.left] == ["patch_embed.proj", "layers.1.downsample"]
    assert {r.reason for r in report.left} == {"stride 4 > max_stride"}
    assert [r.name for r in report.untreated] == ["layers.2.downsample", "layers.3.downsample"]
    model._antialias_plan = plan
    assert audit(model, IMAGE) == report


def test_plan_excuses_no_namesake():
    model = Apply(
        lambda m, x: m.conv10(m.conv1(x)), conv1=nn.Conv2d(3, 3, 2, 2), conv10=CONV["conv"]
    )
    report = audit(model, IMAGE, plan=SimpleNamespace(left=(left("conv1"),)))
    assert [r.verdict for r in report.rows] == ["left", "untreated"]


def test_treated_stays_treated_though_left():
    assert audit(BlurPool2d(), IMAGE, plan=SimpleNamespace(left=(left(""),))).treated


class Untidy(nn.Module):
    """Change a buffer, replace another, and draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.cache = x
        x += torch.rand(1)
        return F.max_pool2d(self.norm(x), 2)


def test_model_input_and_random_state_are_as_before():
    model, x = Untidy(), IMAGE.clone()
    model.train()
    model.norm.eval()
    state, hooks = torch.get_rng_state(), len(nn.modules.module._global_forward_hooks)
    assert len(audit(model, x).rows) == 1
    assert (model.training, model.norm.training) == (True, False)
    assert model.count == 0
    assert model.cache is None
    assert torch.equal(x, IMAGE)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(nn.modules.module._global_forward_hooks) == hooks
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_failing_forward_leaves_all_as_before():
    model = nn.Sequential(nn.Dropout(), nn.Linear(5, 2)).train()
    hooks = len(nn.modules.module._global_forward_hooks)
    with pytest.raises(InputError, match="Sequential fails on inputs of shape") as caught:
        audit(model, IMAGE)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert model.training
    assert model[0].training
    assert len(nn.modules.module._global_forward_hooks) == hooks


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="no inputs"):
        audit(nn.ReLU())
    with pytest.raises(UnsupportedModelError, match="expected an nn"):
        audit(F.relu, IMAGE)  # type: ignore[arg-type]
    scripted = torch.jit.trace(nn.ReLU(), IMAGE)
    with pytest.raises(UnsupportedModelError, match="0 is a"):
        audit(nn.Sequential(scripted), IMAGE)


def test_keyword_inputs_and_wrappers():
    assert sites(audit(nn.DataParallel(timm_model("resnet18")), IMAGE)) == RESNET18
    compiled = torch.compile(timm_model("resnet18"), backend="eager")
    assert sites(audit(compiled, x=IMAGE)) == RESNET18


def test_meta_device_says_the_same():
    for model in (
        timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4),
        nn.Sequential(nn.Conv2d(3, 8, 3), BlurPool2d(), MaxBlurPool2d(3, 2), nn.MaxPool2d(2)),
    ):
        real = audit(model, IMAGE)
        meta = audit(model.to("meta"), IMAGE.to("meta"))
        assert [(r.name, r.op, r.stride, r.verdict) for r in meta.rows] == [
            (r.name, r.op, r.stride, r.verdict) for r in real.rows
        ]


def test_low_precision_filters_are_seen():
    model = nn.Sequential(BlurPool2d("binomial-7")).bfloat16()
    assert audit(model, IMAGE.bfloat16()).ok


def test_report_prints_and_writes():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), BlurPool2d())
    report = audit(model, IMAGE)
    lines = str(report).splitlines()
    assert lines[0].split() == [
        "name", "op", "stride", "size", "calls", "verdict", "gain", "reason",
    ]  # fmt: skip
    assert lines[2].startswith("0 ")
    assert lines[-1] == "2 sampling ops: 1 treated, 0 left by the plan, 1 untreated"
    starts = {line.index("conv") for line in lines[2:-1]}
    assert len(starts) == 1
    data = json.loads(json.dumps(report.to_dict()))
    assert [r["verdict"] for r in data["rows"]] == ["untreated", "treated"]
    assert not data["ok"]
    assert str(audit(nn.ReLU(), IMAGE)) == (
        "0 sampling ops: 0 treated, 0 left by the plan, 0 untreated"
    )
