"""Axes after an op that computes values: matrix products, reductions, joins, everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Size, Tensor

from aa_surgery.audit.axes import (
    BATCH,
    CHANNEL,
    UNKNOWN,
    Atom,
    Axes,
    Axis,
    broadcast,
    drop,
    resize,
    resize_axis,
    size_of,
)

__all__ = ["COMPUTE", "PRODUCTS", "REDUCTIONS", "fallback", "map_ndim"]

Args = Mapping[str, Any]
AxesOf = Callable[[Tensor], "Axes | None"]
Shapes = Sequence[Size]
Rule = Callable[[AxesOf, Args, Shapes], "list[Axes]"]

_MAP_OPS = (
    "convolution",
    "_convolution",
    "upsample",
    "_upsample",
    "max_pool",
    "avg_pool",
    "adaptive",
    "_adaptive",
    "fractional_max_pool",
    "grid_sampler",
    "pixel_shuffle",
    "col2im",
)

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")

REDUCTIONS = {
    **dict.fromkeys(
        ("amax", "amin", "max", "min", "aminmax", "topk", "argmax", "argmin", "any", "all"),
        "max_pool",
    ),
    **dict.fromkeys(("mean", "sum", "nansum", "median", "logsumexp", "prod"), "avg_pool"),
    **dict.fromkeys(
        ("var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm"), "avg_pool"
    ),
}
"""Reductions, and the pool that each is when it runs over the phases of a map."""


def map_ndim(name: str, args: Args, shape: Sequence[int]) -> int | None:
    """Return how many trailing axes of an op's result are those of a map; None of other ops."""
    if not name.startswith(_MAP_OPS) or name.endswith("_backward"):
        return None
    if "convolution" in name:
        return int(args["weight"].ndim) - 2
    digits = [int(c) for c in name if c in "123"]
    return digits[0] if digits and name != "col2im" else 2


def fallback(operands: Sequence[tuple[Axes, Size]], shape: Size) -> Axes:
    """Return the axes of an op that is not known: elementwise, or a change of size in place."""
    fitting = [axes for axes, s in operands if _broadcasts(s, shape)]
    if fitting:
        return broadcast(fitting, shape)
    same_rank = [axes for axes, s in operands if len(s) == len(shape)]
    if same_rank:
        return resize(same_rank[0], shape)
    return tuple(_unknown(n) for n in shape)


def _unknown(size: int) -> Axis:
    return () if size == 1 else (Atom(UNKNOWN, size),)


def _channel(size: int) -> Axis:
    return () if size == 1 else (Atom(CHANNEL, size),)


def _broadcasts(shape: Size, to: Size) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, m) for n, m in pairs)


def _product(axes_of: AxesOf, args: Args, shapes: Shapes) -> list[Axes]:
    """Rows are those of the left factor, columns those of the right one.

    A constant that mixes positions (a token mixer, `x.mT @ weight`) gives positions again.
    """
    left, right = _factors(args)
    a, b = axes_of(left), axes_of(right)
    shape = shapes[0]
    rows, columns = _channel(shape[-2]), _channel(shape[-1])
    if a is not None:
        rows = a[-2]
        columns = _mixed(a[-1], shape[-1]) if b is None else b[-1]
    elif b is not None:
        rows, columns = _mixed(b[-2], shape[-2]), b[-1]
    known = a if a is not None else b
    batch = known[:-2] if known is not None else ()
    return [(*batch, rows, columns)]


def _mixed(axis: Axis, size: int) -> Axis:
    if not axis or not all(a.is_spatial or a.origin for a in axis):
        return _channel(size)
    positions = [a for b in axis for a in b.origin or (b,)]
    fewer = 1 < size < size_of(positions)
    return (Atom(positions[0].kind, size),) if fewer else resize_axis(axis, size)


def _factors(args: Args) -> tuple[Tensor, Tensor]:
    names = ("mat1", "mat2") if "mat1" in args else ("batch1", "batch2")
    if names[0] in args:
        return args[names[0]], args[names[1]]
    return args["self"], args["mat2"]


def _reduce(axes_of: AxesOf, args: Args, shapes: Shapes) -> list[Axes]:
    axes = axes_of(args["self"])
    if axes is None or "dim" not in args:
        return [fallback([(axes, args["self"].shape)] if axes else [], s) for s in shapes]
    dim = args["dim"]
    rank = len(axes)
    dims = [dim] if isinstance(dim, int) else list(dim or range(rank))
    reduced = drop(axes, [d % rank for d in dims], bool(args.get("keepdim", False)))
    return [reduced if len(reduced) == len(s) else resize(axes, s) for s in shapes]


def _cat(axes_of: AxesOf, args: Args, shapes: Shapes) -> list[Axes]:
    parts = [axes for t in args["tensors"] if (axes := axes_of(t)) is not None]
    longest = max(
        (t for t in args["tensors"] if axes_of(t) is not None and t.ndim == len(shapes[0])),
        key=lambda t: t.shape[args["dim"]],
    )
    d = args["dim"] % len(shapes[0])
    joined = axes_of(longest) or parts[0]
    others = broadcast(parts, [*shapes[0][:d], longest.shape[d], *shapes[0][d + 1 :]])
    size = shapes[0][d]
    axis = resize_axis(joined[d], size) if d or joined[d] else (Atom(BATCH, size),)
    return [(*others[:d], axis, *others[d + 1 :])]


def _stack(axes_of: AxesOf, args: Args, shapes: Shapes) -> list[Axes]:
    parts = [axes for t in args["tensors"] if (axes := axes_of(t)) is not None]
    d = args["dim"] % len(shapes[0])
    rest = broadcast(parts, [*shapes[0][:d], *shapes[0][d + 1 :]])
    return [(*rest[:d], _channel(shapes[0][d]), *rest[d:])]


def _lookup(axes_of: AxesOf, args: Args, shapes: Shapes) -> list[Axes]:
    """Each number of a map looks up an entry of a table: an embedding, a palette."""
    given = args["index"] if "index" in args else args["indices"]
    numbers = [None] * args.get("dim", 0) + [given] if isinstance(given, Tensor) else given
    found = [(axes, t.shape) for t in numbers if t is not None and (axes := axes_of(t)) is not None]
    shape = shapes[0]
    rank = max(len(s) for _, s in found)
    at = next(i for i, t in enumerate(numbers) if t is not None)
    entry = [_channel(n) for n in shape]
    return [(*entry[:at], *fallback(found, shape[at : at + rank]), *entry[at + rank :])]


def _scatter(axes_of: AxesOf, args: Args, shapes: Shapes) -> list[Axes]:
    """A map of numbers that says where its entries go in a blank tensor: one-hot codes."""
    axes, numbers = axes_of(args["self"]), axes_of(args["index"])
    if axes is not None or numbers is None:
        return [fallback([(axes, args["self"].shape)] if axes else [], shapes[0])]
    d = args["dim"] % len(shapes[0])
    resized = resize(numbers, shapes[0])
    return [(*resized[:d], _channel(shapes[0][d]), *resized[d + 1 :])]


COMPUTE: dict[str, Rule] = {
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(REDUCTIONS, _reduce),
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(("embedding", "index", "_unsafe_index", "index_select"), _lookup),
    **dict.fromkeys(("scatter", "scatter_"), _scatter),
}
"""Rules by the name of the op; any op that is not here takes `fallback`."""
