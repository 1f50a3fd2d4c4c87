"""What MMEngine and MMPretrain do to a model, done to one built with the flag: as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain import get_model
from mmpretrain.registry import MODELS
from openmmlab import (
    NETS,
    build,
    classifier,
    crops,
    flagged,
    one_thread,
    run_config,
    same,
    save_untouched,
    started,
    treated_by_hand,
    write_crops,
)
from torch import Tensor, nn

from aa_surgery import audit
from aa_surgery.layers import BlurPool


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crops(tmp_path_factory.mktemp("images") / "photographs")


@pytest.fixture(autouse=True)
def mmpretrain_scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmpretrain"), one_thread():
        yield


def blurs(model: nn.Module) -> dict[str, Tensor]:
    return {n: m.kernel for n, m in model.named_modules() if isinstance(m, BlurPool)}


# --- weights


@pytest.mark.parametrize("name", NETS)
def test_init_cfg_pretrained_loads_an_untouched_checkpoint(
    images: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = save_untouched(name, tmp_path / "untouched.pth")
    init = dict(type="Pretrained", checkpoint=str(checkpoint), prefix="backbone.")
    _, state = started(flagged(name, init_cfg=init), images, tmp_path / "run")
    saved = torch.load(checkpoint)["state_dict"]
    own = {key: value for key, value in state.items() if key.startswith("backbone.")}
    assert same(own, {key: saved[key] for key in own})
    assert len(own) == sum(key.startswith("backbone.") for key in saved)


@pytest.mark.parametrize("name", NETS)
def test_get_model_loads_an_untouched_checkpoint(images: Path, tmp_path: Path, name: str) -> None:
    checkpoint = save_untouched(name, tmp_path / "untouched.pth")
    config = run_config(flagged(name), images, tmp_path / "run")
    model = get_model(config, pretrained=str(checkpoint)).eval()
    pixels, _ = crops(images)
    with torch.no_grad():
        expected = treated_by_hand(name, checkpoint).eval()(pixels)
        assert torch.equal(model(pixels), expected)


INITIALISED: dict[str, dict[str, Any]] = {
    "ResNet": dict(depth=18, stem_channels=8, base_channels=8),
    "ConvNeXt": dict(arch="atto"),
    "SwinTransformer": dict(arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)),
    "MobileNetV2": dict(widen_factor=0.25),
    "EfficientNet": dict(arch="b0"),  # Conv2dAdaptivePadding, a subclass of Conv2d
    "SparseConvNeXt": dict(arch=dict(depths=[1] * 4, channels=[8] * 4)),
    "RepVGG": dict(arch="A0"),
    "LeViT": dict(arch="128s"),
}


@pytest.mark.parametrize("type_", INITIALISED)
def test_weights_are_initialised_as_in_the_untouched_model(type_: str) -> None:
    states = []
    for flag in (False, True):
        torch.manual_seed(0)
        backbone = MODELS.build(dict(type=type_, **INITIALISED[type_], antialias=flag))
        backbone.init_weights()
        states.append(dict(backbone.state_dict()))
    assert same(*states), [key for key in states[0] if not same(*(s[key] for s in states))]


def test_init_cfg_by_layer_leaves_blur_kernels(images: Path, tmp_path: Path) -> None:
    layers = [
        dict(type="Kaiming", layer=["Conv2d"]),
        dict(type="Constant", val=0.5, layer=["MaxPool2d", "ReLU", "Module", "Linear"]),
        dict(type="Constant", val=0.7, layer=["_BatchNorm"]),
    ]
    _, expected = started(classifier("resnet18", init_cfg=layers), images, tmp_path / "untouched")
    runner, state = started(flagged("resnet18", init_cfg=layers), images, tmp_path / "flagged")
    assert same(state, expected)
    assert float(state["backbone.layer2.0.downsample.1.weight"].unique()) == pytest.approx(0.7)
    kernels = blurs(treated_by_hand("resnet18", save_untouched("resnet18", tmp_path / "w.pth")))
    assert same(blurs(runner.model), kernels)
    assert kernels


# --- optimizers


def parameter_groups(model: dict[str, Any], wrapper: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each group's settings and the names of its parameters."""
    built = build(model)
    names = {id(weights): name for name, weights in built.named_parameters()}
    groups = build_optim_wrapper(built, wrapper).optimizer.param_groups
    return [{**g, "params": [(names[id(p)], tuple(p.shape)) for p in g["params"]]} for g in groups]


