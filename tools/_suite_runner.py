"""Run tests in processes that may crash or hang, and read what they recorded."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIANTS = ("original", "antialiased")
SHARD = 400  # tests a process: few enough to share out, many enough to pay for the imports

Result = dict[str, Any]

NOT_RUN: Result = {"outcome": "not run", "message": ""}


class ToolError(Exception):
    """The run cannot start or go on; the message says why and the way out."""


@dataclass
class Runner:
    """Runs chosen tests of `files`.

    Attributes:
        plugin: Module for `pytest -p` that swaps the models, `_timm_plugin`.
        tests: Folder of the host's tests; node ids begin with its name.
        files: Test files in it.
        work: Folder for logs. Results in the logs that lie there already are not made again.
        jobs: Processes at a time.
        limit: Seconds a test.
        antialias: Options of anti-aliasing, as JSON.
        deadline: Time, as `time.time()`, after which no test of `run` starts; 0 for none.
    """

    plugin: str
    tests: Path
    files: list[Path]
    work: Path
    jobs: int
    limit: float
    antialias: str
    deadline: float = 0.0
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def collect(self, chosen: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the node ids that the original's run has, and the files that gave an error."""
        _, lines = self.pytest("original", ["--collect-only", "-q", *chosen])
        items = [item for line in lines for item in line.get("collected", ())]
        failed = {x["uncollected"]: x["message"] for x in lines if "uncollected" in x}
        return items, failed

    def run(
        self, items: Sequence[str], variants: Sequence[str] = VARIANTS
    ) -> dict[str, dict[str, Result]]:
        """Return for each variant the result of each test that it collects."""
        results = {v: self.kept(v, items) if v in variants else {} for v in VARIANTS}
        left = {v: [item for item in items if item not in results[v]] for v in variants}
        busy = sum(1 for v in variants if left[v]) or 1
        pieces = max(-(-self.jobs // busy), -(-len(items) // SHARD))
        shards = [(v, left[v][i::pieces]) for i in range(pieces) for v in variants]
        with ThreadPoolExecutor(self.jobs) as pool:
            done = pool.map(lambda shard: self.run_shard(*shard), shards)
            for (variant, _), shard in zip(shards, done, strict=True):
                results[variant].update(shard)
                print(f"{variant}: {len(results[variant])}/{len(items)}", file=sys.stderr)
        return results

    def run_ours_first(self, items: Sequence[str]) -> dict[str, dict[str, Result]]:
        """Run the original's tests only where ours do not pass."""
        ours = self.run(items, ["antialiased"])["antialiased"]
        rest = [i for i in items if ours.get(i, {}).get("outcome") not in ("passed", "not run")]
        self.deadline = 0.0  # few, and without them the others mean nothing
        original = self.run(rest, ["original"])["original"]
        return {"original": dict.fromkeys(items, NOT_RUN) | original, "antialiased": ours}

    def kept(self, variant: str, items: Sequence[str]) -> dict[str, Result]:
        """Return the results of `items` that lie in `work`, from a run that was ended.

        Raises:
            ToolError: They were made with other options of anti-aliasing.
        """
        results = {}
        for log in sorted(self.work.glob(f"{variant}-*.log")):
            lines = read(log)
            options = {json.dumps(line["options"]) for line in lines if "options" in line}
            if variant != "original" and options - {json.dumps(json.loads(self.antialias))}:
                raise ToolError(
                    f"--keep {self.work}: {log.name} has results with antialias={options.pop()}, "
                    f"and this run has {self.antialias}. Name another folder, or delete the file."
                )
            results |= {line["end"]: line for line in lines if line.get("end") in items}
        return results

    def run_shard(self, variant: str, items: list[str]) -> dict[str, Result]:
        """Run `items`, in as many processes as crash and one more."""
        results: dict[str, Result] = {}
        while items and not self.late():
            file = self.path("items-", "")
            file.write_text("\n".join(items))
            chosen = [f"--aa-items={file}", f"--aa-deadline={self.deadline}"]
            process, lines = self.pytest(variant, chosen)
            ended = {x["end"]: x for x in lines if "end" in x}
            started = [x["start"] for x in lines if "start" in x]
            results |= ended
            lost = [item for item in started if item not in ended]
            for item in lost:
                results[item] = {"end": item, **died(process, self.limit)}
                with process["log"].open("a") as log:
                    log.write(json.dumps(results[item]) + "\n")
            if not lost:
                break
            items = [item for item in items if item not in results]
        if self.late():
            results = dict.fromkeys(items, NOT_RUN) | results
        return results

    def late(self) -> bool:
        return bool(self.deadline) and time.time() > self.deadline

    def pytest(self, variant: str, arguments: list[str]) -> tuple[Result, list[Result]]:
        """Run pytest once; return how it ended, and the lines that the plugin wrote."""
        log = self.path(f"{variant}-", ".log")
        command = [sys.executable, "-m", "pytest", "-p", self.plugin, f"--aa-log={log}"]
        command += [f"--aa-variant={variant}", f"--aa-options={self.antialias}"]
        command += [f"--aa-limit={self.limit}", f"--rootdir={self.tests.parent}"]
        # Plugins that change how tests run would change what is compared.
        command += ["-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:xdist"]
        command += ["--continue-on-collection-errors", "--tb=short", "-o", "addopts="]
        folder = self.folder()
        process = subprocess.run(
            [*command, *arguments, *map(str, self.files)],
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        lines = read(log) if log.exists() else []
        if not any("collected" in line for line in lines):
            raise ToolError(
                f"pytest ended with status {process.returncode} before it had collected the tests "
                f"({variant}):\n{process.stdout[-3000:]}"
            )
        trace = log.with_suffix(".trace").read_text()
        return {"status": process.returncode, "trace": trace, "log": log}, lines

    def path(self, prefix: str, suffix: str) -> Path:
        paths = (self.work / f"{prefix}{number}{suffix}" for number in self.numbers)
        return next(path for path in paths if not path.exists())

    def folder(self) -> Path:
        """Return an empty folder: in a checkout, Python would import the host's sources."""
        folder = self.path("cwd-", "")
        folder.mkdir()
        return folder


def read(log: Path) -> list[Result]:
    # A run that was ended may have left half a line.
    return [
        json.loads(line) for line in log.read_text().splitlines(keepends=True) if line[-1:] == "\n"
    ]


def died(process: Result, limit: float) -> Result:
    """Return the result of a test during which its process ended."""
    if "Timeout (" in process["trace"]:
        text = f"no end after {limit:g} s"
        return {"outcome": "timeout", "message": text, "trace": process["trace"][:2000]}
    text = f"the process ended with status {process['status']}"
    return {"outcome": "crashed", "message": text, "trace": process["trace"][:2000]}


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that runs tests in `folder`.

    Tests write to fixed names in the folder for temporary files, and read them back: each process
    has one of its own.
    """
    defaults = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    package = str(Path(__file__).parents[1])
    paths = [here, package, *filter(None, [os.environ.get("PYTHONPATH")])]
    # pytest reads these, too: the user's options are for the user's tests.
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(folder)}
    return {**defaults, **own, **fixed}
