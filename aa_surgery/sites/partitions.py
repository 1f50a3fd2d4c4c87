"""Windows cut from a map: sampled where their samples go to the channels, not where they return."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from aa_surgery.sites.flow import Flow, Spot
from aa_surgery.sites.kinds import whole_number
from aa_surgery.sites.merging import (
    is_view,
    only_user,
    shape_arguments,
    spatial_fields,
)
from aa_surgery.sites.origin import ARITHMETIC, Ask
from aa_surgery.sites.reductions import VIEWED, reduced_axes
from aa_surgery.sites.roles import role_of_function, role_of_module

__all__ = ["is_put_back", "is_shuffled_back", "read_window"]

_MAX_NODES = 400
_MAX_SCOPES = 3
_MAX_STEPS = 12


def is_put_back(spot: Spot, flow: Flow) -> bool:
    """Tell whether the patches that a node cuts are put together to a map again, by `fold`."""
    for _ in range(_MAX_SCOPES):
        for node in _behind(spot.node):
            if node.target in (F.fold, torch.ops.aten.col2im):
                return True
            if node.op == "call_module":
                module = flow.module_of(Spot(spot.path, node))
                if any(isinstance(part, nn.Fold) for part in module.modules()):
                    return True
        calls = flow.calls(flow.modules[spot.path]) if spot.path else []
        if len(calls) != 1:
            return False
        spot = calls[0]
    return False


def is_shuffled_back(spot: Spot, flow: Flow) -> bool:
    """Tell whether a pixel unshuffle is undone by a pixel shuffle, and no filter runs between."""
    waiting, visits = [spot], 0
    while waiting and visits < _MAX_STEPS:
        for use in flow.known_uses(waiting.pop()):
            visits += 1
            module: Any = flow.module_of(use) if use.node.op == "call_module" else None
            if use.node.target in (F.pixel_shuffle,) or isinstance(module, nn.PixelShuffle):
                return True
            pointwise = isinstance(module, nn.modules.conv._ConvNd) and (
                set(module.kernel_size) == {1} == set(module.stride)
            )
            role = role_of_function(use.node) if module is None else role_of_module(module)
            if pointwise or role or use.node.target in ARITHMETIC:
                waiting.append(use)
    return False


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what depends on a node, in the graph of its scope."""
    seen, waiting = {node}, [node]
    while waiting and len(seen) < _MAX_NODES:
        for user in waiting.pop().users:
            if user not in seen:
                seen.add(user)
                waiting.append(user)
                yield user


def read_window(node: fx.Node, ask: Ask) -> dict[str, Any] | None:
    """Read `x.unfold(2, 2, 2).unfold(3, 2, 2)`, windows whose samples are reduced or joined.

    The first call of such a chain is the site; windows that stay tokens of an axis are none.
    """
    if not _is_unfold(node) or _is_unfold(node.args[0]):
        return None
    steps: dict[int, int] = {}
    sizes: list[int] = []
    last = node
    while True:
        args = dict(zip(("input", "dimension", "size", "step"), last.args, strict=False))
        args |= last.kwargs
        dim, size, step = (whole_number(args.get(n)) for n in ("dimension", "size", "step"))
        if dim is None or size is None or step is None:
            return dict(op="unfold", problem="cuts windows at a step that is known when it runs")
        sizes.append(size)
        steps[dim] = step
        user = only_user(last)
        if user is None or not _is_unfold(user):
            break
        last = user
    if max(steps.values()) == 1:
        return None
    sampled = _windows_are_sampled(last, sizes)
    if sampled is False:
        return None
    source: Any = node.args[0]
    found = ask(source)
    dims = tuple(sorted(steps))
    rank = found.axes + 2 if found.kind == "map" and found.axes else dims[-1] + 1
    plain = dims[0] > 1 and (found.kind == "map" or dims == (2, 3))
    if sampled is None or not plain or dims[-1] >= rank:
        problem = "cuts a map into windows, and what becomes of these is not known"
        return dict(op="unfold", problem=problem)
    fields = spatial_fields(dims, tuple(steps[d] for d in dims), rank, False)
    return dict(op="unfold", opaque=VIEWED, **fields)


def _is_unfold(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "call_method" and value.target == "unfold"


def _windows_are_sampled(node: fx.Node, sizes: list[int]) -> bool | None:
    """Tell whether windows are reduced, or joined with the channels; None where that is unclear.

    Their samples are the last axes, of `sizes`. Without a permutation the positions stand between
    these and the channels, so that no view joins the two.
    """
    count = len(sizes)
    user = only_user(node)
    while user is not None and user.target in ("contiguous", "clone"):
        node, user = user, only_user(user)
    if user is None:
        return None
    dims = reduced_axes(user)
    if dims is not None:
        return all(d < 0 or d > count + 1 for d in dims)
    if is_view(user) or user.target in ("flatten", torch.flatten):
        behind = only_user(user)
        return True if reduced_axes(behind) == [-1] else None if behind is None else False
    if user.target not in ("permute", torch.permute):
        return None
    axes: list[Any] = shape_arguments(user)
    rank = len(axes) - count
    inner = [n for n, axis in enumerate(axes) if axis >= rank or axis in (1,)]
    behind = only_user(user)
    while behind is not None and behind.target == "contiguous":
        behind = only_user(behind)
    if behind is None or inner != list(range(inner[0], inner[0] + len(inner))):
        return None if behind is None else False
    if behind.target in ("flatten", torch.flatten):
        return behind.args[1:] in ((inner[0],), (inner[0], -1))
    if not is_view(behind):
        return None
    shape = shape_arguments(behind)
    apart = {whole_number(size) for size in shape} & {*sizes, math.prod(sizes)}
    return not apart and len(shape) <= len(axes) - len(inner) + 1
