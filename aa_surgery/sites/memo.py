"""Trace once what is alike: two modules whose forward reads the same share one graph.

What a trace depends on is what it read: attributes of the module and of its children. They are
recorded while it runs, and compared with those of the next module of the class. Networks repeat
their blocks, so most scopes are recognised in a fraction of the time of a trace.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from aa_surgery.errors import NotTraceableError
from aa_surgery.sites.site import Given

__all__ = ["Memo", "Paths"]

_PLAIN = (bool, int, float, str, type(None), type)
_MISSING = "missing"
_HELD = ("_parameters", "_buffers", "_modules")

Result = fx.Graph | NotTraceableError
Reads = dict[tuple[int, str], Any]
Facts = tuple[tuple[tuple[str, ...], tuple[tuple[str, Any], ...]], ...]

# past `reported`, which every other read of a module's attribute goes through while installed
_get = object.__getattribute__


class Memo:
    """Graphs by class and by what their traces read; valid while `installed()`."""

    def __init__(self) -> None:
        self._known: dict[Hashable, list[tuple[bool | None, Facts, Result]]] = defaultdict(list)
        self._reads: Reads = {}
        self._listening = False
        self._first: Paths | None = None

    def recall(
        self, scope: nn.Module, training: bool, given: Given, trace: Callable[[Paths], fx.Graph]
    ) -> fx.Graph:
        """Return the graph of a module alike, or `trace(paths)`.

        Args:
            scope: The module.
            training: What `trace` sets `scope.training` to.
            given: The arguments that callers fill, on which the graph depends too.
            trace: Traces the module, its forward run under `listening()`, given the paths of its
                parts by their `id`.

        Raises:
            NotTraceableError: `trace` raised it, for this module or one alike.
        """
        known = self._known[type(scope), given, tuple(type(item[-1]) for item in given)]
        alike = (
            result
            for mode, facts, result in known
            if mode in (None, training) and all(_agrees(scope, *fact) for fact in facts)
        )
        result: Result | None = next(alike, None)
        if result is None:
            self._reads = {}
            paths = self._paths(scope)
            try:
                result = trace(paths)
            except NotTraceableError as error:
                result = error
            reads_mode = (id(scope), "training") in self._reads
            known.append((training if reads_mode else None, self._facts(paths), result))
        if isinstance(result, NotTraceableError):
            raise result
        return result

    def _paths(self, scope: nn.Module) -> Paths:
        """Return the paths within `scope`; most scopes are parts of the first one."""
        if self._first is None:
            self._first = Paths(scope)
        return self._first.below(scope)

    def _facts(self, paths: Paths) -> Facts:
        """Return what was read, by the path of the module that it was read from."""
        fields: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for (key, name), fact in self._reads.items():
            path = paths.get(key)
            # the trace itself sets `training` of the scope
            if path is not None and (path, name) != ("", "training"):
                fields[path].append((name, fact))
        return tuple(
            (tuple(path.split(".")) if path else (), tuple(found)) for path, found in fields.items()
        )

    @contextmanager
    def listening(self, on: bool = True) -> Iterator[None]:
        """Record reads, or with `on=False` do not, within."""
        before, self._listening = self._listening, on
        try:
            yield
        finally:
            self._listening = before

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let modules report which of their attributes are read."""

        def reported(module: nn.Module, name: str) -> Any:
            if self._listening and name[:2] != "__" and (id(module), name) not in self._reads:
                if name in module.__dict__ or not hasattr(type(module), name):
                    self._reads[id(module), name] = _read(module, name)
            return _get(module, name)

        nn.Module.__getattribute__ = reported  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del nn.Module.__getattribute__


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
            children = _get(module, "__dict__")["_modules"].items()
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


def _agrees(scope: nn.Module, path: Sequence[str], fields: Sequence[tuple[str, Any]]) -> bool:
    module: nn.Module | None = scope
    for part in path:
        module = _get(module, "__dict__")["_modules"].get(part) if module is not None else None
    return module is not None and all(_read(module, name) == fact for name, fact in fields)


def _read(module: nn.Module, name: str) -> Any:
    """Return what of an attribute a trace can depend on."""
    attributes = _get(module, "__dict__")
    if name in attributes:
        return _fact(attributes[name])
    for holder in _HELD:
        if name in attributes[holder]:
            value = attributes[holder][name]
            return "tensor" if isinstance(value, torch.Tensor) else _fact(value)
    return _MISSING


def _fact(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, nn.Module):
        return "module", kind
    if isinstance(value, (tuple, list)):
        return kind, tuple(_fact(item) for item in value)
    if isinstance(value, dict):
        return kind, tuple((key, _fact(item)) for key, item in value.items())
    return _Same(value)


class _Same:
    """Equal to what wraps the very same object, which it keeps alive."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]
