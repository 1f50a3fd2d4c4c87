"""`wavelet`: the approximation band of an orthogonal wavelet."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from filtering import WAVELETS, fits

from aa_surgery.errors import MethodError
from aa_surgery.filters import resolve_filter
from aa_surgery.methods import wavelet
from aa_surgery.methods.wavelet import WaveletFilter, WaveletPool
from aa_surgery.sites import Site


@pytest.mark.parametrize("name", WAVELETS)
@pytest.mark.parametrize("levels", [1, 2])
def test_wavelet_is_the_approximation_band(name: str, levels: int) -> None:
    pywt = pytest.importorskip("pywt")
    rate = 2**levels
    x = torch.randn(1, 1, 16 * rate, dtype=torch.float64)
    layer = WaveletPool((1,), (rate,), "circular", wavelet=name, dtype=torch.float64)
    dense = layer(x)[0, 0].numpy()
    band = pywt.wavedec(x[0, 0].numpy(), name, "periodization", levels)[0] / np.sqrt(rate)
    # every sampling grid begins somewhere; the band is the dense map on one of them
    grids = [np.roll(dense, -start)[::rate] for start in range(len(dense))]
    assert min(np.abs(grid - band).max() for grid in grids) < 1e-6


@pytest.mark.parametrize("name", WAVELETS)
def test_wavelet_taps_are_orthogonal_to_their_shifts_by_two(name: str) -> None:
    taps = np.array(WaveletFilter(name).taps(2))
    for shift in range(0, len(taps), 2):
        product = float(taps[shift:] @ taps[: len(taps) - shift])
        assert abs(product - 0.5 * (shift == 0)) < 1e-6


@pytest.mark.parametrize("name", [*WAVELETS, "db8", "sym9", "dmey"])
@pytest.mark.parametrize("rate", [2, 4, 8])
def test_wavelet_moves_the_grid_by_half_a_pixel_at_most(name: str, rate: int) -> None:
    taps = WaveletFilter(name).taps(rate)
    centre = sum(n * t for n, t in enumerate(taps))
    assert abs(centre - (len(taps) - 1) // 2) <= 0.5 + 1e-5
    assert abs(sum(taps) - 1) < 1e-9


def test_haar_is_the_box() -> None:
    for rate in (2, 4, 8):
        assert WaveletFilter("haar").taps(rate) == pytest.approx(
            resolve_filter("rect-2").taps(rate)
        )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"wavelet": "bior2.2"}, "not orthogonal.*db2"),
        ({"wavelet": "nosuch"}, "unknown to PyWavelets.*sym4"),
        ({"wavelet": "morl"}, "unknown to PyWavelets"),
        ({"stride": (3, 2)}, "powers of two, not by 3"),
    ],
)
def test_wavelet_errors_say_what_is_wrong(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        WaveletPool(**options)


def test_wavelet_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(MethodError, match=r"pip install aa-surgery\[wavelet\]"):
        WaveletPool()


def test_wavelet_leaves_other_strides_with_the_reason() -> None:
    assert "powers of two" in wavelet.METHOD.refuses(
        Site("conv", "conv", "Conv2d", "", "Net", stride=(2, 3))
    )
    assert fits(wavelet.METHOD, (4, 1))
