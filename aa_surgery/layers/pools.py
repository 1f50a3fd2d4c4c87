"""Layers: BlurPool, and dense max-pooling followed by it, for 1-D, 2-D and 3-D maps."""
# Without the future import of annotations: TorchScript reads those of a class as objects.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aa_surgery.errors import InputError, shown
from aa_surgery.filters import Filter, Taps, kernel_nd, resolve_filter
from aa_surgery.layers import functional as AF
from aa_surgery.layers.downsample import Downsample

__all__ = [
    "BlurPool",
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "MaxBlurPool1d",
    "MaxBlurPool2d",
    "MaxBlurPool3d",
]


class BlurPool(Downsample):
    r"""Low-pass a map and subsample it.

    $y[i] = \sum_n h_n\, x[i s + n - b]$, separably in each axis, $b = \lfloor (m-1)/2 \rfloor$ for
    a filter of `m` taps; the output has `ceil(size / stride)` samples. The kernel is a
    non-persistent buffer: the layer adds no key to a state_dict. `set_strength` weakens the filter.

    Source: Zhang 2019 (arXiv:1904.11486), section 3.2.

    Args:
        filter: A name (`"tri-3"`), taps that sum to 1, or a `Filter`.
        stride: Subsampling step, one an axis; its length is the number of spatial axes.
        rate: The sampling rate, one an axis, that the filter prepares for; `stride` by default.
            `stride=(1, 1), rate=(2, 2)` filters for an op behind it that has the stride.
        padding_mode: Border: `"reflect"`, `"replicate"`, `"zeros"` or `"circular"`.
        channels_last: Whether the input is `(N, *spatial, C)`, as tokens are, instead of
            `(N, C, *spatial)`.

    Raises:
        FilterError: The filter or the padding mode is unknown.
        InputError: The input has another number of axes.

    >>> BlurPool("tri-3", stride=(2, 2))(torch.ones(1, 8, 7, 6)).shape
    torch.Size([1, 8, 4, 3])
    """

    kernel: Tensor

    def __init__(
        self,
        filter: str | Sequence[float] | Filter = "tri-3",
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stride, rate, padding_mode, channels_last)
        self.filter = resolve_filter(filter)
        self.full_taps = tuple(self.filter.taps(r) for r in self.rate)
        self.taps = self.full_taps
        kernel = kernel_nd(self.taps, dtype or torch.get_default_dtype()).to(device)
        self.register_buffer("kernel", kernel, persistent=False)

    def __prepare_scriptable__(self) -> nn.Module:
        return self

    def init_non_persistent_buffers(self) -> None:
        """Fill the kernel again, as timm asks of a model that left the meta device."""
        self.kernel.copy_(kernel_nd(self.taps, self.kernel.dtype))

    def reset_parameters(self) -> None:
        """Fill the kernel again, as torch asks of a layer that left the meta device."""
        self.init_non_persistent_buffers()

    def set_strength(self, strength: float) -> None:
        r"""Filter each axis with $(1 - a)\,\delta + a h$ from now on, in place; 1 is the filter.

        Args:
            strength: `a`, 0 to 1.
        """
        self.strength = strength
        self.taps = tuple(_weakened(taps, strength) for taps in self.full_taps)
        with torch.no_grad():
            self.kernel.copy_(kernel_nd(self.taps, self.kernel.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered and subsampled map, laid out as `x`."""
        return self._blurred(x)

    def _blurred(self, x: Tensor) -> Tensor:
        if self.channels_last:
            inner = len(self.stride) + 1
            return self._blurred_channels_first(x.movedim(-1, -inner)).movedim(-inner, -1)
        return self._blurred_channels_first(x)

    def _blurred_channels_first(self, x: Tensor) -> Tensor:
        # a compiled graph reads the kernel; that of other taps would be compiled for each strength
        taps = self.full_taps if torch.compiler.is_compiling() else self.taps
        return AF.blur(x, self._kernel_for(x), taps, self.stride, self.padding_mode)

    def _kernel_for(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.kernel
        buffer = self._buffers["kernel"]  # not by its name, which is a proxy while fx traces
        if buffer is not None and buffer.is_meta:
            self._leave_meta(x)
        return self.kernel

    def extra_repr(self) -> str:
        """Return what `repr` shows of the layer."""
        return f"{self.filter.name!r}, {super().extra_repr()}"


class BlurPool1d(BlurPool):
    """`BlurPool` over one axis, with one stride.

    >>> BlurPool1d(stride=3)(torch.ones(1, 2, 9)).shape
    torch.Size([1, 2, 3])
    """

    _ndim = 1

    def __init__(
        self,
        filter: str | Sequence[float] | Filter = "tri-3",
        stride: int | Sequence[int] = 2,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__(filter, _each_axis(stride, self._ndim), None, padding_mode)


class BlurPool2d(BlurPool1d):
    """`BlurPool` over two axes; `stride` is one number, or one an axis.

    >>> BlurPool2d("binomial-5", stride=(1, 2))(torch.ones(1, 2, 9, 9)).shape
    torch.Size([1, 2, 9, 5])
    """

    _ndim = 2


class BlurPool3d(BlurPool1d):
    """`BlurPool` over three axes; `stride` is one number, or one an axis.

    >>> BlurPool3d(stride=(1, 2, 2))(torch.ones(1, 2, 4, 8, 8)).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    _ndim = 3


class MaxBlurPool1d(nn.Module):
    """Max-pool at stride 1, then low-pass and subsample.

    Source: Zhang 2019 (arXiv:1904.11486), section 3.2, MaxBlurPool.

    Args:
        kernel_size: Window of the max, one number or one an axis; so are the next three.
        stride: Subsampling step; `kernel_size` by default, as in `nn.MaxPool2d`.
        padding: Border of -inf for the max.
        dilation: Distance between the window's samples.
        ceil_mode: As in `nn.MaxPool2d`; the output has that layer's shape.
        filter: The low-pass filter.
        padding_mode: The low-pass filter's border.

    >>> MaxBlurPool2d(3, 2, padding=1)(torch.ones(1, 8, 112, 112)).shape
    torch.Size([1, 8, 56, 56])
    """

    _ndim = 1

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
        filter: str | Sequence[float] | Filter = "tri-3",
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__()
        self.kernel_size = _each_axis(kernel_size, self._ndim, "kernel_size")
        self.stride = _each_axis(kernel_size if stride is None else stride, self._ndim)
        self.padding = _each_axis(padding, self._ndim, "padding", 0)
        self.dilation = _each_axis(dilation, self._ndim, "dilation")
        self.ceil_mode = ceil_mode
        self.blur = BlurPool(filter, self.stride, None, padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map, of the shape that the max-pool alone would give."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._pool(x)
        return AF.by_image(self._pool, x)

    def _pool(self, x: Tensor) -> Tensor:
        dense = AF.dense_max_pool(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )
        return self.blur(dense)


class MaxBlurPool2d(MaxBlurPool1d):
    """`MaxBlurPool1d` over two axes."""

    _ndim = 2


class MaxBlurPool3d(MaxBlurPool1d):
    """`MaxBlurPool1d` over three axes."""

    _ndim = 3


def _weakened(taps: Taps, strength: float) -> Taps:
    """Return the taps mixed with the one that keeps the sample; the very taps at strength 1."""
    if strength == 1:
        return taps
    own = (len(taps) - 1) // 2
    return tuple((1 - strength) * (n == own) + strength * tap for n, tap in enumerate(taps))


def _each_axis(
    value: int | Sequence[int], ndim: int, name: str = "stride", least: int = 1
) -> tuple[int, ...]:
    """Return `value` once an axis."""
    steps: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list)) else (value,) * ndim
    if len(steps) != ndim or any(not isinstance(n, int) or n < least for n in steps):
        raise InputError(
            f"{name}={shown(value)}: expected a whole number from {least} on, or {ndim} of them, "
            f"such as {name}=2."
        )
    return steps
