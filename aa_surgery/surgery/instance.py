"""Forwards set on one instance, before the surgery or after it: they are the ones that run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import fx, nn

from aa_surgery.errors import HalfTreatedError
from aa_surgery.sites.instance import bound_methods, names_in
from aa_surgery.sites.linking import cell_contents

__all__ = ["around", "is_around", "rebind", "require_original", "require_run"]

_DEPTH = 4  # of wrappers around a forward


def rebind(module: nn.Module, old: type, new: type) -> None:
    """Let the methods of its class that an instance keeps be those of its new class."""
    for name, method in bound_methods(module, old).items():
        module.__dict__[name] = MethodType(getattr(new, method), module)


def around(module: nn.Module, names: dict[str, str]) -> Any:
    """Return a forward for `module` with blurs around the one that was set on it."""
    return partial(_run_around, module, module.__dict__["forward"], names)


def _run_around(
    module: Any, inner: Any, names: dict[str, str], first: Any, *args: Any, **kwargs: Any
) -> Any:
    if "aa_before" in names:
        first = getattr(module, names["aa_before"])(first)
    output = inner(first, *args, **kwargs)
    return getattr(module, names["aa_after"])(output) if "aa_after" in names else output


def is_around(forward: Any) -> bool:
    """Tell whether `around` made this forward."""
    return isinstance(forward, partial) and forward.func is _run_around


def require_run(module: Any, cls: type) -> None:
    """Refuse to run a module on which a forward was set that goes past the one of `cls`.

    Raises:
        HalfTreatedError: Nothing of the new forward leads to it.
    """
    forward = module.__dict__["forward"]
    if is_around(forward) or any(_leads(value, module, cls) for value in vars(module).values()):
        return
    # one that computes what torch's would by the method that surgery changes (mmcv's ConvModule)
    if "_conv_forward" in vars(cls) and "_conv_forward" in names_in(forward):
        return
    raise HalfTreatedError(
        f"a {type(module).__name__} was given another forward after the surgery, which goes past "
        "its anti-aliasing: its maps would have another size, or alias. Call "
        "remove_antialias(model), then set the forward, then apply_antialias(model)."
    )


def require_original(module: Any, holder: Any, name: str, original: Any) -> None:
    """Refuse to run a module of which a function was replaced after the surgery.

    A `GraphModule` that compiles itself again has the same code. What stands around the original
    and says so (`functools.wraps`) is let be: torch.fx puts it there while it traces.

    Raises:
        HalfTreatedError: It was replaced by one with other code.
    """
    held: Any = getattr(holder, name, None)
    code = getattr(held, "__code__", None)
    while hasattr(held, "__wrapped__"):
        held = held.__wrapped__
        if held is getattr(original, "__func__", original):
            return
    if code == getattr(original, "__code__", None) and isinstance(module, fx.GraphModule):
        return
    raise HalfTreatedError(
        f"{name} of {holder.__name__} was replaced after the surgery, which runs it as it was in "
        f"{type(module).__name__}. Call remove_antialias(model), then apply_antialias(model) again."
    )


def _leads(value: Any, module: Any, cls: type, depth: int = _DEPTH) -> bool:
    """Tell whether a callable is the forward of `cls` for `module`, or holds it."""
    if isinstance(value, MethodType) and value.__self__ is module and _is_forward(value, cls):
        return True
    return depth > 0 and any(_leads(held, module, cls, depth - 1) for held in _held(value))


def _is_forward(method: MethodType, cls: Any) -> bool:
    if method.__func__ in (cls.forward, vars(cls).get(method.__name__)):
        return True  # the forward, or another one that was rewritten like it
    # of torch's convolutions, what changes is a method that their own forward calls
    inherited = "forward" not in vars(cls) and "_conv_forward" in vars(cls)
    return inherited and method.__func__ is cls._aa_host.forward


def _held(value: Any) -> Iterator[Any]:
    if isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    function = getattr(value, "__func__", value)
    if isinstance(function, FunctionType):
        yield from map(cell_contents, function.__closure__ or ())
        yield from function.__defaults__ or ()
        names = function.__code__.co_names
        yield from (function.__globals__[name] for name in names if name in function.__globals__)
    if hasattr(value, "__wrapped__"):
        yield value.__wrapped__
