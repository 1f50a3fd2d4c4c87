"""Einops patterns: what a rearrangement or reduction does to the phases of a map.

`b c (h p1) (w p2) -> b (h w) (p1 p2 c)` splits two axes into coarse positions and phases. Phases
that join the channels, or that a reduction drops, are sampled; phases that become tokens of a
window, or join the batch, are all still there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from aa_surgery.sites.kinds import whole_number

__all__ = ["read_einops_call", "read_einops_module"]


def read_einops_module(module: Any) -> dict[str, Any] | None:
    """Return the fields of the `Site` that a layer of einops is, or None."""
    reduction = getattr(module, "reduction", "")
    if hasattr(module, "weight_shape"):  # EinMix: what a weight takes up is as good as a channel
        reduction = "sum"
    return _fields(module.pattern, module.axes_lengths, reduction)


def read_einops_call(node: fx.Node) -> dict[str, Any] | None:
    """Return the fields of the `Site` that a call of `einops.rearrange` or `reduce` is, or None."""
    target: Any = node.target
    if node.op != "call_function":
        return None
    name = getattr(target, "__name__", "")
    home = (getattr(target, "__module__", None) or "").partition(".")[0]
    if home != "einops" or name not in ("rearrange", "reduce") or not node.args:
        return None
    arguments = dict(zip(("tensor", "pattern", "reduction"), node.args, strict=False))
    arguments.update(node.kwargs)
    pattern = arguments.pop("pattern", None)
    reduction = arguments.pop("reduction", "") if name == "reduce" else ""
    if not isinstance(pattern, str) or not isinstance(reduction, str):
        return None
    if not isinstance(arguments.pop("tensor", None), fx.Node):
        return None
    # `rearrange` is a `reduce` of that name
    return _fields(pattern, arguments, "" if reduction == "rearrange" else reduction)


@dataclass(frozen=True)
class _Split:
    """An axis of the input that is written as coarse positions and phases."""

    dim: int
    phase: str
    factor: int | None


def _fields(pattern: str, lengths: Mapping[str, Any], reduction: str) -> dict[str, Any] | None:
    before, _, after = pattern.partition("->")
    inputs, outputs = _parsed(before), _parsed(after)
    place = {name: axis for axis, names in enumerate(outputs) for name in names}
    # axes that are neither split nor the batch: phases that share the axis of one are features
    alone = {names[0]: d for d, names in enumerate(inputs) if len(names) == 1 and d > 0}
    splits = [s for d, names in enumerate(inputs) if (s := _split(d, names, lengths, place))]
    sampled, channels = [], set()
    for split in splits:
        axis = place.get(split.phase)
        joined = {d for name, d in alone.items() if axis is not None and place.get(name) == axis}
        channels |= joined
        if joined or (reduction and axis is None):
            sampled.append(split)
    if not sampled:
        return None
    first = sampled[0].dim
    channels_last = min(channels) > first if channels else first == 1
    last = len(inputs) - (2 if channels_last else 1)
    factors = {split.dim: split.factor for split in sampled}
    stride = tuple(factors.get(d, 1) or 1 for d in range(first, last + 1))
    ellipsis = any("..." in names for names in inputs[first : last + 1])
    unknown = ellipsis or None in factors.values()
    problem = f"{pattern!r} splits axes by lengths that are known when it runs" if unknown else ""
    if not channels and list(factors) == [1] and len(inputs) > 3:
        problem = f"{pattern!r} reduces axis 1, which is most often that of the channels"
    if channels_last and first == last:
        problem = "joins tokens of a sequence, whose neighbours in the map are not at hand"
    return dict(
        op="space_to_depth",
        kernel=stride,
        stride=stride,
        dims=tuple(range(first, last + 1)),
        channels_last=channels_last,
        problem=problem,
    )


def _split(
    dim: int, names: list[str], lengths: Mapping[str, Any], place: Mapping[str, int]
) -> _Split | None:
    """Return how an axis is split into coarse positions, which stay, and phases behind them."""
    if len(names) != 2 or dim == 0 or (names[0] not in place and names[0] != "..."):
        return None
    phase = names[1]
    factor = int(phase) if phase.isdigit() else whole_number(lengths.get(phase))
    return None if factor == 1 else _Split(dim, phase, factor)


def _parsed(side: str) -> list[list[str]]:
    """Return the names of each axis of one side of a pattern; of anonymous axes their length."""
    found = []
    for group, single in re.findall(r"\(([^)]*)\)|(\.\.\.|\w+)", side):
        names = (group or single).split()
        found.append(names if not group else [name for name in names if name != "1"])
    return found
