"""Sampling by an index: slices with a step, and what picks rows and columns out of a map.

A step along one axis samples a map where that axis is surely spatial. Of the features of tokens
(`x[..., ::2]`, rotary embeddings) it is not; where the value comes from tells the two apart.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

from aa_surgery.sites.kinds import is_getitem, whole_number
from aa_surgery.sites.merging import slice_merge, sliced_steps
from aa_surgery.sites.origin import Ask

__all__ = ["read_index"]

_PICKS = {
    "index_select": ("input", "dim", "index"),
    "gather": ("input", "dim", "index"),
    "take_along_dim": ("input", "index", "dim"),
    "take": ("input", "index"),
    "masked_select": ("input", "index"),
}
_PARTS = ("unbind", "split", "chunk", "tensor_split")
_WHERE = (
    "picks samples of a map by an index whose step is not known. Sample by a slice, "
    "x[:, :, ::2], or blur in front of it with aa_surgery.layers.BlurPool2d(stride=1)"
)


_STEP = "takes every so many rows of a map, and how many is known when it runs"


def read_index(node: fx.Node, ask: Ask) -> dict[str, Any] | None:
    """Return the fields of the `Site` that an index into a map is, or None.

    Args:
        node: Any node.
        ask: Tells where a value comes from.
    """
    if is_getitem(node):
        return _read_getitem(node, ask)
    name = _name(node)
    if name in ("cat", "stack", "concat"):
        return _read_joined_rows(node, ask)
    if name == "as_strided" and node.args and isinstance(node.args[0], fx.Node):
        return dict(op="slice", problem=_WHERE) if ask(node.args[0]).kind == "map" else None
    if name == "slice":  # ATen's
        names = ("input", "dim", "start", "end", "step")
        args: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        dim, step = whole_number(args.get("dim", 0)), whole_number(args.get("step", 1)) or 1
        source = args["input"]
        return None if dim is None or step == 1 else _one_axis(source, dim, step, ask)
    if name in _PICKS and _is_torch(node):
        args = {**dict(zip(_PICKS[name], node.args, strict=False)), **node.kwargs}
        source = args.get("input", node.args[0] if node.args else None)
        if isinstance(source, fx.Node):
            return _read_pick(source, args.get("dim"), args.get("index"), ask)
    if name in _PARTS and _is_torch(node) and node.args and isinstance(node.args[0], fx.Node):
        return _read_parts(node, name, ask)
    return None


def _name(node: fx.Node) -> str:
    if isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return str(node.target).split(".")[1]
    return str(getattr(node.target, "__name__", node.target))


def _is_torch(node: fx.Node) -> bool:
    if node.op == "call_method" or isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return True
    return getattr(torch, _name(node), None) is node.target


def _read_getitem(node: fx.Node, ask: Ask) -> dict[str, Any] | None:
    source: Any = node.args[0]
    if _steps_at_run_time(node.args[1]) and ask(source).kind == "map":
        return dict(op="slice", problem=_STEP)
    steps = sliced_steps(node.args[1])
    dims = tuple(sorted(steps))
    if len(dims) > 1:
        merged = slice_merge(node)
        return dict(
            op="slice",
            stride=tuple(steps[d] for d in dims),
            dims=dims,
            channels_last=dims in ((1, 2), (-3, -2)),
            merged="" if merged is None else merged.name,
        )
    if dims:
        return _one_axis(source, dims[0], steps[dims[0]], ask)
    return _read_picked_rows(node, ask)


def _steps_at_run_time(index: Any) -> bool:
    """Tell whether a slice behind the first two axes has a step that is computed."""
    items = [i for i in (index if isinstance(index, tuple) else (index,)) if i is not None]
    first = 0 if Ellipsis in items else 2
    return any(isinstance(i, slice) and isinstance(i.step, fx.Node) for i in items[first:])


def _read_joined_rows(node: fx.Node, ask: Ask) -> dict[str, Any] | None:
    """Read `torch.stack([x[:, :, i] for i in range(0, n, 2)], 2)`: every second row of a map."""
    parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(parts, (tuple, list)) or len(parts) < 2:
        return None
    rows = [_row(part) for part in parts]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows) or len({row[:2] for row in known}) > 1:
        return None
    source, dim, _ = known[0]
    places = [place for _, _, place in known]
    steps = {b - a for a, b in pairwise(places)}
    if len(steps) > 1 or min(steps) < 2 or dim in (0, 1) or ask(source).kind != "map":
        return None
    return dict(op="slice", problem=_WHERE)


def _row(node: Any) -> tuple[fx.Node, int, int] | None:
    """Return the map, the axis and the place of one row that a node takes of it."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source, name = node.args[0], _name(node)
    if name in ("select", "narrow"):
        names = ("input", "dim", "index" if name == "select" else "start", "length")
        args = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        dim, place = (whole_number(args.get(n)) for n in names[1:3])
        one = name == "select" or whole_number(args.get("length")) == 1
        return (source, dim, place) if one and dim is not None and place is not None else None
    items = node.args[1] if is_getitem(node) and isinstance(node.args[1], tuple) else ()
    picks = [(n, p) for n, item in enumerate(items) if (p := whole_number(item)) is not None]
    rest = [item for item in items if whole_number(item) is None]
    if len(picks) != 1 or any(item != slice(None) for item in rest):
        return None
    return (source, *picks[0])


