"""The dispatch mode that watches a model run, op by op."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aa_surgery.audit.axes import Axes, coarsened, feature_map, lattice
from aa_surgery.audit.compute import COMPUTE, fallback, map_ndim
from aa_surgery.audit.events import Events
from aa_surgery.audit.indexing import PICKS, lost_axes
from aa_surgery.audit.inputs import input_axes
from aa_surgery.audit.judge import Judge, spatial_kinds
from aa_surgery.audit.lowpass import same_kernels
from aa_surgery.audit.moves import FACTORIES, MOVES, REARRANGE
from aa_surgery.audit.parts import carried, cuts_of, join
from aa_surgery.audit.scopes import Scopes
from aa_surgery.audit.store import Info, Store

__all__ = ["Observer"]

Args = Mapping[str, Any]
Known = Sequence[tuple[Tensor, Info]]


class Observer(TorchDispatchMode):
    """Follow the tensors that descend from the inputs, and collect every sampling op.

    Views are judged late, when an op mixes what they brought together: a patch merge and a window
    partition begin with the same view, of two slices that follow each other only the pair is the
    site, and patches that are folded back sample nothing.

    """

    supports_higher_order_operators = True

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()
        self._judge = Judge(scopes)
        self._store = Store()
        self._sources = itertools.count(1)

    @property
    def events(self) -> Events:
        """What was found."""
        return self._judge.events

    def seed(self, x: Tensor) -> None:
        """Take `x` for an input: a map, or the ids or labels of which one is made."""
        self._store.put(x, self._computed(input_axes(x)))

    def finish(self, outputs: Sequence[Tensor]) -> None:
        """Judge the views that the model returns and nothing computed with."""
        for x in outputs:
            if (info := self._store.get(x)) is not None:
                self._judge.flush(info)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # flex_attention, scan, ...: one op, any rule
            out = func(*args, **kwargs)
            self._observe(func.name(), False, {str(n): a for n, a in enumerate(args)}, out)
            return out
        if func._can_decompose() and torch.is_inference_mode_enabled():
            with self:  # composite ops come whole where there is no autograd to take them apart
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name not in FACTORIES:
            bound = _bind(func._schema, args, kwargs)
            self._observe(name, func._schema.is_mutable, bound, out)
        return out

    def _observe(self, name: str, mutable: bool, args: Args, out: Any) -> None:
        operands = [t for t in tree_leaves(list(args.values())) if isinstance(t, Tensor)]
        known = [(t, info) for t in operands if (info := self._store.get(t)) is not None]
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not known or not results:
            return
        infos = self._infos(name, args, operands, known, results)
        keep = self._store.overwrite if mutable else self._store.put
        for t, info in zip(results, infos, strict=True):
            keep(t, info)

    def _infos(
        self,
        name: str,
        args: Args,
        operands: Sequence[Tensor],
        known: Known,
        results: Sequence[Tensor],
    ) -> list[Info]:
        """Return what is known of the results."""
        first, info = known[0]
        if operands[0] is first:
            if name in MOVES:
                return self._move(name, args, first, info, results)
            if name in PICKS:
                return [self._pick(name, args, known, results[0])]
        if name in ("cat", "stack") and len(known) == len(args["tensors"]):
            joined = self._join(name, args, [i for _, i in known])
            if joined is not None:
                return [joined]
        if name in REARRANGE:
            return [self._rearrange(name, args, first, info)]
        ndim = map_ndim(name, args, first.shape) if operands[0] is first else None
        kept = _untouched(name, known, results[0]) if ndim is None else None
        if kept is not None:
            return self._elementwise(known, kept, results)
        if not _puts_back(name, info):
            known = [(t, self._judge.flush(i)) for t, i in known]
        if ndim is not None:
            return self._over_map(name, args, known, results, ndim)
        return self._compute(name, args, known, results)

    def _move(
        self, name: str, args: Args, x: Tensor, info: Info, results: Sequence[Tensor]
    ) -> list[Info]:
        shapes = [t.shape for t in results]
        moved = MOVES[name](info.axes, args, shapes)
        if name == "slice" and args["step"] > 1 and moved[0] != info.axes:
            self._judge.sliced(info.axes, moved[0], args["dim"])
        parts = cuts_of(name, args, info, shapes, self._judge.origin("slice", x, info))
        return [self._viewed(name, x, part, axes) for part, axes in zip(parts, moved, strict=True)]

    def _viewed(self, name: str, x: Tensor, info: Info, axes: Axes) -> Info:
        pending = info.pending
        if pending is not None and not coarsened(pending.rate, axes):
            pending = None  # put back
        if pending is None and coarsened(info.rate, axes):
            pending = self._judge.origin(name, x, info)
        return replace(info, axes=axes, pending=pending)

    def _pick(self, name: str, args: Args, known: Known, result: Tensor) -> Info:
        """Read entries taken by number; those that the content chooses are no sampling."""
        x, info = known[0]
        axes = PICKS[name](info.axes, args)
        if axes is not None:
            return self._viewed(name, x, info, axes)
        info = self._judge.flush(info)
        fewer = 1 < result.numel() < x.numel() and lattice(info.axes)
        if fewer and len(known) == 1:
            self._judge.list_unread(name)
        computed = self._computed(lost_axes(info.axes, result.shape))
        return replace(computed, cuts=info.cuts)

    def _join(self, name: str, args: Args, infos: Sequence[Info]) -> Info | None:
        """Read the joining of parts of one map: rows, frames, phases."""
        joined = join(infos)
        if joined is None:
            return None
        if joined.atoms is None:
            self._judge.list_unread(name)
            return None
        first = infos[0]
        rank = len(first.axes) + (name == "stack")
        d = args["dim"] % rank
        inner = () if name == "stack" else first.axes[d]
        rest = first.axes[d:] if name == "stack" else first.axes[d + 1 :]
        axes = (*first.axes[:d], (*joined.atoms, *inner), *rest)
        same = all(same_kernels(i.kernels, first.kernels) for i in infos)
        cuts = {k: c for k, c in carried(infos).items() if k not in joined.renumbered}
        rate = joined.pending.rate
        factors = coarsened(rate, axes)
        if any(k != number for k, number in joined.renumbered.items()):
            of_parts = {k: f for k, f in factors.items() if k in joined.renumbered}
            if factors:
                self._judge.events.add_lattice(joined.pending, axes, of_parts, joined.renumbered)
            factors, rate = {}, lattice(axes)
        pending = joined.pending if factors else None
        return Info(axes, rate, self._next(), first.kernels if same else (), pending, cuts)

    def _elementwise(self, known: Known, kept: Info, results: Sequence[Tensor]) -> list[Info]:
        """Follow an op that computes with samples one by one, wherever a view has put them."""
        others = [i if i.pending == kept.pending else self._judge.flush(i) for _, i in known]
        operands = [(i.axes, t.shape) for i, (t, _) in zip(others, known, strict=True)]
        infos = []
        for t in results:
            axes = fallback(operands, t.shape)
            same = t.shape == results[0].shape
            follow = replace(kept, axes=axes, source=self._next(), kernels=())
            infos.append(follow if same else self._computed(axes))
        return infos

    def _rearrange(self, name: str, args: Args, x: Tensor, info: Info) -> Info:
        info = self._judge.flush(info)
        before, axes = REARRANGE[name](args, x.shape)
        fresh = replace(self._computed(before), kernels=info.kernels)
        return self._viewed(name, x, fresh, axes)

    def _over_map(
        self, name: str, args: Args, known: Known, results: Sequence[Tensor], ndim: int
    ) -> list[Info]:
        """Read a convolution, a pool, a resampling: their results are maps."""
        kernels = self._judge.over_map(name, args, known[0], results[0], ndim)
        cuts = carried([known[0][1]], spatial_kinds(known[0][1].axes, ndim), ndim)
        mapped = [feature_map(t.shape, min(ndim, t.ndim)) for t in results]
        return [replace(self._computed(axes), kernels=kernels, cuts=cuts) for axes in mapped]

    def _compute(
        self, name: str, args: Args, known: Known, results: Sequence[Tensor]
    ) -> list[Info]:
        shapes = [t.shape for t in results]
        if name in COMPUTE:
            new = COMPUTE[name](self._axes_of, args, shapes)
        else:
            pairs = [(i.axes, t.shape) for t, i in known]
            new = [fallback(pairs, shape) for shape in shapes]
        self._judge.computed(name, known, new[0])
        kernels = known[0][1].kernels if self._keeps_filter(name, args, known) else ()
        cuts = carried([i for _, i in known])
        return [replace(self._computed(axes), kernels=kernels, cuts=cuts) for axes in new]

    def _axes_of(self, x: Tensor) -> Axes | None:
        info = self._store.get(x)
        return None if info is None else info.axes

    def _computed(self, axes: Axes) -> Info:
        return Info(axes, lattice(axes), self._next())

    def _next(self) -> int:
        return next(self._sources)

    def _keeps_filter(self, name: str, args: Args, known: Known) -> bool:
        """Return whether values are only joined or copied, all from maps of one filter."""
        if not all(same_kernels(i.kernels, known[0][1].kernels) for _, i in known):
            return False
        if name == "copy_":
            return args["src"] is known[-1][0]
        return name in ("cat", "stack") and len(known) == len(args["tensors"])


def _bind(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an op by name, defaults included."""
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound.update({a.name: value for a, value in zip(schema.arguments, args, strict=False)})
    bound.update(kwargs)
    return bound


def _untouched(name: str, known: Known, result: Tensor) -> Info | None:
    """Return the operand whose samples an elementwise op keeps apart, though a view moved them.

    All samples of the map are there still, in the channels, and can be put back.
    """
    if name in COMPUTE or name in ("col2im", "pixel_shuffle"):
        return None
    for x, info in known:
        if info.pending is not None and x.shape == result.shape:
            there, rate = lattice(info.axes, features=True), info.pending.rate
            if all(there.get(k, (math.inf,))[0] <= step for k, (step, _) in rate.items()):
                return info
    return None


def _puts_back(name: str, info: Info) -> bool:
    """Return whether an op moves to positions again what a view had moved to the channels."""
    merged = info.pending is not None and info.pending.op in ("unfold", "space_to_depth")
    return merged and name in ("col2im", "pixel_shuffle")
