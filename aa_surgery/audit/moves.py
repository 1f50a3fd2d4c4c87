"""Axes after an op that moves values and computes none: views, copies, pads, slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Size

from aa_surgery.audit.axes import (
    UNKNOWN,
    Atom,
    Axes,
    drop,
    feature_map,
    regroup,
    resize,
    resize_axis,
    slice_axis,
    windows,
)

__all__ = ["FACTORIES", "MOVES", "OP_WORDS", "REARRANGE", "Rearranged"]

Args = Mapping[str, Any]
Shapes = Sequence[Size]
Move = Callable[[Axes, Args, Shapes], list[Axes]]

FACTORIES = frozenset(
    [f"{kind}_like" for kind in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")]
    + [f"new_{kind}" for kind in ("empty", "zeros", "ones", "full", "empty_strided")]
)
"""Ops that take a tensor for its shape and dtype alone."""


def _same(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    return [axes]


def _regroup(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    return [regroup(axes, shape) for shape in shapes]


def _permute(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    return [tuple(axes[d] for d in args["dims"])]


def _transpose(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    order = list(range(len(axes)))
    a, b = args["dim0"], args["dim1"]
    order[a], order[b] = order[b], order[a]
    return [tuple(axes[d] for d in order)]


def _t(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    return [axes[::-1]]


def _expand(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    shape = shapes[0]
    lead = ((),) * (len(shape) - len(axes))
    return [tuple(resize_axis(axis, n) for axis, n in zip((*lead, *axes), shape, strict=True))]


def _pad(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    return [resize(axes, shapes[0])]


def _parts(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    return [resize(axes, shape) for shape in shapes]


def _drop(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    return [drop(axes, [args["dim"] % len(axes)], keepdim=False)] * len(shapes)


def _slice(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    d = args["dim"] % len(axes)
    size = shapes[0][d]
    axis = slice_axis(axes[d], size, args["step"])
    return [(*axes[:d], ((Atom(UNKNOWN, size),) if axis is None else axis), *axes[d + 1 :])]


def _unfold(axes: Axes, args: Args, shapes: Shapes) -> list[Axes]:
    d, size = args["dimension"] % len(axes), args["size"]
    axis = axes[d]
    count = shapes[0][d]
    if len(axis) > 1 or any(a.origin for a in axis):
        return [(*axes[:d], resize_axis(axis, count), *axes[d + 1 :], resize_axis((), size))]
    outer = tuple(Atom(a.kind, count, a.step * args["step"]) for a in axis if count > 1)
    inner = tuple(Atom(a.kind, size, a.step) for a in axis if size > 1)
    return [(*axes[:d], outer, *axes[d + 1 :], inner)]


MOVES: dict[str, Move] = {
    **dict.fromkeys(("alias", "detach", "clone", "_to_copy", "lift_fresh", "roll", "flip"), _same),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy"), _regroup),
    **dict.fromkeys(("squeeze", "unsqueeze"), _regroup),
    "permute": _permute,
    "transpose": _transpose,
    "t": _t,
    "expand": _expand,
    **dict.fromkeys((f"reflection_pad{n}d" for n in (1, 2, 3)), _pad),
    **dict.fromkeys((f"replication_pad{n}d" for n in (1, 2, 3)), _pad),
    "constant_pad_nd": _pad,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "chunk"), _parts),
    "select": _drop,
    "unbind": _drop,
    "slice": _slice,
    "unfold": _unfold,
}
"""Ops that give the values of their first argument in another order: filters stand."""

Rearranged = tuple[Axes, Axes]


def _im2col(args: Args, shape: Sequence[int]) -> Rearranged:
    kernel, dilation, stride = args["kernel_size"], args["dilation"], args["stride"]
    pad = args["padding"]
    counts = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(shape[-2:], kernel, dilation, pad, stride, strict=True)
    ]
    before = feature_map(shape, 2)
    inner, outer = windows(counts, kernel, dilation, stride)
    return before, (*before[:-3], (*before[-3], *inner), outer)


def _pixel_unshuffle(args: Args, shape: Sequence[int]) -> Rearranged:
    r = args["downscale_factor"]
    before = feature_map(shape, 2)
    counts = [n // r for n in shape[-2:]]
    inner, _ = windows(counts, (r, r), (1, 1), (r, r))
    rows = windows(counts[:1], (r,), (1,), (r,))[1]
    columns = tuple(Atom(1, n, r) for n in counts[1:] if n > 1)
    return before, (*before[:-3], (*before[-3], *inner), rows, columns)


REARRANGE: dict[str, Callable[[Args, Sequence[int]], Rearranged]] = {
    "im2col": _im2col,
    "pixel_unshuffle": _pixel_unshuffle,
}
"""Ops that move positions into the channels of a map: the axes before, and those after."""

OP_WORDS = {
    "slice": "slice",
    "select": "slice",
    "unbind": "slice",
    "split": "slice",
    "split_with_sizes": "slice",
    "unsafe_split": "slice",
    **dict.fromkeys(("index", "_unsafe_index", "index_select", "gather", "take"), "slice"),
    **dict.fromkeys(("masked_select", "as_strided"), "slice"),
    "im2col": "unfold",
    "unfold": "unfold",
}
"""What the report calls a move that lowered the rate; any other is `"space_to_depth"`."""
