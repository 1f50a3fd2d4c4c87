"""Whether a container is called as a whole, where the forward around it could not be traced.

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

__all__ = ["is_taken_apart"]

Names = frozenset[str]


def is_taken_apart(cls: Any, name: str) -> bool:
    """Tell whether the methods of a class take the parts of the attribute `name` one by one.

    So they do where they call one of them, `self.body[0](x)`, or where they go through them and
    never call the whole. Whatever else the source does with it counts as a call.
    """
    parts, gone_through, called = _uses(cls)
    return name in parts or (name in gone_through and name not in called)


@lru_cache(maxsize=1024)
def _uses(cls: Any) -> tuple[Names, Names, Names]:
    """Return the attributes of which parts are called, that are gone through, that are called."""
    parts: set[str] = set()
    gone_through: set[str] = set()
    called: set[str] = set()
    for base in cls.__mro__:
        for value in () if is_foreign(base) else vars(base).values():
            function = inner_function(getattr(value, "__func__", value))
            if not isinstance(function, FunctionType) or function.__name__ == "__init__":
                continue
            try:
                definition = definition_of(function)
            except SourceError:
                continue  # what cannot be read is taken to call it
            for node in ast.walk(definition):
                if isinstance(node, ast.For | ast.comprehension):
                    gone_through |= _attributes([node.iter])
                elif isinstance(node, ast.Call):
                    held = [*node.args, *(k.value for k in node.keywords)]
                    looks = isinstance(node.func, ast.Name) and node.func.id in _LOOKING
                    (gone_through if looks else called).update(_attributes(held))
                    called |= _attributes([node.func])
                    if isinstance(node.func, ast.Subscript):
                        parts |= _attributes([node.func.value])
    return frozenset(parts), frozenset(gone_through), frozenset(called)


_LOOKING = frozenset("len range enumerate zip reversed list tuple iter".split())


def _attributes(nodes: list[Any]) -> Names:
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute))
