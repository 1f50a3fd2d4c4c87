"""Test every architecture, from a checkout: `aa-surgery sweep`, or the suite of outside models.

python tools/sweep.py --jobs 2 --report docs/coverage.md
python tools/sweep.py --suite outside --jobs 2 --report docs/outside.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from aa_surgery.cli import main as command
from aa_surgery.sweep import libraries, problems, read_results


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--suite", choices=("architectures", "outside"), default="architectures")
    chosen, rest = parser.parse_known_args(argv)
    if chosen.suite == "outside":
        return outside(rest)
    return command(["sweep", *rest])


def outside(argv: Sequence[str]) -> int:
    """Sweep the models of the libraries that are installed; 1 where a law breaks."""
    options = parse(argv)
    chosen = libraries.names(options.libraries or None, options.only)
    results = libraries.sweep_libraries(
        chosen, options.out, jobs=options.jobs, timeout=options.timeout, fresh=options.fresh
    )
    versions, rows = read_results(results)
    report = options.report or options.out / "outside.md"
    report.write_text(libraries.document(rows, versions, typed(options)))
    wrong = [p for p in problems(rows) if libraries.CANNOT not in p]
    print(*wrong, f"{len(rows)} models, {len(wrong)} problems. Table: {report}", sep="\n")
    return 1 if wrong else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sweep.py --suite outside", description=__doc__)
    parser.add_argument(
        "--libraries", nargs="+", default=(), choices=libraries.LIBRARIES, help="default: installed"
    )
    parser.add_argument("--only", nargs="+", default=(), help="patterns of library:model")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a model")
    parser.add_argument("--out", type=Path, default=Path("out/outside"), help="to resume from")
    parser.add_argument("--report", type=Path, help="file for the table")
    parser.add_argument("--fresh", action="store_true", help="begin again, whatever --out holds")
    return parser.parse_args(argv)


def typed(options: argparse.Namespace) -> str:
    """Return the command line, without what changes nothing in the table."""
    words = ["python", "tools/sweep.py", "--suite", "outside"]
    for option in ("libraries", "only"):
        if getattr(options, option):
            words += [f"--{option}", *getattr(options, option)]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
