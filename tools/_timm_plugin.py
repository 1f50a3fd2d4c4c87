"""pytest plugin for `run_timm_tests.py`: choose timm's tests, swap the models, keep a record.

Loaded by `-p _timm_plugin` into pytest runs over timm's own tests, whose files stay as they are.

Modifications, with `--aa-variant antialiased`: `timm.create_model` looks its constructor up by one
call of `model_entrypoint`, in `timm.models._factory`. There, and nowhere else, `<name>` is answered
with the entry point registered as `aa_<name>`: what a user gets who writes `aa_` before the name.
Listings, pretrained configurations and constructors named by the tests themselves stay timm's, so
that the tests, their parameters and their ids are the same in both runs.
"""

from __future__ import annotations

import faulthandler
import fnmatch
import functools
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
import timm.models
import torch
from torch import nn

VARIANTS = ("original", "antialiased")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aa_surgery")
    group.addoption("--aa-variant", choices=VARIANTS, default="original")
    group.addoption("--aa-options", type=json.loads, default=None, help="antialias=, as JSON")
    group.addoption("--aa-models", default="", help="patterns of model names, comma-separated")
    group.addoption("--aa-short", type=int, default=0, help="keep tests of this many models whole")
    group.addoption("--aa-all-tags", action="store_true", help="all pretrained tags of a model")
    group.addoption("--aa-items", type=Path, help="file of the node ids to run; others are not")
    group.addoption("--aa-limit", type=float, default=0.0, help="seconds a test; 0: no limit")
    group.addoption(
        "--aa-deadline", type=float, default=0.0, help="start no test after time.time()"
    )
    group.addoption("--aa-log", type=Path, required=True, help="file for the record, JSON lines")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config), "aa_surgery_recorder")


class Recorder:
    """Selects the tests, and writes a line for each that starts and each that ends.

    Attributes:
        built: Models that the running test made by name: `"models"`, and how many of them came
            out with anti-aliasing, `"treated"`.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.log: TextIO = config.option.aa_log.open("a")
        self.trace: TextIO = config.option.aa_log.with_suffix(".trace").open("a")
        self.limit: float = config.option.aa_limit
        self.deadline: float = config.option.aa_deadline
        self.built: Counter[str] = Counter()
        self.reports: list[pytest.TestReport] = []
        faulthandler.enable(self.trace)
        if config.option.aa_variant == "antialiased":
            swap_entrypoints(self.built, config.option.aa_options)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if config.option.aa_items:
            there = {item.nodeid: item for item in items}
            wanted = config.option.aa_items.read_text().split("\n")
            items[:] = [there[name] for name in wanted if name in there]
            return
        patterns = [p for p in config.option.aa_models.split(",") if p]
        counts = Counter(function_of(item) for item in items)
        short = {name for name, count in counts.items() if count <= config.option.aa_short}
        items[:] = [i for i in items if function_of(i) in short or selected(i, patterns)]
        if not config.option.aa_all_tags:
            items[:] = first_tags(items)

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
        # timm's tests draw weights and images without a seed; both runs must draw the same.
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
            outcome, message = summed(self.reports)
            self.write(
                end=item.nodeid,
                outcome=outcome,
                message=message,
                seconds=seconds,
                **self.built,
            )
            if self.deadline and time.time() > self.deadline:
                item.session.shouldstop = "time is up"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def write(self, **line: Any) -> None:
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()


def function_of(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def models_of(item: pytest.Item) -> list[str]:
    """Return the names of models among a test's parameters."""
    call = getattr(item, "callspec", None)
    values = list(call.params.values()) if call else []
    return [v for v in values if isinstance(v, str) and timm.models.is_model(v)]


def selected(item: pytest.Item, patterns: list[str]) -> bool:
    """Return whether the models of a test match a pattern; a test of no named model does."""
    names = models_of(item)
    names += [timm.models.get_arch_name(name) for name in names]
    return not (patterns and names) or any(fnmatch.fnmatch(n, p) for n in names for p in patterns)


def first_tags(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return `items` without further pretrained tags of an architecture that a test has had."""
    seen: dict[tuple[str, ...], str] = {}
    kept = []
    for item in items:
        names = models_of(item)
        tagged = [name for name in names if "." in name]
        key = (function_of(item), *map(timm.models.get_arch_name, names))
        if not tagged or seen.setdefault(key, tagged[0]) == tagged[0]:
            kept.append(item)
    return kept


def swap_entrypoints(built: Counter[str], options: Any) -> None:
    """Let `timm.create_model("<name>")` build `aa_<name>`, and count what it builds."""
    from timm.models import _factory

    import aa_surgery  # noqa: F401  # registers the names
    from aa_surgery.surgery.classes import Antialiased

    def model_entrypoint(name: str) -> Callable[..., nn.Module]:
        ours = name if name.startswith("aa_") else f"aa_{name}"
        if not timm.models.is_model(ours):  # registered by the test itself
            return timm.models.model_entrypoint(name)
        entry = timm.models.model_entrypoint(ours)

        @functools.wraps(entry)
        def build(*args: Any, **kwargs: Any) -> nn.Module:
            model = entry(*args, antialias=options, **kwargs)
            built["models"] += 1
            built["treated"] += any(isinstance(m, Antialiased) for m in model.modules())
            return model

        return build

    _factory.model_entrypoint = model_entrypoint


def summed(reports: list[pytest.TestReport]) -> tuple[str, str]:
    """Return the outcome of a test's phases, and why it did not pass."""
    failed = [r for r in reports if r.failed]
    if failed:
        crash = getattr(failed[0].longrepr, "reprcrash", None)
        text = crash.message if crash else last_line(failed[0].longreprtext)
        return "failed", text
    skipped = [r for r in reports if r.skipped]
    if skipped:
        reason = skipped[0].longrepr
        return "skipped", str(reason[2] if isinstance(reason, tuple) else reason)
    return ("passed" if reports else "skipped"), ""


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("E").strip() if lines else ""
