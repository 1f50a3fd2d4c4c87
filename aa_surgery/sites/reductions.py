"""Pools written as a view and a reduction: the phases of each axis are reduced, not joined."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from aa_surgery.sites.kinds import is_getitem, whole_number
from aa_surgery.sites.merging import (
    Split,
    is_view,
    only_user,
    read_split,
    shape_arguments,
    spatial_fields,
)
from aa_surgery.sites.origin import Ask

__all__ = ["VIEWED", "read_phase_pool", "read_pooled_view", "reduced_axes"]

REDUCTIONS = {
    **dict.fromkeys(("max", "amax", "min", "amin"), "max_pool"),
    **dict.fromkeys(("mean", "sum", "nanmean", "nansum"), "avg_pool"),
}
_OTHERS = set(
    "std var prod norm logsumexp median nanmedian quantile any all argmax argmin topk sort mode "
    "kthvalue".split()
)


def reduced_axes(node: fx.Node | None) -> list[int] | None:
    """Return the axes that a node reduces, or None where it is no reduction of named axes."""
    if node is None or _name(node) not in REDUCTIONS:
        return None
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = list(given) if isinstance(given, (tuple, list)) else [given]
    return None if any(type(d) is not int for d in dims) else dims


def _keeps_axes(node: fx.Node) -> bool:
    return bool(node.kwargs.get("keepdim") or any(node.args[2:]))


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def read_pooled_view(node: fx.Node, ask: Ask) -> dict[str, Any] | None:
    """Read a pool: `x.view(n, c, h // 2, 2, w // 2, 2).amax((3, 5))`, at once or an axis a call."""
    here = node
    split = read_split(node) if is_view(node) else None
    if node.target == "unflatten":
        split, here = _read_unflattened(node, ask)
    if split is None:
        return None
    rest = list(split.sources)
    reduced: list[int] = []
    op = ""
    while len(reduced) < len(split.dims):
        user = only_user(here)
        if user is not None and user.target == "contiguous":
            here = user
            continue
        dims = reduced_axes(user)
        if user is None or dims is None:
            return _picked_or_named(user, split.rank, rest)
        reduced += [rest[d] for d in dims]
        if not _keeps_axes(user):
            rest = [r for n, r in enumerate(rest) if n not in [d % len(rest) for d in dims]]
        op, here = REDUCTIONS[_name(user)], _values_of(user)
    if set(reduced) != set(range(split.rank, split.rank + len(split.dims))):
        return None
    kind = ask(node.args[0]).kind  # type: ignore[arg-type]
    if split.rank > 3 and split.dims == (1,) and kind != "moved":
        return None  # the channels of a map: groups of them are added up, or compared
    ends = split.rank - 1 in split.dims
    channels_last = not ends and (split.dims[0] == 1 or kind != "map")
    fields = spatial_fields(split.dims, split.factors, split.rank, channels_last)
    return dict(op=op, opaque=VIEWED, **fields)


def _read_unflattened(node: fx.Node, ask: Ask) -> tuple[Split | None, fx.Node]:
    """Read `x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))`, and return its last node too."""
    source: Any = node.args[0]
    found = ask(source)
    if found.kind != "map" or not found.axes or getattr(source, "target", "") == "unflatten":
        return None, node
    rank = found.axes + 2
    axes = list(range(rank))
    factors: dict[int, int] = {}
    here: fx.Node | None = node
    last = node
    while here is not None and here.target == "unflatten":
        given = dict(zip(("input", "dim", "sizes"), here.args, strict=False)) | here.kwargs
        dim, sizes = whole_number(given.get("dim")), given.get("sizes")
        if dim is None or not isinstance(sizes, (tuple, list)) or len(sizes) != 2:
            return None, node
        factor, dim = whole_number(sizes[1]), dim % len(axes)
        if factor is None or factor < 2 or not 1 < axes[dim] < rank:
            return None, node
        factors[axes[dim]] = factor
        axes.insert(dim + 1, rank + len(factors) - 1)
        last, here = here, only_user(here)
    return Split(tuple(factors), tuple(factors.values()), rank, tuple(axes), ()), last


def _picked_or_named(node: fx.Node | None, rank: int, axes: list[int]) -> dict[str, Any] | None:
    """Read what takes the phases, the axes from `rank` on, and is no pool that can be blurred for.

    An index keeps one phase of each; other reductions have no filter that would prepare for them.
    """
    if node is None:
        return None
    if is_getitem(node):
        items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        kept = dict(zip(axes, items, strict=False))
        picked = [axis for axis in kept if axis >= rank and whole_number(kept[axis]) is not None]
        problem = "keeps one phase of a view of the map: sample by a slice instead, x[:, :, ::2]"
        return dict(op="slice", problem=problem) if picked and Ellipsis not in items else None
    if _name(node) not in _OTHERS:
        return None
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [whole_number(d) for d in (given if isinstance(given, (tuple, list)) else [given])]
    taken = [axes[d] for d in dims if d is not None and -len(axes) <= d < len(axes)]
    problem = f"pools by {_name(node)}, which is no plain maximum or mean"
    return dict(op="avg_pool", problem=problem) if any(a >= rank for a in taken) else None


VIEWED = "it is written as views of the map, which have no dense form: blurred before them"


def _values_of(node: fx.Node) -> fx.Node:
    """Return the node of the maxima, where a maximum over one axis gives indices too."""
    user = only_user(node)
    if user is None or _name(node) not in ("max", "min"):
        return node
    picks = user.target is operator.getitem and user.args[1] == 0
    return user if picks or (user.target is getattr and user.args[1] == "values") else node


def read_phase_pool(node: fx.Node, ask: Ask) -> dict[str, Any] | None:
    """Read a pool of tokens in window order: `x.view(B, 4, -1, C).amax(1)` (Hiera).

    The reduced axis has a fixed size, and those behind it are counted: by -1, or `n // 4`.
    """
    view = node.args[0] if node.args else None
    dims = reduced_axes(node)
    if not isinstance(view, fx.Node) or not is_view(view) or dims is None or len(dims) != 1:
        return None
    shape, dim = shape_arguments(view), dims[0]
    if not 0 < dim < len(shape) - 1 or not isinstance(shape[dim], int) or shape[dim] < 2:
        return None
    count = shape[dim + 1]
    divided = isinstance(count, fx.Node) and count.target is operator.floordiv
    if divided:  # of tokens; of a map, and in the last axis, it is the channels that are counted
        behind = dim + 2 < len(shape) and ask(view.args[0]).kind == "moved"  # type: ignore[arg-type]
        if not behind or count.args[1] != shape[dim]:
            return None
    elif count != -1:
        return None
    return dict(
        op=REDUCTIONS[_name(node)],
        kernel=(shape[dim],),
        stride=(shape[dim],),
        problem="pools tokens in window order, whose neighbours in the map are not at hand. "
        "Blur the map before its tokens are reordered",
    )
