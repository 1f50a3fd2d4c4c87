"""Maps taken apart and put together: rows by `unbind`, frames in a loop, phases by slices.

Each part remembers which part of which map it is, whatever is computed with it. Where parts of one
map are joined, their offsets say which positions are there again: all, every second one, or a
choice without a regular step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Size

from aa_surgery.audit.axes import UNKNOWN, Atom, Axis, lattice, size_of
from aa_surgery.audit.indexing import Numbers, grid_axis
from aa_surgery.audit.store import Cut, Info, Origin

__all__ = ["Joined", "carried", "cuts_of", "join"]

Args = Mapping[str, Any]


def cuts_of(name: str, args: Args, info: Info, shapes: Sequence[Size], of: Origin) -> list[Info]:
    """Return `info` for each result of a slice, selection or split, with the part that it takes.

    Args:
        name: The op.
        args: Its arguments.
        info: What is known of its input.
        shapes: Those of its results.
        of: The input as the map that the parts are of, unless it is itself a part.
    """
    if not info.axes:
        return [info] * len(shapes)  # a number, `t[None]`
    dim = args.get("dim", 0) % len(info.axes)
    axis = info.axes[dim]
    whole = size_of(axis)
    if name in ("select", "unbind"):
        sizes = [1] * len(shapes)
        starts = list(range(whole)) if name == "unbind" else [args["index"] % whole]
    elif name == "slice":
        sizes = [shapes[0][dim]]
        starts = [_start(args["start"], whole)]
    elif name in ("split", "split_with_sizes", "unsafe_split"):
        sizes = [s[dim] for s in shapes]
        starts = [0, *itertools.accumulate(sizes)][: len(sizes)]
    else:
        return [info] * len(shapes)
    return [_part(info, axis, n, start, of) for n, start in zip(sizes, starts, strict=True)]


def _start(start: int | None, size: int) -> int:
    start = 0 if start is None else int(start)
    return max(start + size, 0) if start < 0 else min(start, size)


def _part(info: Info, axis: Axis, size: int, start: int, of: Origin) -> Info:
    """Note which part of a spatial axis is taken: of a joined one, by each of its factors."""
    if size == size_of(axis) or any(a.origin or not a.is_spatial for a in axis[:1]):
        return info
    inner = size_of(axis[1:])
    if size == 1 and all(a.is_spatial for a in axis):
        taken = axis
    elif len(axis) == 1 or (size == inner and start % inner == 0):
        taken = axis[:1]
    else:
        return info
    places = np.unravel_index(start, [a.size for a in axis])
    offsets: dict[int, int] = {}
    for a, place in zip(taken, places, strict=False):
        if isinstance(a.kind, int):
            offsets[a.kind] = offsets.get(a.kind, 0) + int(place) * a.step
    cuts = {k: _cut(info.cuts.get(k), k, offset, of) for k, offset in offsets.items()}
    return replace(info, cuts={**info.cuts, **cuts})


def _cut(before: Cut | None, kind: int, offset: int, of: Origin) -> Cut:
    if before is None or before.of.source != of.source:
        return Cut(kind, offset, of)
    return Cut(before.kind, before.offset + offset, replace(before.of, scope=of.scope))


def carried(infos: Sequence[Info], mapped: Sequence[int] = (), ndim: int = 0) -> dict[int, Cut]:
    """Return the parts that the result of an op descends from.

    Of two parts of one axis it is the later, as in a loop that carries a state.

    Args:
        infos: The operands.
        mapped: Of an op over a map, the spatial axes of the map, which it numbers anew.
        ndim: How many.
    """
    cuts: dict[int, Cut] = {}
    for info in infos:
        for kind, cut in info.cuts.items():
            first = cuts.get(kind)
            if first is None or first.offset < cut.offset:
                cuts[kind] = cut
    if ndim == 0:
        return cuts
    apart = [cut for kind, cut in sorted(cuts.items()) if kind not in mapped]
    return {ndim + i: cut for i, cut in enumerate(apart)}


@dataclass(frozen=True)
class Joined:
    """The axis that parts of one map make when they are joined.

    Attributes:
        atoms: Its factors, one a spatial axis; None where the parts have no regular step.
        pending: The map that they were, its spatial axes numbered as now.
        renumbered: The same axes as they were numbered in that map, by their number now.
    """

    atoms: Axis | None
    pending: Origin
    renumbered: Mapping[int, int]


def join(infos: Sequence[Info]) -> Joined | None:
    """Return what parts of one map make together; None where they are none.

    That is one sample of an axis each (rows, frames), or all phases of the axes that they step
    along.
    """
    kinds = [k for k in infos[0].cuts if _vary(infos, k)]
    if not kinds or len({i.axes for i in infos}) > 1:
        return None
    first = infos[0]
    inner = lattice(first.axes, features=True)
    was = {k: first.cuts[k].of.rate.get(first.cuts[k].kind, (1, 1)) for k in kinds}
    offsets = {k: np.array([i.cuts[k].offset for i in infos]) for k in kinds}
    if not all(_apart(np.unique(offsets[k]), was[k][0], inner.get(k)) for k in kinds):
        return None  # each is judged as the slice or crop that it is
    if len(infos) == 2 and any(_far(offsets[k], was[k]) for k in kinds):
        return None  # the first and the last, say: a pair, no rate
    pending = _origin(first, kinds, was)
    renumbered = {k: first.cuts[k].kind for k in kinds}
    for order in itertools.permutations(kinds):
        whole = tuple(Atom(k, was[k][1], was[k][0]) for k in order)
        atoms = grid_axis(whole, [offsets[k] // was[k][0] for k in order])
        if atoms is not None:
            return Joined(atoms, pending, renumbered)
    distinct = len(set(zip(*(o.tolist() for o in offsets.values()), strict=True)))
    single = not inner.keys() & offsets.keys()
    if single and distinct == math.prod(n for _, n in was.values()):  # shuffled, and all there
        whole = tuple(Atom(k, n, s) for k, (s, n) in was.items())
        return Joined((Atom(UNKNOWN, len(infos), 1, whole),), pending, renumbered)
    return Joined(None, pending, renumbered) if single and len(infos) > 2 else None


def _apart(starts: Numbers, unit: int, inner: tuple[int, int] | None) -> bool:
    """Return whether parts that start there stand one behind the other, or are all the phases."""
    if inner is None:
        return True
    step, count = inner
    if np.diff(starts).min() >= step * count:
        return True
    return len(starts) * unit == step and bool(np.all(np.diff(starts) == unit))


def _far(pair: Numbers, was: tuple[int, int]) -> bool:
    step, count = was
    return bool(2 * abs(pair[1] - pair[0]) > step * count)


def _vary(infos: Sequence[Info], kind: int) -> bool:
    cuts = [i.cuts.get(kind) for i in infos]
    sources = {c.of.source for c in cuts if c is not None}
    offsets = {c.offset for c in cuts if c is not None}
    return None not in cuts and len(sources) == 1 and len(offsets) > 1


def _origin(first: Info, kinds: Sequence[int], was: Mapping[int, tuple[int, int]]) -> Origin:
    of = first.cuts[kinds[0]].of
    others = lattice(first.axes) if first.pending is None else first.pending.rate
    return replace(of, rate={**others, **was})
