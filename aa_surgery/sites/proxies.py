"""Values of the graph of a scope, as its forward sees them."""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import fx

__all__ = ["ScopeProxy"]


class ScopeProxy(fx.Proxy):
    """A proxy that remembers where a function unpacks; fx disassembles it for every unpacking."""

    def __getattr__(self, k: str) -> _Attribute:
        return _Attribute(self, k)

    def __iter__(self) -> Iterator[Any]:
        caller: Any = inspect.currentframe().f_back  # type: ignore[union-attr]
        count = _unpackings(caller.f_code).get(caller.f_lasti)
        if count is None:
            return iter(self.tracer.iter(self))
        item: Any = self
        return (item[i] for i in range(count))


class _Attribute(fx.proxy.Attribute):
    """An attribute of a proxy (`x.shape`), unpacked in the same way."""

    __getattr__ = ScopeProxy.__getattr__
    __iter__ = ScopeProxy.__iter__

    def __bool__(self) -> bool:
        """Follow the branch without gradients, where a forward asks so as to checkpoint itself."""
        if self.attr != "requires_grad":
            return super().__bool__()
        return False


@cache
def _unpackings(code: types.CodeType) -> dict[int, int]:
    """Return into how many names the instruction at each offset unpacks."""
    instructions = dis.get_instructions(code)
    return {i.offset: i.argval for i in instructions if i.opname == "UNPACK_SEQUENCE"}
