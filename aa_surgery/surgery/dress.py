"""What surgery puts on one module, and takes off again: the class, the children, the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aa_surgery.surgery.classes import Recipe
from aa_surgery.surgery.instance import is_around, rebind
from aa_surgery.surgery.layering import antialiased_of, relayered, unlayered
from aa_surgery.treated import KEY, Half, Reference, Worn, worn_by

__all__ = ["Dress", "State", "dress", "put_back", "state_of", "undress"]

_REGISTRIES = ("_parameters", "_buffers", "_modules")
State = list[tuple[nn.Module, type, dict[str, Any], dict[str, dict[str, Any]], list[Any]]]


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
        sites: The sites whose op the module runs.
        halves: Treatments of which it carries one half.
    """

    cls: type[nn.Module]
    children: dict[str, nn.Module] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    sites: tuple[Any, ...] = ()
    halves: tuple[Half, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """What the class changes."""
        recipe: Recipe = self.cls._aa_recipe  # type: ignore[attr-defined]
        return recipe


def dress(module: nn.Module, worn: Dress) -> None:
    """Give a module the class, children and attributes of `worn`."""
    names = dict(worn.recipe.renamed)
    children = {names.get(n, n): child for n, child in worn.children.items()}
    extras = {names.get(n, n): value for n, value in worn.extras.items()}
    learning = tuple(n for n in worn.frozen if module.get_parameter(n).requires_grad)
    rebind(module, unlayered(type(module)), worn.cls)
    _set_class(module, relayered(type(module), worn.cls))
    for name, child in children.items():
        child.train(module.training)
        module._modules[name] = child
    module.__dict__.update(extras)
    module.__dict__[KEY] = Worn(
        owner=Reference(module),
        children=tuple(children),
        extras=tuple(extras),
        hidden=tuple(worn.attributes),
        own={n: module.__dict__[n] for n in worn.attributes if n in module.__dict__},
        frozen=learning,
        sites=worn.sites,
        halves=worn.halves,
    )
    module.__dict__.update(worn.attributes)
    _let_learn(module, learning, False)


def undress(module: nn.Module) -> Dress:
    """Give a changed module its own class back, and return what it wore."""
    worn = worn_by(module)
    cls = antialiased_of(module)
    assert worn is not None
    assert cls is not None
    rebind(module, cls, cls._aa_host)
    _set_class(module, relayered(type(module), cls._aa_host))
    names = {actual: name for name, actual in cls._aa_recipe.renamed}
    hidden = [name for name in worn.hidden if name != "forward"]
    if is_around(module.__dict__.get("forward")):
        hidden.append("forward")  # else another was set since
    attributes = {name: module.__dict__.pop(name, None) for name in hidden}
    module.__dict__.update({n: value for n, value in worn.own.items() if n in hidden})
    del module.__dict__[KEY]
    _let_learn(module, worn.frozen, True)
    children = {names.get(n, n): module._modules.pop(n, None) for n in worn.children}
    return Dress(
        cls,
        {name: child for name, child in children.items() if child is not None},
        {names.get(n, n): module.__dict__.pop(n, None) for n in worn.extras},
        attributes,
        worn.frozen,
        worn.sites,
        worn.halves,
    )


def state_of(modules: Iterable[nn.Module]) -> State:
    """Return what `put_back` needs to make each module again what it is now, its class included."""
    return [
        (
            m,
            type(m),
            dict(m.__dict__),
            {name: dict(m.__dict__[name]) for name in _REGISTRIES},
            [(p, p.requires_grad) for p in m._parameters.values() if p is not None],
        )
        for m in modules
    ]


def put_back(state: State) -> None:
    """Give each module the class, attributes, parameters and children back that it had.

    It may be called again after it was interrupted.
    """
    for module, cls, attributes, registries, learning in state:
        _set_class(module, cls)
        for name in set(module.__dict__) - set(attributes):
            del module.__dict__[name]
        module.__dict__.update(attributes)
        for name, held in registries.items():
            registry = module.__dict__[name]
            registry.clear()
            registry.update(held)
        for parameter, learns in learning:
            parameter.requires_grad_(learns)


def _set_class(module: nn.Module, cls: type) -> None:
    # not by `module.__class__ =`: the host's own `__setattr__` may refuse
    object.__setattr__(module, "__class__", cls)


def _let_learn(module: nn.Module, names: Iterable[str], learns: bool) -> None:
    for name in names:
        module.get_parameter(name).requires_grad_(learns)
