"""MMPretrain's backbones: the laws over every class, and what its own modules ask of surgery."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.registry import DefaultScope
from mmpretrain.models import backbones as mm
from mmpretrain.models.utils.sparse_modules import SparseConv2d, SparseHelper
from models import _settle_statistics, _spread_norms
from torch import Tensor, nn
from torch.utils import checkpoint

from aa_surgery import apply_antialias, audit, plan_antialias, remove_antialias
from aa_surgery.surgery.classes import Antialiased
from aa_surgery.sweep import Subject, representatives, structural_laws, subjects
from aa_surgery.sweep.identity import identity_law

pytestmark = pytest.mark.filterwarnings("ignore")  # of the hosts, about their own initialisation

ABSTRACT = {"CSPNet"}
PRETRAINING = {
    "BEiTPretrainViT",
    "CAEPretrainViT",
    "MAEHiViT",
    "MAEViT",
    "MFFViT",
    "MILANViT",
    "MaskFeatViT",
    "MixMIMPretrainTransformer",
    "MoCoV3ViT",
    "SimMIMSwinTransformer",
    "iTPNHiViT",
}
WHOLE = {"BYOL", "BarlowTwins", "DenseCL", "MoCo", "MoCoV3", "SimCLR", "SimSiam", "SwAV"}
FAMILIES = sorted((set(mm.__all__) - ABSTRACT) | PRETRAINING | WHOLE)

STAGES = dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
CONVNEXT = dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])
REPMLP = dict(channels=[8, 16, 32, 64], depths=[1, 1, 1, 1], sharesets_nums=[1, 1, 1, 1])

# small ones of classes whose own are large, and those with windows that end beyond the map
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "CSPDarkNet": (lambda: mm.CSPDarkNet(53), (33,)),
    "ConvNeXt": (lambda: mm.ConvNeXt(CONVNEXT, gap_before_final_norm=False), (64, 75)),
    "EfficientNet": (lambda: mm.EfficientNet("b0"), (32, 33, 38, 47)),
    "HRNet": (lambda: mm.HRNet("w18"), (64,)),
    "InceptionV3": (lambda: mm.InceptionV3(num_classes=8, aux_logits=False), (96, 97)),
    "MixMIMTransformer": (
        lambda: mm.MixMIMTransformer(STAGES, img_size=64, window_size=[4, 4, 4, 2]),
        (64,),
    ),
    "RepVGG": (lambda: mm.RepVGG("A0", out_indices=(3,)), (64, 75)),
    "Res2Net": (lambda: mm.Res2Net(depth=50, base_width=8), (64, 75)),
    "ResNeSt": (lambda: mm.ResNeSt(50, base_channels=16), (64, 75, 97)),
    "ResNet": (lambda: mm.ResNet(18, base_channels=16, stem_channels=16), (64, 75)),
    "ResNetV1d": (lambda: mm.ResNetV1d(depth=50), (64, 75, 97)),
    "SwinTransformer": (
        lambda: mm.SwinTransformer(STAGES, img_size=64, pad_small_map=True),
        (64, 75),
    ),
    "SwinTransformerV2": (
        lambda: mm.SwinTransformerV2(
            {**STAGES, "extra_norm_every_n_blocks": 0},
            img_size=64,
            pad_small_map=True,
            window_size=[4, 4, 4, 2],
        ),
        (64, 75),
    ),
}
QUICK = ("LeNet5", "MobileNetV3", "ShuffleNetV1", "ShuffleNetV2", "SVT", "VAN", "XCiT")


@cache
def chosen() -> dict[str, Subject]:
    return representatives(subjects(["mmpretrain"]))


def built(name: str, **kwargs: object) -> nn.Module:
    """Return a model in float64 with random weights, in eval mode, the same at every call."""
    torch.manual_seed(0)
    return settled(SMALL[name][0]().double(), SMALL[name][1][0])


def settled(model: nn.Module, size: int) -> nn.Module:
    with_default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        _spread_norms(model)
        wrapped = nn.Sequential(model)  # `train()` of a backbone returns None
        _settle_statistics(wrapped, size)
        wrapped.eval()
    finally:
        torch.set_default_dtype(with_default)
    return model


def image(size: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = model(x)
    return y[-1] if isinstance(y, tuple) else y


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_every_class_is_in_the_sweep() -> None:
    assert set(chosen()) >= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_structural_laws_hold(family: str) -> None:
    found, laws = structural_laws(chosen()[family])
    assert {law: broken for law, broken in laws.items() if broken} == {}
    assert found.edits > 0
    assert found.untreated == []


@pytest.mark.parametrize("family", QUICK)
def test_the_identity_law_holds(family: str) -> None:
    found = identity_law(chosen()[family])
    assert found.broken == []
    assert len(found.runs) >= 2


@pytest.mark.parametrize("name", SMALL)
def test_the_identity_law_holds_at_odd_sizes(name: str) -> None:
    model = built(name)
    for size in SMALL[name][1]:
        x = image(size)
        expected = run(model, x)
        for placement in ("auto", "post", "pre"):
            apply_antialias(model, filter="identity", placement=placement, max_stride=None)
            assert_close(run(model, x), expected)
            remove_antialias(model)
        assert torch.equal(run(model, x), expected)


WITH_CP: dict[str, Callable[[bool], nn.Module]] = {
    "ConvNeXt": lambda cp: mm.ConvNeXt(CONVNEXT, with_cp=cp),
    "MobileNetV2": lambda cp: mm.MobileNetV2(0.25, with_cp=cp),
    "RepVGG": lambda cp: mm.RepVGG("A0", with_cp=cp),
    "Res2Net": lambda cp: mm.Res2Net(depth=50, base_width=8, with_cp=cp),
    "ResNet": lambda cp: mm.ResNet(18, base_channels=16, stem_channels=16, with_cp=cp),
    "ShuffleNetV2": lambda cp: mm.ShuffleNetV2(0.5, with_cp=cp),
    "SwinTransformer": lambda cp: mm.SwinTransformer(
        STAGES, img_size=64, pad_small_map=True, with_cp=cp
    ),
}


@pytest.mark.parametrize("name", WITH_CP)
def test_checkpointing_survives_and_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain, checkpointed = WITH_CP[name](False).double(), WITH_CP[name](True).double()
    checkpointed.load_state_dict(plain.state_dict())
    assert plan_antialias(plain).decisions == plan_antialias(checkpointed).decisions

    calls: list[int] = []
    original = checkpoint.checkpoint
    monkeypatch.setattr(
        checkpoint, "checkpoint", lambda *args, **kw: calls.append(1) or original(*args, **kw)
    )
    before = gradients(checkpointed)
    expected_calls = len(calls)
    assert len(before) == len(gradients(plain))
    calls.clear()
    treated = gradients(apply_antialias(checkpointed))
    assert len(calls) == expected_calls > 0
    for got, expected in zip(treated, gradients(apply_antialias(plain)), strict=True):
        assert_close(got, expected)


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    model.eval()
    x = image(64, batch=2).requires_grad_()
    model(x)[-1].square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [x.grad, *grads]


DEPLOYED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "LeViT": (lambda: mm.LeViT("128s"), 224),
    "MobileOne": (lambda: mm.MobileOne("s0", out_indices=(3,)), 64),
    "RIFormer": (lambda: mm.RIFormer("s12"), 64),
    "RepLKNet": (
        lambda: mm.RepLKNet(
            dict(
                large_kernel_sizes=[7, 7, 7, 7],
                layers=[1, 1, 1, 1],
                channels=[8, 16, 24, 32],
                small_kernel=3,
                dw_ratio=1,
            )
        ),
        64,
    ),
    "RepMLPNet": (lambda: mm.RepMLPNet(REPMLP, img_size=64, reparam_conv_kernels=(1, 3)), 64),
    "RepVGG": (lambda: mm.RepVGG("A0", out_indices=(3,)), 64),
}


@pytest.mark.parametrize("name", DEPLOYED)
@pytest.mark.parametrize("placement", ["auto", "post"])
def test_switch_to_deploy_keeps_the_outputs(name: str, placement: str) -> None:
    torch.manual_seed(0)
    build, size = DEPLOYED[name]
    with double_by_default():
        model, x = settled(build().double(), size), image(size)
        plain = run(model, x)
        expected = run(apply_antialias(model, placement=placement), x)
        assert (expected - plain).abs().max() > 1e-3 * plain.abs().max()
        model.switch_to_deploy()
    torch.testing.assert_close(run(model, x), expected, rtol=1e-6, atol=1e-6 * expected.abs().max())
    assert any(isinstance(m, Antialiased) for m in model.modules())
    assert audit(model, x).untreated == ()


class double_by_default:
    """Let what hosts make anew be of float64."""

    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(torch.float32)


def test_batch_norms_fused_into_the_convolutions() -> None:
    model, x = built("ResNet"), image(75)
    expected = run(apply_antialias(model), x)
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert_close(run(fused, x), expected)


@pytest.mark.parametrize("placement", ["auto", "pre"])
def test_efficient_conv_bn_eval_runs_the_filtered_convolution(placement: str) -> None:
    model, x = nn.Sequential(built("ResNet")), image(75)
    model.eval()
    expected = run(apply_antialias(model, placement=placement), x)
    turn_on_efficient_conv_bn_eval(model, "0")
    assert_close(run(model, x), expected)

    torch.manual_seed(0)
    block = ConvModule(
        3, 8, 3, stride=2, padding=1, norm_cfg=dict(type="BN"), efficient_conv_bn_eval=True
    )
    wrapped = nn.Sequential(block.double()).eval()
    apply_antialias(wrapped, placement=placement)
    efficient = run(wrapped, x)
    block.turn_on_efficient_conv_bn_eval(False)
    assert_close(efficient, run(wrapped, x))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", range(14, 20))
def test_adaptive_padding_keeps_its_grid(kernel: int, size: int) -> None:
    torch.manual_seed(0)
    conv = Conv2dAdaptivePadding(3, 4, kernel, stride=3, dilation=1 + (kernel == 3))
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.SiLU()).double().eval()
    x = image(size)
    expected = run(model, x)
    apply_antialias(model, filter="identity", placement="post")
    assert isinstance(conv, Antialiased) == (kernel > 1) or conv._aa_recipe.wrapped
    assert_close(run(model, x), expected)


def test_adaptive_padding_is_blurred_behind_the_activation() -> None:
    plan = plan_antialias(mm.EfficientNet("b0"))
    assert {edit.placement for edit in plan.edits} == {"post"}
    assert {str(edit.anchor) for edit in plan.edits} >= {"after layers.0.activate"}


def sparse_resnet() -> nn.Module:
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        norm = dict(type="SparseBatchNorm2d")
        return mm.SparseResNet(50, norm_cfg=norm, out_indices=(0, 1, 2, 3))


@pytest.fixture
def half_masked() -> Iterator[None]:
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    mask[..., 0] = True
    SparseHelper._cur_active = mask
    yield
    SparseHelper._cur_active = None


@pytest.mark.parametrize("placement", ["auto", "post", "pre"])
def test_sparse_layers_keep_their_masks(placement: str, half_masked: None) -> None:
    torch.manual_seed(0)
    model = settled(sparse_resnet().double(), 64)
    x = image(64)
    with torch.no_grad():
        expected = model(x)
        apply_antialias(model, filter="identity", placement=placement)
        for got, reference in zip(model(x), expected, strict=True):
            assert_close(got, reference)
        remove_antialias(model)
        apply_antialias(model, placement=placement)
        maps = model(x)
    convs = [m for m in model.modules() if isinstance(m, SparseConv2d)]
    assert any(isinstance(conv, Antialiased) for conv in convs)
    assert audit(model, x).untreated == ()
    for sparse, treated in zip(expected, maps, strict=True):
        assert sparse[..., sparse.shape[-1] // 2 :].abs().max() == 0  # masked half
        assert treated.shape == sparse.shape


def test_sparse_layers_are_planned_alike_with_a_mask_and_without() -> None:
    model = sparse_resnet()
    assert SparseHelper._cur_active is None
    without = plan_antialias(model)
    SparseHelper._cur_active = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    try:
        assert plan_antialias(model).decisions == without.decisions
    finally:
        SparseHelper._cur_active = None
    # blurred before: what a norm does under a mask that is not there yet cannot be probed
    dense = plan_antialias(mm.ResNet(50))
    assert [e.site.name for e in without.edits] == [e.site.name for e in dense.edits]


INITIALISED: dict[str, Callable[[], nn.Module]] = {
    "ConvNeXt": lambda: mm.ConvNeXt(CONVNEXT),
    "EfficientNet": lambda: mm.EfficientNet("b0"),
    "ResNet": lambda: mm.ResNet(18, base_channels=16, stem_channels=16),
    "SwinTransformer": SMALL["SwinTransformer"][0],
}


@pytest.mark.parametrize("name", INITIALISED)
@pytest.mark.parametrize("placement", ["auto", "post"])
def test_layers_are_initialised_by_the_names_of_their_classes(name: str, placement: str) -> None:
    torch.manual_seed(0)
    plain = INITIALISED[name]()
    treated = apply_antialias(copy.deepcopy(plain), placement=placement)
    for model in (plain, treated):
        torch.manual_seed(1)
        model.init_weights()
    expected = plain.state_dict()
    assert list(treated.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in treated.state_dict().items())


def test_frozen_stages_and_fixed_norms_stay() -> None:
    def state(model: nn.Module) -> dict[str, bool]:
        model.train()
        modules = {name: m.training for name, m in model.named_modules() if "aa_" not in name}
        return modules | {name: p.requires_grad for name, p in model.named_parameters()}

    for build in (
        lambda: mm.ResNet(18, frozen_stages=2, norm_eval=True),
        lambda: mm.SwinTransformer(STAGES, img_size=64, pad_small_map=True, frozen_stages=1),
        lambda: mm.ConvNeXt(CONVNEXT, frozen_stages=2),
    ):
        model = build()
        before = state(model)
        assert state(apply_antialias(model)) == before
        assert not all(before.values())


class Selecting(nn.Module):
    """Choose values of a map, of which none may be left, beside a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, y[y > torch.inf].reshape(len(y), -1, 1) * 2


