"""Go over architectures in worker processes, and write down what holds."""

from __future__ import annotations

import hashlib
import math
import platform
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import aa_surgery
from aa_surgery.errors import InputError
from aa_surgery.reports import progress_bar
from aa_surgery.reports.versions import installed_version
from aa_surgery.sweep.catalogue import Subject
from aa_surgery.sweep.identity import identity_law
from aa_surgery.sweep.laws import structural_laws
from aa_surgery.sweep.pool import Outcome, run_tasks
from aa_surgery.sweep.rows import LAWS, Journal, Row, write_results

__all__ = ["Task", "examine", "run_sweep", "versions"]

JOURNAL, RESULTS = "rows.jsonl", "results.json"

_LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "mmpretrain",
    "mmengine",
    "transformers",
    "segmentation_models_pytorch",
)
_EVIDENCE = ("filters.py", "audit", "layers", "rules", "sites", "surgery", "sweep")
_WRITERS = ("coverage.py", "advice.py")


@dataclass(frozen=True)
class Task:
    """One group of laws to test on one architecture."""

    subject: Subject
    laws: str


def examine(task: Task) -> Row:
    """Test one group of laws on one architecture; runs in a worker.

    Raises:
        Exception: Whatever the architecture raises.
    """
    torch.set_num_threads(1)
    subject = task.subject
    head = (subject.source, subject.name, subject.family, task.laws)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task.laws == "structural":
            found, laws = structural_laws(subject)
            held = tuple(law for law, broken in laws.items() if not broken)
            return Row(*head, asdict(found), held, {k: v for k, v in laws.items() if v})
        run = identity_law(subject)
    if run.broken:
        return Row(*head, asdict(run), (), {"identity": "; ".join(run.broken)})
    return Row(*head, asdict(run), ("identity",) if run.runs else ())


def run_sweep(
    chosen: Sequence[Subject],
    out: Path,
    *,
    laws: Iterable[str] = LAWS,
    jobs: int = 1,
    timeout: float = 600.0,
    fresh: bool = False,
    work: Callable[[Task], Row] = examine,
) -> Path:
    """Test the laws on each architecture, and write `rows.jsonl` and `results.json`.

    A row of an earlier sweep into `out` is kept if the libraries and the code that decides are the
    same, and it is no failure. A failure of any kind becomes a row.

    Args:
        chosen: The architectures.
        out: Folder of the results; made if missing.
        laws: Which of `LAWS`.
        jobs: Worker processes.
        timeout: Time for one group of laws on one architecture, s.
        fresh: Keep nothing of an earlier sweep.
        work: What a worker does; another one in tests.

    Returns:
        The file of results, for `read_results`.

    Raises:
        InputError: A group of laws is unknown, or a number is out of range.
    """
    groups = _checked(laws, jobs, timeout)
    out.mkdir(parents=True, exist_ok=True)
    tasks = [Task(subject, group) for group in groups for subject in chosen]
    made_with = versions()
    journal = Journal(out / JOURNAL, made_with, fresh)
    kept = {key for key, row in journal.rows.items() if not row.failure}
    left = [task for task in tasks if _key(task) not in kept]
    with progress_bar("sweep", len(tasks)) as advance:
        advance(len(tasks) - len(left))
        for outcome in run_tasks(work, left, jobs=jobs, timeout=timeout):
            journal.add(_row(outcome))
            advance(1)
    rows = [journal.rows[_key(task)] for task in tasks]
    write_results(out / RESULTS, made_with, rows)
    return out / RESULTS


def _checked(laws: Iterable[str], jobs: int, timeout: float) -> tuple[str, ...]:
    groups = tuple(dict.fromkeys(laws))
    unknown = [group for group in groups if group not in LAWS]
    if unknown:
        raise InputError(f"laws {unknown[0]!r} are unknown. Use some of {', '.join(LAWS)}.")
    whole = isinstance(jobs, int) and not isinstance(jobs, bool)
    if not whole or jobs < 1 or not 0 < timeout < math.inf:
        raise InputError(
            f"a sweep with {jobs} jobs of {timeout:g} s each runs nothing, or has no end. "
            "Give at least one job, and some time."
        )
    return groups


def _key(task: Task) -> tuple[str, str, str]:
    return task.subject.source, task.subject.name, task.laws


def _row(outcome: Outcome[Task]) -> Row:
    """Return the row of an outcome; one that holds a failure where there was no result."""
    if isinstance(outcome.result, Row):
        return outcome.result
    subject = outcome.task.subject
    return Row(
        subject.source, subject.name, subject.family, outcome.task.laws, failure=outcome.failure
    )


def versions() -> dict[str, str]:
    """Return what a result depends on: the libraries, and the code that decides."""
    found = {"python": platform.python_version()}
    found |= {library: installed_version(library) for library in _LIBRARIES}
    return {**found, "code": _code()}


def _code() -> str:
    """Return a hash of every file of ours whose change could change a row."""
    root = Path(aa_surgery.__file__).parent
    digest = hashlib.sha256()
    for place in (root / name for name in _EVIDENCE):
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if path.name not in _WRITERS:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
