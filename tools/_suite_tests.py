"""What the tools that run a host's own tests have in common: options, test files, the result."""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from _command import said
from _suite_compare import compared, regressions
from _suite_runner import VARIANTS, Runner, ToolError

from aa_surgery.reports.versions import installed_version

Run = Callable[[argparse.Namespace, Path], dict[str, Any]]


def add_options(parser: argparse.ArgumentParser, host: str) -> None:
    add = parser.add_argument
    add("--tests", type=Path, help=f"a {host} checkout, its tests/ folder, or an sdist .tar.gz")
    add("-k", default="", dest="keyword", help="as pytest's -k")
    add("-m", default="", dest="marker", help="as pytest's -m")
    add("--quick", action="store_true", help=f"{host}'s models only where ours do not pass")
    add("--again", type=Path, help="an earlier --out: run the tests that did not pass with ours")
    add("--antialias", default="null", help="antialias=, as JSON (%(default)s: the default)")
    add("--jobs", type=int, default=1, help="processes (%(default)s)")
    add("--limit", type=float, default=360.0, help="seconds a test (%(default)s)")
    add("--budget", type=float, help="seconds after which no further test starts")
    add("--keep", type=Path, help="folder of logs: a run that was ended goes on where it was")
    add("--out", type=Path, help="file for every result, as JSON")
    add("--write", type=Path, help="file for the summary in Markdown, which is printed as well")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    options = parser.parse_args(argv)
    try:
        json.loads(options.antialias)
    except ValueError as error:
        parser.error(f"--antialias {options.antialias!r} is not JSON: {error}")
    return options


def compare(
    options: argparse.Namespace,
    run: Run,
    document: Callable[[dict[str, Any]], str],
    command: Sequence[str],
    packages: Sequence[str],
) -> int:
    """Run the tests, write the result, and return the exit status.

    Args:
        options: What `parse` returned.
        run: Gives the result; the folder it is given is kept if the user wants it.
        document: Gives the summary of a result.
        command: The tool, and its arguments.
        packages: Names of the distributions whose versions matter.
    """
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        place: Any = nullcontext(options.keep.resolve())
    else:
        place = tempfile.TemporaryDirectory(prefix="own-tests-")
    with place as folder:
        try:
            result = run(options, Path(folder))
        except ToolError as error:
            print(f"{Path(command[0]).stem}: {error}", file=sys.stderr)
            return 2
    result["date"] = f"{date.today()}"
    result["command"] = said(["python", *command])
    result["versions"] = {name: installed_version(name) for name in packages}
    text = document(result)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.write:
        options.write.write_text(text)
    return 1 if regressions(result) else 0


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a `Runner` is told of the options."""
    return {name: getattr(options, name) for name in ("jobs", "limit", "antialias")}


def outcomes(
    runner: Runner,
    options: argparse.Namespace,
    chosen: list[str],
    expected: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Collect once, run every test for both variants, and join the results.

    Args:
        runner: Runs them.
        options: The user's.
        chosen: Options of the plugin that choose tests.
        expected: Tests that cannot pass with anti-aliasing, as `file::function`, with the reason.
    """
    if options.again:
        items = regressions(json.loads(options.again.read_text()))
        uncollected: dict[str, str] = {}
    else:
        chosen += ["-k", options.keyword] if options.keyword else []
        chosen += ["-m", options.marker] if options.marker else []
        items, uncollected = runner.collect(chosen)
    if not items and not options.again:
        raise ToolError("no test was chosen. Widen --files, -k or -m, or the models.")
    if options.budget:
        runner.deadline = time.time() + options.budget
        random.Random(0).shuffle(items)  # what is run is then a fair sample
    results = runner.run_ours_first(items) if options.quick else runner.run(items)
    return {
        "uncollected": uncollected,
        "tests": compared(items, *(results[v] for v in VARIANTS), expected),
    }


def found_tests(path: Path | None, requirement: str, work: Path) -> Path:
    """Return the folder of a host's tests, unpacked or fetched if need be.

    Args:
        path: A checkout, its `tests/` folder or an sdist; None: pip fetches the sdist.
        requirement: What pip is asked for, `timm==1.0.31`.
        work: Folder for what is fetched or unpacked.

    Raises:
        ToolError: There is none at `path`, or pip cannot fetch them.
    """
    host = requirement.partition("==")[0]
    if path is None:
        path = fetched(requirement, work)
    if path.is_file() and path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            # Only these: with the host's sources beside them, the tests would import those.
            parts = [
                m for m in archive if re.fullmatch(r"[^/]+/(pyproject\.toml|tests/.*)", m.name)
            ]
            archive.extractall(work / "sdist", members=parts, filter="data")
        path = next(iter((work / "sdist").glob("*/tests")), path)
    elif (path / "tests").is_dir():
        path = path / "tests"
    if not any(path.rglob("test_*.py")):
        raise ToolError(
            f"--tests {path}: no test_*.py there. Give a checkout of {host}, its tests/ folder or "
            f"an sdist .tar.gz; an installed {host} and its wheel have no tests."
        )
    return path.resolve()


def fetched(requirement: str, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    pattern = requirement.replace("==", "-") + ".tar.gz"
    if not (work / pattern).is_file():
        pip = subprocess.run(
            [*command, "--dest", str(work), requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if not (work / pattern).is_file():
            raise ToolError(
                f"pip could not download the sdist of {requirement}: {pip.stderr.strip()[-500:]}\n"
                "Name a checkout or an sdist: --tests PATH."
            )
    return work / pattern


def matching(folder: Path, patterns: str) -> list[Path]:
    """Return the files of `folder` that match comma-separated patterns.

    Raises:
        ToolError: None does.
    """
    files = [f for p in patterns.split(",") if p for f in sorted(folder.glob(p))]
    if not files:
        raise ToolError(f"{folder} has no file that matches --files {patterns!r}.")
    return files
