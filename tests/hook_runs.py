"""Runs of MMEngine's Runner over photographs, for the tests of the hooks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mmpretrain.models  # noqa: F401
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from PIL import Image
from skimage import data
from torch import Tensor, nn

import aa_surgery.mmpretrain  # noqa: F401
from aa_surgery.layers.strength import get_strength
from aa_surgery.surgery.classes import Antialiased

ITERS = 3  # of an epoch: 12 crops in batches of 4
SIZE = 32
EMA = dict(type="EMAHook", momentum=0.3)
_run = itertools.count()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write crops of a cat and of a coffee cup, a folder each."""
    root = tmp_path_factory.mktemp("photographs")
    for name, image in (("cat", data.chelsea()), ("coffee", data.coffee())):
        (root / name).mkdir()
        for n in range(6):
            crop = image[20 * n : 20 * n + 150, 30 * n : 30 * n + 150]
            Image.fromarray(crop).resize((SIZE, SIZE)).save(root / name / f"{n}.png")
    return root


class Factory:
    """Build runners over the photographs; all of one factory share a folder."""

    def __init__(self, photographs: Path, work_dir: Path) -> None:
        self.photographs, self.work_dir = photographs, work_dir

    def __call__(
        self,
        *hooks: dict[str, Any] | Hook,
        epochs: int = 1,
        flag: Any = None,
        runner: type[Runner] = Runner,
        **changes: Any,
    ) -> Runner:
        torch.manual_seed(0)
        backbone = dict(type="ResNet", depth=18, num_stages=4, out_indices=(3,))
        if flag is not None:
            backbone["antialias"] = flag
        loader = dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=dict(
                type="CustomDataset",
                data_root=str(self.photographs),
                pipeline=[dict(type="LoadImageFromFile"), dict(type="PackInputs")],
            ),
        )
        evaluation = dict(type="Accuracy", topk=(1,))
        cfg = dict(
            default_scope="mmpretrain",
            experiment_name=f"hooks{next(_run)}",
            work_dir=str(self.work_dir),
            model=dict(
                type="ImageClassifier",
                data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, num_classes=2),
                backbone=backbone,
                neck=dict(type="GlobalAveragePooling"),
                head=dict(type="LinearClsHead", num_classes=2, in_channels=512, topk=(1,)),
            ),
            train_dataloader=loader,
            val_dataloader=loader,
            test_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            val_cfg=dict(),
            test_cfg=dict(),
            val_evaluator=evaluation,
            test_evaluator=evaluation,
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9)),
            default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
            custom_hooks=[],
            env_cfg=dict(),
            log_level="WARNING",
            randomness=dict(seed=0),
        )
        cfg = Config({**cfg, **changes})
        built = runner.from_cfg(cfg)
        built.register_custom_hooks(list(hooks))
        return built


@pytest.fixture
def factory(photographs: Path, tmp_path: Path) -> Factory:
    return Factory(photographs, tmp_path)


class Watch(Hook):
    """Note the strength that each iteration has, in the model and in its EMA copy."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.training.append(get_strength(runner.model))
        for copied in ema_copies(runner):
            assert get_strength(copied) == self.training[-1]

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.validation.append(get_strength(runner.model))


class StopAt(Hook):
    """Kill the training in the middle, behind an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == self.epoch:
            raise KeyboardInterrupt


def ema_copies(runner: Runner) -> list[nn.Module]:
    return [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]


def batch(runner: Runner) -> Any:
    return next(iter(runner.build_dataloader(runner.cfg.val_dataloader)))


def features(model: nn.Module) -> Tensor:
    x = torch.from_numpy(data.chelsea()[:SIZE, :SIZE]).movedim(-1, 0)[None].float() / 255
    training = model.training
    model.eval()
    with torch.no_grad():
        y = model.extract_feat(x)[0]
    model.train(training)
    return y


def is_antialiased(model: nn.Module) -> bool:
    return any(isinstance(m, Antialiased) for m in model.modules())


def warmup(**options: Any) -> dict[str, Any]:
    return dict(type="AntialiasWarmupHook", **options)
