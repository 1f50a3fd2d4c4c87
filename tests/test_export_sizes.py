"""One graph for maps of every size: exported, traced, and in ONNX and OpenVINO."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import onnxruntime
import openvino
import pytest
import timm
import timm.layers
import torch
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn
from torch.export import Dim

from aa_surgery import apply_antialias

Run = Callable[[Tensor], Tensor]

SEEN = (2, 3, 64, 64)
UNSEEN = [(2, 3, 64, 80), (1, 3, 65, 97), (3, 3, 34, 51)]
EXPORT_DIMS = {
    0: Dim("n", min=1, max=8),
    2: Dim("h", min=33, max=256),
    3: Dim("w", min=33, max=256),
}
NAMES = {0: "n", 2: "h", 3: "w"}


def around(op: nn.Module) -> nn.Module:
    """Return a net with an op between others, so that sizes go on behind it."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), op, nn.Conv2d(4, 4, 1))


class Tokens(nn.Module):
    """Tokens whose map is merged, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x).permute(0, 2, 3, 1))[:, ::2, ::2]
        return self.mix(x.contiguous())  # torch's linear decides on strides in an export


OPS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: around(nn.MaxPool2d(3, 2, 1)),
    "max, ceil": lambda: around(nn.MaxPool2d(3, 2, ceil_mode=True)),
    "max, ceil, padded": lambda: around(nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "max, even, ceil": lambda: around(nn.MaxPool2d(2, ceil_mode=True)),
    "max, stride 3, dilated": lambda: around(nn.MaxPool2d(3, 3, 1, 2, ceil_mode=True)),
    "average": lambda: around(nn.AvgPool2d(2)),
    "average, ceil": lambda: around(nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "average, not counted": lambda: around(nn.AvgPool2d(3, 2, 1, True, False)),
    "conv": lambda: around(nn.Sequential(nn.Conv2d(4, 4, 5, 3, 2), nn.ReLU())),
    "conv, stride 4": lambda: around(nn.Sequential(nn.Conv2d(4, 4, 7, (4, 2), 3), nn.ReLU())),
    "conv, reflect": lambda: around(nn.Conv2d(4, 4, 3, 2, 1, padding_mode="reflect")),
    "same conv": lambda: around(nn.Sequential(timm.layers.Conv2dSame(4, 4, 3, 2), nn.ReLU())),
    "same max": lambda: around(MaxPool2dSame(3, 2)),
    "same average": lambda: around(AvgPool2dSame(2, 2)),
    "tokens": Tokens,
}
OPTIONS: dict[str, dict[str, object]] = {
    "auto": {},
    "pre": {"placement": "pre"},
    "post": {"placement": "post"},
    "even": {"filter": "tri-4"},
    "zeros": {"filter": "tri-4", "padding_mode": "zeros"},
    "circular": {"filter": "binomial-5", "padding_mode": "circular"},
    "replicate": {"padding_mode": "replicate"},
    "zhang2019": {"preset": "zhang2019"},
    "identity": {"filter": "identity"},
}
METHODS = ["learned", "adaptive", "wavelet", "ideal", "aps"]


def treated(op: str, options: str = "auto") -> nn.Module:
    torch.manual_seed(0)
    return apply_antialias(OPS[op]().eval(), **OPTIONS[options])


def exported(model: nn.Module) -> Run:
    return torch.export.export(model, (torch.randn(SEEN),), dynamic_shapes=(EXPORT_DIMS,)).module()


def traced(model: nn.Module) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        return torch.jit.trace(model, torch.randn(SEEN), check_trace=False)


def in_onnx(dynamo: bool) -> Callable[[nn.Module], Run]:
    def make(model: nn.Module) -> Run:
        file, x = io.BytesIO(), (torch.randn(SEEN),)
        if dynamo:
            program = torch.onnx.export(
                model, x, dynamo=True, dynamic_shapes=(NAMES,), verbose=False
            )
            program.save(file)
        else:
            torch.onnx.export(
                model,
                x,
                file,
                dynamo=False,
                input_names=["x"],
                dynamic_axes={"x": NAMES},
                opset_version=17,
            )
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return make


def in_openvino(read: Callable[[nn.Module], object]) -> Callable[[nn.Module], Run]:
    def make(model: nn.Module) -> Run:
        converted = openvino.convert_model(read(model), example_input=torch.randn(SEEN))
        compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: torch.from_numpy(compiled(x.numpy())[0])

    return make


def assert_alike(run: Run, model: nn.Module, seen: bool = False) -> None:
    for size in [SEEN] if seen else [SEEN, *UNSEEN]:
        x = torch.randn(size)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-4)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# every op as it is treated by default, and every way of treating one whose sizes are rounded up
GRID = [(op, "auto") for op in OPS] + [("max, ceil", o) for o in OPTIONS if o != "auto"]
GRID += [("average, ceil", "post"), ("same conv", "pre"), ("conv", "even"), ("max", "zhang2019")]


@pytest.mark.parametrize(("op", "options"), GRID)
def test_an_export_serves_every_size(op: str, options: str) -> None:
    model = treated(op, options)
    assert_alike(exported(model), model)


@pytest.mark.parametrize(("op", "options"), GRID)
def test_a_trace_serves_every_size(op: str, options: str) -> None:
    model = treated(op, options)
    assert_alike(traced(model), model)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(("op", "options"), GRID[1::5])
def test_onnx_serves_every_size(op: str, options: str, dynamo: bool) -> None:
    model = treated(op, options)
    assert_alike(in_onnx(dynamo)(model), model)


@pytest.mark.parametrize("options", ["auto", "pre", "zhang2019"])
def test_openvino_serves_every_size(options: str) -> None:
    model = treated("max", options)
    assert_alike(in_openvino(lambda model: model)(model), model)


@pytest.mark.parametrize("method", METHODS)
def test_methods_export_for_every_size(method: str) -> None:
    torch.manual_seed(0)
    model = apply_antialias(OPS["max"]().eval(), method=method, example=torch.randn(SEEN))
    assert_alike(exported(model), model)


@pytest.mark.parametrize("options", ["auto", "pre", "zhang2019"])
def test_a_network_by_both_ways(options: str) -> None:
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model = apply_antialias(model, **OPTIONS[options])
    assert_alike(exported(model), model)
    assert_alike(traced(model), model)
