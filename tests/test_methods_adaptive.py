"""`adaptive`: a low-pass filter predicted for each place and group of channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from filtering import CHANNELS, STRIDES, fits, perturb
from hypothesis import given, settings
from hypothesis import strategies as st

from aa_surgery.errors import MethodError
from aa_surgery.layers import PADDING_MODES, BlurPool
from aa_surgery.layers.padding import pad_to
from aa_surgery.methods import adaptive
from aa_surgery.methods.adaptive import AdaptiveBlurPool
from aa_surgery.sites import Site

POSITIVE = ["identity", "rect-2", "tri-3", "tri-4", "binomial-5", "binomial-6"]


@given(
    size=st.tuples(st.integers(1, 12), st.integers(2, 12)),
    stride=st.sampled_from(STRIDES),
    name=st.sampled_from(POSITIVE),
    mode=st.sampled_from(PADDING_MODES),
    training=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_adaptive_starts_as_blur(size, stride, name: str, mode: str, training: bool) -> None:
    layer = AdaptiveBlurPool(name, stride, None, mode, channels=CHANNELS).train(training)
    x = torch.randn(3, CHANNELS, *size)
    expected = BlurPool(name, stride, None, mode)(x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [(2, 2), (4, 2)])
def test_adaptive_filters_are_positive_and_sum_to_one(stride: tuple[int, int]) -> None:
    layer = AdaptiveBlurPool("tri-3", stride, channels=CHANNELS)
    perturb(layer)
    filters = layer.filters(torch.randn(2, CHANNELS, 21, 19))
    assert (filters > 0).all()
    torch.testing.assert_close(filters.sum(2), torch.ones_like(filters[:, :, 0]))
    assert filters.std(dim=(0, 3, 4)).min() > 1e-4, "the filters do not depend on the place"
    assert filters.std(dim=1).max() > 1e-2, "the groups share their filters"


@pytest.mark.parametrize(("channels", "groups"), [(6, 4), (6, 8), (7, 8), (16, 8)])
def test_adaptive_output_is_its_definition(channels: int, groups: int) -> None:
    layer = AdaptiveBlurPool("tri-4", (2, 3), channels=channels, groups=groups).eval()
    perturb(layer)
    own = max(g for g in range(1, groups + 1) if channels % g == 0)
    x = torch.randn(2, channels, 10, 9)
    rows, columns = layer.window
    borders = [(rows - 1) // 2, (columns - 1) // 2]
    padded = pad_to(x, borders, [rows - 1 - borders[0], columns - 1 - borders[1]], "reflect")
    windows = padded.unfold(2, rows, 2).unfold(3, columns, 3).flatten(-2)
    filters = layer.filters(padded)
    assert filters.shape[1] == layer.groups == own
    each = filters.repeat_interleave(channels // own, dim=1)
    expected = torch.einsum("ncijk,nckij->ncij", windows, each)
    torch.testing.assert_close(layer(x), expected)


def test_adaptive_window_is_as_long_as_the_filter() -> None:
    assert AdaptiveBlurPool("tri-3", (2, 1), channels=8).window == (3, 1)
    assert AdaptiveBlurPool("tri-3", (4, 4), channels=8).window == (7, 7)
    assert AdaptiveBlurPool("tri-3", (2, 2), channels=8, kernel_size=5).window == (5, 5)


def test_adaptive_predicts_from_what_is_around_the_output() -> None:
    layer = AdaptiveBlurPool("tri-3", (4, 4), channels=8).eval()
    perturb(layer)
    padded = torch.randn(1, 8, 16 + 6, 16 + 6, requires_grad=True)
    layer.filters(padded)[0, :, 0, 1, 2].sum().backward()
    rows, columns = padded.grad[0].abs().sum(0).nonzero().unbind(1)
    # 3 px of border before the map, and a view of 3 px around the places 4 and 8
    assert rows.unique().tolist() == [6, 7, 8]
    assert columns.unique().tolist() == [10, 11, 12]


def test_adaptive_start_outlives_a_new_start_of_its_convolution_and_norm() -> None:
    layer = AdaptiveBlurPool("tri-3", (2, 2), channels=8)
    for module in (layer.conv, layer.norm):
        module.reset_parameters()
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(layer(x), BlurPool("tri-3")(x), rtol=0, atol=1e-5)


def test_adaptive_learns_what_no_fixed_filter_can() -> None:
    """Blur one half of the channels' places and not the other, told apart by the sign."""
    x = torch.randn(8, 1, 12, 12).abs() * torch.randn(8, 1, 12, 12).sign()
    blurred = BlurPool("tri-3")(x)
    target = torch.where(x[..., ::2, ::2] > 0, x[..., ::2, ::2], blurred)
    layer = AdaptiveBlurPool("tri-3", (2, 2), channels=1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    subsampled = x[..., ::2, ::2]
    mix = [torch.lerp(blurred, subsampled, a / 10) for a in range(11)]
    best_fixed = min((y - target).square().mean().item() for y in mix)
    assert loss.item() < 0.7 * best_fixed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"filter": "halfband-7"}, "not positive"),
        ({"stride": (2,)}, "2-D maps"),
        ({"groups": 0}, "groups=0"),
        ({"kernel_size": 0}, "kernel_size=0"),
    ],
)
def test_adaptive_errors_say_what_is_wrong(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        AdaptiveBlurPool(**options, channels=8)


def test_adaptive_leaves_other_maps_with_the_reason() -> None:
    site = Site("conv", "conv", "Conv3d", "", "Net", stride=(2, 2, 2))
    assert "2-D" in adaptive.METHOD.refuses(site)
    assert fits(adaptive.METHOD, (2, 2))
