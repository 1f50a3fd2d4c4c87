"""Whether a container is called, where the forward around it could not be traced.

The parts of an `nn.Sequential` follow each other only if it is called. Many forwards take them one
by one instead, and give one what an earlier one made (`for layer in self.model: x = layer(...)`).
"""

from __future__ import annotations

import ast
from functools import lru_cache
from types import FunctionType
from typing import Any

from aa_surgery.sites.code import SourceError, definition_of
from aa_surgery.sites.linking import inner_function, is_foreign

__all__ = ["is_called_by"]


def is_called_by(cls: Any, name: str) -> bool:
    """Tell whether a method of a class calls the attribute `name`, as far as its source says.

    A method whose source cannot be read is taken to.
    """
    return name in _called(cls)


class _Anything(frozenset[str]):
    def __contains__(self, name: object) -> bool:
        return True


@lru_cache(maxsize=1024)
def _called(cls: Any) -> frozenset[str]:
    found: set[str] = set()
    for base in cls.__mro__:
        for value in () if is_foreign(base) else vars(base).values():
            function = inner_function(getattr(value, "__func__", value))
            if not isinstance(function, FunctionType):
                continue
            try:
                definition = definition_of(function)
            except SourceError:
                if function.__name__ != "<lambda>":
                    return _Anything()
                continue
            for node in ast.walk(definition):
                if isinstance(node, ast.Call):
                    found |= _names_in(node)
    return frozenset(found)


def _names_in(call: ast.Call) -> set[str]:
    """Return the attributes that a call calls, or hands to a function (`checkpoint(self.body, x)`).

    Not what it hands to `len`, `range`, `enumerate` and the like.
    """
    called = {call.func.attr} if isinstance(call.func, ast.Attribute) else set()
    if isinstance(call.func, ast.Name) and call.func.id in _LOOKING:
        return called
    return called | {a.attr for a in call.args if isinstance(a, ast.Attribute)}


_LOOKING = frozenset("len range enumerate zip reversed list tuple iter isinstance hasattr".split())
