from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aa_surgery.errors import FilterError
from aa_surgery.filters import (
    Filter,
    alias_gain,
    frequency_response,
    kernel_nd,
    list_filters,
    resolve_filter,
)

STRIDES = [2, 3, 4, 5, 8]


def taps_of(name: str, stride: int) -> tuple[float, ...]:
    return resolve_filter(name).taps(stride)


@pytest.mark.parametrize("stride", [1, *STRIDES])
@pytest.mark.parametrize("name", list_filters())
def test_unit_gain_and_symmetry(name: str, stride: int) -> None:
    taps = taps_of(name, stride)
    assert sum(taps) == pytest.approx(1, abs=1e-12)
    assert taps == pytest.approx(taps[::-1])
    if stride == 1:
        assert taps == (1.0,)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(
    "name", [n for n in list_filters() if n.startswith(("rect", "tri", "binomial", "halfband"))]
)
def test_zeros_at_every_alias_frequency(name: str, stride: int) -> None:
    assert alias_gain(taps_of(name, stride), stride) < 1e-12


@pytest.mark.parametrize("stride", STRIDES)
def test_plain_subsampling_aliases_wholly_and_sinc_a_little(stride: int) -> None:
    assert alias_gain((1.0,), stride) == pytest.approx(1)
    assert alias_gain(taps_of("sinc-11", stride), stride) < 0.05
    assert alias_gain(taps_of("tri-3", 1), 1) == 0


@pytest.mark.parametrize("order", range(1, 17))
def test_at_stride_two_the_family_is_the_binomial(order: int) -> None:
    binomial = [math.comb(order, k) / 2**order for k in range(order + 1)]
    assert taps_of(f"binomial-{order + 1}", 2) == pytest.approx(binomial)


def test_literal_taps_of_the_literature() -> None:
    assert taps_of("rect-2", 2) == (0.5, 0.5)
    assert taps_of("tri-3", 2) == (0.25, 0.5, 0.25)
    assert taps_of("tri-4", 2) == (0.125, 0.375, 0.375, 0.125)
    assert np.array(taps_of("binomial-5", 2)) * 16 == pytest.approx([1, 4, 6, 4, 1])
    assert np.array(taps_of("tri-3", 4)) * 16 == pytest.approx([1, 2, 3, 4, 3, 2, 1])
    assert np.array(taps_of("halfband-7", 2)) * 32 == pytest.approx([-1, 0, 9, 16, 9, 0, -1])
    assert np.array(taps_of("halfband-11", 2)) * 512 == pytest.approx(
        [3, 0, -25, 0, 150, 256, 150, 0, -25, 0, 3]
    )


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(("name", "order"), [("rect-2", 1), ("tri-3", 2), ("tri-4", 3)])
def test_length_grows_with_the_stride(name: str, order: int, stride: int) -> None:
    assert len(taps_of(name, stride)) == order * (stride - 1) + 1


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(("name", "order"), [("rect-2", 1), ("tri-3", 2), ("binomial-5", 4)])
def test_response_is_the_closed_form(name: str, order: int, stride: int) -> None:
    omega = torch.linspace(0.01, math.pi, 97, dtype=torch.float64)
    expected = ((stride * omega / 2).sin() / (stride * (omega / 2).sin())) ** order
    torch.testing.assert_close(frequency_response(taps_of(name, stride), omega), expected)


@pytest.mark.parametrize("taps", [taps_of("tri-4", 3), taps_of("sinc-7", 2), (0.7, 0.2, 0.1)])
def test_response_is_the_fourier_transform(taps: tuple[float, ...]) -> None:
    spectrum = np.abs(np.fft.rfft(taps, 256))
    omega = torch.from_numpy(np.arange(129) * 2 * np.pi / 256)
    np.testing.assert_allclose(frequency_response(taps, omega).abs().numpy(), spectrum, atol=1e-12)
    assert frequency_response(taps).shape == (512,)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_half_bands_are_flat_where_binomials_droop(stride: int) -> None:
    omega = torch.tensor([0.25 * math.pi / stride])
    droop = [
        1 - frequency_response(taps_of(name, stride), omega).item()
        for name in ("halfband-11", "halfband-7", "tri-3", "binomial-5")
    ]
    assert droop[0] < droop[1] < 0.01
    assert 0.01 < droop[2] < droop[3]


@pytest.mark.parametrize(("length", "stride"), [(7, 2), (11, 2), (7, 3), (11, 4)])
def test_nyquist_filters_keep_their_centre_and_drop_its_peers(length: int, stride: int) -> None:
    taps = np.array(taps_of(f"halfband-{length}", stride))
    centre = len(taps) // 2
    assert taps[centre] == pytest.approx(1 / stride)
    assert taps[centre + stride :: stride] == pytest.approx(0, abs=1e-12)
    # flat to order 2K: the moments below it vanish
    positions = np.arange(len(taps)) - centre
    for order in range(1, (length + 1) // 2):
        assert (taps * positions**order).sum() == pytest.approx(0, abs=1e-9)


def test_kernel_is_the_outer_product() -> None:
    a, b = taps_of("tri-3", 2), taps_of("tri-4", 3)
    kernel = kernel_nd([a, b, (1.0,)], torch.float64)
    assert kernel.shape == (1, 1, len(a), len(b), 1)
    np.testing.assert_allclose(kernel[0, 0, :, :, 0].numpy(), np.outer(a, b))


def test_explicit_taps_are_used_at_every_stride_but_one() -> None:
    chosen = resolve_filter([0.25, 0.5, 0.25])
    assert chosen.taps(2) == chosen.taps(5) == (0.25, 0.5, 0.25)
    assert chosen.taps(1) == (1.0,)
    assert chosen.spec == [0.25, 0.5, 0.25]
    assert resolve_filter(chosen) is chosen
    assert resolve_filter([1.0]).is_identity
    assert resolve_filter("TRI-3") == Filter("tri-3")
    for name in list_filters():
        assert resolve_filter(resolve_filter(name).spec) == Filter(name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gauss-3", "gauss-3.*tri-3"),
        ("tri", "3 or 4"),
        ("tri-5", "3 or 4"),
        ("halfband-9", "3, 7, 11"),
        ("sinc-4", "odd"),
        ("binomial-18", "2 to 17"),
        ([0.5, 0.4], "sum to 0.9"),
        ([], "one or more"),
        ([float("nan"), 1.0], "finite"),
        (3, "nor a sequence"),
        (["a"], "nor a sequence"),
    ],
)
def test_errors_say_what_is_wrong(spec, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        resolve_filter(spec)


def test_a_stride_below_one_is_refused() -> None:
    with pytest.raises(FilterError, match="at least 1"):
        resolve_filter("tri-3").taps(0)
