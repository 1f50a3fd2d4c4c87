"""Forwards set on one instance: `module.forward = ...`, which hides that of the class."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from inspect import getattr_static
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from aa_surgery.sites.linking import cell_contents

__all__ = [
    "REPLACED_FORWARD",
    "bound_methods",
    "forward_of",
    "is_own_method",
    "names_in",
    "other_forwards",
    "replaces_forward",
]

REPLACED_FORWARD = "its forward was set on the instance, and what that does is not known"
_DEPTH = 4  # of wrappers around a forward


def forward_of(module: nn.Module) -> Any:
    """Return the function that runs when the module is called, not bound to it."""
    own: Any = module.__dict__.get("forward")
    return own.__func__ if is_own_method(module, own) else type(module).forward


def other_forwards(module: nn.Module) -> list[str]:
    """Return the methods of its class that `fuse()` may set as the forward of a module.

    ultralytics sets `forward_fuse`. Of other names it is not known that anybody does, and to trace
    a method is to run it. What the forward itself calls is no other one.
    """
    cls = type(module)
    called = set(names_in(forward_of(module))) | {forward_of(module).__name__}
    names = [name for name in dir(cls) if name.startswith(_FUSED) and name not in called]
    return [name for name in names if type(getattr_static(cls, name)) is FunctionType]


_FUSED = "forward_fuse"


def is_own_method(module: nn.Module, forward: Any) -> bool:
    """Tell whether a forward set on a module is a method of its class (`forward_fuse`)."""
    return (
        isinstance(forward, MethodType)
        and forward.__self__ is module
        and getattr(type(module), forward.__name__, None) is forward.__func__
    )


def bound_methods(module: nn.Module, cls: type) -> dict[str, str]:
    """Return the attributes of an instance that are methods of `cls`, bound to it, by their names.

    accelerate's hooks, for example, keep the forward there and call it from the one that they set.
    """
    return {
        name: value.__name__
        for name, value in vars(module).items()
        if isinstance(value, MethodType)
        and value.__self__ is module
        and getattr(cls, value.__name__, None) is value.__func__
    }


def replaces_forward(module: nn.Module) -> bool:
    """Tell whether an instance has a forward that does not lead to a method of its class.

    One that calls what the instance keeps (`module._old_forward`) does; one that holds the method
    itself goes past the class that surgery gives the module.
    """
    forward = vars(module).get("forward")
    if forward is None or is_own_method(module, forward):
        return False
    kept = {n for n, method in bound_methods(module, type(module)).items() if method == "forward"}
    return not kept & set(names_in(forward))


def names_in(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the names in the code of a callable, and in that of the functions that it holds."""
    function = getattr(value, "__func__", value)
    held: list[Any] = []
    if isinstance(function, partial):
        held = [function.func, *function.args]
    elif isinstance(function, FunctionType):
        yield from function.__code__.co_names
        held = list(map(cell_contents, function.__closure__ or ()))
    for other in held if depth else ():
        if callable(other) and not isinstance(other, nn.Module | type):
            yield from names_in(other, depth - 1)
