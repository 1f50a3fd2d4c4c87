"""Which attributes a forward can read: the names in its code, and in that of all it can reach."""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Iterator
from functools import lru_cache
from itertools import dropwhile
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch import nn

from aa_surgery.sites.copies import PLAIN_KINDS, is_library
from aa_surgery.sites.linking import cell_contents, inner_function, is_foreign

__all__ = ["PARTS", "TENSORS", "Names", "functions_in", "names_read"]

Names = frozenset[str] | None
"""Names of attributes; None: it may read any."""

# by these a forward can reach attributes whose names its code does not say
_REFLECTING = frozenset("vars __dict__ locals eval exec dir attrgetter methodcaller".split())
PARTS = frozenset(
    "_modules children named_children modules named_modules get_submodule apply".split()
)
"""By these it reaches any part, without its name."""
TENSORS = frozenset(
    "_parameters _buffers parameters buffers named_parameters named_buffers state_dict"
    " get_parameter get_buffer".split()
)
"""By these it reaches any parameter or buffer."""


@lru_cache(maxsize=4096)
def names_read(classes: frozenset[type], forward: Any) -> Names:
    """Return the names of all attributes that a forward can read, of its module or of a part.

    Args:
        classes: The classes of the module, of its parts, and of what these hold: whose methods it
            can call.
        forward: The function that runs.
    """
    search = _Search(frozenset(b for cls in classes for b in cls.__mro__ if b not in _BARE))
    waiting: list[Any] = [forward, *search.called_by_syntax()]
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        if function is ANYTHING:
            return None
        if id(function) in seen:
            continue
        seen.add(id(function))
        held = [cell_contents(cell) for cell in function.__closure__ or ()]
        held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        waiting += [f for value in held for f in functions_in(value)]
        waiting += functions_in(inner_function(function))
        if is_foreign(function) and not function.__module__.startswith(_LAYERS):
            continue
        waiting += search.read_by(function)
        if search.names & _REFLECTING or _asks_by_a_computed_name(function.__code__):
            return None
    return frozenset(search.names)


# of containers, all parts count
_BARE = (object, nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LAYERS = "torch.nn.modules"


class _Search:
    """Looks names up wherever code that was reached could: in classes, and in modules."""

    def __init__(self, classes: frozenset[type]) -> None:
        self.names: set[str] = set()
        self._classes = classes
        self._spaces: dict[int, dict[str, Any]] = {}

    def called_by_syntax(self) -> Iterator[Any]:
        """Yield the methods of users' classes that no name stands for: `part[0]`, `x in part`."""
        for cls in self._classes:
            for name, value in {} if is_library(cls.__module__) else vars(cls).items():
                if name.startswith("__") and name not in _MAKING:
                    yield from functions_in(value)

    def read_by(self, function: types.FunctionType) -> Iterator[Any]:
        """Note the names in a function's code, and yield the functions that they can stand for."""
        yield from self._look_in(function.__globals__)
        for name in set(_names_in(function.__code__)) - self.names:
            self.names.add(name)
            for cls in self._classes:
                yield from functions_in(vars(cls).get(name))
            for space in list(self._spaces.values()):
                yield from self._found(space.get(name))
            if "." in name or name in sys.modules:  # imported within the function
                yield from self._found(sys.modules.get(name))

    def _look_in(self, space: dict[str, Any]) -> Iterator[Any]:
        """Look the names of so far up in a module, which code reaches by a name as well."""
        if id(space) in self._spaces:
            return
        self._spaces[id(space)] = space
        for name in list(self.names):
            yield from self._found(space.get(name))

    def _found(self, value: Any) -> Iterator[Any]:
        if type(value) is types.ModuleType:
            if not is_library(value.__name__):
                yield from self._look_in(vars(value))
        else:
            yield from functions_in(value)


_MAKING = ("__init__", "__new__", "__init_subclass__", "__repr__", "__setstate__", "__getstate__")


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
        for word in constant if isinstance(constant, tuple) else (constant,):
            if isinstance(word, str) and word.isidentifier():
                yield word


def _asks_by_a_computed_name(code: types.CodeType) -> bool:
    """Tell whether `getattr` is given a name that does not stand in the code, or is handed on.

    So is `hasattr`.
    """
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return _hands_getattr_on(code) or any(map(_asks_by_a_computed_name, inner))


def _hands_getattr_on(code: types.CodeType) -> bool:
    if _ASKING.isdisjoint((*code.co_names, *code.co_freevars, *code.co_varnames)):
        return False  # to take it apart would be slow
    steps = [i for i in dis.get_instructions(code) if i.opname not in _SILENT]
    for number, step in enumerate(steps):
        if step.argval not in _ASKING or not step.opname.startswith("LOAD_"):
            continue
        rest = steps[number + 1 :]
        if rest and rest[0].opname.startswith("LOAD_"):  # the object, or a path to it
            rest = list(dropwhile(lambda i: i.opname == "LOAD_ATTR", rest[1:]))
        if not rest or rest[0].opname != "LOAD_CONST" or not isinstance(rest[0].argval, str):
            return True
    return False


_ASKING = frozenset(("getattr", "hasattr"))
_SILENT = ("CACHE", "PUSH_NULL", "RESUME", "PRECALL", "EXTENDED_ARG", "NOP")


ANYTHING = object()
"""Stands for a function that may read any attribute."""
_WITHIN = ("__func__", "fget", "fset", "func", "__wrapped__", "dispatcher")


def functions_in(value: Any, depth: int = 3) -> Iterator[Any]:
    """Yield the functions in a value: a method, a property, a table's, an object's."""
    kind: Any = type(value)
    if kind is types.FunctionType:
        yield value
    elif kind is attrgetter or kind is methodcaller:
        yield ANYTHING
    elif kind in PLAIN_KINDS or isinstance(value, nn.Module | torch.Tensor) or not depth:
        return
    elif isinstance(value, dict | list | tuple | set | frozenset):
        for item in dict.values(value) if isinstance(value, dict) else value:
            yield from functions_in(item, depth - 1)
    elif kind.__module__ in ("builtins", "functools"):
        for part in _WITHIN:
            yield from functions_in(getattr(value, part, None), depth - 1)
    else:
        cls = value if isinstance(value, type) else kind
        if not (is_library(cls.__module__) or is_foreign(cls) or issubclass(cls, nn.Module)):
            for held in vars(cls).values():
                yield from functions_in(held, depth - 1)
