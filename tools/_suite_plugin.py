"""pytest plugin of the tools that run a host's own tests: choose tests, keep a record.

A host's plugin adds what is swapped: `_timm_plugin.py`, `_mmpretrain_plugin.py`. The test files
stay as they are.
"""

from __future__ import annotations

import faulthandler
import json
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
import torch

VARIANTS = ("original", "antialiased")


def add_options(parser: pytest.Parser) -> pytest.OptionGroup:
    group = parser.getgroup("aa_surgery")
    group.addoption("--aa-variant", choices=VARIANTS, default="original")
    group.addoption("--aa-options", type=json.loads, default=None, help="antialias=, as JSON")
    group.addoption("--aa-items", type=Path, help="file of the node ids to run; others are not")
    group.addoption("--aa-limit", type=float, default=0.0, help="seconds a test; 0: no limit")
    group.addoption(
        "--aa-deadline", type=float, default=0.0, help="start no test after time.time()"
    )
    group.addoption("--aa-log", type=Path, required=True, help="file for the record, JSON lines")
    return group


class Recorder:
    """Selects the tests, and writes a line for each that starts and each that ends.

    Attributes:
        built: Models that the running test made: `"models"`, and how many of them came out with
            anti-aliasing, `"treated"`.
    """

    def __init__(self, config: pytest.Config, swap: Callable[[Counter[str], Any], None]) -> None:
        self.log: TextIO = config.option.aa_log.open("a")
        self.trace: TextIO = config.option.aa_log.with_suffix(".trace").open("a")
        self.limit: float = config.option.aa_limit
        self.deadline: float = config.option.aa_deadline
        self.built: Counter[str] = Counter()
        self.reports: list[pytest.TestReport] = []
        faulthandler.enable(self.trace)
        self.write(options=config.option.aa_options)
        if config.option.aa_variant == "antialiased":
            swap(self.built, config.option.aa_options)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if config.option.aa_items:
            there = {item.nodeid: item for item in items}
            wanted = config.option.aa_items.read_text().split("\n")
            items[:] = [there[name] for name in wanted if name in there]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.write(collected=[item.nodeid for item in session.items])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self.write(uncollected=report.nodeid, message=last_line(report.longreprtext))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.write(start=item.nodeid)
        self.reports.clear()
        self.built.clear()
        # The tests draw weights and images without a seed; both runs must draw the same.
        seed = zlib.crc32(item.nodeid.encode())
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the generator that the tests draw from
        torch.manual_seed(seed)
        start = time.perf_counter()
        if self.limit:
            # Kills the process from a thread of its own, whatever C++ code the test hangs in.
            faulthandler.dump_traceback_later(self.limit, exit=True, file=self.trace)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            seconds = round(time.perf_counter() - start, 3)
            outcome = summed(self.reports)
            self.write(end=item.nodeid, **outcome, seconds=seconds, **self.built)
            if self.deadline and time.time() > self.deadline:
                item.session.shouldstop = "time is up"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def write(self, **line: Any) -> None:
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()


def summed(reports: list[pytest.TestReport]) -> dict[str, str]:
    """Return the outcome of a test's phases, and why it did not pass."""
    failed = [r for r in reports if r.failed]
    if failed:
        crash = getattr(failed[0].longrepr, "reprcrash", None)
        trace = failed[0].longreprtext
        message = crash.message if crash else last_line(trace)
        return {"outcome": "failed", "message": message, "trace": trace[-4000:]}
    skipped = [r for r in reports if r.skipped]
    if skipped:
        reason = skipped[0].longrepr
        text = str(reason[2] if isinstance(reason, tuple) else reason)
        return {"outcome": "skipped", "message": text}
    return {"outcome": "passed" if reports else "skipped", "message": ""}


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("E").strip() if lines else ""