@pytest.mark.parametrize("name", ["resnet50", "convnext", "swin"])
def test_layer_wise_decay_is_that_of_the_untouched_model(name: str) -> None:
    wrapper = dict(
        optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
        constructor="LearningRateDecayOptimWrapperConstructor",
        paramwise_cfg=dict(
            layer_decay_rate=0.7,
            norm_decay_mult=0.0,
            bias_decay_mult=0.0,
            flat_decay_mult=0.0,
            custom_keys={".downsample": dict(decay_mult=0.5)},
        ),
    )
    groups = parameter_groups(flagged(name), wrapper)
    assert groups == parameter_groups(classifier(name), wrapper)
    assert len({group["lr"] for group in groups}) > 3


@pytest.mark.parametrize("name", NETS)
def test_parameter_wise_settings_are_those_of_the_untouched_model(name: str) -> None:
    wrapper = dict(
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
        paramwise_cfg=dict(
            norm_decay_mult=0.0,
            bias_lr_mult=2.0,
            dwconv_decay_mult=0.1,
            flat_decay_mult=0.3,
            custom_keys={"head": dict(lr_mult=10.0), "backbone.layer1": dict(lr_mult=0.1)},
        ),
    )
    groups = parameter_groups(flagged(name), wrapper)
    assert groups == parameter_groups(classifier(name), wrapper)
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) > 3


# --- modes, frozen parts


@pytest.mark.parametrize("name", NETS)
def test_modes_reach_the_blurs_though_train_returns_none(name: str) -> None:
    model = MODELS.build(flagged(name))
    for mode in (False, True):
        assert model.backbone.train(mode) is None
        assert {m.training for m in model.backbone.modules()} == {mode}
    assert model.backbone.eval() is None
    report = audit(model.backbone, torch.randn(1, 3, 64, 64))
    assert not report.untreated
    assert not model.backbone.training


FROZEN = {"resnet18": 2, "convnext": 2, "swin": 0}


def modes(model: nn.Module) -> dict[str, tuple[bool, list[bool]]]:
    """Return whether each module trains, and whether its own parameters do."""
    return {
        name: (module.training, [p.requires_grad for p in module.parameters(recurse=False)])
        for name, module in model.named_modules()
        if not isinstance(module, BlurPool)
    }


@pytest.mark.filterwarnings("ignore:.*frozen weights")
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_stages_stay_frozen(images: Path, tmp_path: Path, name: str) -> None:
    stages = FROZEN[name]
    runner, start = started(flagged(name, frozen_stages=stages), images, tmp_path / "run")
    untouched = MODELS.build(classifier(name, frozen_stages=stages))
    assert modes(runner.model.train()) == modes(untouched.train())
    learning = {n: weights.requires_grad for n, weights in untouched.named_parameters()}
    assert False in learning.values()
    end = runner.model.state_dict()
    assert {n: not torch.equal(start[n], end[n]) for n in learning} == learning
    running = [n for n in start if "layer2" in n and "running" in n]
    assert all(torch.equal(start[n], end[n]) for n in running)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_stages_are_named_in_a_warning(name: str) -> None:
    config = flagged(name, frozen_stages=FROZEN[name])
    with pytest.warns(UserWarning, match=r"^model\.backbone\.antialias .*frozen weights"):
        MODELS.build(config)
