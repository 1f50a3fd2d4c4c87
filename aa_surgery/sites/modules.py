"""Read a downsampling op from a module of `torch.nn`, or of a class derived from one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

from aa_surgery.sites.kinds import (
    each_axis,
    is_einops_module,
    is_torch_forward,
    pads_to_same,
    whole_number,
)
from aa_surgery.sites.patterns import read_einops_module
from aa_surgery.sites.resizing import read_resize, read_resize_to_size

__all__ = [
    "RETURNS_INDICES",
    "adaptive_fields",
    "plain_forward",
    "read_conv_like",
    "read_module",
    "type_dimension",
]

Conv = nn.modules.conv._ConvNd
Transposed = nn.modules.conv._ConvTransposeNd
MaxPool = nn.modules.pooling._MaxPoolNd
AvgPool = nn.modules.pooling._AvgPoolNd
Adaptive = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)
Unusual = (nn.modules.pooling._LPPoolNd, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)

RETURNS_INDICES = (
    "return_indices=True: the indices of a blurred map have no meaning. Exclude this site, "
    "or pool without indices."
)


def read_module(module: nn.Module) -> dict[str, Any] | None:
    """Return the fields of the `Site` that `module` is, or None if it lowers no sampling rate."""
    kind: Any = type(module)
    reader = _reader_of(kind)
    if reader is not None:
        return reader(module)
    return read_einops_module(module) if is_einops_module(module) else None


@cache
def _reader_of(kind: type) -> Callable[[Any], dict[str, Any] | None] | None:
    if issubclass(kind, Transposed):
        return None
    return next((reader for classes, reader in _READERS if issubclass(kind, classes)), None)


def plain_forward(module: nn.Module) -> bool:
    """Tell whether the module computes what its `torch.nn` class computes, padding aside."""
    if pads_to_same(module) or is_einops_module(module):
        return True
    if not is_torch_forward(module):
        return False
    inner = getattr(type(module), "_conv_forward", None)
    return inner is None or inner.__module__.startswith("torch.nn.modules")


def _read_conv(conv: Any) -> dict[str, Any] | None:
    ndim = len(conv.kernel_size)
    stride = each_axis(conv.stride, ndim)
    if stride is None or max(stride) == 1:
        return None
    padding = (0,) * ndim if isinstance(conv.padding, str) else each_axis(conv.padding, ndim)
    return dict(
        op="conv",
        kernel=each_axis(conv.kernel_size, ndim) or (),
        stride=stride,
        padding=padding or (0,) * ndim,
        dilation=each_axis(conv.dilation, ndim) or (1,) * ndim,
        in_channels=conv.in_channels,
        groups=conv.groups,
    )


def read_conv_like(module: nn.Module) -> dict[str, Any] | None:
    """Return the fields of a module that describes itself as torch's convolutions do."""
    names = ("kernel_size", "stride", "padding", "dilation", "in_channels", "groups")
    if not all(isinstance(getattr(module, name, None), (int, tuple)) for name in names):
        return None
    return _read_conv(module) if isinstance(module.kernel_size, tuple) else None


def _read_pool(pool: Any) -> dict[str, Any] | None:
    ndim = int(type_dimension(pool))
    kernel = each_axis(pool.kernel_size, ndim) or ()
    stride = each_axis(pool.stride, ndim) or kernel
    if max(stride, default=1) == 1:
        return None
    is_max = isinstance(pool, MaxPool)
    return dict(
        op="max_pool" if is_max else "avg_pool",
        kernel=kernel,
        stride=stride,
        padding=each_axis(pool.padding, ndim) or (),
        dilation=each_axis(getattr(pool, "dilation", 1), ndim) or (),
        ceil_mode=bool(pool.ceil_mode),
        problem=RETURNS_INDICES if is_max and pool.return_indices else "",
    )


def type_dimension(module: nn.Module) -> int:
    """Return the number of spatial axes that a class of `torch.nn` names (`MaxPool2d`: 2)."""
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.nn") and cls.__name__[-2:] in ("1d", "2d", "3d"):
            return int(cls.__name__[-2])
    return 2


def adaptive_fields(name: str, size: Any) -> dict[str, Any] | None:
    """Return the fields of an adaptive pool; None where each axis stays, or becomes one sample."""
    sizes = size if isinstance(size, (tuple, list)) else (size,)
    if all(n is None or whole_number(n) == 1 for n in sizes):
        return None
    bins = "x".join(str(n) if n is None or whole_number(n) is not None else "?" for n in sizes)
    problem = (
        f"{name} to {bins}: its bins change with the map, there is no fixed stride to filter for"
    )
    return dict(op="adaptive_pool", problem=problem)


def _read_unfold(unfold: Any) -> dict[str, Any] | None:
    stride = each_axis(unfold.stride, 2)
    if stride is None or max(stride) == 1:
        return None
    return dict(
        op="unfold",
        kernel=each_axis(unfold.kernel_size, 2) or (),
        stride=stride,
        padding=each_axis(unfold.padding, 2) or (),
        dilation=each_axis(unfold.dilation, 2) or (),
    )


def _read_adaptive(pool: Any) -> dict[str, Any] | None:
    return adaptive_fields(type(pool).__name__, pool.output_size)


def _read_unusual(pool: Any) -> dict[str, Any]:
    return dict(op="avg_pool", problem=f"{type(pool).__name__} is no plain maximum or mean")


def _read_unshuffle(module: Any) -> dict[str, Any]:
    factor = module.downscale_factor
    return dict(op="space_to_depth", stride=(factor, factor), kernel=(factor, factor))


def _read_upsample(module: Any) -> dict[str, Any] | None:
    if module.size is not None:
        return read_resize_to_size(None, module.size, module.mode)
    return read_resize(module.scale_factor, module.mode)


_READERS: tuple[tuple[Any, Callable[[Any], dict[str, Any] | None]], ...] = (
    (Conv, _read_conv),
    ((MaxPool, AvgPool), _read_pool),
    (Adaptive, _read_adaptive),
    (Unusual, _read_unusual),
    (nn.Unfold, _read_unfold),
    (nn.PixelUnshuffle, _read_unshuffle),
    (nn.Upsample, _read_upsample),
)
