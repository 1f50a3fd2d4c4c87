"""What a method is: the layer that it puts at a site, and what that layer can do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from torch import nn

from aa_surgery.errors import MethodError, shown
from aa_surgery.layers.downsample import Downsample
from aa_surgery.sites import Site

__all__ = ["Method"]


_MOST = 4096  # of an option that is a number: beyond it, layers fill the memory


def _no_objection(site: Site) -> str:
    return ""


@dataclass(frozen=True)
class Method:
    """One way of subsampling without aliasing.

    Attributes:
        name: What `apply_antialias(method=...)` takes.
        layer: Makes the layer. It takes the keywords `stride`, `rate`, `padding_mode`,
            `channels_last`, `device` and `dtype`, `filter` where `filter` is not None, `channels`
            where `per_channel`, and `options`.
        does: What it does, one line.
        source: The paper.
        filter: The filter that it takes by default; None: it takes none.
        options: The layer's further keywords, with their defaults.
        per_channel: Whether the layer is made for a number of channels.
        stands_for_average: Whether the layer takes the place of an average pool.
        stands_before: Whether the layer can stand before an op that keeps its stride.
        shares_phase: Whether all sites that read one map must choose the same phase.
        replacement: Makes the module that stands in a strided convolution's place, from that
            convolution; None: a convolution runs at stride 1, the layer behind it.
        refuses: Says why a site is not for this method; empty if it is.
        note: What a reader of the plan should know.
    """

    name: str
    layer: Callable[..., Downsample]
    does: str
    source: str
    filter: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    per_channel: bool = False
    stands_for_average: bool = False
    stands_before: bool = True
    shares_phase: bool = False
    replacement: Callable[..., nn.Module] | None = None
    refuses: Callable[[Site], str] = _no_objection
    note: str = ""

    @property
    def spec(self) -> str | dict[str, Any]:
        """What `resolve_method` takes to give this method again; writes to JSON."""
        return {"name": self.name, **self.options} if self.options else self.name

    def with_options(self, options: Mapping[str, Any]) -> Method:
        """Return the method with other values of its options.

        Raises:
            MethodError: It has no option of that name, or a value is not of its default's kind.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise MethodError(
                    f"method {self.name!r} has no option {shown(name)}. It has: {known}."
                )
            fits, kind = _kind(self.options[name])
            if not fits(value):
                raise MethodError(f"method {self.name!r}: {name}={shown(value)}. Give {kind}.")
        return replace(self, options={**self.options, **options})

    def __str__(self) -> str:
        return self.name


def _kind(default: Any) -> tuple[Callable[[Any], bool], str]:
    """Return what tells the values that an option of such a default takes, and its words."""
    if isinstance(default, bool):
        return lambda value: isinstance(value, bool), "True or False"
    if isinstance(default, str):
        return lambda value: isinstance(value, str), "a name"
    if isinstance(default, float):
        return _is_positive, "a number above 0"
    words = f"a whole number, 1 to {_MOST}"
    if default is None:
        return lambda value: value is None or _is_count(value), f"None or {words}"
    return _is_count, words


def _is_count(value: Any) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and bool(1 <= value <= _MOST)


def _is_positive(value: Any) -> bool:
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and bool(0 < value <= sys.float_info.max)
