"""What a module does to a map, found by running a copy of it; its class's name says nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["probed_role"]

_LARGEST = 1 << 20  # tensor elements; what holds more is no norm and no activation
_PLAIN = (bool, int, float, str, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SIDES = (11, 9, 7)  # px, each a size that widths do not have
_WIDTH = 8

_known: dict[Hashable, str] = {}


def probed_role(module: nn.Module, channels_last: bool = False) -> str:
    """Return `"norm"`, `"activation"` or `"transparent"` of what acts at each position alone.

    A small copy runs on random maps that agree at one position and differ elsewhere, in the batch
    too: only if the outputs agree there as well does $f(x)[::s] = f(x[::s])$ hold, which is what
    lets an op of stride 1 stand in front. Of such modules a norm is one that is affine in each
    channel, or mixes the channels of a position; an activation is not.

    Args:
        module: Any module; neither run nor changed itself.
        channels_last: Whether the map is `(N, *spatial, C)`.

    Returns:
        The role; `""` for what looks at other positions, and for what does not run on a map.
    """
    key = _key(module, channels_last)
    if key is None:
        return ""
    if key not in _known:
        _known[key] = _probe(module, channels_last)
    return _known[key]


def _key(module: nn.Module, channels_last: bool) -> Hashable | None:
    """Return what the role depends on: classes and configuration, whatever the width."""
    facts: list[Any] = [channels_last]
    elements = 0
    for part in module.modules():
        tensors = list(_tensors(part))
        elements += sum(t.numel() for t in tensors)
        if elements > _LARGEST:
            return None
        widths = {n for t in tensors for n in t.shape}
        facts.append(type(part))
        facts += [(t.dtype, tuple(n == 1 for n in t.shape)) for t in tensors]
        for name, value in vars(part).items():
            if name[0] != "_" and name != "training" and not isinstance(value, Tensor):
                facts.append((name, _fact(value, widths)))
    return tuple(facts)


def _fact(value: Any, widths: set[int]) -> Any:
    if isinstance(value, _PLAIN):
        return "width" if type(value) is int and value in widths else (type(value), value)
    if isinstance(value, (tuple, list)):
        return tuple(_fact(item, widths) for item in value)
    try:
        hash(value)
    except TypeError:
        return type(value)
    return value


def _tensors(part: nn.Module) -> Iterator[Tensor]:
    for held in (part._parameters, part._buffers, vars(part)):
        yield from (value for value in held.values() if isinstance(value, Tensor))


def _probe(module: nn.Module, channels_last: bool) -> str:
    with torch.device("cpu"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for axes, width in itertools.product((2, 1, 3), _widths(module)):
            try:
                return _role(_Map(_copy(module), axes, width, channels_last))
            except Exception:  # a module may answer what it was not made for with anything
                continue
    return ""


def _widths(module: nn.Module) -> list[int]:
    """Return the numbers of channels that the module may ask for, the likeliest first."""
    found = [n for part in module.modules() for t in _tensors(part) for n in t.shape if n > 1]
    found += [
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if type(value) is int and 1 < value <= 4096 and name[0] != "_"
    ]
    return [*list(dict.fromkeys(found))[:4], _WIDTH]


def _copy(module: nn.Module) -> Any:
    """Return a copy in eval mode on the CPU, hooks aside, with random positive float64 weights."""
    copy = module.__class__.__new__(module.__class__)
    attributes = {
        name: type(value)(value) if type(value) in (list, dict) else value
        for name, value in vars(module).items()
    }
    attributes.update({name: {} for name in _HOOKS if name in attributes}, training=False)
    attributes["_parameters"] = {n: _filled(p) for n, p in module._parameters.items()}
    attributes["_buffers"] = {n: _filled(b) for n, b in module._buffers.items()}
    attributes["_modules"] = {
        n: None if child is None else _copy(child) for n, child in module._modules.items()
    }
    copy.__dict__.update(
        {n: _filled(v) if isinstance(v, Tensor) else v for n, v in attributes.items()}
    )
    return copy


def _filled(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    if tensor.is_floating_point():
        values = torch.rand(tensor.shape, dtype=torch.float64) + 0.5
    elif tensor.is_meta:
        values = torch.zeros(tensor.shape, dtype=tensor.dtype)
    else:
        values = tensor.detach().cpu().clone()
    return nn.Parameter(values, False) if isinstance(tensor, nn.Parameter) else values


@dataclass
class _Map:
    """A module, and the kind of map that it is asked about."""

    module: Callable[[Tensor], Any]
    axes: int
    width: int
    channels_last: bool

    def noise(self) -> Tensor:
        return torch.randn(2, self.width, *_SIDES[: self.axes], dtype=torch.float64) * 2

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output for `(N, C, *spatial)`, in that layout."""
        x = x.clone()
        y = self.module(x.movedim(1, -1).contiguous() if self.channels_last else x)
        if not isinstance(y, Tensor) or y.ndim != x.ndim:
            raise TypeError(f"the output is no map but {type(y).__name__}")
        return y.movedim(-1, 1) if self.channels_last else y


def _role(f: _Map) -> str:
    x, other = f.noise(), f.noise()
    y = f(x)
    if y.shape[2:] != x.shape[2:] or y.shape[0] != x.shape[0]:
        return ""
    every_other: Any = (slice(None), slice(None), *[slice(None, None, 2)] * f.axes)
    if not _close(f(x[every_other]), y[every_other]):
        return ""
    for position in ((0,) * f.axes, tuple(n // 2 for n in x.shape[2:])):
        here: Any = (0, slice(None), *position)
        changed = other.clone()
        changed[here] = x[here]
        if not _close(f(changed)[here], y[here]):
            return ""
    if y.shape != x.shape:
        return "activation"  # gated linear units
    if _close(y, x):
        return "transparent"
    affine = _close(f((x + other) / 2), (y + f(other)) / 2)
    changed = other.clone()
    changed[:, 0] = x[:, 0]
    if _close(f(changed)[:, 0], y[:, 0]):
        return "norm" if affine else "activation"
    return "" if affine else "norm"


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(
        one.double(), other.double(), rtol=1e-4, atol=1e-5
    )
