"""The command `aa-surgery sweep`: its arguments, and what it does."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aa_surgery import sweep as package
from aa_surgery.cli import files
from aa_surgery.cli.numbers import number_above_0, whole_number
from aa_surgery.cli.output import Output
from aa_surgery.sweep.run import JOURNAL, RESULTS
from aa_surgery.writing import write_text

__all__ = ["add_sweep", "sweep"]


def add_sweep(commands: Any) -> Any:
    """Add the command's parser to `commands`, and return it."""
    parser = commands.add_parser(
        "sweep",
        help="test every architecture of timm, torchvision and others, and write a table",
        description="Anti-alias and audit every architecture of the installed libraries, test the "
        "laws on it, and write a table. A sweep that was interrupted goes on where it stopped. "
        "Exits with 1 where a law broke or an architecture could not be tested.",
    )

    def add_list(name: str, default: Sequence[str], text: str, **kwargs: Any) -> None:
        parser.add_argument(name, nargs="+", default=default, help=text, **kwargs)

    add_list("--only", (), "only architectures with such names", metavar="PATTERN")
    sources = package.installed_sources()
    add_list("--source", sources, "default: what is installed", choices=package.SOURCES)
    add_list("--laws", package.LAWS, "default: both", choices=package.LAWS)
    parser.add_argument(
        "--jobs",
        type=whole_number(1, 1024),
        default=1,
        metavar="N",
        help="worker processes (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=number_above_0,
        default=600.0,
        metavar="S",
        help="seconds for one group of laws on one architecture (default: %(default)g)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/sweep"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="the table (default: coverage.md in --out)"
    )
    parser.add_argument("--fresh", action="store_true", help="keep nothing of an earlier sweep")
    return parser


def sweep(args: argparse.Namespace) -> Output:
    """Test the laws on every architecture, and write the table of what holds."""
    report: Path = args.report or args.out / "coverage.md"
    args.out.mkdir(parents=True, exist_ok=True)
    written = {"--report": report, "rows": args.out / JOURNAL, "results": args.out / RESULTS}
    files.check_outputs(written, {})
    results = package.run_sweep(
        package.subjects(args.source, args.only),
        args.out,
        laws=args.laws,
        jobs=args.jobs,
        timeout=args.timeout,
        fresh=args.fresh,
    )
    versions, rows = package.read_results(results)
    write_text(report, package.coverage(rows, versions, _command(args)))
    wrong = package.problems(rows)
    text = f"{package.summary(rows)}\n\nTable: {report}\nResults: {results}"
    found = {"versions": versions, "report": str(report), "rows": len(rows), "problems": wrong}
    return Output(found, text, 1 if wrong else 0)


def _command(args: argparse.Namespace) -> str:
    """Return the command line, without what changes nothing in the table."""
    words = ["aa-surgery", "sweep"]
    for option, given, default in (
        ("--source", args.source, package.installed_sources()),
        ("--laws", args.laws, package.LAWS),
        ("--only", args.only, ()),
    ):
        if tuple(given) != default:
            words += [option, *given]
    return shlex.join(words)
