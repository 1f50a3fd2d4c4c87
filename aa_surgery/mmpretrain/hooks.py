"""Hooks for `custom_hooks`: anti-alias a model whose config cannot be touched, and warm up."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from aa_surgery.adapt.warmup import Schedule, ramp
from aa_surgery.errors import (
    InputError,
    MethodError,
    NoEffectWarning,
    SurgeryError,
    UnsupportedModelError,
)
from aa_surgery.filters import Filter, resolve_filter
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.strength import get_strength, set_strength
from aa_surgery.methods import resolve_method
from aa_surgery.surgery import apply_antialias, plan_antialias
from aa_surgery.surgery.classes import Antialiased

__all__ = ["AntialiasHook", "AntialiasWarmupHook"]

_FLAG = "Set antialias=True in the config of the model or backbone, which is read as it is built"
_STRENGTH = "antialias_strength"  # in checkpoints, and behind "train/" in the message hub


@HOOKS.register_module()
class AntialiasHook(Hook):
    """Anti-alias the runner's model before it runs, where its config cannot be touched.

    The key `antialias=` in the config of the model serves `get_model` and inferencers too; prefer
    it where you can. The blurs of this hook are fixed and add no parameter, so the optimizer,
    which is there already, keeps its parameters. EMA copies and checkpoints come later, and see the
    changed model; so does the inner model of a (distributed) data-parallel wrapper. A test needs
    the hook as the training did. The arguments are the options of `apply_antialias`.

    Raises:
        SurgeryError: At the start of a run: an option is wrong, the model cannot be treated, or
            it is too late: an EMA hook has copied the model, or it is compiled; or the method has
            weights of its own, which the optimizer does not know. At the first
            training iteration: the hook was registered when training was under way.

    Warns:
        NoEffectWarning: The model is anti-aliased already, or has nothing to treat.

    >>> from mmpretrain.registry import HOOKS
    >>> hook = HOOKS.build(dict(type="AntialiasHook", filter="tri-4", exclude="*.layer4.*"))
    >>> hook.options["filter"], hook.priority
    ('tri-4', 'VERY_HIGH')
    """

    priority = "VERY_HIGH"

    def __init__(
        self,
        filter: str | Iterable[float] | Filter = "auto",
        placement: str = "auto",
        padding_mode: str = "reflect",
        max_stride: int | None = 4,
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        preset: str | None = None,
        overrides: Mapping[str, Mapping[str, Any] | bool] | None = None,
        method: str | Mapping[str, Any] = "blur",
        circular: bool = False,
    ) -> None:
        self.options: dict[str, Any] = dict(
            filter=filter,
            placement=placement,
            padding_mode=padding_mode,
            max_stride=max_stride,
            include=include,
            exclude=exclude,
            preset=preset,
            overrides=overrides,
            method=method,
            circular=circular,
        )
        resolve_method(method)  # a wrong name is told when the runner is built
        if isinstance(filter, str) and filter != "auto":
            resolve_filter(filter)
        self._model: nn.Module | None = None

    def before_run(self, runner: Runner) -> None:
        """Anti-alias the model, at the first run of this runner."""
        model = _inner_model(runner)
        if self._model is model:
            return
        if any(isinstance(m, Antialiased) for m in model.modules()):
            warnings.warn(
                f"AntialiasHook: {type(model).__name__} is anti-aliased already, by the key "
                "antialias= of its config or by another hook; nothing was changed. "
                "Keep one of them.",
                NoEffectWarning,
                stacklevel=2,
            )
        else:
            self._refuse_if_late(runner, model)
            self._apply(runner, model)
        self._model = model

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Refuse to train a model that this hook was registered too late for."""
        if self._model is None:
            raise UnsupportedModelError(
                "AntialiasHook was registered when training was under way, so that the model, its "
                "EMA copy and its checkpoints are without anti-aliasing. Register it before "
                f"runner.train(), in custom_hooks say. {_FLAG}."
            )

    def _apply(self, runner: Runner, model: nn.Module) -> None:
        try:
            plan = plan_antialias(model, **self.options)
            if plan.new_keys:
                raise MethodError(
                    f"method {self.options['method']!r} has weights of its own "
                    f"({plan.new_keys[0]}), which the optimizer, made before, would not train. "
                    f"{_FLAG}."
                )
            apply_antialias(model, plan=plan)
        except SurgeryError as error:
            raise type(error)(f"AntialiasHook: {error}") from error
        blurs = sum(isinstance(m, Downsample) for m in model.modules())
        runner.logger.info(f"AntialiasHook: {blurs} blurs put into {type(model).__name__}.")

    def _refuse_if_late(self, runner: Runner, model: nn.Module) -> None:
        for hook in takewhile(lambda hook: hook is not self, runner.hooks):
            if isinstance(getattr(hook, "ema_model", None), nn.Module):
                name = type(hook).__name__
                raise UnsupportedModelError(
                    f"AntialiasHook: {name} runs before it (priority {hook.priority} before "
                    f"{self.priority}) and has copied the model without anti-aliasing. Give "
                    f"AntialiasHook a priority before that of {name}. {_FLAG}."
                )
        if any("train_step" in vars(m) for m in (model, runner.model)):
            raise UnsupportedModelError(
                f"AntialiasHook: train_step of {type(model).__name__} is compiled already "
                f"(compile= in the config, or an earlier train()). {_FLAG} and compiled."
            )


