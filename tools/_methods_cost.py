"""What each method costs: parameters, floating-point operations, time."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from _bench_timing import Case, time_case
from _methods_variants import UNTOUCHED, keep, markdown, measured, read, surgery_of
from torch import Tensor, nn

from aa_surgery import apply_antialias
from aa_surgery.evaluation import count_flops
from aa_surgery.layers import canonical_form

ARGUMENTS = ("cost_models", "rounds")
SIZE = 224  # px
BUDGET = 600.0  # s, of the rounds of one network


def work(options: argparse.Namespace) -> Iterator[str]:
    """Measure the networks that were not measured; say which."""
    for name in options.cost_models:
        path = file_of(options, name)
        if measured(path, partial(measure, name, tuple(options.methods), options.rounds)):
            yield path.name


def table(options: argparse.Namespace) -> str:
    """Return the table: ratios to the untouched network, whose own numbers are the first row."""
    networks = [(name, read(file_of(options, name))) for name in options.cost_models]
    head = ["method"]
    for name, _ in networks:
        head += [f"{name}: parameters", "FLOPs", "time"]
    rows = [[variant] for variant in (UNTOUCHED, *options.methods)]
    for _, found in networks:
        for row in rows:
            row += _cells(found, row[0]) if found else ["", "", ""]
    return markdown(head, rows)


def file_of(options: argparse.Namespace, name: str) -> Path:
    settings = {"network": name, "methods": list(options.methods), "rounds": options.rounds}
    return keep(options.out, f"cost-{name}", settings)


def _cells(found: dict[str, Any], variant: str) -> list[str]:
    parameters, flops = found["parameters"], found["flops"]
    if variant == UNTOUCHED:
        absolute = found["time"]["value"]
        return [
            f"{parameters[variant] / 1e6:.2f} M",
            f"{flops[variant] / 1e9:.2f} G",
            f"{absolute:.0f} ms",
        ]
    time = found["time"]["ratios"][variant]
    return [
        f"x {parameters[variant] / parameters[UNTOUCHED]:.3f}",
        f"x {flops[variant] / flops[UNTOUCHED]:.2f}",
        f"x {time['median']:.2f} ({time['low']:.2f}–{time['high']:.2f})",
    ]


def measure(name: str, methods: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Count and time one network, untouched and with each method, in turns."""
    networks = contenders(name, methods)
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with canonical_form():  # the faster forms of the blur are sums, which are not counted
        flops = {label: count_flops(net, image) for label, net in networks.items()}
    calls = {label: partial(_infer, net, image) for label, net in networks.items()}
    case = Case("methods", name, UNTOUCHED, lambda: dict(calls))
    return {
        "parameters": {label: parameters(net) for label, net in networks.items()},
        "flops": flops,
        "time": asdict(time_case(case, rounds, BUDGET, seed=0)),
    }


def parameters(net: nn.Module) -> int:
    """Count those that can be trained: a replaced convolution keeps its own, unused and frozen."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def contenders(name: str, methods: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the untouched network, of random weights, and a copy of it for each method."""
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    treated = {v: apply_antialias(copy.deepcopy(net), **surgery_of(v)) for v in methods}
    return {UNTOUCHED: net, **treated}


def _infer(net: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(image)
