"""Tiny runs of MMEngine's Runner: crops of photographs, small models, and a config around them."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, save_checkpoint
from mmpretrain.registry import HOOKS, MODELS
from PIL import Image
from torch import Tensor, nn

import aa_surgery.mmpretrain  # noqa: F401  (what `custom_imports` of a config file does)
from aa_surgery import apply_antialias

__all__ = [
    "BACKBONES",
    "CLASSES",
    "MEAN",
    "NETS",
    "SIZE",
    "STD",
    "build",
    "classifier",
    "crops",
    "flagged",
    "losses",
    "one_thread",
    "run_config",
    "runner_of",
    "same",
    "save_untouched",
    "started",
    "treated_by_hand",
    "write_crops",
]

CLASSES = ("astronaut", "chelsea", "coffee")
SIZE = 64
MEAN, STD = 120.0, 60.0

# Real classes with few channels: the config of a backbone, and the channels that it gives.
BACKBONES: dict[str, tuple[dict[str, Any], int]] = {
    "resnet18": (dict(type="ResNet", depth=18, stem_channels=16, base_channels=16), 128),
    "resnet50": (dict(type="ResNet", depth=50, stem_channels=8, base_channels=4), 128),
    "convnext": (
        dict(
            type="ConvNeXt",
            arch=dict(depths=[1, 1, 2, 1], channels=[16, 32, 48, 64]),
            layer_scale_init_value=0.1,
        ),
        64,
    ),
    "swin": (
        dict(
            type="SwinTransformer",
            arch=dict(embed_dims=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4]),
            img_size=SIZE,
            window_size=2,
            drop_path_rate=0.0,
        ),
        128,
    ),
}
NETS = ("resnet18", "convnext", "swin")

_runs = itertools.count()


@HOOKS.register_module()
class KilledAfterOneEpoch(Hook):
    """End the process as a power cut would, between the first and the second epoch."""

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: small nets are faster there, and sums are the same sums twice."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_crops(folder: Path, each: int = 8) -> Path:
    """Write an image folder of three classes, each crops of one photograph; return it."""
    for label, name in enumerate(CLASSES):
        photograph = getattr(skimage.data, name)()
        generator = np.random.default_rng(label)
        (folder / name).mkdir(parents=True)
        for n in range(each):
            y, x = (int(generator.integers(side - SIZE)) for side in photograph.shape[:2])
            crop = Image.fromarray(photograph[y : y + SIZE, x : x + SIZE])
            crop.save(folder / name / f"{n}.png")
    return folder


def crops(folder: Path) -> tuple[Tensor, Tensor]:
    """Return all crops, normalised as the runs do, `(N, 3, H, W)`, and their labels `(N,)`."""
    files = [(path, label) for label, c in enumerate(CLASSES) for path in (folder / c).iterdir()]
    # the data preprocessor keeps the order BGR in which images are read
    pixels = np.stack([np.asarray(Image.open(path))[..., ::-1] for path, _ in sorted(files)])
    labels = torch.tensor([label for _, label in sorted(files)])
    maps = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
    return (maps - MEAN) / STD, labels


def classifier(name: str, **backbone: Any) -> dict[str, Any]:
    """Return the config of a classifier with that backbone and further options of it."""
    config, channels = BACKBONES[name]
    return dict(
        type="ImageClassifier",
        backbone={**copy.deepcopy(config), **backbone},
        neck=None if name == "convnext" else dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=len(CLASSES), in_channels=channels),
        data_preprocessor=dict(
            type="ClsDataPreprocessor",
            num_classes=len(CLASSES),
            mean=[MEAN] * 3,
            std=[STD] * 3,
        ),
    )


def flagged(name: str, **backbone: Any) -> dict[str, Any]:
    """Return the same classifier with `antialias=True` on its backbone."""
    return classifier(name, **{"antialias": True, **backbone})


def run_config(model: dict[str, Any], images: Path, work: Path, **settings: Any) -> Config:
    """Return a config that trains `model` for two epochs of three iterations.

    Args:
        model: Config of a model.
        images: An image folder.
        work: Where the run may write.
        **settings: Top-level keys to set or replace.
    """
    loader = dict(
        batch_size=8,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(
            type="CustomDataset",
            data_root=str(images),
            pipeline=[dict(type="LoadImageFromFile"), dict(type="PackInputs")],
        ),
        sampler=dict(type="DefaultSampler", shuffle=True),
    )
    config = dict(
        default_scope="mmpretrain",
        custom_imports=dict(imports=["aa_surgery.mmpretrain"], allow_failed_imports=False),
        # MMEngine keeps logs by name, and by default the name is the second of the start
        experiment_name=f"{work.name}-{next(_runs)}",
        work_dir=str(work),
        model=copy.deepcopy(model),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
        log_level="ERROR",
        randomness=dict(seed=0),
    )
    return Config({**config, **settings})


def runner_of(model: dict[str, Any], images: Path, work: Path, **settings: Any) -> Runner:
    """Return a Runner for `run_config`."""
    return Runner.from_cfg(run_config(model, images, work, **settings))


class AtTheStart(Hook):
    """Keeps the state of the model as training begins: initialised, or loaded."""

    def before_train(self, runner: Runner) -> None:
        self.state = {k: v.clone() for k, v in runner.model.state_dict().items()}


def started(model: dict[str, Any], images: Path, work: Path, **settings: Any) -> Any:
    """Train for an epoch; return the runner, and the state in which it began."""
    epoch = dict(by_epoch=True, max_epochs=1)
    runner = runner_of(model, images, work, train_cfg=epoch, **settings)
    hook = AtTheStart()
    runner.register_hook(hook)
    runner.train()
    return runner, hook.state


def losses(runner: Runner) -> list[float]:
    """Return the training loss of every iteration."""
    return runner.message_hub.get_scalar("train/loss").data[0].tolist()


def build(model: dict[str, Any]) -> nn.Module:
    """Build a model, with the flag or without, in the same weights; no path of it is silent."""
    built: nn.Module = MODELS.build(copy.deepcopy(model))
    torch.manual_seed(0)
    for weights in built.parameters():
        if weights.ndim == 1:
            nn.init.uniform_(weights, 0.5, 1.0)
        else:
            nn.init.kaiming_uniform_(weights, nonlinearity="relu")
    return built


def save_untouched(name: str, file: Path) -> Path:
    """Save a checkpoint of the untouched classifier, as a Runner would; return the file."""
    state = build(classifier(name)).state_dict()
    save_checkpoint({"state_dict": state, "meta": {}}, str(file))
    return file


def treated_by_hand(name: str, checkpoint: Path, **backbone: Any) -> nn.Module:
    """Return the classifier with those weights, anti-aliased by `apply_antialias` alone."""
    model = build(classifier(name, **backbone))
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    model.load_state_dict(state, strict=True)
    apply_antialias(model.backbone)
    return model


def same(a: Any, b: Any) -> bool:
    """Tell whether two nested structures hold bit-equal values."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b))
