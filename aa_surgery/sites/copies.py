"""Copies of what a forward could write to: what it writes while it is traced is forgotten.

Containers, plain objects and sources of random numbers are copied, once each; classes, which have
to stay the same ones, are put back after the trace.
"""

from __future__ import annotations

import copy
import functools
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import fx, nn

__all__ = ["PLAIN_KINDS", "Copies", "KeptClasses", "is_library", "proxies_in"]

PLAIN_KINDS = frozenset((bool, int, float, str, bytes, type(None), type, torch.Size, torch.dtype))
_MAX_DEPTH = 4
_LIBRARIES = frozenset(("torch", "numpy", "aa_surgery", "builtins"))
_SHARED = frozenset(("logging", "threading", "multiprocessing", "asyncio", "concurrent", "weakref"))
"""Modules of Python whose objects are made to be shared."""

Show = Callable[[Any], Any]


@cache
def is_library(module: str) -> bool:
    """Tell whether a module is Python's own, torch's, numpy's or ours."""
    head = module.partition(".")[0]
    return head in _LIBRARIES or head in sys.stdlib_module_names


class Copies:
    """Copies by their originals: what is one object stays one.

    Args:
        show: Gives what stands for a tensor or module.
        owner: Gives, for what stands for a module, that to which kept methods of it are bound.
    """

    def __init__(self, show: Show, owner: Show | None = None) -> None:
        self._show, self._owner = show, owner
        self._made: dict[int, tuple[Any, Any]] = {}  # with the original, so that its id stays its

    @property
    def made(self) -> list[Any]:
        """All copies."""
        return [copied for _, copied in self._made.values()]

    def of(self, value: Any, depth: int = 0) -> Any:
        """Return the copy of a value; the value where nothing can be written to it."""
        kind: Any = type(value)
        if kind in PLAIN_KINDS:
            return value
        if isinstance(value, torch.Tensor | nn.Module):
            if id(value) not in self._made:
                shown = self._show(value)
                if shown is value or isinstance(shown, fx.Proxy):
                    return shown
                self._note(value, shown)
            return self._made[id(value)][1]
        copied_by = _copier(kind)
        if copied_by is None or depth == _MAX_DEPTH:
            return value
        if id(value) not in self._made:
            copied_by(self, value, depth + 1)
        return self._made[id(value)][1]

    def _note(self, value: Any, copied: Any) -> Any:
        self._made[id(value)] = value, copied
        return copied

    def _dict(self, value: dict[Any, Any], depth: int) -> None:
        made = self._note(value, _emptied(value, dict))
        for key, item in value.items():
            dict.__setitem__(made, key, self.of(item, depth))

    def _list(self, value: list[Any], depth: int) -> None:
        made = self._note(value, _emptied(value, list))
        list.extend(made, [self.of(item, depth) for item in value])

    def _deque(self, value: deque[Any], depth: int) -> None:
        made = self._note(value, deque(maxlen=value.maxlen))
        made.extend([self.of(item, depth) for item in value])

    def _set(self, value: set[Any], depth: int) -> None:
        set.update(self._note(value, _emptied(value, set)), value)

    def _tuple(self, value: Any, depth: int) -> None:
        make = getattr(type(value), "_make", tuple)
        self._note(value, make([self.of(item, depth) for item in value]))

    def _object(self, value: Any, depth: int) -> None:
        kind: Any = type(value)
        made = self._note(value, object.__new__(kind))
        for name, held in getattr(value, "__dict__", {}).items():
            made.__dict__[name] = self.of(held, depth)
        for slot in _slots(kind):
            try:
                held = slot.__get__(value)
            except AttributeError:
                continue  # nothing was assigned to it
            slot.__set__(made, self.of(held, depth))

    def _method(self, value: types.MethodType, depth: int) -> None:
        owner = self.of(value.__self__, depth)
        if owner is value.__self__:
            self._note(value, value)
        else:
            owner = owner if self._owner is None else self._owner(owner)
            self._note(value, types.MethodType(value.__func__, owner))

    def _partial(self, value: Any, depth: int) -> None:
        inner, args = self.of(value.func, depth), [self.of(a, depth) for a in value.args]
        options = {name: self.of(item, depth) for name, item in value.keywords.items()}
        self._note(value, type(value)(inner, *args, **options))

    def _namespace(self, value: types.SimpleNamespace, depth: int) -> None:
        made = self._note(value, types.SimpleNamespace())
        made.__dict__.update({name: self.of(v, depth) for name, v in vars(value).items()})

    def _duplicate(self, value: Any, depth: int) -> None:
        self._note(value, value.copy())

    def _random(self, value: random.Random, depth: int) -> None:
        self._note(value, random.Random()).setstate(value.getstate())

    def _numpy_random(self, value: Any, depth: int) -> None:
        self._note(value, copy.deepcopy(value))

    def _torch_random(self, value: torch.Generator, depth: int) -> None:
        self._note(value, torch.Generator(value.device)).set_state(value.get_state())

    def _iterator(self, value: Iterator[Any], depth: int) -> None:
        self._note(value, _Advancing())