def _one_axis(source: fx.Node, dim: int, step: int, ask: Ask) -> dict[str, Any] | None:
    """Return the site of a step along one axis, if that axis is surely one of a map."""
    found = ask(source)
    if found.kind in ("moved", "held") or (found.kind == "unknown" and dim < 2):
        return None
    axes = found.axes
    axis = dim - 2 if dim >= 0 else axes + dim
    if axes and not 0 <= axis < axes:
        return None
    if not axes:
        problem = "" if dim == -1 else "takes every {}. row of an input whose axes are not known"
        if found.kind == "unknown" and dim == -1:
            problem = "takes every {}. sample of an input that may be no map"
        if problem:
            return dict(op="slice", stride=(step,), dims=(dim,), problem=problem.format(step))
        return dict(op="slice", stride=(step,), dims=(-1,))
    stride = tuple(step if i == axis else 1 for i in range(axes))
    return dict(op="slice", stride=stride, dims=tuple(range(2, 2 + axes)))


def _read_pick(source: fx.Node, dim: Any, index: Any, ask: Ask) -> dict[str, Any] | None:
    found = ask(source)
    if found.kind != "map":
        return None
    place = whole_number(dim)
    step = _step_of(index)
    if place is not None and (place in (0, 1) or (found.axes and place == -found.axes - 1)):
        return None
    if place is None or step is None:
        return dict(op="slice", problem=_WHERE)
    return None if step == 1 else _one_axis(source, place, step, ask)


def _step_of(index: Any) -> int | None:
    """Return the step of `torch.arange(start, end, step)`, or None where it cannot be read."""
    if not isinstance(index, fx.Node) or index.target is not torch.arange:
        return None
    args = {**dict(zip(("start", "end", "step"), index.args, strict=False)), **index.kwargs}
    return whole_number(args.get("step", 1))


def _read_picked_rows(node: fx.Node, ask: Ask) -> dict[str, Any] | None:
    """Read `x[:, :, index]`: a tensor that picks rows of a map."""
    items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    places = [n for n, item in enumerate(items) if isinstance(item, (fx.Node, list))]
    if not places or Ellipsis in items[: places[0]] or places[0] < 2:
        return None
    item: Any = items[places[0]]
    if isinstance(item, fx.Node) and item.target is not torch.arange and item.op != "get_attr":
        return None  # a number, most likely
    source: Any = node.args[0]
    return _read_pick(source, places[0], item, ask)


def _read_parts(node: fx.Node, name: str, ask: Ask) -> dict[str, Any] | None:
    """Read `x.unbind(2)[::2]`: of the slices of a map, every second."""
    steps = [s for user in node.users if is_getitem(user) if (s := _step_of_slice(user)) > 1]
    if not steps:
        return None
    rest = [*node.args[1:], *node.kwargs.values()]
    dim = whole_number(rest[-1]) if rest else 0
    if name != "unbind" and (len(rest) < 2 or rest[0] != 1):
        source: Any = node.args[0]
        named = ask(source).kind == "map" and dim not in (0, 1, None)
        return dict(op="slice", problem=_WHERE) if named else None
    return None if dim is None else _one_axis(node.args[0], dim, min(steps), ask)  # type: ignore[arg-type]


def _step_of_slice(node: fx.Node) -> int:
    index = node.args[1]
    return (whole_number(index.step) or 1) if isinstance(index, slice) else 1
