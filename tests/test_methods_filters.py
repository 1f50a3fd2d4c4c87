"""Laws of the methods that are low-pass filters: learned, adaptive, ideal, wavelet."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aa_surgery.errors import FilterError, MethodError, UnsupportedModelError
from aa_surgery.filters import alias_gain, list_filters, resolve_filter
from aa_surgery.layers import PADDING_MODES, BlurPool
from aa_surgery.layers.downsample import Downsample
from aa_surgery.layers.padding import pad_to
from aa_surgery.methods import adaptive, ideal, learned, wavelet
from aa_surgery.methods.adaptive import AdaptiveBlurPool
from aa_surgery.methods.ideal import IdealPool
from aa_surgery.methods.learned import LearnedBlurPool, alias_penalty
from aa_surgery.methods.method import Method
from aa_surgery.methods.wavelet import WaveletFilter, WaveletPool
from aa_surgery.sites import Site

METHODS = [module.METHOD for module in (learned, adaptive, ideal, wavelet)]
POSITIVE = ["identity", "rect-2", "tri-3", "tri-4", "binomial-5", "binomial-6"]
STRIDES = [(2, 2), (3, 3), (4, 4), (2, 1), (1, 3)]
WAVELETS = ["haar", "db2", "db4", "sym4", "coif1"]
CHANNELS = 6

every_method = pytest.mark.parametrize("method", METHODS, ids=str)


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> None:
    torch.manual_seed(0)


def build(method: Method, **given: Any) -> Downsample:
    """Make a method's layer as the package does, from its record."""
    if method.per_channel:
        given = {"channels": CHANNELS, **given}
    return method.layer(**{**method.options, **given})


def perturb(layer: nn.Module, by: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=by)


# Every layer


@every_method
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("stride", STRIDES)
def test_output_has_ceil_size_for_every_size(method: Method, mode: str, stride) -> None:
    if not fits(method, stride):
        with pytest.raises(MethodError, match="powers of two"):
            build(method, stride=stride)
        return
    layer = build(method, stride=stride, padding_mode=mode).eval()
    for size in ((1, 1), (2, 3), (7, 10)):
        y = layer(torch.randn(2, CHANNELS, *size))
        assert y.shape[2:] == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
        assert y.isfinite().all()


def fits(method: Method, stride: tuple[int, ...]) -> bool:
    return not method.refuses(Site("conv", "conv", "Conv2d", "", "Net", stride=stride))


@every_method
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_filter_only_form_subsampled_is_the_strided_form(method: Method, mode: str) -> None:
    strided = build(method, stride=(2, 4), padding_mode=mode).eval()
    perturb(strided)
    dense = build(method, stride=(1, 1), rate=(2, 4), padding_mode=mode).eval()
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(2, CHANNELS, 9, 11)
    assert dense(x).shape == x.shape
    torch.testing.assert_close(dense(x)[..., ::2, ::4], strided(x))


@every_method
def test_an_axis_of_rate_one_is_left_alone(method: Method) -> None:
    layer = build(method, stride=(2, 1)).eval()
    x = torch.randn(2, CHANNELS, 8, 5).index_fill(3, torch.tensor(2), 0)
    x[..., 3:] = 0
    assert (layer(x)[..., 3:] == 0).all()
    assert (build(method, stride=(1, 1)).eval()(x) - x).abs().max() < 1e-6


@every_method
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_constant_map_stays_that_constant(method: Method, mode: str) -> None:
    layer = build(method, stride=(2, 4), padding_mode=mode)
    perturb(layer)
    levels = torch.randn(1, CHANNELS, 1, 1).expand(2, -1, 11, 9)
    expected = levels[..., :6, :3]
    torch.testing.assert_close(layer(levels), expected, rtol=1e-5, atol=1e-5)


@every_method
def test_circular_shifts_by_the_stride_shift_the_output(method: Method) -> None:
    layer = build(method, stride=(2, 4), padding_mode="circular").eval()
    perturb(layer)
    x = torch.randn(2, CHANNELS, 12, 16)
    y = layer(x)
    for rows, columns in ((1, 0), (2, 3), (5, 1)):
        shifted = layer(x.roll((2 * rows, 4 * columns), (2, 3)))
        torch.testing.assert_close(shifted, y.roll((rows, columns), (2, 3)), rtol=0, atol=1e-5)


