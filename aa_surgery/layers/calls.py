"""Modules that a user's forward calls in the stead of a function that samples.

`F.max_pool2d(x, 3, 2)` becomes `self.aa_max_pool2d(x, 3, 2)`: the arguments are those of the call,
as they are when it runs. So whatever the forward decides on (a stride kept in an attribute, a
branch) still decides.
"""
# Without the future import of annotations: TorchScript reads those of a class as objects.

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import _jit_internal as jit
from torch.fx.graph_module import _forward_from_src

from aa_surgery.errors import UnsupportedSiteError
from aa_surgery.filters import kernel_nd
from aa_surgery.layers import functional as AF
from aa_surgery.layers import resize
from aa_surgery.layers.maps import AverageBlurPool, dense_space_to_depth
from aa_surgery.layers.pools import BlurPool
from aa_surgery.layers.windows import Ints

__all__ = ["AVG_CALLS", "CONV_CALLS", "MAX_CALLS", "Call", "MergeCall", "ResizeCall"]

_WAY_OUT = "Call remove_antialias(model), change it, and call apply_antialias(model) again."


class Call(nn.Module):
    """Base of what is called in a function's stead, with its arguments."""

    functions: tuple[Callable[..., Any], ...] = ()

    @torch.jit.unused
    def instead_of(self, function: Callable[..., Any]) -> Any:
        """Return this module where `function` is one that it stands for; else the function."""
        if isinstance(function, partial) and function.func in self.functions:
            return partial(self, *function.args, **function.keywords)
        return self if function in self.functions else function


class _PoolCall(Call):
    """A pool of stride 1, then the blur.

    Args:
        blur: What subsamples the dense map, or stands in the average's place.
        stride: The stride that it was made for.
    """

    __constants__ = ("replaces",)

    def __init__(self, blur: nn.Module, stride: Sequence[int]) -> None:
        super().__init__()
        self.blur = blur
        self.stride = tuple(stride)
        self.replaces = isinstance(blur, AverageBlurPool)

    def _scripted_max(
        self, x: Tensor, kernel: Ints, stride: Ints, pad: Ints, dilation: Ints, ceil_mode: bool
    ) -> Tensor:
        return self.blur(AF.dense_max_pool(x, kernel, stride, pad, dilation, ceil_mode))

    def _scripted_avg(
        self,
        x: Tensor,
        kernel: Ints,
        stride: Ints,
        pad: Ints,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor: Optional[int],  # noqa: UP045 - TorchScript
    ) -> Tensor:
        if self.replaces:
            return self.blur(x, count_include_pad, divisor)
        dense = AF.dense_avg_pool(x, kernel, stride, pad, ceil_mode, count_include_pad, divisor)
        return self.blur(dense)

    def _max(
        self, x: Any, kernel: Any, stride: Any, pad: Any, dilation: Any, ceil: Any, indices: Any
    ) -> Any:
        kernel, pad, dilation = (_each(n, len(self.stride)) for n in (kernel, pad, dilation))
        step = _each(stride, len(self.stride)) or kernel
        if indices or max(step) == 1:
            return self.functions[0](x, kernel, step, pad, dilation, ceil, indices)
        return self._sampled(AF.dense_max_pool(x, kernel, step, pad, dilation, ceil), step)

    def _avg(
        self, x: Any, kernel: Any, stride: Any, pad: Any, ceil: Any, counts: Any, divisor: Any
    ) -> Any:
        kernel, pad = (_each(n, len(self.stride)) for n in (kernel, pad))
        step = _each(stride, len(self.stride)) or kernel
        if max(step) == 1:
            rest = (divisor,) if len(step) > 1 else ()
            return self.functions[0](x, kernel, step, pad, ceil, counts, *rest)
        if self.replaces:
            return _replacing(self.blur, kernel, step, pad, ceil)(x, counts, divisor)
        return self._sampled(AF.dense_avg_pool(x, kernel, step, pad, ceil, counts, divisor), step)

    def _sampled(self, dense: Tensor, stride: tuple[int, ...]) -> Any:
        """Blur and subsample a dense map, by another stride than the known one too."""
        blur: Any = self.blur
        if stride == self.stride:
            return blur(dense)
        if type(blur) is not BlurPool or blur.strength != 1:
            raise UnsupportedSiteError(
                f"a pool was treated at stride {self.stride} by {type(blur).__name__}, and is "
                f"called with stride {stride}. {_WAY_OUT}"
            )
        taps = tuple(blur.filter.taps(s) for s in stride)
        kernel = kernel_nd(taps, blur.kernel.dtype).to(blur.kernel.device)
        return AF.blur(dense, kernel, taps, stride, blur.padding_mode)


