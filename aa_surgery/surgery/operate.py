"""Dress a model by its changes, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from aa_surgery.errors import UnsupportedModelError
from aa_surgery.surgery.change import Change
from aa_surgery.surgery.classes import (
    REBUILDING_METHODS,
    Antialiased,
    Recipe,
    antialiased_class,
)
from aa_surgery.surgery.dress import Dress, dress, undress
from aa_surgery.surgery.forward import Rewrite, rewrites

__all__ = ["commit", "prepare", "undo"]


def prepare(model: nn.Module, changes: Mapping[str, Change]) -> list[tuple[nn.Module, Dress]]:
    """Build what each changed module will wear; nothing of the model is touched yet."""
    prepared = []
    guards = _guards(model, changes)
    edited = {p: (model.get_submodule(p), c.graph_edits) for p, c in changes.items()}
    rewritten = rewrites({p: scope for p, scope in edited.items() if scope[1]})
    for path in {**changes, **guards}:
        module, change = model.get_submodule(path), changes.get(path, Change())
        taken = [n for n in change.children if hasattr(module, n)]
        if taken:
            raise UnsupportedModelError(f"{path}: the name {taken[0]} is taken. Rename that child.")
        extras: dict[str, Any] = {"aa_op": change.numbers} if change.numbers else {}
        if path in rewritten and path in guards:
            extras["aa_edits"] = tuple(change.graph_edits)
        rewrite = rewritten.get(path, Rewrite())
        recipe = Recipe(change.op, rewrite.methods, change.wrapped, guards.get(path, ()))
        host: Any = type(module)
        cls = antialiased_class(host, recipe)
        children = {n: c for n, c in change.children.items() if n not in rewrite.spare}
        children |= rewrite.children
        worn = Dress(cls, children, extras, change.attributes, change.frozen)
        prepared.append((module, worn))
    return prepared


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


def commit(prepared: list[tuple[nn.Module, Dress]]) -> None:
    """Swap the classes; on a failure, undo what was swapped."""
    try:
        for module, worn in prepared:
            dress(module, worn)
    except Exception:
        undo(prepared)
        raise


def undo(prepared: list[tuple[nn.Module, Dress]]) -> None:
    """Give each module that was dressed its own class back."""
    for module, _ in prepared:
        if isinstance(module, Antialiased):
            undress(module)
