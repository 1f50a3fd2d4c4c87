"""What each module of a model will wear, by the model's changes; nothing is touched yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from aa_surgery.errors import UnsupportedModelError
from aa_surgery.surgery.change import Change
from aa_surgery.surgery.classes import (
    REBUILDING_METHODS,
    Recipe,
    antialiased_class,
    unlayered,
)
from aa_surgery.surgery.dress import Dress
from aa_surgery.surgery.forward import rewritten_sources
from aa_surgery.treated import worn_by

__all__ = ["prepare"]


def prepare(model: nn.Module, changes: Mapping[str, Change]) -> list[tuple[nn.Module, Dress]]:
    """Build what each changed module will wear; nothing of the model is touched yet."""
    prepared = []
    guards = _guards(model, changes)
    edited = {p: (model.get_submodule(p), c.graph_edits) for p, c in changes.items()}
    rewritten = rewritten_sources({p: scope for p, scope in edited.items() if scope[1]})
    for path in {**changes, **guards}:
        module, change = model.get_submodule(path), changes.get(path, Change())
        if worn_by(module) is not None:
            if path not in changes:
                continue  # it is guarded already
            raise UnsupportedModelError(
                f"{path or 'the model'} was treated before, with another part of the model. "
                "Call remove_antialias(model), then treat the whole."
            )
        extras: dict[str, Any] = {"aa_op": change.numbers} if change.numbers else {}
        if path in rewritten and path in guards:
            extras["aa_edits"] = tuple(change.graph_edits)
        recipe = Recipe(
            change.op,
            rewritten.get(path, ()),
            change.wrapped,
            guards.get(path, ()),
            change.half,
            _renamed(module, (*change.children, *extras)),
        )
        worn = Dress(
            antialiased_class(unlayered(type(module)), recipe),
            dict(change.children),
            extras,
            change.attributes,
            change.frozen,
            tuple(change.sites),
            tuple(change.halves),
        )
        prepared.append((module, worn))
    return prepared


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
            if methods:
                guards[around] = methods
    return guards
