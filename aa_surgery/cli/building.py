"""The model, plan and device that a command's arguments stand for, each failure one line."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.cli import files
from aa_surgery.errors import InputError
from aa_surgery.models import load_model
from aa_surgery.surgery import Plan, plan_antialias
from aa_surgery.surgery.classes import Antialiased
from aa_surgery.treated import PLAN

__all__ = [
    "build_model",
    "build_plan",
    "input_files",
    "input_size",
    "noise_image",
    "surgery_options",
    "to_device",
    "warn_if_untrained",
    "worn_plan",
]

_SURGERY_OPTIONS = (
    "method",
    "filter",
    "placement",
    "padding_mode",
    "circular",
    "max_stride",
    "include",
    "exclude",
    "preset",
    "plan",
)  # destinations that become keywords of `apply_antialias`, where given
_DEFAULT_INPUT = (3, 224, 224)


def build_model(args: argparse.Namespace) -> nn.Module:
    """Build the model in eval mode, with the weights that were asked for."""
    if args.checkpoint is not None and not args.checkpoint.is_file():
        # Said before the model is built, which may take a download.
        raise InputError(f"checkpoint {args.checkpoint}: no such file.")
    arguments = dict(args.model_arg)
    if "pretrained" in arguments:
        raise InputError("--model-arg pretrained: give --pretrained.")
    model = load_model(args.model, pretrained=args.pretrained, **arguments)
    if args.checkpoint is not None:
        files.load_checkpoint(model, args.checkpoint)
    return model.eval()


def warn_if_untrained(args: argparse.Namespace, consequence: str) -> None:
    """Warn where no weights were asked for, and say what follows from that."""
    if not args.pretrained and args.checkpoint is None:
        warnings.warn(
            "neither --pretrained nor --checkpoint: the weights are those that MODEL is made "
            f"with, as a rule random, and {consequence}.",
            stacklevel=3,
        )


def surgery_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the surgery that were given on the command line."""
    return {name: getattr(args, name) for name in _SURGERY_OPTIONS if name in args}


def input_files(args: argparse.Namespace) -> dict[str, Path]:
    """Return the files and folders that a command reads, by what names them."""
    module = args.model.partition(":")[0].replace(".", "/")
    named = {
        "--checkpoint": args.checkpoint,
        "--plan": getattr(args, "plan", None),
        "--images": getattr(args, "images", None),
        "MODEL": Path(f"{module}.py") if ":" in args.model else None,
    }
    return {name: path for name, path in named.items() if path is not None and path.exists()}


def worn_plan(model: nn.Module) -> Plan | None:
    """Return the plan that the model was anti-aliased by; None where it was not.

    Raises:
        InputError: Parts of it were, each by a plan of its own.
    """
    if not any(isinstance(module, Antialiased) for module in model.modules()):
        return None
    plan = vars(model).get(PLAN)
    if not isinstance(plan, Plan):
        raise InputError(
            f"parts of {type(model).__name__} are anti-aliased already. "
            "Build it without that, and anti-alias the whole."
        )
    return plan


def build_plan(model: nn.Module, args: argparse.Namespace) -> Plan:
    """Return the saved plan that was named, or the one that the options ask for.

    That of a model which is anti-aliased already is its own.

    Raises:
        InputError: Options that change nothing are given.
    """
    options = surgery_options(args)
    given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
    worn = worn_plan(model)
    if worn is not None:
        if options:
            raise InputError(
                f"model {args.model!r} is anti-aliased already, so that {given} would change "
                "nothing. Name the untouched model."
            )
        return worn
    path = options.pop("plan", None)
    if path is None:
        return plan_antialias(model, **options)
    if options:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise InputError(f"--plan already says what {given} would. Give one or the other.")
    return Plan.load(path)


def to_device(model: nn.Module, device: str) -> None:
    """Move the model.

    Raises:
        InputError: There is no such device.
    """
    try:
        model.to(device)
    # torch says so by RuntimeError or AssertionError, by the kind of device.
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {_first_line(error)}") from error


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """Return channels, height and width that the model was made for."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", _DEFAULT_INPUT)
    return channels, height, width


def noise_image(model: nn.Module, args: argparse.Namespace) -> Tensor:
    """Return one image of noise that the model accepts, `(1, C, H, W)`.

    Raises:
        InputError: The model does not run on an image of that size.
    """
    channels, height, width = input_size(model)
    channels = dict(args.model_arg).get("in_chans", channels)
    if args.size is not None:
        height = width = args.size
    image = torch.rand(1, channels, height, width)
    try:
        with torch.inference_mode():
            model(image)
    except Exception as error:  # a model may answer a wrong size with any
        raise InputError(
            f"model {args.model!r} does not run on an image of shape {tuple(image.shape)}: "
            f"{_first_line(error)} Give the size it takes with --size."
        ) from error
    return image


def _first_line(error: Exception) -> str:
    """Return an error's first line as a sentence, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
