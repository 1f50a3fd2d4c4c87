"""The hooks, in real runs of MMEngine's Runner over photographs."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import mmpretrain.models  # noqa: F401
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import FlexibleRunner, Runner
from PIL import Image
from skimage import data
from torch import Tensor, nn

import aa_surgery.mmpretrain  # noqa: F401
from aa_surgery import apply_antialias
from aa_surgery.errors import (
    FilterError,
    InputError,
    NoEffectWarning,
    PatternError,
    UnsupportedModelError,
)
from aa_surgery.layers import BlurPool
from aa_surgery.layers.strength import get_strength, set_strength
from aa_surgery.mmpretrain.hooks import AntialiasHook, AntialiasWarmupHook
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


# --- AntialiasHook ------------------------------------------------------------------------------


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
    saved = torch.load(path)["state_dict"]
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


# --- AntialiasWarmupHook ------------------------------------------------------------------------


def warmup(**options: Any) -> dict[str, Any]:
    return dict(type="AntialiasWarmupHook", **options)


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
    assert torch.load(path)["antialias_strength"] == pytest.approx(0.4)
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


def test_the_hooks_are_those_of_the_registry(factory: Factory) -> None:
    runner = factory(dict(type="AntialiasHook"), warmup(iters=2))
    kinds = [type(hook) for hook in runner.hooks]
    assert kinds.index(AntialiasHook) < kinds.index(AntialiasWarmupHook)
