"""What is known of each tensor that descends from the model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from aa_surgery.audit.axes import UNKNOWN, Atom, Axes, Lattice, resize
from aa_surgery.audit.lowpass import Kernel, same_kernels

__all__ = ["Cut", "Info", "Origin", "Store"]


@dataclass(frozen=True)
class Origin:
    """A map before views took samples of it; whether they did shows when the result is used.

    Attributes:
        scope: The module that took them.
        op: The report's word.
        rate: The lattice of positions before.
        source: A number of the computation that gave the map, to tell several slices of one
            tensor from slices of several.
        kernels: The low-pass filters in series that gave its values.
        integral: Whether its values are integers or booleans.
    """

    scope: str
    op: str
    rate: Lattice
    source: int
    kernels: tuple[Kernel, ...] = ()
    integral: bool = False


@dataclass(frozen=True)
class Cut:
    """Which part of one spatial axis of a map a view has taken.

    Attributes:
        kind: The axis of the map.
        offset: The position along it of the first sample taken.
        of: The map.
    """

    kind: int
    offset: int
    of: Origin


@dataclass(frozen=True)
class Info:
    """One tensor.

    Attributes:
        axes: What each axis means.
        rate: The lattice of positions when the values were last computed; views since then may
            have made it coarser.
        source: The number of that computation.
        kernels: The low-pass filters in series that gave the values.
        pending: The map that views made coarser, where nothing has been lost for good yet.
        cuts: By spatial axis, which part of the map this is; of a part that several ops have
            computed with since, still the part that it comes from.
    """

    axes: Axes
    rate: Lattice
    source: int
    kernels: tuple[Kernel, ...] = ()
    pending: Origin | None = None
    cuts: Mapping[int, Cut] = field(default_factory=dict)


Geometry = tuple[int, tuple[int, ...], tuple[int, ...]]


@dataclass
class _Entry:
    views: dict[Geometry, Info]
    whole: Info | None = None


class Store:
    """Keep an `Info` for each tensor, found by its storage and geometry.

    Tensor objects do not serve as keys, for autograd hands the caller another object than the one
    that the dispatch mode saw. A weak reference keeps a storage's address from being used again.
    """

    def __init__(self) -> None:
        self._entries: dict[StorageWeakRef, _Entry] = {}

    def get(self, x: Tensor) -> Info | None:
        """Return what is known of `x`; None where it does not descend from the inputs.

        A tensor that was filled piece by piece takes its axes from the first piece.
        """
        entry = self._entries.get(_storage(x)) if x.layout is torch.strided else None
        if entry is None:
            return None
        exact = entry.views.get(_geometry(x))
        if exact is not None:
            return exact
        if entry.whole is not None and len(entry.whole.axes) == x.ndim:
            return replace(entry.whole, axes=resize(entry.whole.axes, x.shape))
        return Info(tuple((Atom(UNKNOWN, n),) if n != 1 else () for n in x.shape), {}, 0)

    def put(self, x: Tensor, info: Info) -> None:
        """Remember the result of an op that wrote to no other tensor."""
        if x.layout is torch.strided:
            entry = self._entries.setdefault(_storage(x), _Entry({}))
            entry.views[_geometry(x)] = info

    def overwrite(self, x: Tensor, info: Info) -> None:
        """Remember that `x`, perhaps a part of its storage, was written in place."""
        if x.layout is not torch.strided:
            return
        fresh = _storage(x) not in self._entries
        entry = self._entries.setdefault(_storage(x), _Entry({}))
        if fresh:
            entry.whole = info
        for geometry, old in entry.views.items():
            if not same_kernels(old.kernels, info.kernels):
                entry.views[geometry] = replace(old, kernels=())
        if entry.whole is not None and not same_kernels(entry.whole.kernels, info.kernels):
            entry.whole = replace(entry.whole, kernels=())
        entry.views[_geometry(x)] = info


def _storage(x: Tensor) -> StorageWeakRef:
    return StorageWeakRef(x.untyped_storage())


def _geometry(x: Tensor) -> Geometry:
    return int(x.storage_offset()), tuple(x.shape), tuple(x.stride())
