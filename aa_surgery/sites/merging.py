"""Patch merging in a graph: the phases of a map become channels.

Two writings of it: reshape, permute, merge (timm, space-to-depth); and strided slices of one map
at every offset, concatenated (torchvision).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import fx

__all__ = ["ReshapeMerge", "read_reshape_merge", "shape_arguments", "slice_merge", "sliced_steps"]


@dataclass(frozen=True)
class ReshapeMerge:
    """A reshape that splits axes into phases, and the permute and reshape that join these.

    Attributes:
        nodes: The nodes, the reshape first, the one that joins last.
        dims: The axes split, of the map.
        factors: The number of phases of each.
        rank: Axes of the map.
        order: Where each axis of the permuted map comes from: an axis of the map, or `rank + j`
            for the phases of `dims[j]`.
        joined: First and last of the permuted axes that become one.
    """

    nodes: tuple[fx.Node, ...]
    dims: tuple[int, ...]
    factors: tuple[int, ...]
    rank: int
    order: tuple[int, ...]
    joined: tuple[int, int]


def read_reshape_merge(node: fx.Node) -> ReshapeMerge | None:
    """Read space-to-depth from its first reshape, or return None."""
    shape = shape_arguments(node)
    dims: list[int] = []
    factors: list[int] = []
    origin: list[int | None] = []  # of each axis after the reshape; None for phases
    for size in shape:
        if dims and origin[-1] == dims[-1] and size is factors[-1]:
            origin.append(None)
            continue
        axis = sum(o is not None for o in origin)
        following = shape[len(origin) + 1 : len(origin) + 2]
        if following and _divides(size, following[0]):
            dims.append(axis)
            factors.append(following[0])
        origin.append(axis)
    if not dims or dims[0] == 0:
        return None
    rank = sum(o is not None for o in origin)
    phases = iter(range(rank, rank + len(dims)))
    sources = [next(phases) if o is None else o for o in origin]
    return _joined(node, tuple(dims), tuple(factors), rank, sources)


def _joined(
    node: fx.Node, dims: tuple[int, ...], factors: tuple[int, ...], rank: int, sources: list[int]
) -> ReshapeMerge | None:
    """Follow the reshape to where its phases join the channels.

    Phases that become the tokens of a window (window partition), or go back beside the coarse
    axis that they came from (its reverse), are no merge.
    """
    permuted = _only_user(node)
    if permuted is None or permuted.target not in ("permute", torch.permute):
        return None
    axes: list[Any] = shape_arguments(permuted)
    order = tuple(sources[axis] for axis in axes)
    inner = [n for n, source in enumerate(order) if source not in (0, *dims)]
    if order[0] != 0 or inner != list(range(inner[0], inner[0] + len(inner))):
        return None
    nodes = [node, permuted]
    last = _only_user(permuted)
    while last is not None and last.target == "contiguous":
        nodes.append(last)
        last = _only_user(last)
    if last is None or not _joins(last, inner[0], factors):
        return None
    return ReshapeMerge(
        (*nodes, last), dims, factors, rank, order, (inner[0], inner[0] + len(inner) - 1)
    )


def _joins(node: fx.Node, start: int, factors: tuple[int, ...]) -> bool:
    if node.target in ("flatten", torch.flatten):
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        return bool(given == start)
    if node.target not in ("reshape", "view", torch.reshape):
        return False
    window = math.prod(factors)
    return not {s for s in shape_arguments(node) if isinstance(s, int)} & {*factors, window}


def shape_arguments(node: fx.Node) -> list[Any]:
    """Return the sizes, or axes, that a view, reshape or permute is called with."""
    shape = list(node.args[1:])
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = list(shape[0])
    return shape


def _divides(size: Any, factor: Any) -> bool:
    """Tell whether `size` is the node `n // factor`."""
    return (
        isinstance(size, fx.Node)
        and isinstance(factor, int)
        and factor > 1
        and size.target is operator.floordiv
        and size.args[1] is factor
    )


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def sliced_steps(index: Any) -> dict[int, int]:
    """Return the step of each axis that an index subsamples: `{axis: step}`, step > 1.

    Axes behind an ellipsis are counted from the end (negative).
    """
    return {axis: s.step for axis, s in _strided(index).items()}


def _strided(index: Any) -> dict[int, slice]:
    items = index if isinstance(index, tuple) else (index,)
    consuming = [i for i in items if i is not None]
    ellipsis = next((n for n, i in enumerate(consuming) if i is Ellipsis), None)
    found = {}
    for n, item in enumerate(consuming):
        if isinstance(item, slice) and isinstance(item.step, int) and item.step > 1:
            behind = ellipsis is not None and n > ellipsis
            found[n - len(consuming) if behind else n] = item
    return found


def slice_merge(node: fx.Node) -> fx.Node | None:
    """Return the concatenation of slices of one map at every offset, `node` being one of them."""
    source, cat = node.args[0], _only_user(node)
    if cat is None or cat.target is not torch.cat or not isinstance(source, fx.Node):
        return None
    steps = sliced_steps(node.args[1])
    offsets = set()
    for user in cat.all_input_nodes:
        strided = _strided(user.args[1]) if user.target is operator.getitem else {}
        if user.args[0] is not source or {a: s.step for a, s in strided.items()} != steps:
            return None
        if any(s.stop is not None for s in strided.values()):
            return None
        offsets.add(tuple(s.start or 0 for s in strided.values()))
    return cat if offsets == set(product(*(range(s) for s in steps.values()))) else None
