"""What each op did to the sampling rate, and with which filter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from aa_surgery.audit.axes import Axes, coarsened, lattice
from aa_surgery.audit.compute import PRODUCTS, REDUCTIONS
from aa_surgery.audit.events import Events
from aa_surgery.audit.inputs import is_integral
from aa_surgery.audit.lowpass import Kernel, depthwise_kernel
from aa_surgery.audit.moves import OP_WORDS
from aa_surgery.audit.sampling import read_sampling
from aa_surgery.audit.scopes import Scopes
from aa_surgery.audit.store import Info, Origin

__all__ = ["Judge", "spatial_kinds"]

Args = Mapping[str, Any]
Known = Sequence[tuple[Tensor, Info]]


class Judge:
    """Say of ops whether they sample, in the name of the module that runs.

    Attributes:
        events: What was found.
    """

    def __init__(self, scopes: Scopes) -> None:
        self.events = Events()
        self._scopes = scopes

    def origin(self, name: str, x: Tensor, info: Info) -> Origin:
        """Return what stood before a view of `x` by the op `name`."""
        word = OP_WORDS.get(name, "space_to_depth")
        scope = self._scopes.current
        return Origin(scope, word, info.rate, info.source, info.kernels, is_integral(x))

    def flush(self, info: Info) -> Info:
        """Judge the views made of a tensor, now that an op mixes what they brought together."""
        if info.pending is not None:
            factors = coarsened(info.pending.rate, info.axes)
            if factors:
                self.events.add_lattice(info.pending, info.axes, factors)
        return replace(info, rate=lattice(info.axes), pending=None)

    def sliced(self, before: Axes, after: Axes, dim: int) -> None:
        """List a strided slice whose positions no longer make a lattice."""
        was, now = lattice(before), lattice(after)
        lost = any(a.is_spatial or a.origin for a in before[dim]) and not any(
            a.is_spatial for a in after[dim]
        )
        if lost and was and not now.keys() >= was.keys() and after[dim]:
            self.list_unread("slice")

    def computed(self, name: str, known: Known, axes: Axes) -> None:
        """Report a reduction over the phases of a map; list what else lowers the rate."""
        x, info = known[0]
        factors = coarsened(info.rate, axes)
        if name in REDUCTIONS:
            if factors:
                self._add_lattice(REDUCTIONS[name], x, info, axes, factors)
            return
        joins = name in ("cat", "stack") or (name in PRODUCTS and len(known) > 1)
        if joins or name.startswith("_fft"):
            return  # attention gives the positions of its queries; frequencies are no positions
        if name in PRODUCTS:
            was, now = lattice(info.axes, features=True), lattice(axes, features=True)
            summed = {k: now[k][0] // info.rate[k][0] for k in now if k in info.rate}
            if any(f > 1 for f in summed.values()):  # weights over the phases: a strided conv
                self._add_lattice("conv", x, replace(info, rate=was), axes, summed)
                return
        before, after = _positions(info.axes), _positions(axes)
        if factors or 1 < after < before:
            self.list_unread(name)

    def _add_lattice(
        self, op: str, x: Tensor, info: Info, axes: Axes, factors: Mapping[int, int]
    ) -> None:
        origin = replace(self.origin(op, x, info), op=op)
        self.events.add_lattice(origin, axes, factors)

    def list_unread(self, name: str) -> None:
        """Note an op that lowers the number of positions and is not understood."""
        self.events.list_unread(self._scopes.current, name)

    def over_map(
        self,
        name: str,
        args: Args,
        source: tuple[Tensor, Info],
        result: Tensor,
        ndim: int,
    ) -> tuple[Kernel, ...]:
        """Report a convolution, pool or resampling; return the filters its result has passed."""
        x, info = source
        own: tuple[Kernel, ...] = ()
        if "convolution" in name and not args["transposed"]:
            kernel = depthwise_kernel(args, self._scopes.module)
            own = () if kernel is None else (kernel,)
        sampling = read_sampling(name, args, x.shape, result.shape, ndim)
        if sampling is None:
            same_rate = own and result.ndim == x.ndim
            return (*_filters_before(info, ndim), *own) if same_rate else ()
        scope, integral = self._scopes.current, is_integral(x)
        if own:
            by_axis: dict[int, float] = dict(enumerate(sampling.stride))
            kernels = (*_filters_before(info, ndim), *own)
        else:
            kinds = spatial_kinds(info.axes, ndim)[-len(sampling.stride) :]
            by_axis = dict(zip(kinds, sampling.stride, strict=True))
            kernels = info.kernels
        self.events.add(scope, sampling, kernels, by_axis, None, bool(own), integral)
        return ()


def spatial_kinds(axes: Axes, ndim: int) -> list[int]:
    """Return which spatial axis each of the last `ndim` axes is; its own number if unknown."""
    kinds = []
    for j, axis in enumerate(axes[-ndim:]):
        found = [a.kind for a in axis if isinstance(a.kind, int)]
        kinds.append(found[0] if found else j)
    return kinds


def _filters_before(info: Info, ndim: int) -> tuple[Kernel, ...]:
    """Return the filters that stand before an op, where their axes are those of the op's map."""
    in_order = all(k == j for j, k in enumerate(spatial_kinds(info.axes, ndim)))
    return info.kernels if in_order and all(k.ndim == ndim for k in info.kernels) else ()


def _positions(axes: Axes) -> int:
    return math.prod(size for _, size in lattice(axes).values())
