"""Worker processes that outlive what they run: a task that hangs or dies becomes an outcome."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

__all__ = ["Outcome", "run_tasks"]

T = TypeVar("T")

_STARTUP = 300.0
"""Time that a worker may take to import its libraries, s."""

_STARTED = "started"


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one task.

    Attributes:
        task: The task.
        result: What the work returned; None on a failure.
        failure: Why there is no result; empty if there is one.
    """

    task: T
    result: Any = None
    failure: str = ""


@dataclass
class _Worker(Generic[T]):
    process: BaseProcess
    pipe: Connection
    task: T
    deadline: float


def run_tasks(
    work: Callable[[T], Any], tasks: Sequence[T], *, jobs: int, timeout: float
) -> Iterator[Outcome[T]]:
    """Run `work(task)` in processes of their own, and yield outcomes as they come.

    A worker serves task after task; one that runs out of time is ended, and one that died is
    replaced. Workers are spawned, each with one thread of torch's.

    Args:
        work: A function that can be imported by its name.
        tasks: Picklable arguments.
        jobs: Workers at a time.
        timeout: Time that a task may take, s.
    """
    left = list(reversed(tasks))  # taken from its end
    idle: list[tuple[BaseProcess, Connection]] = []
    busy: list[_Worker[T]] = []
    try:
        while left or busy:
            while left and len(busy) < jobs:
                process, pipe = idle.pop() if idle else _spawned(work)
                task = left.pop()
                pipe.send(task)
                # The task is kept beside its worker, which cannot say what it died of.
                deadline = time.monotonic() + _STARTUP + timeout
                busy.append(_Worker(process, pipe, task, deadline))
            for worker in _ready(busy):
                outcome = _outcome(worker, timeout)
                if outcome is None:
                    continue  # it has only begun
                busy.remove(worker)
                if worker.process.is_alive():
                    idle.append((worker.process, worker.pipe))
                yield outcome
    finally:
        for process, pipe in [*idle, *((w.process, w.pipe) for w in busy)]:
            _end(process)
            pipe.close()


def _spawned(work: Callable[[T], Any]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(work, there), daemon=True)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the child loads torch's libraries
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    there.close()
    return process, here


def _serve(work: Callable[[T], Any], pipe: Connection) -> None:
    """Answer each task: `_STARTED`, and then `(result, failure)`; until the pipe closes."""
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(_STARTED)
        try:
            answer = (work(task), "")
        # Whatever a model of another library raises is a finding, not the end of the sweep.
        except Exception as error:
            answer = (None, _described(error))
        pipe.send(answer)


def _described(error: BaseException) -> str:
    """Return an error's type and text in one line, and the line of code that it comes from."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {text}{where}"


def _ready(busy: list[_Worker[T]]) -> list[_Worker[T]]:
    """Wait until a worker has said something, died, or run out of time."""
    soonest = min(w.deadline for w in busy)
    handles = [h for w in busy for h in (w.pipe, w.process.sentinel)]
    signalled = wait(handles, max(0.0, soonest - time.monotonic()))
    now = time.monotonic()
    return [
        w
        for w in busy
        if w.pipe in signalled or w.process.sentinel in signalled or now >= w.deadline
    ]


def _outcome(worker: _Worker[T], timeout: float) -> Outcome[T] | None:
    """Return what became of a worker's task; None where it has only begun."""
    try:
        if worker.pipe.poll():
            said = worker.pipe.recv()
            if said == _STARTED:
                worker.deadline = time.monotonic() + timeout
                return None
            result, failure = said
            return Outcome(worker.task, result, failure)
    except (EOFError, ConnectionError):
        pass  # it died without an answer
    if worker.process.is_alive() and time.monotonic() >= worker.deadline:
        _end(worker.process)
        return Outcome(worker.task, None, f"timeout: took more than {timeout:g} s")
    worker.process.join()
    return Outcome(worker.task, None, f"worker died with exit code {worker.process.exitcode}")


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join()
