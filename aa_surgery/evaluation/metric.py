"""Shift consistency as a torchmetrics `Metric`; this module exists only for that library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aa_surgery.evaluation.pairs import agreement

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "ShiftConsistency is a torchmetrics metric, and torchmetrics is not installed. "
        'Install it with pip install "aa-surgery[demo]", or use measure_consistency, '
        "which does not need it."
    ) from error

__all__ = ["ShiftConsistency"]


class ShiftConsistency(Metric):
    r"""Count how often two shifted views of an image get the same class.

    $100 \cdot \frac{1}{n} \sum_i [\arg\max f(x_i^a) = \arg\max f(x_i^b)]$, in %. Its states are
    two sums, so it reduces over processes, epochs and merged copies exactly. The views come from
    `shift_pairs`, drawn per image: Zhang's protocol made deterministic. A distributed sampler that
    pads its last round with repeated images counts these twice.

    Source: Zhang 2019 (arXiv:1904.11486), section 4.2.

    Plain loop:

    >>> from aa_surgery.evaluation import ShiftConsistency, shift_pairs
    >>> model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    >>> metric = ShiftConsistency()
    >>> for a, b in shift_pairs(torch.ones(2, 3, 256, 256), indices=[0, 1]):
    ...     metric.update(model(a), model(b))
    >>> metric.compute()
    tensor(100.)

    Lightning, the data set giving `(image, label, index)`:

    ```python
    def __init__(self):
        self.consistency = ShiftConsistency()

    def validation_step(self, batch, batch_idx):
        images, labels, indices = batch
        for a, b in shift_pairs(images, indices):
            self.consistency.update(self(a), self(b))
        self.log("shift_consistency", self.consistency)
    ```

    MMPretrain has a hook for it: `aa_surgery.mmpretrain.ShiftConsistencyHook`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    agreed: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("agreed", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Count one batch of pairs.

        Args:
            first: Logits `(N, classes)` of the first view, or predicted classes `(N,)`.
            second: The same of the second view.

        Raises:
            InputError: The shapes differ, or are neither of the two.
        """
        same = agreement(first, second)
        self.agreed += same.sum()
        self.total += same.numel()

    def compute(self) -> Tensor:
        """Return the consistency of all pairs so far, %; NaN where there were none."""
        return 100.0 * self.agreed / self.total
