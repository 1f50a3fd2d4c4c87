"""Axes after an op that takes entries by number: index, gather, take, a step through the storage.

The numbers are there when the op runs, so they are read: entries that make a grid of regular steps
are a slice, whoever wrote it; all entries in another order are a shuffle; anything else that keeps
fewer of them is not understood, and None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aa_surgery.audit.axes import (
    BATCH,
    CHANNEL,
    UNKNOWN,
    Atom,
    Axes,
    Axis,
    regroup,
    resize_axis,
    size_of,
)

__all__ = ["PICKS", "Numbers", "grid_axis", "lost_axes"]

Args = Mapping[str, Any]
Numbers = npt.NDArray[np.int64]
Pick = Callable[[Axes, Args], "Axes | None"]


def grid_axis(axis: Axis, coordinates: Sequence[Numbers]) -> Axis | None:
    """Return the axis of the entries at `coordinates`, one vector of them an atom of `axis`.

    None where the entries are not a grid in row-major order with a regular step along each atom.
    """
    count = len(coordinates[0]) if coordinates else 1
    values = [_in_order(c) for c in coordinates]
    lengths = [len(v) for v in values]
    if math.prod(lengths) != count:
        return None
    mesh = np.meshgrid(*values, indexing="ij") if values else []
    if not all(np.array_equal(m.ravel(), c) for m, c in zip(mesh, coordinates, strict=True)):
        return None
    out: list[Atom] = []
    for a, v in zip(axis, values, strict=True):
        steps = set(np.abs(np.diff(v)).tolist())
        if len(v) == 1:
            continue
        if a.kind in (BATCH, CHANNEL):
            out.append(replace(a, size=len(v)))
        elif len(steps) > 1 or (a.kind == UNKNOWN and steps != {1}) or (a.origin and steps != {1}):
            return None
        else:
            out.append(replace(a, size=len(v), step=a.step * steps.pop()))
    return tuple(out)


def _in_order(values: Numbers) -> Numbers:
    """Return the distinct values in the order of their first appearance."""
    distinct, first = np.unique(values, return_index=True)
    ordered: Numbers = distinct[np.argsort(first)]
    return ordered


def _taken(axis: Axis, numbers: Numbers) -> Axes | None:
    """Return the axes, one a dimension of `numbers`, of those entries of `axis`."""
    if any(a.size == 0 for a in axis) or numbers.size == 0:
        return None
    coordinates = np.unravel_index(numbers, [a.size for a in axis]) if axis else ()
    start = [c.flat[0] for c in coordinates]
    lines = [_lines(c) for c in coordinates]
    separable = all(
        np.array_equal(sum(np.ix_(*line)) + s, c)  # each dimension moves on its own
        for line, s, c in zip(lines, start, coordinates, strict=True)
    )
    if separable:
        by_dim = [
            [line[d] + s for line, s in zip(lines, start, strict=True)] for d in range(numbers.ndim)
        ]
        axes = [grid_axis(axis, of_dim) for of_dim in by_dim]
        if all(a is not None for a in axes):
            return tuple(a for a in axes if a is not None)
    flat = _flat(axis, numbers.ravel(), [c.ravel() for c in coordinates])
    return None if flat is None else regroup((flat,), numbers.shape)


def _lines(values: Numbers) -> list[Numbers]:
    """Return how `values` move along each of its dimensions from its first entry."""
    first = values.flat[0]
    return [
        np.moveaxis(values, d, -1)[(0,) * (values.ndim - 1)] - first for d in range(values.ndim)
    ]


def _flat(axis: Axis, numbers: Numbers, coordinates: Sequence[Numbers]) -> Axis | None:
    grid = grid_axis(axis, coordinates)
    if grid is not None:
        return grid
    if np.all(np.diff(numbers) == 1):
        return resize_axis(axis, len(numbers))
    if len(np.unique(numbers)) == size_of(axis):  # shuffled or repeated: every entry is there
        origin = tuple(b for a in axis for b in a.origin or (a,))
        return (Atom(UNKNOWN, len(numbers), 1, origin),)
    return None


def lost_axes(axes: Axes, shape: Sequence[int]) -> Axes:
    """Return the axes of a result that is not understood: its first axes stand for no position."""
    kept = axes[len(axes) - len(shape) :] if len(axes) >= len(shape) else ()
    lead = len(shape) - len(kept)
    known = (*((),) * lead, *kept)
    pairs = zip(known, shape, strict=True)
    return tuple(a if size_of(a) == n else (Atom(UNKNOWN, n),) * (n != 1) for a, n in pairs)


def _numbers(index: Tensor, size: int) -> Numbers | None:
    if index.is_meta:
        return None
    numbers: Numbers = index.detach().cpu().numpy().astype(np.int64) % max(size, 1)
    return numbers


def _index(axes: Axes, args: Args) -> Axes | None:
    """Read `x[..., i, j, ...]`: the axes of vectors side by side stand where the first stood."""
    shape = args["self"].shape
    vectors: dict[int, Numbers] = {}
    dim = 0
    for index in args["indices"]:
        if index is None:
            dim += 1
            continue
        if index.is_meta:
            return None
        mask = index.dtype in (torch.bool, torch.uint8)
        for one in index.nonzero(as_tuple=True) if mask else (index,):
            numbers = _numbers(one, shape[dim])
            if numbers is None:
                return None
            vectors[dim] = numbers
            dim += 1
    dims = list(vectors)
    flat = np.ravel_multi_index(
        np.broadcast_arrays(*vectors.values()), [shape[d] for d in dims]
    ).astype(np.int64)
    axis = tuple(a for d in dims for a in axes[d])
    taken = _taken(axis, flat) if size_of(axis) == math.prod(shape[d] for d in dims) else None
    if taken is None:
        return None
    rest = [a for d, a in enumerate(axes) if d not in vectors]
    side_by_side = dims == list(range(dims[0], dims[0] + len(dims)))
    at = dims[0] if side_by_side else 0
    return (*rest[:at], *taken, *rest[at:])


def _index_select(axes: Axes, args: Args) -> Axes | None:
    d = args["dim"] % max(len(axes), 1)
    numbers = _numbers(args["index"].reshape(-1), args["self"].shape[d])
    taken = None if numbers is None else _taken(axes[d], numbers)
    return None if taken is None else (*axes[:d], *taken, *axes[d + 1 :])


def _gather(axes: Axes, args: Args) -> Axes | None:
    """Read a gather whose vector of numbers is the same all over the other axes."""
    d, index = args["dim"] % max(len(axes), 1), args["index"]
    if index.is_meta or index.numel() == 0:
        return None
    lines = index.movedim(d, -1)
    vector = lines[(0,) * (index.ndim - 1)]
    if not torch.equal(lines, vector.expand_as(lines)):
        return None
    numbers = _numbers(vector, args["self"].shape[d])
    taken = None if numbers is None else _taken(axes[d], numbers)
    if taken is None:
        return None
    cropped = [resize_axis(axis, n) for axis, n in zip(axes, index.shape, strict=True)]
    return (*cropped[:d], *taken, *cropped[d + 1 :])


def _take(axes: Axes, args: Args) -> Axes | None:
    numbers = _numbers(args["index"], args["self"].numel())
    return None if numbers is None else _taken(tuple(a for axis in axes for a in axis), numbers)


def _masked_select(axes: Axes, args: Args) -> Axes | None:
    x, mask = args["self"], args["mask"]
    if mask.is_meta or torch.broadcast_shapes(x.shape, mask.shape) != x.shape:
        return None
    numbers = _numbers(mask.expand(x.shape).reshape(-1).nonzero()[:, 0], x.numel())
    return None if numbers is None else _taken(tuple(a for axis in axes for a in axis), numbers)


def _as_strided(axes: Axes, args: Args) -> Axes | None:
    """Read steps through a storage: of a contiguous tensor they are steps along its axes."""
    x: Tensor = args["self"]
    atoms = tuple(a for axis in axes for a in axis)
    sizes = [a.size for a in atoms]
    if not x.is_contiguous() or math.prod(sizes) != x.numel() or 0 in args["size"]:
        return None
    start = args["storage_offset"]
    start = 0 if start is None else start - int(x.storage_offset())
    last = start + sum((n - 1) * s for n, s in zip(args["size"], args["stride"], strict=True))
    if start < 0 or last >= x.numel():
        return None
    lines = [
        np.unravel_index(start + s * np.arange(n), sizes) if atoms else ()
        for n, s in zip(args["size"], args["stride"], strict=True)
    ]
    for i, size in enumerate(sizes):
        steps = [int(line[i].max() - line[i][0]) for line in lines]
        if lines and sum(steps) + int(lines[0][i][0]) >= size:
            return None  # a step along one axis carries into the next
    out = [grid_axis(atoms, line) for line in lines]
    return None if None in out else tuple(a for a in out if a is not None)


PICKS: dict[str, Pick] = {
    "index": _index,
    "_unsafe_index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "take": _take,
    "masked_select": _masked_select,
    "as_strided": _as_strided,
}
"""Rules by the name of the op; None where what it takes makes no grid."""
