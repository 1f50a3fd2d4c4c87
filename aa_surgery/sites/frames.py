"""Where in a user's code an op is called: the functions on the way from the forward to it."""

from __future__ import annotations

import os
import sysconfig
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from aa_surgery.sites.linking import inner_function

__all__ = ["KEPT", "Step", "is_library_file", "way_to"]

_HERE = Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, _HERE))
_MODULES = str(Path(nn.modules.__file__).parent)
_STANDARD = sysconfig.get_path("stdlib") + os.sep


KEPT = "(kept)"
"""The owner of a method that was bound before the trace, and kept in a container."""


class Step(NamedTuple):
    """A user's function that runs, and the instruction at which it calls what comes next.

    Attributes:
        code: The function's code.
        offset: The instruction's offset in bytes.
        owner: The path, within the scope, of the module whose method it is; None of a helper.
        by_module: Whether it calls a method of torch's modules there (`super().forward`), which
            issues the op with arguments of its own.
    """

    code: types.CodeType
    offset: int
    owner: str | None = None
    by_module: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """Line and column at which the call ends, as `ast` counts them."""
        positions = list(self.code.co_positions())[self.offset // 2]
        return positions[1] or 0, positions[3] or 0


@cache
def is_library_file(file: str) -> bool:
    """Tell whether a file of code is Python's own, torch's, or ours."""
    standard = file.startswith(_STANDARD) and "site-packages" not in file
    return standard or file.startswith(_LIBRARIES) or file.startswith("<frozen")


def way_to(
    frame: types.FrameType | None,
    forward: Any,
    owner_of: Callable[[object], str | None],
    to_module: bool = False,
) -> tuple[Step, ...]:
    """Return the steps from `forward` to the call that made `frame`, outermost first.

    Args:
        frame: Where to look from.
        forward: The function that the steps begin with.
        owner_of: Gives the path of the module that an object stands for.
        to_module: Whether the call is that of a part, which is made through torch's own module.
    """
    first = inner_function(forward).__code__
    steps: list[Step] = []
    called = ""
    while frame is not None:
        code = frame.f_code
        by_module = not steps and not to_module and called.startswith(_MODULES)
        if code is first or _is_varied(code, first):
            steps.append(Step(first, frame.f_lasti, "", by_module))
            return tuple(reversed(steps))
        if not is_library_file(code.co_filename):
            steps.append(Step(code, frame.f_lasti, _owner(frame, owner_of), by_module))
        called = code.co_filename
        frame = frame.f_back
    return ()


def _is_varied(code: types.CodeType, first: types.CodeType) -> bool:
    """Whether a code is that of the forward with other arguments, as fx makes it for `*args`."""
    return (
        code.co_name == first.co_name
        and code.co_firstlineno == first.co_firstlineno
        and code.co_filename == first.co_filename
        and code.co_code == first.co_code
    )


def _owner(frame: types.FrameType, owner_of: Callable[[object], str | None]) -> str | None:
    code = frame.f_code
    if not code.co_argcount:
        return None
    return owner_of(frame.f_locals.get(code.co_varnames[0]))
