"""Which attributes a forward can read: the names in its code, and in that of all it can reach."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import dropwhile
from typing import Any

from torch import nn

from aa_surgery.sites.linking import cell_contents, inner_function, is_foreign

__all__ = ["PARTS", "TENSORS", "Names", "names_read", "own_classes"]

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
        classes: The class of the module, and those of its parts: whose methods it can call.
        forward: The function that runs.
    """
    seen: set[int] = set()
    names: set[str] = set()
    classes = frozenset(base for cls in classes for base in cls.__mro__ if base not in _BARE)
    waiting: list[Any] = [forward, *(f for cls in classes for f in _called_by_syntax(cls))]
    while waiting:
        function = waiting.pop()
        if id(function) in seen or not isinstance(function, types.FunctionType):
            continue
        seen.add(id(function))
        waiting += [cell_contents(cell) for cell in function.__closure__ or ()]
        waiting.append(inner_function(function))
        if is_foreign(function) and not function.__module__.startswith(_LAYERS):
            continue
        for name in _names_in(function.__code__):
            if name in names:
                continue
            names.add(name)
            waiting += _functions_called(name, classes, function.__globals__)
        if names & _REFLECTING or _asks_by_a_computed_name(function.__code__):
            return None
    return frozenset(names)


# of containers, all parts count
_BARE = (object, nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LAYERS = "torch.nn.modules"


def own_classes(cls: type) -> frozenset[type]:
    """Return the class, if it is a user's: a trace enters no method of a part of torch's."""
    return frozenset() if is_foreign(cls) else frozenset((cls,))


def _called_by_syntax(cls: type) -> Iterator[Any]:
    """Yield the methods of a user's class that no name stands for: `part[0]`, `for x in part`."""
    for name, value in {} if is_foreign(cls) else vars(cls).items():
        if name.startswith("__") and name not in _MAKING:
            yield from _functions_of(value)


_MAKING = ("__init__", "__new__", "__init_subclass__", "__repr__", "__setstate__", "__getstate__")


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant


def _asks_by_a_computed_name(code: types.CodeType) -> bool:
    """Tell whether `getattr` is given a name that does not stand in the code, or is handed on."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return _hands_getattr_on(code) or any(map(_asks_by_a_computed_name, inner))


def _hands_getattr_on(code: types.CodeType) -> bool:
    if "getattr" not in (*code.co_names, *code.co_freevars, *code.co_varnames):
        return False  # to take it apart would be slow
    steps = [i for i in dis.get_instructions(code) if i.opname not in _SILENT]
    for number, step in enumerate(steps):
        if step.argval != "getattr" or not step.opname.startswith("LOAD_"):
            continue
        rest = steps[number + 1 :]
        if rest and rest[0].opname.startswith("LOAD_"):  # the object, or a path to it
            rest = list(dropwhile(lambda i: i.opname == "LOAD_ATTR", rest[1:]))
        if not rest or rest[0].opname != "LOAD_CONST" or not isinstance(rest[0].argval, str):
            return True
    return False


_SILENT = ("CACHE", "PUSH_NULL", "RESUME", "PRECALL", "EXTENDED_ARG", "NOP")


def _functions_called(name: str, classes: Iterable[type], names: dict[str, Any]) -> Iterator[Any]:
    """Yield the functions that a name can stand for: of a class, of a module, in a module."""
    for cls in classes:
        yield from _functions_of(vars(cls).get(name))
    yield names.get(name)
    for held in names.values():
        if type(held) is types.ModuleType and not held.__name__.startswith(("torch", "numpy")):
            yield vars(held).get(name)


def _functions_of(value: Any) -> Iterator[Any]:
    """Yield the functions within a class's attribute: a method, a property, a cached one."""
    if isinstance(value, types.FunctionType):
        yield value
    elif value is not None:
        yield from (getattr(value, part, None) for part in ("__func__", "fget", "fset", "func"))
