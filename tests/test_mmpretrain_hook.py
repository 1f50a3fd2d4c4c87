"""AntialiasHook, in real runs of MMEngine's Runner over photographs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mmpretrain.models  # noqa: F401
import pytest
import torch
from hook_runs import EMA, ITERS, Factory, StopAt, ema_copies, features, is_antialiased, warmup
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

import aa_surgery.mmpretrain  # noqa: F401
from aa_surgery import apply_antialias
from aa_surgery.errors import (
    FilterError,
    MethodError,
    NoEffectWarning,
    PatternError,
    UnsupportedModelError,
)
from aa_surgery.layers import BlurPool
from aa_surgery.mmpretrain.hooks import AntialiasHook, AntialiasWarmupHook

pytest_plugins = ["hook_runs"]  # its fixtures


def test_a_run_with_the_hook_is_bit_equal_to_one_with_the_flag(factory: Factory) -> None:
    options = dict(filter="tri-4", placement="pre", exclude="*.maxpool")
    by_flag = factory(EMA, flag=dict(filter="tri-4", placement="pre", exclude="maxpool"))
    by_flag.train()
    by_hook = factory(EMA, dict(type="AntialiasHook", **options))
    assert not is_antialiased(by_hook.model)
    optimized = by_hook.model.parameters()
    by_hook.train()
    assert all(map(torch.equal, optimized, by_flag.model.parameters()))
    assert torch.equal(features(by_hook.model), features(by_flag.model))
    for mine, other in zip(ema_copies(by_hook), ema_copies(by_flag), strict=True):
        assert is_antialiased(mine)
        assert torch.equal(features(mine), features(other))


def test_the_plain_checkpoint_loads_and_the_changed_one_goes_back(factory: Factory) -> None:
    plain = factory()
    plain.train()
    path = str(factory.work_dir / "epoch_1.pth")
    untouched = {k: v.clone() for k, v in plain.model.state_dict().items()}

    tested = factory(dict(type="AntialiasHook"), load_from=path)
    accuracy = tested.test()
    assert set(accuracy) == {"accuracy/top1"}
    assert all(torch.equal(v, untouched[k]) for k, v in tested.model.state_dict().items())
    expected = features(apply_antialias(plain.model))
    assert torch.equal(features(tested.model), expected)

    trained = factory(dict(type="AntialiasHook"), load_from=path)
    trained.train()
    saved = torch.load(path, weights_only=False)["state_dict"]
    assert list(saved) == list(untouched)
    assert not torch.equal(saved["head.fc.weight"], untouched["head.fc.weight"])
    factory().model.load_state_dict(saved, strict=True)


@pytest.mark.parametrize("alone", ["val", "test"])
def test_evaluation_alone_is_antialiased_too(factory: Factory, alone: str) -> None:
    runner = factory(dict(type="AntialiasHook"))
    getattr(runner, alone)()
    assert is_antialiased(runner.model)


def test_train_val_and_test_of_one_runner_change_the_model_once(factory: Factory) -> None:
    runner = factory(dict(type="AntialiasHook"), EMA, val_cfg=dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        runner.train()
        blurs = [m for m in runner.model.modules() if isinstance(m, BlurPool)]
        assert runner.val().keys() == runner.test().keys()
    assert [m for m in runner.model.modules() if isinstance(m, BlurPool)] == blurs
    assert all(map(is_antialiased, ema_copies(runner)))


def test_a_run_resumes_bit_equally(factory: Factory, tmp_path: Path) -> None:
    hooks = (dict(type="AntialiasHook"), EMA)
    whole = factory(*hooks, epochs=2)
    whole.train()
    factory.work_dir = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        factory(*hooks, StopAt(1), epochs=2).train()
    resumed = factory(*hooks, epochs=2, resume=True)
    resumed.train()
    assert resumed.iter == whole.iter == 2 * ITERS
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))
    for mine, other in zip(ema_copies(resumed), ema_copies(whole), strict=True):
        assert all(map(torch.equal, mine.state_dict().values(), other.state_dict().values()))


def test_the_flexible_runner_loads_before_and_sees_the_same_model(factory: Factory) -> None:
    factory(EMA).train()
    path = str(factory.work_dir / "epoch_1.pth")
    hook = dict(type="AntialiasHook")
    plain = factory(hook, load_from=path)
    flexible = factory(hook, load_from=path, runner=FlexibleRunner)
    assert plain.test() == flexible.test()
    assert torch.equal(features(plain.model), features(flexible.model))
    flexible = factory(hook, EMA, runner=FlexibleRunner)  # which cannot load with an EMAHook
    flexible.train()
    assert is_antialiased(flexible.model)
    assert all(map(is_antialiased, ema_copies(flexible)))


def test_the_model_inside_of_a_wrapper_is_changed(factory: Factory) -> None:
    runner = factory(dict(type="AntialiasHook"), EMA)
    inner = runner.model
    runner.model = nn.DataParallel(inner)
    runner.call_hook("before_run")
    assert is_antialiased(inner)
    assert all(map(is_antialiased, ema_copies(runner)))


def test_ddp_built_before_the_hook_goes_on_reducing_every_gradient(
    factory: Factory, tmp_path: Path
) -> None:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", store, rank=0, world_size=1)
    try:
        runner = factory(dict(type="AntialiasHook"))
        reduced: list[int] = []

        def count(state, bucket):  # types as text are refused here
            reduced.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        inner = runner.model
        runner.model = MMDistributedDataParallel(inner)
        runner.model.register_comm_hook(None, count)
        runner.train()
        assert is_antialiased(inner)
        assert sum(reduced) == ITERS * sum(p.numel() for p in inner.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_with_the_flag_is_left_with_one_warning(factory: Factory) -> None:
    runner = factory(dict(type="AntialiasHook", filter="binomial-5"), flag=True)
    names = [n for n, m in runner.model.named_modules() if isinstance(m, BlurPool)]
    with pytest.warns(NoEffectWarning, match="anti-aliased already") as caught:
        runner.test()
    assert len([w for w in caught if w.category is NoEffectWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        runner.test()
    blurs = {n: m for n, m in runner.model.named_modules() if isinstance(m, BlurPool)}
    assert list(blurs) == names
    assert {m.filter.name for m in blurs.values()} == {"tri-3"}


def test_an_ema_copy_made_before_it_is_refused(factory: Factory) -> None:
    runner = factory(dict(EMA, priority="HIGHEST"), dict(type="AntialiasHook"))
    with pytest.raises(UnsupportedModelError, match=r"EMAHook runs before it.*antialias=True"):
        runner.train()
    assert not is_antialiased(runner.model)


def test_a_hook_registered_in_mid_training_is_refused(factory: Factory) -> None:
    class Late(Hook):
        registered = False

        def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
            if not self.registered and runner.iter == 1:
                self.registered = True  # first: the runner comes by again behind the new hook
                runner.register_hook(dict(type="AntialiasHook"))

    runner = factory(Late())
    with pytest.raises(UnsupportedModelError, match="when training was under way"):
        runner.train()
    assert runner.iter == 2
    assert not is_antialiased(runner.model)


def test_a_compiled_model_is_refused(factory: Factory) -> None:
    runner = factory(dict(type="AntialiasHook"))
    runner.model.train_step = torch.compile(runner.model.train_step)
    with pytest.raises(UnsupportedModelError, match=r"train_step .* is compiled already"):
        runner.train()
    runner = factory(dict(type="AntialiasHook"))
    runner.model.backbone.compile()
    with pytest.raises(UnsupportedModelError, match=r"AntialiasHook: backbone was compiled"):
        runner.train()
    assert not is_antialiased(runner.model)


def test_a_wrapper_that_lays_out_parameters_is_refused(factory: Factory) -> None:
    @MODEL_WRAPPERS.register_module()
    class Sharded(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    try:
        runner = factory(dict(type="AntialiasHook"))
        runner.model = Sharded(runner.model)
        with pytest.raises(UnsupportedModelError, match=r"wrapped in Sharded.*antialias=True"):
            runner.val()
        assert not is_antialiased(runner.model)
    finally:
        MODEL_WRAPPERS.module_dict.pop("Sharded")


def test_wrong_options_are_told_and_name_the_hook(factory: Factory) -> None:
    with pytest.raises(FilterError, match="nonsense"):
        factory(dict(type="AntialiasHook", filter="nonsense"))
    with pytest.raises(TypeError, match="filter_size"):
        factory(dict(type="AntialiasHook", filter_size=3))
    runner = factory(dict(type="AntialiasHook", exclude="nowhere.*"))
    with pytest.raises(PatternError, match=r"AntialiasHook: .*nowhere"):
        runner.train()
    assert not is_antialiased(runner.model)


def test_the_hooks_are_those_of_the_registry(factory: Factory) -> None:
    runner = factory(dict(type="AntialiasHook"), warmup(iters=2))
    kinds = [type(hook) for hook in runner.hooks]
    assert kinds.index(AntialiasHook) < kinds.index(AntialiasWarmupHook)


def test_a_method_with_weights_of_its_own_comes_too_late_for_the_optimizer(
    factory: Factory,
) -> None:
    runner = factory(dict(type="AntialiasHook", method="learned"))
    with pytest.raises(MethodError, match=r"AntialiasHook: .* would not train\. Set antialias="):
        runner.train()
    assert not is_antialiased(runner.model)
    tested = factory(dict(type="AntialiasHook", method="aps"))
    tested.test()
    assert is_antialiased(tested.model)
