"""`ideal`: the box in frequency, and what it keeps of fractional shifts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aa_surgery.layers import PADDING_MODES, BlurPool
from aa_surgery.layers.padding import pad_to
from aa_surgery.methods.ideal import IdealPool


def by_fourier(x: Tensor, stride: int, mode: str) -> Tensor:
    """Extend, transform, cut off, transform back, crop and subsample the last axis."""
    n = x.shape[-1]
    border = n if mode in ("replicate", "zeros") else 0
    if mode != "circular":
        if border:
            x = pad_to(x, [border], [border], mode)
        x = torch.cat([x, x.flip(-1)], -1)
    period = x.shape[-1]
    spectrum = torch.fft.fft(x)
    frequency = torch.fft.fftfreq(period, dtype=torch.float64).abs()
    kept = (frequency * 2 * stride < 1 - 1e-9).to(x.dtype)
    y = torch.fft.ifft(spectrum * kept)
    assert y.imag.abs().max() < 1e-9, "the filter is not real"
    return y.real[..., border : border + n : stride]


@given(size=st.integers(1, 24), stride=st.integers(2, 5), mode=st.sampled_from(PADDING_MODES))
@settings(max_examples=100, deadline=None)
def test_ideal_is_the_box_in_frequency(size: int, stride: int, mode: str) -> None:
    x = torch.randn(2, 3, size, dtype=torch.float64)
    y = IdealPool((stride,), padding_mode=mode)(x)
    torch.testing.assert_close(y, by_fourier(x, stride, mode), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_ideal_is_separable(mode: str) -> None:
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    rows = by_fourier(x.mT, 3, mode).mT if mode in ("reflect", "circular") else None
    y = IdealPool((3, 2), padding_mode=mode)(x)
    one_by_one = IdealPool((3, 1), padding_mode=mode)(IdealPool((1, 2), padding_mode=mode)(x))
    torch.testing.assert_close(y, one_by_one)
    if rows is not None:
        torch.testing.assert_close(y, by_fourier(rows, 2, mode))


def shifted(x: Tensor, by: float, dim: int) -> Tensor:
    """Shift a map in a circle by any distance, by the phase of its spectrum."""
    n = x.shape[dim]
    phase = torch.exp(-2j * torch.pi * torch.fft.rfftfreq(n, dtype=torch.float64) * by)
    shape = [1] * x.ndim
    shape[dim] = len(phase)
    return torch.fft.irfft(torch.fft.rfft(x, dim=dim) * phase.view(shape), n=n, dim=dim).to(x.dtype)


@given(
    times=st.integers(2, 7),
    stride=st.integers(2, 4),
    by=st.floats(-9, 9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=40, deadline=None)
def test_ideal_in_circular_padding_keeps_fractional_shifts(times, stride, by, dtype) -> None:
    layer = IdealPool((stride, stride), padding_mode="circular")
    x = torch.randn(2, 3, times * stride, 2 * times * stride, dtype=dtype)
    for dim in (2, 3):
        y = layer(shifted(x, by, dim))
        expected = shifted(layer(x), by / stride, dim)
        atol = 1e-5 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(y, expected, rtol=0, atol=atol)


def test_a_blur_does_not_keep_fractional_shifts() -> None:
    layer = BlurPool("binomial-7", padding_mode="circular")
    x = torch.randn(2, 3, 12, 12)
    error = layer(shifted(x, 0.5, 2)) - shifted(layer(x), 0.25, 2)
    assert error.abs().max() > 1e-2


@pytest.mark.parametrize(("size", "rate"), [(512, 2), (448, 4), (1023, 3)])
@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_ideal_in_float32_keeps_its_digits_on_large_maps(size: int, rate: int, mode: str) -> None:
    layer = IdealPool((rate,), padding_mode=mode)
    x = torch.randn(1, 2, size)
    assert (layer(x) - layer(x.double())).abs().max() < 1e-5
