"""Quantisation reaches the convolutions of a treated model that it reaches in the untouched one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
from torchao.testing.pt2e._xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torchvision.models.swin_transformer import SwinTransformer

from aa_surgery import apply_antialias

PLACEMENTS = ["auto", "post", "pre"]
SIZE = (1, 3, 64, 64)


class Blocks(nn.Module):
    """Convolutions of several kinds, each reduced in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.point = nn.Conv2d(8, 16, 1, 2)
        self.mean = nn.AvgPool2d(2)
        self.last = nn.Conv2d(16, 4, 3, 2, 1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.pool(self.stem(x)))
        return self.last(self.mean(self.point(x)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "blocks": Blocks,
    "resnet18": lambda: timm.create_model("resnet18", num_classes=2),
    "swin": lambda: SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=2),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def exported_int8(model: nn.Module, quantizer: Any) -> fx.GraphModule:
    x = torch.randn(SIZE)
    graph = prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    graph(x)
    return convert_pt2e(graph)


def traced_int8(model: nn.Module) -> fx.GraphModule:
    x = torch.randn(SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
        graph(x)
        return convert_fx(graph)


def x86_quantizer() -> Any:
    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


def xnnpack_quantizer() -> Any:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def exported_weights(graph: fx.GraphModule) -> tuple[int, int]:
    """Return how many of the model's own convolutions are quantised, and how many there are.

    A blur's kernel has no parameter behind it, which an export shows as an expanded buffer.
    """
    convs = [
        n for n in graph.graph.nodes if n.target is torch.ops.aten.conv2d.default and not _blurs(n)
    ]
    return sum(all("dequantize" in str(a) for a in n.args[:2]) for n in convs), len(convs)


def _blurs(conv: fx.Node) -> bool:
    return "aa_surgery" in str(list(conv.meta["nn_module_stack"].values())[-1][1])


def traced_weights(graph: fx.GraphModule) -> int:
    """Return how many convolutions are int8: modules, or functions."""
    modules = dict(graph.named_modules())
    count = 0
    for node in graph.graph.nodes:
        if node.op == "call_module":
            count += "Conv" in (kind := str(type(modules[node.target]))) and "quantized" in kind
        elif node.op == "call_function":
            count += "quantized" in str(node.target) and "conv" in str(node.target)
    return count


@pytest.mark.parametrize("quantizer", [x86_quantizer, xnnpack_quantizer])
@pytest.mark.parametrize("name", MODELS)
def test_every_convolution_is_quantised_after_export(name: str, quantizer) -> None:
    wanted, _ = exported_weights(exported_int8(make(name), quantizer()))
    assert wanted
    for placement in PLACEMENTS if name == "blocks" else PLACEMENTS[:1]:
        model = apply_antialias(make(name), placement=placement)
        quantised, there = exported_weights(exported_int8(model, quantizer()))
        assert quantised == wanted, f"{placement}: {quantised} of {there}, {wanted} before"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["blocks", "resnet18"])
def test_every_convolution_is_quantised_by_fx(name: str) -> None:
    wanted = traced_weights(traced_int8(make(name)))
    assert wanted
    x = torch.randn(SIZE)
    for placement in PLACEMENTS if name == "blocks" else PLACEMENTS[:1]:
        model = apply_antialias(make(name), placement=placement)
        expected = model(x)
        graph = traced_int8(model)
        assert traced_weights(graph) == wanted, placement
        assert (graph(x) - expected).abs().max() < 0.1 * expected.abs().max()
