"""Shift consistency in MMPretrain's loops: the numbers of `measure_consistency`, accuracy kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import ConcatDataset
from mmengine.evaluator import DumpResults, Evaluator
from mmengine.fileio import load
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS, METRICS
from mmpretrain_study import SIZE, Study, dataset_of, make_study, measured_outside, run_tool
from torch import nn

from aa_surgery.errors import InputError
from aa_surgery.evaluation import ConsistencyResult
from aa_surgery.mmpretrain.consistency import ShiftConsistency, ShiftConsistencyHook
from aa_surgery.mmpretrain.margins import keep_margins

BASES = Path(mmpretrain.__file__).parent / ".mim" / "configs" / "_base_"
OURS = Path(__file__).parents[1] / "configs" / "_base_" / "shift_consistency.py"
HOOK = "aa_surgery.mmpretrain.ShiftConsistencyHook"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def plain_accuracy(study: Study) -> float:
    return Runner.from_cfg(study.settings()).test()["accuracy/top1"]


@pytest.fixture(scope="module")
def expected(study: Study) -> ConsistencyResult:
    result = measured_outside(study)
    assert 40 < result.consistency < 98, "these weights cannot tell a right number from a wrong one"
    return result


def as_metrics(result: ConsistencyResult, accuracy: float) -> dict[str, Any]:
    low, high = result.interval
    return {
        "accuracy/top1": accuracy,
        "shift/consistency": pytest.approx(result.consistency),
        "shift/ci95_low": pytest.approx(low),
        "shift/ci95_high": pytest.approx(high),
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_tool_prints_accuracy_and_consistency(
    study: Study, expected: ConsistencyResult, plain_accuracy: float, processes: int
) -> None:
    options = ["--cfg-options", f"default_hooks.shift_consistency.type={HOOK}"]
    options += ["test_dataloader.num_workers=1"]
    metrics, printed = run_tool(study, *options, processes=processes)
    assert metrics == as_metrics(expected, plain_accuracy)
    for name, value in metrics.items():
        found = re.search(rf"{name}: ([\d.]+)", printed)
        assert found is not None
        assert float(found[1]) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("options", [dict(seed=3), dict(passes=3, seed=1), dict(margin=17)])
@pytest.mark.parametrize("loop", ["val", "test"])
def test_loops_report_what_measure_consistency_does(
    study: Study, plain_accuracy: float, options: dict[str, int], loop: str
) -> None:
    runner = Runner.from_cfg(study.with_hook(**options))
    metrics = getattr(runner, loop)()
    assert metrics == as_metrics(measured_outside(study, **options), plain_accuracy)


def test_centre_crops_stay_as_they_were_to_the_bit(study: Study) -> None:
    before, after = dataset_of(study.settings()), dataset_of(study.settings())
    keep_margins(after, margin=29)
    assert [type(step).__name__ for step in after.pipeline.transforms][2:] == [
        "KeepMargin",
        "CenterCrop",
        "PackInputs",
    ]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["inputs"], other["inputs"])
        assert other["data_samples"].shift_region.shape == (3, SIZE + 29, SIZE + 29)


def test_images_of_a_pseudo_collated_batch(
    study: Study, expected: ConsistencyResult, plain_accuracy: float
) -> None:
    config = study.with_hook()
    config.test_dataloader.collate_fn = dict(type="pseudo_collate")
    assert Runner.from_cfg(config).test() == as_metrics(expected, plain_accuracy)


def test_validation_during_training_measures_the_weights_of_that_epoch(study: Study) -> None:
    config = study.with_hook()
    config.train_dataloader = config.val_dataloader.copy()
    config.train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
    config.optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01))
    config.default_hooks.checkpoint = dict(
        type="CheckpointHook", save_best="shift/consistency", rule="greater"
    )
    runner = Runner.from_cfg(config)
    runner.train()
    after_training = runner.message_hub.get_scalar("val/shift/consistency").current()
    assert runner.val()["shift/consistency"] == after_training
    assert runner.message_hub.get_info("best_score") >= after_training


def test_half_precision_of_the_loop_holds_for_the_shifted_crops(study: Study) -> None:
    config = study.with_hook()
    config.test_cfg = dict(fp16=True)  # what tools/test.py --amp sets
    runner = Runner.from_cfg(config)
    seen = []
    runner.model.head.fc.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    runner.test()
    assert set(seen) == {torch.bfloat16}


def test_images_in_wrapped_data_sets(study: Study, expected: ConsistencyResult) -> None:
    config = study.with_hook()
    part = config.test_dataloader.dataset
    config.test_dataloader.dataset = dict(type="ConcatDataset", datasets=[part, part])
    runner = Runner.from_cfg(config)
    assert isinstance(runner.test_dataloader.dataset, ConcatDataset)
    assert runner.test()["shift/consistency"] == pytest.approx(expected.consistency)


def test_dumped_predictions_are_measured_offline(
    study: Study, expected: ConsistencyResult, tmp_path: Path
) -> None:
    runner = Runner.from_cfg(study.with_hook())
    runner.test_evaluator.metrics.append(DumpResults(str(tmp_path / "dump.pkl")))
    runner.test()
    samples = load(tmp_path / "dump.pkl")
    assert all("shift_region" not in sample for sample in samples)  # images do not belong there
    offline = Evaluator(METRICS.build(dict(type="ShiftConsistency", prefix="offline")))
    found = offline.offline_evaluate(samples)
    assert found["offline/consistency"] == pytest.approx(expected.consistency)


def test_base_config_goes_with_those_of_mmpretrain(study: Study, tmp_path: Path) -> None:
    names = ["models/resnet18", "datasets/imagenet_bs32", "schedules/imagenet_bs256"]
    bases = [*(str(BASES / f"{name}.py") for name in [*names, "default_runtime"]), str(OURS)]
    (tmp_path / "inherits.py").write_text(f"_base_ = {bases!r}")
    config = Config.fromfile(tmp_path / "inherits.py")
    hooks = [HOOKS.build(hook) for hook in config.custom_hooks]
    assert [type(hook) for hook in hooks] == [ShiftConsistencyHook]
    pipeline = config.test_dataloader.dataset.pipeline
    assert pipeline[1]["scale"] - pipeline[2]["crop_size"] >= hooks[0].margin


def run_with(config: Config) -> None:
    Runner.from_cfg(config).test()


def test_no_room_for_shifts_says_what_to_change(study: Study) -> None:
    config = study.with_hook()
    config.test_dataloader.dataset.pipeline[1].scale = 80
    said = (
        r"astronaut/00.png is .*80.* offsets need 96 px.*scale=96\), or give the hook margin=16\."
    )
    with pytest.raises(InputError, match=said):
        run_with(config)
    config = study.with_hook(margin=16)
    config.test_dataloader.dataset.pipeline[1].scale = 80
    run_with(config)


def test_a_pipeline_without_centre_crop_is_refused(study: Study) -> None:
    config = study.with_hook()
    del config.test_dataloader.dataset.pipeline[2]
    with pytest.raises(InputError, match=r"CustomDataset is LoadImageFromFile, ResizeEdge, Pack"):
        run_with(config)


def test_oblong_crops_are_refused(study: Study) -> None:
    config = study.with_hook()
    config.test_dataloader.dataset.pipeline[2].crop_size = (64, 48)
    with pytest.raises(InputError, match=r"cuts 64x48 px.*integer crop_size"):
        run_with(config)


def test_test_time_augmentation_is_refused(study: Study) -> None:
    config = study.with_hook()
    flips = [[dict(type="RandomFlip", prob=p) for p in (1.0, 0.0)], [dict(type="PackInputs")]]
    pipeline = config.test_dataloader.dataset.pipeline
    config.test_dataloader.dataset.pipeline = [
        *pipeline[:-1],
        dict(type="TestTimeAug", transforms=flips),
    ]
    with pytest.raises(InputError, match="no test-time augmentation"):
        run_with(config)


def test_metric_without_the_hook_names_it(study: Study) -> None:
    config = study.settings()
    config.test_evaluator = dict(type="ShiftConsistency")
    with pytest.raises(InputError, match=r"no `shift_agreed`.*type='ShiftConsistencyHook'"):
        run_with(config)


def test_hook_twice_is_refused(study: Study) -> None:
    config = study.with_hook()
    config.custom_hooks = [dict(type="ShiftConsistencyHook", seed=1)]
    with pytest.raises(InputError, match=r"twice, in custom_hooks or default_hooks"):
        run_with(config)


def test_models_that_do_not_classify_are_refused(study: Study) -> None:
    config = study.with_hook()
    runner = Runner.from_cfg(config)
    runner.model.head._get_predictions = lambda scores, samples: samples
    with pytest.raises(InputError, match="no `pred_score`"):
        runner.test()


def test_bad_weights_are_no_consistent_ones(study: Study) -> None:
    runner = Runner.from_cfg(study.with_hook())
    runner.load_or_resume()
    nn.init.constant_(runner.model.head.fc.weight, float("nan"))
    with pytest.raises(InputError, match="NaN"):
        runner.test()


@pytest.mark.parametrize("options", [dict(passes=0), dict(seed=-1), dict(margin=0)])
def test_options_out_of_range_are_refused_at_once(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ShiftConsistencyHook(**options)


def test_interval_of_many_passes_counts_images_not_pairs() -> None:
    metric = ShiftConsistency()
    for agreed in (True, False) * 10:
        metric.process(None, [{"shift_agreed": torch.full((50,), agreed)}])
    many = metric.evaluate(20)
    for agreed in (True, False) * 10:
        metric.process(None, [{"shift_agreed": torch.tensor([agreed])}])
    assert metric.evaluate(20) == pytest.approx(many)
