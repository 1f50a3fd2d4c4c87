"""`learned`: taps of each channel, symmetric and of sum 1 whatever training does."""

from __future__ import annotations

import pytest
import torch
from filtering import CHANNELS, STRIDES, perturb
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aa_surgery.errors import MethodError, UnsupportedModelError
from aa_surgery.filters import alias_gain, list_filters, resolve_filter
from aa_surgery.layers import PADDING_MODES, BlurPool
from aa_surgery.methods.learned import LearnedBlurPool, alias_penalty


@given(
    size=st.tuples(st.integers(1, 12), st.integers(2, 12)),
    stride=st.sampled_from(STRIDES),
    name=st.sampled_from(list_filters()),
    mode=st.sampled_from(PADDING_MODES),
)
@settings(max_examples=40, deadline=None)
def test_learned_starts_as_blur(size, stride, name: str, mode: str) -> None:
    layer = LearnedBlurPool(name, stride, None, mode, channels=CHANNELS)
    x = torch.randn(2, CHANNELS, *size)
    expected = BlurPool(name, stride, None, mode)(x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [(3,), (2, 1, 2), (1, 2, 2)])
def test_learned_starts_as_blur_over_one_and_three_axes(stride: tuple[int, ...]) -> None:
    x = torch.randn(2, CHANNELS, *(7, 8, 9)[: len(stride)])
    layer = LearnedBlurPool("tri-4", stride, channels=CHANNELS)
    torch.testing.assert_close(layer(x), BlurPool("tri-4", stride)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list_filters())
@pytest.mark.parametrize("rate", [2, 3, 4])
def test_learned_taps_stay_symmetric_and_sum_to_one(name: str, rate: int) -> None:
    layer = LearnedBlurPool(name, (rate, 2), channels=CHANNELS)
    perturb(layer)
    for taps in layer.filters():
        torch.testing.assert_close(taps, taps.flip(1))
        torch.testing.assert_close(taps.sum(1), torch.ones(len(taps)), rtol=0, atol=1e-5)
    if layer.change is not None:
        assert (layer.filters()[0][0] != layer.filters()[0][1]).any()


def test_learned_is_a_blur_of_its_own_for_each_channel() -> None:
    layer = LearnedBlurPool("binomial-5", (2, 2), channels=CHANNELS)
    with torch.no_grad():
        layer.change.copy_(torch.randn(CHANNELS, 1).mul(0.1) * torch.ones(4))
    x = torch.randn(2, CHANNELS, 9, 10)
    y = layer(x)
    for c, taps in enumerate(layer.filters()[0].tolist()):
        expected = BlurPool(taps, (2, 2))(x[:, c : c + 1])
        torch.testing.assert_close(y[:, c : c + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stride", "free"),
    [
        ("identity", (2, 2), 0),
        ("rect-2", (2, 2), 0),
        ("tri-3", (2, 2), 2),
        ("tri-3", (4, 1), 3),
        ("tri-4", (2, 2), 2),
        ("halfband-7", (2, 2), 6),
    ],
)
def test_learned_has_half_of_the_taps_as_parameters(name: str, stride, free: int) -> None:
    layer = LearnedBlurPool(name, stride, channels=CHANNELS)
    assert sum(p.numel() for p in layer.parameters()) == free * CHANNELS


def test_learned_refuses_asymmetric_taps() -> None:
    with pytest.raises(MethodError, match="not symmetric"):
        LearnedBlurPool([0.5, 0.3, 0.2], (2, 2), channels=CHANNELS)


@pytest.mark.parametrize("name", ["identity", "tri-3", "tri-4", "sinc-7"])
@pytest.mark.parametrize("rate", [2, 3])
def test_alias_penalty_is_the_power_at_the_alias_frequencies(name: str, rate: int) -> None:
    model = nn.Sequential(nn.ReLU(), LearnedBlurPool(name, (rate, 1), channels=CHANNELS))
    gain = alias_gain(resolve_filter(name).taps(rate), rate)
    # of rates 2 and 3 all alias frequencies have one gain, by symmetry
    torch.testing.assert_close(alias_penalty(model), torch.tensor(gain**2), rtol=1e-4, atol=1e-9)


def test_alias_penalty_keeps_filters_that_training_would_trade_away() -> None:
    x = torch.randn(4, CHANNELS, 16, 16)

    def train(weight: float) -> float:
        layer = LearnedBlurPool("tri-3", (2, 2), channels=CHANNELS)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
        for _ in range(40):
            optimizer.zero_grad()
            loss = (layer(x) - x[..., ::2, ::2]).square().mean() + weight * alias_penalty(layer)
            loss.backward()
            optimizer.step()
        return alias_penalty(layer).item()

    assert train(0) > 0.5
    assert train(10) < 0.05


def test_alias_penalty_needs_a_learned_blur() -> None:
    with pytest.raises(UnsupportedModelError, match="no learned blur"):
        alias_penalty(nn.Sequential(nn.Conv2d(3, 3, 3), BlurPool("tri-3")))