class _Advancing:
    """Stands for an iterator, which no trace can advance without a trace."""

    def __iter__(self) -> _Advancing:
        return self

    def __next__(self) -> Any:
        raise RuntimeError("it draws from an iterator that is kept from call to call")


def _emptied(value: Any, base: Any) -> Any:
    """Return an empty container of the same class."""
    kind: Any = type(value)
    if kind.__module__ in ("builtins", "collections"):
        made = value.copy()
        made.clear()
        return made
    made = base.__new__(kind)
    if hasattr(value, "__dict__"):
        made.__dict__.update(value.__dict__)
    return made


@cache
def _copier(kind: type) -> Callable[[Copies, Any, int], None] | None:
    """Return what copies objects of a class; None where they can stay what they are."""
    for base, copied_by in _COPIERS:
        if issubclass(kind, base):
            return copied_by
    if issubclass(kind, tuple):
        return Copies._tuple if kind is tuple or hasattr(kind, "_make") else None
    if hasattr(kind, "__next__") and kind.__module__ in ("builtins", "itertools"):
        return Copies._iterator
    return Copies._object if _is_plain_object(kind) else None


_COPIERS: tuple[tuple[type, Any], ...] = (
    (dict, Copies._dict),
    (list, Copies._list),
    (set, Copies._set),
    (deque, Copies._deque),
    (types.MethodType, Copies._method),
    (functools.partial, Copies._partial),
    (types.SimpleNamespace, Copies._namespace),
    (bytearray, Copies._duplicate),
    (np.ndarray, Copies._duplicate),
    (random.Random, Copies._random),
    (np.random.RandomState, Copies._numpy_random),
    (np.random.Generator, Copies._numpy_random),
    (torch.Generator, Copies._torch_random),
)


def _is_plain_object(kind: type) -> bool:
    """Tell whether all that an object of the class holds stands in its `__dict__` and slots."""
    home = kind.__module__.partition(".")[0]
    new: Any = kind.__new__
    stateful = kind.__dictoffset__ != 0 or bool(_slots(kind))
    return (
        new is object.__new__
        and home not in _LIBRARIES | _SHARED
        and stateful
        and not issubclass(kind, type)
    )


@cache
def _slots(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    held = [value for base in kind.__mro__ for value in vars(base).values()]
    return tuple(value for value in held if isinstance(value, types.MemberDescriptorType))


def proxies_in(value: Any, depth: int = 0) -> Iterator[fx.Proxy]:
    """Yield the values of a graph, parameters and buffers aside, within containers."""
    kind: Any = type(value)
    if _is_proxy(kind):
        if value.node.op != "get_attr":
            yield value
    elif _is_holder(kind) and depth < _MAX_DEPTH:
        for item in dict.values(value) if issubclass(kind, dict) else value:
            # asked here too, because most of what is held is neither
            kind = type(item)
            if _is_proxy(kind) or (_is_holder(kind) and len(item)):
                yield from proxies_in(item, depth + 1)


@cache
def _is_proxy(kind: type) -> bool:
    return issubclass(kind, fx.Proxy)


@cache
def _is_holder(kind: type) -> bool:
    return issubclass(kind, list | tuple | dict | deque)


class KeptClasses:
    """Users' classes as they were when they were first seen."""

    def __init__(self) -> None:
        self._held: dict[type, dict[str, Any]] = {}
        self._contents: list[tuple[Any, Any]] = []

    def note(self, kind: type) -> None:
        """Remember what a class, and those that it derives from, hold."""
        for base in kind.__mro__:
            if base in self._held or is_library(base.__module__):
                continue
            self._held[base] = dict(vars(base))
            for value in vars(base).values():
                if type(value) in _CONTAINERS:
                    self._contents.append((value, value.copy()))

    def put_back(self) -> None:
        """Undo what was assigned, appended or deleted since."""
        for kind, held in self._held.items():
            for name in [n for n in vars(kind) if n not in held]:
                delattr(kind, name)
            for name, value in held.items():
                if vars(kind).get(name) is not value:
                    setattr(kind, name, value)
        for value, before in self._contents:
            if _items(value) != _items(before):
                value.clear()
                extend = value.extend if isinstance(value, list | deque) else value.update
                extend(before)


_CONTAINERS = (dict, list, set, deque)


def _items(value: Any) -> list[int]:
    items = [part for pair in value.items() for part in pair] if type(value) is dict else value
    return [id(item) for item in items]
