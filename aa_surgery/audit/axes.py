"""What each axis of a tensor means: an algebra of axes under views, slices and reductions.

An axis is a tuple of atoms, major to minor. A spatial atom says which positions it runs over:
index `i` of an atom of step `m` stands `i m` samples along its spatial axis. A view that makes
`(H // k, k)` of `H` splits the atom of step 1 into one of step `k` (the coarse position) and one of
step 1 (the phase). Sampling, in these terms: the finest step of a spatial axis grows while
positions along it remain. A patch merge does that by moving the phase into the channels, a slice
by dropping it, a window partition not at all, for there the phase stays an axis of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

__all__ = [
    "BATCH",
    "CHANNEL",
    "UNKNOWN",
    "Atom",
    "Axes",
    "Axis",
    "Lattice",
    "broadcast",
    "coarsened",
    "drop",
    "feature_map",
    "lattice",
    "regroup",
    "resize",
    "resize_axis",
    "size_of",
    "slice_axis",
    "windows",
]

BATCH, CHANNEL, UNKNOWN = "batch", "channel", "unknown"


@dataclass(frozen=True)
class Atom:
    """One factor of an axis.

    Attributes:
        kind: The number of the spatial axis, or `BATCH`, `CHANNEL`, `UNKNOWN`.
        size: Number of indices.
        step: Distance of neighbours along the spatial axis, in samples.
        origin: Of a cropped or extended token axis (a class token): the atoms it was, which a
            later crop to their size gives back. It stands for their positions.
    """

    kind: int | str
    size: int
    step: int = 1
    origin: tuple[Atom, ...] = ()

    @property
    def is_spatial(self) -> bool:
        """Whether the atom runs over positions of a spatial axis."""
        return isinstance(self.kind, int)


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]
Lattice = Mapping[int, tuple[int, int]]


def atom(kind: int | str, size: int, step: int = 1) -> Axis:
    """Return the axis of one atom; an axis of size 1 has none."""
    return () if size == 1 else (Atom(kind, size, step),)


def size_of(axis: Iterable[Atom]) -> int:
    """Return the number of indices of an axis."""
    return math.prod(a.size for a in axis)


def feature_map(shape: Sequence[int], ndim: int | None = None) -> Axes:
    """Return the axes of `(N, C, *spatial)`, the last `ndim` being spatial."""
    ndim = max(len(shape) - 2, 0) if ndim is None else ndim
    lead = len(shape) - ndim
    kinds: list[int | str] = [BATCH] * (lead - 1) + [CHANNEL] * min(lead, 1) + [*range(ndim)]
    return tuple(atom(k, n) for k, n in zip(kinds, shape, strict=True))


def windows(
    shape: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> tuple[Axis, Axis]:
    """Return the window axis and the position axis of windows cut from a map.

    Args:
        shape: Number of windows along each spatial axis; the other arguments one an axis too.
        kernel: Samples of a window.
        dilation: Distance of a window's samples.
        stride: Distance of neighbouring windows.
    """
    inner = [
        a for i, (k, d) in enumerate(zip(kernel, dilation, strict=True)) for a in atom(i, k, d)
    ]
    outer = [a for i, (n, s) in enumerate(zip(shape, stride, strict=True)) for a in atom(i, n, s)]
    return tuple(inner), tuple(outer)


def _merged(axis: Iterable[Atom]) -> Axis:
    """Join neighbours that are one index again: `(H // k, k)` back to `H`."""
    out: list[Atom] = []
    for a in axis:
        last = out[-1] if out else None
        if last is not None and last.kind == a.kind and not last.origin and not a.origin:
            joins = last.step == a.step * a.size if a.is_spatial else a.kind != UNKNOWN
            if joins:
                out[-1] = Atom(a.kind, last.size * a.size, a.step)
                continue
        out.append(a)
    return tuple(out)


def _split(a: Atom, major: int) -> tuple[Atom, Atom]:
    minor = a.size // major
    if a.origin:
        return replace(a, size=major), Atom(UNKNOWN, minor)
    return Atom(a.kind, major, a.step * minor), Atom(a.kind, minor, a.step)


def regroup(axes: Axes, shape: Sequence[int]) -> Axes:
    """Return the axes after a view to `shape`; the order of the atoms stays.

    An axis that cuts across atoms (the skewing of relative positions) is unknown, and so are those
    behind it; the first of them stands for all the positions that they hold.
    """
    if 0 in shape:
        return tuple(atom(UNKNOWN, n)[:1] for n in shape)  # nothing is left to follow
    rest = [a for axis in axes for a in axis][::-1]
    out: list[Axis] = []
    for i, size in enumerate(shape):
        axis: list[Atom] = []
        need = size
        while need > 1:
            a = rest.pop() if rest else None
            if a is not None and need % a.size == 0:
                axis.append(a)
                need //= a.size
            elif a is not None and a.size % need == 0:
                major, minor = _split(a, need)
                axis.append(major)
                rest.append(minor)
                need = 1
            else:
                mixed = Atom(UNKNOWN, size, 1, (*axis, *([a] if a else []), *rest[::-1]))
                return (*out, (mixed,), *(atom(UNKNOWN, n) for n in shape[i + 1 :]))
        out.append(_merged(axis))
    return tuple(out)


def resize_axis(axis: Axis, size: int) -> Axis:
    """Return an axis cropped or extended to `size`: a pad, a crop, a class token put before."""
    if size_of(axis) == size:
        return axis
    if size == 1 or not axis:
        return atom(UNKNOWN, size)
    if len(axis) == 1 and not axis[0].origin:
        return (replace(axis[0], size=size),)
    if not any(a.is_spatial or a.origin for a in axis):
        return atom(CHANNEL if all(a.kind == CHANNEL for a in axis) else UNKNOWN, size)
    origin = axis[0].origin if len(axis) == 1 else axis
    return origin if size_of(origin) == size else (Atom(UNKNOWN, size, 1, origin),)


def resize(axes: Axes, shape: Sequence[int]) -> Axes:
    """Return `axes` cropped or extended to `shape`, which has as many axes."""
    return tuple(resize_axis(axis, n) for axis, n in zip(axes, shape, strict=True))


def slice_axis(axis: Axis, size: int, step: int) -> Axis | None:
    """Return the axis `[start::step]`, or None where its positions no longer make a lattice."""
    if step == 1:
        return resize_axis(axis, size)
    if not axis:
        return axis
    *outer, last = axis
    if last.origin or last.kind == UNKNOWN or (outer and last.size % step):
        return None
    if not outer:
        return atom(last.kind, size, last.step * step)
    inner = atom(last.kind, last.size // step, last.step * step)
    return (*outer, *inner) if size_of((*outer, *inner)) == size else None


def drop(axes: Axes, dims: Iterable[int], keepdim: bool) -> Axes:
    """Return the axes after a reduction over `dims`."""
    dims = set(dims)
    if keepdim:
        return tuple(() if i in dims else axis for i, axis in enumerate(axes))
    return tuple(axis for i, axis in enumerate(axes) if i not in dims)


def broadcast(many: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """Return the axes of an elementwise op: of each axis, the first operand that knows it."""
    out: list[Axis] = []
    for back, size in zip(range(len(shape), 0, -1), shape, strict=True):
        found = [axes[-back] for axes in many if len(axes) >= back]
        found = [axis for axis in found if size_of(axis) == size]
        known = [axis for axis in found if not all(a.kind == UNKNOWN for a in axis)]
        out.append((known or found or [atom(UNKNOWN, size)])[0])
    return tuple(out)


def lattice(axes: Axes, features: bool = False) -> dict[int, tuple[int, int]]:
    """Return of each spatial axis the finest step between positions, and its number of samples.

    Atoms that share an axis with channels are features, not positions; the first axis is a batch,
    whatever is folded into it.

    Args:
        axes: What each axis means.
        features: Whether to count those atoms too: what of the map is there at all.
    """
    step: dict[int, int] = {}
    reach: dict[int, int] = {}
    for i, axis in enumerate(axes):
        kinds = {a.kind for a in axis}
        if i > 0 and CHANNEL in kinds and BATCH not in kinds and not features:
            continue
        for a in (b for joined in axis for b in joined.origin or (joined,)):
            if isinstance(a.kind, int):
                step[a.kind] = min(a.step, step.get(a.kind, a.step))
                reach[a.kind] = reach.get(a.kind, 0) + (a.size - 1) * a.step
    return {k: (step[k], reach[k] // step[k] + 1) for k in sorted(step)}


def coarsened(before: Lattice, axes: Axes) -> dict[int, int]:
    """Return of each spatial axis the factor by which its sampling step grew; empty if none did.

    Windows folded into the batch whose samples went into the features (a token mixer within
    windows) are not sampled: every position that is left is that of a window, in the batch.
    """
    after = lattice(axes)
    factors = {k: after[k][0] // before[k][0] for k in after if k in before}
    if len(axes) > 2:
        mixed = [axis for axis in axes[1:] if CHANNEL in {a.kind for a in axis}]
        apart = {a.kind for axis in axes[1:] if axis not in mixed for a in axis}
        inside = {a.kind for axis in mixed for a in axis} - apart
        folded = {a.kind for a in axes[0]} & inside
        factors = {k: f for k, f in factors.items() if k not in folded}
    return factors if any(f > 1 for f in factors.values()) else {}
