"""Helpers that decide on sizes: functions and methods that a trace records as one call."""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

__all__ = [
    "SELF",
    "Leaf",
    "called_function",
    "deciding_function",
    "in_static_method",
    "recorded_calls",
]

SELF = "aa_self"
"""The attribute that stands for the scope itself in a graph: the owner of a method's call."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """A function of a module's namespace, or of a class: where callers look it up."""

    holder: Any
    name: str

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Leaf) and self.holder is other.holder
        return same and self.name == other.name  # type: ignore[attr-defined]

    @property
    def is_static(self) -> bool:
        """Whether it is a static method, of whatever class."""
        return isinstance(self.holder, type) and isinstance(
            vars(self.holder)[self.name], staticmethod
        )

    @property
    def is_method(self) -> bool:
        """Whether it is a method of the scope."""
        return isinstance(self.holder, type) and not self.is_static


def deciding_function(error: BaseException, scope: nn.Module) -> Leaf | None:
    """Return the innermost function or method of `scope` on the error's way, its forward aside."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for caller, frame in reversed(list(itertools.pairwise(frames))):
        if _is_ours(frame):
            continue
        holders: list[tuple[Any, Mapping[str, Any]]] = [(caller.f_globals, caller.f_globals)]
        holders += [(cls, vars(cls)) for cls in type(scope).__mro__]
        for holder, names in holders:
            for name, value in names.items():
                if isinstance(value, types.FunctionType) and value.__code__ is frame.f_code:
                    return None if name == "forward" else Leaf(holder, name)
        static = _static_method(caller, frame)
        if static is not None:
            return static
    return None


def in_static_method() -> bool:
    """Tell whether the host's code that runs now is a static method's, which has no module."""
    frame: types.FrameType | None = inspect.currentframe()
    while frame is not None and _is_ours(frame):
        frame = frame.f_back
    caller = None if frame is None else frame.f_back
    return caller is not None and _static_method(caller, frame) is not None


def _is_ours(frame: types.FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(("torch.", "aa_surgery"))


def _static_method(caller: types.FrameType, frame: types.FrameType | None) -> Leaf | None:
    """Return what runs in `frame`, if it is a static method of a class that `caller` can name."""
    code = None if frame is None else frame.f_code
    for holder in caller.f_globals.values():
        if isinstance(holder, type):
            for name, value in vars(holder).items():
                if isinstance(value, staticmethod) and _code(value) is code:
                    return Leaf(holder, name)
    return None


def _code(function: staticmethod[..., Any]) -> types.CodeType | None:
    return getattr(function.__func__, "__code__", None)


@contextmanager
def recorded_calls(leaves: Iterable[Leaf], scope: nn.Module) -> Iterator[None]:
    """Let each of `leaves` record itself as one call, when it is given a value of the graph."""
    with ExitStack() as stack:
        for leaf in leaves:
            if leaf.is_method:
                original = vars(leaf.holder)[leaf.name]
                setattr(leaf.holder, leaf.name, _recorded_method(original, leaf.name, scope))
                stack.callback(setattr, leaf.holder, leaf.name, original)
            elif leaf.is_static:
                original = vars(leaf.holder)[leaf.name]
                setattr(leaf.holder, leaf.name, staticmethod(_recorded(original.__func__)))
                stack.callback(setattr, leaf.holder, leaf.name, original)
            else:
                original = leaf.holder[leaf.name]
                leaf.holder[leaf.name] = _recorded(original)
                stack.callback(leaf.holder.__setitem__, leaf.name, original)
        yield


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        tracer = _tracer_of(args, kwargs)
        if tracer is None:
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return record


def _recorded_method(method: Callable[..., Any], name: str, scope: nn.Module) -> Any:
    def record(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tracer = _tracer_of(args, kwargs)
        if tracer is None or self is not scope:
            return method(self, *args, **kwargs)
        owner = tracer.create_proxy("get_attr", SELF, (), {})
        return tracer.create_proxy("call_method", name, (owner, *args), kwargs)

    return record


def _tracer_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.proxy.TracerBase | None:
    proxies = (a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
    found = next(proxies, None)
    return None if found is None else found.tracer


def called_function(node: fx.Node, scope: nn.Module) -> types.FunctionType | None:
    """Return the Python function that a node calls as a leaf, if it is one."""
    target: Any = node.target
    if node.op == "call_method":
        owner = node.args[0] if node.args else None
        if not isinstance(owner, fx.Node) or owner.target != SELF:
            return None
        target = getattr(type(scope), target)
    if not isinstance(target, types.FunctionType):
        return None
    return None if target.__module__.startswith(("torch.", "aa_surgery.")) else target
