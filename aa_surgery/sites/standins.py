"""Stand-ins: what a forward sees of its module while it is traced.

A stand-in is an object of the module's own class, with the module's attributes: children that
record their call instead of running, tensors as values of the graph, copies of what the forward
could write to (lists, dicts, plain objects). Whatever a forward assigns, appends or counts while it
is traced is forgotten with its stand-ins, and neither the model nor any class of torch is touched:
other threads may run the model, or trace it, at the same time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from aa_surgery.sites.copies import PLAIN_KINDS, Copies, is_library, proxies_in
from aa_surgery.sites.frames import KEPT
from aa_surgery.sites.memo import INTERNAL, Paths

__all__ = ["StandIns"]

_REGISTRIES = ("_parameters", "_buffers", "_modules")

Record = Callable[..., Any]  # (path, args, kwargs) -> the value of a call
Show = Callable[[torch.Tensor], Any]


class StandIns:
    """The stand-ins of one scope and of what its forward reaches.

    Args:
        scope: The module that is traced.
        paths: The path of each of its parts by their `id`.
        record: Called in a part's stead.
        show: Gives the value of the graph that stands for a tensor.
        alone: Whether another thread traces by torch.fx, which patches `nn.Module.__call__`: parts
            are then of a class with a call of its own.
    """

    def __init__(
        self, scope: nn.Module, paths: Paths, record: Record, show: Show, alone: bool = False
    ) -> None:
        self._paths, self._record, self._show, self._alone = paths, record, show, alone
        self._made: dict[int, Any] = {}
        self._copies = Copies(self._shown, self._twin)
        self._owners: dict[int, str] = {}
        self._twins: list[Any] = []
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
        cls: Any = type(module)
        made: Any = object.__new__(_called_directly(cls) if self._alone and path else cls)
        self._made[id(module)] = made
        self._owners[id(made)] = path
        own = made.__dict__
        for name in _writable_of_class(cls):
            own[name] = self._copies.of(inspect.getattr_static(cls, name))
        own.update(module.__dict__)
        for name, value in module.__dict__.items():
            if type(value) in PLAIN_KINDS:
                continue
            if name in _REGISTRIES:
                own[name] = _Shown(value, self._shown)
            elif path and name in INTERNAL:
                own[name] = value.copy() if isinstance(value, dict | set) else value
            else:
                own[name] = self._copies.of(value)
        if path:
            own["_compiled_call_impl"] = lambda *args, **kwargs: self._record(path, args, kwargs)
            own.pop("forward", None)
        return made

    def _twin(self, made: Any) -> Any:
        """Return a stand-in with the same attributes, to which kept methods are bound.

        Surgery does not reach a method that a list keeps; so these shall not seem to be the part's.
        """
        if id(made) not in self._owners:
            return made
        twin: Any = object.__new__(type(made))
        object.__setattr__(twin, "__dict__", made.__dict__)
        self._twins.append(twin)
        self._owners[id(twin)] = KEPT
        return twin

    def written(self) -> Iterator[fx.Proxy]:
        """Yield the values of the graph that the forward left in attributes and containers."""
        for made in (*self._made.values(), *self._copies.made):
            yield from proxies_in(getattr(made, "__dict__", made))

    def _shown(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._show(value)
        return self._of(value) if isinstance(value, nn.Module) else value


class _CalledDirectly:
    """Mixin of stand-ins that are called past `nn.Module.__call__`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep what the module's class does when it is subclassed from being done."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["_compiled_call_impl"](*args, **kwargs)


@cache
def _called_directly(cls: Any) -> Any:
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls)(cls.__name__, (_CalledDirectly, cls), names)


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
def _writable_of_class(cls: type) -> tuple[str, ...]:
    """Return the attributes that a user's class holds for all instances, and that are copied."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        for name, value in {} if is_library(base.__module__) else vars(base).items():
            kind = type(value)
            if kind not in PLAIN_KINDS and not hasattr(kind, "__get__"):
                found[name] = None
    return tuple(name for name in found if not name.startswith("__") and name != "_abc_impl")
