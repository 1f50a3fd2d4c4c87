"""Pools written as a view and a reduction: the phases of each axis are reduced, not joined."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from aa_surgery.sites.merging import (
    is_view,
    only_user,
    read_split,
    shape_arguments,
    spatial_fields,
)
from aa_surgery.sites.origin import Ask

__all__ = ["VIEWED", "read_phase_pool", "read_pooled_view", "reduced_axes"]

REDUCTIONS = {"max": "max_pool", "amax": "max_pool", "mean": "avg_pool", "sum": "avg_pool"}


def reduced_axes(node: fx.Node | None) -> list[int] | None:
    """Return the axes that a node reduces, or None where it is no reduction of named axes."""
    if node is None or _name(node) not in REDUCTIONS:
        return None
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = list(given) if isinstance(given, (tuple, list)) else [given]
    keeps = node.kwargs.get("keepdim") or node.args[2:]
    return None if keeps or any(type(d) is not int for d in dims) else dims


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def read_pooled_view(node: fx.Node, ask: Ask) -> dict[str, Any] | None:
    """Read a pool: `x.view(n, c, h // 2, 2, w // 2, 2).amax((3, 5))`, at once or an axis a call."""
    split = read_split(node) if is_view(node) else None
    if split is None:
        return None
    rest = list(split.sources)
    reduced: list[int] = []
    op, here = "", node
    while len(reduced) < len(split.dims):
        user = only_user(here)
        if user is not None and user.target == "contiguous":
            here = user
            continue
        dims = reduced_axes(user)
        if user is None or dims is None:
            return None
        reduced += [rest[d] for d in dims]
        rest = [r for n, r in enumerate(rest) if n not in [d % len(rest) for d in dims]]
        op, here = REDUCTIONS[_name(user)], _values_of(user)
    if set(reduced) != set(range(split.rank, split.rank + len(split.dims))):
        return None
    source: Any = node.args[0]
    ends = split.rank - 1 in split.dims
    channels_last = not ends and (split.dims[0] == 1 or ask(source).kind != "map")
    fields = spatial_fields(split.dims, split.factors, split.rank, channels_last)
    return dict(op=op, opaque=VIEWED, **fields)


VIEWED = "it is written as views of the map, which have no dense form: blurred before them"


def _values_of(node: fx.Node) -> fx.Node:
    """Return the node of the maxima, where a maximum over one axis gives indices too."""
    user = only_user(node)
    picks = user is not None and user.target is operator.getitem and user.args[1] == 0
    return user if picks and user is not None and _name(node) == "max" else node


def read_phase_pool(node: fx.Node) -> dict[str, Any] | None:
    """Read a pool of tokens in window order: `x.view(B, 4, -1, C).amax(1)` (Hiera).

    The reduced axis has a fixed size, and the windows along the axis behind it are counted by -1.
    """
    view = node.args[0] if node.args else None
    dims = reduced_axes(node)
    if not isinstance(view, fx.Node) or not is_view(view) or dims is None or len(dims) != 1:
        return None
    shape, dim = shape_arguments(view), dims[0]
    if not 0 < dim < len(shape) - 1 or shape[dim + 1] != -1:
        return None
    if not isinstance(shape[dim], int) or shape[dim] < 2:
        return None
    return dict(
        op=REDUCTIONS[_name(node)],
        kernel=(shape[dim],),
        stride=(shape[dim],),
        problem="pools tokens in window order, whose neighbours in the map are not at hand. "
        "Blur the map before its tokens are reordered",
    )
