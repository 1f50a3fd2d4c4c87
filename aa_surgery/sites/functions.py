"""Read a downsampling op from a call in a forward: functional convs, pools, resizing, merges."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from aa_surgery.sites.aliases import ALIASES, GRID_SAMPLES, INDEX_POOLS, UPSAMPLES
from aa_surgery.sites.flow import Flow, Spot
from aa_surgery.sites.heads import is_global_pool, whole_map
from aa_surgery.sites.indexing import read_index
from aa_surgery.sites.kinds import (
    ADAPTIVE,
    AVG_POOLS,
    CONVS,
    INTERPOLATE,
    MAX_POOLS,
    OTHER_POOLS,
    PIXEL_UNSHUFFLE,
    UNFOLDS,
    arguments,
    each_axis,
)
from aa_surgery.sites.merging import read_merge
from aa_surgery.sites.modules import RETURNS_INDICES, adaptive_fields
from aa_surgery.sites.origin import Origin, origin
from aa_surgery.sites.partitions import is_put_back, is_shuffled_back, read_window
from aa_surgery.sites.patterns import read_einops_call
from aa_surgery.sites.reductions import read_phase_pool, read_pooled_view
from aa_surgery.sites.resizing import read_resize, read_resize_to_size

__all__ = ["read_node"]

_AT_RUN_TIME = "its {} is known when it runs: there is no fixed stride to filter for"


def read_node(spot: Spot, flow: Flow) -> dict[str, Any] | None:
    """Return the fields of the `Site` that a graph's node is, or None."""
    node = spot.node

    def ask(value: fx.Node) -> Origin:
        return origin(flow, Spot(spot.path, value))

    if node.op == "call_method" or node.target is torch.reshape:
        found = read_merge(node) or read_pooled_view(node, ask)
        found = found or read_phase_pool(node, ask) or read_window(node, ask)
        if found is not None:
            return None if is_put_back(spot, flow) else found
    if node.op not in ("call_method", "call_function"):
        return None
    target: Any = node.target
    for table, reader, opaque in _READERS:
        if target in table:
            names, ndim = table[target]
            fields = reader(arguments(node, names), ndim, spot, flow)
            return fields | {"opaque": opaque} if fields and opaque else fields
    return read_index(node, ask) or read_einops_call(node)


def _read_conv(args: dict[str, Any], ndim: int, spot: Spot, flow: Flow) -> dict[str, Any] | None:
    if args.get("transposed"):
        return None
    given = args.get("stride", 1)
    weight = _tensor_behind(args["weight"], flow.modules[spot.path])
    stride = each_axis(given, ndim or (len(given) if isinstance(given, (list, tuple)) else 1))
    if stride is None:
        return dict(op="conv", problem=_AT_RUN_TIME.format("stride"))
    if max(stride) == 1:
        return None
    ndim = len(stride)
    fields: dict[str, Any] = dict(
        op="conv",
        stride=stride,
        padding=each_axis(args.get("padding", 0), ndim) or (0,) * ndim,
        dilation=each_axis(args.get("dilation", 1), ndim) or (1,) * ndim,
    )
    if weight is not None:
        groups = args.get("groups", 1)
        fields["groups"] = groups if isinstance(groups, int) else weight.shape[0]
        fields["kernel"] = tuple(weight.shape[2:])
        fields["in_channels"] = weight.shape[1] * fields["groups"]
        if _is_low_pass(weight):
            fields["problem"] = "already a low-pass filter: a fixed kernel that sums to 1"
    return fields


def _is_low_pass(weight: torch.Tensor) -> bool:
    if isinstance(weight, nn.Parameter) or weight.is_meta or weight.shape[1] != 1:
        return False
    sums = weight.flatten(1).float().sum(1)
    return bool(((sums - 1).abs() < 1e-3).all())


def _tensor_behind(weight: Any, scope: nn.Module) -> torch.Tensor | None:
    """Return the parameter or buffer of `scope` that a weight is made of, if it is one."""
    seen = 0
    while isinstance(weight, fx.Node) and seen < 8:
        if weight.op == "get_attr":
            held: Any = scope
            for part in str(weight.target).split("."):
                held = getattr(held, part, None)
            return held if isinstance(held, torch.Tensor) and held.ndim >= 3 else None
        inputs = weight.all_input_nodes
        weight = inputs[0] if inputs else None
        seen += 1
    return None


def _read_max(args: dict[str, Any], ndim: int, spot: Spot, flow: Flow) -> dict[str, Any] | None:
    fields = _window(args, ndim, "max_pool", spot, flow)
    gives = args.get("return_indices") or "with_indices" in str(spot.node.target)
    if fields is not None and gives and not fields.get("problem"):
        fields["problem"] = RETURNS_INDICES
    return fields


