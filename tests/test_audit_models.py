"""The audit against models whose sampling ops can be read off their definitions."""

from __future__ import annotations

import pytest
import timm
import torch
from auditing import IMAGE, RESNET18, sites, timm_model
from torch import nn

from aa_surgery.audit import audit

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
