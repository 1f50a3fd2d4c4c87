"""What surgery puts on one module, and takes off again: the class, the children, the numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aa_surgery.surgery.classes import Antialiased, Recipe

__all__ = ["Dress", "dress", "undress"]


@dataclass(frozen=True)
class Dress:
    """All that makes a module an antialiased one.

    Attributes:
        cls: Its class.
        children: The blurs, by name.
        extras: Plain attributes: `aa_op`, what its op runs with; `aa_edits`, the edits of the
            forward of a module that may rebuild itself.
    """

    cls: type[nn.Module]
    children: dict[str, nn.Module | None] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)

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


def undress(module: nn.Module) -> Dress:
    """Give a changed module its own class back, and return what it wore."""
    assert isinstance(module, Antialiased)
    cls: Any = type(module)
    module.__class__ = cls._aa_host
    children = {n: module._modules.pop(n) for n in list(module._modules) if n.startswith("aa_")}
    extras = {n: module.__dict__.pop(n) for n in list(module.__dict__) if n.startswith("aa_")}
    return Dress(cls, children, extras)
