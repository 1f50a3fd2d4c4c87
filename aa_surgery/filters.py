"""One-dimensional low-pass filters for every stride, and their frequency response.

A filter is a rule that gives taps for a stride: the stride decides which frequencies fold onto
which, so the same name means a longer filter at a larger stride. Multi-dimensional filters are
outer products of these, one factor an axis, so strides may differ per axis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aa_surgery.errors import FilterError, shown

__all__ = [
    "Filter",
    "Taps",
    "alias_gain",
    "frequency_response",
    "kernel_nd",
    "list_filters",
    "resolve_filter",
]

Taps = tuple[float, ...]

_SUM_TOLERANCE = 1e-4
_MOST_STRIDE = 2**16  # px: larger than any map
_MOST_GAIN = 100.0  # sum of |taps|: taps that cancel beyond it leave rounding errors, not a filter


@dataclass(frozen=True)
class Filter:
    """Name a low-pass filter and give its taps at any stride.

    Attributes:
        name: The literature's name (`"tri-3"`), or `"explicit"`.
        explicit: The taps themselves where the user gave them; used at every stride.

    >>> resolve_filter("tri-3").taps(2)
    (0.25, 0.5, 0.25)
    """

    name: str
    explicit: Taps | None = None

    @property
    def is_identity(self) -> bool:
        """Whether this is the one-tap filter: plain subsampling."""
        return self.name == "identity"

    @property
    def spec(self) -> str | list[float]:
        """What `resolve_filter` takes to give this filter again; writes to JSON."""
        return list(self.explicit) if self.explicit is not None else self.name

    def taps(self, stride: int) -> Taps:
        """Return the taps for subsampling by `stride`; one tap where `stride` is 1."""
        _check_stride(stride, f"filter {shown(self.name)}")
        if stride == 1:
            return (1.0,)
        if self.explicit is not None:
            return self.explicit
        family, number = _parse(self.name)
        return _FAMILIES[family].taps(number, stride)


def box_power(order: int, stride: int) -> Taps:
    r"""Return `h(n, s)`: the box of width `s`, convolved with itself `n` times, sum 1.

    $H(\omega) = \left(\frac{\sin(s\omega/2)}{s\sin(\omega/2)}\right)^n$, with a zero of order `n`
    at every alias frequency $2\pi k/s$. Length `n (s - 1) + 1`. At `s = 2`: 1 is Rect-2,
    2 Tri-3, 3 Tri-4, 4 Binomial-5. An even length shifts the sampling grid by half a pixel.

    Source: Zhang 2019 (arXiv:1904.11486), section 3.2, for `s = 2`.
    """
    taps: npt.NDArray[np.floating[Any]] = np.ones(1)
    for _ in range(order):
        taps = np.convolve(taps, np.ones(stride))
    return tuple(float(t) for t in taps / taps.sum())


def flat_nyquist(length: int, stride: int) -> Taps:
    r"""Return the maximally flat Nyquist filter that has `length` taps at stride 2, sum 1.

    The impulse response of Lagrange interpolation from `2K` samples, `length = 4K - 1`: its zeros
    at $2\pi k/s$ have order `2K`, and so has its flatness at zero frequency. At stride 2 it is the
    half-band filter: 7 taps are (-1 0 9 16 9 0 -1) / 32. Length `2 K s - 1`, always odd.

    Source: Deslauriers and Dubuc, Symmetric iterative interpolation processes, 1989.
    """
    k = (length + 1) // 4
    nodes = range(1 - k, k + 1)
    taps = np.zeros(2 * k * stride - 1)
    for phase in range(stride):
        x = phase / stride
        for node in nodes:
            basis = math.prod((x - j) / (node - j) for j in nodes if j != node)
            position = phase - node * stride + k * stride - 1
            if 0 <= position < taps.size:
                taps[position] = basis
    return tuple(float(t) for t in taps / taps.sum())


def windowed_sinc(length: int, stride: int) -> Taps:
    r"""Return the Hamming-windowed sinc with cut-off $\pi/s$, sum 1.

    `length` (odd) is the number of taps at stride 2; at stride `s` it has
    `(length - 1) s / 2 + 1` taps, made odd, so that the number of lobes stays.

    Source: Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5.
    """
    half = ((length - 1) * stride // 2 + 1) // 2
    n = np.arange(-half, half + 1)
    taps = np.sinc(n / stride) * np.hamming(2 * half + 3)[1:-1]
    return tuple(float(t) for t in taps / taps.sum())


@dataclass(frozen=True)
class _Family:
    """A family of named filters: what its number means, and how to get the taps."""

    accepts: Callable[[int], bool]  # 0 stands for no number
    rule: str
    taps: Callable[[int, int], Taps]


_FAMILIES: dict[str, _Family] = {
    "identity": _Family(lambda n: n == 0, "none", lambda n, s: (1.0,)),
    "rect": _Family(lambda n: n == 2, "2", lambda n, s: box_power(n - 1, s)),
    "tri": _Family(lambda n: n in (3, 4), "3 or 4", lambda n, s: box_power(n - 1, s)),
    "binomial": _Family(lambda n: 2 <= n <= 17, "2 to 17", lambda n, s: box_power(n - 1, s)),
    "halfband": _Family(
        lambda n: n % 4 == 3 and n <= 31, "3, 7, 11, ... 31", lambda n, s: flat_nyquist(n, s)
    ),
    "sinc": _Family(
        lambda n: n % 2 == 1 and 3 <= n <= 63,
        "an odd number, 3 to 63",
        lambda n, s: windowed_sinc(n, s),
    ),
}


def list_filters() -> list[str]:
    """Return the names in common use, from the weakest to the strongest of each family."""
    return [
        "identity",
        "rect-2",
        "tri-3",
        "tri-4",
        "binomial-5",
        "binomial-6",
        "binomial-7",
        "halfband-7",
        "halfband-11",
        "sinc-7",
        "sinc-11",
    ]


@lru_cache
def _parse(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)(?:-([1-9][0-9]{0,2}))?", name)
    family, number = (match.group(1), int(match.group(2) or 0)) if match else ("", 0)
    if family not in _FAMILIES:
        raise FilterError(
            f"filter {shown(name)} is unknown. Use one of {', '.join(list_filters())}, "
            "or give the taps, e.g. filter=[0.25, 0.5, 0.25]."
        )
    if not _FAMILIES[family].accepts(number):
        raise FilterError(
            f"filter {shown(name)}: the number of {family!r} is {_FAMILIES[family].rule}."
        )
    return family, number


def resolve_filter(spec: str | Sequence[float] | Filter) -> Filter:
    """Return the `Filter` that a name, a sequence of taps, or a `Filter` stands for.

    Raises:
        FilterError: The name is unknown, or the taps are no numbers of sum 1.

    >>> resolve_filter([0.25, 0.5, 0.25]).taps(3)
    (0.25, 0.5, 0.25)
    """
    if isinstance(spec, Filter):
        if type(spec) is Filter:
            resolve_filter(spec.spec)  # one that was made by hand may hold anything
        return spec
    if isinstance(spec, str):
        name = spec.lower()
        _parse(name)
        return Filter(name)
    taps = _numbers(spec)
    total = sum(taps)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise FilterError(
            f"filter {shown(spec)}: taps sum to {total:g}, so a constant map would change. "
            "Divide them by their sum."
        )
    return Filter("identity") if taps == (1.0,) else Filter("explicit", taps)


def _numbers(spec: Any) -> Taps:
    """Return taps as numbers.

    Raises:
        FilterError: They are no sequence of numbers that a filter can have.
    """
    # of a mapping, a set or bytes the order or the keys would be read
    ordered = not isinstance(spec, (str, bytes, bytearray, Mapping, Set))
    try:
        given = list(spec) if ordered else None
    except TypeError:
        given = None
    if given is None or not all(map(_is_number, given)):
        raise FilterError(
            f"filter {shown(spec)} is neither a name ({', '.join(list_filters())}) "
            "nor a sequence of numbers."
        )
    try:
        taps = tuple(float(tap) for tap in given)
    except OverflowError:
        taps = (math.inf,)
    if not taps or not all(math.isfinite(tap) for tap in taps):
        raise FilterError(f"filter {shown(spec)}: taps must be one or more finite numbers.")
    if sum(map(abs, taps)) > _MOST_GAIN:
        raise FilterError(
            f"filter {shown(spec)}: the taps' magnitudes sum to {sum(map(abs, taps)):g}, above "
            f"{_MOST_GAIN:g}: nothing of a map would be left but rounding errors."
        )
    return taps


def _is_number(value: Any) -> bool:
    """Tell a real number, a scalar tensor among them, from truth values and text."""
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 and value.dtype != torch.bool and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_stride(stride: Any, where: str) -> None:
    whole = isinstance(stride, Integral) and not isinstance(stride, bool)
    if not whole or not 1 <= stride <= _MOST_STRIDE:
        raise FilterError(
            f"{where}: stride must be a whole number, at least 1 and at most {_MOST_STRIDE}, "
            f"got {shown(stride)}."
        )


def frequency_response(taps: Sequence[float], omega: torch.Tensor | None = None) -> torch.Tensor:
    r"""Return the zero-phase-centred response $H(\omega) = \sum_n h_n e^{-i\omega(n - c)}$.

    Args:
        taps: The filter, `c` its centre, `(len(taps) - 1) / 2`.
        omega: Frequencies in radians a sample, any shape; 512 from 0 to pi by default.

    Returns:
        Real tensor of `omega`'s shape, float64; real because the centred filter is symmetric
        for every named filter (of explicit taps the magnitude is returned).

    Raises:
        FilterError: The taps are no finite numbers, or `omega` is no tensor of real ones.

    >>> frequency_response([0.25, 0.5, 0.25], torch.tensor([0.0, torch.pi])).round(decimals=6).abs()
    tensor([1., 0.], dtype=torch.float64)
    """
    if isinstance(taps, str):
        raise FilterError(
            f"taps {shown(taps)}: a name has taps at a stride: resolve_filter(...).taps(2)."
        )
    h = torch.as_tensor(_numbers(taps), dtype=torch.float64)
    if omega is None:
        omega = torch.linspace(0, math.pi, 512, dtype=torch.float64)
    if not isinstance(omega, torch.Tensor) or omega.is_complex():
        raise FilterError(f"omega {shown(omega)}: expected a tensor of frequencies, or None.")
    omega = omega.to(torch.float64)
    n = torch.arange(len(h), dtype=torch.float64) - (len(h) - 1) / 2
    phase = omega[..., None] * n
    real, imag = (h * phase.cos()).sum(-1), (h * phase.sin()).sum(-1)
    return real if torch.allclose(h, h.flip(0)) else torch.hypot(real, imag)


def alias_gain(taps: Sequence[float], stride: int) -> float:
    r"""Return $\max_k |H(2\pi k/s)|$, `k = 1 .. s - 1`: the gain of what folds onto a flat map.

    0 for the family `h(n, s)`, 1 for plain subsampling.
    """
    _check_stride(stride, "alias_gain")
    if stride == 1:
        return 0.0
    omega = torch.arange(1, stride, dtype=torch.float64) * (2 * math.pi / stride)
    return float(frequency_response(taps, omega).abs().max())


def kernel_nd(taps: Sequence[Taps], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the outer product of one filter an axis, shape `(1, 1, *lengths)`."""
    kernel = torch.ones((), dtype=torch.float64)
    for axis in taps:
        kernel = kernel[..., None] * torch.tensor(axis, dtype=torch.float64)
    return kernel[None, None].to(dtype)
