"""The low-pass band of an orthogonal wavelet (PyWavelets' filters)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aa_surgery.errors import MethodError
from aa_surgery.filters import Filter, Taps
from aa_surgery.layers.maps import BlurMaps
from aa_surgery.methods.method import Method
from aa_surgery.sites import Site

__all__ = ["METHOD", "WaveletFilter", "WaveletPool"]

# Centres of symmetric taps are whole or half numbers, up to this.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class WaveletFilter(Filter):
    r"""The scaling filter of an orthogonal wavelet, of sum 1, for rates that are powers of two.

    At rate 2 the wavelet's own low-pass filter over $\sqrt2$; at rate $2^J$ the filter that `J`
    levels make together, $h * (h{\uparrow}2) * \dots * (h{\uparrow}2^{J-1})$. Zeros stand before
    or behind asymmetric taps, so that their middle is the filter's centre of mass.

    Source: Mallat 1989, A theory for multiresolution signal decomposition.

    Raises:
        MethodError: PyWavelets is missing, the wavelet is unknown or not orthogonal, or the rate
            is not a power of two.
    """

    def taps(self, stride: int) -> Taps:
        """Return the taps for subsampling by `stride`, in the order in which the map is read."""
        if not _is_power_of_two(stride):
            raise MethodError(f"method 'wavelet': {_not_a_power(stride)}")
        # a wavelet is convolved, so its taps are read backwards
        level = np.asarray(_wavelet(self.name).dec_lo[::-1]) / np.sqrt(2)
        taps = np.ones(1)
        step = 1
        while step < stride:
            spread = np.zeros((len(level) - 1) * step + 1)
            spread[::step] = level
            taps = np.convolve(taps, spread)
            step *= 2
        taps /= taps.sum()
        centre = math.ceil(float(taps @ np.arange(len(taps))) - 0.5 - _ROUNDING)
        # `BlurPool` puts the middle tap, of two the left one, on the output's place
        lead, rest = len(taps) - 2 - 2 * centre, 2 * centre + 1 - len(taps)
        return tuple(np.pad(taps, (max(lead, 0), max(rest, 0))).tolist())


class WaveletPool(BlurMaps):
    r"""Keep the low-pass band (LL) of an orthogonal wavelet, with a gain of 1 for constant maps.

    $y[i] = \sum_n h_n\, x[i s + n - b]$ along each axis: the approximation coefficients over
    $\sqrt s$. `b` is the filter's centre of mass, rounded, so that asymmetric wavelets move the
    sampling grid by half a pixel at most. `haar` at stride 2 is `rect-2`. In circular padding,
    shifts by multiples of the stride are kept exactly. There is no state.

    Source: Li et al. 2020, WaveCNet (arXiv:2005.03337).

    Args:
        stride: Subsampling step, one an axis.
        rate: The sampling rate, one an axis, to prepare for; `stride` by default. A power of two.
        padding_mode: Border: `"reflect"`, `"replicate"`, `"zeros"` or `"circular"`.
        channels_last: Whether maps are `(*, *spatial, C)`.
        wavelet: PyWavelets' name of an orthogonal one: `"haar"`, `"db2"`, `"sym4"`, `"coif1"`.

    Raises:
        MethodError: PyWavelets is missing, the wavelet is unknown or not orthogonal, or a rate is
            not a power of two.

    >>> WaveletPool(stride=(2, 4), wavelet="db2")(torch.ones(1, 8, 7, 6)).shape
    torch.Size([1, 8, 4, 2])
    """

    def __init__(
        self,
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
        *,
        wavelet: str = "haar",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        filter = WaveletFilter(wavelet)
        super().__init__(filter, stride, rate, padding_mode, channels_last, device, dtype)


def _wavelet(name: str) -> Any:
    try:
        import pywt
    except ImportError as error:
        raise MethodError(
            "method 'wavelet' takes its filters from PyWavelets, which is not installed. "
            "Run: pip install aa-surgery[wavelet]"
        ) from error
    known = pywt.wavelist(kind="discrete")
    if name in known and pywt.Wavelet(name).orthogonal:
        return pywt.Wavelet(name)
    orthogonal = ", ".join(
        known_name for known_name in known if pywt.Wavelet(known_name).orthogonal
    )
    what = "is not orthogonal" if name in known else "is unknown to PyWavelets"
    raise MethodError(f"method 'wavelet': wavelet {name!r} {what}. Use one of {orthogonal}.")


def _is_power_of_two(rate: int) -> bool:
    return rate >= 1 and rate & (rate - 1) == 0


def _not_a_power(rate: int) -> str:
    return (
        f"levels of a wavelet subsample by powers of two, not by {rate}. "
        'Use method="blur" or "ideal" there.'
    )


def _refuses(site: Site) -> str:
    return next((_not_a_power(s) for s in site.stride if not _is_power_of_two(s)), "")


METHOD = Method(
    name="wavelet",
    layer=WaveletPool,
    does="the low-pass band of an orthogonal wavelet",
    source="Li et al. 2020 (arXiv:2005.03337)",
    options={"wavelet": "haar"},
    refuses=_refuses,
)
