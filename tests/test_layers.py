from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aa_surgery.errors import FilterError, InputError
from aa_surgery.filters import kernel_nd, list_filters, resolve_filter
from aa_surgery.layers import (
    PADDING_MODES,
    BlurPool,
    BlurPool1d,
    BlurPool2d,
    BlurPool3d,
    MaxBlurPool1d,
    MaxBlurPool2d,
    MaxBlurPool3d,
    blur,
    canonical_form,
    dense_avg_pool,
    dense_max_pool,
    functional,
)

FORMATS = [torch.contiguous_format, torch.channels_last]
BLURS = {1: BlurPool1d, 2: BlurPool2d, 3: BlurPool3d}
MAX_BLURS = {1: MaxBlurPool1d, 2: MaxBlurPool2d, 3: MaxBlurPool3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "zeros": "constant", "circular": "wrap"}


@pytest.fixture
def fast_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_PAYS_FROM", 0)


def padded(row: np.ndarray, before: int, after: int, mode: str) -> np.ndarray:
    """Pad one row; what the mode cannot give repeats the outermost sample."""
    limit = {"reflect": len(row) - 1}.get(mode, 10**6)
    given = (min(before, limit), min(after, limit))
    row = np.pad(row, given, mode=NUMPY_MODES[mode])
    return np.pad(row, (before - given[0], after - given[1]), mode="edge")


