"""Where a value comes from: how many axes and channels its map has, read off the ops in front."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from aa_surgery.sites.flow import Flow, Spot
from aa_surgery.sites.kinds import ADAPTIVE, AVG_POOLS, CONVS, INTERPOLATE, MAX_POOLS, arguments
from aa_surgery.sites.modules import type_dimension
from aa_surgery.sites.roles import role_of_function, role_of_module

__all__ = ["ARITHMETIC", "SAME_METHODS", "Ask", "Origin", "origin"]

_MAX_STEPS = 24
_POOLS = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
ARITHMETIC = {
    *(getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "neg", "iadd", "imul")),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.where),
}
_SAME_AXES = {F.dropout, F.dropout2d, F.pad, F.batch_norm, F.group_norm, F.instance_norm}
SAME_METHODS = {"contiguous", "clone", "detach", "add", "mul", "sub", "div", "add_", "mul_", "to"}
_MOVING = {
    *("view", "reshape", "permute", "transpose", "flatten", "movedim", "unflatten", "unsqueeze"),
    *("expand", "repeat", "stack", "cumsum", "topk", "getitem", "rearrange", "cat", "index_select"),
}
_MADE = {"arange", "linspace", "meshgrid", "zeros", "ones", "full", "matmul", "bmm", "einsum"}


@dataclass(frozen=True)
class Origin:
    """What is known of a value.

    Attributes:
        kind: `"map"`: `(N, C, *spatial)`, as convolutions and pools give it; `"moved"`: its axes
            were regrouped, or it never was a map (tokens); `"held"`: a parameter or buffer;
            `"unknown"`: the model's input, or what cannot be read.
        axes: Number of spatial axes of a map; 0 where that is not known.
        channels: Channels of a map; 0 where that is not known.
    """

    kind: Literal["map", "moved", "held", "unknown"]
    axes: int = 0
    channels: int = 0


Ask = Callable[[fx.Node], Origin]
"""Tells where a value of the graph at hand comes from."""

_UNKNOWN, _MOVED = Origin("unknown"), Origin("moved")


def origin(flow: Flow, spot: Spot, steps: int = _MAX_STEPS) -> Origin:
    """Return what is known of the value of a node, across scopes."""
    axes, moved = 0, False
    for _ in range(steps):
        node = spot.node
        before: Spot | Origin
        if node.op == "placeholder":
            before = _from_caller(flow, spot)
        elif node.op == "call_module":
            before, seen = _through_module(flow, spot)
            axes = axes or seen
        elif node.op == "get_attr":
            before = Origin("held")
        else:
            before, seen = _through_call(flow, spot, steps)
            axes = axes or seen
        if before is _MOVED or moved:
            # where it was moved from tells only whether it is a table that the model holds
            moved = True
            before = _input(flow, spot, _source(node)) if before is _MOVED else before
        if isinstance(before, Origin) and moved:
            return before if before.kind == "held" else _MOVED
        if isinstance(before, Origin):
            known = before.kind == "map" or (axes > 0 and before.kind == "unknown")
            return Origin("map", before.axes or axes, before.channels) if known else before
        spot = before
    return _MOVED if moved else _UNKNOWN


def _from_caller(flow: Flow, spot: Spot) -> Spot | Origin:
    calls = flow.calls(flow.modules[spot.path]) if spot.path else []
    if len(calls) != 1:
        return _UNKNOWN
    names = [n.target for n in flow.graphs[spot.path].nodes if n.op == "placeholder"]
    call, index = calls[0], names.index(spot.node.target)
    args = call.node.args
    given = args[index] if index < len(args) else call.node.kwargs.get(str(spot.node.target))
    return Spot(call.path, given) if isinstance(given, fx.Node) else _UNKNOWN


def _input(flow: Flow, spot: Spot, given: Any) -> Spot | Origin:
    return Spot(spot.path, given) if isinstance(given, fx.Node) else _UNKNOWN


def _source(node: fx.Node) -> Any:
    """Return what a node moves the axes of: its first input, or the first of a list."""
    first = node.args[0] if node.args else None
    return first[0] if isinstance(first, (list, tuple)) and first else first


def _first(spot: Spot) -> Any:
    return spot.node.args[0] if spot.node.args else spot.node.kwargs.get("input")


def _through_module(flow: Flow, spot: Spot) -> tuple[Spot | Origin, int]:
    module: Any = flow.module_of(spot)
    if isinstance(module, nn.modules.conv._ConvNd):
        return Origin("map", len(module.kernel_size), module.out_channels), 0
    if isinstance(module, nn.modules.batchnorm._NormBase):
        axes = type_dimension(module) if "1d" not in type(module).__name__ else 0
        return Origin("map", axes, module.num_features), 0
    if isinstance(module, nn.GroupNorm):
        return Origin("map", 0, module.num_channels), 0
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        return _MOVED, 0
    if isinstance(module, _POOLS):
        return _input(flow, spot, _first(spot)), type_dimension(module)
    if role_of_module(module) or isinstance(module, nn.Upsample):
        return _input(flow, spot, _first(spot)), 0
    path = flow.name_of(spot)
    if path not in flow.graphs:
        return _UNKNOWN, 0
    output = next(n for n in flow.graphs[path].nodes if n.op == "output").args[0]
    return _input(flow, Spot(path, spot.node), output), 0


def _through_call(flow: Flow, spot: Spot, steps: int) -> tuple[Spot | Origin, int]:
    node = spot.node
    target: Any = node.target
    if node.op == "call_method":
        if target in _MOVING or target in _MADE:
            return _MOVED, 0
        known = target in SAME_METHODS or role_of_function(node) != ""
        return (_input(flow, spot, _first(spot)) if known else _UNKNOWN), 0
    if target in CONVS:
        names, axes = CONVS[target]
        return Origin("map", axes, _width(flow, spot, arguments(node, names).get("weight"))), 0
    for table in (MAX_POOLS, AVG_POOLS, ADAPTIVE):
        if target in table:
            return _input(flow, spot, _first(spot)), table[target][1]
    if target is torch.cat or target in ARITHMETIC:
        return _joined(flow, spot, steps), 0
    if target is operator.getitem and _keeps_axes(node.args[1]):
        return _input(flow, spot, _first(spot)), 0
    same: Callable[..., Any] | bool = target in _SAME_AXES or target in INTERPOLATE
    if same or role_of_function(node):
        return _input(flow, spot, _first(spot)), 0
    name = getattr(target, "__name__", "")
    return (_MOVED if name in _MOVING or name in _MADE else _UNKNOWN), 0


def _width(flow: Flow, spot: Spot, weight: Any) -> int:
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        held: Any = flow.modules[spot.path]
        for part in str(weight.target).split("."):
            held = getattr(held, part, None)
        return int(held.shape[0]) if isinstance(held, torch.Tensor) else 0
    return 0


def _joined(flow: Flow, spot: Spot, steps: int) -> Origin:
    """Return the origin of a sum or concatenation: that of the first operand that is known."""
    node = spot.node
    parts = node.args[0] if node.target is torch.cat and node.args else node.args
    nodes = [p for p in parts if isinstance(p, fx.Node)] if isinstance(parts, (tuple, list)) else []
    found = [origin(flow, Spot(spot.path, part), steps // 2) for part in nodes[:4]]
    known = next((o for o in found if o.kind == "map"), found[0] if found else _UNKNOWN)
    if node.target is not torch.cat or known.kind != "map":
        return known
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    widths = [o.channels for o in found]
    whole = len(found) == len(nodes) and dim == 1 and all(widths)
    return Origin("map", known.axes, sum(widths) if whole else 0)


def _keeps_axes(index: Any) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    return all(isinstance(i, slice) or i is Ellipsis for i in items)
