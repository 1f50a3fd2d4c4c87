"""Helpers that decide on sizes: functions and methods that a trace records as one call."""

from __future__ import annotations

import types
from typing import Any

from torch import fx, nn

from aa_surgery.sites.frames import is_library_file
from aa_surgery.sites.linking import inner_function

__all__ = ["SELF", "called_function", "deciding_code", "is_patched"]

SELF = "aa_self"
"""The attribute that stands for the scope itself in a graph: the owner of a method's call."""


def deciding_code(
    error: BaseException, forward: Any, tried: list[types.CodeType]
) -> types.CodeType | None:
    """Return the code of the function at which a trace that failed shall stop, its forward aside.

    That is the innermost one on the error's way; of another library than the forward's (einops),
    the one by which it was entered.
    """
    first = inner_function(forward).__code__
    frames: list[types.FrameType] = []
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code is first:
            frames.clear()
        elif not is_library_file(frame.f_code.co_filename):
            frames.append(frame)
        traceback = traceback.tb_next
    home = _package(first.co_filename)
    codes = [frame.f_code for frame in frames if "<" not in frame.f_code.co_name]
    entered = [code for code in codes if _package(code.co_filename) != home]
    ordered = [*entered[:1], *reversed(codes)]
    return next((code for code in ordered if code not in tried), None)


def is_patched(error: BaseException) -> bool:
    """Tell whether an error came by the patches of a trace by torch.fx in another thread."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name == "module_call_wrapper":
            return True
        traceback = traceback.tb_next
    return False


def _package(file: str) -> str:
    """Return the folder of the installed package that a file belongs to; that of a user's file."""
    head, found, tail = file.rpartition("site-packages/")
    return found + tail.partition("/")[0] if found else head


def called_function(node: fx.Node, scope: nn.Module) -> types.FunctionType | None:
    """Return the Python function that a node calls as a leaf, if it is one."""
    target: Any = node.target
    if node.op == "call_method":
        owner = node.args[0] if node.args else None
        if not isinstance(owner, fx.Node) or owner.target != SELF:
            return None
        target = getattr(type(scope), target)
    if not isinstance(target, types.FunctionType):
        return None
    return None if target.__module__.startswith(("torch.", "aa_surgery.")) else target
