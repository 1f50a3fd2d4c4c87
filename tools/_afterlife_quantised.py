"""After-life operations that quantise convolutions to int8.

The blurs may stay in float; the host's convolutions are quantised as in the untouched model.
"""

from __future__ import annotations

from typing import Any

import torch
from _afterlife_export import quiet
from _afterlife_models import Subject, outputs
from _afterlife_operations import Unavailable
from torch import nn


def pt2e(subject: Subject) -> str:
    """Quantise after `torch.export` with torchao's PT2E for x86: as many convolutions in float."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    x = subject.images()
    _check_convs(subject)
    with quiet():
        graph = torch.export.export(subject.fresh(), (x,)).module()
        ours = _host_convs(graph)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(graph, quantizer)
        prepared(x)
        converted: Any = convert_pt2e(prepared)
        outputs(converted, x)
    left = [n.name for n in converted.graph.nodes if n.name in ours and not _in_int8(n)]
    return f"{len(left)} of {len(ours)} convolutions in float"


def _host_convs(graph: Any) -> set[str]:
    """Return the names of convolutions whose weight comes from a parameter; a blur's does not."""
    parameters = {name for name, _ in graph.named_parameters()}
    return {
        node.name
        for node in graph.graph.nodes
        if _is_conv(node) and _reads(node.args[1], parameters)
    }


def _is_conv(node: Any) -> bool:
    return node.op == "call_function" and "conv" in str(node.target)


def _reads(node: Any, parameters: set[str]) -> bool:
    """Return whether a value is made from one of the parameters alone, and not from the images."""
    if node.op == "get_attr":
        return str(node.target) in parameters
    return any(_reads(n, parameters) for n in node.all_input_nodes)


def _in_int8(node: Any) -> bool:
    return all("dequantize" in str(argument) for argument in node.args[:2])


def fx_int8(subject: Subject) -> str:
    """Quantise with `torch.ao`'s `prepare_fx` and `convert_fx`: as many convolutions in float."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    x = subject.images()
    _check_convs(subject)
    with quiet():
        prepared: Any = prepare_fx(subject.fresh(), get_default_qconfig_mapping("x86"), (x,))
        outputs(prepared, x)
        converted = convert_fx(prepared)
        outputs(converted, x)
    left = [m for m in converted.modules() if isinstance(m, nn.Conv2d)]
    return f"{len(left)} convolutions in float"


def _check_convs(subject: Subject) -> None:
    if not any(isinstance(m, nn.Conv2d) for m in subject.model.modules()):
        raise Unavailable("the model has no convolution")
