"""After-life operations that export a model for every size: equal outputs at one never seen."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from _afterlife_export import quiet
from _afterlife_models import Subject, outputs
from _afterlife_operations import agree
from torch import Tensor

_NAMES = ("batch", "height", "width")
_FACTORS = (1, 32)  # a model that halves its map five times may take multiples of 32 alone


def unseen(subject: Subject) -> Tensor:
    """Return one image, neither square nor of the size that the export saw."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(1, 3, subject.size + 32, subject.size + 64, generator=generator)


def export_sizes(subject: Subject) -> None:
    """Export with `torch.export`, height and width `Dim`s: eager outputs at an unseen size."""
    x = unseen(subject)
    agree(outputs(_program(subject).module(), x), outputs(subject.model, x))


def onnx_sizes(subject: Subject) -> None:
    """Export to ONNX with `dynamo=True`, height and width dynamic: likewise in onnxruntime."""
    program = _program(subject)
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(program, (subject.images(),), path, dynamo=True, verbose=False)
        _runtime_agrees(path, subject)


def onnx_traced(subject: Subject) -> None:
    """Export to ONNX with `dynamo=False`, by tracing, all axes dynamic: likewise."""
    axes = {"input": dict(zip((0, 2, 3), _NAMES, strict=True))}
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            subject.fresh(),
            (subject.images(),),
            path,
            dynamo=False,
            input_names=["input"],
            dynamic_axes=axes,
        )
        _runtime_agrees(path, subject)


def _runtime_agrees(path: Path, subject: Subject) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = unseen(subject)
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    agree(map(torch.as_tensor, results), outputs(subject.model, x))


def openvino(subject: Subject) -> None:
    """Convert with OpenVINO's `convert_model`, by tracing, every size: likewise on its CPU."""
    import openvino as host

    with quiet():
        shape = host.PartialShape([-1, 3, -1, -1])
        model = host.convert_model(subject.fresh(), example_input=subject.images(), input=[shape])
        x = unseen(subject)
        # half precision and Winograd are the device's own choices, not the model's
        compiled = host.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = list(compiled(x.numpy()).values())
    agree(map(torch.as_tensor, results), outputs(subject.model, x))


def _program(subject: Subject) -> torch.export.ExportedProgram:
    """Export once for both operations: any height and width, or any multiples of 32."""
    memo = vars(subject)
    if "sizes_program" not in memo:
        memo["sizes_program"] = _export(subject)
    result: Any = memo["sizes_program"]
    if isinstance(result, Exception):
        raise result
    return result


def _export(subject: Subject) -> Any:
    with quiet():
        for factor in _FACTORS:
            high, wide = (torch.export.Dim(name, min=2, max=2048 // factor) for name in _NAMES[1:])
            batch = torch.export.Dim(_NAMES[0], min=1, max=16)
            shapes = {0: batch, 2: factor * high, 3: factor * wide}
            # neither square nor two of anything, which export would take for constants
            x = torch.randn(3, 3, subject.size, subject.size + 32)
            try:
                return torch.export.export(
                    subject.fresh(), (x,), dynamic_shapes=(shapes,), strict=False
                )
            except Exception as error:
                failure = error
    return failure
