"""Trace scopes: a module's own forward, with every child a leaf.

The forward runs on stand-ins (`standins.py`), as a copy with globals of its own (`linking.py`); so
a trace changes nothing, of the model, of the user's modules, or of torch, in whatever thread.
"""

from __future__ import annotations

import gc
import inspect
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from aa_surgery.errors import NotTraceableError
from aa_surgery.sites.frames import way_to
from aa_surgery.sites.instance import bound_methods, forward_of
from aa_surgery.sites.leaves import SELF, deciding_code, is_patched
from aa_surgery.sites.linking import Linker, inner_function
from aa_surgery.sites.memo import Memo, Paths
from aa_surgery.sites.proxies import ScopeProxy
from aa_surgery.sites.site import Given
from aa_surgery.sites.standins import StandIns

__all__ = ["PLAIN", "WAY", "Trace", "trace_scope", "trace_scopes"]

_MAX_LEAVES = 8
PLAIN = (bool, int, float, str, type(None))
_PLAIN_TYPES = frozenset(PLAIN)
WAY = "aa_way"
"""Where in `node.meta` stands how the forward came to the node: a tuple of `Step`."""

_T = TypeVar("_T")


class Trace(Protocol):
    """`trace(scope)`: the graph of one forward, within a session of `trace_scopes`."""

    def __call__(
        self, scope: nn.Module, training: bool = False, given: Iterable[tuple[Any, ...]] = ()
    ) -> fx.Graph:
        """Return the graph."""
        ...


def trace_scopes(work: Callable[[Trace], _T]) -> _T:
    """Return `work(trace)`, where `trace(scope)` gives the graph of the scope's forward.

    Scopes that are alike share a graph: it is for reading, and is never run. `trace(scope,
    training, given)` has these arguments:

    - scope: The module. Its children are leaves.
    - training: Which branch to follow where the forward reads `self.training`.
    - given: Arguments that callers fill although they have a plain default: `(name,)` where with a
      value of the graph, `(name, constant)` where always with that.

    A helper which decides on a tensor's size (timm's `get_same_padding`, transformers'
    `maybe_pad`) cannot be traced; it becomes a leaf of the graph (`sites/leaves.py`). Functions
    that their author made leaves (`torch.fx.wrap`) are entered like any other.

    Raises:
        NotTraceableError: By `trace`: the forward decides on tensor sizes or values itself.
    """
    session = _Session()
    with ExitStack() as stack:
        # a forward may draw numbers; whoever counts on a seed shall not notice
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if gc.isenabled():  # it would look for garbage among the thousands of nodes
            stack.callback(gc.enable)
            gc.disable()
        return work(session.trace)


def trace_scope(
    scope: nn.Module, training: bool = False, given: Iterable[tuple[Any, ...]] = ()
) -> fx.Graph:
    """Return the graph of one scope's forward, as `trace_scopes` does of many."""
    return trace_scopes(lambda trace: trace(scope, training, given))


class _Session:
    """What the traces of one model have in common."""

    def __init__(self) -> None:
        self.memo = Memo()

    def trace(
        self, scope: nn.Module, training: bool = False, given: Iterable[tuple[Any, ...]] = ()
    ) -> fx.Graph:
        """Return the graph of the scope's forward, or that of a scope alike."""
        given = tuple(given)
        return self.memo.recall(
            scope, training, given, lambda paths: self._traced(scope, training, given, paths)
        )

    def _traced(self, scope: nn.Module, training: bool, given: Given, paths: Paths) -> fx.Graph:
        """Return the graph of the forward, with functions that decide on sizes as leaves."""
        leaves: list[types.CodeType] = []
        alone = False
        while True:
            linker = Linker(leaves)
            linker.note_class(type(scope))
            tracer = _ScopeTracer(scope, training, given, paths, linker, alone)
            try:
                tracer.run()
                return tracer.graph
            except Exception as error:
                if not alone and is_patched(error):
                    alone = True
                    continue
                leaf = deciding_code(error, tracer.forward, leaves)
                if leaf is None or len(leaves) == _MAX_LEAVES:
                    raise NotTraceableError(
                        f"{type(scope).__name__}.forward cannot be traced: {_why(error)}"
                    ) from error
                leaves.append(leaf)
            finally:
                linker.put_back()


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [repr(error)]
    if isinstance(error, TraceError) or "symbolic tracing" in lines[0]:
        return "it decides on the sizes or values of tensors"
    return lines[0].replace(ScopeProxy.__name__, "Proxy")