def _read_avg(args: dict[str, Any], ndim: int, spot: Spot, flow: Flow) -> dict[str, Any] | None:
    return _window(args, ndim, "avg_pool", spot, flow)


def _window(
    args: dict[str, Any], ndim: int, op: str, spot: Spot, flow: Flow
) -> dict[str, Any] | None:
    """Return kernel, stride, padding and dilation of a pooling call, if it subsamples."""
    kernel = each_axis(args["kernel_size"], ndim)
    stride_arg = args.get("stride")
    implied = stride_arg is None or stride_arg == []
    stride = kernel if implied else each_axis(stride_arg, ndim)
    if kernel is None and whole_map(args["kernel_size"], args["input"]):
        return None
    if kernel is None or stride is None:
        if stride is not None and max(stride) == 1:
            return None
        return dict(op=op, problem=_AT_RUN_TIME.format("window" if kernel is None else "stride"))
    if max(stride) == 1 or is_global_pool(flow, spot):
        return None
    return dict(
        op=op,
        kernel=kernel,
        stride=stride,
        padding=each_axis(args.get("padding", 0), ndim) or (0,) * ndim,
        dilation=each_axis(args.get("dilation", 1), ndim) or (1,) * ndim,
        ceil_mode=bool(args.get("ceil_mode", False)),
    )


def _read_other_pool(
    args: dict[str, Any], ndim: int, spot: Spot, flow: Flow
) -> dict[str, Any] | None:
    name = getattr(spot.node.target, "__name__", str(spot.node.target))
    return dict(op="avg_pool", problem=f"{name} is no plain maximum or mean")


def _read_adaptive(
    args: dict[str, Any], ndim: int, spot: Spot, flow: Flow
) -> dict[str, Any] | None:
    size = args.get("output_size")
    name = getattr(spot.node.target, "__name__", str(spot.node.target))
    if isinstance(size, fx.Node):
        whole = whole_map(size, args["input"])
        return None if whole else dict(op="adaptive_pool", problem=_AT_RUN_TIME.format("size"))
    return adaptive_fields(name, size)


def _read_unfold(args: dict[str, Any], ndim: int, spot: Spot, flow: Flow) -> dict[str, Any] | None:
    given = args.get("stride", 1)
    stride = each_axis(given, ndim)
    if stride is None:
        return dict(op="unfold", problem=_AT_RUN_TIME.format("stride"))
    if max(stride) == 1 or is_put_back(spot, flow):
        return None
    return dict(op="unfold", stride=stride, kernel=each_axis(args["kernel_size"], ndim) or ())


def _read_unshuffle(
    args: dict[str, Any], ndim: int, spot: Spot, flow: Flow
) -> dict[str, Any] | None:
    factor = each_axis(args["downscale_factor"], ndim)
    if factor is None or is_shuffled_back(spot, flow):
        return None
    return dict(op="space_to_depth", stride=factor, kernel=factor)


def _read_resize(args: dict[str, Any], ndim: int, spot: Spot, flow: Flow) -> dict[str, Any] | None:
    if args.get("antialias"):
        return None
    mode, source = args.get("mode", "nearest"), args["input"]
    known = isinstance(source, fx.Node)
    found = origin(flow, Spot(spot.path, source)) if known else Origin("unknown")
    if args.get("size") is not None:
        fields = read_resize_to_size(source, args["size"], mode)
        return None if found.kind == "held" else fields
    scale = args.get("scale_factor")
    if isinstance(scale, fx.Node):
        return dict(op="interpolate", mode=mode, problem=_AT_RUN_TIME.format("factor"))
    return read_resize(scale, mode, found.axes)


def _read_grid_sample(
    args: dict[str, Any], ndim: int, spot: Spot, flow: Flow
) -> dict[str, Any] | None:
    return dict(
        op="interpolate",
        mode="grid",
        problem="samples where a grid of positions says: the rate is the grid's, and varies",
    )


_TABLES = (
    (CONVS, _read_conv),
    (MAX_POOLS, _read_max),
    (AVG_POOLS, _read_avg),
    (OTHER_POOLS, _read_other_pool),
    (ADAPTIVE, _read_adaptive),
    (UNFOLDS, _read_unfold),
    (PIXEL_UNSHUFFLE, _read_unshuffle),
    (INTERPOLATE, _read_resize),
)
_BENEATH = "it is called beneath torch.nn, where it has no dense form: blurred before it"
_READERS = (
    *((table, reader, "") for table, reader in _TABLES),
    *((ALIASES[id(table)], reader, _BENEATH) for table, reader in _TABLES if id(table) in ALIASES),
    (INDEX_POOLS, _read_max, ""),
    (UPSAMPLES, _read_resize, _BENEATH),
    (GRID_SAMPLES, _read_grid_sample, ""),
)
