"""Class swap: subclasses that change what one module's forward does, and nothing else of it.

A class is made for each (host class, change) pair and kept, so that two modules changed alike
share it. Its instances pickle and deep-copy through `_rebuild`, which makes it again by the same
recipe where the process does not have it yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partialmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.graph_module import _forward_from_src

from aa_surgery.errors import UnsupportedModelError
from aa_surgery.layers import functional as AF
from aa_surgery.layers.padding import pad_axes
from aa_surgery.layers.windows import pooled_size
from aa_surgery.sites.kinds import each_axis
from aa_surgery.sites.modules import type_dimension

__all__ = ["REBUILDING_METHODS", "Antialiased", "OpChange", "Recipe", "antialiased_class"]

REBUILDING_METHODS = ("reparameterize", "switch_to_deploy", "fuse")

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Recipe:
    """What makes an antialiased class out of a host class.

    Attributes:
        op: Which op runs another way: a key of `_OPS`, or empty.
        sources: Generated forwards: one, or one for eval and one for training.
        wrapped: Whether a blur stands before or behind the whole module.
        guarded: Methods that rebuild the module from its weights, and would lose a blur in it.
    """

    op: str = ""
    sources: tuple[str, ...] = ()
    wrapped: bool = False
    guarded: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpChange:
    """How the op of an instance changes: the stride that it keeps, and another max window."""

    stride: tuple[int, ...] = ()
    pool_kernel: tuple[int, ...] = ()


class Antialiased:
    """Mixin of every module that surgery changed; `isinstance(module, Antialiased)` finds them.

    Modifications of the host class:
    - `forward` alone; attributes, parameters, keys and other methods are the host's
    - children `aa_*` hold the blurs
    """

    _aa_host: type[nn.Module]
    _aa_recipe: Recipe

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if reduced[0] is not _newobj():
            return reduced
        return (_rebuild, (self._aa_host, self._aa_recipe, *reduced[1][1:]), *reduced[2:])


def _newobj() -> Any:
    """Return the constructor that `object.__reduce_ex__` names for protocol 2 and above."""
    return object().__reduce_ex__(2)[0]


def _rebuild(host: Any, recipe: Recipe, *args: Any) -> nn.Module:
    cls = antialiased_class(host, recipe)
    rebuilt: nn.Module = cls.__new__(cls, *args)
    return rebuilt


@cache
def antialiased_class(host: type[Any], recipe: Recipe) -> type[nn.Module]:
    """Return the subclass of `host` that does what `recipe` says."""
    namespace: dict[str, Any] = {
        "__module__": host.__module__,
        "__doc__": host.__doc__,
        "_aa_host": host,
        "_aa_recipe": recipe,
    }
    inner: Callable[..., Any] = host.forward
    if recipe.op:
        inner = _OPS[recipe.op]
    elif len(recipe.sources) == 1:
        inner = _compiled(recipe.sources[0])
    elif recipe.sources:
        namespace["_aa_eval_forward"] = _compiled(recipe.sources[0])
        namespace["_aa_training_forward"] = _compiled(recipe.sources[1])
        inner = _forward_by_mode
    if recipe.wrapped:
        namespace["_aa_inner_forward"] = inner
        inner = _wrapped_forward
    if inner is not host.forward:
        namespace["forward"] = inner
    namespace.update({method: partialmethod(_refuse, method) for method in recipe.guarded})
    return type(f"Antialiased{host.__name__}", (Antialiased, host), namespace)


def _compiled(source: str) -> Callable[..., Any]:
    return _forward_from_src(source, {})


def _forward_by_mode(self: Any, *args: Any, **kwargs: Any) -> Any:
    if self.training:
        return self._aa_training_forward(*args, **kwargs)
    return self._aa_eval_forward(*args, **kwargs)


def _wrapped_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if self.aa_before is not None:
        x = self.aa_before(x)
    y = self._aa_inner_forward(x, *args, **kwargs)
    return y if self.aa_after is None else self.aa_after(y)


def _conv(self: Any, input: Tensor) -> Tensor:
    """Convolve at the changed stride; padding and its mode stay."""
    padding = self.padding
    if self.padding_mode != "zeros":
        input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        padding = 0
    change = self.aa_op
    return _CONV[len(change.stride)](
        input, self.weight, self.bias, change.stride, padding, self.dilation, self.groups
    )


def _max_blur_pool(self: Any, input: Tensor) -> Tensor:
    """Take the maximum at stride 1, then blur and subsample."""
    return AF.by_image(lambda x: self.aa_blur(_dense_max(self, x)), input)


def _dense_max(self: Any, input: Tensor) -> Tensor:
    ndim = type_dimension(self)
    kernel, stride, padding, dilation = _window(self, ndim)
    small = self.aa_op.pool_kernel
    if small:
        return small_max_pool(input, small, kernel, stride, padding, self.ceil_mode)
    return AF.dense_max_pool(input, kernel, stride, padding, dilation, self.ceil_mode)


def small_max_pool(
    x: Tensor,
    small: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    ceil_mode: bool,
) -> Tensor:
    """Max-pool at stride 1 with the window `small` and no padding.

    Where that leaves fewer samples than the original pool gives, the map is extended by -inf.
    """
    pads: list[int] = []
    for n, k, m, s, p in zip(x.shape[2:], small, kernel, stride, padding, strict=True):
        out = pooled_size(n, m, s, p, ceil_mode)
        pads += [0, max(0, (out - 1) * s + 1 - (n - k + 1))]
    x = pad_axes(x, pads, "constant", -torch.inf)
    ones, zeros = (1,) * len(small), (0,) * len(small)
    return AF.dense_max_pool(x, small, ones, zeros, ones)


def _avg_pool(self: Any, input: Tensor) -> Tensor:
    """Take the average at stride 1."""
    kernel, stride, padding, _ = _window(self, type_dimension(self))
    return AF.dense_avg_pool(
        input,
        kernel,
        stride,
        padding,
        self.ceil_mode,
        self.count_include_pad,
        getattr(self, "divisor_override", None),
    )


def _window(pool: Any, ndim: int) -> tuple[tuple[int, ...], ...]:
    values = (pool.kernel_size, pool.stride, pool.padding, getattr(pool, "dilation", 1))
    return tuple(each_axis(value, ndim) or () for value in values)


def _replaced(self: Any, input: Tensor) -> Tensor:
    """Blur in the place of the average."""
    return self.aa_blur(input)


def _resized(self: Any, input: Tensor) -> Tensor:
    """Let torch low-pass before it resizes."""
    return F.interpolate(
        input,
        self.size,
        self.scale_factor,
        self.mode,
        self.align_corners,
        self.recompute_scale_factor,
        antialias=True,
    )


_OPS: dict[str, Callable[..., Tensor]] = {
    "conv": _conv,
    "max_pool": _max_blur_pool,
    "avg_pool": _avg_pool,
    "replace": _replaced,
    "resample": _resized,
}


def _refuse(self: Any, method: str, *args: Any, **kwargs: Any) -> None:
    raise UnsupportedModelError(
        f"{method}() of {self._aa_host.__name__} rebuilds it from its weights and would lose the "
        f"blur inside. Call remove_antialias(model), then {method}, then apply_antialias again."
    )
