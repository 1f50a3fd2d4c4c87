"""Trace one scope: a module's own forward, with every child a leaf."""

from __future__ import annotations

import inspect
import itertools
import math
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import fx, nn
from torch.fx import _symbolic_trace

from aa_surgery.errors import NotTraceableError

__all__ = ["require_default", "trace_scope"]

_MAX_LEAF_FUNCTIONS = 8
_MATH = (math.ceil, math.floor, math.sqrt, math.prod)
_PLAIN = (bool, int, float, str, type(None))

Place = tuple[dict[str, Any], str]


def trace_scope(scope: nn.Module, training: bool = False, given: Collection[str] = ()) -> fx.Graph:
    """Return the graph of `scope.forward`, its children being leaves.

    A helper function which decides on a tensor's size (timm's `get_same_padding`) cannot be
    traced; it becomes a leaf of the graph, so that it goes on deciding when the graph runs.
    Functions that their author made leaves (`torch.fx.wrap`) are entered like any other.

    Args:
        scope: The module; left as it was, whatever its forward assigns.
        training: Which branch to follow where the forward reads `self.training`.
        given: Arguments that callers fill with tensors although they have a plain default.

    Raises:
        NotTraceableError: The forward decides on tensor sizes or values itself.
    """
    leaves: list[Place] = []
    while True:
        try:
            with _unchanged(scope, training), _nothing_wrapped(), _leaf_functions(leaves):
                return _Tracer(given).trace(scope)
        except Exception as error:
            place = _deciding_function(error, leaves)
            if place is None or len(leaves) == _MAX_LEAF_FUNCTIONS:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                raise NotTraceableError(
                    f"{type(scope).__name__}.forward cannot be traced: {reason}"
                ) from error
            leaves.append(place)


def require_default(value: object, default: object, name: str) -> None:
    """Refuse an argument that the traced forward has fixed to its default."""
    if value is not default and value != default:
        shown = value if isinstance(value, _PLAIN) else type(value).__name__
        raise NotTraceableError(
            f"argument {name}={shown}: this forward was traced for {name}={default} and follows "
            "that branch alone. Call remove_antialias(model), or exclude this module."
        )


class _Tracer(fx.Tracer):
    """An fx tracer that enters no child, and keeps plain default arguments concrete."""

    def __init__(self, given: Collection[str]) -> None:
        super().__init__()
        self.given = given
        # fx would patch all of `math` at every trace; forwards compute sizes with these
        self._autowrap_function_ids = {id(function) for function in _MATH}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def _proxy_placeholder(
        self, name: str, concrete_args: Any, sig: inspect.Signature, fn_for_analysis: Any
    ) -> Any:
        parameter = sig.parameters.get(name)
        proxy = super()._proxy_placeholder(name, concrete_args, sig, fn_for_analysis)
        if parameter is None or parameter.default is inspect.Parameter.empty:
            return proxy
        if name in self.given:
            return proxy
        if not isinstance(parameter.default, _PLAIN):
            return proxy
        self.create_proxy("call_function", require_default, (proxy, parameter.default, name), {})
        return parameter.default


@contextmanager
def _unchanged(scope: nn.Module, training: bool) -> Iterator[None]:
    """Give back the attributes of `scope` afterwards, whatever the forward assigned."""
    saved = {
        key: dict(value) if key in ("_parameters", "_buffers", "_modules") else value
        for key, value in scope.__dict__.items()
    }
    scope.training = training
    try:
        yield
    finally:
        for key in set(scope.__dict__) - set(saved):
            del scope.__dict__[key]
        for key, value in saved.items():
            held = scope.__dict__.get(key)
            if key in ("_parameters", "_buffers", "_modules") and held is not None:
                if held != value or list(held) != list(value):
                    held.clear()
                    held.update(value)
            else:
                scope.__dict__[key] = value


@contextmanager
def _nothing_wrapped() -> Iterator[None]:
    """Let fx forget the functions under `torch.fx.wrap`, of whatever package.

    Some of them subsample (torchvision's `_patch_merging_pad`); and fx patches all of them anew at
    every trace, which takes longer than the trace of a small scope.
    """
    wrapped = _symbolic_trace._wrapped_fns_to_patch
    saved = dict(wrapped)
    wrapped.clear()
    try:
        yield
    finally:
        wrapped.update(saved)


@contextmanager
def _leaf_functions(places: list[Place]) -> Iterator[None]:
    """Let each function, where its callers look it up, record itself when given a proxy."""
    with ExitStack() as stack:
        for namespace, name in places:
            original = namespace[name]
            namespace[name] = _recording(original)
            stack.callback(namespace.__setitem__, name, original)
        yield


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        for arg in (*args, *kwargs.values()):
            if isinstance(arg, fx.Proxy):
                return arg.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return record


def _deciding_function(error: BaseException, known: list[Place]) -> Place | None:
    """Return where the innermost module-level function on the error's way is looked up."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for caller, frame in reversed(list(itertools.pairwise(frames))):
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("torch.", "aa_surgery")) or caller.f_globals is None:
            continue
        for name, value in caller.f_globals.items():
            if isinstance(value, types.FunctionType) and value.__code__ is frame.f_code:
                place = (caller.f_globals, name)
                taken = any(ns is place[0] and n == name for ns, n in known)
                return None if taken else place
    return None
