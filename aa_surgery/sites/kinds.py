"""Tables of functions that sample a map, and small questions about modules and nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = [
    "ADAPTIVE",
    "AVG_POOLS",
    "CONVS",
    "INTERPOLATE",
    "MAX_POOLS",
    "OTHER_POOLS",
    "PIXEL_UNSHUFFLE",
    "UNFOLDS",
    "arguments",
    "each_axis",
    "has_two_forms",
    "is_container",
    "is_einops_module",
    "is_getitem",
    "is_size_read",
    "is_torch_forward",
    "own_forward",
    "pads_to_same",
    "reads_map_size",
    "whole_number",
]

# functions, with the names of their positional arguments and the number of spatial axes
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG = (
    "input",
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)
_RESIZE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")

Table = dict[Callable[..., Any], tuple[tuple[str, ...], int]]

CONVS: Table = {F.conv1d: (_CONV, 1), F.conv2d: (_CONV, 2), F.conv3d: (_CONV, 3)}
MAX_POOLS: Table = {
    F.max_pool1d: (_MAX, 1),
    F.max_pool2d: (_MAX, 2),
    F.max_pool3d: (_MAX, 3),
    torch.max_pool1d: (_MAX, 1),
    torch.max_pool2d: (_MAX, 2),
    torch.max_pool3d: (_MAX, 3),
}
AVG_POOLS: Table = {F.avg_pool1d: (_AVG, 1), F.avg_pool2d: (_AVG, 2), F.avg_pool3d: (_AVG, 3)}
INTERPOLATE: Table = {F.interpolate: (_RESIZE, 0)}
UNFOLDS: Table = {F.unfold: (("input", "kernel_size", "dilation", "padding", "stride"), 2)}
PIXEL_UNSHUFFLE: Table = {
    F.pixel_unshuffle: (("input", "downscale_factor"), 2),
    torch.pixel_unshuffle: (("input", "downscale_factor"), 2),
}
ADAPTIVE: Table = {
    function: (("input", "output_size"), ndim)
    for ndim, functions in {
        1: (F.adaptive_avg_pool1d, F.adaptive_max_pool1d),
        2: (F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
        3: (F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
    }.items()
    for function in functions
}
OTHER_POOLS: Table = {
    F.lp_pool1d: (("input", "norm_type", "kernel_size", "stride"), 1),
    F.lp_pool2d: (("input", "norm_type", "kernel_size", "stride"), 2),
}


def is_size_read(node: fx.Node) -> bool:
    """Tell whether the node reads a tensor's size, not its values."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "stride", "is_contiguous")
    return (
        node.op == "call_function"
        and node.target is getattr
        and node.args[1] in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")
    )


def reads_map_size(node: fx.Node) -> bool:
    """Tell whether the forward makes something of the height or width of a node's value."""
    for read in node.users:
        if not is_size_read(read) or (read.target is getattr and read.args[1] != "shape"):
            continue
        if read.op == "call_method" and (read.target != "size" or len(read.args) > 1):
            if read.target == "size" and read.users and read.args[1] not in (0, 1):
                return True
            continue
        if any(not is_getitem(u) or (u.users and u.args[1] not in (0, 1)) for u in read.users):
            return True
    return False


def is_container(module: nn.Module) -> bool:
    """Tell whether `module` is a plain container of torch, whose forward only calls children."""
    return isinstance(module, nn.Sequential)


def has_two_forms(module: nn.Module) -> bool:
    """Tell whether the block exists as branches, and merged into one op (RepVGG, MobileOne).

    Both forms shall be treated alike, so that the weights of one serve the other. The branches'
    activation is behind their sum, so a blur stands before them; so it does before the one op.
    """
    return hasattr(module, "reparameterize") or hasattr(module, "switch_to_deploy")


def is_einops_module(module: nn.Module) -> bool:
    """Tell whether the module is a layer of einops, whose forward reads its pattern as it runs."""
    return type(module).__module__ in _EINOPS and isinstance(getattr(module, "pattern", 0), str)


_EINOPS = ("einops.layers.torch", "einops.layers._einmix")


def is_torch_forward(module: nn.Module) -> bool:
    """Tell whether the class computes what a class of `torch.nn` computes."""
    return (type(module).forward.__module__ or "").startswith("torch.nn.modules")


def own_forward(module: nn.Module) -> bool:
    """Tell whether the class brings a forward of its own: not one of `torch.nn`, nor one known."""
    return not (is_torch_forward(module) or pads_to_same(module) or is_einops_module(module))


# forwards that only pad before they convolve: to ceil(n / stride) samples, as TensorFlow does
_SAME_PADDED = {
    ("mmcv.cnn.bricks.conv2d_adaptive_padding", "Conv2dAdaptivePadding.forward"),
    ("timm.layers.conv2d_same", "Conv2dSame.forward"),
}


def pads_to_same(module: nn.Module) -> bool:
    """Tell whether the module is a convolution that computes its own SAME padding as it runs."""
    forward = type(module).forward
    name = getattr(forward, "__qualname__", "")
    return (forward.__module__, name) in _SAME_PADDED


def arguments(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a call's arguments by name."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def each_axis(value: Any, ndim: int) -> tuple[int, ...] | None:
    """Return `value` once an axis, or None where it is not known before the forward runs."""
    if isinstance(value, (tuple, list)):
        sizes = [whole_number(v) for v in value]
        known = tuple(n for n in sizes if n is not None)
        if not known or len(known) != len(sizes):
            return None
        return known if len(known) == ndim else known * ndim
    size = whole_number(value)
    return None if size is None else (size,) * ndim


def whole_number(value: Any) -> int | None:
    """Return a number that is given as Python's, numpy's or torch's integer; None of all else."""
    if isinstance(value, (bool, fx.Node)) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # a tensor of fractions, of many numbers, or without any
        return None


def is_getitem(node: fx.Node) -> bool:
    """Tell whether the node indexes its input."""
    return node.op == "call_function" and node.target is operator.getitem
