"""A short training of a small ResNet with each method, by `tools/cifar10.py`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import cifar10
from _cifar_table import table as table_of_runs
from _methods_variants import MISSING, UNTOUCHED

ARGUMENTS = ("cifar", "train_images", "epochs", "width", "seeds")


def work(options: argparse.Namespace) -> Iterator[str]:
    """Train what was not trained; say how many runs there are."""
    study = study_of(options)
    for results in cifar10.study(study):
        yield f"CIFAR-10: {len(results)} of {len(list(cifar10.runs(study)))} runs"


def table(options: argparse.Namespace) -> str:
    """Return the table, and the names of the runs that are missing."""
    study = study_of(options)
    results = cifar10.found(study)
    there = {result["filter"] for result in results}
    missing = [variant for variant in study.filters if variant not in there]
    note = f"\n\n{MISSING.capitalize()}: {', '.join(missing)}." if missing else ""
    title = (
        f"Seeds: {', '.join(map(str, options.seeds))}; {options.train_images} images, "
        f"{options.epochs} epochs, width {options.width}."
    )
    return f"{title}\n\n{table_of_runs(results, 'method')}{note}"


def study_of(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options of `tools/cifar10.py`."""
    command = [
        *(str(options.cifar), "--out", str(options.out / "cifar"), "--models", "resnet"),
        *("--filters", UNTOUCHED, *options.methods, "--seeds", *map(str, options.seeds)),
        *("--images", str(options.train_images), "--epochs", str(options.epochs)),
        *("--width", str(options.width), "--device", "cpu"),
    ]
    return cifar10.parse(command)
