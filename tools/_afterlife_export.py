"""After-life operations beyond eager mode: compilers, exporters, TorchScript; and DDP."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _afterlife_models import Subject, outputs, tensors
from _afterlife_operations import Different, Unavailable, agree
from torch import nn

INDUCTOR = ("test_resnet", "test_convnext", "test_efficientnet")
"""Where `torch.compile` runs with its code generator too: seconds of compiling an op."""


def compiled(subject: Subject, backend: str = "aot_eager") -> str:
    """Compile with `torch.compile(backend="aot_eager")`, `fullgraph` where the untouched one is."""
    try:
        _compile(subject, backend, fullgraph=True)
    except Exception as error:
        _compile(subject, backend, fullgraph=False)
        return f"graph breaks: {type(error).__name__}"
    return ""


def _compile(subject: Subject, backend: str, fullgraph: bool) -> None:
    torch._dynamo.reset()
    try:
        model = torch.compile(subject.model, fullgraph=fullgraph, backend=backend)
        agree(outputs(model, subject.images()), subject.expected)
    finally:
        torch._dynamo.reset()


def inductor(subject: Subject) -> str:
    """Compile with inductor, a few models only."""
    if subject.sample.name not in INDUCTOR:
        raise Unavailable("run for a few models only")
    return compiled(subject, "inductor")


def exported(subject: Subject) -> str:
    """Export with `torch.export`, the batch dynamic where it is for the untouched model."""
    program, batches = _program(subject)
    module = program.module()
    for batch in batches:
        x = subject.images(batch)
        agree(outputs(module, x), outputs(subject.model, x))
    return "" if len(batches) > 1 else "batch fixed"


def onnx(subject: Subject) -> str:
    """Export to ONNX with `dynamo=True`: onnxruntime's outputs, also of another batch."""
    import onnxruntime

    program, batches = _program(subject)
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(program, (subject.images(),), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in batches:
            x = subject.images(batch)
            results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            agree(map(torch.as_tensor, results), outputs(subject.model, x))
    return "" if len(batches) > 1 else "batch fixed"


def _program(subject: Subject) -> tuple[torch.export.ExportedProgram, tuple[int, ...]]:
    """Export once for both operations, and return the program with the batches that it takes."""
    memo = vars(subject)
    if "program" not in memo:
        memo["program"] = _export(subject)
    result: Any = memo["program"]
    if isinstance(result, Exception):
        raise result
    return result


def _export(subject: Subject) -> Any:
    batch = torch.export.Dim("batch", min=1, max=16)
    x = subject.images()
    with quiet():
        for shapes, batches in ((({0: batch},), (2, 3)), (None, (2,))):
            try:
                program = torch.export.export(
                    subject.model, (x,), dynamic_shapes=shapes, strict=False
                )
            except Exception as error:
                failure = error
            else:
                return program, batches
    return failure


def traced(subject: Subject) -> None:
    """Trace with `torch.jit.trace`, save and load."""
    with quiet():
        model = torch.jit.trace(subject.model, subject.images(), check_trace=False, strict=False)
    _reloaded_agrees(model, subject)


def scripted(subject: Subject) -> None:
    """Compile with `torch.jit.script`, save and load."""
    with quiet():
        model = torch.jit.script(subject.model)
    _reloaded_agrees(model, subject)


def _reloaded_agrees(model: Any, subject: Subject) -> None:
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    agree(outputs(torch.jit.load(file), subject.images()), subject.expected)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        yield


def distributed(subject: Subject) -> None:
    """Take a step of `DistributedDataParallel` in two gloo processes: equal gradients on both."""
    model = subject.fresh().train()
    context = torch.multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_rank, args=(r, folder, model, subject)) for r in (0, 1)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        results = [torch.load(Path(folder) / f"{r}.pt") for r in (0, 1)]
    for result in results:
        if isinstance(result, str):
            raise Different(result)
    first, second = results
    if not first or any(not torch.equal(first[name], second[name]) for name in first):
        raise Different("gradients differ between the ranks")


def _rank(rank: int, folder: str, model: nn.Module, subject: Subject) -> None:
    result: Any
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
        )
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.manual_seed(rank)
        x = subject.images() + rank
        sum(t.square().mean() for t in tensors(wrapped(x)) if t.requires_grad).backward()
        result = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    torch.save(result, Path(folder) / f"{rank}.pt")
    os._exit(0)
