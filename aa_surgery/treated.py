"""The record that surgery leaves on a module: what it put there, and where the other half stands.

Whatever asks what is ours asks this record: no name tells it, since every name may be the user's.
Find, surgery, adaptation and the audit read it; it imports none of them.

A treatment can have two halves in two modules: an op that runs dense, and the layer behind its
activation that subsamples. Each half knows its own place and that of the other, both as paths from
the nearest module that holds the two. Where one of them is taken out of the model, the other would
leave maps of another size; so its next call raises, and `lost_halves` tells it without a run.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from aa_surgery.errors import HalfTreatedError

__all__ = [
    "KEY",
    "OWNER",
    "PLAN",
    "Half",
    "Reference",
    "Worn",
    "inserted",
    "lost_halves",
    "require_whole",
    "worn_by",
]

KEY = "_antialias"
PLAN = "_antialias_plan"
OWNER = "_antialias_owner"

Part = Literal["op", "layer"]
_OTHER: dict[str, Part] = {"op": "layer", "layer": "op"}
_NAMES = {"op": "the op that runs dense", "layer": "the layer that subsamples behind it"}
_NOTHING = (lambda: None).__code__
_WAY_OUT = (
    "Call remove_antialias(model) before parts of the model are replaced, converted or fused, and "
    "apply_antialias(model) after; now, remove_antialias(model) and apply_antialias(model)."
)


class Reference:
    """A weak reference to a module, which follows the module into its copies and pickles.

    Of a part that is copied alone it goes on to mean the module around the original.
    """

    __slots__ = ("_weak",)

    def __init__(self, module: nn.Module | None) -> None:
        self._weak = None if module is None else weakref.ref(module)

    def __call__(self) -> nn.Module | None:
        """Return the module, if it still exists."""
        return None if self._weak is None else self._weak()

    def __deepcopy__(self, memo: dict[int, Any]) -> Reference:
        module = self()
        return Reference(memo.get(id(module), module))

    def __reduce__(self) -> Any:
        module = self()
        # a host that pickles itself in its own way may hold its parts before it is there
        plain = type(module).__reduce__ is object.__reduce__
        return Reference, (module if plain else None,)


@dataclass
class Half:
    """One of the two modules that carry the treatment of one site.

    Attributes:
        site: The site's name.
        part: What this module carries of it.
        treatment: What both halves, and no other treatment, have in common.
        root: The nearest module that holds both.
        here: The path of this half from there.
        there: The path of the other half.
        norm: The class of the norm whose own activation carries the layer, if one does.
    """

    site: str
    part: Part
    treatment: str
    root: Reference
    here: tuple[str, ...]
    there: tuple[str, ...]
    norm: str = ""

    def is_alone(self) -> bool:
        """Whether one half is in its model, and the other is not."""
        root = self.root()
        if root is None:
            return False
        other = _OTHER[self.part]
        if self._stands(root, self.here, self.part) and self._stands(root, self.there, other):
            return False
        # a container may have been indexed anew, a module been wrapped in an adapter
        found = {part: path for path, part in self._found(root)}
        if len(found) == 2:
            self.here, self.there = found[self.part], found[other]
        return len(found) == 1

    def other(self) -> nn.Module | None:
        """Return the module that carries the other half, if it stands in its place."""
        root, part = self.root(), _OTHER[self.part]
        if root is None or not self._stands(root, self.there, part):
            return None
        return root.get_submodule(".".join(self.there))

    def _stands(self, root: nn.Module, path: tuple[str, ...], part: Part) -> bool:
        module: Any = root
        around: Any = None
        for name in path:
            around, module = module, module._modules.get(name)
            if module is None:
                return False
        return self._is_on(module, part) and (part == "op" or self.is_run(path, around))

    def is_run(self, path: Sequence[str], around: Any) -> bool:
        """Whether the module around the layer's carrier can be seen to call it.

        A norm may be converted to one that keeps its activation as a child, and does not run it.
        """
        if not self.norm or around is None or type(around).__name__ == self.norm:
            return True
        if type(around) is nn.Module:
            return True  # a folder in a GraphModule, whose graph calls the carrier itself
        return path[-1] in getattr(type(around).forward, "__code__", _NOTHING).co_names

    def _is_on(self, module: nn.Module, part: Part) -> bool:
        worn = module.__dict__.get(KEY)
        for half in () if worn is None else worn.halves:
            if (half.site, half.treatment, half.part) == (self.site, self.treatment, part):
                return True
        return False

    def _found(self, root: nn.Module) -> Iterator[tuple[tuple[str, ...], Part]]:
        for name, module in root.named_modules():
            for part in _OTHER.values():
                path = tuple(name.split(".")) if name else ()
                if self._is_on(module, part) and self._stands(root, path, part):
                    yield path, part

    def describe(self) -> str:
        """Return what is gone, and what to do."""
        gone = _NAMES[_OTHER[self.part]]
        root = self.root()
        where = f"at {'.'.join(self.there)} of the {type(root).__name__} " if root else ""
        return (
            f"{self.site}: half of its anti-aliasing is gone: {gone} {where}is no longer in the "
            f"model, and {_NAMES[self.part]} alone gives maps of another size. {_WAY_OUT}"
        )


@dataclass(frozen=True)
class Worn:
    """What surgery did to one module.

    Attributes:
        owner: The module itself; a shallow copy carries the record of another.
        children: Names of the submodules that surgery put here.
        extras: Names of the plain attributes that surgery put here.
        hidden: Names of attributes that have another value meanwhile.
        own: The values of those that the module had of its own; what is not in here is a buffer or
            the class's, and shows again afterwards.
        frozen: Parameters that the forward no longer reads, of which gradients were asked.
        sites: The sites whose op this module runs (`sites.Site`).
        halves: Treatments that this module carries one half of.
    """

    owner: Reference
    children: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    sites: tuple[Any, ...] = ()
    halves: tuple[Half, ...] = ()


def worn_by(module: nn.Module) -> Worn | None:
    """Return what surgery did to `module` itself, if anything."""
    worn: Worn | None = module.__dict__.get(KEY)
    return worn


def inserted(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Return what surgery put into any of `modules`, with all that is inside of it."""
    found: set[nn.Module] = set()
    for module in modules:
        worn = worn_by(module)
        for name in worn.children if worn is not None else ():
            if name in module._modules:
                found.update(module.get_submodule(name).modules())
    return found


def require_whole(module: nn.Module) -> None:
    """Refuse to run a module that carries half of a treatment whose other half is gone."""
    for half in module.__dict__[KEY].halves:
        if half.is_alone():
            raise HalfTreatedError(half.describe())


def lost_halves(model: nn.Module) -> tuple[tuple[str, Half], ...]:
    """Return the halves that have lost the other one, with the name of the module that carries it.

    Told by what `model` holds: both halves, or one of them.
    """
    carriers = [(n, h) for n, m in model.named_modules() for h in _halves(m) if _runs(model, n, h)]
    present = Counter((h.site, h.treatment, h.part) for _, h in carriers)
    return tuple(
        (name, half)
        for name, half in carriers
        if present[half.site, half.treatment, half.part]
        > present[half.site, half.treatment, _OTHER[half.part]]
    )


def _runs(model: nn.Module, name: str, half: Half) -> bool:
    around, _, last = name.rpartition(".")
    return half.part == "op" or not name or half.is_run([last], model.get_submodule(around))


def _halves(module: nn.Module) -> tuple[Half, ...]:
    worn = worn_by(module)
    return () if worn is None else worn.halves
