"""Maps that are not a batch of float images: integers, one image, no image, duals of autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from aa_surgery import apply_antialias
from aa_surgery.errors import InputError
from aa_surgery.layers import BlurPool, MaxBlurPool2d, blur, dense_max_pool, functional
from aa_surgery.layers.maps import AverageBlurPool, BlurMaps
from aa_surgery.layers.resize import BlurBeforeResize
from aa_surgery.methods.aps import AdaptivePolyphaseSampling
from aa_surgery.methods.learned import LearnedBlurPool

INTEGERS = [torch.uint8, torch.int32, torch.int64, torch.bool]
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MAXIMA = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGES = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def labels(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("filter", ["tri-3", "tri-4", "identity"])
def test_maps_without_a_mean_are_subsampled_alone(dtype: torch.dtype, filter: str) -> None:
    x = labels(dtype, 2, 3, 9, 8)
    wanted = x[:, :, ::2, ::2]
    for layer in (BlurPool(filter), BlurMaps(filter), LearnedBlurPool(filter, channels=3)):
        assert layer(x).dtype == dtype
        assert torch.equal(layer(x), wanted)
    assert torch.equal(BlurPool(filter, (1, 1), (2, 2))(x), x)
    last = BlurPool(filter, channels_last=True)(x.movedim(1, -1))
    assert torch.equal(last, wanted.movedim(1, -1))
    assert torch.equal(torch.jit.script(BlurPool(filter))(x), wanted)


def test_an_average_of_integers_is_refused_as_torch_refuses_it() -> None:
    with pytest.raises(InputError, match="integers"):
        AverageBlurPool("tri-3", (2, 2), (2, 2), (0, 0))(labels(torch.int64, 1, 1, 4, 4))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("k", "s", "p"), [(3, 2, 0), (3, 2, 1), (2, 2, 0)])
def test_the_maximum_of_integers_is_the_pool_s(k: int, s: int, p: int, ceil_mode: bool) -> None:
    x = labels(torch.int64, 2, 3, 10, 9) - 200
    dense = dense_max_pool(x, (k, k), (s, s), (p, p), (1, 1), ceil_mode)
    assert torch.equal(dense[..., ::s, ::s], F.max_pool2d(x, k, s, p, 1, ceil_mode))


def nets(axes: int) -> list[nn.Module]:
    torch.manual_seed(0)
    conv = CONVS[axes]
    return [
        nn.Sequential(conv(2, 4, 3, 2, 1), nn.ReLU(), conv(4, 4, 1, 2)),
        nn.Sequential(MAXIMA[axes](3, 2, ceil_mode=True), conv(2, 4, 3, 2, 1)),
        nn.Sequential(AVERAGES[axes](2), conv(2, 4, 3, 2, 1, padding_mode="circular"), nn.GELU()),
    ]


@pytest.mark.parametrize("placement", ["auto", "pre", "post"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_image_and_none_go_through(axes: int, placement: str) -> None:
    for net in nets(axes):
        shapes = [net(torch.randn(n, 2, *(13, 12, 11)[:axes])).shape for n in (2, 0)]
        apply_antialias(net, placement=placement)
        x = torch.randn(2, 2, *(13, 12, 11)[:axes])
        y = net(x)
        assert y.shape == shapes[0]
        torch.testing.assert_close(net(x[0]), y[0])
        assert net(x[:0]).shape == shapes[1]


def test_layers_of_other_methods_take_one_image() -> None:
    x = torch.randn(4, 9, 8)
    for layer in (LearnedBlurPool(channels=4), AdaptivePolyphaseSampling(), MaxBlurPool2d(3, 2)):
        torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_a_blur_before_resizing_serves_any_number_of_axes(scale: float) -> None:
    rate = round(1 / scale)
    layer = BlurBeforeResize("tri-3", (1, 1), (rate, rate))
    scripted = torch.jit.script(layer)
    for shape in [(2, 3, 16), (2, 3, 16, 12), (2, 3, 16, 12, 8)]:
        x, axes = torch.randn(shape), len(shape) - 2
        wanted = BlurPool("tri-3", (1,) * axes, (rate,) * axes)(x)
        torch.testing.assert_close(layer(x), wanted)
        torch.testing.assert_close(scripted(x), wanted)


@pytest.mark.parametrize("mode", ["nearest", "linear", "trilinear"])
def test_resizing_outside_two_dimensions_keeps_images_apart(mode: str) -> None:
    shape = (2, 4, 32) if mode == "linear" else (2, 4, 8, 8, 8)
    for net in (nn.Upsample(scale_factor=0.5, mode=mode), Resizes(mode)):
        x = torch.randn(shape)
        wanted = net(x).shape
        apply_antialias(net)
        y = net(x)
        assert y.shape == wanted
        torch.testing.assert_close(net(x[:1]), y[:1])


class Resizes(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=0.5, mode=self.mode)


@pytest.fixture
def fast_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_PAYS_FROM", 0)
    monkeypatch.setattr(functional, "_LARGE_IMAGE", 0)


FORMS = {
    "blur": lambda: BlurPool("tri-3"),
    "blur, even": lambda: BlurPool("tri-4"),
    "max": lambda: MaxBlurPool2d(3, 2, 1),
    "max, ceil": lambda: MaxBlurPool2d(3, 2, ceil_mode=True),
    "average": lambda: AverageBlurPool("tri-3", (3, 3), (2, 2), (1, 1)),
}


@pytest.mark.usefixtures("fast_at_any_size")
@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_functional_transforms_and_second_derivatives(form: str) -> None:
    layer = FORMS[form]().double()
    x, t = (torch.randn(2, 1, 6, 5, dtype=torch.float64) for _ in range(2))
    step = 1e-6
    slope = (layer(x + step * t) - layer(x - step * t)) / (2 * step)
    value, tangent = torch.func.jvp(layer, (x,), (t,))
    torch.testing.assert_close(value, layer(x))
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-6)
    for differentiates in (False, True):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.clone().requires_grad_(differentiates), t)
            got = forward_ad.unpack_dual(layer(dual)).tangent
        torch.testing.assert_close(got, slope, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.func.vmap(lambda one: layer(one))(x[:, None])[:, 0], value)
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(layer(leaf).square().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: layer(x).square().sum())(x), wanted)
    called = torch.func.functional_call(layer, dict(layer.named_buffers()), (x,))
    torch.testing.assert_close(called, value)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), (leaf,))


def test_maps_smaller_than_a_border_take_the_nearest_sample() -> None:
    sizes = itertools.product((1, 2, 3), (1, 2, 5))
    taps = ((1 / 9,) * 9,) * 2
    kernel = torch.full((1, 1, 9, 9), 1 / 81)
    for (height, width), mode in itertools.product(sizes, ("reflect", "circular", "replicate")):
        x = torch.randn(1, 2, height, width)
        index = [[source(i, n, mode) for i in range(-4, n + 4)] for n in (height, width)]
        wide = x[:, :, index[0]][:, :, :, index[1]]
        wanted = F.conv2d(wide, kernel.expand(2, 1, 9, 9), groups=2)
        torch.testing.assert_close(blur(x, kernel, taps, (1, 1), mode), wanted)


def source(i: int, size: int, mode: str) -> int:
    if mode == "circular":
        return i % size
    beyond = max(-i, i - size + 1, 0)
    steps = min(beyond, size - 1) if mode == "reflect" else 0
    if 0 <= i < size:
        return i
    return steps if i < 0 else size - 1 - steps