def blur_by_definition(row: np.ndarray, taps: tuple[float, ...], stride: int, mode: str):
    before = (len(taps) - 1) // 2
    size = -(-len(row) // stride)
    reach = padded(row, before, len(taps) + stride, mode)
    return np.array(
        [sum(h * reach[i * stride + n] for n, h in enumerate(taps)) for i in range(size)]
    )


def random_map(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    size=st.integers(1, 12),
    stride=st.integers(1, 5),
    name=st.sampled_from(list_filters()),
    mode=st.sampled_from(PADDING_MODES),
)
@settings(max_examples=150, deadline=None)
def test_blur_is_its_definition(size: int, stride: int, name: str, mode: str) -> None:
    x = random_map(1, 1, size, seed=size)
    layer = BlurPool(name, (stride,), padding_mode=mode, dtype=torch.float64)
    expected = blur_by_definition(x[0, 0].numpy(), layer.taps[0], stride, mode)
    np.testing.assert_allclose(layer(x)[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize(("ndim", "stride"), [(2, (1, 3)), (2, (2, 2)), (3, (3, 1, 2))])
def test_blur_is_separable(ndim: int, stride: tuple[int, ...], mode: str) -> None:
    x = random_map(2, 3, *(5 + i for i in range(ndim)))
    expected = x.numpy()
    layer = BlurPool("binomial-5", stride, padding_mode=mode, dtype=torch.float64)
    for axis, (taps, s) in enumerate(zip(layer.taps, stride, strict=True), start=2):
        expected = np.apply_along_axis(blur_by_definition, axis, expected, taps, s, mode)
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", list_filters())
def test_a_constant_map_stays_that_constant(name: str, mode: str) -> None:
    for stride, size in itertools.product(range(1, 6), (1, 2, 3, 7, 12)):
        y = BlurPool2d(name, stride, mode)(torch.full((1, 2, size, size + 1), 3.5))
        torch.testing.assert_close(y, torch.full_like(y, 3.5))


@pytest.mark.parametrize("stride", [(2, 2), (2, 1), (3, 2), (1, 1), (4, 4)])
@pytest.mark.parametrize("name", ["rect-2", "tri-3", "tri-4", "binomial-5", [0.7, 0.2, 0.1]])
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.usefixtures("fast_at_any_size")
def test_every_form_equals_the_canonical_one(mode: str, name, stride: tuple[int, int]) -> None:
    for height, memory_format in itertools.product(range(1, 13), FORMATS):
        width = 1 + (5 * height) % 12
        x = random_map(2, 3, height, width).contiguous(memory_format=memory_format)
        rate = (max(stride[0], 2), max(stride[1], 2))
        layer = BlurPool(name, stride, rate, mode, dtype=torch.float64)
        leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
        with canonical_form():
            expected = layer(twin)
        y = layer(leaf)
        g = torch.randn_like(y)
        torch.testing.assert_close(layer(x), expected.detach())
        torch.testing.assert_close(y, expected)
        expected.backward(g)
        y.backward(g)
        torch.testing.assert_close(leaf.grad, twin.grad)


@pytest.mark.parametrize(
    ("before", "after", "size"),
    [((0, 1), (0, -1), (3, 4)), ((2, 0), (2, 2), (5, 5)), ((1, 1), (-3, 3), (2, 6))],
)
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.usefixtures("fast_at_any_size")
def test_a_chosen_window_equals_the_canonical_form(mode: str, before, after, size) -> None:
    x = random_map(1, 2, 7, 9)
    taps = (resolve_filter("tri-3").taps(2),) * 2
    arguments = (kernel_nd(taps, x.dtype), taps, (2, 2), mode, before, after)
    with canonical_form():
        expected = blur(x, *arguments)
    assert expected.shape[2:] == size
    torch.testing.assert_close(blur(x, *arguments), expected)


@pytest.mark.parametrize(
    ("name", "stride", "size"),
    [("tri-3", 2, (6, 7)), ("tri-4", 2, (6, 8)), ("binomial-5", 2, (7, 7)), ("tri-3", 1, (5, 4))],
)
@pytest.mark.usefixtures("fast_at_any_size")
def test_gradients_of_first_and_second_order(name: str, stride: int, size) -> None:
    layer = BlurPool(name, (stride, stride), (2, 2), dtype=torch.float64)
    x = random_map(1, 2, *size).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_training_saves_no_copy_of_the_map() -> None:
    x = torch.randn(1, 64, 128, 128, requires_grad=True)
    saved: list[int] = []

    def count(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        BlurPool2d("tri-3")(x)
    assert sum(saved) < 100


def pool_cases(ndim: int, count: int) -> list[tuple[tuple[int, ...], ...]]:
    rng = random.Random(ndim)
    cases = []
    while len(cases) < count:
        k = [rng.randint(1, 4) for _ in range(ndim)]
        s = [rng.randint(1, 4) for _ in range(ndim)]
        d = [rng.randint(1, 2) for _ in range(ndim)]
        p = [rng.randint(0, n // 2) for n in k]
        n = [rng.randint(1, 9) for _ in range(ndim)]
        if all(a + 2 * b >= e * (c - 1) + 1 for a, b, c, e in zip(n, p, k, d, strict=True)):
            cases.append(tuple(map(tuple, (n, k, s, p, d))))
    return cases


def every(y: Tensor, stride: tuple[int, ...]) -> Tensor:
    return y[(..., *(slice(None, None, s) for s in stride))]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dense_max_pool_subsampled_is_the_max_pool(ndim: int, ceil_mode: bool) -> None:
    for n, k, s, p, d in pool_cases(ndim, 80):
        x = random_map(2, 3, *n)
        expected = MAX_POOLS[ndim](x, k, s, p, d, ceil_mode)
        y = every(dense_max_pool(x, k, s, p, d, ceil_mode), s)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dense_avg_pool_subsampled_is_the_avg_pool(ndim: int, ceil_mode: bool, include_pad) -> None:
    for n, k, s, p, d in pool_cases(ndim, 120):
        # avg_pool3d itself refuses a map that only its padding makes large enough
        if d != (1,) * ndim or any(a < b for a, b in zip(n, k, strict=True)):
            continue
        x = random_map(2, 3, *n)
        options = [(ceil_mode, include_pad)]
        if ndim > 1:
            options.append((ceil_mode, include_pad, 5))
        for option in options:
            expected = AVG_POOLS[ndim](x, k, s, p, *option)
            torch.testing.assert_close(every(dense_avg_pool(x, k, s, p, *option), s), expected)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("k", "s", "p"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), (2, 1, 0)])
def test_max_by_slices_equals_max_pool(k: int, s: int, p: int, memory_format) -> None:
    for height, width in itertools.product((k, 4, 7), (k, 5, 8)):
        # few distinct values, so that windows hold ties
        values = random_map(2, 3, height, width).mul(2).round()
        values = values.contiguous(memory_format=memory_format)
        x, twin = values.clone().requires_grad_(), values.clone().requires_grad_()
        y = dense_max_pool(x, (k, k), (s, s), (p, p), (1, 1))
        expected = F.max_pool2d(twin, k, 1, p)
        g = torch.randn_like(y)
        y.backward(g)
        expected.backward(g)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        torch.testing.assert_close(x.grad, twin.grad)
        with torch.no_grad():
            y = dense_max_pool(values, (k, k), (s, s), (p, p), (1, 1))
            torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("k", [2, 3])
def test_max_by_slices_has_second_derivatives_and_passes_nan_on(k: int) -> None:
    x = random_map(1, 2, 5, 6).requires_grad_()

    def pool(x: Tensor) -> Tensor:
        return dense_max_pool(x, (k, k), (2, 2), (k // 3, k // 3), (1, 1)) ** 2

    assert torch.autograd.gradcheck(pool, (x,))
    assert torch.autograd.gradgradcheck(pool, (x,))
    with torch.no_grad():
        x[0, 0, 2, 2] = torch.nan
    expected = F.max_pool2d(x, k, 1, k // 3) ** 2
    torch.testing.assert_close(pool(x), expected, equal_nan=True)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_max_blur_with_one_tap_is_the_max_pool(ndim: int) -> None:
    for n, k, s, p, d in pool_cases(ndim, 40):
        x = random_map(2, 3, *n)
        layer = MAX_BLURS[ndim](k, s, p, d, filter="identity")
        torch.testing.assert_close(layer(x), MAX_POOLS[ndim](x, k, s, p, d), rtol=0, atol=0)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_blur_has_the_shape_of_the_max_pool(ceil_mode: bool) -> None:
    for n, k, s, p, d in pool_cases(2, 60):
        x = torch.randn(1, 2, *n)
        layer = MaxBlurPool2d(k, s, p, d, ceil_mode, filter="binomial-5")
        assert layer(x).shape == F.max_pool2d(x, k, s, p, d, ceil_mode).shape


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_no_map_is_too_small(ndim: int, mode: str) -> None:
    for name, stride in itertools.product(list_filters(), range(1, 6)):
        y = BLURS[ndim](name, stride, mode)(torch.randn(1, 1, *(1,) * ndim))
        assert y.shape == (1, 1, *(1,) * ndim)
        assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("layer", [BlurPool2d(), BlurPool2d("identity"), MaxBlurPool2d(3, 2, 1)])
def test_dtype_and_memory_format_are_kept(layer: nn.Module, memory_format, dtype) -> None:
    for side in (16, 192):
        x = torch.randn(1, 32, side, side).to(dtype).contiguous(memory_format=memory_format)
        for leaf in (x, x.clone().requires_grad_()):
            y = layer(leaf)
            assert y.dtype == dtype
            assert y.is_contiguous(memory_format=memory_format)
            if leaf.requires_grad:
                y.backward(torch.ones_like(y))
                assert leaf.grad is not None
                assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("layer", [BlurPool2d(), MaxBlurPool2d(2)])
@pytest.mark.usefixtures("fast_at_any_size")
def test_autocast_gives_the_dtype_of_the_canonical_form(layer: nn.Module) -> None:
    x = torch.randn(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        with canonical_form():
            expected = layer(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)


def test_one_tap_at_stride_one_is_the_input_itself() -> None:
    x = torch.randn(1, 3, 8, 8)
    assert BlurPool2d("identity", 1)(x) is x
    assert BlurPool2d("tri-3", 1)(x) is x
    torch.testing.assert_close(BlurPool2d("identity", 3)(x), x[:, :, ::3, ::3], rtol=0, atol=0)


def test_tokens_with_channels_last() -> None:
    x = torch.randn(2, 7, 6, 4)
    y = BlurPool(stride=(2, 2), channels_last=True)(x)
    torch.testing.assert_close(y, BlurPool2d()(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@pytest.mark.parametrize("layer", [BlurPool2d("tri-4"), MaxBlurPool3d(2), BlurPool1d()])
def test_the_layers_add_no_key(layer: nn.Module) -> None:
    assert not layer.state_dict()
    assert not list(layer.parameters())
    twin = copy.deepcopy(layer).half()
    assert next(twin.buffers()).dtype == torch.float16


def test_the_kernel_is_filled_again_after_the_meta_device() -> None:
    with torch.device("meta"):
        layer = BlurPool2d()
    layer = layer.to_empty(device="cpu")
    layer.init_non_persistent_buffers()
    torch.testing.assert_close(layer.kernel, BlurPool2d().kernel, rtol=0, atol=0)


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(FilterError, match="mirror"):
        BlurPool2d(padding_mode="mirror")
    with pytest.raises(FilterError, match="gauss"):
        BlurPool2d("gauss-3")
    with pytest.raises(InputError, match="4 axes in all, or 3 of one image, got 2"):
        BlurPool2d()(torch.ones(8, 8))
    with pytest.raises(InputError, match="expected a whole number"):
        MaxBlurPool2d(2, stride=(2, 2, 2))
    with pytest.raises(InputError, match="too small"):
        MaxBlurPool2d(5)(torch.ones(1, 1, 3, 3))


AXES = ((0, "batch", 1), (2, "height", 5), (3, "width", 5))


@pytest.mark.parametrize("name", ["tri-3", "tri-4"])
def test_export_with_dynamic_sizes_and_onnx(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    layer = BlurPool2d(name).eval()
    x = torch.randn(2, 3, 17, 20)
    dims = {i: torch.export.Dim(axis, min=low) for i, axis, low in AXES}
    program = torch.export.export(layer, (x,), dynamic_shapes=(dims,))
    onnx = torch.onnx.export(layer, (x,), dynamic_shapes=(dims,), dynamo=True, verbose=False)
    onnx.save(tmp_path / "blur.onnx")
    session = runtime.InferenceSession(tmp_path / "blur.onnx")
    for shape in ((1, 3, 8, 8), (3, 3, 31, 12)):
        other = torch.randn(shape)
        torch.testing.assert_close(program.module()(other), layer(other))
        (y,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(other))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.pool = MaxBlurPool2d(3, 2, 1)
        self.blur = BlurPool2d("tri-4")

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(self.pool(self.conv(x)).relu())


def test_a_symbolic_trace_enters_the_layers() -> None:
    net = Net().eval()
    traced = torch.fx.symbolic_trace(net)
    targets = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert functional.blur in targets
    for side in (15, 32):
        x = torch.randn(2, 3, side, side)
        torch.testing.assert_close(traced(x), net(x))


def test_torchvision_feature_extraction() -> None:
    feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
    net = Net().eval()
    extractor = feature_extraction.create_feature_extractor(net, ["blur"])
    x = torch.randn(2, 3, 33, 33)
    torch.testing.assert_close(extractor(x)["blur"], net(x))


@pytest.mark.filterwarnings(
    "ignore"
)  # jit.trace is deprecated, and warns of every size it bakes in
@pytest.mark.usefixtures("fast_at_any_size")
def test_export_with_a_dynamic_batch_and_jit_trace() -> None:
    net = Net().eval()
    x = torch.randn(2, 3, 33, 33)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    traced = torch.jit.trace(net, x)
    other = torch.randn(5, 3, 33, 33)
    torch.testing.assert_close(program.module()(other), net(other))
    torch.testing.assert_close(traced(other), net(other))


@pytest.mark.usefixtures("fast_at_any_size")
def test_compile_without_graph_breaks() -> None:
    net = Net().eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 33, 33)
    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.usefixtures("fast_at_any_size")
def test_function_transforms() -> None:
    net = nn.Sequential(BlurPool2d(), MaxBlurPool2d(2)).double()
    x = random_map(3, 2, 9, 9)

    def loss(sample: Tensor) -> Tensor:
        return net(sample[None]).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss))(x)
    leaf = x.clone().requires_grad_()
    net(leaf).square().sum().backward()
    torch.testing.assert_close(per_sample, leaf.grad)
