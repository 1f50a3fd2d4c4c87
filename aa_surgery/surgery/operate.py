"""What each module of a model will wear, by the model's changes; nothing is touched yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from aa_surgery.errors import UnsupportedModelError
from aa_surgery.sites.instance import replaces_forward
from aa_surgery.surgery.change import Change
from aa_surgery.surgery.classes import REBUILDING_METHODS, Front, Recipe, antialiased_class
from aa_surgery.surgery.dress import Dress
from aa_surgery.surgery.forward import Rewrite, rewrites
from aa_surgery.surgery.instance import around
from aa_surgery.surgery.layering import unlayered
from aa_surgery.treated import worn_by

__all__ = ["prepare"]


def prepare(model: nn.Module, changes: Mapping[str, Change]) -> list[tuple[nn.Module, Dress]]:
    """Build what each changed module will wear; nothing of the model is touched yet."""
    prepared = []
    guards = _guards(model, changes)
    edited = {p: (model.get_submodule(p), c.graph_edits) for p, c in changes.items()}
    rewritten = rewrites({p: scope for p, scope in edited.items() if scope[1]})
    for path in {**changes, **guards}:
        module = model.get_submodule(path)
        if worn_by(module) is None:
            change = changes.get(path, Change())
            rewrite = rewritten.get(path, Rewrite())
            prepared.append((module, _dress_for(module, change, rewrite, guards.get(path, ()))))
        elif path in changes:
            raise UnsupportedModelError(
                f"{path or 'the model'} was treated before, with another part of the model. "
                "Call remove_antialias(model), then treat the whole."
            )
    return prepared


def _dress_for(
    module: nn.Module, change: Change, rewrite: Rewrite, guarded: tuple[str, ...]
) -> Dress:
    """Return what one module will wear."""
    extras: dict[str, Any] = {"aa_op": change.numbers} if change.numbers else {}
    if rewrite.methods and guarded:
        extras["aa_edits"] = tuple(change.graph_edits)
    children = {n: c for n, c in change.children.items() if n not in rewrite.spare}
    children |= rewrite.children
    renamed = _renamed(module, (*children, *extras))
    wrapped, attributes = change.wrapped, dict(change.attributes)
    if wrapped and replaces_forward(module):
        names = {name: dict(renamed).get(name, name) for name in children}
        wrapped, attributes["forward"] = (), around(module, names)
    front = None if renamed else Front.of(module, wrapped, children)
    recipe = Recipe(change.op, rewrite.methods, wrapped, guarded, change.half, renamed, front)
    return Dress(
        antialiased_class(unlayered(type(module)), recipe),
        children,
        extras,
        attributes,
        change.frozen,
        tuple(change.sites),
        tuple(change.halves),
    )


def _renamed(module: nn.Module, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return other names for those that the module has for something of its own."""
    renamed = []
    for name in names:
        other = name
        while hasattr(module, other):
            other += "_"
        if other != name:
            renamed.append((name, other))
    return tuple(renamed)


def _guards(model: nn.Module, changes: Mapping[str, Change]) -> dict[str, tuple[str, ...]]:
    """Return the modules around the changed ones that rebuild themselves, and by which methods."""
    guards = {}
    for path in changes:
        parts = path.split(".") if path else []
        for n in range(len(parts) + 1):
            around = ".".join(parts[:n])
            host = type(model.get_submodule(around))
            methods = tuple(m for m in REBUILDING_METHODS if hasattr(host, m))
            if issubclass(host, fx.GraphModule):
                methods += ("recompile",)
            if methods:
                guards[around] = methods
    return guards