@HOOKS.register_module()
class AntialiasWarmupHook(Hook):
    r"""Strengthen the blurs from iteration to iteration, so that pretrained weights can follow.

    In iteration $i$ the strength is $a = a_0 + (1 - a_0)\, p(t)$,
    $t = (i - \mathrm{begin}) / (\mathrm{iters} - 1)$ clipped to 0..1, with $p(t) = t$ (linear) or
    $(1 - \cos \pi t) / 2$ (cosine), as `aa_surgery.adapt.warmup.ramp` has it. As with MMEngine's
    schedulers, the first iteration has the start and the last one exactly 1. What a strength does
    to a blur: `layers.strength`.

    Validation runs at the strength that training has reached, and so does a test of a checkpoint
    from within the warm-up if the test has this hook; elsewhere its blurs are whole. The strength
    follows from the iteration alone, so a resumed run goes on as if never stopped. It is logged as
    `train/antialias_strength`.

    Args:
        iters: Length of the warm-up in iterations.
        epochs: Its length in epochs, instead of `iters`.
        begin: The first iteration (or epoch, with `epochs`) of the warm-up.
        start: The strength until then, $a_0$, from 0 (no blur) to 1.
        schedule: `"linear"` or `"cosine"`.

    Raises:
        InputError: An argument is wrong.
        UnsupportedModelError: At the start of a run: the model has no blur.

    >>> hook = AntialiasWarmupHook(iters=5, begin=10)
    >>> [hook.strength_at(i) for i in (0, 10, 11, 14, 99)]
    [0.0, 0.0, 0.25, 1.0, 1.0]
    """

    priority = "HIGH"  # behind AntialiasHook, before EMAHook

    def __init__(
        self,
        iters: int | None = None,
        epochs: int | None = None,
        begin: int = 0,
        start: float = 0.0,
        schedule: Schedule = "linear",
    ) -> None:
        if (iters is None) == (epochs is None):
            raise InputError("AntialiasWarmupHook: give one of iters= and epochs=.")
        length = iters if iters is not None else epochs
        if not isinstance(length, int) or length < 1 or begin < 0:
            raise InputError(
                f"AntialiasWarmupHook: iters (or epochs) = {length!r} must be a whole number from "
                f"1, and begin = {begin!r} one from 0."
            )
        if not 0 <= start <= 1:
            raise InputError(f"AntialiasWarmupHook: start = {start!r} must be from 0 to 1.")
        if schedule not in ("linear", "cosine"):
            raise InputError(
                f"AntialiasWarmupHook: schedule {schedule!r} is unknown. Use 'linear' or 'cosine'."
            )
        self.by_epoch = epochs is not None
        self.length = length
        self.begin = begin
        self.start = start
        self.schedule = schedule
        self._strength: float | None = None
        self._loaded: float | None = None

    def strength_at(self, iteration: int, epoch_length: int = 1) -> float:
        """Return the strength in an iteration.

        Args:
            iteration: Iterations done before it.
            epoch_length: Iterations of an epoch, if the warm-up is given in epochs.
        """
        unit = epoch_length if self.by_epoch else 1
        done = iteration - self.begin * unit
        return ramp(done, self.length * unit, self.start, self.schedule)

    def before_run(self, runner: Runner) -> None:
        """Refuse a model without blurs; FlexibleRunner has loaded its checkpoint by now."""
        if not _has_blurs(runner.model):
            raise UnsupportedModelError(
                f"AntialiasWarmupHook: {type(runner.model).__name__} has no blur to strengthen. "
                f"{_FLAG}; or put AntialiasHook into custom_hooks, with a priority before this one."
            )
        if self._loaded is not None:
            self._set(runner, self._loaded)
        self._loaded = self._strength = None

    def before_train(self, runner: Runner) -> None:
        """Warn of a training that ends before the warm-up."""
        reached = self.strength_at(runner.max_iters - 1, self._epoch_length(runner))
        if reached < 1:
            warnings.warn(
                f"AntialiasWarmupHook: the training ends after {runner.max_iters} iterations at "
                f"strength {reached:g}, before the blurs are whole. Shorten the warm-up.",
                stacklevel=2,
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the strength of this iteration, and log it."""
        strength = self.strength_at(runner.iter, self._epoch_length(runner))
        if strength != self._strength:
            self._set(runner, strength)
        runner.message_hub.update_scalar(f"train/{_STRENGTH}", strength)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the strength into the checkpoint."""
        checkpoint[_STRENGTH] = get_strength(runner.model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Give the model the checkpoint's strength, or remember it until the model has blurs."""
        strength = checkpoint.get(_STRENGTH)
        if strength is None:
            return
        if _has_blurs(runner.model):
            self._set(runner, strength)
        else:
            self._loaded = strength

    def _epoch_length(self, runner: Runner) -> int:
        return len(runner.train_dataloader) if self.by_epoch else 1

    def _set(self, runner: Runner, strength: float) -> None:
        """Set the strength of the model, and of the copies of it that EMA hooks hold."""
        set_strength(runner.model, strength)
        for hook in runner.hooks:
            average = getattr(hook, "ema_model", None)
            if isinstance(average, nn.Module):
                set_strength(average, strength)
        self._strength = strength


def _inner_model(runner: Runner) -> nn.Module:
    """Return the model inside of a wrapper that leaves its parameters as they are."""
    model: nn.Module = runner.model
    if not is_model_wrapper(model):
        return model
    if not isinstance(model, (DataParallel, DistributedDataParallel)):
        raise UnsupportedModelError(
            f"AntialiasHook: the model is wrapped in {type(model).__name__}, which has laid out "
            f"its parameters already. {_FLAG}, before it is wrapped."
        )
    return model.module


def _has_blurs(model: nn.Module) -> bool:
    return any(isinstance(m, Downsample) for m in model.modules())
