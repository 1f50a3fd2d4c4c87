"""Training through MMEngine's Runner with the flag, from checkpoints of untouched models."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmpretrain
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import Runner, load_checkpoint
from openmmlab import (
    NETS,
    build,
    classifier,
    crops,
    flagged,
    losses,
    one_thread,
    run_config,
    runner_of,
    same,
    treated_by_hand,
    write_crops,
)
from torch import Tensor, nn

from aa_surgery.mmpretrain.torch_load import trust_runner_checkpoints

TRAIN = Path(mmpretrain.__file__).parent / ".mim" / "tools" / "train.py"
TESTS = Path(__file__).parent
RATE = 5e-4
FINE_TUNING: dict[str, Any] = dict(
    optim_wrapper=dict(optimizer=dict(type="AdamW", lr=RATE, weight_decay=0.05)),
    param_scheduler=dict(type="CosineAnnealingLR", T_max=2, convert_to_iter_based=True),
    custom_hooks=[dict(type="EMAHook", momentum=0.1)],
)


@dataclass
class Study:
    """Photographs, and what runs over them have saved; a run that two tests need runs once."""

    folder: Path
    fine_tuned: dict[str, tuple[Path, list[float]]] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def untouched(self, name: str) -> Path:
        """Train the untouched model for four epochs; return its checkpoint."""
        work = self.folder / f"{name}-untouched"
        if not work.exists():
            epochs = dict(by_epoch=True, max_epochs=4)
            runner_of(classifier(name), self.images, work, train_cfg=epochs).train()
        return work / "epoch_4.pth"

    def flagged(self, name: str) -> tuple[Path, list[float]]:
        """Fine-tune it with the flag for two epochs; return the checkpoint and the losses."""
        if name not in self.fine_tuned:
            work = self.folder / f"{name}-flagged"
            runner = self.runner(name, work)
            runner.train()
            self.fine_tuned[name] = work / "epoch_2.pth", losses(runner)
        return self.fine_tuned[name]

    def runner(self, name: str, work: Path, **settings: Any) -> Runner:
        config = {**FINE_TUNING, "load_from": str(self.untouched(name)), **settings}
        return runner_of(flagged(name), self.images, work, **config)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    write_crops(folder / "images")
    return Study(folder)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    with one_thread():
        yield


def batches(images: Path, epochs: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of a run in order, read and normalised without MMEngine."""
    pixels, labels = crops(images)
    order = [
        torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for epoch in range(epochs)
    ]
    return [(pixels[part], labels[part]) for part in torch.cat(order).split(8)]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("name", NETS)
def test_two_epochs_start_where_evaluation_says(study: Study, name: str) -> None:
    checkpoint = study.untouched(name)
    model = treated_by_hand(name, checkpoint)
    pixels, labels = crops(study.images)
    with torch.no_grad():
        untouched = build(classifier(name))
        load_checkpoint(untouched, str(checkpoint), strict=True)
        first = batches(study.images)[0]
        expected = loss_of(model.train(), first)
        aliased = loss_of(untouched.train(), first)
        before = loss_of(treated_by_hand(name, checkpoint).eval(), (pixels, labels))
    saved, steps = study.flagged(name)
    assert len(steps) == 6
    assert steps[0] == pytest.approx(float(expected), abs=1e-5)
    assert abs(steps[0] - float(aliased)) > 1e-3  # without the flag it would start elsewhere
    with torch.no_grad():
        after = loss_of(treated_by_hand(name, saved).eval(), (pixels, labels))
    assert after < before


def test_training_loss_is_the_evaluated_one_under_norm_eval(study: Study) -> None:
    checkpoint = study.untouched("resnet18")
    runner = runner_of(
        flagged("resnet18", norm_eval=True),
        study.images,
        study.folder / "norm-eval",
        load_from=str(checkpoint),
        train_cfg=dict(by_epoch=True, max_epochs=1),
    )
    runner.train()
    with torch.no_grad():
        model = treated_by_hand("resnet18", checkpoint).eval()
        expected = loss_of(model, batches(study.images)[0])
    assert losses(runner)[0] == pytest.approx(float(expected), abs=1e-5)
    start, end = model.state_dict(), runner.model.state_dict()
    assert all(torch.equal(end[key], start[key]) for key in start if "running" in key)


