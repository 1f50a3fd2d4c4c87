"""Modules that convolve the phases of a map and mix the result: in a strided op's place."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aa_surgery.errors import InputError, MethodError
from aa_surgery.layers.downsample import Downsample, Unscriptable
from aa_surgery.layers.padding import pad_to
from aa_surgery.layers.phases import phase_kernel, split_phases

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PhaseConv", "PhaseDownsample"]


class PhaseConv(Unscriptable, nn.Module, ABC):
    """A convolution on the phases of the map, then a 1x1; in a strided convolution's place.

    The convolution reads all phases, so that no sample is lost to it. Its weights are parameters
    of this module, not of modules in it, which the initialisers of a host would find and reset.

    Args:
        in_channels: Channels read, `C_in`.
        out_channels: Channels given, `C_out`.
        kernel_size: Window of the strided convolution (px). On the phases it is
            `ceil(((kernel_size - 1) * dilation + 1) / stride)`.
        stride: One number an axis; its length is the number of spatial axes.
        padding: As in `nn.Conv2d`; `"same"` gives `ceil(size / stride)` samples, as TensorFlow's.
        dilation: As in `nn.Conv2d`.
        groups: Groups of the strided convolution; `conv3d` has the same.
        bias: Whether the 1x1 has a bias.
        padding_mode: As in `nn.Conv2d`.
        width: Number of filters in front of the 1x1; the paper's by default.
        selects: Whether to start as every `stride`-th sample, not at random.

    Raises:
        MethodError: The method has no form for this stride, or not for so many filters.
        InputError: The map is smaller than the window.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: Sequence[int],
        padding: int | Sequence[int] | Literal["same", "valid"] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        width: int | None = None,
        selects: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        axes = len(stride)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _each_axis(kernel_size, axes), tuple(stride)
        self.same = padding == "same"
        self.padding = _each_axis(0 if isinstance(padding, str) else padding, axes)
        self.dilation = _each_axis(dilation, axes)
        self.padding_mode = padding_mode
        self.spans = tuple(
            (k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)
        )
        self.taps = tuple(-(-span // s) for span, s in zip(self.spans, stride, strict=True))
        self.phases = math.prod(stride)
        self.width = self.paper_width(in_channels, out_channels) if width is None else width
        self.selects = selects
        shape, mixed = self._shapes()
        self.phase_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.mix_weight = nn.Parameter(
            torch.empty((out_channels, mixed) + (1,) * axes, device=device, dtype=dtype)
        )
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def from_conv(cls, conv: nn.Conv1d | nn.Conv2d, *, same: bool = False) -> Self:
        """Return the module that computes what `conv` does; its bias goes to the 1x1.

        The width is the smallest multiple of the paper's that holds any kernel of that shape: the
        state_dicts of equal networks fit each other, whatever their weights.

        Args:
            conv: The strided convolution.
            same: Whether it pads for `ceil(size / stride)` samples as it runs, as timm's
                `Conv2dSame` does.

        Raises:
            MethodError: The method has no form for this stride.
        """
        weight, stride, dilation = conv.weight.detach(), conv.stride, conv.dilation
        window = torch.ones(1, 1, *conv.kernel_size, device="cpu")
        taps = phase_kernel(window, stride, dilation)[0, 0] > 0
        paper = cls.paper_width(conv.in_channels, conv.out_channels)
        least = cls.least_width(conv.in_channels, conv.out_channels, conv.groups, taps)
        module = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride,
            "same" if same else conv.padding,  # type: ignore[arg-type]
            dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            width=-(-least // paper) * paper,
            device=weight.device,
            dtype=weight.dtype,
        )
        module._start(phase_kernel(weight, stride, dilation), taps, conv.groups)
        for parameter in (module.phase_weight, module.mix_weight):
            parameter.requires_grad_(conv.weight.requires_grad)
        if module.bias is not None and conv.bias is not None:
            module.bias.data.copy_(conv.bias.detach())
            module.bias.requires_grad_(conv.bias.requires_grad)
        return module.train(conv.training)

    @staticmethod
    @abstractmethod
    def paper_width(in_channels: int, out_channels: int) -> int:
        """Return the number of filters that the paper has in front of the 1x1."""

    @staticmethod
    @abstractmethod
    def least_width(in_channels: int, out_channels: int, groups: int, taps: Tensor) -> int:
        """Return the number of filters that hold any strided kernel.

        Args:
            in_channels: Channels read.
            out_channels: Channels given.
            groups: Groups of the strided convolution.
            taps: Which taps it has on the phases, `(P, *taps)`.
        """

    @abstractmethod
    def _shapes(self) -> tuple[tuple[int, ...], int]:
        """Return the shape of the filters, and how many maps they give to the 1x1."""

    @abstractmethod
    def _start(self, kernel: Tensor, taps: Tensor, groups: int) -> None:
        """Fill the weights so that they compute `kernel`, `(C_out, C_in / groups, P, *taps)`."""

    @abstractmethod
    def _filtered(self, phases: Tensor) -> Tensor:
        """Return what the filters give, `(N, mixed, *size)`, of `(N, C_in, P, *(size + k - 1))`."""

    def reset_parameters(self) -> None:
        """Fill the weights as torch fills those of a convolution, or with the samples' selection.

        That of a pretrained kernel is `from_conv`'s.
        """
        for parameter in (self.phase_weight, self.mix_weight):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.mix_weight.shape[1])
            nn.init.uniform_(self.bias, -bound, bound)
        if self.selects:
            middle = (0, *(k // 2 for k in self.taps))
            taps = torch.zeros(self.phases, *self.taps, dtype=torch.bool, device="cpu")
            taps[middle] = True
            kernel = self.phase_weight.new_zeros(self.out_channels, self.in_channels, *taps.shape)
            kernel.diagonal(dim1=0, dim2=1)[middle] = 1
            self._start(kernel, taps, groups=1)

    def convolve(self, x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
        """Return `(N, C_out, *size)` of a map and its borders (px).

        Padded, it has at least `(size + taps - 1) * stride` samples, and less than a stride more.
        """
        x = pad_to(x, before=tuple(before), after=tuple(after), mode=self.padding_mode)
        y = self._filtered(split_phases(x, self.stride))
        mix = F.conv1d if len(self.stride) == 1 else F.conv2d
        return mix(y, self.mix_weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved map, of the size that the strided convolution gives."""
        maps = x[None] if x.ndim == len(self.stride) + 1 else x
        before: list[int] = []
        after: list[int] = []
        for i, n in enumerate(maps.shape[2:]):
            s, span, pad = self.stride[i], self.spans[i], 2 * self.padding[i]
            if self.same:
                pad = max((-(-n // s) - 1) * s + span - n, 0)
            if n + pad < span:
                raise InputError(
                    f"{type(self).__name__} of window {span}: the map is {n} px with {pad} px of "
                    "padding, which is too small. Give the model a larger input."
                )
            before.append(pad // 2)
            # up to whole steps, the window of `span` becomes one of `s * taps`
            after.append(pad - pad // 2 + s * self.taps[i] - span)
        y = self.convolve(maps, before, after)
        return y if maps is x else y[0]

    def extra_repr(self) -> str:
        """Return what `repr` shows of the module."""
        padding = "same" if self.same else self.padding
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={padding!r}, width={self.width}"
        )


class PhaseDownsample(Downsample):
    """A `PhaseConv` as the layer of a site that is no plain convolution: C channels to C.

    At its start it gives every `stride`-th sample. With circular padding and sizes divisible by the
    stride, a circular shift by `stride` px shifts the output by one; no other shift is a law.

    Args:
        stride: Subsampling step, one an axis.
        rate: The same, or None: the layer cannot prepare a map for another op.
        padding_mode: Border: `"reflect"`, `"replicate"`, `"zeros"` or `"circular"`.
        channels_last: Whether maps are `(*, *spatial, C)` instead of `(*, C, *spatial)`.
        channels: Number of channels.
        kernel_size: Kernel on the phases, odd; 1 along an axis of stride 1.

    Raises:
        MethodError: The kernel is even, the rate is not the stride, or the method has no form for
            this stride.
    """

    conv_class: ClassVar[type[PhaseConv]]

    def __init__(
        self,
        stride: Sequence[int] = (2, 2),
        rate: Sequence[int] | None = None,
        padding_mode: str = "reflect",
        channels_last: bool = False,
        *,
        channels: int,
        kernel_size: int = 3,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(stride, rate, padding_mode, channels_last)
        name = type(self).__name__
        if self.stride != self.rate:
            raise MethodError(
                f"{name} of stride {self.stride} and rate {self.rate}: it subsamples itself, and "
                'cannot stand before an op that does. Use placement="post", or another method.'
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise MethodError(f"{name}: kernel_size={kernel_size}. Give an odd number.")
        self.phase_conv = self.conv_class(
            channels,
            channels,
            [s * kernel_size if s > 1 else 1 for s in self.stride],
            self.stride,
            bias=False,
            padding_mode=padding_mode,
            selects=True,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Fill the weights as they were at the start."""
        self.phase_conv.reset_parameters()

    def sample(self, x: Tensor) -> Tensor:
        """Return the convolved phases, `(N, C, *ceil(spatial / stride))`."""
        before = [s * (k // 2) for s, k in zip(self.stride, self.phase_conv.taps, strict=True)]
        after = [b + s - 1 for b, s in zip(before, self.stride, strict=True)]
        return self.phase_conv.convolve(x, before, after)


def _each_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)