def _replacing(blur: Any, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> Any:
    """Return the blur that stands for an average with these kernel, stride, padding, ceil_mode."""
    given = (kernel, stride, padding, ceil_mode)
    if given == (blur.kernel_size, blur.stride, blur.padding, blur.ceil_mode):
        return blur
    like = dict(device=blur.kernel.device, dtype=blur.kernel.dtype)
    other = AverageBlurPool(
        blur.filter, kernel, stride, padding, ceil_mode, blur.padding_mode, **like
    )
    other.set_strength(blur.strength)
    return other


def _each(value: Any, ndim: int) -> tuple[int, ...]:
    """Return a number once an axis; nothing of None, or of torch's empty list."""
    if value is None:
        return ()
    given = tuple(value) if isinstance(value, tuple | list) else (value,)
    return given * ndim if len(given) == 1 else given


class _ConvCall(Call):
    """A convolution that runs at another stride; the blur behind it subsamples by the rest.

    Args:
        stride: The stride that it is called with.
        op_stride: The stride that it runs at.
    """

    def __init__(self, stride: Sequence[int], op_stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.op_stride = tuple(op_stride)

    def _check(self, stride: Any) -> None:
        if _each(stride, len(self.stride)) != self.stride:
            raise UnsupportedSiteError(
                f"a convolution was treated at stride {self.stride}, and is called with stride "
                f"{stride}. {_WAY_OUT}"
            )


# TorchScript broadcasts a number to the axes of an op where the type says so, of each rank by name
_MAX = """
def forward(self, input: Tensor, kernel_size: BroadcastingList{n}[int],
            stride: Optional[BroadcastingList{n}[int]] = None,
            padding: BroadcastingList{n}[int] = 0, dilation: BroadcastingList{n}[int] = 1,
            ceil_mode: bool = False, return_indices: bool = False):
    if torch.jit.is_scripting():
        step = kernel_size if stride is None else stride
        return self._scripted_max(input, kernel_size, step, padding, dilation, ceil_mode)
    return self._max(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
"""
_AVG = """
def forward(self, input: Tensor, kernel_size: BroadcastingList{n}[int],
            stride: Optional[BroadcastingList{n}[int]] = None,
            padding: BroadcastingList{n}[int] = 0, ceil_mode: bool = False,
            count_include_pad: bool = True, divisor_override: Optional[int] = None):
    if torch.jit.is_scripting():
        step = kernel_size if stride is None else stride
        return self._scripted_avg(
            input, kernel_size, step, padding, ceil_mode, count_include_pad, divisor_override)
    return self._avg(
        input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
"""
_CONV = """
def forward(self, input: Tensor, weight: Tensor, bias: Optional[Tensor] = None,
            stride: BroadcastingList{n}[int] = 1, padding: BroadcastingList{n}[int] = 0,
            dilation: BroadcastingList{n}[int] = 1, groups: int = 1):
    if not torch.jit.is_scripting():
        self._check(stride)
    return F.conv{n}d(input, weight, bias, self.op_stride, padding, dilation, groups)
"""
_NAMES = dict(
    F=F,
    Optional=Optional,
    Tensor=Tensor,
    torch=torch,
    **{f"BroadcastingList{n}": vars(jit)[f"BroadcastingList{n}"] for n in (1, 2, 3)},
)


def _of_rank(base: type[Call], template: str, word: str, n: int) -> type[Any]:
    name = f"{word}{n}d"
    functions = (getattr(F, name), getattr(torch, name, None), getattr(torch._C._nn, name, None))
    body = {
        "__module__": __name__,
        "__doc__": f"Stands for `F.{name}`.",
        "functions": tuple(f for f in functions if f is not None),
        "forward": _forward_from_src(template.format(n=n), dict(_NAMES)),
    }
    made = type(f"{base.__name__.strip('_')}_{name}", (base,), body)
    globals()[made.__name__] = made  # instances pickle by that name
    return made


MAX_CALLS = {n: _of_rank(_PoolCall, _MAX, "max_pool", n) for n in (1, 2, 3)}
AVG_CALLS = {n: _of_rank(_PoolCall, _AVG, "avg_pool", n) for n in (1, 2, 3)}
CONV_CALLS = {n: _of_rank(_ConvCall, _CONV, "conv", n) for n in (1, 2, 3)}


class ResizeCall(Call):
    """`F.interpolate` that low-passes before it reduces a map `(N, C, H, W)`."""

    functions = (F.interpolate,)

    def forward(
        self,
        input: Tensor,
        size: Optional[int] = None,  # noqa: UP045
        scale_factor: Optional[float] = None,  # noqa: UP045
        mode: str = "nearest",
        align_corners: Optional[bool] = None,  # noqa: UP045
        recompute_scale_factor: Optional[bool] = None,  # noqa: UP045
        antialias: bool = False,
    ) -> Tensor:
        """Return the resized map."""
        smooth = mode == "bilinear" or mode == "bicubic"
        source = resize.resizable(input) if smooth else input
        resized = F.interpolate(
            source,
            size,
            scale_factor,
            mode,
            align_corners,
            recompute_scale_factor,
            antialias=antialias or smooth,
        )
        return resized.type_as(input)


class MergeCall(nn.Module):
    """Patch merging at every position, in the stead of reshape, permute and reshape.

    Args:
        dims: The map's axes that the patches cover; see `dense_space_to_depth` for all four.
        factors: The patch's size along each.
        order: Axes of the permuted map.
        joined: First and last of those that become one.
    """

    def __init__(
        self, dims: Sequence[int], factors: Sequence[int], order: Sequence[int], joined: Any
    ) -> None:
        super().__init__()
        self.dims, self.factors, self.order = tuple(dims), tuple(factors), tuple(order)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged map."""
        return dense_space_to_depth(x, self.dims, self.factors, self.order, self.joined)
