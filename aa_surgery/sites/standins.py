"""Stand-ins: what a forward sees of its module while it is traced.

A stand-in is an object of the module's own class, with the module's attributes: children that
record their call instead of running, tensors as values of the graph, copies of what the forward
could write to (lists, dicts, plain objects). Whatever a forward assigns, appends or counts while it
is traced is forgotten with its stand-ins, and neither the model nor any class of torch is touched:
other threads may run the model, or trace it, at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from aa_surgery.sites.memo import INTERNAL, Paths

__all__ = ["StandIns"]

_REGISTRIES = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (dict, list, set)
_FOREIGN = ("torch.", "torch", "numpy", "builtins")
_MAX_DEPTH = 4

Record = Callable[..., Any]  # (path, args, kwargs) -> the value of a call
Show = Callable[[torch.Tensor], Any]


class StandIns:
    """The stand-ins of one scope and of what its forward reaches.

    Args:
        scope: The module that is traced.
        paths: The path of each of its parts by their `id`.
        record: Called in a part's stead.
        show: Gives the value of the graph that stands for a tensor.
    """

    def __init__(self, scope: nn.Module, paths: Paths, record: Record, show: Show) -> None:
        self._paths, self._record, self._show = paths, record, show
        self._made: dict[int, Any] = {}
        self._owners: dict[int, str] = {}
        self.root: Any = self._stand_in(scope, "")

    def owner(self, instance: object) -> str | None:
        """Return the path of the part that `instance` stands for; None of anything else."""
        return self._owners.get(id(instance))

    def _of(self, module: nn.Module) -> Any:
        path = self._paths.get(id(module))
        if path is None or id(module) in self._owners:
            return module  # no part of the scope, or a stand-in itself
        made = self._made.get(id(module))
        return self._stand_in(module, path) if made is None else made

    def _stand_in(self, module: nn.Module, path: str) -> Any:
        made: Any = object.__new__(type(module))
        self._made[id(module)] = made
        self._owners[id(made)] = path
        own = made.__dict__
        cls: Any = type(module)
        for name in _containers_of_class(cls):
            own[name] = self._copied(getattr(cls, name), 0)
        for name, value in module.__dict__.items():
            if name in _REGISTRIES:
                own[name] = _Shown(value, self._shown)
            elif type(value) in _PLAIN or (path and name in INTERNAL):
                own[name] = value
            else:
                own[name] = self._copied(value, 0)
        if path:
            own["_compiled_call_impl"] = lambda *args, **kwargs: self._record(path, args, kwargs)
            own.pop("forward", None)
        return made

    def _shown(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._show(value)
        return self._of(value) if isinstance(value, nn.Module) else value

    def _copied(self, value: Any, depth: int) -> Any:
        """Return what stands for an attribute's value: a copy of what could be written to."""
        kind: Any = type(value)
        if kind in _PLAIN:
            return value
        if isinstance(value, torch.Tensor | nn.Module):
            return self._shown(value)
        if depth == _MAX_DEPTH:
            return value
        if kind is tuple:
            return tuple(self._copied(item, depth + 1) for item in value)
        if isinstance(value, _CONTAINERS):
            return self._copied_container(value, depth)
        if _is_plain_object(kind):
            made = object.__new__(kind)
            made.__dict__.update(
                {name: self._copied(held, depth + 1) for name, held in value.__dict__.items()}
            )
            return made
        return value

    def _copied_container(self, value: Any, depth: int) -> Any:
        if not hasattr(value, "copy"):
            return value
        made = value.copy()
        if isinstance(made, dict):
            for key, item in value.items():
                made[key] = self._copied(item, depth + 1)
        elif isinstance(made, list):
            made[:] = [self._copied(item, depth + 1) for item in value]
        return made


_PLAIN = frozenset((bool, int, float, str, bytes, type(None), type, torch.Size, torch.dtype))


class _Shown(dict[str, Any]):
    """A module's registry whose values are shown as stand-ins when they are read."""

    def __init__(self, held: Mapping[str, Any], show: Callable[[Any], Any]) -> None:
        super().__init__(held)
        self._show = show

    def __getitem__(self, key: str) -> Any:
        return self._show(super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def values(self) -> Any:
        return [self._show(value) for value in super().values()]

    def items(self) -> Any:
        return [(key, self._show(value)) for key, value in super().items()]

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()


@cache
def _containers_of_class(cls: Any) -> tuple[str, ...]:
    """Return the lists, dicts and sets that a user's class holds for all of its instances."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("torch."):
            continue
        for name, value in vars(base).items():
            if type(value) in _CONTAINERS and not name.startswith("__"):
                found[name] = None
    return tuple(found)


@cache
def _is_plain_object(kind: Any) -> bool:
    """Tell whether all that an object of the class holds stands in its `__dict__`."""
    return (
        kind.__new__ is object.__new__
        and kind.__module__.partition(".")[0] not in _FOREIGN
        and kind.__dictoffset__ != 0
        and not any("__slots__" in vars(base) for base in kind.__mro__)
        and not issubclass(kind, type)
    )
