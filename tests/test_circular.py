"""Circular borders make shift equivariance a law: it holds to rounding, or it does not."""

from __future__ import annotations

import pytest
import torch
from models import build
from torch import Tensor, nn

from aa_surgery import apply_antialias, remove_antialias
from aa_surgery.errors import UnsupportedModelError

NAMES = ("resnet18", "convnext_atto")
# every size of step in each axis, and both axes at once
SHIFTS = [(i, (7 * i) % 32) for i in range(1, 32)] + [(0, 1), (0, 31), (16, 0), (31, 31)]
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Noise of three scales: white noise alone would be all but gone behind the first filter."""
    generator = torch.Generator().manual_seed(0)
    scales = [torch.randn(2, 3, n, n, generator=generator) for n in (96, 32, 8)]
    return sum(nn.functional.interpolate(s, 96, mode="nearest") for s in scales)


def change(model: nn.Module, image: Tensor) -> float:
    """The largest relative change of the logits under any of the shifts."""
    with torch.no_grad():
        logits = model(image)
        moved = [model(image.roll(shift, (2, 3))) for shift in SHIFTS]
    return max(((m - logits).abs().max() / logits.abs().max()).item() for m in moved)


@pytest.mark.parametrize("method", ["aps", "lps"])
@pytest.mark.parametrize("options", [{}, {"filter": "tri-3"}], ids=["alone", "with a blur"])
def test_polyphase_methods_are_shift_invariant(
    model: nn.Module, image: Tensor, method: str, options: dict[str, str]
) -> None:
    torch.manual_seed(0)
    apply_antialias(model, method=method, circular=True, **options)
    try:
        assert change(model, image) < TOLERANCE
    finally:
        remove_antialias(model)


def test_the_original_and_the_plain_blur_are_not(model: nn.Module, image: Tensor) -> None:
    assert change(model, image) > TOLERANCE
    apply_antialias(model, circular=True)
    try:
        assert change(model, image) > TOLERANCE
    finally:
        remove_antialias(model)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("resnet50d", "blur"),
        ("mobilenetv2_100", "ideal"),
        ("tf_efficientnet_lite0", "blur"),
        ("tf_efficientnet_lite0", "group-conv"),
        ("convnext_atto", "blur"),  # its windows of 7 px go around maps of 3
    ],
)
def test_networks_commute_with_shifts_by_their_whole_stride(
    name: str, method: str, image: Tensor
) -> None:
    model = build(name)
    with torch.no_grad():
        untouched = model(image)
        apply_antialias(model, circular=True, method=method)
        logits, moved = model(image), model(image.roll((32, 64), (2, 3)))
        torch.testing.assert_close(moved, logits, rtol=1e-4, atol=1e-4)
        remove_antialias(model)
        assert torch.equal(model(image), untouched)
    assert not torch.allclose(model(image.roll((32, 64), (2, 3))), untouched, rtol=1e-3)


def test_a_presets_smaller_window_wraps_around_too(image: Tensor) -> None:
    model = apply_antialias(build("resnet18"), preset="zhang2019", circular=True)
    x = torch.relu(image[:, :1].expand(-1, 64, -1, -1))
    with torch.no_grad():
        pooled = model.maxpool.aa_after(
            nn.functional.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1), mode="circular"), 2, 1)
        )
        torch.testing.assert_close(model.maxpool(x), pooled)


def test_padding_within_a_forward_is_refused_by_name() -> None:
    model = build("nf_regnet_b0")
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(UnsupportedModelError, match=r"circular=True: .* pads in its own forward"):
        apply_antialias(model, circular=True)
    assert {name: type(module) for name, module in model.named_modules()} == before
