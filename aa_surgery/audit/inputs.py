"""What a model is given and gives: the tensors in it, copies of them, and which are maps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from aa_surgery.audit.axes import BATCH, CHANNEL, Atom, Axes, feature_map

__all__ = ["copied", "input_axes", "is_integral", "tensors_in"]

_COLOURS = (1, 3, 4)
_LEAVES = (str, bytes, int, float, complex, type(None), type, ModuleType, FunctionType)


def tensors_in(value: object) -> list[Tensor]:
    """Return the tensors in `value`: containers, dataclasses and plain objects are entered."""
    return [x for x in _walked(value, set()) if isinstance(x, Tensor)]


def _walked(value: object, seen: set[int]) -> Iterator[Tensor | nn.Module]:
    if isinstance(value, _LEAVES) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor | nn.Module):
        yield value
        return
    parts: list[object] = []
    if isinstance(value, Mapping):
        parts += value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts += value
    parts += getattr(value, "__dict__", {}).values()
    slots = (s for c in type(value).__mro__ for s in getattr(c, "__slots__", ()))
    parts += [getattr(value, s) for s in slots if isinstance(s, str) and hasattr(value, s)]
    for part in parts:
        yield from _walked(part, seen)


def copied(value: Any) -> Any:
    """Return inputs whose tensors, and what holds them, are copies; modules are no inputs."""
    memo: dict[int, Any] = {}
    for x in _walked(value, set()):
        memo[id(x)] = x.detach().clone() if isinstance(x, Tensor) else x
    return tree_map(lambda x: copy.deepcopy(x, memo) if tensors_in(x) else x, value)


def is_integral(x: Tensor) -> bool:
    """Return whether the values are integers or booleans: labels, masks, bytes."""
    return not (x.is_floating_point() or x.is_complex() or x.is_quantized)


def input_axes(x: Tensor) -> Axes:
    """Return what the axes of an input mean.

    `(N, C, *spatial)`, or `(N, H, W, C)` where the last axis can only be that of colours. Integers
    of two or three axes have no channels yet, which an embedding makes: ids `(N, L)`, label maps
    `(N, H, W)`.
    """
    spatial = x.shape[1:-1]
    colours = bool(spatial) and x.shape[-1] in _COLOURS and min(spatial) > max(_COLOURS)
    if x.ndim == 4 and colours:
        return (*_axes(x, BATCH, 0, 1, CHANNEL),)
    if not is_integral(x) or x.ndim not in (2, 3):
        return feature_map(x.shape)
    if x.ndim == 3 and colours and x.shape[0] > max(_COLOURS):
        return _axes(x, 0, 1, CHANNEL)
    return _axes(x, BATCH, *range(x.ndim - 1))


def _axes(x: Tensor, *kinds: int | str) -> Axes:
    pairs = zip(kinds, x.shape, strict=True)
    return tuple((Atom(kind, n),) if n != 1 else () for kind, n in pairs)
