"""Interleaved timing of contenders in one process, and its table."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Case:
    """Contenders for one job; `baseline` is the one that ratios are taken to.

    `same` pairs contenders, ours and a peer, that compute the same function. `build` makes the
    contenders when the case's turn comes, so that one case's tensors are gone before the next's.
    """

    suite: str
    name: str
    baseline: str
    build: Callable[[], dict[str, Callable[[], Any]]]
    same: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of a ratio over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Row:
    """What one case gave: the baseline in `unit`, and each contender as a ratio to it."""

    suite: str
    name: str
    baseline: str
    value: float
    unit: str
    rounds: int
    ratios: dict[str, Ratio] = field(default_factory=dict)
    versus: dict[str, Ratio] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds of the row."""
        return asdict(self)


def summarise(values: Sequence[float]) -> Ratio:
    """Return median and quartiles."""
    if len(values) < 2:
        return Ratio(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Ratio(median(values), low, high)


def time_case(case: Case, rounds: int, budget: float, seed: int) -> Row:
    """Time every contender once a round, in shuffled order, until `rounds` or `budget` (s) is up.

    A contender's ratio is taken within each round, so that a slow phase of a shared machine
    weighs on both of its sides; at least three rounds are run.
    """
    calls = case.build()
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    repeats = _repeats(calls[case.baseline])
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for done in range(rounds):
            if done >= 3 and time.perf_counter() - begin > budget:
                break
            shuffle(order)
            for name in order:
                start = time.perf_counter()
                for _ in range(repeats):
                    calls[name]()
                seconds[name].append((time.perf_counter() - start) / repeats)
    finally:
        gc.enable()
    base = seconds[case.baseline]
    ratios = {name: _over(t, base) for name, t in seconds.items() if name != case.baseline}
    versus = {
        f"{ours} / {peer}": _over(seconds[ours], seconds[peer])
        for ours, peer in case.same
        if peer in seconds
    }
    value = 1e3 * median(base)
    return Row(case.suite, case.name, case.baseline, value, "ms", len(base), ratios, versus)


def _over(times: Sequence[float], base: Sequence[float]) -> Ratio:
    return summarise([t / b for t, b in zip(times, base, strict=True)])


def _repeats(call: Callable[[], Any]) -> int:
    """Return how many calls make about a millisecond, far above the clock's grain."""
    start = time.perf_counter()
    call()
    return max(1, round(1e-3 / max(time.perf_counter() - start, 1e-6)))


def progress(cases: Sequence[Case]) -> Iterator[Case]:
    """Yield the cases, showing progress on stderr."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        for i, case in enumerate(cases, 1):
            print(f"[{i}/{len(cases)}] {case.suite}: {case.name}", file=sys.stderr)
            yield case
        return
    yield from track(cases, "benchmark", console=Console(stderr=True))


def markdown(rows: Iterable[Row]) -> str:
    """Return one table for each group of rows that share a baseline's meaning and contenders."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.baseline, row.unit, *row.ratios, *row.versus), []).append(row)
    return "\n\n".join(_table(group) for group in groups.values())


def _table(rows: Sequence[Row]) -> str:
    first = rows[0]
    head = ["case", f"{first.baseline} ({first.unit})", *first.ratios, *first.versus]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row.name, f"{row.value:.2f}", *map(str, row.ratios.values())]
        cells += [f"**{ratio.median:.2f}**" for ratio in row.versus.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
