"""Forwards of single ops that run another way: dense, replaced, or with torch's own antialias.

They become methods of the antialiased classes, and keep to what `torch.jit.script` reads. What an
op runs with stands in `self.aa_op`, numbers by name; the host's own attributes keep their values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aa_surgery.layers import functional as AF
from aa_surgery.layers import resize
from aa_surgery.layers.padding import lowest, pad_axes, pad_to
from aa_surgery.layers.windows import Ints, extra_places, lacking, pooled_sizes

__all__ = ["OPS"]


def _conv(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve at the changed stride; padding and its mode stay."""
    padding, stride = self.aa_op["padding"], self.aa_op["stride"]
    if "circular" in self.aa_op:
        spans = _spans(self.kernel_size, self.dilation)
        sizes = pooled_sizes(input.shape[-len(spans) :], spans, self.stride, padding, False)
        input = _wrapped(input, spans, self.stride, stride, padding, sizes)
        none = [0] * len(spans)
        return _convolve(input, weight, bias, stride, none, self.dilation, self.groups)
    if self.padding_mode != "zeros":
        input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
    return _convolve(input, weight, bias, stride, padding, self.dilation, self.groups)


def _same_conv(self: Any, x: Tensor) -> Tensor:
    """Pad for `ceil(n / stride)` samples at the host's stride, and convolve at the changed one."""
    padding, stride = self.aa_op["padding"], self.aa_op["stride"]
    before: list[int] = []
    sizes: list[int] = []
    pads: list[int] = []
    spans = _spans(self.kernel_size, self.dilation)
    for i, n in enumerate(x.shape[-len(spans) :]):
        # the last window begins `(n - 1) % stride` before the last sample
        pad = lacking(n - 1, spans[i] - 1, self.stride[i])
        before.append(pad // 2)
        sizes.append((n - 1) // self.stride[i] + 1)
        pads += [pad // 2, pad - pad // 2]
    if "circular" in self.aa_op:
        x = _wrapped(x, spans, self.stride, stride, before, sizes)
    else:
        x = pad_axes(x, pads, "constant")
    return _convolve(x, self.weight, self.bias, stride, padding, self.dilation, self.groups)


def _spans(kernel: Ints, dilation: Ints) -> list[int]:
    """Return how many samples a window reaches over, one an axis."""
    spans: list[int] = []
    for i, k in enumerate(kernel):
        spans.append(dilation[i] * (k - 1) + 1)
    return spans


def _wrapped(x: Tensor, spans: Ints, stride: Ints, step: Ints, before: Ints, sizes: Ints) -> Tensor:
    """Extend a map around its border, for `stride / step` as many windows as `sizes` says."""
    after: list[int] = []
    for i, n in enumerate(x.shape[-len(spans) :]):
        windows = sizes[i] * stride[i] // step[i]
        after.append((windows - 1) * step[i] + spans[i] - before[i] - n)
    return pad_to(x, before, after, "circular")


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    if len(stride) == 1:
        return F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    if len(stride) == 3:
        return F.conv3d(x, weight, bias, stride, padding, dilation, groups)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _max_blur_pool(self: Any, input: Tensor) -> Tensor:
    """Take the maximum at stride 1, then blur and subsample."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return self._aa_pool(input)
    return AF.by_image(self._aa_pool, input)


def _blurred_max(self: Any, input: Tensor) -> Tensor:
    return self.aa_blur(self._aa_dense(input))


def _dense_max_pool(self: Any, input: Tensor) -> Tensor:
    """Take the maximum at stride 1."""
    op = self.aa_op
    kernel, stride, padding = op["kernel"], op["stride"], op["padding"]
    if "pool_kernel" in op:
        return small_max_pool(input, op["pool_kernel"], kernel, stride, padding, self.ceil_mode)
    return AF.dense_max_pool(input, kernel, stride, padding, op["dilation"], self.ceil_mode)


def small_max_pool(
    x: Tensor, small: Ints, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool
) -> Tensor:
    """Max-pool at stride 1 with the window `small` and no padding.

    Where that leaves fewer samples than the original pool gives, the map is extended by -inf.
    """
    axes = len(small)
    pads: list[int] = []
    for i, n in enumerate(x.shape[-axes:]):
        last = extra_places(kernel[i], stride[i], padding[i], ceil_mode) - 1
        pads += [0, lacking(n + last, last + small[i], stride[i])]
    x = pad_axes(x, pads, "constant", lowest(x))
    ones = [1] * axes
    return AF.dense_max_pool(x, small, ones, [0] * axes, ones)


def _avg_pool(self: Any, input: Tensor) -> Tensor:
    """Take the average at stride 1."""
    return AF.dense_avg_pool(
        input,
        self.aa_op["kernel"],
        self.aa_op["stride"],
        self.aa_op["padding"],
        self.ceil_mode,
        self.count_include_pad,
        getattr(self, "divisor_override", None),
    )


def _circular_max_pool(self: Any, input: Tensor) -> Tensor:
    """Take the maximum over windows that wrap around."""
    kernel, step, dilation = self.aa_op["window"], self.aa_op["step"], self.aa_op["dilation"]
    x = _pool_wrapped(self, input)
    if len(kernel) == 1:
        return F.max_pool1d(x, kernel, step, 0, dilation)
    if len(kernel) == 3:
        return F.max_pool3d(x, kernel, step, 0, dilation)
    return F.max_pool2d(x, kernel, step, 0, dilation)


def _circular_avg_pool(self: Any, input: Tensor) -> Tensor:
    """Take the average over windows that wrap around."""
    kernel, step = self.aa_op["window"], self.aa_op["step"]
    x = _pool_wrapped(self, input)
    divisor = getattr(self, "divisor_override", None)
    if len(kernel) == 1:
        return F.avg_pool1d(x, kernel, step)
    if len(kernel) == 3:
        return F.avg_pool3d(x, kernel, step, divisor_override=divisor)
    return F.avg_pool2d(x, kernel, step, divisor_override=divisor)


def _pool_wrapped(self: Any, x: Tensor) -> Tensor:
    padding, stride, dilation = self.aa_op["padding"], self.aa_op["stride"], self.aa_op["dilation"]
    reach = _spans(self.aa_op["kernel"], dilation)
    sizes = pooled_sizes(x.shape[-len(reach) :], reach, stride, padding, self.ceil_mode)
    spans = _spans(self.aa_op["window"], dilation)
    return _wrapped(x, spans, stride, self.aa_op["step"], self.aa_op["before"], sizes)


def _replaced(self: Any, input: Tensor) -> Tensor:
    """Blur in the place of the average."""
    divisor = getattr(self, "divisor_override", None)
    return self.aa_blur(input, self.count_include_pad, divisor)


def _replaced_conv(self: Any, input: Tensor) -> Tensor:
    """Let the method's module stand in the convolution's place."""
    return self.aa_conv(input)


def _aligned_tokens(self: Any, x: Tensor, hw_shape: Ints) -> Tensor:
    """Roll tokens as the map that they are before the block attends in windows."""
    maps = x.unflatten(1, tuple(hw_shape))
    return self._aa_host.forward(self, self.aa_roll(maps).flatten(1, 2), hw_shape)


def _circular_tokens(self: Any, query: Tensor, hw_shape: Ints) -> Tensor:
    """Attend in windows of the shifted map, which nothing masks, not in shifted windows."""
    shift = self.aa_op["shift"]
    if not self.pad_small_map and min(hw_shape) <= self.window_size:
        shift = (0, 0)  # Swin shifts nothing where one window is all
    maps = query.unflatten(1, tuple(hw_shape))
    rolled = maps.roll([-s for s in shift], (1, 2)).flatten(1, 2)
    y = self._aa_host.forward(self, rolled, hw_shape)
    return y.unflatten(1, tuple(hw_shape)).roll(shift, (1, 2)).flatten(1, 2)


def _resized(self: Any, input: Tensor) -> Tensor:
    """Let torch low-pass before it resizes."""
    resized = F.interpolate(
        resize.resizable(input),
        self.size,
        self.scale_factor,
        self.mode,
        self.align_corners,
        self.recompute_scale_factor,
        antialias=True,
    )
    return resized.type_as(input)


# the methods that each op adds to the class of its module
OPS: dict[str, dict[str, Callable[..., Any]]] = {
    "conv": {"_conv_forward": _conv},
    "same_conv": {"forward": _same_conv},
    "max_pool": {
        "forward": _max_blur_pool,
        "_aa_pool": _blurred_max,
        "_aa_dense": _dense_max_pool,
    },
    "dense_max_pool": {"forward": _dense_max_pool},
    "avg_pool": {"forward": _avg_pool},
    "circular_max_pool": {"forward": _circular_max_pool},
    "circular_avg_pool": {"forward": _circular_avg_pool},
    "replace": {"forward": _replaced},
    "replace_conv": {"forward": _replaced_conv},
    "resample": {"forward": _resized},
    "aligned_tokens": {"forward": _aligned_tokens},
    "circular_tokens": {"forward": _circular_tokens},
}
