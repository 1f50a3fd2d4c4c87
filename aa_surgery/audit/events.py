"""The sampling ops that ran, each once, and what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aa_surgery.audit.axes import Axes, lattice
from aa_surgery.audit.lowpass import Kernel, alias_gain, is_lowpass
from aa_surgery.audit.sampling import Sampling
from aa_surgery.audit.store import Origin

__all__ = ["Event", "Events"]


@dataclass(frozen=True)
class Event:
    """One sampling op as it ran.

    Attributes:
        scope: Qualified name of the module that ran it.
        sampling: The op, its stride and sizes.
        kernels: Low-pass filters in series that stand before it, or that it is.
        gain: The largest gain of what aliases; None where there is no filter.
        own: Whether the op itself is the filter.
        integral: Whether it samples integers or booleans, for which no filter is.
    """

    scope: str
    sampling: Sampling
    kernels: tuple[Kernel, ...] = ()
    gain: float | None = None
    own: bool = False
    integral: bool = False

    @property
    def treated(self) -> bool:
        """Whether a low-pass filter that follows the stride stands with the op."""
        return self.sampling.antialiased or (self.gain is not None and is_lowpass(self.gain))


class Events:
    """Collect sampling ops.

    Attributes:
        found: In the order of running, each source and op once.
        unread: What lowered the number of positions in a way that is not understood.
    """

    def __init__(self) -> None:
        self.found: list[Event] = []
        self.unread: dict[str, None] = {}
        self._seen: set[tuple[object, ...]] = set()

    def list_unread(self, scope: str, name: str) -> None:
        """Note an op that is not understood."""
        self.unread[f"{scope or '(model)'}: {name}"] = None

    def add_lattice(
        self,
        origin: Origin,
        axes: Axes,
        factors: Mapping[int, int],
        was: Mapping[int, int] | None = None,
    ) -> None:
        """Add a sampling that is known by what became of the positions.

        Args:
            origin: The map before.
            axes: What its axes are now.
            factors: By how much its steps grew, by spatial axis.
            was: The number that a spatial axis had in the map before, where it has another now.
        """
        was = {k: k for k in factors} if was is None else was
        after = {**lattice(axes, features=True), **lattice(axes)}
        sampling = Sampling(
            origin.op,
            tuple(factors.values()),
            tuple(origin.rate[k][1] for k in factors),
            tuple(after[k][1] for k in factors),
        )
        by_axis = {was.get(k, k): f for k, f in factors.items()}
        self.add(
            origin.scope,
            sampling,
            origin.kernels,
            by_axis,
            origin.source,
            integral=origin.integral,
        )

    def add(
        self,
        scope: str,
        sampling: Sampling,
        kernels: tuple[Kernel, ...],
        factors: Mapping[int, float],
        source: int | None,
        own: bool = False,
        integral: bool = False,
    ) -> None:
        """Add a sampling; of one `source`, the same one once.

        Args:
            scope: The module that ran it.
            sampling: The op.
            kernels: The filters with it.
            factors: Its stride by the axes of the filters.
            source: The computation that gave the map; None for an op that always counts.
            own: Whether the op itself is the filter.
            integral: Whether the map has integers.
        """
        key = (scope, sampling.op, sampling.stride, source)
        if source is not None and key in self._seen:
            return
        self._seen.add(key)
        gain = None
        if kernels:
            gain = alias_gain(kernels, [factors.get(k, 1) for k in range(kernels[0].ndim)])
        self.found.append(Event(scope, sampling, kernels, gain, own, integral))