@every_method
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_are_kept(method: Method, memory_format, dtype) -> None:
    layer = build(method).eval()
    x = torch.randn(2, CHANNELS, 9, 10).contiguous(memory_format=memory_format)
    expected = layer(x)
    y = layer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


@every_method
def test_autocast_keeps_the_numbers(method: Method) -> None:
    layer = build(method).eval()
    x = torch.randn(2, CHANNELS, 9, 10)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=2e-2, atol=2e-2)


@every_method
def test_tokens_and_leading_axes(method: Method) -> None:
    tokens = build(method, channels_last=True).eval()
    plain = build(method).eval()
    plain.load_state_dict(tokens.state_dict())
    x = torch.randn(2, 3, CHANNELS, 7, 8)
    expected = torch.stack([plain(maps) for maps in x])
    torch.testing.assert_close(plain(x), expected)
    torch.testing.assert_close(tokens(x.movedim(2, -1)).movedim(-1, 2), expected)


@every_method
def test_copies_and_pickles_are_equal(method: Method) -> None:
    layer = build(method).eval()
    perturb(layer)
    x = torch.randn(2, CHANNELS, 9, 10)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert repr(other) == repr(layer)


@every_method
def test_only_parameters_and_norm_statistics_are_saved(method: Method) -> None:
    layer = build(method)
    names = {name for name, _ in layer.named_parameters()}
    statistics = {name for name, _ in layer.named_buffers() if name.startswith("norm.")}
    assert set(layer.state_dict()) == names | statistics
    assert bool(names) == method.per_channel


@every_method
def test_the_meta_device_and_back(method: Method) -> None:
    here = build(method).eval()
    there = build(method, device=torch.device("meta")).to_empty(device="cpu").eval()
    for module in there.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    there.load_state_dict(here.state_dict())
    x = torch.randn(2, CHANNELS, 9, 10)
    assert torch.equal(there(x), here(x))


@every_method
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_input_and_every_parameter(method: Method, training: bool) -> None:
    layer = build(method).train(training)
    x = torch.randn(4, CHANNELS, 9, 10, requires_grad=True)
    layer(x).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


@every_method
def test_compile_without_graph_breaks(method: Method) -> None:
    layer = build(method).eval()
    x = torch.randn(2, CHANNELS, 9, 10)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


AXES = ((0, "batch", 1), (2, "height", 5), (3, "width", 5))


@every_method
def test_export_with_dynamic_sizes_and_onnx(method: Method, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    layer = build(method).eval()
    perturb(layer)
    x = torch.randn(2, CHANNELS, 17, 20)
    dims = {i: torch.export.Dim(axis, min=low) for i, axis, low in AXES}
    program = torch.export.export(layer, (x,), dynamic_shapes=(dims,), strict=False)
    onnx = torch.onnx.export(layer, (x,), dynamic_shapes=(dims,), dynamo=True, verbose=False)
    onnx.save(tmp_path / "layer.onnx")
    session = runtime.InferenceSession(tmp_path / "layer.onnx")
    for shape in ((1, CHANNELS, 8, 8), (3, CHANNELS, 31, 12)):
        other = torch.randn(shape)
        torch.testing.assert_close(program.module()(other), layer(other))
        (y,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(other), rtol=1e-5, atol=1e-5)


@every_method
def test_strength_mixes_with_plain_subsampling(method: Method) -> None:
    layer = build(method).eval()
    x = torch.randn(2, CHANNELS, 9, 10)
    layer.set_strength(0)
    torch.testing.assert_close(layer(x), x[..., ::2, ::2])


# Learned and adaptive: the start


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


# Learned


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


# Adaptive


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


# Ideal


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


# Wavelet


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


@every_method
def test_unknown_padding_is_refused(method: Method) -> None:
    with pytest.raises(FilterError, match="padding_mode"):
        build(method, padding_mode="mirror")
