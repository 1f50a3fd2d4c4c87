"""Maps taken apart and put together: rows by `unbind`, frames in a loop, phases by slices.

Each part remembers which part of which map it is, whatever is computed with it. Where parts of one
map are joined, their offsets say which positions are there again: all, every second one, or a
choice without a regular step.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Size

from aa_surgery.audit.axes import UNKNOWN, Atom, Axis, lattice, size_of
from aa_surgery.audit.indexing import grid_axis
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
    dim = args.get("dim", 0) % max(len(info.axes), 1)
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
    """Note a part of a spatial axis, or one index of the first factor of a joined one."""
    inner = size_of(axis[1:])
    if not axis or size == size_of(axis) or axis[0].origin or not isinstance(axis[0].kind, int):
        return info
    if len(axis) > 1 and (size != inner or start % inner):
        return info
    kind = axis[0].kind
    before = info.cuts.get(kind)
    offset = start // inner * axis[0].step
    cut = Cut(kind, offset, of)
    if before is not None and before.of.source == of.source:
        cut = Cut(before.kind, before.offset + offset, replace(before.of, scope=of.scope))
    return replace(info, cuts={**info.cuts, kind: cut})


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
    steps = {k: step for k, (step, _) in lattice(first.axes, features=True).items()}
    was = {k: first.cuts[k].of.rate.get(first.cuts[k].kind, (1, 1)) for k in kinds}
    offsets = [np.array([i.cuts[k].offset // was[k][0] for i in infos]) for k in kinds]
    sparse = [k for k in kinds if k not in steps]
    if len(sparse) not in (0, len(kinds)):
        return None
    if sparse:
        sizes = [was[k][1] for k in kinds]
    else:
        sizes = [steps[k] // was[k][0] for k in kinds]
        if len(infos) != int(np.prod(sizes)):
            return None  # slices that are not all phases: each is judged as the slice that it is
    pending = _origin(first, kinds, was)
    renumbered = {k: first.cuts[k].kind for k in kinds}
    if len(infos) == 2 and sparse and abs(offsets[0][1] - offsets[0][0]) * 2 > sizes[0]:
        return None  # the first and the last, say: a pair, no rate
    for order in itertools.permutations(range(len(kinds))):
        whole = tuple(Atom(kinds[i], sizes[i], was[kinds[i]][0]) for i in order)
        atoms = grid_axis(whole, [offsets[i] for i in order])
        if atoms is not None:
            return Joined(atoms, pending, renumbered)
    complete = len({tuple(o) for o in zip(*offsets, strict=True)}) == int(np.prod(sizes))
    if complete:
        whole = tuple(Atom(k, n, was[k][0]) for k, n in zip(kinds, sizes, strict=True))
        return Joined((Atom(UNKNOWN, len(infos), 1, whole),), pending, renumbered)
    return Joined(None, pending, renumbered) if len(infos) > 2 else None


def _vary(infos: Sequence[Info], kind: int) -> bool:
    cuts = [i.cuts.get(kind) for i in infos]
    sources = {c.of.source for c in cuts if c is not None}
    offsets = {c.offset for c in cuts if c is not None}
    return None not in cuts and len(sources) == 1 and len(offsets) > 1


def _origin(first: Info, kinds: Sequence[int], was: Mapping[int, tuple[int, int]]) -> Origin:
    of = first.cuts[kinds[0]].of
    others = lattice(first.axes) if first.pending is None else first.pending.rate
    return replace(of, rate={**others, **was})
