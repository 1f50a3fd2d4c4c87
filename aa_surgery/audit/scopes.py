"""Which module runs now: a stack of qualified names kept by forward hooks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

__all__ = ["Scopes"]


class Scopes:
    """Follow the modules of a model as they run.

    The hooks are global ones, so that no module of the model is touched; what other threads run
    passes them by. A module that stands at several places goes by its first name; one that is not
    in the model runs in its caller's name, and what `torch.compile` puts around a module has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {
            id(m): ".".join(part for part in name.split(".") if part != "_orig_mod")
            for name, m in model.named_modules()
        }
        self._stack: list[tuple[str, nn.Module]] = []

    @property
    def current(self) -> str:
        """The qualified name of the module that runs; `""` is the model's own forward."""
        return self._stack[-1][0] if self._stack else ""

    @property
    def module(self) -> nn.Module | None:
        """The module that runs."""
        return self._stack[-1][1] if self._stack else None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Keep the stack inside; remove the hooks whatever happens."""
        mine = threading.get_ident()

        def enter(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == mine and id(module) in self._names:
                self._stack.append((self._names[id(module)], module))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != mine:
                return
            # a module that left without a word (an interrupt that the model caught) goes with it
            depths = [i for i, (_, m) in enumerate(self._stack) if m is module]
            if depths:
                del self._stack[depths[-1] :]

        with ExitStack() as hooks:
            hooks.callback(self._stack.clear)
            hooks.callback(register_module_forward_pre_hook(enter).remove)
            hooks.callback(register_module_forward_hook(leave, always_call=True).remove)
            yield
