"""What surgery puts on one module, and takes off again: the class, the children, the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aa_surgery.surgery.classes import Antialiased, Recipe

__all__ = ["Dress", "dress", "undress"]

_ATTRIBUTES = "aa_attributes"
_FROZEN = "aa_frozen"


@dataclass(frozen=True)
class Dress:
    """All that makes a module an antialiased one.

    Attributes:
        cls: Its class.
        children: The blurs, by name.
        extras: Plain attributes: `aa_op`, what its op runs with; `aa_edits`, the edits of the
            forward of a module that may rebuild itself.
        attributes: Attributes of the module that have another value while it wears this.
        frozen: Parameters of the module that its forward no longer reads: no gradient may be asked
            of them, as DistributedDataParallel waits for each that is.
    """

    cls: type[nn.Module]
    children: dict[str, nn.Module | None] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """What the class changes."""
        recipe: Recipe = self.cls._aa_recipe  # type: ignore[attr-defined]
        return recipe


def dress(module: nn.Module, worn: Dress) -> None:
    """Give a module the class, children and attributes of `worn`."""
    module.__class__ = worn.cls
    for name, child in worn.children.items():
        if child is not None:
            child.train(module.training)
        module._modules[name] = child
    module.__dict__.update(worn.extras)
    if worn.attributes:
        # what is not in here is a buffer, or the class's, and shows again when this is off
        own = {n: module.__dict__[n] for n in worn.attributes if n in module.__dict__}
        module.__dict__[_ATTRIBUTES] = (tuple(worn.attributes), own)
        module.__dict__.update(worn.attributes)
    if worn.frozen:
        learning = tuple(n for n in worn.frozen if module.get_parameter(n).requires_grad)
        module.__dict__[_FROZEN] = learning
        _let_learn(module, learning, False)


def undress(module: nn.Module) -> Dress:
    """Give a changed module its own class back, and return what it wore."""
    assert isinstance(module, Antialiased)
    cls: Any = type(module)
    module.__class__ = cls._aa_host
    changed, own = module.__dict__.pop(_ATTRIBUTES, ((), {}))
    attributes = {name: module.__dict__.pop(name) for name in changed}
    module.__dict__.update(own)
    frozen = module.__dict__.pop(_FROZEN, ())
    _let_learn(module, frozen, True)
    children = {n: module._modules.pop(n) for n in list(module._modules) if n.startswith("aa_")}
    extras = {n: module.__dict__.pop(n) for n in list(module.__dict__) if n.startswith("aa_")}
    return Dress(cls, children, extras, attributes, frozen)


def _let_learn(module: nn.Module, names: Iterable[str], learns: bool) -> None:
    for name in names:
        module.get_parameter(name).requires_grad_(learns)
