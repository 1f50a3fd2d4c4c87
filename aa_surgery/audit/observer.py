"""The dispatch mode that watches a model run, op by op."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aa_surgery.audit.axes import Axes, coarsened, feature_map, lattice
from aa_surgery.audit.compute import COMPUTE, PRODUCTS, REDUCTIONS, fallback, map_ndim
from aa_surgery.audit.lowpass import Kernel, alias_gain, depthwise_kernel, is_lowpass, same_kernels
from aa_surgery.audit.moves import FACTORIES, MOVES, OP_WORDS, REARRANGE
from aa_surgery.audit.sampling import Sampling, read_sampling
from aa_surgery.audit.scopes import Scopes
from aa_surgery.audit.store import Info, Pending, Store

__all__ = ["Event", "Observer"]


@dataclass(frozen=True)
class Event:
    """One sampling op as it ran.

    Attributes:
        scope: Qualified name of the module that ran it.
        sampling: The op, its stride and sizes.
        kernels: Low-pass filters in series that stand before it, or that it is.
        gain: The largest gain of what aliases; None where there is no filter.
        own: Whether the op itself is the filter.
    """

    scope: str
    sampling: Sampling
    kernels: tuple[Kernel, ...] = ()
    gain: float | None = None
    own: bool = False

    @property
    def treated(self) -> bool:
        """Whether a low-pass filter that follows the stride stands with the op."""
        return self.sampling.antialiased or (self.gain is not None and is_lowpass(self.gain))


class Observer(TorchDispatchMode):
    """Follow the tensors that descend from the inputs, and collect every sampling op.

    Views are judged late, when an op computes with their result: a patch merge and a window
    partition begin with the same view, and of two slices that follow each other only the pair is
    the site.

    Attributes:
        events: Sampling ops in the order of running, each source and op once.
        unread: What lowered the number of positions in a way that is not understood.
    """

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.unread: dict[str, None] = {}
        self._scopes = scopes
        self._store = Store()
        self._sources = itertools.count(1)
        self._seen: set[tuple[object, ...]] = set()

    def seed(self, x: Tensor) -> None:
        """Take `x` for an input: a map `(N, C, *spatial)` where it is of rank 3 or more."""
        axes = feature_map(x.shape)
        self._store.put(x, self._computed(axes))

    def finish(self, outputs: object) -> None:
        """Judge the views that the model returns and nothing computed with."""
        for x in tree_leaves(outputs):
            if isinstance(x, Tensor) and (info := self._store.get(x)) is not None:
                self._flush(info)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if name not in FACTORIES:
            self._observe(name, func._schema, _bind(func._schema, args, kwargs or {}), out)
        return out

    def _observe(self, name: str, schema: Any, args: Mapping[str, Any], out: Any) -> None:
        operands = [t for t in tree_leaves(list(args.values())) if isinstance(t, Tensor)]
        known = [(t, info) for t in operands if (info := self._store.get(t)) is not None]
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not known or not results:
            return
        if name in MOVES and operands[0] is known[0][0]:
            infos = self._move(name, args, known[0][1], results)
        else:
            if not _puts_back(name, known[0][1]):
                known = [(t, self._flush(info)) for t, info in known]
            infos = self._compute(name, args, known, results)
        keep = self._store.overwrite if schema.is_mutable else self._store.put
        for t, info in zip(results, infos, strict=True):
            keep(t, info)

    def _move(
        self, name: str, args: Mapping[str, Any], info: Info, results: Sequence[Tensor]
    ) -> list[Info]:
        shapes = [t.shape for t in results]
        moved = MOVES[name](info.axes, args, shapes)
        if name == "slice" and args["step"] > 1 and moved[0] != info.axes:
            self._slice_read(info.axes, moved[0], args["dim"])
        return [self._viewed(name, info, axes) for axes in moved]

    def _slice_read(self, before: Axes, after: Axes, dim: int) -> None:
        """List a strided slice whose positions no longer make a lattice."""
        was, now = lattice(before), lattice(after)
        lost = any(a.is_spatial for a in before[dim]) and not any(a.is_spatial for a in after[dim])
        if lost and was and not now.keys() >= was.keys() and after[dim]:
            self._list_unread("slice")

    def _viewed(self, name: str, info: Info, axes: Axes) -> Info:
        pending = info.pending
        if pending is None and coarsened(info.rate, axes):
            pending = Pending(self._scopes.current, OP_WORDS.get(name, "space_to_depth"))
        return replace(info, axes=axes, pending=pending)

    def _compute(
        self,
        name: str,
        args: Mapping[str, Any],
        known: Sequence[tuple[Tensor, Info]],
        results: Sequence[Tensor],
    ) -> list[Info]:
        first, info = known[0]
        if name in REARRANGE:
            before, axes = REARRANGE[name](args, first.shape)
            fresh = replace(self._computed(before), kernels=info.kernels)
            return [self._viewed(name, fresh, axes)]
        ndim = map_ndim(name, args, first.shape)
        if ndim is not None:
            kernels = self._sample(name, args, known[0], results[0], ndim)
            mapped = [feature_map(t.shape, min(ndim, t.ndim)) for t in results]
            return [replace(self._computed(axes), kernels=kernels) for axes in mapped]
        shapes = [t.shape for t in results]
        if name in COMPUTE:
            new = COMPUTE[name](self._axes_of, args, shapes)
        else:
            pairs = [(i.axes, t.shape) for t, i in known]
            new = [fallback(pairs, shape) for shape in shapes]
        self._check(name, known, new[0])
        kernels = known[0][1].kernels if self._keeps_filter(name, args, known) else ()
        return [replace(self._computed(axes), kernels=kernels) for axes in new]

    def _axes_of(self, x: Tensor) -> Axes | None:
        info = self._store.get(x)
        return None if info is None else info.axes

    def _computed(self, axes: Axes) -> Info:
        return Info(axes, lattice(axes), next(self._sources))

    def _keeps_filter(
        self, name: str, args: Mapping[str, Any], known: Sequence[tuple[Tensor, Info]]
    ) -> bool:
        """Return whether values are only joined or copied, all from maps of one filter."""
        if not all(same_kernels(i.kernels, known[0][1].kernels) for _, i in known):
            return False
        if name == "copy_":
            return args["src"] is known[-1][0]
        return name in ("cat", "stack") and len(known) == len(args["tensors"])

    def _check(self, name: str, known: Sequence[tuple[Tensor, Info]], axes: Axes) -> None:
        """Report a reduction over the phases of a map; list what else lowers the rate."""
        info = known[0][1]
        factors = coarsened(info.rate, axes)
        if name in REDUCTIONS:
            if factors:
                self._emit_lattice(self._scopes.current, REDUCTIONS[name], info, axes, factors)
            return
        joins = name in ("cat", "stack") or (name in PRODUCTS and len(known) > 1)
        if joins or name.startswith("_fft"):
            return  # attention gives the positions of its queries; frequencies are no positions
        before, after = _positions(info.axes), _positions(axes)
        if factors or 1 < after < before:
            self._list_unread(name)

    def _list_unread(self, name: str) -> None:
        self.unread[f"{self._scopes.current or '(model)'}: {name}"] = None

    def _flush(self, info: Info) -> Info:
        """Judge the views made of a tensor, now that an op computes with their result."""
        factors = coarsened(info.rate, info.axes) if info.pending is not None else {}
        if info.pending is not None and factors:
            self._emit_lattice(info.pending.scope, info.pending.op, info, info.axes, factors)
        return replace(info, rate=lattice(info.axes), pending=None)

    def _emit_lattice(
        self, scope: str, op: str, info: Info, axes: Axes, factors: Mapping[int, int]
    ) -> None:
        after = lattice(axes)
        sampling = Sampling(
            op,
            tuple(factors.values()),
            tuple(info.rate[k][1] for k in factors),
            tuple(after[k][1] for k in factors),
        )
        self._emit(scope, sampling, info.kernels, factors, info.source)

    def _sample(
        self,
        name: str,
        args: Mapping[str, Any],
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
        kinds = _kinds(info.axes, ndim)
        if own:
            by_axis: dict[int, float] = dict(enumerate(sampling.stride))
            before = _filters_before(info, ndim)
            self._emit(self._scopes.current, sampling, (*before, *own), by_axis, None, own=True)
        else:
            by_axis = dict(zip(kinds[-len(sampling.stride) :], sampling.stride, strict=True))
            self._emit(self._scopes.current, sampling, info.kernels, by_axis, None)
        return ()

    def _emit(
        self,
        scope: str,
        sampling: Sampling,
        kernels: tuple[Kernel, ...],
        factors: Mapping[int, float],
        source: int | None,
        own: bool = False,
    ) -> None:
        key = (scope, sampling.op, sampling.stride, source)
        if source is not None and key in self._seen:
            return
        self._seen.add(key)
        gain = None
        if kernels:
            ndim = kernels[0].ndim
            gain = alias_gain(kernels, [factors.get(k, 1) for k in range(ndim)])
        self.events.append(Event(scope, sampling, kernels, gain, own))


def _bind(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an op by name, defaults included."""
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound.update({a.name: value for a, value in zip(schema.arguments, args, strict=False)})
    bound.update(kwargs)
    return bound


def _puts_back(name: str, info: Info) -> bool:
    """Return whether an op moves to positions again what a view had moved to the channels."""
    merged = info.pending is not None and info.pending.op in ("unfold", "space_to_depth")
    return merged and name in ("col2im", "pixel_shuffle")


def _kinds(axes: Axes, ndim: int) -> list[int]:
    """Return which spatial axis each of the last `ndim` axes is; its own number if unknown."""
    kinds = []
    for j, axis in enumerate(axes[-ndim:]):
        found = [a.kind for a in axis if isinstance(a.kind, int)]
        kinds.append(found[0] if found else j)
    return kinds


def _filters_before(info: Info, ndim: int) -> tuple[Kernel, ...]:
    """Return the filters that stand before an op, where their axes are those of the op's map."""
    in_order = all(k == j for j, k in enumerate(_kinds(info.axes, ndim)))
    return info.kernels if in_order and all(k.ndim == ndim for k in info.kernels) else ()


def _positions(axes: Axes) -> int:
    return math.prod(size for _, size in lattice(axes).values())
