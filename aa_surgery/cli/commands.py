"""What the commands do: thin, they call the package, write files, and return what to print."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.audit import audit
from aa_surgery.cli import files
from aa_surgery.cli.output import Output
from aa_surgery.cli.parser import SURGERY_OPTIONS
from aa_surgery.demo import run_demo
from aa_surgery.errors import InputError
from aa_surgery.evaluation import (
    ConsistencyResult,
    ImageFiles,
    iterate_batches,
    measure_consistency,
    preprocess_of,
)
from aa_surgery.models import load_model
from aa_surgery.reports import progress_bar
from aa_surgery.surgery import Plan, apply_antialias, plan_antialias

__all__ = ["apply", "consistency", "demo", "inspect"]

_DEFAULT_INPUT = (3, 224, 224)


def inspect(args: argparse.Namespace) -> Output:
    """Show the plan for a model; with `--audit`, what subsamples before and after it."""
    model = _model(args)
    plan = _plan(model, args)
    found: dict[str, Any] = {"model": args.model, "plan": plan.to_dict()}
    text = str(plan)
    if args.audit:
        image = _image(model, args)
        before = audit(model, image)
        after = audit(apply_antialias(model, plan=plan), image)
        found["audit"] = {"before": before.to_dict(), "after": after.to_dict()}
        text += f"\n\nAudit before:\n{before}\n\nAudit after:\n{after}"
    return Output(found, text)


def apply(args: argparse.Namespace) -> Output:
    """Anti-alias a model, write its weights and its plan, and show what was done."""
    out: Path = args.out
    plan_file: Path = args.save_plan or out.with_suffix(".plan.json")
    files.check_suffix(out)
    for path in (out, plan_file):
        files.check_writable(path)
    if plan_file == out:
        raise InputError(f"{out}: --out and --save-plan name the same file.")
    model = _model(args)
    plan = _plan(model, args)
    apply_antialias(model, plan=plan)
    report = audit(model, _image(model, args))
    with files.replacing(out) as weights, files.replacing(plan_file) as saved:
        files.write_weights(weights, model.state_dict())
        plan.save(saved)
    found = {
        "model": args.model,
        "weights": str(out),
        "plan_file": str(plan_file),
        "plan": plan.to_dict(),
        "audit": report.to_dict(),
    }
    return Output(found, f"{plan}\n\nAudit:\n{report}\n\nWeights: {out}\nPlan: {plan_file}")


def demo(args: argparse.Namespace) -> Output:
    """Run the demo, which says each part as soon as it is known."""
    options = {} if "filter" not in args else {"filter": args.filter}
    result = run_demo(args.out, images=args.images, quick=args.quick, seed=args.seed, **options)
    return Output(result.to_dict(), "")


def consistency(args: argparse.Namespace) -> Output:
    """Measure the shift consistency of a model, and of the anti-aliased one on request."""
    images = ImageFiles(args.images, limit=args.limit)
    model = _model(args)
    if not args.pretrained and args.checkpoint is None:
        warnings.warn(
            "neither --pretrained nor --checkpoint: the weights are those that MODEL is made "
            "with, as a rule random, and their consistency says nothing of a trained network.",
            stacklevel=2,
        )
    treat = args.antialias or bool(_surgery_options(args))
    # Whatever can be wrong is found out before the first, long measurement.
    plan = _plan(model, args) if treat else None
    _image(model, args)
    _on_device(model, args.device)
    results = {"original": _measure("original", model, images, args)}
    if plan is not None:
        apply_antialias(model, plan=plan)
        results["anti-aliased"] = _measure("anti-aliased", model, images, args)
    found = {
        "model": args.model,
        "images": str(args.images),
        "label_source": images.label_source,
        "results": {name: result.to_dict() for name, result in results.items()},
    }
    return Output(found, "\n".join(f"{name}: {result}" for name, result in results.items()))


def _measure(
    name: str, model: nn.Module, images: ImageFiles, args: argparse.Namespace
) -> ConsistencyResult:
    """Measure one model, with a bar on stderr while it runs."""
    size = args.size or _input_size(model)[1]
    batches = iterate_batches(images, preprocess_of(model, size), args.batch_size)
    with progress_bar(name, len(images)) as advance:
        return measure_consistency(
            model,
            batches,
            protocol=args.protocol,
            size=size,
            passes=args.passes,
            seed=args.seed,
            progress=advance,
        )


def _model(args: argparse.Namespace) -> nn.Module:
    """Build the model in eval mode, with the weights that were asked for."""
    if args.size is not None and args.size < 1:
        raise InputError(f"--size {args.size}: at least 1 px is needed.")
    if args.checkpoint is not None and not args.checkpoint.is_file():
        # Said before the model is built, which may take a download.
        raise InputError(f"checkpoint {args.checkpoint}: no such file.")
    model = load_model(args.model, pretrained=args.pretrained, **dict(args.model_arg))
    if args.checkpoint is not None:
        files.load_checkpoint(model, args.checkpoint)
    return model.eval()


def _surgery_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the surgery that were given on the command line."""
    return {name: getattr(args, name) for name in SURGERY_OPTIONS if name in args}


def _plan(model: nn.Module, args: argparse.Namespace) -> Plan:
    """Return the saved plan that was named, or the one that the options ask for."""
    options = _surgery_options(args)
    path = options.pop("plan", None)
    if path is None:
        return plan_antialias(model, **options)
    if options:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise InputError(f"--plan already says what {given} would. Give one or the other.")
    return Plan.load(path)


def _on_device(model: nn.Module, device: str) -> None:
    try:
        model.to(device)
    # torch says so by RuntimeError or AssertionError, by the kind of device.
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {_first_line(error)}") from error


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    """Return channels, height and width that the model was made for."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", _DEFAULT_INPUT)
    return channels, height, width


def _image(model: nn.Module, args: argparse.Namespace) -> Tensor:
    """Return one image of noise that the model accepts, `(1, C, H, W)`.

    Raises:
        InputError: The model does not run on an image of that size.
    """
    channels, height, width = _input_size(model)
    channels = dict(args.model_arg).get("in_chans", channels)
    if args.size is not None:
        height = width = args.size
    image = torch.rand(1, channels, height, width)
    try:
        with torch.inference_mode():
            model(image)
    # A model may answer a wrong size with any of these.
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"model {args.model!r} does not run on an image of shape {tuple(image.shape)}: "
            f"{_first_line(error)} Give the size it takes with --size."
        ) from error
    return image


def _first_line(error: Exception) -> str:
    """Return an error's first line as a sentence, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
