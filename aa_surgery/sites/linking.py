"""Run a user's functions with other globals, so that calls are recorded and nothing is written.

Helpers are found in the globals of the function that calls them. So a forward is traced as a copy
that has a namespace in their stead: functions read from it are copies with namespaces of their own,
those that a trace shall not enter record their call, and what is written stays in the namespace.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

from torch import fx

__all__ = ["Linker", "inner_function", "is_foreign"]

_CONTAINERS = (dict, list, set)
_IMPORTING = ("__name__", "__package__", "__spec__", "__file__", "__builtins__")
_FOREIGN = ("torch", "aa_surgery", "builtins", "math", "typing")


class Linker:
    """Copies of functions, in which those with one of the codes `leaves` record themselves.

    Args:
        leaves: Codes of the functions that become one call in the graph.
    """

    def __init__(self, leaves: Collection[types.CodeType] = ()) -> None:
        self.leaves = leaves
        self._linked: dict[int, Any] = {}
        self._namespaces: dict[int, _Namespace] = {}
        self._kept: list[Any] = []  # so that no id is used again

    def linked(self, function: Any, entered: bool = False) -> Any:
        """Return the copy of a Python function; of one of torch, or of ours, the very function.

        Args:
            function: The function.
            entered: Whether it is entered even though it is a leaf, or torch's (a decorator's).
        """
        if not isinstance(function, types.FunctionType):
            return function
        key = id(function)
        if key not in self._linked:
            self._kept.append(function)
            self._linked[key] = function  # a function that holds itself
            self._linked[key] = self._copy(function, entered)
        return self._linked[key]

    def _copy(self, function: types.FunctionType, entered: bool) -> Any:
        if function.__code__ in self.leaves and not entered:
            return _recorded(function)
        foreign = is_foreign(function)
        held = [cell_contents(cell) for cell in function.__closure__ or ()]
        cells = tuple(
            types.CellType(self.linked(value)) if _is_own(value) else cell
            for cell, value in zip(function.__closure__ or (), held, strict=True)
        )
        if foreign and cells == (function.__closure__ or ()):
            return function
        space = function.__globals__ if foreign else self._namespace(function.__globals__)
        copy = types.FunctionType(
            function.__code__, space, function.__name__, function.__defaults__, cells
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__dict__.update(function.__dict__)
        return copy

    def _namespace(self, names: dict[str, Any]) -> _Namespace:
        space = self._namespaces.get(id(names))
        if space is None:
            space = self._namespaces[id(names)] = _Namespace(names, self)
        return space

    def methods(self, instance: Any, self_name: str) -> dict[str, Any]:
        """Return what stands for the methods of an instance, by name.

        Args:
            instance: What they are bound to.
            self_name: The attribute that stands for it in a graph.
        """
        found: dict[str, Any] = {}
        for name, value in _methods_of(instance.__class__):
            function = getattr(value, "__func__", value)
            if isinstance(value, staticmethod):
                found[name] = self.linked(function)
            elif function.__code__ in self.leaves:
                found[name] = _recorded_method(function, name, instance, self_name)
            else:
                found[name] = types.MethodType(self.linked(function), instance)
        return found


@cache
def _methods_of(cls: Any) -> tuple[tuple[str, Any], ...]:
    """Return the functions and static methods that a user's class brings, `forward` aside."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        for name, value in {} if is_foreign(base) else vars(base).items():
            found.setdefault(name, value)
    found.pop("forward", None)
    return tuple(
        (name, value)
        for name, value in found.items()
        if isinstance(getattr(value, "__func__", value), types.FunctionType)
        and not isinstance(value, classmethod)
        and not name.startswith("__")
    )


class _Namespace(dict[str, Any]):
    """The globals of a module, read through a linker; what is written stays here."""

    def __init__(self, names: dict[str, Any], linker: Linker) -> None:
        # what the interpreter itself reads, past `__getitem__`
        super().__init__({name: names[name] for name in _IMPORTING if name in names})
        self._names, self._linker = names, linker

    def __getitem__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        value = self._names[name]
        kind = type(value)
        if kind is types.FunctionType:
            return self._linker.linked(value)
        if value is math:
            return _RecordedMath
        if kind is types.BuiltinFunctionType and value.__module__ == "math":
            return getattr(_RecordedMath, value.__name__)
        if isinstance(value, type) and self._linker.leaves:
            return _with_recorded(value, self._linker.leaves)
        if kind in _CONTAINERS and not name.startswith("__"):
            self[name] = value.copy()
            return super().__getitem__(name)
        return value


def _with_recorded(cls: Any, leaves: Collection[types.CodeType]) -> Any:
    """Return a class in whose stead the static methods that are leaves record themselves."""
    static = {
        name: staticmethod(_recorded(value.__func__))
        for name, value in vars(cls).items()
        if isinstance(value, staticmethod) and getattr(value.__func__, "__code__", None) in leaves
    }
    return type(cls)(cls.__name__, (cls,), static) if static else cls


def is_foreign(thing: Any) -> bool:
    """Tell whether a function or class is torch's, or ours."""
    return str(getattr(thing, "__module__", "") or "").partition(".")[0] in _FOREIGN


def cell_contents(cell: types.CellType) -> Any:
    """Return what a closure's cell holds; None where it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_own(value: Any) -> bool:
    """Whether a closure's value is a function that leads to a user's function."""
    return isinstance(value, types.FunctionType) and not is_foreign(inner_function(value))


def inner_function(function: Any) -> Any:
    """Return the function within decorators that say what they wrap (`functools.wraps`)."""
    seen = 0
    while hasattr(function, "__wrapped__") and seen < 16:
        function, seen = function.__wrapped__, seen + 1
    return function


def _recorded(function: types.FunctionType) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        tracer = tracer_of(args, kwargs)
        if tracer is None:
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return record


def tracer_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the tracer of the first value of a graph among arguments; None if there is none."""
    proxies = (a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
    found = next(proxies, None)
    return None if found is None else found.tracer


def _recorded_math(function: Callable[..., Any]) -> Any:
    def record(*args: Any) -> Any:
        tracer = tracer_of(args, {})
        if tracer is None:
            return function(*args)
        return tracer.create_proxy("call_function", function, args, {})

    return staticmethod(record)


_RecordedMath = type(
    "math",
    (),
    {
        name: _recorded_math(held) if callable(held) else held
        for name, held in vars(math).items()
        if not name.startswith("_")
    },
)


def _recorded_method(method: Any, name: str, owner: Any, self_name: str) -> Any:

    def record(*args: Any, **kwargs: Any) -> Any:
        tracer = tracer_of(args, kwargs)
        if tracer is None:
            return method(owner, *args, **kwargs)
        me = tracer.create_proxy("get_attr", self_name, (), {})
        return tracer.create_proxy("call_method", name, (me, *args), kwargs)

    return record
