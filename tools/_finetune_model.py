"""The model that is trained, the untouched one, and the timm task that trains the one."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from _finetune_options import surgery
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.loss import create_classification_loss
from timm.task.classification import ClassificationTask
from timm.task.distillation import FeatureDistillationTask, LogitDistillationTask
from timm.task.task import TrainingTask
from torch import nn

from aa_surgery import Plan, apply_antialias
from aa_surgery.cli.files import load_checkpoint
from aa_surgery.errors import InputError
from aa_surgery.integrations.timm import PREFIX
from aa_surgery.models import load_model


@dataclass
class Models:
    """The model to train, and its state before the surgery.

    Attributes:
        student: The model, anti-aliased if that was asked for.
        original: The untouched model with the same weights.
        treated: Whether there was a surgery.
        new_head: Whether the weights were of other classes, so that the last layer is random.
    """

    student: nn.Module
    original: nn.Module
    treated: bool
    new_head: bool


def build_models(options: argparse.Namespace, classes: int) -> Models:
    """Build the model as `options` say, for so many classes.

    Raises:
        InputError: The model or its weights cannot be had.
    """
    model, new_head = _with_weights(options, classes)
    if not hasattr(model, "pretrained_cfg"):  # timm's tasks read the colours' normalisation there
        colours = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        model.pretrained_cfg = {**colours, "num_classes": classes}
    original = copy.deepcopy(model)
    wanted = surgery(options)
    treated = options.antialias or bool(wanted) or options.model.startswith(PREFIX)
    if treated:
        if "plan" in wanted:
            wanted["plan"] = Plan.load(wanted["plan"])
        apply_antialias(model, **wanted)
    return Models(model, original, treated, new_head)


def _with_weights(options: argparse.Namespace, classes: int) -> tuple[nn.Module, bool]:
    """Return the untouched model with its weights, and whether its last layer is new."""
    arguments = dict(options.model_arg)
    if options.model.startswith(PREFIX):
        arguments["antialias"] = False  # the surgery comes after the weights
    if options.weights is None:
        model = _build(options, {"num_classes": classes, **arguments}, options.pretrained)
        of_weights = getattr(model, "pretrained_cfg", {}).get("num_classes", classes)
        return model, options.pretrained and of_weights != classes
    in_file = _classes_in_file(options.weights, _build(options, arguments, False)) or classes
    model = _build(options, {"num_classes": in_file, **arguments}, False)
    load_checkpoint(model, options.weights)
    if in_file != classes:
        model.reset_classifier(classes)
    return model, in_file != classes


def _build(options: argparse.Namespace, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
    path, _, function = options.model.rpartition(":")
    if not path.endswith(".py"):
        return load_model(options.model, pretrained, **arguments)
    if pretrained:
        raise InputError(
            f"--pretrained: {options.model} has no weights to download. Give a file: --weights."
        )
    target = _function(Path(path), function)
    parameters = inspect.signature(target).parameters
    if "num_classes" not in parameters:
        arguments = {k: v for k, v in arguments.items() if k != "num_classes"}
    model = target(**arguments)
    if not isinstance(model, nn.Module):
        raise InputError(f"{options.model}: returned {type(model).__name__}, no torch.nn.Module.")
    return model


def _function(path: Path, name: str) -> Any:
    """Return `name` of the file at `path`."""
    if not path.is_file():
        raise InputError(f"--model {path}: no such file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    if not callable(getattr(module, name, None)):
        raise InputError(f"--model {path}:{name}: the file has no such function.")
    return getattr(module, name)


def _classes_in_file(path: Path, model: nn.Module) -> int | None:
    """Return how many classes a checkpoint's last layer has; None where that cannot be told."""
    name = getattr(model, "pretrained_cfg", {}).get("classifier")
    if not path.is_file() or not isinstance(name, str):
        return None  # load_checkpoint says what is wrong
    weight = timm.models.load_state_dict(str(path)).get(f"{name}.weight")
    return None if weight is None else len(weight)


def make_task(
    options: argparse.Namespace, models: Models, classes: int, device: torch.device
) -> TrainingTask:
    """Return timm's task: the forward pass and the loss, with a teacher where one was named.

    Raises:
        InputError: The teacher's logits mean other classes.
    """
    mixed = bool(options.mixup or options.cutmix)
    loss = create_classification_loss(smoothing=options.smoothing, soft_targets=mixed)
    common: dict[str, Any] = {"criterion": loss, "device": device, "verbose": False}
    if not options.teacher:
        return ClassificationTask(models.student, **common)
    if options.teacher == "self":
        teacher, other_classes = models.original, models.new_head
    else:
        teacher = load_model(options.teacher, pretrained=True, num_classes=classes)
        other_classes = getattr(teacher, "pretrained_cfg", {}).get("num_classes") != classes
    if other_classes and options.distill == "logits":
        raise InputError(
            f"--teacher {options.teacher}: its weights are of other classes than the {classes} "
            "of the images, so its logits say nothing. Use --distill features."
        )
    teacher.requires_grad_(False)
    common.update(teacher_model=teacher.to(device), distill_loss_weight=options.distill_weight)
    if options.distill == "features":
        try:
            return FeatureDistillationTask(models.student, **common)
        except ValueError as error:
            raise InputError(f"--distill features, {options.model}: {error}") from error
    return LogitDistillationTask(models.student, temperature=options.temperature, **common)
