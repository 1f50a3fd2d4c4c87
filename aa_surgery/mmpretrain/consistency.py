"""Shift consistency in MMPretrain's val and test loops: one hook to add, and its metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner.amp import autocast
from mmpretrain.registry import HOOKS, METRICS
from mmpretrain.structures import DataSample
from torch import Tensor

from aa_surgery.errors import InputError
from aa_surgery.evaluation.intervals import effective_pairs, wilson_interval
from aa_surgery.evaluation.pairs import MARGIN, agreement, shift_pairs
from aa_surgery.evaluation.shifts import crop_shifts
from aa_surgery.mmpretrain.margins import REGION, keep_margins

__all__ = ["AGREED", "ShiftConsistency", "ShiftConsistencyHook"]

AGREED = "shift_agreed"


@METRICS.register_module()
class ShiftConsistency(BaseMetric):
    r"""Report how often a classifier names the same class for two shifts of an image.

    $100 \cdot \frac{1}{n} \sum_i [\arg\max f(x_i^a) = \arg\max f(x_i^b)]$, in %, over all pairs of
    all images. `ShiftConsistencyHook` runs the model on the pairs and adds this metric by itself;
    in an evaluator it stands where it is given another prefix, or predictions dumped under the
    hook are evaluated offline.

    - `shift/consistency`: %; to keep the best checkpoint by it, say `rule="greater"`.
    - `shift/ci95_low`, `shift/ci95_high`: 95 % Wilson interval, %; see `ConsistencyResult`.

    Source: Zhang 2019 (arXiv:1904.11486), section 4.2.

    Args:
        collect_device: `"cpu"` or `"gpu"`, where the results of all processes are collected.
        prefix: Stands before the names, `"shift"` by default.
        collect_dir: Folder that all processes share, for `"cpu"`.

    >>> metric = ShiftConsistency()
    >>> for agreed in (True, True, False, True):
    ...     metric.process(None, [{"shift_agreed": torch.tensor([agreed])}])
    >>> metric.evaluate(size=4)["shift/consistency"]
    75.0
    """

    default_prefix = "shift"

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the pairs of one batch.

        Args:
            data_batch: Not read.
            data_samples: The predictions, which say under `shift_agreed`, bool `(passes,)`,
                whether each pair of views got one class.

        Raises:
            InputError: A sample does not say so.
        """
        for sample in data_samples:
            if AGREED not in sample:
                raise InputError(
                    f"ShiftConsistency: a prediction holds no `{AGREED}`, only "
                    f"{', '.join(sorted(sample))}: the model was not run on shifted crops. Add "
                    "the hook that does it: default_hooks = "
                    "dict(shift_consistency=dict(type='ShiftConsistencyHook'))."
                )
            self.results.append((int(sample[AGREED].sum()), len(sample[AGREED])))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """Return the consistency and its interval, %.

        Args:
            results: For each image, how many of its pairs agreed, and how many there were.
        """
        agreed, pairs = torch.tensor(results).unbind(1)
        fraction = float(agreed.sum()) / float(pairs.sum())
        trials = effective_pairs(agreed, int(pairs[0]))
        low, high = wilson_interval(fraction * trials, trials)
        return {"consistency": 100 * fraction, "ci95_low": low, "ci95_high": high}


@HOOKS.register_module()
class ShiftConsistencyHook(Hook):
    """Measure shift consistency beside the other metrics, in validation and in testing.

    All that a config needs, its test pipeline ending in `CenterCrop` and `PackInputs`:

    ```python
    custom_imports = dict(imports=["aa_surgery.mmpretrain"])
    default_hooks = dict(shift_consistency=dict(type="ShiftConsistencyHook"))
    ```

    And for any existing config, from the command line: `tools/test.py CONFIG CHECKPOINT
    --cfg-options default_hooks.shift_consistency.type=aa_surgery.mmpretrain.ShiftConsistencyHook`.

    The hook has the pipeline keep the square of crop size plus margin around the centre crop, and
    cuts pairs of shifted crops from it, by the protocol and the draws of `measure_consistency`:
    the numbers are equal. The centre crop, and so the accuracy, stays what it was. The model runs
    on the shifted crops as it does on the centre crop, through its data preprocessor and under
    the loop's `fp16`: a batch takes `1 + 2 * passes` times as long, and no more memory.

    Source: Zhang 2019 (arXiv:1904.11486), section 4.2.

    Args:
        passes: Pairs an image.
        seed: Seed of the draws.
        margin: Number of offsets an axis, px; 32, as in the paper, unless the images are resized
            to less than 32 px more than their crop.

    Raises:
        InputError: An option is out of range; later, a pipeline or an image leaves no room for
            shifted crops, or the model gives no class scores.

    >>> ShiftConsistencyHook(passes=2).margin
    32
    """

    def __init__(self, passes: int = 1, seed: int = 0, margin: int = MARGIN) -> None:
        crop_shifts(0, passes, seed, margin)  # checks the options
        self.passes = passes
        self.seed = seed
        self.margin = margin

    def before_val(self, runner: Any) -> None:
        """Prepare the data and the evaluator of the val loop."""
        self._prepare(runner, runner.val_loop)

    def before_test(self, runner: Any) -> None:
        """Prepare the data and the evaluator of the test loop."""
        self._prepare(runner, runner.test_loop)

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Run the model on shifted crops of the batch."""
        self._compare(runner.model.val_step, data_batch["data_samples"], runner.val_loop)

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Run the model on shifted crops of the batch."""
        self._compare(runner.model.test_step, data_batch["data_samples"], runner.test_loop)

    def _prepare(self, runner: Any, loop: Any) -> None:
        if sum(isinstance(hook, ShiftConsistencyHook) for hook in runner.hooks) > 1:
            raise InputError(
                "the config has ShiftConsistencyHook twice, in custom_hooks or default_hooks. "
                "Keep one of them."
            )
        keep_margins(loop.dataloader.dataset, self.margin)
        metrics = loop.evaluator.metrics
        if not any(isinstance(metric, ShiftConsistency) for metric in metrics):
            metrics.append(ShiftConsistency())

    def _compare(
        self, step: Callable[[dict[str, Any]], Any], samples: list[Any], loop: Any
    ) -> None:
        """Say on each sample which of its pairs got one class, in place of its region."""
        regions = torch.stack([sample.pop(REGION) for sample in samples])
        pairs = shift_pairs(
            regions,
            [sample.sample_idx for sample in samples],
            size=regions.shape[-1] - self.margin,
            passes=self.passes,
            seed=self.seed,
            margin=self.margin,
        )
        with autocast(enabled=getattr(loop, "fp16", False)):
            agreed = torch.stack([agreement(_scores(step, a), _scores(step, b)) for a, b in pairs])
        for sample, same in zip(samples, agreed.T.cpu(), strict=True):
            sample.set_field(same, AGREED)


def _scores(step: Callable[[dict[str, Any]], Any], images: Tensor) -> Tensor:
    """Return the model's class scores `(N, classes)` of images as a pipeline gives them."""
    outputs = step({"inputs": images, "data_samples": [DataSample() for _ in images]})
    if not all("pred_score" in output for output in outputs):
        raise InputError(
            "shift consistency: the model's predictions hold no `pred_score`, whose arg-max is "
            "compared. It is measured on classifiers; remove ShiftConsistencyHook for this model."
        )
    return torch.stack([output.pred_score for output in outputs])
