"""A small classifier of photographs for MMPretrain's loops, and its consistency outside of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmpretrain
import numpy as np
import skimage.data
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import MODELS
from PIL import Image
from torch import Tensor, nn

from aa_surgery.evaluation import ConsistencyResult, measure_consistency

TOOL = Path(mmpretrain.__file__).parent / ".mim" / "tools" / "test.py"
SIZE = 64

CONFIG = """
default_scope = "mmpretrain"
model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=18, stem_channels=8, base_channels=8),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=4, in_channels=64),
)
data_preprocessor = dict(
    num_classes=4, mean=[124.0, 116.0, 104.0], std=[58.0, 57.0, 57.0], to_rgb=True
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(
        type="CustomDataset",
        data_root={root!r},
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="ResizeEdge", scale=96, edge="short"),
            dict(type="CenterCrop", crop_size=64),
            dict(type="PackInputs"),
        ],
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
)
test_evaluator = dict(type="Accuracy", topk=(1,))
test_cfg = dict()
val_dataloader, val_evaluator, val_cfg = test_dataloader, test_evaluator, test_cfg
env_cfg = dict(dist_cfg=dict(backend="gloo"))
model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None)  # on the CPU
"""

# On the CPU, mmengine's launcher still asks CUDA to select a device.
LAUNCH = """
import runpy, sys, torch
torch.set_num_threads(1)
torch.cuda.set_device = lambda device: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Study:
    """A config, a checkpoint that fits it, and the folder with their images."""

    folder: Path
    config: Path
    checkpoint: Path

    def settings(self) -> Config:
        config = Config.fromfile(self.config)
        config.load_from = str(self.checkpoint)
        config.work_dir = str(self.folder / "work")
        config.experiment_name = f"study-{os.urandom(4).hex()}"
        return config

    def with_hook(self, **options: Any) -> Config:
        config = self.settings()
        config.default_hooks = dict(shift_consistency=dict(type="ShiftConsistencyHook", **options))
        return config


def make_study(folder: Path) -> Study:
    cut_photographs(folder / "photos")
    config = folder / "small.py"
    config.write_text(CONFIG.format(root=str(folder / "photos")))
    checkpoint = folder / "small.pth"
    torch.save({"state_dict": trained_for_a_moment(Config.fromfile(config))}, checkpoint)
    return Study(folder, config, checkpoint)


def cut_photographs(folder: Path) -> None:
    """Four classes, one a photograph: 43 pieces of odd sizes, lossless."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("astronaut", "chelsea", "coffee", "rocket")):
        photo = getattr(skimage.data, name)()
        (folder / name).mkdir(parents=True)
        for piece in range(10 + (number > 0)):
            height, width = generator.integers(97, 160, size=2)
            y = generator.integers(photo.shape[0] - height)
            x = generator.integers(photo.shape[1] - width)
            cut = photo[y : y + height, x : x + width]
            Image.fromarray(cut).save(folder / name / f"{piece:02d}.png")


def trained_for_a_moment(config: Config) -> dict[str, Tensor]:
    """Weights that tell the classes apart, not too well: shifts must be able to matter."""
    torch.manual_seed(0)
    model = build(config).train()
    batch = batch_of(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(8):
        data = model.data_preprocessor(batch)
        loss = model(**data, mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def build(config: Config) -> nn.Module:
    DefaultScope.get_instance(f"build-{os.urandom(4).hex()}", scope_name="mmpretrain")
    return MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor.copy()})


def batch_of(config: Config) -> dict[str, Any]:
    images = dataset_of(config)
    packed = [images[i] for i in range(len(images))]
    return {
        "inputs": torch.stack([p["inputs"] for p in packed]),
        "data_samples": [p["data_samples"] for p in packed],
    }


def dataset_of(config: Config) -> CustomDataset:
    settings = config.test_dataloader.dataset.copy()
    settings.pop("type")
    return CustomDataset(**settings)


class Logits(nn.Module):
    """MMPretrain's classifier as a plain network, its data preprocessor included."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        inputs = self.classifier.data_preprocessor({"inputs": images})["inputs"]
        return self.classifier(inputs, mode="tensor")


def measured_outside(study: Study, **options: Any) -> ConsistencyResult:
    """The same weights and images, measured without MMPretrain's loops."""
    model = build(Config.fromfile(study.config))
    model.load_state_dict(torch.load(study.checkpoint, weights_only=False)["state_dict"])
    images = dataset_of(study.settings())
    load_and_resize = images.pipeline.transforms[:-2]

    def batches() -> Iterator[tuple[Tensor, None, list[int]]]:
        for number in range(len(images)):
            results = images.get_data_info(number)
            for step in load_and_resize:
                results = step(results)
            image = torch.from_numpy(results["img"].copy()).permute(2, 0, 1)
            yield image[None], None, [number]

    return measure_consistency(Logits(model), batches(), size=SIZE, **options)


def run_tool(study: Study, *options: str, processes: int = 1) -> tuple[dict[str, float], str]:
    """Run MMPretrain's own tools/test.py and return its metrics and what it printed."""
    script = study.folder / "launch.py"
    script.write_text(LAUNCH)
    out = study.folder / f"metrics-{os.urandom(4).hex()}.json"
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        options = ("--launcher", "pytorch", *options)
    command = [*launcher, str(script), str(TOOL), str(study.config)]
    command += [str(study.checkpoint), "--out", str(out), "--out-item", "metrics", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=study.folder, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()), done.stdout + done.stderr
