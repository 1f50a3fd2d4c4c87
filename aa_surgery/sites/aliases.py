"""Sampling functions under other names: ATen's own ops, and the entries below `torch.nn`.

They are blurred before, as they are called: nothing else of such a call is rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from aa_surgery.sites.kinds import (
    ADAPTIVE,
    AVG_POOLS,
    CONVS,
    INTERPOLATE,
    MAX_POOLS,
    PIXEL_UNSHUFFLE,
    Table,
)

__all__ = ["ALIASES", "GRID_SAMPLES", "INDEX_POOLS", "UPSAMPLES"]

_CONVOLUTION = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
)


def _entries(name: str) -> Iterator[Callable[..., Any]]:
    """Yield an op of ATen, and its overload without a name."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is not None:
        yield packet
        if "default" in packet.overloads():
            yield packet.default


def _aliased(table: Table) -> Table:
    found: Table = {}
    for function, entry in table.items():
        for name in (function.__name__, f"_{function.__name__}"):
            found.update(dict.fromkeys(_entries(name), entry))
    return found


_BASES = (CONVS, MAX_POOLS, AVG_POOLS, ADAPTIVE, PIXEL_UNSHUFFLE)
ALIASES: dict[int, Table] = {id(table): _aliased(table) for table in _BASES}
"""By the `id` of each table of functions, the same with the names that ATen has for them."""
ALIASES[id(CONVS)].update(
    dict.fromkeys(
        (
            torch.convolution,
            torch._convolution,
            *_entries("convolution"),
            *_entries("_convolution"),
        ),
        (_CONVOLUTION, 0),
    )
)

INDEX_POOLS: Table = {
    entry: MAX_POOLS[getattr(F, f"max_pool{ndim}d")]
    for ndim in (1, 2, 3)
    for entry in (
        getattr(F, f"max_pool{ndim}d_with_indices"),
        *_entries(f"max_pool{ndim}d_with_indices"),
    )
}
"""Max-pools that give indices too, whatever `return_indices` says."""

GRID_SAMPLES: Table = dict.fromkeys(
    (F.grid_sample, torch.grid_sampler, *_entries("grid_sampler")), (("input", "grid"), 2)
)

UPSAMPLES: Table = {
    **dict.fromkeys(
        (F.upsample, F.upsample_nearest, F.upsample_bilinear), INTERPOLATE[F.interpolate]
    ),
    **{
        entry: (("input", "size", "align_corners", "scale_factor"), 0)
        for name in ("upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d")
        for entry in _entries(name)
    },
    **{
        entry: (("input", "size", "scale_factor"), 0)
        for ndim in (1, 2, 3)
        for entry in _entries(f"upsample_nearest{ndim}d")
    },
}