class _ScopeTracer(fx.Tracer):
    """Build the graph of one scope: enter no child, keep plain default arguments concrete."""

    def __init__(
        self,
        scope: nn.Module,
        training: bool,
        given: Given,
        paths: Paths,
        linker: Linker,
        alone: bool = False,
    ) -> None:
        nothing: Any = ()  # older annotations of torch ask for one module, no more and no less
        super().__init__(autowrap_modules=nothing)
        self.host = scope
        self.training = training
        self.forward = forward_of(scope)
        self.linker = linker
        self.given = {name: constant for name, *constant in given}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.root = scope
        self.tensor_attrs = {}
        self.tensors: dict[int, str] | None = None
        self.proxies: dict[str, fx.Proxy] = {}
        self.standins = StandIns(scope, paths, self._call, self._show, alone)

    def run(self) -> None:
        """Run the forward on stand-ins."""
        root = self.standins.root
        own = root.__dict__
        own.pop("forward", None)
        own["training"] = self.training
        methods = self.linker.methods(root, SELF)
        own.update({name: m for name, m in methods.items() if name not in self.host.__dict__})
        bound = bound_methods(self.host, type(self.host))
        own.update({n: methods[m] for n, m in bound.items() if m in methods and n != "forward"})
        args, keywords, starred = self._arguments()
        forward = self.linker.linked(self.forward, entered=True)
        if starred:
            forward = fx._symbolic_trace._patch_function(forward, len(args) + 1)
        result = forward(root, *args, **keywords)
        kept = dict.fromkeys(p.node for p in (*self.standins.written(), *self.linker.written()))
        if kept:
            self.create_node("call_function", kept_values, (tuple(kept),), {})
        self.create_node("output", "output", (self.create_arg(result),), {})

    def _arguments(self) -> tuple[list[Any], dict[str, Any], bool]:
        """Return what the forward is called with, and whether that says what its `*args` are.

        Of `**kwargs` nothing is given.
        """
        function = inner_function(self.forward)
        parameters = _parameters_of(function)
        by_name = any(p.kind is p.KEYWORD_ONLY for p in parameters)
        args: list[Any] = []
        keywords: dict[str, Any] = {}
        starred = False
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                args += [{}] if starred else []
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                if starred := function is self.forward and not by_name:
                    args.append(self.create_proxy("placeholder", f"*{parameter.name}", (), {}))
                continue
            value = self._argument(parameter)
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[parameter.name] = value
            else:
                args.append(value)
        return args, keywords, starred

    def _argument(self, parameter: inspect.Parameter) -> Any:
        proxy = self.create_proxy("placeholder", parameter.name, (), {})
        if parameter.default is parameter.empty:
            return proxy
        constant = self.given.get(parameter.name, [parameter.default])
        if constant and inspect.isroutine(constant[0]):
            return self.linker.seen(constant[0])
        return constant[0] if constant and isinstance(constant[0], PLAIN) else proxy

    def _call(self, path: str, args: Any, kwargs: Any) -> Any:
        return self.create_proxy("call_module", path, args, kwargs)

    def _show(self, tensor: torch.Tensor) -> Any:
        """Return the proxy of a tensor that the scope holds; else a copy, to write to."""
        name = self._name_of(tensor)
        if name is None:
            return self.linker.seen(tensor)
        if name not in self.proxies:
            self.proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self.proxies[name]

    def _name_of(self, tensor: torch.Tensor) -> str | None:
        for held in (self.host._parameters, self.host._buffers):
            for name, value in held.items():
                if value is tensor:
                    return name
        if self.tensors is None:
            self.tensors = {id(value): name for name, value in _held_tensors(self.host)}
        return self.tensors.get(id(tensor))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ScopeProxy(node, self)

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, *args, **kwargs)
        if kind.startswith("call"):
            where, to_module = sys._getframe(1), kind == "call_module"
            proxy.node.meta[WAY] = way_to(where, self.forward, self.standins.owner, to_module)
        return proxy

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        # the arguments are set afterwards, because fx would look through them for symbolic sizes
        node = self.graph.create_node(kind, target, (), {}, name, type_expr)
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    def create_arg(self, a: Any) -> Any:
        kind = type(a)
        if kind in _PLAIN_TYPES:
            return a
        if kind is ScopeProxy:
            return a.node
        if kind is tuple or kind is list:
            return kind([self.create_arg(item) for item in a])
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, np.integer):
            return int(a)
        if isinstance(a, torch.Tensor):
            if self._name_of(a) is not None:
                return self._show(a).node
            node = self.create_node("get_attr", "aa_constant", (), {})
            node.meta["aa_shape"] = tuple(a.shape)
            return node
        if kind is dict and not a:
            return {}
        try:
            return super().create_arg(a)
        except NotImplementedError:
            return _Opaque(a)


@lru_cache(maxsize=1024)
def _parameters_of(function: Any) -> tuple[inspect.Parameter, ...]:
    """Return the parameters behind `self`."""
    return tuple(inspect.signature(function).parameters.values())[1:]


def kept_values(values: tuple[Any, ...]) -> None:
    """Stand in a graph for what reads the values that a forward leaves in attributes."""


class _Opaque:
    """An argument that a graph cannot hold, in a graph that is only read."""

    def __init__(self, value: object) -> None:
        self.kind = type(value).__name__

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def _held_tensors(scope: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a forward can read by name: parameters, buffers, and tensors in attributes."""
    for path, module in scope.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, value
    yield from scope.named_buffers()
    yield from scope.named_parameters()
