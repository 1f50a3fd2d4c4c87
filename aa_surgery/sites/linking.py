"""Run a user's functions with other globals, so that calls are recorded and nothing is written.

Helpers are found in the globals of the function that calls them. So a forward is traced as a copy
that has a namespace in their stead: functions read from it are copies with namespaces of their own,
those that a trace shall not enter record their call, and what is written stays in the namespace.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Collection, Iterator
from functools import cache
from typing import Any

import torch
from torch import fx

from aa_surgery.sites.copies import Copies, KeptClasses, is_library, proxies_in

__all__ = ["Linker", "inner_function", "is_foreign"]

_IMPORTING = ("__name__", "__package__", "__spec__", "__file__", "__builtins__")
_FOREIGN = ("torch", "aa_surgery", "builtins", "math", "typing")


CACHED = functools._lru_cache_wrapper


class Linker:
    """Copies of functions, in which those with one of the codes `leaves` record themselves.

    Args:
        leaves: Codes of the functions that become one call in the graph.
    """

    def __init__(self, leaves: Collection[types.CodeType] = ()) -> None:
        self.leaves = leaves
        self._linked: dict[int, Any] = {}
        self._namespaces: dict[int, _Namespace] = {}
        self._cells: dict[int, types.CellType] = {}
        self._kept: list[Any] = []  # so that no id is used again
        self._copies = Copies(_cloned)
        self._classes = KeptClasses()

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
            self._copy(function, entered)
        return self._linked[key]

    def seen(self, value: Any) -> Any:
        """Return what stands for a value that a user's function reads from around itself."""
        kind = type(value)
        if kind is types.FunctionType:
            return self.linked(value)
        if kind is CACHED:
            return self.linked(value.__wrapped__)  # what a trace computes, nobody shall be given
        if kind is types.ModuleType:
            return value if is_library(value.__name__) else self._module(value)
        if isinstance(value, type):
            self._classes.note(value)
            return _with_recorded(value, self.leaves) if self.leaves else value
        return self._copies.of(value)

    def put_back(self) -> None:
        """Put the classes back that were written to."""
        self._classes.put_back()

    def note_class(self, kind: type) -> None:
        """Remember a class, to put it back."""
        self._classes.note(kind)

    def written(self) -> Iterator[fx.Proxy]:
        """Yield the values of the graph that were left in globals and closures."""
        held = [list(space.values()) for space in self._namespaces.values()]
        cells = [cell_contents(cell) for cell in self._cells.values()]
        yield from proxies_in([*held, cells, self._copies.made])

    def _copy(self, function: types.FunctionType, entered: bool) -> None:
        key = id(function)
        if function.__code__ in self.leaves and not entered:
            self._linked[key] = _recorded(function)
            return
        foreign = is_foreign(function)
        cells = function.__closure__ or ()
        if foreign and not any(_is_own(cell_contents(cell)) for cell in cells):
            return
        copy = self._linked[key] = types.FunctionType(
            function.__code__,
            function.__globals__ if foreign else self._namespace(function.__globals__),
            function.__name__,
            function.__defaults__,
            tuple(self._cell(cell, foreign) for cell in cells),
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__dict__.update(function.__dict__)

    def _cell(self, cell: types.CellType, foreign: bool) -> types.CellType:
        """Return a cell of our own, so that what is assigned to a variable around stays there."""
        if foreign and not _is_own(cell_contents(cell)):
            return cell
        if id(cell) not in self._cells:
            self._kept.append(cell)
            made = self._cells[id(cell)] = types.CellType()
            if is_filled(cell):
                made.cell_contents = self.seen(cell.cell_contents)
        return self._cells[id(cell)]

    def _module(self, module: types.ModuleType) -> Any:
        if id(module) not in self._linked:
            self._linked[id(module)] = _LinkedModule(module, self._namespace(vars(module)))
        return self._linked[id(module)]

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
            function = function.__wrapped__ if isinstance(function, CACHED) else function
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
        if isinstance(getattr(value, "__func__", value), types.FunctionType | CACHED)
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
        if value is math:
            return _RecordedMath
        if type(value) is types.BuiltinFunctionType and value.__module__ == "math":
            return getattr(_RecordedMath, value.__name__)
        return value if name.startswith("__") else self._linker.seen(value)


class _LinkedModule(types.ModuleType):
    """A user's module, whose attributes are read and written in a namespace of ours."""

    def __init__(self, module: types.ModuleType, space: _Namespace) -> None:
        super().__init__(module.__name__, module.__doc__)
        vars(self).clear()
        vars(self)["_aa_space"] = module, space

    def __getattr__(self, name: str) -> Any:
        module, space = vars(self)["_aa_space"]
        try:
            return space[name]
        except KeyError:
            return getattr(module, name)  # one that its own `__getattr__` gives

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)["_aa_space"][1][name] = value


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
    return cell.cell_contents if is_filled(cell) else None


def is_filled(cell: types.CellType) -> bool:
    """Tell whether anything was assigned to a closure's variable."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _cloned(value: Any) -> Any:
    """Return a copy of a tensor that a function could write to; else the value."""
    if type(value) is not torch.Tensor:
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _is_own(value: Any) -> bool:
    """Whether a closure's value is a function that leads to a user's function."""
    return isinstance(value, types.FunctionType) and not is_foreign(inner_function(value))


def inner_function(function: Any) -> Any:
    """Return the function within decorators that say what they wrap (`functools.wraps`)."""
    seen = 0
    while hasattr(function, "__wrapped__") and seen < 16:
        function, seen = function.__wrapped__, seen + 1
    return function


def _recorded(function: Any) -> Callable[..., Any]:
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
