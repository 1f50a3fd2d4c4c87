"""Borders of every length and mode, for maps of every size."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.layers.windows import Ints, known_sizes

__all__ = ["PADDING_MODES", "PaddingMode", "lowest", "pad_axes", "pad_to", "source_index"]

PaddingMode = Literal["reflect", "replicate", "zeros", "circular"]
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)


def pad_to(x: Tensor, before: Ints, after: Ints, mode: str) -> Tensor:
    """Pad (or, where negative, crop) each spatial axis of `x` by `before` and `after`.

    A mirrored border longer than the map can give (its size less one) is completed by repeating the
    outermost sample; a circular one goes around as often as needed. So no map is too small.
    """
    pads: list[int] = []
    crop: list[int] = []
    for i, n in enumerate(known_sizes(x, len(before))):
        if _fits(max(before[i], after[i]), n, mode):
            pads += [max(before[i], 0), max(after[i], 0)]
        else:
            dim = x.ndim - len(before) + i
            x = _extended(x, dim, max(before[i], 0), max(after[i], 0), mode)
            pads += [0, 0]
        crop += [min(before[i], 0), min(after[i], 0)]
    x = pad_axes(x, pads, "constant" if mode == "zeros" else mode)
    # last, because the border of one side may repeat what is cropped on the other
    return pad_axes(x, crop, "constant")


def pad_axes(x: Tensor, pads: Ints, mode: str, value: float | None = None) -> Tensor:
    """Call `F.pad` with pads in the order of the axes, `(before, after)` each."""
    if _are_zero(pads):
        return x
    reversed_pads: list[int] = []
    for i in range(len(pads) - 2, -1, -2):
        reversed_pads += [pads[i], pads[i + 1]]
    return F.pad(x, reversed_pads, mode=mode, value=value)


def _are_zero(pads: Ints) -> bool:
    """Whether nothing is padded; of a size that a graph leaves open, that is not asked."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return not any(pads)
    return all(isinstance(pad, int) and pad == 0 for pad in pads)


def lowest(x: Tensor) -> float:
    """Return what no sample of `x` is below: the border of a maximum."""
    if torch.jit.is_scripting() or x.is_floating_point():  # type: ignore[attr-defined]
        return -torch.inf
    return torch.iinfo(x.dtype).min


def source_index(i: int, size: int, mode: str) -> int | None:
    """Return the sample of an axis that position `i` of its padded form repeats; None for zero.

    >>> [source_index(i, 4, "reflect") for i in (-2, 0, 4)]
    [2, 0, 2]
    """
    if 0 <= i < size:
        return i
    if mode == "zeros":
        return None
    if mode == "circular":
        return i % size
    beyond = -i if i < 0 else i - size + 1
    steps = min(beyond, size - 1) if mode == "reflect" else 0
    return steps if i < 0 else size - 1 - steps


def _fits(border: int, size: int, mode: str) -> bool:
    """Whether torch can make that border for an axis of `size` samples."""
    if mode == "reflect":
        return _is_above(size, border)
    return mode != "circular" or _is_above(size, border - 1)


def _is_above(size: int, bound: int) -> bool:
    """Whether a size is above a bound: an open one only if all are that the export is asked for."""
    if torch.jit.is_scripting() or not isinstance(size, torch.SymInt):  # type: ignore[attr-defined]
        return size > bound
    if torch.compiler.is_dynamo_compiling() or not torch.compiler.is_exporting():
        return size > bound  # noted as a guard
    return _is_always_above(size, bound)


@torch.jit.unused
def _is_always_above(size: Any, bound: int) -> bool:
    # here, because these take as long to import as the rest of the package, and an export has them
    from torch.fx.experimental.symbolic_shapes import statically_known_true
    from torch.utils._sympy.numbers import int_oo

    ranges = [size.node.shape_env.var_to_range[symbol] for symbol in size.node.expr.free_symbols]
    if all(r.lower > 2 or r.upper < int_oo for r in ranges):  # the user's: Dim("h", min=32)
        return statically_known_true(size > bound)
    return bool(size > bound)  # noted as a guard, which narrows the range


def _extended(x: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    """Extend an axis by more than torch's own padding can; exact for every size, in a trace too."""
    size = x.shape[dim]
    index = torch.arange(-before, size + after, device=x.device)
    if mode == "circular":
        index = index % size
    else:
        index = torch.where(index < 0, torch.clamp(-index, max=size - 1), index)
        index = torch.where(index < size, index, torch.clamp(2 * (size - 1) - index, min=0))
    return x.index_select(dim, index)
