"""The training of an anti-aliased model after its original: loss, optimizer, interruptions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aa_surgery.adapt.budget import Budget
from aa_surgery.adapt.checkpoint import Checkpoint
from aa_surgery.adapt.features import Blocks
from aa_surgery.adapt.layout import to_model
from aa_surgery.adapt.trained import parameter_groups, restore
from aa_surgery.adapt.views import Views
from aa_surgery.errors import InputError
from aa_surgery.evaluation.running import logits_of

__all__ = ["Training", "divergence"]

_RAMP = 0.1  # of the budget, over which the step size grows


class Training:
    """Lower the loss of `distill` until a budget is used up."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        blocks: Blocks,
        views: Views,
        parameters: dict[str, nn.Parameter],
        lr: float,
        feature_weight: float,
    ) -> None:
        self.model, self.teacher, self.blocks, self.views = model, teacher, blocks, views
        self.parameters, self.feature_weight = parameters, feature_weight
        groups = parameter_groups(parameters, lr)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)

    def train(
        self, budget: Budget, saved: Checkpoint, progress: Callable[[int], object] | None
    ) -> None:
        """Use up the budget, from where a saved run was."""
        self._resume(budget, saved)
        told = 0
        with self.blocks.recorded() as outputs:
            while (used := budget.used) < 1:
                for group in self.optimizer.param_groups:
                    group["lr"] = group["base"] * _share(used)
                loss = self._loss(budget.done, outputs)
                if not torch.isfinite(loss):
                    raise InputError(
                        f"distill: the loss is {loss.item()} at step {budget.done}. Lower lr, and "
                        "look for NaN or infinity in the images and weights."
                    )
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
                budget.step()
                if progress is not None:
                    now = int(100 * budget.used)
                    progress(now - told)
                    told = now
                if saved.due() or budget.used >= 1:
                    saved.save(self._state(budget))

    def _loss(self, step: int, outputs: tuple[dict[str, Tensor], dict[str, Tensor]]) -> Tensor:
        first, second = (to_model(self.model, view) for view in self.views(step))
        with torch.no_grad():  # the first view last: its features are compared
            target = logits_of(self.teacher, second).softmax(1)
            target = (target + logits_of(self.teacher, first).softmax(1)) / 2
        divergence = F.kl_div(
            logits_of(self.model, first).log_softmax(1), target, reduction="batchmean"
        )
        if not self.feature_weight:
            return divergence
        return divergence + self.feature_weight * self.blocks.error(*outputs)

    def _state(self, budget: Budget) -> dict[str, object]:
        return {
            "budget": budget.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
        }

    def _resume(self, budget: Budget, saved: Checkpoint) -> None:
        state = saved.load()
        if state is not None:
            restore(self.parameters, state["parameters"])
            self.optimizer.load_state_dict(state["optimizer"])
            budget.load_state_dict(state["budget"])


def _share(used: float) -> float:
    """Return the share of the step size at a share of the budget."""
    return min(1.0, (used + 0.01) / _RAMP) * (1 + math.cos(math.pi * used)) / 2


@torch.no_grad()
def divergence(model: nn.Module, teacher: nn.Module, views: Views) -> float:
    """Return the mean KL divergence of the model from the teacher's mean over both views, nats."""
    total = count = 0.0
    for step in range(math.ceil(len(views.images) / views.batch_size)):
        first, second = (to_model(model, view) for view in views(step))
        target = (logits_of(teacher, first).softmax(1) + logits_of(teacher, second).softmax(1)) / 2
        total += F.kl_div(logits_of(model, first).log_softmax(1), target, reduction="sum").item()
        count += len(first)
    return total / count
