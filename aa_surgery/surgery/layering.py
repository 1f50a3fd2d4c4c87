"""The classes of one module, from top to bottom: parametrizations, ours, the host's."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["antialiased_of", "relayered", "unlayered"]


def antialiased_of(module: nn.Module) -> Any:
    """Return the class that surgery gave a module, below what was put over it; None without."""
    return next((c for c in type(module).__mro__ if "_aa_host" in vars(c)), None)


def unlayered(cls: Any) -> Any:
    """Return the class below those that parametrizations put over it."""
    return unlayered(cls.__bases__[0]) if _is_layer(cls) else cls


def relayered(cls: Any, below: type) -> type:
    """Return `below`, with the layers over it that parametrizations put on `cls`.

    The layer must stay on top: `remove_parametrizations` takes the class below it.
    """
    if not _is_layer(cls):
        return below
    body = {n: v for n, v in vars(cls).items() if n not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (relayered(cls.__bases__[0], below),), body)


def _is_layer(cls: type) -> bool:
    return cls.__module__ == parametrize.__name__ and cls.__name__.startswith("Parametrized")
