"""What converts, fuses, wraps or makes modules by their class keeps the treatment, or says so."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import mmcv.cnn.utils
import mmengine.model
import peft
import pytest
import timm
import torch
import torchvision
from models import _settle_statistics
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.fx.experimental import optimization
from torch.nn.utils import parametrizations, parametrize

from aa_surgery import apply_antialias, find_sites, plan_antialias, remove_antialias, verify
from aa_surgery.errors import HalfTreatedError
from aa_surgery.surgery.classes import Antialiased

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
PLACEMENTS = ["auto", "pre", "post"]


def with_activations() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, 2), nn.BatchNorm2d(8)),
        nn.MaxPool2d(2),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small": with_activations,
    "timm, norm and activation in one": lambda: timm.create_model("regnety_002", num_classes=5),
    "timm": lambda: timm.create_model("resnet18", num_classes=5),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=5),
}
CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm": convert_sync_batchnorm,
    "timm split": lambda m: convert_splitbn_model(m, 2),
    "timm frozen": freeze_batch_norm_2d,
    "mmengine reverted": mmengine.model.revert_sync_batchnorm,
    "mmcv fused": mmcv.cnn.utils.fuse_conv_bn,
    "torch fused": optimization.fuse,
}
# these two leave out the activation of timm's norms, of an untouched model too
LOSE_ACTIVATIONS = ("torch", "mmcv fused")


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[kind]()
    _settle_statistics(model, 64)
    return model.eval()


def run(model: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", MODELS)
def test_conversions_of_norms_keep_the_treatment(kind: str, placement: str) -> None:
    model = apply_antialias(build(kind), placement=placement)
    expected = run(model)
    for name, convert in CONVERSIONS.items():
        if name in LOSE_ACTIVATIONS and "in one" in kind:
            continue
        converted = convert(copy.deepcopy(model)).eval()
        assert verify(converted).ok, name
        assert_close(run(converted), expected)
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("name", LOSE_ACTIVATIONS)
def test_a_conversion_that_leaves_an_activation_out_is_told(name: str) -> None:
    model = apply_antialias(build("timm, norm and activation in one"), placement="post")
    converted = CONVERSIONS[name](model).eval()
    assert not verify(converted).ok
    with pytest.raises(HalfTreatedError, match=r"stem.conv: half of its anti-aliasing is gone"):
        run(converted)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_adapters_start_from_the_answers_of_the_treated_model(placement: str) -> None:
    model = apply_antialias(build("small"), placement=placement)
    expected, classes = run(model), [type(m) for m in model.modules()]
    config = peft.LoraConfig(r=2, target_modules=["0", "3", "5"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    assert not torch.allclose(run(adapted), expected)
    assert run(adapted).shape == expected.shape
    with adapted.disable_adapter():
        assert torch.equal(run(adapted), expected)
    config = peft.LoraConfig(r=2, target_modules=["0", "3", "5"])
    unloaded = peft.get_peft_model(model, config).unload()
    assert [type(m) for m in unloaded.modules()] == classes


@pytest.mark.parametrize("target", ["0", "3", "5"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_adapters_see_the_map_that_their_convolution_sees_and_merge(
    placement: str, target: str
) -> None:
    model = apply_antialias(build("small"), placement=placement)
    config = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    tuned = run(adapted)
    assert_close(run(adapted.merge_and_unload()), tuned)
    assert verify(model).ok


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_class_of_a_module_makes_working_modules(placement: str) -> None:
    model = apply_antialias(build("small"), placement=placement)
    conv, pointwise, pool = type(model[0]), type(model[5]), type(model[7])
    x = torch.randn(2, 3, 17, 16)
    other = conv(3, 5, 3, stride=2, padding=1)
    assert isinstance(other, nn.Conv2d)
    # beside the half that runs dense, a convolution of its class runs dense too
    plain = nn.Conv2d(3, 5, 3, 1 if model[0]._aa_recipe.half else 2, 1)
    plain.load_state_dict(other.state_dict())
    # and beside one that is blurred before, a convolution of its class is too
    seen = x if model[0]._aa_recipe.front is None else model[0].aa_before(x)
    assert torch.equal(run(other, x), run(plain, seen))
    assert torch.equal(run(pickle.loads(pickle.dumps(other)), x), run(other, x))
    assert type(pointwise(3, 4, 1, bias=False)) is nn.Conv2d or model[5]._aa_recipe.half
    assert run(pool(3, stride=2), x).shape == (2, 3, 8, 7)
    assert type(pool(2)) is nn.MaxPool2d


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("order", ["before", "after"])
def test_parametrizations_come_off_again(placement: str, order: str) -> None:
    model, x = build("small"), X
    if order == "before":
        parametrizations.weight_norm(model[0])
        parametrizations.orthogonal(model[5])
    plain = run(model)
    apply_antialias(model, placement=placement)
    if order == "after":
        parametrizations.weight_norm(model[0])
    expected = run(model)
    assert torch.equal(run(copy.deepcopy(model)), expected)
    assert_close(run(remove_antialias(copy.deepcopy(model))), plain)
    parametrize.remove_parametrizations(model[0], "weight")
    if order == "before":
        parametrize.remove_parametrizations(model[5], "weight")
    assert_close(run(model, x), expected)
    assert verify(model).ok
    remove_antialias(model)
    assert [type(m) for m in model] == [type(m) for m in with_activations()]
    assert_close(run(model), plain)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", MODELS)
def test_no_child_is_none(kind: str, placement: str) -> None:
    for module in apply_antialias(build(kind), placement=placement).modules():
        assert None not in module._modules.values()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_treated_model_is_read_again(placement: str) -> None:
    model = build("timm")
    names = [site.name for site in find_sites(model)]
    expected = run(apply_antialias(model, placement=placement))
    assert [site.name for site in find_sites(model)] == names
    plan = plan_antialias(model)
    assert not plan.edits
    assert not plan.unread
    assert {left.reason for left in plan.left} == {"anti-aliased already"}
    with pytest.warns(UserWarning, match="anti-aliased already"):
        apply_antialias(nn.Sequential(model))
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("small", "0"),
        ("small", "7"),
        ("timm", "layer2"),
        ("torchvision", "layer2"),
        ("timm", "conv1"),
    ],
)
def test_a_part_then_the_whole(kind: str, part: str, placement: str) -> None:
    whole, model = build(kind), build(kind)
    plain = run(model)
    sites = {site.name for site in find_sites(whole)}
    apply_antialias(model.get_submodule(part), placement=placement)
    plan = plan_antialias(model, placement=placement)
    assert {d.site.name for d in plan.decisions} == sites
    already = {left.site.name for left in plan.left if left.reason == "anti-aliased already"}
    assert already == {name for name in sites if f"{name}.".startswith(f"{part}.")}
    apply_antialias(model, placement=placement)
    assert run(model).shape == plain.shape
    assert {e.site.name for e in plan.edits} == sites - already
    remove_antialias(model)
    assert not any(isinstance(m, Antialiased) for m in model.modules())
    assert torch.equal(run(model), plain)
