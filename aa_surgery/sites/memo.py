"""Trace once what is alike: two modules whose forward reads the same share one graph.

What a trace depends on is the class, and the values of the attributes that its forward can read:
those whose names stand in its code, or in that of the functions it reaches (`names.py`). Networks
repeat their blocks, so most scopes are recognised in a fraction of the time of a trace.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from aa_surgery.errors import NotTraceableError
from aa_surgery.sites.copies import is_library
from aa_surgery.sites.instance import forward_of
from aa_surgery.sites.linking import is_foreign
from aa_surgery.sites.names import PARTS, TENSORS, Names, functions_in, names_read
from aa_surgery.sites.site import Given

__all__ = ["INTERNAL", "Memo", "Paths"]

_PLAIN = frozenset((bool, int, float, str, type(None), type))
_MODE = frozenset(("training",))
INTERNAL = frozenset(nn.Module().__dict__) - _MODE
"""The attributes that torch keeps of every module."""
_TENSOR_LISTS = (nn.ParameterList, nn.ParameterDict)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

Result = fx.Graph | NotTraceableError


class Memo:
    """Graphs by class and by what their traces can read."""

    def __init__(self) -> None:
        self._known: dict[Hashable, list[tuple[_Case, Result]]] = defaultdict(list)
        self._first: Paths | None = None
        self._classes: dict[int, frozenset[type]] = {}
        self._asked: list[nn.Module] = []  # so that no id is used again

    def recall(
        self, scope: nn.Module, training: bool, given: Given, trace: Callable[[Paths], fx.Graph]
    ) -> fx.Graph:
        """Return the graph of a module alike, or `trace(paths)`.

        Args:
            scope: The module.
            training: The mode in which it is traced.
            given: The arguments that callers fill, on which the graph depends too.
            trace: Traces the module, given the paths of its parts.

        Raises:
            NotTraceableError: `trace` raised it, for this module or one alike.
        """
        forward = forward_of(scope)
        names = names_read(self._classes_in(scope), forward)
        mode = training if names is None or "training" in names else None
        kinds = tuple(type(item[-1]) for item in given)
        known = self._known[type(scope), forward, given, kinds, mode]
        case = _Case(scope, names)
        result = next((result for held, result in known if held.facts == case.facts), None)
        if result is None:
            try:
                result = trace(self._paths(scope))
            except NotTraceableError as error:
                result = error
            known.append((case, result))
        if isinstance(result, NotTraceableError):
            raise result
        return result

    def _classes_in(self, module: nn.Module) -> frozenset[type]:
        """Return the classes of a module, its parts, and what they hold; it can call theirs."""
        found = self._classes.get(id(module))
        if found is None:
            held: set[Any] = {type(value) for value in module.__dict__.values()} - _PLAIN
            found = frozenset(
                (type(module), *(kind for kind in held if not is_library(kind.__module__)))
            )
            self._asked.append(module)
            self._classes[id(module)] = found  # or a circle has no end
            parts = [part for part in module._modules.values() if part is not None]
            self._classes[id(module)] = found = found.union(*map(self._classes_in, parts))
        return found

    def _paths(self, scope: nn.Module) -> Paths:
        """Return the paths within `scope`; most scopes are parts of the first one."""
        if self._first is None:
            self._first = Paths(scope)
        return self._first.below(scope)


class Paths:
    """The first path of each part of a module, by its `id`; as `named_modules`, but quickly."""

    def __init__(self, scope: nn.Module) -> None:
        self._found: dict[int, str] = {}
        self._prefix = ""
        self._tree = True
        waiting = [("", scope)]
        while waiting:
            path, module = waiting.pop()
            if id(module) in self._found:
                self._tree = False
                continue
            self._found[id(module)] = path
            prefix = path + "." if path else ""
            children = module.__dict__["_modules"].items()
            waiting += [(prefix + n, part) for n, part in reversed(children) if part is not None]

    def get(self, key: int) -> str | None:
        """Return the path; None of what is no part."""
        path = self._found.get(key)
        if path is None or not self._prefix:
            return path
        if path + "." == self._prefix:
            return ""
        return path[len(self._prefix) :] if path.startswith(self._prefix) else None

    def below(self, scope: nn.Module) -> Paths:
        """Return the paths within `scope`, read off these where no module has two of them."""
        path = self._found.get(id(scope))
        if path is None or not self._tree:
            return Paths(scope)
        part = copy.copy(self)
        part._prefix = path + "." if path else ""
        return part


@dataclass
class _Case:
    """A module that was traced; what that depends on is asked for when another one comes."""

    scope: nn.Module
    names: Names

    @cached_property
    def facts(self) -> Any:
        return _Facts(self.names).of_root(self.scope)


class _Facts:
    """What of a module and of its parts a trace can depend on, as values that compare."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._any_part = names is None or not names.isdisjoint(PARTS)
        self._any_tensor = names is None or not names.isdisjoint(TENSORS)
        self._seen: dict[int, int] = {}

    def of_root(self, scope: nn.Module) -> Any:
        """Return the facts of the scope; in which mode it is does not count."""
        self._seen[id(scope)] = 0
        return self._of(scope, _MODE)

    def _of(self, module: nn.Module, aside: frozenset[str] = frozenset()) -> Any:
        names, own = self._names, module.__dict__
        fields = (own.keys() - INTERNAL if names is None else own.keys() & names) - aside
        held = {**own["_parameters"], **own["_buffers"]}
        if not (self._any_tensor or isinstance(module, _TENSOR_LISTS)):
            held = {name: held[name] for name in held.keys() & (names or ())}
        parts = own["_modules"]
        if not (self._any_part or isinstance(module, _CONTAINERS)):
            parts = {name: part for name, part in parts.items() if name in (names or ())}
        facts: list[Any] = []
        if held:
            facts.append({name: value is None for name, value in held.items()})
        if parts:  # before the attributes, which may hold them again
            facts.append([(name, self._part(part)) for name, part in parts.items()])
        facts.append({name: self._fact(own[name]) for name in fields})
        return facts

    def _part(self, part: nn.Module | None) -> Any:
        if part is None:
            return None
        first = self._seen.setdefault(id(part), len(self._seen))
        if first != len(self._seen) - 1:
            return "again", first
        return type(part), "forward" in part.__dict__, self._of(part)

    def _fact(self, value: Any, inside: bool = False) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value if kind is str or value is None else (kind, value)
        if isinstance(value, nn.Module):
            return ("again", self._seen[id(value)]) if id(value) in self._seen else _Same(value)
        if isinstance(value, torch.Tensor):  # one in a list is shown with its values
            return _Same(value) if inside else ("tensor", tuple(value.shape))
        if kind is tuple or kind is list:
            return kind, tuple(self._fact(item, True) for item in value)
        if kind is dict:
            return kind, tuple((key, self._fact(item, True)) for key, item in value.items())
        # what a function reads that an instance holds, its class cannot say
        return _Same(object() if _is_function(value) else value)


def _is_function(value: Any) -> bool:
    """Tell whether a value is a user's function, or one with arguments filled in."""
    callable_ = type(value) is FunctionType or type(value).__module__ == "functools"
    return callable_ and not all(map(is_foreign, functions_in(value)))


class _Same:
    """Equal to what wraps the very same object, which it keeps alive."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]
