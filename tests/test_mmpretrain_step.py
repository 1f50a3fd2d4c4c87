"""How a step of a model with the flag may be run: checkpointed, bf16, compiled, distributed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from mmengine.model import (
    MMDistributedDataParallel,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner.amp import autocast
from mmpretrain.registry import OPTIM_WRAPPERS
from openmmlab import (
    NETS,
    build,
    classifier,
    crops,
    flagged,
    losses,
    one_thread,
    same,
    save_untouched,
    started,
    treated_by_hand,
    write_crops,
)
from torch import Tensor, nn
from torch.nn import SyncBatchNorm

from aa_surgery.surgery.classes import Antialiased


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crops(tmp_path_factory.mktemp("images") / "photographs")


@pytest.fixture(autouse=True)
def mmpretrain_scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmpretrain"), one_thread():
        yield


def treated(model: nn.Module) -> int:
    return sum(isinstance(module, Antialiased) for module in model.modules())


def gradients(model: nn.Module, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    F.cross_entropy(model(pixels), labels).backward()
    inner = getattr(model, "module", model)
    return {name: weights.grad for name, weights in inner.named_parameters()}


@pytest.mark.parametrize("name", NETS)
def test_gradient_checkpointing_changes_no_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(function: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(function)
        return checkpoint(function, *args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    pixels, labels = crops(images)
    configs = flagged(name), flagged(name, with_cp=True), classifier(name, with_cp=True)
    counts, grads = [], []
    for config in configs:
        calls.clear()
        grads.append(gradients(build(config).train(), pixels, labels))
        counts.append(len(calls))
    torch.testing.assert_close(grads[1], grads[0])
    assert counts[0] == 0
    assert counts[1] == counts[2] > 0
    assert not same(grads[1], grads[2])


def test_activation_checkpointing_changes_no_weight(images: Path, tmp_path: Path) -> None:
    parts = ["backbone.layer1", "backbone.layer2"]
    plain, _ = started(flagged("resnet18"), images, tmp_path / "plain")
    checkpointed, _ = started(
        flagged("resnet18"), images, tmp_path / "checkpointed", activation_checkpointing=parts
    )
    assert "forward" in vars(checkpointed.model.backbone.layer2)
    weights = [dict(run.model.named_parameters()) for run in (plain, checkpointed)]
    assert same(*weights)


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """`AmpOptimWrapper` without what it refuses CPUs for: its loss scaler, needless for bf16."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(device_type="cpu", dtype=torch.bfloat16):
            yield


@pytest.mark.parametrize("name", NETS)
def test_mixed_precision(images: Path, tmp_path: Path, name: str) -> None:
    checkpoint = save_untouched(name, tmp_path / "untouched.pth")
    runner, _ = started(
        flagged(name),
        images,
        tmp_path / "run",
        load_from=str(checkpoint),
        optim_wrapper=dict(type="Bfloat16OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3)),
    )
    pixels, labels = crops(images)
    batch = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:8]
    model = treated_by_hand(name, checkpoint).train()
    with torch.no_grad():
        whole = F.cross_entropy(model(pixels[batch]), labels[batch])
        with torch.autocast("cpu", torch.bfloat16):
            half = F.cross_entropy(model(pixels[batch]), labels[batch])
    first = losses(runner)[0]
    assert first == pytest.approx(float(half), abs=2e-3)
    assert first != pytest.approx(float(whole), abs=1e-6)
    assert first == pytest.approx(float(whole), rel=0.1)
    assert {weights.dtype for weights in runner.model.parameters()} == {torch.float32}


def test_compiled_training_step(images: Path, tmp_path: Path) -> None:
    plain, _ = started(flagged("resnet18"), images, tmp_path / "plain")
    compiled, _ = started(
        flagged("resnet18"), images, tmp_path / "compiled", compile=dict(backend="eager")
    )
    assert "train_step" in vars(compiled.model)
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-4)


def trainable(name: str) -> nn.Module:
    """Build a model whose loss is the mean over samples: batch norms keep their statistics."""
    return build(flagged(name, **(dict(norm_eval=True) if name == "resnet18" else {}))).train()


def one_of_two(rank: int, folder: Path) -> None:
    """Take the gradients of one half of the photographs, in one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    pixels, labels = torch.load(folder / "photographs.pth")
    for name in NETS:
        model = MMDistributedDataParallel(trainable(name), device_ids=None)
        mine = gradients(model, pixels[rank::2], labels[rank::2])
        torch.save(mine, folder / f"{name}-{rank}.pth")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(images: Path, tmp_path: Path) -> None:
    pixels, labels = crops(images)
    torch.save((pixels, labels), tmp_path / "photographs.pth")
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    for name in NETS:
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pth") for rank in (0, 1))
        assert same(first, second)
        torch.testing.assert_close(
            first, gradients(trainable(name), pixels, labels), atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize(
    "backbone",
    [
        dict(type="ResNet", depth=18, stem_channels=8, base_channels=8),
        dict(type="ResNetV1d", depth=50, stem_channels=8, base_channels=4),
        dict(type="MobileNetV2", widen_factor=0.25),
        dict(type="ShuffleNetV1"),
        dict(type="DenseNet", arch=dict(growth_rate=4, depths=[1] * 4, init_channels=8)),
        dict(type="RepVGG", arch="A0"),
        dict(type="LeViT", arch="128s"),
    ],
    ids=lambda backbone: backbone["type"],
)
def test_sync_batch_norms_keep_the_blurs(backbone: dict[str, Any]) -> None:
    side = 224 if backbone["type"] == "LeViT" else 64
    pixels = torch.randn(2, 3, side, side)
    model = build(dict(backbone, antialias=True))
    model.eval()
    with torch.no_grad():
        before = model(pixels)
    count, keys = treated(model), set(model.state_dict())
    assert count
    for convert in (SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm):
        converted = convert(model)
        assert any(isinstance(m, SyncBatchNorm) for m in converted.modules())
        assert treated(converted) == count
        assert set(converted.state_dict()) == keys
        model = revert_sync_batchnorm(converted)
        assert treated(model) == count
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(pixels), before)
