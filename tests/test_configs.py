"""Every config builds an antialiased model in MMPretrain, and takes a training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.data
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from PIL import Image

from aa_surgery import audit

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(p for p in ROOT.glob("*/*.py") if p.parent.name != "_base_")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_trains_an_antialiased_model(path: Path) -> None:
    config = Config.fromfile(path)
    DefaultScope.get_instance(path.stem, scope_name=config.default_scope)
    config.model.pretrained = False  # the weights come from a hub, which tests must not need
    config.model.data_preprocessor = config.data_preprocessor
    model = MODELS.build(config.model)
    x = torch.randn(2, 3, 64, 64)
    report = audit(model.model, x)
    assert report.ok
    assert report.treated
    samples = [DataSample().set_gt_label(1), DataSample().set_gt_label(2)]
    losses = model.train()(x, samples, mode="loss")
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
    assert packed["inputs"].shape == (3, 224, 224)
    assert packed["data_samples"].gt_label.item() == 281


def test_there_are_configs() -> None:
    assert CONFIGS
