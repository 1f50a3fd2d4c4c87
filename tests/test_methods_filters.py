"""Laws of the methods that are low-pass filters: learned, adaptive, ideal, wavelet."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from filtering import CHANNELS, METHODS, STRIDES, build, fits, perturb

from aa_surgery.errors import FilterError, MethodError
from aa_surgery.layers import PADDING_MODES
from aa_surgery.methods.method import Method

every_method = pytest.mark.parametrize("method", METHODS, ids=str)


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


@every_method
def test_unknown_padding_is_refused(method: Method) -> None:
    with pytest.raises(FilterError, match="padding_mode"):
        build(method, padding_mode="mirror")