@pytest.mark.parametrize("name", NETS)
def test_resume_after_a_kill_is_bit_equal(study: Study, name: str) -> None:
    whole, steps = study.flagged(name)
    work = study.folder / f"{name}-killed"
    config = run_config(
        flagged(name),
        study.images,
        work,
        **{
            **FINE_TUNING,
            "load_from": str(study.untouched(name)),
            "custom_imports": dict(imports=["aa_surgery.mmpretrain", "openmmlab"]),
            "custom_hooks": [*FINE_TUNING["custom_hooks"], dict(type="KilledAfterOneEpoch")],
        },
    )
    work.mkdir()
    config.dump(work / "config.py")
    env = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, TRAIN, work / "config.py"], env=env, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (work / "epoch_2.pth").exists()

    runner = study.runner(name, work, load_from=None, resume=True)
    runner.train()
    assert losses(runner) == steps
    one, other = read(whole), read(work / "epoch_2.pth")
    for part in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers"):
        assert same(one[part], other[part]), part
    assert one["meta"]["iter"] == other["meta"]["iter"] == 6
    for scalar in ("train/loss", "train/lr"):
        history = [c["message_hub"]["log_scalars"][scalar].data for c in (one, other)]
        assert same(*history), scalar


@pytest.mark.parametrize("name", NETS)
def test_saved_checkpoint_loads_into_both_forms(study: Study, name: str) -> None:
    saved, _ = study.flagged(name)
    for model in (build(classifier(name)), build(flagged(name))):
        load_checkpoint(model, str(saved), strict=True)
        state, average = read(saved)["state_dict"], read(saved)["ema_state_dict"]
        assert same(dict(model.state_dict()), dict(state))
        inner = {k.removeprefix("module."): v for k, v in average.items() if k != "steps"}
        model.load_state_dict(inner, strict=True)


def read(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=False)


def test_resume_needs_the_runner_s_types_declared_safe(study: Study, tmp_path: Path) -> None:
    known = torch.serialization.get_safe_globals()
    checkpoint = study.untouched("resnet18")
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(checkpoint)
        trust_runner_checkpoints()
        runner = runner_of(
            flagged("resnet18"),
            study.images,
            tmp_path / "on",
            load_from=str(checkpoint),
            resume=True,
            train_cfg=dict(by_epoch=True, max_epochs=5),
        )
        runner.train()
    finally:
        torch.serialization.add_safe_globals(known)
    assert runner.iter == 15
    assert len(losses(runner)) == 15


@pytest.mark.parametrize("name", NETS)
def test_ema_copies_and_averages_the_treated_model(study: Study, name: str) -> None:
    checkpoint = study.untouched(name)
    runner = study.runner(name, study.folder / f"{name}-ema", param_scheduler=None)
    runner.train()
    average = runner.hooks[[type(h).__name__ for h in runner.hooks].index("EMAHook")].ema_model
    model = treated_by_hand(name, checkpoint).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    expected = ExponentialMovingAverage(model, momentum=0.1)
    for batch in batches(study.images, epochs=2):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        expected.update_parameters(model)
    assert same(dict(average.module.state_dict()), dict(expected.module.state_dict()))
    pixels, _ = crops(study.images)
    untouched = build(classifier(name))
    untouched.load_state_dict(average.module.state_dict(), strict=True)
    with torch.no_grad():
        of_run, by_hand, aliased = (
            m.eval()(pixels) for m in (average.module, expected.module, untouched)
        )
    assert torch.equal(of_run, by_hand)
    assert (of_run - aliased).abs().max() > 1e-2
