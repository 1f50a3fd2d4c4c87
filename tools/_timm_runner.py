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
        files: Test files of timm.
        work: Folder for logs, and the working directory of the tests.
        jobs: Processes at a time.
        limit: Seconds a test.
        antialias: The `antialias=` keyword of the entry points, as JSON.
        deadline: Time, as `time.time()`, after which no test of `run` starts; 0 for none.
    """

    files: list[Path]
    work: Path
    jobs: int
    limit: float
    antialias: str
    deadline: float = 0.0
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def collect(self, chosen: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the node ids that timm's own run has, and the files that gave an error."""
        _, lines = self.pytest("original", ["--collect-only", "-q", *chosen])
        items = [item for line in lines for item in line.get("collected", ())]
        failed = {x["uncollected"]: x["message"] for x in lines if "uncollected" in x}
        return items, failed

    def run(
        self, items: Sequence[str], variants: Sequence[str] = VARIANTS
    ) -> dict[str, dict[str, Result]]:
        """Return for each variant the result of each test that it collects."""
        pieces = max(-(-self.jobs // len(variants)), -(-len(items) // SHARD))
        shards = [(v, list(items[i::pieces])) for i in range(pieces) for v in variants]
        results: dict[str, dict[str, Result]] = {v: {} for v in VARIANTS}
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

    def run_shard(self, variant: str, items: list[str]) -> dict[str, Result]:
        """Run `items`, in as many processes as crash and one more."""
        results: dict[str, Result] = {}
        while items and not self.late():
            file = self.path("items")
            file.write_text("\n".join(items))
            chosen = [f"--aa-items={file}", f"--aa-deadline={self.deadline}"]
            process, lines = self.pytest(variant, chosen)
            ended = {x.pop("end"): x for x in lines if "end" in x}
            started = [x["start"] for x in lines if "start" in x]
            results |= ended
            lost = [item for item in started if item not in ended]
            for item in lost:
                results[item] = died(process, self.limit)
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
        log = self.path("log")
        command = [sys.executable, "-m", "pytest", "-p", "_timm_plugin", f"--aa-log={log}"]
        command += [f"--aa-variant={variant}", f"--aa-options={self.antialias}"]
        command += [f"--aa-limit={self.limit}", f"--rootdir={self.files[0].parent.parent}"]
        # Plugins that change how tests run would change what is compared.
        command += ["-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:xdist"]
        command += ["--continue-on-collection-errors", "--tb=short", "-o", "addopts="]
        process = subprocess.run(
            [*command, *arguments, *map(str, self.files)],
            cwd=self.folder(),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if not any("collected" in line for line in lines):
            raise ToolError(
                f"pytest ended with status {process.returncode} before it had collected the tests "
                f"({variant}):\n{process.stdout[-3000:]}"
            )
        trace = log.with_suffix(".trace").read_text()
        return {"status": process.returncode, "trace": trace}, lines

    def path(self, suffix: str) -> Path:
        return self.work / f"{next(self.numbers)}.{suffix}"

    def folder(self) -> Path:
        """Return an empty folder: in a checkout, Python would import timm from its sources."""
        folder = self.path("cwd")
        folder.mkdir()
        return folder


def died(process: Result, limit: float) -> Result:
    """Return the result of a test during which its process ended."""
    if "Timeout (" in process["trace"]:
        text = f"no end after {limit:g} s"
        return {"outcome": "timeout", "message": text, "trace": process["trace"][:2000]}
    text = f"the process ended with status {process['status']}"
    return {"outcome": "crashed", "message": text, "trace": process["trace"][:2000]}


def environment() -> dict[str, str]:
    defaults = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    package = str(Path(__file__).parents[1])
    paths = [here, package, *filter(None, [os.environ.get("PYTHONPATH")])]
    # pytest reads these, too: the user's options are for the user's tests.
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return {**defaults, **own, "PYTHONPATH": os.pathsep.join(paths)}
