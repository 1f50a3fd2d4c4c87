"""Pools over the whole map, known from what reads them: they leave one position, and sample none.

A pool whose output goes flat into a linear layer of as many inputs as it has channels gives one
number a channel. Whatever its window, the network runs on no map of which it would give more.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from aa_surgery.sites.flow import Flow, Spot
from aa_surgery.sites.kinds import arguments, is_getitem, whole_number
from aa_surgery.sites.merging import shape_arguments
from aa_surgery.sites.origin import ARITHMETIC, SAME_METHODS, origin
from aa_surgery.sites.roles import role_of_function, role_of_module
from aa_surgery.sites.sizes import Length, axes_read, read_length

__all__ = ["is_global_pool", "whole_map"]

_MAX_VISITS = 40


def is_global_pool(flow: Flow, pool: Spot) -> bool:
    """Tell whether something that reads a pool can do so only if it leaves one number a channel.

    One such reader is enough, whoever else reads the pool.
    """
    waiting = [_Pooled(pool, pool)]
    source = next(iter(pool.node.all_input_nodes), None)
    visits = 0
    while waiting and visits < _MAX_VISITS:
        here = waiting.pop()
        for use in flow.known_uses(here.spot):
            visits += 1
            if _gates(use.node, here.spot.node, source):
                return True
            found = here.read_by(use, flow)
            if isinstance(found, bool):
                if found:
                    return True
            else:
                waiting.append(found)
    return False


def _gates(node: fx.Node, value: fx.Node, source: fx.Node | None) -> bool:
    """Tell whether a pool is multiplied with, or added to, the map that it pooled."""
    return node.target in ARITHMETIC and source in node.args and value is not source


@dataclass(frozen=True)
class _Pooled:
    """What has become of a pool's output.

    Attributes:
        spot: The value.
        whole: The value whose number of channels counts: the pool, or what it is joined to.
        channels: Their number, where a convolution changed it; else 0.
        flat: Whether the value is rows `(N, k)`.
    """

    spot: Spot
    whole: Spot
    channels: int = 0
    flat: bool = False

    def read_by(self, use: Spot, flow: Flow) -> _Pooled | bool:
        """Return what a reader makes of it; a boolean where that decides, or nothing can."""
        node = use.node
        if node.op == "call_module":
            return self._read_by_module(use, flow.module_of(use), flow)
        here = replace(self, spot=use)
        if node.target is torch.cat:
            return self._joined(use, flow)
        if self.flat and (width := _width_of_weight(node, flow.modules[use.path])):
            return width == self._width(flow)
        if _is_einops(node):
            return _rows_of_pattern(node, here)
        if _takes_rows(node):
            rows = _rows(node)
            if rows is None:
                return here
            if isinstance(rows, bool):
                return rows
            return rows == self._width(flow) if rows > 0 else replace(here, flat=True)
        if _drops_axes(node):
            return replace(here, flat=True)
        return here if _keeps_shape(node, self.flat) else False

    def _read_by_module(self, use: Spot, module: Any, flow: Flow) -> _Pooled | bool:
        here = replace(self, spot=use)
        width = getattr(module, "in_features", None)
        if self.flat and isinstance(width, int):
            return width == self._width(flow)
        if isinstance(module, nn.modules.conv._ConvNd):
            plain = set(module.kernel_size) == {1} == set(module.stride)
            return replace(here, channels=module.out_channels) if plain else False
        if isinstance(module, nn.Flatten):
            return (
                replace(here, flat=True) if (module.start_dim, module.end_dim) == (1, -1) else False
            )
        return here if role_of_module(module, channels_last=self.flat) else False

    def _width(self, flow: Flow) -> int:
        # asked for last: walking back takes longer than forward
        return self.channels or origin(flow, self.whole).channels

    def _joined(self, use: Spot, flow: Flow) -> _Pooled | bool:
        """Return the concatenation of pools: their channels add up."""
        parts, dim = [*use.node.args, use.node.kwargs.get("dim", 0)][:2]
        if dim not in (1, -1 if self.flat else 1) or not isinstance(parts, (list, tuple)):
            return False
        if not self.flat:
            return _Pooled(use, use)
        widths = [_row_width(flow, Spot(use.path, part)) for part in parts]
        return _Pooled(use, use, sum(widths), True) if all(widths) else False


def _row_width(flow: Flow, rows: Spot) -> int:
    """Return the channels of a map that was made rows, or 0."""
    node = rows.node
    source = node.args[0] if node.args and (_takes_rows(node) or _drops_axes(node)) else None
    module: Any = flow.module_of(rows) if node.op == "call_module" else None
    source = node.args[0] if isinstance(module, nn.Flatten) else source
    if not isinstance(source, fx.Node):
        return 0
    return origin(flow, Spot(rows.path, source)).channels or _row_width(
        flow, Spot(rows.path, source)
    )


_SHAPE_KEPT = {
    *(F.normalize, F.softmax, F.log_softmax, F.layer_norm, F.group_norm, F.instance_norm),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.clamp, torch.sqrt, torch.exp, torch.log, torch.pow, operator.pow),
}


def _keeps_shape(node: fx.Node, flat: bool) -> bool:
    """Tell whether the result has at least the positions of the pool: it may be broadcast."""
    if node.op == "call_method":
        named = node.target in SAME_METHODS or node.target in ("pow", "sqrt", "div_", "softmax")
        return named or bool(role_of_function(node, channels_last=flat))
    known = node.target in ARITHMETIC or node.target in _SHAPE_KEPT
    return known or bool(role_of_function(node, channels_last=flat))


def _width_of_weight(node: fx.Node, scope: nn.Module) -> int:
    """Return how long rows a matrix product with a parameter of `scope` takes, or 0."""
    weight: Any
    if node.target is F.linear:
        weight, axis = arguments(node, ("input", "weight", "bias")).get("weight"), 1
    elif node.target in (operator.matmul, torch.matmul, torch.mm, "matmul", "mm"):
        weight, axis = node.args[1] if len(node.args) > 1 else None, 0
        turned = isinstance(weight, fx.Node) and (
            weight.target in ("t", torch.t) or (weight.target is getattr and weight.args[1] == "T")
        )
        weight, axis = (weight.args[0], 1) if turned else (weight, 0)
    else:
        return 0
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return 0
    held: Any = scope
    for part in str(weight.target).split("."):
        held = getattr(held, part, None)
    return int(held.shape[axis]) if isinstance(held, torch.Tensor) and held.ndim == 2 else 0


def _is_einops(node: fx.Node) -> bool:
    home = (getattr(node.target, "__module__", None) or "").partition(".")[0]
    return home == "einops" and getattr(node.target, "__name__", "") == "rearrange"


def _rows_of_pattern(node: fx.Node, here: _Pooled) -> _Pooled | bool:
    """Read `b c 1 1 -> b c`, which one sample alone fits, and `b c h w -> b (c h w)`."""
    pattern = arguments(node, ("tensor", "pattern")).get("pattern")
    if not isinstance(pattern, str):
        return False
    before, _, after = (side.split() for side in pattern.partition("->"))
    if len(before) > 2 and set(before[2:]) <= {"1", "()"}:
        return True
    joined = " ".join(after[1:]).strip("()").split()
    return replace(here, flat=True) if after[:1] == before[:1] and joined == before[1:] else False


def _takes_rows(node: fx.Node) -> bool:
    flattens = node.target in ("flatten", torch.flatten)
    return flattens or node.target in ("view", "reshape", torch.reshape)


def _rows(node: fx.Node) -> int | bool | None:
    """Return how long the rows `(N, k)` are that a view makes: `k`, or 0 for all that there is.

    True where `k` is the number of channels; False where the result is no rows; None where its
    positions are one axis, and the channels another.
    """
    if node.target in ("flatten", torch.flatten):
        given = arguments(node, ("input", "start_dim", "end_dim"))
        start, end = given.get("start_dim", 0), given.get("end_dim", -1)
        if end not in (-1, 3):
            return False
        return 0 if start in (1, -3) else None if start in (2, -2) else False
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
    whole = node.args[1][0] is Ellipsis
    head, rest = node.args[1][:2], node.args[1][1 if whole else 2 :]
    plain = all(isinstance(index, int) and index in (0, -1) for index in rest)
    return (whole or head == (slice(None),) * 2) and bool(rest) and plain


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
