"""The forward that runs when a module is called: its class's, or one set on the instance."""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from aa_surgery.sites.kinds import is_container, own_forward

__all__ = ["brings_forward", "forward_of", "instance_forward", "is_own_method"]


def instance_forward(module: nn.Module) -> Any:
    """Return the forward that was set on the module itself; None where its class's runs."""
    return module.__dict__.get("forward")


def is_own_method(module: nn.Module, forward: Any) -> bool:
    """Tell whether a forward set on a module is another method of its class (`forward_fuse`)."""
    return (
        isinstance(forward, types.MethodType)
        and forward.__self__ is module
        and getattr(type(module), forward.__name__, None) is forward.__func__
    )


def forward_of(module: nn.Module) -> Any:
    """Return the function that runs, not bound to the module."""
    own = instance_forward(module)
    if own is not None and is_own_method(module, own):
        return own.__func__
    return type(module).forward


def brings_forward(module: nn.Module) -> bool:
    """Tell whether the module has a forward to be traced, of a user's class or its own."""
    return is_container(module) or own_forward(module) or "forward" in module.__dict__
