"""Sizes in a graph: which axis of which value an argument is the length of, or a fraction of it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import fx

from aa_surgery.sites.kinds import is_getitem, whole_number

__all__ = ["Length", "axes_read", "groups", "lengths_of", "read_length"]


@dataclass(frozen=True)
class Length:
    """The size of axis `dim` of `value`, divided by `divisor` and rounded down."""

    value: fx.Node
    dim: int
    divisor: int = 1


def read_length(size: Any) -> Length | None:
    """Return what a number of the graph is the length of, or None."""
    if not isinstance(size, fx.Node):
        return None
    if size.op == "call_method" and size.target == "size" and len(size.args) == 2:
        return _length(size.args[0], size.args[1])
    if size.target in (operator.floordiv, operator.rshift):
        whole, by = read_length(size.args[0]), whole_number(size.args[1])
        if whole is None or by is None:
            return None
        by = 1 << by if size.target is operator.rshift else by
        return Length(whole.value, whole.dim, whole.divisor * by)
    if is_getitem(size):
        axes = axes_read(size.args[0])
        index = whole_number(size.args[1])
        if axes is None or index is None:
            return None
        value, first = axes
        return _length(value, index if index < 0 or first is None else first + index)
    return None


def _length(value: Any, dim: Any) -> Length | None:
    return Length(value, dim) if isinstance(value, fx.Node) and type(dim) is int else None


def axes_read(shape: Any) -> tuple[fx.Node, int | None] | None:
    """Return the value that a node is the shape of, and the axis at which the shape begins.

    `x.shape` begins at 0, `x.shape[2:]` at 2, `x.shape[-2:]` at -2.
    """
    if not isinstance(shape, fx.Node):
        return None
    whole = shape.target is getattr and shape.args[1] == "shape"
    whole = whole or (shape.op == "call_method" and shape.target == "size" and len(shape.args) == 1)
    if whole:
        value: Any = shape.args[0]
        return value, 0
    if is_getitem(shape) and isinstance(shape.args[1], slice) and shape.args[1].step is None:
        inner = axes_read(shape.args[0])
        start = shape.args[1].start
        if inner is not None and inner[1] == 0:
            return inner[0], 0 if start is None else start
    return None


def lengths_of(sizes: Any) -> list[Length] | None:
    """Return what each of several sizes is the length of; those of `x.shape[2:]` are two."""
    if isinstance(sizes, (tuple, list)):
        found = [read_length(size) for size in sizes]
        return None if None in found else [length for length in found if length is not None]
    axes = axes_read(sizes)
    if axes is None or axes[1] in (None, 0):
        single = read_length(sizes)
        return None if single is None else [single]
    value, first = axes
    assert first is not None
    return [Length(value, first)] if first == -1 else [Length(value, d) for d in (first, first + 1)]


def _factors(size: Any) -> Counter[Hashable] | None:
    """Return a size as a product: its symbols and numbers, each with its power."""
    number = whole_number(size)
    if number is not None:
        return None if number < 0 else Counter({("number", number): 1} if number != 1 else {})
    if not isinstance(size, fx.Node):
        return None
    if size.target is operator.mul:
        parts = [_factors(part) for part in size.args]
        return None if None in parts else sum((p for p in parts if p is not None), Counter())
    length = read_length(size)
    return Counter({length if length is not None else size: 1})


def groups(parts: list[Any], sizes: list[Any]) -> list[list[int]] | None:
    """Return which of a shape's `parts` each of another shape's `sizes` holds, in order.

    A view joins neighbours. Where a size is -1 it holds what the sizes on both of its sides leave.

    Returns:
        Indices into `parts`, one list a size; None where the sizes cannot be read.
    """
    free = [i for i, size in enumerate(sizes) if whole_number(size) == -1]
    if len(free) > 1:
        return None
    split = free[0] if free else len(sizes)
    ahead = _consume(parts, sizes[:split])
    behind = _consume(parts[::-1], sizes[split + 1 :][::-1])
    if ahead is None or behind is None:
        return None
    used = sum(map(len, ahead)), sum(map(len, behind))
    if sum(used) > len(parts) or (not free and used[0] != len(parts)):
        return None
    middle = [list(range(used[0], len(parts) - used[1]))] if free else []
    mirrored = [[len(parts) - 1 - i for i in held][::-1] for held in behind][::-1]
    return [*ahead, *middle, *mirrored]


def _consume(parts: list[Any], sizes: list[Any]) -> list[list[int]] | None:
    found: list[list[int]] = []
    at = 0
    for size in sizes:
        need = _factors(size)
        if need is None:
            return None
        held: list[int] = []
        have: Counter[Hashable] = Counter()
        while not _same_product(have, need):
            part = _factors(parts[at]) if at < len(parts) else None
            if part is None or len(held) > len(parts):
                return None
            have += part
            held.append(at)
            at += 1
        found.append(held)
    return found


def _same_product(one: Counter[Hashable], other: Counter[Hashable]) -> bool:
    return _evaluated(one) == _evaluated(other)


def _evaluated(product: Counter[Hashable]) -> tuple[int, Counter[Hashable]]:
    """Return the numbers' product, and the symbols, `n // k` times `k` being `n`."""
    number = 1
    symbols: Counter[Hashable] = Counter()
    for factor, power in product.items():
        if isinstance(factor, tuple) and factor[0] == "number":
            number *= factor[1] ** power
        else:
            symbols[factor] += power
    for factor, power in list(symbols.items()):
        if not isinstance(factor, Length):
            continue
        divisor = factor.divisor
        while divisor > 1 and power and number % divisor == 0:
            number //= divisor
            symbols[factor] -= 1
            symbols[Length(factor.value, factor.dim)] += 1
            power -= 1
    return number, +symbols
