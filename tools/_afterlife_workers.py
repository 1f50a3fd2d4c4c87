"""Worker processes: one a model and side, watched by the clock; a failure is a cell.

A worker that crashes or takes too long is ended, and another goes on behind the operation at which
that happened.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from _afterlife_export import (
    compiled,
    distributed,
    exported,
    inductor,
    onnx,
    scripted,
    traced,
)
from _afterlife_models import Sample, Subject
from _afterlife_operations import (
    Unavailable,
    autocast,
    channels_last,
    checkpointing,
    deepcopy,
    ema,
    fake_quantization,
    features_only,
    int8,
    intermediates,
    observers,
    pickled,
    reparameterize,
    reset_classifier,
    saved,
    state_dict,
    train,
)
from _afterlife_quantised import fx_int8, pt2e
from _afterlife_sizes import export_sizes, onnx_sizes, onnx_traced, openvino
from _afterlife_states import (
    assigned,
    emptied,
    interrupted,
    lora,
    replaced,
    synchronised,
    threads,
)

OPERATIONS: dict[str, Callable[[Subject], str | None]] = {
    "deepcopy": deepcopy,
    "pickle": pickled,
    "save": saved,
    "state_dict": state_dict,
    "train": train,
    "checkpointing": checkpointing,
    "autocast": autocast,
    "channels_last": channels_last,
    "ema": ema,
    "ddp": distributed,
    "features_only": features_only,
    "intermediates": intermediates,
    "reset_classifier": reset_classifier,
    "reparameterize": reparameterize,
    "compile": compiled,
    "inductor": inductor,
    "export": exported,
    "onnx": onnx,
    "trace": traced,
    "script": scripted,
    "int8": int8,
    "observers": observers,
    "qat": fake_quantization,
    "sync_norm": synchronised,
    "replaced": replaced,
    "lora": lora,
    "meta_empty": emptied,
    "meta_assign": assigned,
    "export_sizes": export_sizes,
    "onnx_sizes": onnx_sizes,
    "onnx_traced": onnx_traced,
    "openvino": openvino,
    "pt2e": pt2e,
    "fx_int8": fx_int8,
    "threads": threads,
    "ctrl_c": interrupted,
}


def description(operation: str) -> str:
    """Return what an operation does: its docstring, as one line."""
    return " ".join((OPERATIONS[operation].__doc__ or "").split())


OK, FAILED, MISSING = "ok", "failed", "n/a"
_HEAVY = (
    "onnxruntime",
    "onnxscript",
    "torch._dynamo",
    "torch.ao.quantization.quantize_fx",
    "torch.onnx._internal.exporter._core",
    "torchao.quantization",
)
_STARTING = 120.0  # seconds that a worker may take before its first operation


class Cell(NamedTuple):
    """What one operation gave on one side."""

    name: str
    operation: str
    treated: bool
    status: str
    detail: str
    seconds: float

    @property
    def key(self) -> tuple[str, str, bool]:
        """What tells it from others."""
        return self.name, self.operation, self.treated


@dataclass
class _Job:
    """A worker on one model and side, and the operations that it still has to do."""

    sample: Sample
    treated: bool
    operations: deque[str]
    process: Any = None
    pipe: Any = None
    deadline: float = 0.0


def run(
    todo: Mapping[tuple[Sample, bool], Iterable[str]], jobs: int, timeout: float
) -> Iterator[Cell]:
    """Yield the cells of `todo` as they come.

    Args:
        todo: The operations of each model and side (`True` for the anti-aliased one).
        jobs: Workers at a time.
        timeout: Seconds that one operation may take.
    """
    context = _context()
    waiting = deque(_Job(s, treated, deque(ops)) for (s, treated), ops in todo.items() if ops)
    running: list[_Job] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.popleft(), context))
            nearest = min(job.deadline for job in running)
            ready = wait([job.pipe for job in running], max(0.0, nearest - time.monotonic()))
            for job in list(running):
                cell = _next(job, job.pipe in ready, timeout)
                if cell is not None:
                    yield cell
                if job.process is None:
                    running.remove(job)
                    if job.operations:
                        waiting.appendleft(job)
    finally:
        for job in running:
            _end(job)


def _context() -> Any:
    """Return a context whose workers are forks of a process that has imported everything."""
    # the server looks for modules in Python's own path, not in this script's folder
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    os.environ.update(OMP_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_HEAVY])
    return context


def _start(job: _Job, context: Any) -> _Job:
    job.pipe, theirs = context.Pipe(duplex=False)
    arguments = (theirs, job.sample, job.treated, tuple(job.operations))
    job.process = context.Process(target=_work, args=arguments)
    job.process.start()
    theirs.close()
    job.deadline = time.monotonic() + _STARTING
    return job


def _next(job: _Job, ready: bool, timeout: float) -> Cell | None:
    """Take what a worker has sent, or end one that is late; `process` is then None."""
    late = time.monotonic() > job.deadline
    if not ready and not late:
        return None
    result = None
    if ready:
        try:
            result = job.pipe.recv()
        except EOFError:
            job.process.join()
            code = job.process.exitcode
            reason = f"the process ended with {code}"
    else:
        reason = f"timeout after {timeout:g} s"
    if result is None:
        _end(job)
        if not job.operations:
            return None
        return Cell(job.sample.name, job.operations.popleft(), job.treated, FAILED, reason, 0.0)
    job.deadline = time.monotonic() + timeout
    return None if result == "ready" else _cell(job, *result)


def _cell(job: _Job, status: str, detail: str, seconds: float) -> Cell:
    name = job.operations.popleft()
    return Cell(job.sample.name, name, job.treated, status, detail, seconds)


def _end(job: _Job) -> None:
    if job.process.is_alive():
        os.killpg(job.process.pid, signal.SIGKILL)
    job.process.join()
    job.pipe.close()
    job.process = None


def _work(pipe: Connection, sample: Sample, treated: bool, operations: tuple[str, ...]) -> None:
    os.setsid()  # a group of its own, so that its children end with it
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    subject = Subject(sample, treated)
    pipe.send("ready")
    for name in operations:
        start = time.process_time()
        status, detail = OK, ""
        try:
            detail = OPERATIONS[name](subject) or ""
        except Unavailable as reason:
            status, detail = MISSING, str(reason)
        except Exception as error:  # whatever it is, it is this cell's
            status, detail = FAILED, _reason(error)
        pipe.send((status, detail, round(time.process_time() - start, 2)))


def _reason(error: Exception) -> str:
    """Return the error's name, its first line, and the place in our code nearest to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "aa_surgery" in f.filename]
    place = ""
    if frames:
        path = frames[-1].filename.rpartition("aa_surgery/")[2]
        place = f" [aa_surgery/{path}:{frames[-1].lineno}]"
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300] + place
