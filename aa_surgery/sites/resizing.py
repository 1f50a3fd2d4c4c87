"""Resizing to a size: the ratio is known where the size is a part of the map's own."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from aa_surgery.sites.kinds import whole_number
from aa_surgery.sites.sizes import lengths_of

__all__ = ["read_resize", "read_resize_to_size"]

_AXES = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}


def read_resize(scale_factor: Any, mode: str, axes: int = 0) -> dict[str, Any] | None:
    """Return the fields of a resizing op that shrinks by a factor known beforehand.

    Args:
        scale_factor: One number, or one an axis.
        mode: Interpolation mode.
        axes: Number of spatial axes, where that is known and the mode does not say it.
    """
    several = isinstance(scale_factor, (tuple, list))
    known = _AXES.get(mode) or axes or (len(scale_factor) if several else 0)
    scales = scale_factor if several else (scale_factor,) * (known or 2)
    if not all(isinstance(s, (int, float)) for s in scales) or min(scales) >= 1:
        return None
    factors = [1 / s for s in scales]
    whole = all(abs(f - round(f)) < 1e-6 for f in factors)
    problem = ""
    if mode == "area":
        problem = "mode 'area' is already an average"
    elif mode not in ("bilinear", "bicubic") and not whole:
        problem = f"resizes by {tuple(scales)}: no whole stride to filter for"
    stride = tuple(max(round(f), 1) for f in factors)
    dims = tuple(range(2, 2 + known))
    return dict(op="interpolate", stride=stride, kernel=(), mode=mode, dims=dims, problem=problem)


def read_resize_to_size(source: Any, size: Any, mode: str) -> dict[str, Any] | None:
    """Return the fields of a resizing to `size`, or None where that is another map's size.

    Args:
        source: The node of the map; None of a module.
        size: The output size: numbers, or nodes.
        mode: Interpolation mode.
    """
    items = size if isinstance(size, (tuple, list)) else (size,)
    if all(whole_number(item) is not None for item in items):
        return _unknown("x".join(str(whole_number(item)) for item in items), mode)
    lengths = lengths_of(size)
    if lengths is None:
        shrinks = source is not None and _is_made_of(items, source)
        return _unknown("a size that is computed as it runs", mode) if shrinks else None
    others = [length.value for length in lengths if length.value is not source]
    if others:  # as large as another map: an enlargement, unless that one is made of this one
        shrinks = source is not None and _is_made_of(others, source, through_modules=True)
        return _unknown("the size of another map", mode) if shrinks else None
    if all(length.divisor == 1 for length in lengths):
        return None
    return read_resize(tuple(1 / length.divisor for length in lengths), mode)


def _is_made_of(sizes: Any, source: fx.Node, through_modules: bool = False) -> bool:
    """Tell whether a size is computed from the map's own, other than by a whole factor."""
    found: list[fx.Node] = []
    fx.node.map_arg(tuple(sizes), found.append)
    if all(n.target is operator.mul and any(whole_number(a) for a in n.args) for n in found):
        return False
    seen = set(found)
    while found:
        node = found.pop()
        if node is source:
            return True
        stops = node.op == "call_module" and not through_modules
        new = set() if stops else set(node.all_input_nodes) - seen
        seen |= new
        found += new
    return False


def _unknown(size: str, mode: str) -> dict[str, Any]:
    return dict(
        op="interpolate",
        mode=mode,
        problem=f"resizes to {size}: by what ratio is known when it runs. If it shrinks the map, "
        "let it have antialias=True, or resize by scale_factor",
    )
