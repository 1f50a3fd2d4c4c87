"""What the commands do: thin, they call the package, write files, and return what to print."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from aa_surgery.audit import audit
from aa_surgery.cli import files
from aa_surgery.cli.building import (
    build_model,
    build_plan,
    input_files,
    input_size,
    noise_image,
    surgery_options,
    to_device,
    warn_if_untrained,
    worn_plan,
)
from aa_surgery.cli.output import Output
from aa_surgery.demo import run_demo
from aa_surgery.errors import InputError
from aa_surgery.evaluation import (
    ConsistencyResult,
    ImageFiles,
    iterate_batches,
    measure_consistency,
    preprocess_of,
)
from aa_surgery.reports import progress_bar
from aa_surgery.surgery import apply_antialias

__all__ = ["apply", "consistency", "demo", "inspect"]


def inspect(args: argparse.Namespace) -> Output:
    """Show the plan for a model; with `--audit`, what subsamples before and after it."""
    model = build_model(args)
    plan = build_plan(model, args)
    found: dict[str, Any] = {"model": args.model, "plan": plan.to_dict()}
    text = str(plan)
    treated = worn_plan(model) is not None
    if treated:
        found["anti-aliased"] = True
        text = f"{args.model} is anti-aliased already, by this plan:\n{text}"
    if args.audit and treated:
        report = audit(model, noise_image(model, args))
        found["audit"] = {"after": report.to_dict()}
        text += f"\n\nAudit:\n{report}"
    elif args.audit:
        image = noise_image(model, args)
        before = audit(model, image)
        after = audit(apply_antialias(model, plan=plan), image)
        found["audit"] = {"before": before.to_dict(), "after": after.to_dict()}
        text += f"\n\nAudit before:\n{before}\n\nAudit after:\n{after}"
    return Output(found, text)


def apply(args: argparse.Namespace) -> Output:
    """Anti-alias a model, write its weights and its plan, and show what was done."""
    out, plan_file = files.outputs(args.out, args.save_plan, {}, input_files(args))
    model = build_model(args)
    plan = build_plan(model, args)
    if worn_plan(model) is None:
        apply_antialias(model, plan=plan)
    report = audit(model, noise_image(model, args))
    files.write_model(model, plan, out, plan_file)
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
    written = {"the picture": args.out / "demo.png", "the numbers": args.out / "demo.json"}
    if args.out.is_dir():
        files.check_outputs(written, {} if args.images is None else {"--images": args.images})
    result = run_demo(args.out, images=args.images, quick=args.quick, seed=args.seed, **options)
    return Output(result.to_dict(), "")


def consistency(args: argparse.Namespace) -> Output:
    """Measure the shift consistency of a model, and of the anti-aliased one on request."""
    images = ImageFiles(args.images, limit=args.limit)
    model = build_model(args)
    warn_if_untrained(args, "their consistency says nothing of a trained network")
    treat = args.antialias or bool(surgery_options(args))
    if treat and worn_plan(model) is not None:
        raise InputError(
            f"model {args.model!r} is anti-aliased already. Name the untouched one to compare the "
            "two, or leave out the options of the surgery."
        )
    # Whatever can be wrong is found out before the first, long measurement.
    plan = build_plan(model, args) if treat else None
    noise_image(model, args)
    to_device(model, args.device)
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
    size = args.size or input_size(model)[1]
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
