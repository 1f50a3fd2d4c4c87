"""`fx.GraphModule`, which makes itself from its graph again when it is copied, pickled, recompiled.

Each of those works on the host as it was before the surgery, and the result wears what it wore.
"""

from __future__ import annotations

import copy
from typing import Any

from aa_surgery.surgery.classes import Antialiased, antialiased_class
from aa_surgery.surgery.dress import Dress, dress, undress

__all__ = ["AntialiasedGraphModule"]


class AntialiasedGraphModule(Antialiased):
    """Mixin of a treated `GraphModule`."""

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        worn = undress(self)
        try:
            copied = copy.deepcopy(self, memo)
        finally:
            dress(self, worn)
        recipe, fields = _state(worn)
        _dress_again(copied, (recipe, copy.deepcopy(fields, memo)))
        return copied

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        worn = undress(self)
        try:
            function, arguments = self.__reduce__()
        finally:
            dress(self, worn)
        return function, arguments, _state(worn), None, None, _dress_again


def _state(worn: Dress) -> tuple[Any, dict[str, Any]]:
    """Return what a module wears, without its class, which is that of one instance."""
    return worn.recipe, {n: v for n, v in vars(worn).items() if n != "cls"}


def _dress_again(module: Any, state: tuple[Any, dict[str, Any]]) -> None:
    recipe, fields = state
    host: Any = type(module)
    dress(module, Dress(antialiased_class(host, recipe), **fields))
