"""Every config builds an antialiased model in MMPretrain, reads photographs, and learns a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.data
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmpretrain import get_model, list_models
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from PIL import Image

import aa_surgery.mmpretrain  # noqa: F401
from aa_surgery import audit

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(p for p in ROOT.glob("*/*.py") if p.parent.name != "_base_")
OWN_ZOO = [p for p in CONFIGS if p.parent.name != "timm"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_trains_an_antialiased_model(path: Path) -> None:
    config = Config.fromfile(path)
    DefaultScope.get_instance(path.stem, scope_name=config.default_scope)
    if "pretrained" in config.model:
        config.model.pretrained = False  # the weights come from a hub, which tests must not need
    config.model.data_preprocessor = config.data_preprocessor
    model = MODELS.build(config.model)
    side = 224 if "swin" in path.stem else 64
    x = torch.randn(2, 3, side, side)
    network = model.model if "model_name" in config.model else model.backbone
    report = audit(network, x)
    assert report.ok
    assert report.treated
    data = {
        "inputs": list(torch.randint(0, 255, x.shape, dtype=torch.uint8)),
        "data_samples": [DataSample().set_gt_label(n) for n in (1, 2)],
    }
    losses = model.train()(**model.data_preprocessor(data, training=True), mode="loss")
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("split", ["train_dataloader", "val_dataloader"])
def test_pipelines_read_a_photograph(path: Path, split: str, tmp_path: Path) -> None:
    config = Config.fromfile(path)
    DefaultScope.get_instance(f"{path.stem}-{split}", scope_name=config.default_scope)
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "cat.jpg")
    pipeline = Compose([TRANSFORMS.build(step) for step in config[split].dataset.pipeline])
    packed = pipeline({"img_path": str(tmp_path / "cat.jpg"), "gt_label": 281})
    # CIFAR's test images come in their own size
    expected = {"val_dataloader": (300, 451)}.get(split, (32, 32))
    assert packed["inputs"].shape[1:] == (expected if "cifar" in path.stem else (224, 224))
    assert packed["data_samples"].gt_label.item() == 281


@pytest.mark.parametrize("path", OWN_ZOO, ids=lambda p: p.stem)
def test_the_zoo_lists_and_builds_a_config(path: Path) -> None:
    assert path.stem in list_models("*blur*")
    model = get_model(path.stem)
    assert model.backbone._antialias_plan.edits
    weights = model._metainfo.weights
    assert weights == model._config.get("load_from")


def test_there_are_configs() -> None:
    assert {p.parent.name for p in CONFIGS} == {
        "convnext",
        "convnext_v2",
        "mobilenet_v2",
        "resnet",
        "swin_transformer",
        "timm",
    }
