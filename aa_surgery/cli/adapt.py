"""The command `aa-surgery adapt`: its arguments, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from aa_surgery.adapt.checkpoint import Checkpoint
from aa_surgery.adapt.run import adapt_model
from aa_surgery.cli import files
from aa_surgery.cli.building import (
    build_model,
    build_plan,
    input_files,
    input_size,
    noise_image,
    to_device,
    warn_if_untrained,
    worn_plan,
)
from aa_surgery.cli.numbers import number_above_0, whole_number
from aa_surgery.cli.output import Output
from aa_surgery.errors import InputError
from aa_surgery.evaluation import ImageFiles

__all__ = ["adapt", "add_adapt"]

_MINUTES = 5.0
_MOST_THREADS = 1024


def add_adapt(commands: Any) -> Any:
    """Add the command's parser to `commands`, and return it."""
    parser = commands.add_parser(
        "adapt",
        help="anti-alias a pretrained model and keep its accuracy, without labels",
        description="Anti-alias MODEL, correct its normalisations, and distill the untouched model "
        "into it, on some of the photographs; after each step, measure it on the others: top-1 "
        "against the original's own predictions and, where the folders name the classes, against "
        "those; shift consistency; minutes.",
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="PATH",
        help="a folder of photographs, or a zip of one; no labels needed",
    )
    parser.add_argument(
        "--adapt-images",
        type=int,
        default=250,
        metavar="N",
        help="adapt on N of them, at most half, and measure on the others (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=whole_number(),
        metavar="N",
        help="use N photographs, evenly spaced (default: all)",
    )
    _add_distillation(parser)
    for name, least, default, text in (
        ("--passes", 1, 1, "pairs of views a photograph"),
        ("--seed", 0, 0, "seed of the views and of the training"),
    ):
        parser.add_argument(
            name,
            type=whole_number(least),
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--device", default="cpu", help="e.g. cuda, cuda:1, mps (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1, _MOST_THREADS),
        metavar="N",
        help="of the CPU (default: torch's)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the weights: .safetensors, or .pth, .pt or .bin for torch.save's format",
    )
    parser.add_argument(
        "--save-plan",
        type=Path,
        metavar="FILE",
        help="the plan (default: --out with the suffix .plan.json)",
    )
    return parser


def _add_distillation(parser: Any) -> None:
    group = parser.add_argument_group("distillation")
    budget = group.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=whole_number(), metavar="N", help="optimizer steps")
    budget.add_argument(
        "--minutes",
        type=number_above_0,
        metavar="M",
        help=f"time instead (default: {_MINUTES:g})",
    )
    budget.add_argument("--no-distill", action="store_true", help="recalibrate alone")
    group.add_argument(
        "--train",
        choices=("all", "norms", "treated"),
        default="all",
        help="all weights, those of the norms, or of what was treated (default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="keep the training in FILE, every 30 s; go on from it if it is there",
    )


def adapt(args: argparse.Namespace) -> Output:
    """Adapt a model, say each measurement as soon as it is known, and write the weights."""
    paths = _outputs(args)
    images = ImageFiles(args.images, limit=args.limit)
    model = build_model(args)
    warn_if_untrained(args, "there is nothing to keep")
    # Whatever can be wrong is found out before the first, long measurement.
    distilling = _distilling(args)
    if worn_plan(model) is not None:
        raise InputError(f"model {args.model!r} is anti-aliased already. Adapt the untouched one.")
    plan = build_plan(model, args)
    noise_image(model, args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    to_device(model, args.device)
    print(f"{args.model}, {len(plan.edits)} ops to blur")
    result = adapt_model(
        model,
        images,
        plan=plan,
        distilling=distilling,
        adapt_images=args.adapt_images,
        size=args.size or input_size(model)[1],
        passes=args.passes,
        seed=args.seed,
        say=_say,
    )
    found = {"model": args.model, "images": str(args.images), "plan": plan.to_dict()}
    found |= result.to_dict()
    if paths is not None:
        weights, plan_file = paths
        files.write_model(model, plan, weights, plan_file)
        print(f"\nWeights: {weights}\nPlan: {plan_file}")
        found |= {"weights": str(weights), "plan_file": str(plan_file)}
    return Output(found, "")


def _outputs(args: argparse.Namespace) -> tuple[Path, Path] | None:
    """Return where weights and plan go, None where nowhere."""
    written = {} if args.resume is None else {"--resume": args.resume}
    if args.out is None:
        if args.save_plan is not None:
            raise InputError("--save-plan goes with --out FILE, the weights that it is for.")
        files.check_outputs(written, input_files(args))
        return None
    return files.outputs(args.out, args.save_plan, written, input_files(args))


def _distilling(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the keywords of `distill`, None where it is not wanted."""
    if args.no_distill:
        if args.resume is not None:
            raise InputError("--resume keeps the distillation, which --no-distill leaves out.")
        return None
    Checkpoint(args.resume, {})  # its folder is there
    chosen = {"train": args.train, "checkpoint": args.resume}
    if args.steps is not None:
        return {**chosen, "steps": args.steps}
    return {**chosen, "minutes": _MINUTES if args.minutes is None else args.minutes}


def _say(line: str) -> None:
    print(line, flush=True)
