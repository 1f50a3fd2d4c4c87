"""Pools over the whole map, known from what reads them: they leave one position, and sample none.

A pool whose output goes flat into a linear layer of as many inputs as it has channels gives one
number a channel. Whatever its window, the network runs on no map of which it would give more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from aa_surgery.sites.flow import Flow, Spot
from aa_surgery.sites.kinds import is_getitem, whole_number
from aa_surgery.sites.merging import shape_arguments
from aa_surgery.sites.origin import origin
from aa_surgery.sites.roles import role_of_function, role_of_module
from aa_surgery.sites.sizes import Length, axes_read, read_length

__all__ = ["is_global_pool", "whole_map"]

_MAX_STEPS = 10


def is_global_pool(flow: Flow, pool: Spot) -> bool:
    """Tell whether what reads a pool takes one number a channel of it."""
    channels = 0  # read only where it is asked for: walking back takes longer than forward
    here, flat = pool, False
    for _ in range(_MAX_STEPS):
        uses = flow.uses(here)
        if not uses or any(use.node is not uses[0].node for use in uses):
            return False
        here = uses[0]
        node = here.node
        if node.op == "call_module":
            module: Any = flow.module_of(here)
            width = getattr(module, "in_features", None)
            if flat and isinstance(width, int):
                return width == (channels or origin(flow, pool).channels)
            if isinstance(module, nn.modules.conv._ConvNd):
                if set(module.kernel_size) != {1} or set(module.stride) != {1}:
                    return False
                channels = module.out_channels
            elif isinstance(module, nn.Flatten):
                if (module.start_dim, module.end_dim) != (1, -1):
                    return False
                flat = True
            elif role_of_module(module, channels_last=flat) not in _PASSED:
                return False
        elif _takes_rows(node):
            rows = _rows(node)
            if isinstance(rows, bool):
                return rows
            if rows > 0:
                return rows == (channels or origin(flow, pool).channels)
            flat = True
        elif _drops_axes(node):
            flat = True
        elif role_of_function(node, channels_last=flat) not in _PASSED:
            return False
    return False


_PASSED = ("norm", "activation", "transparent")


def _takes_rows(node: fx.Node) -> bool:
    flattens = node.target in ("flatten", torch.flatten)
    return flattens or node.target in ("view", "reshape", torch.reshape)


def _rows(node: fx.Node) -> int | bool:
    """Return how long the rows `(N, k)` are that a view makes: `k`, or 0 for all that there is.

    True where `k` is the number of channels; False where the result is no rows.
    """
    if node.target in ("flatten", torch.flatten):
        given = [*node.args[1:], *node.kwargs.values()]
        return 0 if given == [1] else False
    shape = shape_arguments(node)
    if len(shape) == 1:
        return _is_batch_and_channels(shape[0])
    if len(shape) != 2:
        return False
    size, length = whole_number(shape[1]), read_length(shape[1])
    if size is None:
        return length is not None and (length.dim, length.divisor) == (1, 1)
    if size != -1:
        return size if size > 0 else False
    return 0 if _is_batch(shape[0]) else False


def _is_batch(size: Any) -> bool:
    length = read_length(size)
    known = length is not None and (length.dim, length.divisor) == (0, 1)
    return known or isinstance(size, int)


def _is_batch_and_channels(shape: Any) -> bool:
    """Tell whether a node is `x.shape[:2]`."""
    if not isinstance(shape, fx.Node) or not is_getitem(shape):
        return False
    return shape.args[1] == slice(None, 2) and axes_read(shape.args[0]) is not None


def _drops_axes(node: fx.Node) -> bool:
    """Tell whether a node takes spatial axes of one sample away: `squeeze`, `x[:, :, 0, 0]`."""
    if node.target in ("squeeze", torch.squeeze):
        dims = [d for d in node.args[1:] if d not in (0, 1)] or list(node.kwargs.values())
        return len(node.args) == 1 or bool(dims)
    if not is_getitem(node) or not isinstance(node.args[1], tuple):
        return False
    head, rest = node.args[1][:2], node.args[1][2:]
    return head == (slice(None),) * 2 and bool(rest) and set(rest) <= {0, -1}


def whole_map(sizes: Any, value: fx.Node) -> bool:
    """Tell whether a window is the whole map: `F.avg_pool2d(x, x.shape[2:])`."""
    axes = axes_read(sizes)
    if axes is not None:
        return axes[0] is value and axes[1] in (2, -1, -2, -3)
    items = sizes if isinstance(sizes, (tuple, list)) else [sizes]
    lengths = [read_length(item) for item in items]
    return all(_is_side(length, value) for length in lengths) and bool(lengths)


def _is_side(length: Length | None, value: fx.Node) -> bool:
    whole = length is not None and length.divisor == 1 and length.dim not in (0, 1)
    return whole and length is not None and length.value is value
