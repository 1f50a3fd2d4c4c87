"""Train and evaluate, so that a run can go on from any checkpoint as if it had never stopped.

Nothing depends on what was drawn before: each sample is seeded by (seed, epoch, index), and each
step, with its mixing, dropout and drop-path, by (seed, epoch, step, process).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import _finetune_state as files
import torch
import torch.distributed as dist
from _finetune_data import Data, readable, seed_all, warn_unreadable
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task.evaluator import ClassificationEvaluator
from timm.task.task import TrainingTask
from timm.utils import dispatch_clip_grad, distribute_bn, unwrap_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aa_surgery.adapt.warmup import AntialiasWarmup
from aa_surgery.errors import InputError
from aa_surgery.evaluation import measure_consistency
from aa_surgery.evaluation.running import evaluating
from aa_surgery.methods import alias_penalty
from aa_surgery.reports.progress import progress_bar

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}


class Trainer:
    """One run, from its first or from any later step to its end.

    Args:
        options: The command line.
        task: The model and its loss, on its device.
        data: The images.
        identity: What a run that is resumed must have in common with this one.
        rank: This process's number.
        world: How many processes train together.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        task: TrainingTask,
        data: Data,
        identity: dict[str, str],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.options, self.task, self.data, self.identity = options, task, data, identity
        self.rank, self.world = rank, world
        self.device: torch.device = task.device
        self.sampler: Any = data.train.sampler
        model = task.get_trainable_module()
        if options.alias_penalty:
            alias_penalty(model)  # refuses a model without learned filters before it is trained
        self.optimizer = create_optimizer_v2(
            model,
            opt=options.opt,
            lr=options.lr,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            layer_decay=options.layer_decay,
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=options.sched,
            num_epochs=options.epochs,
            min_lr=options.min_lr,
            warmup_lr=options.warmup_lr,
            warmup_epochs=options.warmup_epochs,
            step_on_epochs=False,
            updates_per_epoch=self.sampler.steps,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.amp == "fp16")
        self.mixup = _mixup(options, data.classes)
        if options.ema:
            task.setup_ema(decay=options.ema, use_warmup=True)
        self.warmup = self._warmup(model)
        self.epoch = self.step = 0
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.rows: list[files.Row] = []

    def _warmup(self, model: nn.Module) -> AntialiasWarmup | None:
        steps = self.options.warmup_blur
        if not steps:
            return None
        total = self.options.epochs * self.sampler.steps
        if steps > total:
            raise InputError(
                f"--warmup-blur {steps}: the run has {total} steps, and would end with weaker "
                "blurs than the model is loaded with. Give fewer, or more --epochs."
            )
        copies = [self.task.get_trainable_module(ema=True)] if self.options.ema else []
        return AntialiasWarmup(model, steps, also=copies)

    def fit(self) -> None:
        """Train to the end, from wherever the state is."""
        first = self.epoch
        log = files.Log(self.options.output, first, self.options.tensorboard and self.rank == 0)
        for epoch in range(first, self.options.epochs):
            began = time.perf_counter()
            self.train_epoch()
            row = self._row(self.evaluate())
            best = max((r["eval_top1"] for r in self.rows if _full(r)), default=-math.inf)
            self.rows.append(row)
            self.epoch, self.step = epoch + 1, 0
            self.totals.zero_()
            if self.rank == 0:
                if _full(row) and row["eval_top1"] > best:
                    # before the last one: a kill between the two repeats the epoch, and this
                    self._save(files.BEST)
                self._save(files.LAST)
                files.write_summary(self.options.output, self.rows)
                log.epoch(row, self.options.epochs, time.perf_counter() - began)

    def train_epoch(self) -> None:
        """Train the epoch, or what is left of it."""
        self.task.train()
        if self.options.freeze_statistics:
            for module in self.task.get_trainable_module().modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        self.sampler.epoch, self.sampler.start = self.epoch, self.step
        every = self.options.checkpoint_steps
        with progress_bar(f"epoch {self.epoch}", self.sampler.steps) as advance:
            for batch in self.data.train:
                self._update(batch)
                self.step += 1
                advance(1)
                if every and self.step % every == 0:
                    self._gather()
                    if self.rank == 0:
                        self._save(files.LAST)
        self._gather()

    def _update(self, batch: list[Tensor]) -> None:
        """Take one step of the optimizer, and all that follows it."""
        bad = warn_unreadable(self.data.train, batch[2])
        images, labels = self._moved(batch[0]), batch[1].to(self.device, non_blocking=True)
        seed_all(self.options.seed, self.epoch, self.step, self.rank)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        with self._autocast():
            loss = self.task(images, labels)["loss"]
        if self.options.alias_penalty:
            loss = loss + self.options.alias_penalty * alias_penalty(
                self.task.get_trainable_module()
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.options.clip_grad:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.task.get_clip_parameters(), self.options.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        done = self.epoch * self.sampler.steps + self.step + 1
        self.task.update_ema(step=done)
        self.scheduler.step_update(done)
        if self.warmup is not None:
            self.warmup.step()
        self.totals[0] += loss.detach()
        self.totals[1:] += torch.tensor([1, bad]).to(self.device)

    def _gather(self) -> None:
        """Bring the processes' sums together in the first one, and refuse a lost run."""
        if self.world > 1:
            dist.all_reduce(self.totals)
        loss = self.totals[0].item()
        if not math.isfinite(loss):
            raise InputError(
                f"epoch {self.epoch}, step {self.step}: the loss is {loss}. Lower --lr, or give "
                "--clip-grad 1; the checkpoint of before is kept."
            )
        if self.rank:
            self.totals.zero_()

    def evaluate(self) -> dict[str, float]:
        """Measure what would be loaded: the averaged weights where there are any."""
        ema = bool(self.options.ema)
        model = unwrap_model(self.task.get_eval_model(ema=ema))
        if self.world > 1:
            for averaged in (False, ema):  # the first process's statistics count, as its weights do
                distribute_bn(self.task.get_trainable_module(ema=averaged), self.world)
        evaluator = ClassificationEvaluator(self.device)
        with torch.inference_mode(), evaluating(model), self._autocast():
            for images, labels, _ in readable(self.data.val):
                evaluator.update(model(self._moved(images)), labels.to(self.device))
        found = {f"eval_{k}": v for k, v in evaluator.compute(self.world > 1).items()}
        if self.data.shifts is not None:
            found["eval_consistency"] = self._consistency(model)
        return found

    def _consistency(self, model: nn.Module) -> float:
        views = dict(size=self.data.size, margin=self.options.consistency)
        with self._autocast():
            result = measure_consistency(model, readable(self.data.shifts), **views)
        counts = torch.tensor([result.consistency, 1]).double() * result.pairs
        counts = counts.to(self.device)
        if self.world > 1:
            dist.all_reduce(counts)
        return float(counts[0] / counts[1])

    def _row(self, found: dict[str, float]) -> files.Row:
        loss, steps, bad = self.totals.tolist() if self.rank == 0 else (0.0, 1.0, 0.0)
        row = {"epoch": self.epoch, "train_loss": loss / steps, "train_unreadable": int(bad)}
        row |= {**found, "lr": self.optimizer.param_groups[0]["lr"]}
        return row | ({"strength": self.warmup.strength} if self.warmup else {})

    def _moved(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return images.to(self.device, non_blocking=True, memory_format=layout)

    def _autocast(self) -> Any:
        amp = self.options.amp
        return torch.autocast(self.device.type, DTYPES[amp], enabled=amp is not None)

    def _save(self, name: str) -> None:
        files.save(Path(self.options.output) / name, self.state())

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, under timm's names where it has one."""
        return {
            "arch": self.options.model,
            "args": self.identity,
            "version": 2,
            **self.task.get_checkpoint_state(),
            **self.task.get_checkpoint_state(ema=True),
            "optimizer": self.optimizer.state_dict(),
            "amp_scaler": self.scaler.state_dict(),
            "warmup": self.warmup.state_dict() if self.warmup else None,
            "epoch": self.epoch,
            "step": self.step,
            "totals": self.totals.tolist(),
            "rows": self.rows,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` returned; call it before `prepare_distributed`."""
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.options.ema:
            averaged = state["state_dict_ema"], state.get("task_state_ema")
            self.task.load_checkpoint_state(*averaged, ema=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["amp_scaler"])
        if self.warmup is not None:
            self.warmup.load_state_dict(state["warmup"])
        self.epoch, self.step, self.rows = state["epoch"], state["step"], state["rows"]
        if self.rank == 0:
            self.totals += torch.tensor(state["totals"], dtype=torch.float64).to(self.device)
            files.write_summary(self.options.output, self.rows)


def _mixup(options: argparse.Namespace, classes: int) -> Mixup | None:
    if not options.mixup and not options.cutmix:
        return None
    if options.batch_size % 2:
        raise InputError(f"--batch-size {options.batch_size}: mixup and cutmix need an even one.")
    alphas = dict(mixup_alpha=options.mixup, cutmix_alpha=options.cutmix)
    return Mixup(**alphas, label_smoothing=options.smoothing, num_classes=classes)


def _full(row: files.Row) -> bool:
    """Say whether the blurs of that epoch were those that the model is loaded with."""
    return row.get("strength", 1.0) == 1.0
