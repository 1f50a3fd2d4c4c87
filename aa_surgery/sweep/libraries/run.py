"""Go over the libraries' models in worker processes, and write down what holds."""

from __future__ import annotations

import logging
import resource
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from aa_surgery.reports import progress_bar
from aa_surgery.reports.versions import installed_version
from aa_surgery.sweep.libraries.examination import examine_specimen
from aa_surgery.sweep.libraries.registry import LIBRARIES, specimen
from aa_surgery.sweep.pool import Outcome, run_tasks
from aa_surgery.sweep.rows import Journal, Row, write_results
from aa_surgery.sweep.run import JOURNAL, RESULTS, versions

__all__ = ["CANNOT", "examine", "sweep_libraries"]

CANNOT = "cannot build or run untouched: "
"""What a row's failure begins with where it is not ours."""

_SOURCE, _LAWS = "outside", "outside"
_MEMORY = 14 << 30
"""Address space of a worker, bytes: a model that asks for more is a row, and no dead machine."""


def examine(name: str) -> Row:
    """Test every law on one model; runs in a worker."""
    torch.set_num_threads(1)
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    logging.disable(logging.ERROR)  # of hosts, about their own defaults
    head = (_SOURCE, name, name.partition(":")[0], _LAWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found, held, broken = examine_specimen(specimen(name))
        # Whatever a library raises before we touch its model is no failure of ours.
        except Exception as error:
            return Row(*head, failure=f"{CANNOT}{_line(error)}")
    return Row(*head, asdict(found), held, broken)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def sweep_libraries(
    chosen: Sequence[str],
    out: Path,
    *,
    jobs: int = 1,
    timeout: float = 300.0,
    fresh: bool = False,
    work: Callable[[str], Row] = examine,
) -> Path:
    """Test the laws on each model, and write `rows.jsonl` and `results.json`.

    A row of an earlier sweep into `out` is kept if the libraries and the code that decides are the
    same, and nothing killed it.

    Args:
        chosen: Names, as `names()` gives them.
        out: Folder of the results; made if missing.
        jobs: Worker processes.
        timeout: Time for one model, s.
        fresh: Keep nothing of an earlier sweep.
        work: What a worker does; another one in tests.

    Returns:
        The file of results, for `read_results`.
    """
    out.mkdir(parents=True, exist_ok=True)
    used = {name.partition(":")[0] for name in chosen}
    packages = [LIBRARIES[name].package for name in LIBRARIES if name in used]
    made_with = versions() | {package: installed_version(package) for package in packages}
    journal = Journal(out / JOURNAL, made_with, fresh)
    kept = {
        k for k, row in journal.rows.items() if not row.failure or row.failure[:6] == CANNOT[:6]
    }
    left = [name for name in chosen if _key(name) not in kept]
    with progress_bar("sweep", len(chosen)) as advance:
        advance(len(chosen) - len(left))
        for outcome in run_tasks(work, left, jobs=jobs, timeout=timeout):
            journal.add(_row(outcome))
            advance(1)
    rows = [journal.rows[_key(name)] for name in chosen]
    write_results(out / RESULTS, made_with, rows)
    return out / RESULTS


def _key(name: str) -> tuple[str, str, str]:
    return _SOURCE, name, _LAWS


def _row(outcome: Outcome[str]) -> Row:
    """Return the row of an outcome; one that holds a failure where there was no result."""
    if isinstance(outcome.result, Row):
        return outcome.result
    name = outcome.task
    return Row(_SOURCE, name, name.partition(":")[0], _LAWS, failure=outcome.failure)
