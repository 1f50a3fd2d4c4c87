"""Forwards set on one instance: `module.forward = ...`, which hides that of the class."""

from __future__ import annotations

from types import MethodType

from torch import nn

__all__ = ["REPLACED_FORWARD", "bound_forwards", "replaces_forward"]

REPLACED_FORWARD = "its forward was set on the instance, and what that does is not known"


def bound_forwards(module: nn.Module, cls: type) -> list[str]:
    """Return the attributes of an instance that are the forward of `cls`, bound to it.

    accelerate's hooks, for example, keep it there and call it from the one that they set.
    """
    own = getattr(cls, "forward", None)
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, MethodType) and value.__self__ is module and value.__func__ is own
    ]


def replaces_forward(module: nn.Module) -> bool:
    """Tell whether an instance has a forward that does not call that of its class."""
    return "forward" in vars(module) and not bound_forwards(module, type(module))
