"""Patch merging in a graph: the phases of a map become channels.

Two writings of it: reshape, permute, merge (timm, space-to-depth); and strided slices of one map
at every offset, concatenated (torchvision).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import product
from typing import Any, TypeVar

import torch
from torch import fx

from aa_surgery.sites.sizes import groups

__all__ = [
    "ReshapeMerge",
    "Split",
    "is_view",
    "only_user",
    "read_merge",
    "read_reshape_merge",
    "read_split",
    "shape_arguments",
    "slice_merge",
    "sliced_steps",
    "spatial_fields",
]

_T = TypeVar("_T")


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

    @property
    def joins(self) -> tuple[int, ...]:
        """What becomes one axis, as in `order`."""
        return self.order[self.joined[0] : self.joined[1] + 1]


@dataclass(frozen=True)
class Split:
    """A reshape that splits axes into coarse positions and phases.

    Attributes:
        dims: The axes split, of the map.
        factors: The number of phases of each.
        rank: Axes of the map.
        sources: Where each axis comes from: an axis of the map, or `rank + j` for the phases of
            `dims[j]`.
        sizes: The size of each axis.
    """

    dims: tuple[int, ...]
    factors: tuple[int, ...]
    rank: int
    sources: tuple[int, ...]
    sizes: tuple[Any, ...]


def _once_a_node(read: Callable[[fx.Node], _T]) -> Callable[[fx.Node], _T]:
    """Let a reader remember its answers: alike scopes share a graph, and ask again."""
    key = f"aa_{read.__name__}"

    @wraps(read)
    def remembered(node: fx.Node) -> _T:
        if key not in node.meta:
            node.meta[key] = read(node)
        found: _T = node.meta[key]
        return found

    return remembered


@_once_a_node
def read_split(node: fx.Node) -> Split | None:
    """Read a reshape that splits axes, `n` into `n // k` and `k`, or return None."""
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
    if not dims or dims[0] == 0 or max(factors) == 1:
        return None
    rank = sum(o is not None for o in origin)
    phases = iter(range(rank, rank + len(dims)))
    sources = tuple(next(phases) if o is None else o for o in origin)
    return Split(tuple(dims), tuple(factors), rank, sources, tuple(shape))


@_once_a_node
def read_reshape_merge(node: fx.Node) -> ReshapeMerge | None:
    """Read space-to-depth from its first reshape, or return None.

    Phases that become the tokens of a window (window partition), or go back beside the coarse
    axis that they came from (its reverse), are no merge.
    """
    split = read_split(node)
    permuted = only_user(node)
    if split is None or permuted is None or permuted.target not in ("permute", torch.permute):
        return None
    axes: list[Any] = shape_arguments(permuted)
    if any(type(axis) is not int for axis in axes) or len(axes) != len(split.sources):
        return None
    order = tuple(split.sources[axis] for axis in axes)
    nodes = [node, permuted]
    last = only_user(permuted)
    while last is not None and last.target == "contiguous":
        nodes.append(last)
        last = only_user(last)
    joined = None if last is None else _joined(last, order, [split.sizes[a] for a in axes], split)
    if last is None or joined is None or order[0] != 0:
        return None
    ends = (joined[0], joined[-1])
    return ReshapeMerge((*nodes, last), split.dims, split.factors, split.rank, order, ends)


def _joined(
    node: fx.Node, order: tuple[int, ...], sizes: list[Any], split: Split
) -> list[int] | None:
    """Return which axes a reshape makes one of, if that holds all phases and the channels alone."""
    phases = {n for n, source in enumerate(order) if source >= split.rank}
    coarse = {n for n, size in enumerate(sizes) if _is_part(size)}
    # channels come behind the batch, or last; where one axis is cut, the last may be its neighbour
    last = {split.rank - 1} if split.dims[0] == 1 or len(split.dims) > 1 else set()
    others = {n for n, source in enumerate(order) if source in {1, *last}} - phases - coarse
    found: list[list[int]] | None = None
    if node.target in ("flatten", torch.flatten):
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        start: Any = given.get("start_dim", 0)
        end: Any = given.get("end_dim", -1)
        found = [list(range(start % len(sizes), end % len(sizes) + 1))]
    elif is_view(node):
        found = groups(sizes, shape_arguments(node))
        if found is None:  # sizes that cannot be read: not those of a window, at least
            inner = sorted(phases | others)
            window = {*split.factors, math.prod(split.factors)}
            whole = inner == list(range(inner[0], inner[0] + len(inner)))
            known = {s for s in shape_arguments(node) if isinstance(s, int)}
            return inner if whole and others and not known & window else None
    for group in found or ():
        if phases <= set(group) and set(group) - phases and set(group) <= phases | others:
            return group
    return None


def _is_part(size: Any) -> bool:
    """Tell whether a size is the number of an axis's windows, `n // k`."""
    return isinstance(size, fx.Node) and size.target is operator.floordiv


def read_merge(node: fx.Node) -> dict[str, Any] | None:
    """Read space-to-depth: split each axis by `k`, permute, merge the phases into the channels."""
    if not is_view(node):
        return None
    merge = read_reshape_merge(node)
    if merge is None:
        return None
    channels_last = min(s for s in merge.joins if s < merge.rank) > merge.dims[0]
    return dict(
        op="space_to_depth",
        merged=merge.nodes[-1].name,
        **spatial_fields(merge.dims, merge.factors, merge.rank, channels_last),
    )


def spatial_fields(
    dims: tuple[int, ...], factors: tuple[int, ...], rank: int, channels_last: bool
) -> dict[str, Any]:
    """Return stride and axes of a site, those between the sampled ones and the last included.

    A blur's axes are the last of the map, the channels' aside; one that is not sampled has step 1.
    """
    each = dict(zip(dims, factors, strict=True))
    spatial = tuple(range(dims[0], rank - 1 if channels_last else rank))
    stride = tuple(each.get(d, 1) for d in spatial)
    return dict(kernel=stride, stride=stride, dims=spatial, channels_last=channels_last)


def is_view(node: fx.Node) -> bool:
    """Tell whether a node regroups the axes of its input."""
    method = node.op == "call_method" and node.target in ("view", "reshape")
    return method or node.target is torch.reshape


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
        and factor > 0  # 1 where one axis of several is not cut
        and size.target is operator.floordiv
        and size.args[1] is factor
    )


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the node that alone reads a value, or None."""
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
    source, cat = node.args[0], only_user(node)
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
