"""AntialiasWarmupHook, in real runs of MMEngine's Runner over photographs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import mmpretrain.models  # noqa: F401
import pytest
import torch
from hook_runs import EMA, ITERS, Factory, StopAt, Watch, ema_copies, features, warmup
from mmengine.runner import FlexibleRunner, Runner

import aa_surgery.mmpretrain  # noqa: F401
from aa_surgery.errors import (
    InputError,
    UnsupportedModelError,
)
from aa_surgery.layers.strength import get_strength, set_strength
from aa_surgery.mmpretrain.hooks import AntialiasWarmupHook

pytest_plugins = ["hook_runs"]  # its fixtures


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_the_schedule_rises_from_start_to_exactly_1(schedule: str, start: float) -> None:
    hook = AntialiasWarmupHook(iters=7, begin=3, start=start, schedule=schedule)
    strengths = [hook.strength_at(i) for i in range(15)]
    assert strengths[:4] == [start] * 4
    assert strengths[9:] == [1.0] * 6
    assert all(a < b for a, b in itertools.pairwise(strengths[3:10]))
    assert strengths[6] == pytest.approx((1 + start) / 2)  # both are half-way in the middle
    quarter = {"linear": 1 / 6, "cosine": (1 - math.cos(math.pi / 6)) / 2}[schedule]
    assert strengths[4] == pytest.approx(start + (1 - start) * quarter)


def test_epochs_and_iterations_mean_the_same_warmup() -> None:
    by_epoch = AntialiasWarmupHook(epochs=2, begin=1)
    by_iter = AntialiasWarmupHook(iters=10, begin=5)
    for i in range(20):
        assert by_epoch.strength_at(i, epoch_length=5) == by_iter.strength_at(i)
    assert AntialiasWarmupHook(iters=1).strength_at(0) == 1


def test_training_validation_and_ema_follow_the_schedule(factory: Factory) -> None:
    watch = Watch()
    runner = factory(dict(type="AntialiasHook"), warmup(epochs=2), EMA, watch, epochs=3)
    untouched = features(runner.model)
    runner.call_hook("before_run")
    set_strength(runner.model, 0)
    torch.testing.assert_close(features(runner.model), untouched)
    runner.train()
    rising = [i / 5 for i in range(6)]
    assert watch.training == pytest.approx([*rising, 1, 1, 1])
    assert watch.training[5] == 1.0
    assert watch.validation == pytest.approx([0.4] * 3 + [1.0] * 6)
    logged = runner.message_hub.get_scalar("train/antialias_strength").data[0]
    assert list(logged) == watch.training


def test_an_iteration_based_loop_warms_up_too(factory: Factory) -> None:
    watch = Watch()
    loop = dict(by_epoch=False, max_iters=5, val_interval=2)
    factory(warmup(iters=3), watch, flag=True, train_cfg=loop).train()
    assert watch.training == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert watch.validation == [0.5] * 3 + [1.0] * 6  # behind iterations 2, 4 and the last


def test_a_resumed_warmup_is_bit_equal_to_an_uninterrupted_one(
    factory: Factory, tmp_path: Path
) -> None:
    hooks = (dict(type="AntialiasHook"), EMA, warmup(iters=5, begin=1))
    seen = Watch()
    whole = factory(*hooks, seen, epochs=2)
    whole.train()
    factory.work_dir = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        factory(*hooks, StopAt(1), epochs=2).train()
    watch = Watch()
    resumed = factory(*hooks, watch, epochs=2, resume=True)
    resumed.train()
    assert watch.training == seen.training[ITERS:]
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))
    for mine, other in zip(ema_copies(resumed), ema_copies(whole), strict=True):
        assert all(map(torch.equal, mine.state_dict().values(), other.state_dict().values()))
        assert torch.equal(features(mine), features(other))


@pytest.mark.parametrize("runner", [Runner, FlexibleRunner])
def test_a_checkpoint_of_the_warmup_is_tested_at_its_strength(
    factory: Factory, runner: type[Runner]
) -> None:
    hooks = (dict(type="AntialiasHook"), EMA, warmup(iters=2 * ITERS))
    trained = factory(*hooks)
    with pytest.warns(UserWarning, match=r"ends after 3 iterations at strength 0\.4"):
        trained.train()
    path = str(factory.work_dir / "epoch_1.pth")
    assert torch.load(path, weights_only=False)["antialias_strength"] == pytest.approx(0.4)
    if runner is FlexibleRunner:  # which cannot load with an EMAHook
        hooks = tuple(hook for hook in hooks if hook is not EMA)
    tested = factory(*hooks, load_from=path, runner=runner)
    tested.test()
    averaged = features(ema_copies(trained)[0])
    for model in (tested.model, *ema_copies(tested)):
        assert get_strength(model) == pytest.approx(0.4)
    assert torch.equal(features(model), averaged)
    without = factory(dict(type="AntialiasHook"), load_from=path)
    without.test()
    assert get_strength(without.model) == 1


def test_training_from_a_checkpoint_of_the_warmup_begins_at_the_start(factory: Factory) -> None:
    hooks = (warmup(iters=ITERS),)
    factory(*hooks, flag=True).train()
    watch = Watch()
    path = str(factory.work_dir / "epoch_1.pth")
    factory(*hooks, watch, flag=True, load_from=path).train()
    assert watch.training == [0.0, 0.5, 1.0]


def test_a_model_without_blurs_is_refused(factory: Factory) -> None:
    for hooks in ((warmup(iters=2),), (warmup(iters=2, priority=5), dict(type="AntialiasHook"))):
        with pytest.raises(UnsupportedModelError, match=r"no blur to strengthen.*AntialiasHook"):
            factory(*hooks).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "one of iters= and epochs="),
        (dict(iters=2, epochs=1), "one of iters= and epochs="),
        (dict(iters=0), "whole number"),
        (dict(iters=2.5), "whole number"),
        (dict(iters=2, begin=-1), "begin"),
        (dict(iters=2, start=1.5), "start"),
        (dict(iters=2, schedule="steps"), "'linear' or 'cosine'"),
    ],
)
def test_wrong_warmups_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AntialiasWarmupHook(**options)
