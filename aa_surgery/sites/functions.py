"""Read a downsampling op from a call in a forward: functional convs, pools, slices, merges."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

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
    is_getitem,
)
from aa_surgery.sites.merging import (
    read_reshape_merge,
    shape_arguments,
    slice_merge,
    sliced_steps,
)
from aa_surgery.sites.modules import _RETURNS_INDICES, adaptive_reason, read_resize

__all__ = ["read_node"]


def read_node(node: fx.Node, scope: nn.Module) -> dict[str, Any] | None:
    """Return the fields of the `Site` that a graph's node is, or None."""
    if is_getitem(node):
        return _read_slice(node)
    if node.op == "call_method" and node.target in ("reshape", "view"):
        return _read_merge(node)
    if node.op == "call_method" and node.target in _REDUCTIONS:
        return _read_phase_pool(node)
    if node.op != "call_function":
        return None
    target: Any = node.target
    for table, reader in _READERS:
        if target in table:
            names, ndim = table[target]
            return reader(arguments(node, names), ndim, node, scope)
    return _read_merge(node) if target is torch.reshape else None


def _read_conv(
    args: dict[str, Any], ndim: int, node: fx.Node, scope: nn.Module
) -> dict[str, Any] | None:
    stride = each_axis(args.get("stride", 1), ndim)
    if stride is None or max(stride) == 1:
        return None
    weight = _tensor_behind(args["weight"], scope)
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


def _read_max(
    args: dict[str, Any], ndim: int, node: fx.Node, scope: nn.Module
) -> dict[str, Any] | None:
    fields = _window(args, ndim)
    if fields is None:
        return None
    problem = _RETURNS_INDICES if args.get("return_indices") else ""
    return dict(op="max_pool", problem=problem, **fields)


def _read_avg(
    args: dict[str, Any], ndim: int, node: fx.Node, scope: nn.Module
) -> dict[str, Any] | None:
    fields = _window(args, ndim)
    return None if fields is None else dict(op="avg_pool", **fields)


def _window(args: dict[str, Any], ndim: int) -> dict[str, Any] | None:
    """Return kernel, stride, padding and dilation of a pooling call, if it subsamples."""
    kernel = each_axis(args["kernel_size"], ndim)
    stride_arg = args.get("stride")
    stride = kernel if stride_arg is None or stride_arg == [] else each_axis(stride_arg, ndim)
    if kernel is None or stride is None or max(stride) == 1:
        return None
    return dict(
        kernel=kernel,
        stride=stride,
        padding=each_axis(args.get("padding", 0), ndim) or (0,) * ndim,
        dilation=each_axis(args.get("dilation", 1), ndim) or (1,) * ndim,
        ceil_mode=bool(args.get("ceil_mode", False)),
    )


def _read_other_pool(
    args: dict[str, Any], ndim: int, node: fx.Node, scope: nn.Module
) -> dict[str, Any] | None:
    name = getattr(node.target, "__name__", str(node.target))
    return dict(op="avg_pool", problem=f"{name} is no plain maximum or mean")


def _read_adaptive(
    args: dict[str, Any], ndim: int, node: fx.Node, scope: nn.Module
) -> dict[str, Any] | None:
    sizes = each_axis(args.get("output_size"), ndim)
    if sizes is None or all(n == 1 for n in sizes):
        return None
    name = getattr(node.target, "__name__", str(node.target))
    return dict(op="adaptive_pool", problem=adaptive_reason(name, sizes))


def _read_unfold(
    args: dict[str, Any], ndim: int, node: fx.Node, scope: nn.Module
) -> dict[str, Any] | None:
    stride = each_axis(args.get("stride", 1), ndim)
    if stride is None or max(stride) == 1:
        return None
    return dict(op="unfold", stride=stride, kernel=each_axis(args["kernel_size"], ndim) or ())


def _read_unshuffle(
    args: dict[str, Any], ndim: int, node: fx.Node, scope: nn.Module
) -> dict[str, Any] | None:
    factor = each_axis(args["downscale_factor"], ndim)
    return None if factor is None else dict(op="space_to_depth", stride=factor, kernel=factor)


def _read_resize(
    args: dict[str, Any], ndim: int, node: fx.Node, scope: nn.Module
) -> dict[str, Any] | None:
    if args.get("antialias"):
        return None
    return read_resize(args.get("scale_factor"), args.get("mode", "nearest"))


_REDUCTIONS = {"max": "max_pool", "amax": "max_pool", "mean": "avg_pool"}


def _read_phase_pool(node: fx.Node) -> dict[str, Any] | None:
    """Read a pool of tokens in window order: `x.view(B, 4, -1, C).amax(1)` (Hiera).

    The reduced axis has a fixed size, and the windows along the axis behind it are counted by -1.
    """
    view = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(view, fx.Node) or view.target not in ("view", "reshape"):
        return None
    shape = shape_arguments(view)
    if not isinstance(dim, int) or not 0 < dim < len(shape) - 1 or shape[dim + 1] != -1:
        return None
    if not isinstance(shape[dim], int) or shape[dim] < 2:
        return None
    return dict(
        op=_REDUCTIONS[str(node.target)],
        kernel=(shape[dim],),
        stride=(shape[dim],),
        problem="pools tokens in window order, whose neighbours in the map are not at hand. "
        "Blur the map before its tokens are reordered",
    )


_READERS = (
    (CONVS, _read_conv),
    (MAX_POOLS, _read_max),
    (AVG_POOLS, _read_avg),
    (OTHER_POOLS, _read_other_pool),
    (ADAPTIVE, _read_adaptive),
    (UNFOLDS, _read_unfold),
    (PIXEL_UNSHUFFLE, _read_unshuffle),
    (INTERPOLATE, _read_resize),
)


def _read_slice(node: fx.Node) -> dict[str, Any] | None:
    """Read `x[:, :, ::2, ::2]` and its like; one axis alone only where it is surely spatial.

    A step along the last axis of tokens (`x[..., ::2]`, rotary embeddings) is not spatial.
    """
    steps = sliced_steps(node.args[1])
    dims = tuple(sorted(steps))
    if not dims or (len(dims) == 1 and dims[0] < 2):
        return None
    if len(dims) == 1 and (not isinstance(node.args[1], tuple) or len(node.args[1]) != 3):
        return None
    merged = slice_merge(node)
    return dict(
        op="slice",
        stride=tuple(steps[d] for d in dims),
        dims=dims,
        channels_last=dims in ((1, 2), (-3, -2)),
        merged="" if merged is None else merged.name,
    )


def _read_merge(node: fx.Node) -> dict[str, Any] | None:
    """Read space-to-depth: split each axis by `k`, permute, merge the phases into the channels."""
    merge = read_reshape_merge(node)
    if merge is None:
        return None
    return dict(
        op="space_to_depth",
        stride=merge.factors,
        kernel=merge.factors,
        dims=merge.dims,
        channels_last=merge.dims[-1] < merge.rank - 1,
        merged=merge.nodes[-1].name,
    )
