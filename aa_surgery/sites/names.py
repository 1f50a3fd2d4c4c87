"""Which attributes a forward can read: the names in its code, and in that of all it can reach."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from functools import lru_cache
from itertools import dropwhile
from typing import Any

from aa_surgery.sites.linking import cell_contents, inner_function, is_foreign

__all__ = ["Names", "names_read"]

Names = frozenset[str] | None
"""Names of attributes; None: it may read any."""

# by these a forward can reach attributes whose names its code does not say
_REFLECTING = frozenset(
    "vars __dict__ _modules _parameters _buffers children named_children modules "
    "named_modules get_submodule locals eval exec dir attrgetter methodcaller".split()
)


@lru_cache(maxsize=4096)
def names_read(cls: Any, forward: Any) -> Names:
    """Return the names of all attributes that `forward`, of the class `cls`, can read."""
    seen: set[int] = set()
    names: set[str] = set()
    waiting: list[Any] = [forward]
    while waiting:
        function = waiting.pop()
        if id(function) in seen or not isinstance(function, types.FunctionType):
            continue
        seen.add(id(function))
        waiting += [cell_contents(cell) for cell in function.__closure__ or ()]
        waiting.append(inner_function(function))
        if is_foreign(function):
            continue
        for name in _names_in(function.__code__):
            if name in names:
                continue
            names.add(name)
            waiting += _functions_called(name, cls, function.__globals__)
        if names & _REFLECTING or _asks_by_a_computed_name(function.__code__):
            return None
    return frozenset(names)


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant


def _asks_by_a_computed_name(code: types.CodeType) -> bool:
    """Tell whether `getattr` is given a name that does not stand in the code, or is handed on."""
    steps = [i for i in dis.get_instructions(code) if i.opname not in _SILENT]
    for number, step in enumerate(steps):
        if step.argval != "getattr" or not step.opname.startswith("LOAD_"):
            continue
        rest = steps[number + 1 :]
        if rest and rest[0].opname.startswith("LOAD_"):  # the object, or a path to it
            rest = list(dropwhile(lambda i: i.opname == "LOAD_ATTR", rest[1:]))
        if not rest or rest[0].opname != "LOAD_CONST" or not isinstance(rest[0].argval, str):
            return True
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return any(map(_asks_by_a_computed_name, inner))


_SILENT = ("CACHE", "PUSH_NULL", "RESUME", "PRECALL", "EXTENDED_ARG", "NOP")


def _functions_called(name: str, cls: type, names: dict[str, Any]) -> list[Any]:
    """Return the functions that a name can stand for: of the class, of a module, in a module."""
    found: list[Any] = []
    for base in cls.__mro__:
        value = None if is_foreign(base) else vars(base).get(name)
        if isinstance(value, property):
            found += [value.fget, value.fset]
        elif value is not None:
            found.append(getattr(value, "__func__", value))
    found.append(names.get(name))
    for held in names.values():
        if type(held) is types.ModuleType and not held.__name__.startswith(("torch", "numpy")):
            found.append(vars(held).get(name))
    return found