def test_the_audit_reads_on_behind_an_empty_tensor() -> None:
    model = apply_antialias(Selecting())
    rows = audit(model, torch.randn(2, 3, 16, 16)).rows
    assert [row.verdict for row in rows] == ["treated"]


@pytest.mark.parametrize("name", ["InceptionV3", "SVT", "SwinTransformer"])
def test_the_training_branch_runs(name: str) -> None:
    """Forwards that read `self.training` go on reading it."""
    torch.manual_seed(0)
    model = {
        "InceptionV3": lambda: mm.InceptionV3(num_classes=8, aux_logits=True),
        "SVT": lambda: mm.SVT("small"),
        "SwinTransformer": SMALL["SwinTransformer"][0],
    }[name]()
    size = 299 if name == "InceptionV3" else 64
    x = torch.randn(2, 3, size, size)
    model.train()
    expected = [t.shape for t in model(x) if t is not None]
    apply_antialias(model)
    result = [t for t in model(x) if t is not None]
    assert [t.shape for t in result] == expected
    sum(t.square().mean() for t in result).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tokens_in_window_order_are_named_as_the_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = apply_antialias(mm.HiViT("tiny", img_size=64, ape=True), max_stride=None)
    report = audit(model, torch.zeros(1, 3, 64, 64))
    reasons = {row.reason for row in report.rows if row.verdict == "left"}
    assert len(reasons) == 1
    assert "window order" in reasons.pop()
